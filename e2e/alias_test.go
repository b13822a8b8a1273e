package e2e

import (
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
)

// headers is what every request of c has besides, each name as it is.
func (c call) headers(lines ...string) call {
	return c.with(func(c *call) {
		for i := 0; i+1 < len(lines); i += 2 {
			c.header[lines[i]] = []string{lines[i+1]}
		}
	})
}

// TestAnAliasIsNoKey sends headers that a backend which makes variables of them, as CGI, WSGI and PHP do, takes for the
// key's. To the plugin they are none: where a key is required, the request is refused.
func TestAnAliasIsNoKey(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		s := serve(t, host, created, hosts.Settings{"statusHeader": "Decision", "required": true})
		for _, name := range []string{"X_Request_ID", "X-Request_ID", "X_Request-ID", "x_request_id", "X.REQUEST~ID", "x-request.id"} {
			s.wantProblem(s.do(post("/", "").headers(name, "k")), 400, "missing-key", "missing")
		}
		s.calls(0)
		s.want(s.do(post("/", "k").headers("X_Request_ID", "other")), 201, "first")
	})
}

// TestAliasHeadersStrategySince37 has Traefik's entry point look at aliases first.
func TestAliasHeadersStrategySince37(t *testing.T) {
	for strategy, want := range map[string]struct {
		status int
		arrive int64 // aliases at the backend
	}{"keep": {201, 1}, "delete": {201, 0}, "reject": {400, 0}} {
		t.Run(strategy, func(t *testing.T) {
			addr := freeAddress(t)
			var arrived atomic.Int64
			b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
				arrived.Add(int64(len(r.Header["X_request_id"])))
				created(w, r)
			})
			static := map[string]any{"entryPoints": map[string]any{"web": map[string]any{
				"address": addr, "http": map[string]any{"aliasHeadersStrategy": strategy}}}}
			site, _ := runTraefik(t, static, hosts.Dynamic("shop.test", b.URL, hosts.Settings{"statusHeader": "Decision"}), addr, "shop.test")
			s := siteOf(t, site, b)
			s.want(s.do(post("/", "").headers("X_Request_ID", "k")), want.status, "")
			if arrived.Load() != want.arrive {
				t.Errorf("%d aliases came to the backend, want %d", arrived.Load(), want.arrive)
			}
		})
	}
}
