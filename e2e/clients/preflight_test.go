package clients

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// TestBrowsersOfTwoOrigins has headers above the plugin, which allows each origin for itself.
func TestBrowsersOfTwoOrigins(t *testing.T) {
	b := rig.NewBackend(t, rig.Created)
	s := rig.SiteOf(t, hosts.ServeAs(t, fmt.Sprintf(`
http:
  routers: {ROUTER: {rule: "Host(%[1]sNAME%[1]s)", service: ROUTER, middlewares: [ROUTER-cors, ROUTER-idem]}}
  services: {ROUTER: {loadBalancer: {servers: [{url: %[2]q}]}}}
  middlewares:
    ROUTER-idem: {plugin: {idem: {statusHeader: Decision, exposeHeaders: true, required: true, endpoints: ["* /"]}}}
    ROUTER-cors:
      headers:
        accessControlAllowOriginList: ["https://one.example", "https://two.example"]
        accessControlAllowMethods: [POST]
        accessControlAllowHeaders: [X-Request-ID, Content-Type]
        addVaryHeader: true
`, "`", b.URL)), b)
	allowed := func(a rig.Answer, origin string) {
		t.Helper()
		if got := a.Header.Get("Access-Control-Expose-Headers"); a.Header["Decision"] != nil && got != "Idempotent-Replayed, Decision" {
			t.Errorf("%d exposes %q", a.Status, got)
		}
		if got := a.Header.Values("Access-Control-Allow-Origin"); len(got) != 1 || got[0] != origin {
			t.Errorf("%d allows %q, want %q", a.Status, got, origin)
		}
	}
	first := s.Do(rig.Post("/pay", "k", "Origin", "https://one.example"))
	s.Want(first, 201, "first")
	allowed(first, "https://one.example")
	for _, origin := range []string{"https://one.example", "https://two.example"} {
		preflight := rig.Call{Method: http.MethodOptions, Path: "/pay", Header: http.Header{
			"Origin": {origin}, "Access-Control-Request-Method": {"POST"}, "Access-Control-Request-Headers": {"x-request-id"}}}
		a := s.Do(preflight)
		s.Want(a, 200, "")
		allowed(a, origin)
		again := s.Do(rig.Post("/pay", "k", "Origin", origin))
		s.WantReplay(first, again)
		allowed(again, origin)
		missing := s.Do(rig.Post("/pay", "", "Origin", origin))
		s.WantProblem(missing, 400, "missing-key", "missing")
		allowed(missing, origin)
		reused := s.Do(rig.Post("/pay", "k", "Origin", origin).With(func(c *rig.Call) { c.Body = "{}" }))
		s.WantProblem(reused, 422, "key-reused", "mismatch")
		allowed(reused, origin)
	}
	s.Calls(1)
}
