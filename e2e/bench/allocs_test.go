package bench

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
)

// TestARequestAllocatesNoMoreThanRecorded guards the speed of a request, which a busy machine does not show: the interpreter
// allocates for nearly all that it executes.
func TestARequestAllocatesNoMoreThanRecorded(t *testing.T) {
	const (
		runs   = 500
		rounds = 4
		slack  = 1.03
	)
	server := redistest.Start(t)
	build, chosen := hosts.Builders(t)["yaegi"]
	if !chosen {
		t.Skip("HOSTS leaves Yaegi out")
	}
	for _, y := range ways {
		t.Run(y.name, func(t *testing.T) {
			handler := y.handler(t, build, server)
			measured := 0.0
			for round := range rounds {
				var requests []*http.Request
				var answers []*httptest.ResponseRecorder
				for i := range runs + 1 { // AllocsPerRun does not count the first
					requests = append(requests, y.request(round*(runs+1)+i))
					answers = append(answers, httptest.NewRecorder())
				}
				next := 0
				allocations := testing.AllocsPerRun(runs, func() {
					handler.ServeHTTP(answers[next], requests[next])
					next++
				})
				for _, w := range answers {
					if w.Code != http.StatusCreated {
						t.Fatalf("%d %s", w.Code, w.Body)
					}
				}
				if round == 0 || allocations < measured { // what else this process does only adds
					measured = allocations
				}
			}
			t.Logf("%.0f allocations, recorded are %.0f", measured, y.allocations)
			if measured > y.allocations*slack {
				t.Errorf("%.0f allocations are more than the recorded %.0f and 3 %%", measured, y.allocations)
			}
		})
	}
}
