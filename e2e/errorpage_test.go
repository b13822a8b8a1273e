package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
)

// TestPagesForErrorsBelow has Traefik's errors middleware below the plugin. Its page for a backend that is dead, or broke off,
// is not the answer of the request.
func TestPagesForErrorsBelow(t *testing.T) {
	pages := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, "<p>sorry, %s", r.URL.Path)
	})
	b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		switch r.URL.Path {
		case "/broken":
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_ = conn.(*net.TCPConn).SetLinger(0)
			_ = conn.Close()
		case "/own":
			http.Error(w, "no money", 500)
		default:
			created(w, r)
		}
	})
	for _, chain := range []string{"[idem, errors]", "[idem, errors, retry]", "[idem, retry, errors]", "[retry, idem, errors]"} {
		t.Run(chain, func(t *testing.T) {
			down := among(t, b, chain, "", []string{dead(t)}, pages.URL)
			s := among(t, b, chain, "", []string{b.URL}, pages.URL)
			for name, payload := range payloads {
				request := func(path string) call {
					c := post(path, "k-"+fmt.Sprintf("%x", name))
					payload(&c)
					return c
				}
				first := down.do(request("/pay"))
				if first.status != 502 || string(first.body) != "<p>sorry, /page/502" {
					t.Errorf("%s: %d %q", name, first.status, first.body)
				}
				again := down.do(request("/pay"))
				if name == "nothing" || name == "DELETE" { // nobody can tell that it was not sent
					down.want(first, 502, "unknown")
					down.wantProblem(again, 409, "outcome-unknown", "unknown")
				} else {
					down.want(first, 502, "released")
					down.want(again, 502, "released")
				}

				broken := s.do(request("/broken"))
				s.want(broken, 502, "unknown")
				s.wantProblem(s.do(request("/broken")), 409, "outcome-unknown", "unknown")

				own := s.do(request("/own")) // the backend's own answer, with another page
				s.want(own, 500, "first")
				s.wantReplay(own, s.do(request("/own")))

				well := s.do(request("/pay"))
				s.want(well, 201, "first")
				s.wantReplay(well, s.do(request("/pay")))
			}
		})
	}
}

// TestAuthenticationBelow: what forwardAuth asks is not the request either.
func TestAuthenticationBelow(t *testing.T) {
	auth := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "broken" {
			http.Error(w, "no database", 500)
		}
	})
	b := newBackend(t, created)
	site := func(server string) *site {
		return siteOf(t, hosts.ServeAs(t, fmt.Sprintf(`
http:
  routers: {ROUTER: {rule: "Host(%[1]sNAME%[1]s)", service: ROUTER, middlewares: [ROUTER-idem, ROUTER-auth]}}
  services: {ROUTER: {loadBalancer: {servers: [{url: %[2]q}]}}}
  middlewares:
    ROUTER-idem: {plugin: {idem: {statusHeader: Decision}}}
    ROUTER-auth: {forwardAuth: {address: %[3]q}}
`, "`", server, auth.URL)), b)
	}
	down, s := site(dead(t)), site(b.URL)
	for range 2 {
		down.want(down.do(post("/", "k")), 502, "released")
	}
	for range 2 {
		s.want(s.do(post("/", "k", "Authorization", "broken")), 500, "released")
	}
	first := s.do(post("/", "k"))
	s.want(first, 201, "first")
	s.wantReplay(first, s.do(post("/", "k")))
	s.calls(1)
}
