package behaviour

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// unreadable are values of headers that a middleware below may set, and nobody can read back.
var unreadable = []string{"a\x01b", "\x00", "tab\tand \x1b[31m", "del\x7f"}

// TestAnAnswerThatCannotBeReadBackIsNotKept has them from a handler of the test's own, since no backend's answer comes so far.
func TestAnAnswerThatCannotBeReadBackIsNotKept(t *testing.T) {
	for name, builder := range hosts.Builders(t) {
		for kind, redis := range map[string]bool{"memory": false, "redis": true, "redis without a cache": true} {
			t.Run(name+"/"+kind, func(t *testing.T) {
				e := &rig.Env{}
				if redis {
					e.Redis = rig.SharedRedis(t)
				}
				more := hosts.Settings{}
				if kind == "redis without a cache" { // as at another Traefik
					more["localCacheBytes"] = 0
				}
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				calls := 0
				h, err := builder(ctx, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					calls++
					w.Header().Set("Content-Type", "text/plain")
					w.Header().Set("X-Bad", unreadable[calls%len(unreadable)])
					if r.URL.Path == "/whole" {
						w.Header().Set("Content-Length", "4")
					}
					w.WriteHeader(201)
					_, _ = io.WriteString(w, "paid")
				}), e.Settings(more), fmt.Sprintf("unreadable%d", rig.PrefixCount.Add(1)))
				if err != nil {
					t.Fatal(err)
				}
				want := 0
				// An answer of the short way is kept as it is; only who reads it finds out.
				for path, decision := range map[string]string{"/whole": "first", "/parts": "unkept"} {
					for i := range unreadable {
						send := func() *httptest.ResponseRecorder {
							r := rig.Keyed("POST", fmt.Sprintf("k%d", i))
							r.URL.Path = path
							w := httptest.NewRecorder()
							h.ServeHTTP(w, r)
							return w
						}
						want++
						first := send()
						if first.Code != 201 || first.Body.String() != "paid" || first.Header().Get("Decision") != decision || first.Header().Get("X-Bad") == "" {
							t.Errorf("%s: %d %q %v", path, first.Code, first.Body, first.Header())
						}
						for range 2 {
							again := send()
							if again.Code != 409 || again.Header().Get("Decision") != "unkept" {
								t.Errorf("%s again: %d %s %v", path, again.Code, again.Body, again.Header())
							}
						}
					}
				}
				if calls != want {
					t.Errorf("%d calls, want %d", calls, want)
				}
			})
		}
	}
}

// TestAMiddlewareBelowSetsWhatCannotBeReadBack is that in Traefik.
func TestAMiddlewareBelowSetsWhatCannotBeReadBack(t *testing.T) {
	b := rig.NewBackend(t, rig.Created)
	s := rig.SiteOf(t, hosts.ServeAs(t, fmt.Sprintf(`
http:
  routers:
    ROUTER: {rule: "Host(%[1]sNAME%[1]s)", priority: 1, service: ROUTER}
    ROUTER-post: {rule: "Host(%[1]sNAME%[1]s) && Method(%[1]sPOST%[1]s)", priority: 2, service: ROUTER, middlewares: [ROUTER-idem, ROUTER-bad]}
  services: {ROUTER: {loadBalancer: {servers: [{url: %[2]q}]}}}
  middlewares:
    ROUTER-idem: {plugin: {idem: {statusHeader: Decision}}}
    ROUTER-bad: {headers: {customResponseHeaders: {X-Bad: "a\x01b"}}}
`, "`", b.URL)), b)
	first := s.Send(rig.Post("/", "k")) // Go's client refuses to read it as well
	if first.Err == nil && first.Status != 201 {
		t.Errorf("first: %d %s", first.Status, first.Body)
	}
	s.WantProblem(s.Do(rig.Post("/", "k")), 409, "response-not-kept", "unkept")
	s.Calls(1)
}
