package idem

import (
	"bytes"
	"context"
	"log"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/alicebob/miniredis/v2"
	miniredisserver "github.com/alicebob/miniredis/v2/server"

	"github.com/example/traefik-idem/store"
)

// TestWhatIsSettledIsToldAsFarAsItIsKnown has Redis' replies lost while a key is settled, or after that.
func TestWhatIsSettledIsToldAsFarAsItIsKnown(t *testing.T) {
	var lines bytes.Buffer
	log.SetOutput(&lines)
	defer log.SetOutput(os.Stderr)
	for _, test := range []struct {
		lostAt  int // number of arguments of the first script whose reply is lost: a look has 3, a change has 6
		answers bool
		status  int
		state   string
		line    string
	}{
		{3, true, http.StatusOK, "done", ""},
		{3, false, http.StatusOK, "free", ""},
		{6, true, http.StatusServiceUnavailable, "", "a key may have been settled by hand"},
		{6, false, http.StatusServiceUnavailable, "", "a key may have been settled by hand"},
	} {
		server := miniredis.RunT(t)
		h := newDoor(t, store.NewMemory(1<<20), server.Addr())
		h.log = newLogger("idem", "warn")
		l := &store.Run{Lease: &store.Lease{Key: "k", Fingerprint: strings.Repeat("f", store.FingerprintSize)}, Client: context.Background()}
		if held := claim(h, l); held != nil {
			t.Fatalf("%+v", held)
		}
		finish(h, l, unknownRecord(l))
		sight(h, noteUnknown, "k", "", store.Unknown)
		var changed atomic.Bool
		server.Server().SetPreHook(func(peer *miniredisserver.Peer, _ string, args ...string) bool {
			isChange := len(args) == 6 && strings.Contains(args[2], ":req:")
			if isChange {
				changed.Store(true)
			}
			lost := changed.Load() && (len(args) == test.lostAt || test.lostAt == 6)
			if lost {
				peer.Close()
			}
			return lost
		})
		lines.Reset()
		var answer *keysAnswer
		if test.answers {
			answer = answerKey(h, "boss", publicID("k"), "", &handAnswer{Status: 201, Body: "paid", ContentType: "text/plain"})
		} else {
			answer = freeKey(h, "boss", publicID("k"), "", false)
		}
		if answer.Status != test.status || (test.state != "" && answer.Key.State != test.state) || (test.state == "done" && (answer.Key.Status != 201 || answer.Key.Bytes != 4)) {
			t.Errorf("%+v: %+v with %+v", test, answer, answer.Key)
		}
		if text := lines.String(); test.line != "" && (!strings.Contains(text, test.line) || !strings.Contains(text, `user="boss" state=unknown key=`+publicID("k"))) {
			t.Errorf("%+v: the log has %s", test, text)
		}
	}
}
