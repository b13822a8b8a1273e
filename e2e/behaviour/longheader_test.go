package behaviour

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
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
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		var size int
		var way func(w http.ResponseWriter, body string)
		s := e.Serve(t, hosts.Settings{"maxResponseBodyBytes": 10_000}, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			for i := range size / 1000 {
				w.Header().Set(fmt.Sprintf("X-Long-%d", i), strings.Repeat("h", 1000))
			}
			way(w, strings.Repeat("b", 4000))
		})
		for name, answer := range ways {
			way = answer
			size = 5000
			key := rig.UnusedKey()
			first := s.Do(rig.Post("/", key))
			s.Want(first, first.Status, "first")
			s.WantReplay(first, s.Do(rig.Post("/", key)))
			size = 11_000
			key = rig.UnusedKey()
			first = s.Do(rig.Post("/", key))
			if decision := first.Header.Get("Decision"); len(first.Header.Get("X-Long-10")) != 1000 || (decision != "unkept" && (decision != "first" || name != "as a stream")) {
				t.Errorf("%s: %d %q with %d headers, want it whole", name, first.Status, decision, len(first.Header))
			}
			s.WantProblem(s.Do(rig.Post("/", key)), 409, "response-not-kept", "unkept")
		}
		s.Calls(int64(2 * len(ways)))
	})
}

// TestALongHeaderOfAnOrdinaryAnswer: the header counts also where the body is short enough for the short way.
func TestALongHeaderOfAnOrdinaryAnswer(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		const limit = 64 << 10
		length := 0
		s := e.Serve(t, hosts.Settings{"maxResponseBodyBytes": limit}, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			w.Header().Set("X-Long", strings.Repeat("h", length))
			w.Header().Set("Content-Length", "4")
			_, _ = w.Write([]byte("done"))
		})
		length = limit / 2
		first := s.Do(rig.Post("/", "short"))
		s.Want(first, 200, "first")
		s.WantReplay(first, s.Do(rig.Post("/", "short")))
		length = limit
		first = s.Do(rig.Post("/", "long"))
		s.Want(first, 200, "unkept")
		if len(first.Header.Get("X-Long")) != length || string(first.Body) != "done" {
			t.Errorf("the first answer is not whole: %d bytes of header, %q", len(first.Header.Get("X-Long")), first.Body)
		}
		s.WantProblem(s.Do(rig.Post("/", "long")), 409, "response-not-kept", "unkept")
		s.Calls(2)
	})
}
