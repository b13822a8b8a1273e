package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
)

// TestAHeaderCountsAsTheBodyDoes: an answer whose header alone, or with its body, is longer than maxResponseBodyBytes is
// delivered whole and not kept, in whatever way it comes.
func TestAHeaderCountsAsTheBodyDoes(t *testing.T) {
	ways := map[string]func(w http.ResponseWriter, body string){
		"whole": func(w http.ResponseWriter, body string) {
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			_, _ = w.Write([]byte(body))
		},
		"in two parts": func(w http.ResponseWriter, body string) {
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			_, _ = w.Write([]byte(body[:len(body)/2]))
			_ = http.NewResponseController(w).Flush()
			_, _ = w.Write([]byte(body[len(body)/2:]))
		},
		"as a stream": func(w http.ResponseWriter, body string) {
			_, _ = w.Write([]byte(body))
			_ = http.NewResponseController(w).Flush()
		},
		"without a body": func(w http.ResponseWriter, _ string) { w.WriteHeader(http.StatusNoContent) },
	}
	everywhere(t, func(t *testing.T, e *env) {
		var size int
		var way func(w http.ResponseWriter, body string)
		s := e.serve(t, hosts.Settings{"maxResponseBodyBytes": 10_000}, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			for i := range size / 1000 {
				w.Header().Set(fmt.Sprintf("X-Long-%d", i), strings.Repeat("h", 1000))
			}
			way(w, strings.Repeat("b", 4000))
		})
		for name, answer := range ways {
			way = answer
			size = 5000
			key := unusedKey()
			first := s.do(post("/", key))
			s.want(first, first.status, "first")
			s.wantReplay(first, s.do(post("/", key)))
			size = 11_000
			key = unusedKey()
			first = s.do(post("/", key))
			if decision := first.header.Get("Decision"); len(first.header.Get("X-Long-10")) != 1000 || (decision != "unkept" && (decision != "first" || name != "as a stream")) {
				t.Errorf("%s: %d %q with %d headers, want it whole", name, first.status, decision, len(first.header))
			}
			s.wantProblem(s.do(post("/", key)), 409, "response-not-kept", "unkept")
		}
		s.calls(int64(2 * len(ways)))
	})
}
