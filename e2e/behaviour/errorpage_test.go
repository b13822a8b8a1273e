package behaviour

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// TestPagesForErrorsBelow has Traefik's errors middleware below the plugin. Its page for a backend that is dead, or broke off,
// is not the answer of the request.
func TestPagesForErrorsBelow(t *testing.T) {
	pages := rig.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, "<p>sorry, %s", r.URL.Path)
	})
	b := rig.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
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
			rig.Created(w, r)
		}
	})
	kinds := maps.Clone(payloads)
	kinds["asked for"] = func(c *rig.Call) []byte { c.Header.Set("Expect", "100-continue"); return nil }
	for _, chain := range []string{"[idem, errors]", "[idem, errors, retry]", "[idem, retry, errors]", "[retry, idem, errors]", "[buffering, idem, errors]"} {
		t.Run(chain, func(t *testing.T) {
			if strings.Contains(chain, "retry, idem") {
				hosts.NotIn30(t)
			}
			down := among(t, b, chain, "", []string{dead(1)}, pages.URL)
			s := among(t, b, chain, "", []string{b.URL}, pages.URL)
			for name, payload := range kinds {
				request := func(path string) rig.Call {
					c := rig.Post(path, "k-"+fmt.Sprintf("%x", name))
					payload(&c)
					return c
				}
				first := down.Do(request("/pay"))
				if first.Status != 502 || string(first.Body) != "<p>sorry, /page/502" {
					t.Errorf("%s: %d %q", name, first.Status, first.Body)
				}
				again := down.Do(request("/pay"))
				switch name {
				case "nothing", "nothing in chunks", "DELETE", "asked for": // nobody can tell that it was not sent
					down.Want(first, 502, "unknown")
					down.WantProblem(again, 409, "outcome-unknown", "unknown")
				default:
					down.Want(first, 502, "released")
					down.Want(again, 502, "released")
				}

				broken := s.Do(request("/broken"))
				s.Want(broken, 502, "unknown")
				s.WantProblem(s.Do(request("/broken")), 409, "outcome-unknown", "unknown")

				own := s.Do(request("/own")) // the backend's own answer, with another page
				s.Want(own, 500, "first")
				s.WantReplay(own, s.Do(request("/own")))

				well := s.Do(request("/pay"))
				s.Want(well, 201, "first")
				s.WantReplay(well, s.Do(request("/pay")))
			}
		})
	}
}

// TestAuthenticationBelow: what forwardAuth asks is not the request either.
func TestAuthenticationBelow(t *testing.T) {
	auth := rig.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "broken" {
			http.Error(w, "no database", 500)
		}
	})
	b := rig.NewBackend(t, rig.Created)
	site := func(server string) *rig.Site {
		return rig.SiteOf(t, hosts.ServeAs(t, fmt.Sprintf(`
http:
  routers: {ROUTER: {rule: "Host(%[1]sNAME%[1]s)", service: ROUTER, middlewares: [ROUTER-idem, ROUTER-auth]}}
  services: {ROUTER: {loadBalancer: {servers: [{url: %[2]q}]}}}
  middlewares:
    ROUTER-idem: {plugin: {idem: {statusHeader: Decision}}}
    ROUTER-auth: {forwardAuth: {address: %[3]q}}
`, "`", server, auth.URL)), b)
	}
	down, s := site(dead(1)), site(b.URL)
	for range 2 {
		down.Want(down.Do(rig.Post("/", "k")), 502, "released")
	}
	for range 2 {
		s.Want(s.Do(rig.Post("/", "k", "Authorization", "broken")), 500, "released")
	}
	first := s.Do(rig.Post("/", "k"))
	s.Want(first, 201, "first")
	s.WantReplay(first, s.Do(rig.Post("/", "k")))
	s.Calls(1)
}
