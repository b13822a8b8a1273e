package e2e

import (
	"fmt"
	"net/http"
	"strings"
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

// separators are all characters but the dash that a header's name may have besides letters and digits.
const separators = "!#$%&'*+.^_`|~"

// TestHeaderAliases sends headers that a backend which makes variables of them, as CGI, WSGI and PHP do, takes for the
// key's. They are refused: as a key the plugin did not see them.
func TestHeaderAliases(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		settings := func(more hosts.Settings) hosts.Settings {
			more["statusHeader"] = "Decision"
			return more
		}
		t.Run("every separator", func(t *testing.T) {
			s := serve(t, host, created, settings(hosts.Settings{"header": "Idempotency-Key"}))
			for _, separator := range separators {
				s.wantProblem(s.do(post("/", "").headers(fmt.Sprintf("Idempotency%cKey", separator), "k")), 400, "invalid-key", "invalid")
			}
			s.calls(0)
		})
		t.Run("every place and every case", func(t *testing.T) {
			s := serve(t, host, created, settings(hosts.Settings{}))
			for _, name := range []string{"X_Request_ID", "X-Request_ID", "X_Request-ID", "x_request_id", "X.REQUEST~ID", "X_Request-Id", "x-request.id"} {
				for _, more := range [][]string{{}, {"X-Request-ID", "k"}, {"X-Request-ID", ""}} {
					s.wantProblem(s.do(post("/", "", more...).headers(name, "k")), 400, "invalid-key", "invalid")
				}
			}
			s.calls(0)
		})
		t.Run("among many headers", func(t *testing.T) {
			s := serve(t, host, created, settings(hosts.Settings{}))
			c := post("/", "", "X-Tenant", "a", "X-Request", "b", "X-Request-Id-2", "c", "Cookie", "d=e", "X-Other", "f", "My_Header", "g")
			s.want(s.do(c), 201, "")
			s.wantProblem(s.do(c.headers("X_Request_Id", "")), 400, "invalid-key", "invalid")
			s.calls(1)
		})
		t.Run("a request must have a key", func(t *testing.T) {
			s := serve(t, host, created, settings(hosts.Settings{"required": true}))
			s.wantProblem(s.do(post("/", "").headers("X_Request_ID", "k")), 400, "invalid-key", "invalid")
			s.wantProblem(s.do(post("/", "")), 400, "missing-key", "missing")
			s.calls(0)
		})
		t.Run("of what sets callers apart", func(t *testing.T) {
			s := serve(t, host, created, settings(hosts.Settings{"scope": "Host, Authorization, X-User, X-Api-Key"}))
			s.wantProblem(s.do(post("/", "k").headers("X_User", "alice")), 400, "invalid-key", "invalid")
			s.wantProblem(s.do(post("/", "k", "X-User", "bob").headers("X.User", "alice")), 400, "invalid-key", "invalid")
			s.wantProblem(s.do(post("/", "k").headers("X_API_KEY", "alice")), 400, "invalid-key", "invalid")
			s.calls(0)
			s.want(s.do(post("/", "k", "X-User", "alice", "X-Api-Key", "secret")), 201, "first")
		})
		t.Run("a name with an underscore is configured", func(t *testing.T) {
			s := serve(t, host, created, settings(hosts.Settings{"header": "x_request_id"}))
			s.want(s.do(post("/", "").headers("X_Request_ID", "k")), 201, "first")
			s.want(s.do(post("/", "").headers("X_Request_ID", "k")), 201, "replayed")
			s.wantProblem(s.do(post("/", "k")), 400, "invalid-key", "invalid")
			s.calls(1)
		})
		t.Run("observe mode lets them pass", func(t *testing.T) {
			s := serve(t, host, created, settings(hosts.Settings{"mode": "observe"}))
			s.want(s.do(post("/", "").headers("X_Request_ID", "k")), 201, "")
			s.calls(1)
		})
		t.Run("what is not protected passes", func(t *testing.T) {
			s := serve(t, host, created, settings(hosts.Settings{"endpoints": "POST /pay/, * /all/"}))
			for _, c := range []call{post("/other", ""), post("/pay/", "").with(func(c *call) { c.method = http.MethodPut })} {
				s.want(s.do(c.headers("X_Request_ID", "k")), 201, "")
			}
			s.calls(2)
			for _, method := range []string{"GET", "PURGE"} {
				c := post("/all/", "").with(func(c *call) { c.method = method })
				s.wantProblem(s.do(c.headers("X_Request_ID", "k")), 400, "invalid-key", "invalid")
			}
			s.calls(2)
		})
		t.Run("other names pass", func(t *testing.T) {
			s := serve(t, host, created, settings(hosts.Settings{}))
			for _, name := range []string{"X_Request_IDs", "My_X_Request_ID", "XRequestID", "XaRequestbId", "X__Request_Id", "Request_Id"} {
				s.want(s.do(post("/", "").headers(name, "k")), 201, "")
				s.want(s.do(post("/", strings.ToLower(name)).headers(name, "k")), 201, "first")
			}
			s.calls(12)
		})
	})
}

// TestAliasHeadersStrategySince37 has Traefik's entry point look at aliases first.
func TestAliasHeadersStrategySince37(t *testing.T) {
	for strategy, want := range map[string]struct {
		status   int
		decision string
		calls    int64
	}{"keep": {400, "invalid", 0}, "delete": {201, "", 1}, "reject": {400, "", 0}} {
		t.Run(strategy, func(t *testing.T) {
			addr := freeAddress(t)
			b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Header["X_request_id"] != nil {
					t.Error("the backend got the alias")
				}
				created(w, r)
			})
			static := map[string]any{"entryPoints": map[string]any{"web": map[string]any{
				"address": addr, "http": map[string]any{"aliasHeadersStrategy": strategy}}}}
			site, _ := runTraefik(t, static, hosts.Dynamic("shop.test", b.URL, hosts.Settings{"statusHeader": "Decision"}), addr, "shop.test")
			s := siteOf(t, site, b)
			s.want(s.do(post("/", "").headers("X_Request_ID", "k")), want.status, want.decision)
			s.calls(want.calls)
		})
	}
}
