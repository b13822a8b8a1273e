package behaviour

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// inARow returns a site before another site, both with the plugin on one Redis, and that before the backend.
func inARow(t *testing.T, host hosts.Host, redis *redistest.Server, handler http.HandlerFunc) *rig.Site {
	t.Helper()
	b := rig.NewBackend(t, handler)
	settings := (&rig.Env{Redis: redis}).Settings(hosts.Settings{"inFlight": "reject"})
	if host != hosts.Traefik {
		inner := host.Serve(t, b.URL, settings)
		return rig.SiteOf(t, host.Serve(t, "http://"+inner.Addr, settings), b)
	}
	second := hosts.StartTraefik(t)
	second.Write(t, "inner.test", map[string]any{"http": map[string]any{
		"routers":     map[string]any{"inner": map[string]any{"rule": "PathPrefix(`/`)", "service": "inner", "entryPoints": []string{"web"}, "middlewares": []string{"inner-idem"}}},
		"services":    map[string]any{"inner": map[string]any{"loadBalancer": map[string]any{"servers": []any{map[string]any{"url": b.URL}}}}},
		"middlewares": map[string]any{"inner-idem": map[string]any{"plugin": map[string]any{"idem": map[string]any(settings)}}},
	}})
	second.Site(t, "inner.test")
	return rig.SiteOf(t, host.Serve(t, "http://"+second.Addr, settings), b)
}

func TestTwoInARow(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		arrived, proceed := make(chan struct{}, 1), make(chan struct{}, 1)
		s := inARow(t, host, rig.SharedRedis(t), func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				arrived <- struct{}{}
				<-proceed
			}
			rig.Created(w, r)
		})
		first := s.Do(rig.Post("/", "k"))
		s.Want(first, 201, "first")
		s.WantReplay(first, s.Do(rig.Post("/", "k")))
		s.WantProblem(s.Do(rig.Post("/", "k").With(func(c *rig.Call) { c.Body = "{}" })), 422, "key-reused", "mismatch")
		s.Calls(1)

		slow := make(chan rig.Answer, 1)
		go func() { slow <- s.Send(rig.Post("/slow", "k")) }()
		<-arrived
		for _, guess := range []string{"", "1", "guess-1"} { // who does not know the run is a duplicate of it
			s.WantProblem(s.Do(rig.Post("/slow", "k", "X-Idem-Run", guess)), 409, "in-flight", "conflict")
		}
		proceed <- struct{}{}
		s.Want(<-slow, 201, "first")
		s.Calls(2)
	})
}

// TestARouterThatLeadsBack has one Traefik twice on the way of a request, with keys in memory and in Redis.
func TestARouterThatLeadsBack(t *testing.T) {
	for kind, redis := range map[string]*redistest.Server{"memory": nil, "redis": rig.SharedRedis(t)} {
		t.Run(kind, func(t *testing.T) {
			b := rig.NewBackend(t, rig.Created)
			back := hosts.Traefik.Serve(t, b.URL, hosts.Settings{}).Addr
			settings := "statusHeader: Decision, inFlightTimeout: 1s"
			if redis != nil {
				settings += fmt.Sprintf(", redis: {endpoints: [%q], keyPrefix: back, readTimeout: 20s, dialTimeout: 20s}, lease: 90s", redis.Addr)
			}
			s := rig.SiteOf(t, hosts.ServeAs(t, fmt.Sprintf(`
http:
  routers:
    ROUTER: {rule: "Host(%[1]sNAME%[1]s)", priority: 1, service: ROUTER, middlewares: [ROUTER-idem, ROUTER-mark]}
    ROUTER-again: {rule: "Host(%[1]sNAME%[1]s) && Header(%[1]sX-Again%[1]s, %[1]syes%[1]s)", priority: 2, service: ROUTER-backend, middlewares: [ROUTER-idem]}
  services:
    ROUTER: {loadBalancer: {servers: [{url: "http://%[2]s"}]}}
    ROUTER-backend: {loadBalancer: {servers: [{url: %[3]q}]}}
  middlewares:
    ROUTER-idem: {plugin: {idem: {%[4]s}}}
    ROUTER-mark: {headers: {customRequestHeaders: {X-Again: "yes"}}}
`, "`", back, b.URL, settings)), b)
			first := s.Do(rig.Post("/", "k"))
			s.Want(first, 201, "first")
			s.WantReplay(first, s.Do(rig.Post("/", "k")))
			s.Calls(1)
		})
	}
}
