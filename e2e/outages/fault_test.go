package outages

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

func TestAnUnknownOutcomeIsHeld(t *testing.T) {
	breaks := map[string]struct {
		serve  func(conn net.Conn)
		status int // 0: the client sees the answer break off
	}{
		"reset before an answer": {func(net.Conn) {}, 502},
		"no answer in time":      {func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }, 504},
		"garbage":                {func(conn net.Conn) { fmt.Fprint(conn, "this is not HTTP\r\n\r\n") }, 500},
		"break after early hints": {func(conn net.Conn) {
			fmt.Fprint(conn, "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n")
		}, 500},
		"break in the body": {func(conn net.Conn) {
			fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
		}, 0},
		"break in a chunk": {func(conn net.Conn) {
			fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nhalf")
		}, 0},
	}
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		for name, c := range breaks {
			b := rig.NewRawBackend(t, func(conn net.Conn, _ int64, _ *http.Request) bool {
				c.serve(conn)
				return false
			})
			s := rig.RawSite(t, e, b, hosts.Settings{"ttl": "50s", "retryableStatuses": "500-504"})
			first, calls := s.Send(rig.Post("/", "k")), int64(1)
			switch {
			case c.status == 0 && first.Err == nil: // Traefik 3.0 ends a broken answer as if it were whole, also without the plugin
				calls++
				if s.Send(rig.Post("/", "")).Err != nil {
					t.Errorf("%s: the client sees a whole answer: %d %q", name, first.Status, first.Body)
				}
			case c.status != 0 && (first.Status != c.status || first.Header.Get("Decision") != "unknown"):
				t.Errorf("%s: first answer %d %q %v, want %d unknown", name, first.Status, first.Header.Get("Decision"), first.Err, c.status)
			}
			again := s.Do(rig.Post("/", "k"))
			s.WantProblem(again, 409, "outcome-unknown", "unknown")
			var seconds int
			_, _ = fmt.Sscan(again.Header.Get("Retry-After"), &seconds)
			if seconds < 1 || seconds > 50 {
				t.Errorf("%s: Retry-After %q with a ttl of 50 s", name, again.Header.Get("Retry-After"))
			}
			b.Calls(t, calls)
		}
		b := rig.NewRawBackend(t, func(net.Conn, int64, *http.Request) bool { return false })
		s := rig.RawSite(t, e, b, hosts.Settings{"onUnknown": "release"})
		s.Send(rig.Post("/", "k"))
		s.Send(rig.Post("/", "k"))
		b.Calls(t, 2)
	})
}
