package behaviour

import (
	"net/http"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

func TestPreflightsPassUntouched(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"required": true, "endpoints": "* /api/"}, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Access-Control-Allow-Origin", "*")
			w.WriteHeader(204)
		})
		preflight := rig.Call{Method: http.MethodOptions, Path: "/api/pay", Header: http.Header{
			"Origin": {"https://shop.example"}, "Access-Control-Request-Method": {"POST"}, "Access-Control-Request-Headers": {"x-request-id"}}}
		for range 2 {
			a := s.Do(preflight)
			s.Want(a, 204, "")
			if a.Header.Get("Access-Control-Allow-Origin") != "*" {
				t.Errorf("the preflight got %v", a.Header)
			}
		}
		s.WantProblem(s.Do(preflight.With(func(c *rig.Call) { c.Header.Del("Access-Control-Request-Method") })), 400, "missing-key", "missing")
		s.Calls(2)
	})
}
