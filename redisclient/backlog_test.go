package redisclient

import (
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/example/traefik-idem/store"
)

// TestAnotherClientWritesWhatIsPending closes a client of a server that does not come back, while there is something to tell it.
func TestAnotherClientWritesWhatIsPending(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = listener.Close()
	fingerprint := strings.Repeat("f", store.FingerprintSize)
	b := NewBacklog()
	c := NewSharing(Options{Address: listener.Addr().String(), DialTimeout: time.Minute, ReadTimeout: time.Minute, WriteTimeout: time.Minute}, b)
	k := NewKeys(c, "idem")
	record := fmt.Sprintf(store.UnknownFormat, fingerprint, "o-1")
	Later(k, &store.Lease{Key: "k", Fingerprint: fingerprint, Owner: "o-1"}, record, time.Hour)
	if c.Idle() {
		t.Error("the only client of a server that is still to be told something is idle")
	}
	for c.state() == fine { // it has not been tried yet
		time.Sleep(time.Millisecond)
	}
	c.Close()
	for i := 0; i < 500; i++ { // for longer than probes pause
		if c.state() == fine {
			t.Fatal("a server that is out of reach is taken for fine, so that it is tried without a pause")
		}
		time.Sleep(time.Millisecond)
	}
	if b.Idle() {
		t.Error("what was pending is forgotten")
	}
	server := miniredis.RunT(t)
	heir := NewSharing(Options{Address: server.Addr(), DialTimeout: time.Minute, ReadTimeout: time.Minute, WriteTimeout: time.Minute}, b)
	for !heir.Idle() { // what is never told ends in the test's time-out
		time.Sleep(time.Millisecond)
	}
	value, _ := server.Get(wire(k, &store.Lease{Key: "k"})[k.start:k.end])
	if value != record {
		t.Errorf("the server has %q, want %q", value, record)
	}
	for c.state() != fine { // its watch ends, since another client writes
		time.Sleep(time.Millisecond)
	}
	kept, err := Renew(k, &store.Lease{Key: "l", Fingerprint: fingerprint, Owner: "o-2"}, time.Hour)
	if !kept || err != nil {
		t.Errorf("a lease that came by the client that is closed is renewed: %t, %v", kept, err)
	}
	heir.Close()
	if !b.Idle() {
		t.Error("a backlog that nobody uses, with nothing in it, is kept")
	}
}

// TestAClosedClientTellsNobodyThatRedisIsBack has a hook that sends something by a closed client, as the renewal of leases
// does: that must not go round without a pause while the server is out of reach.
func TestAClosedClientTellsNobodyThatRedisIsBack(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = listener.Close()
	c := NewSharing(Options{Address: listener.Addr().String(), DialTimeout: time.Minute, ReadTimeout: time.Minute, WriteTimeout: time.Minute}, NewBacklog())
	k := NewKeys(c, "idem")
	renew := func() {
		_, _ = Renew(k, &store.Lease{Key: "k", Fingerprint: strings.Repeat("f", store.FingerprintSize), Owner: "o-1"}, time.Hour)
	}
	var told atomic.Int32
	unhook := WhenBack(k, func() {
		told.Add(1)
		renew()
	})
	defer unhook()
	renew()
	if c.state() == fine {
		t.Fatal("a server that is out of reach is fine")
	}
	c.Close()
	for c.state() != fine { // its watch ends
		time.Sleep(time.Millisecond)
	}
	time.Sleep(300 * time.Millisecond)
	if told.Load() != 0 {
		t.Errorf("it was told %d times that the server is back", told.Load())
	}
}
