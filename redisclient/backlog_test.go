package redisclient

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/example/traefik-idem/store"
)

// TestWhatNobodyCanBeToldIsForgotten closes a client of a server that does not come back, while there is something to tell it.
func TestWhatNobodyCanBeToldIsForgotten(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = listener.Close()
	c := New(Options{Address: listener.Addr().String(), DialTimeout: time.Minute, ReadTimeout: time.Minute, WriteTimeout: time.Minute})
	l := &store.Lease{Key: "k", Fingerprint: strings.Repeat("f", store.FingerprintSize), Owner: "o-1"}
	Later(NewKeys(c, "idem"), l, "", time.Hour)
	c.Close()
	b := &c.plight.backlog
	for left := 1; left > 0 || c.state() != fine; { // what is never forgotten ends in the test's time-out
		time.Sleep(time.Millisecond)
		b.mu.Lock()
		left = b.debts.Len()
		if b.settling {
			left++
		}
		b.mu.Unlock()
	}
}
