package behaviour

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// TestAnUnknownOutcomeIsSaidWhenItHappens, not only when its duplicate comes.
func TestAnUnknownOutcomeIsSaidWhenItHappens(t *testing.T) {
	for _, onUnknown := range []string{"hold", "release"} {
		rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
			s := e.Serve(t, hosts.Settings{"onUnknown": onUnknown, "stats": rig.OpenStats["stats"]}, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				conn, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				_ = conn.(*net.TCPConn).SetLinger(0)
				_ = conn.Close()
			})
			for _, path := range []string{"/pay?card=hush-1", "/pay?card=hush-2", "/refund"} {
				a := s.Do(rig.Post(path, "secret-key-"+path[1:4]+path[len(path)-1:]))
				if a.Status < 500 {
					t.Errorf("%s: %d", path, a.Status)
				}
			}
			for strings.Count(s.Logs(), "nobody knows how a request ended") < 2 { // what never comes ends in the test's time-out
				time.Sleep(10 * time.Millisecond)
			}
			f := s.Counted(func(f rig.Figures) bool { return f.Totals["unknownOutcomes"] == 3 })
			total(f, t, "unknown", 0)
			metrics := string(s.Do(rig.Get("/_idem/metrics")).Body)
			if !strings.Contains(metrics, "\ntraefik_idem_unknown_outcomes_total 3\n") {
				t.Errorf("the metrics say\n%s", metrics)
			}
			logs := s.Logs()
			if n := strings.Count(logs, "nobody knows how a request ended"); n != 2 {
				t.Errorf("said %d times, want once for each path:\n%s", n, logs)
			}
			if strings.Contains(logs, "secret-key") || strings.Contains(logs, "hush-") {
				t.Errorf("a key or a query in the log:\n%s", logs)
			}
		})
	}
}
