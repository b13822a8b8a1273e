package e2e

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
)

func TestPreflightsPassUntouched(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		s := e.serve(t, hosts.Settings{"required": true, "endpoints": "* /api/"}, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Access-Control-Allow-Origin", "*")
			w.WriteHeader(204)
		})
		preflight := call{method: http.MethodOptions, path: "/api/pay", header: http.Header{
			"Origin": {"https://shop.example"}, "Access-Control-Request-Method": {"POST"}, "Access-Control-Request-Headers": {"x-request-id"}}}
		for range 2 {
			a := s.do(preflight)
			s.want(a, 204, "")
			if a.header.Get("Access-Control-Allow-Origin") != "*" {
				t.Errorf("the preflight got %v", a.header)
			}
		}
		s.wantProblem(s.do(preflight.with(func(c *call) { c.header.Del("Access-Control-Request-Method") })), 400, "missing-key", "missing")
		s.calls(2)
	})
}

// TestBrowsersOfTwoOrigins has headers above the plugin, which allows each origin for itself.
func TestBrowsersOfTwoOrigins(t *testing.T) {
	b := newBackend(t, created)
	s := siteOf(t, hosts.ServeAs(t, fmt.Sprintf(`
http:
  routers: {ROUTER: {rule: "Host(%[1]sNAME%[1]s)", service: ROUTER, middlewares: [ROUTER-cors, ROUTER-idem]}}
  services: {ROUTER: {loadBalancer: {servers: [{url: %[2]q}]}}}
  middlewares:
    ROUTER-idem: {plugin: {idem: {statusHeader: Decision, required: true, endpoints: ["* /"]}}}
    ROUTER-cors:
      headers:
        accessControlAllowOriginList: ["https://one.example", "https://two.example"]
        accessControlAllowMethods: [POST]
        accessControlAllowHeaders: [X-Request-ID, Content-Type]
        accessControlExposeHeaders: [Decision]
        addVaryHeader: true
`, "`", b.URL)), b)
	allowed := func(a answer, origin string) {
		t.Helper()
		if got := a.header.Values("Access-Control-Allow-Origin"); len(got) != 1 || got[0] != origin {
			t.Errorf("%d allows %q, want %q", a.status, got, origin)
		}
	}
	first := s.do(post("/pay", "k", "Origin", "https://one.example"))
	s.want(first, 201, "first")
	allowed(first, "https://one.example")
	for _, origin := range []string{"https://one.example", "https://two.example"} {
		preflight := call{method: http.MethodOptions, path: "/pay", header: http.Header{
			"Origin": {origin}, "Access-Control-Request-Method": {"POST"}, "Access-Control-Request-Headers": {"x-request-id"}}}
		a := s.do(preflight)
		s.want(a, 200, "")
		allowed(a, origin)
		again := s.do(post("/pay", "k", "Origin", origin))
		s.wantReplay(first, again)
		allowed(again, origin)
		missing := s.do(post("/pay", "", "Origin", origin))
		s.wantProblem(missing, 400, "missing-key", "missing")
		allowed(missing, origin)
		reused := s.do(post("/pay", "k", "Origin", origin).with(func(c *call) { c.body = "{}" }))
		s.wantProblem(reused, 422, "key-reused", "mismatch")
		allowed(reused, origin)
	}
	s.calls(1)
}
