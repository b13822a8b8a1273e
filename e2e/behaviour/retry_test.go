package behaviour

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// among returns a site in Traefik whose router has this chain of middlewares before these servers. idem is the plugin with
// these settings; pages are those of the errors middleware.
func among(t *testing.T, b *rig.Backend, chain, settings string, servers []string, pages string) *rig.Site {
	t.Helper()
	var urls []string
	for _, server := range servers {
		urls = append(urls, fmt.Sprintf("{url: %q}", server))
	}
	names := strings.NewReplacer("[", "[ROUTER-", ", ", ", ROUTER-").Replace(chain)
	s := rig.SiteOf(t, hosts.ServeAs(t, strings.ReplaceAll(fmt.Sprintf(`
http:
  routers: {ROUTER: {rule: "Host('NAME')", service: ROUTER, middlewares: %s}}
  services:
    ROUTER: {loadBalancer: {servers: [%s]}}
    ROUTER-pages: {loadBalancer: {servers: [{url: %q}]}}
  middlewares:
    ROUTER-idem: {plugin: {idem: {statusHeader: Decision, %s}}}
    ROUTER-retry: {retry: {attempts: 4}}
    ROUTER-buffering: {buffering: {maxRequestBodyBytes: 1000000}}
    ROUTER-again: {buffering: {retryExpression: "IsNetworkError() && Attempts() < 2"}}
    ROUTER-headers: {headers: {customResponseHeaders: {X-Above: "yes"}}}
    ROUTER-errors: {errors: {status: ["500-599"], service: ROUTER-pages, query: "/page/{status}"}}
`, names, strings.Join(urls, ", "), pages, settings), "'", "`")), b)
	return s
}

// dead is the URL of server number n of those that nobody is at. A port that was free a moment ago may be another test's by now.
func dead(n int) string { return fmt.Sprintf("http://127.0.0.1:%d", n) }

// digest answers 201 with the sum of what it got, as a stream or whole.
func digest(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	w.Header().Set("X-Backend", "yes")
	if r.URL.Path == "/whole" {
		w.Header().Set("Content-Length", "68")
	}
	w.WriteHeader(http.StatusCreated)
	fmt.Fprintf(w, "%x", sha256.Sum256(body))
	if r.URL.Path != "/whole" {
		w.(http.Flusher).Flush()
	}
	_, _ = io.WriteString(w, "done")
}

// payloads are requests of every kind that the plugin handles in a way of its own.
var payloads = map[string]func(c *rig.Call) []byte{
	"nothing": func(c *rig.Call) []byte { c.Body = ""; return nil },
	"DELETE":  func(c *rig.Call) []byte { c.Method, c.Body = http.MethodDelete, ""; return nil },
	"nothing in chunks": func(c *rig.Call) []byte {
		c.Reader = io.MultiReader() // whose length net/http does not know
		return nil
	},
	"a little": func(c *rig.Call) []byte {
		return []byte(c.Body)
	},
	"much": func(c *rig.Call) []byte {
		c.Body = strings.Repeat("much ", 10000)
		return []byte(c.Body)
	},
	"more than is compared": func(c *rig.Call) []byte {
		c.Body = strings.Repeat("more ", 100000)
		return []byte(c.Body)
	},
	"no length": func(c *rig.Call) []byte {
		body := bytes.Repeat([]byte("chunk"), 2000)
		c.Reader = io.MultiReader(bytes.NewReader(body))
		return body
	},
}

// TestRetryInBothOrders has Traefik's retry above the plugin and below it. Of two servers one is dead, or both are.
func TestRetryInBothOrders(t *testing.T) {
	for _, chain := range []string{"[idem, retry]", "[retry, idem]", "[retry]", "[headers, retry, idem]", "[retry, idem, headers]"} {
		for _, settings := range []string{"maxRequestBodyBytes: 100000", "mode: observe", "onUnknown: release, detach: false"} {
			t.Run(chain+" "+settings, func(t *testing.T) {
				if strings.Contains(chain, "retry, idem") {
					hosts.NotIn30(t)
				}
				b := rig.NewBackend(t, digest)
				half := among(t, b, chain, settings, []string{dead(1), b.URL}, b.URL)
				none := among(t, b, chain, settings, []string{dead(1), dead(2)}, b.URL)
				decision, released, replayed := "first", "released", "replayed"
				switch {
				case !strings.Contains(chain, "idem"):
					decision, released, replayed = "", "", ""
				case settings == "mode: observe":
					decision, released, replayed = "observed", "observed", "observed"
				}
				for name, payload := range payloads {
					for i := range 4 {
						path := []string{"/whole", "/stream"}[i%2]
						if decision != "first" && name != "nothing" && name != "DELETE" { // Traefik now and then breaks off a stream that answers a body which it streams itself
							path = "/whole"
						}
						request := func() (rig.Call, string) {
							c := rig.Post(path, fmt.Sprintf("%s-%d", strings.ReplaceAll(name, " ", "-"), i))
							sum := sha256.Sum256(payload(&c))
							return c, fmt.Sprintf("%xdone", sum)
						}
						c, want := request()
						a := half.Send(c)
						if a.Err != nil {
							t.Fatalf("%s to %s: %v", name, path, a.Err)
						}
						half.Want(a, 201, decision)
						if string(a.Body) != want || a.Header.Get("X-Backend") != "yes" {
							t.Errorf("%s: %q %v, want %q", name, a.Body, a.Header, want)
						}
						if strings.Contains(chain, "headers") && a.Header.Get("X-Above") != "yes" {
							t.Errorf("%s: no header of the middleware above: %v", name, a.Header)
						}
						c, want = request()
						a = half.Do(c)
						half.Want(a, 201, replayed)
						if string(a.Body) != want || a.Header.Get("X-Backend") != "yes" {
							t.Errorf("%s again: %q %v, want %q", name, a.Body, a.Header, want)
						}
						for range 2 { // the key is free each time
							c, _ = request()
							a = none.Do(c)
							none.Want(a, 502, released)
							if string(a.Body) != "Bad Gateway" {
								t.Errorf("%s, all dead: %q", name, a.Body)
							}
						}
					}
				}
			})
		}
	}
}

// TestABodyThatIsSentAgain has buffering above the plugin, which rewinds bodies for tries of its own, and does not for those of a
// retry below it.
func TestABodyThatIsSentAgain(t *testing.T) {
	for _, chain := range []string{"[again, idem]", "[buffering, retry, idem]", "[again, retry, idem]"} {
		t.Run(chain, func(t *testing.T) {
			if strings.Contains(chain, "retry, idem") {
				hosts.NotIn30(t)
			}
			b := rig.NewBackend(t, digest)
			s := among(t, b, chain, "maxRequestBodyBytes: 100000", []string{dead(1), b.URL}, b.URL)
			for _, n := range []int{10, 60000, 100000, 100001, 150000, 250000} {
				for i := range 2 {
					body := make([]byte, n)
					_, _ = rand.Read(body)
					s.Want(s.Do(rig.Post("/whole", fmt.Sprint(n, "-", i)).With(func(c *rig.Call) { c.Body = string(body) })), 201, "first")
					a := s.Do(rig.Post("/whole", fmt.Sprint(n, "-", i)).With(func(c *rig.Call) { c.Reader = io.MultiReader(bytes.NewReader(body)) }))
					s.Want(a, 201, "replayed") // buffering declares a length
					if want := fmt.Sprintf("%xdone", sha256.Sum256(body)); string(a.Body) != want {
						t.Errorf("%d bytes: %s, want %s", n, a.Body, want)
					}
				}
			}
		})
	}
}

// TestABodyThatWasReadBelow has mirroring read all of a body, and then not reach its server: no backend gets less of it than
// the client has sent.
func TestABodyThatWasReadBelow(t *testing.T) {
	hosts.NotIn30(t)
	mirror := rig.NewBackend(t, digest)
	b := rig.NewBackend(t, digest)
	s := rig.SiteOf(t, hosts.ServeAs(t, strings.ReplaceAll(fmt.Sprintf(`
http:
  routers: {ROUTER: {rule: "Host('NAME')", service: ROUTER, middlewares: [ROUTER-retry, ROUTER-idem]}}
  services:
    ROUTER: {mirroring: {service: ROUTER-main, mirrors: [{name: ROUTER-mirror, percent: 100}]}}
    ROUTER-main: {loadBalancer: {servers: [{url: %q}, {url: %q}]}}
    ROUTER-mirror: {loadBalancer: {servers: [{url: %q}]}}
  middlewares:
    ROUTER-idem: {plugin: {idem: {statusHeader: Decision, maxRequestBodyBytes: 100000}}}
    ROUTER-retry: {retry: {attempts: 4}}
`, dead(1), b.URL, mirror.URL), "'", "`")), b)
	for _, n := range []int{10, 60000, 100000, 100001, 250000} {
		gone := 0
		for i := range 4 {
			body := make([]byte, n)
			_, _ = rand.Read(body)
			c := rig.Post("/whole", fmt.Sprint(n, "-", i))
			c.Reader = io.MultiReader(bytes.NewReader(body))
			a := s.Do(c)
			if a.Status == http.StatusBadGateway {
				s.Want(a, 502, "released")
				gone++
				c.Reader = io.MultiReader(bytes.NewReader(body)) // the key is free
				a = s.Do(c)
			}
			s.Want(a, 201, "first")
			if want := fmt.Sprintf("%xdone", sha256.Sum256(body)); string(a.Body) != want {
				t.Errorf("%d bytes: %s, want %s", n, a.Body, want)
			}
		}
		if gone > 0 && n <= 100000 {
			t.Errorf("%d bytes, which are kept: %d of 4 end with 502", n, gone)
		}
	}
}

// TestNoTransportResendsBelowBuffering has a backend that breaks a kept connection after it has acted. buffering tells the
// transport that there is no body, and then only the method or the key's header can make it send the request again.
func TestNoTransportResendsBelowBuffering(t *testing.T) {
	for _, chain := range []string{"[idem]", "[idem, buffering]"} {
		for _, header := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
			for _, name := range []string{"nothing", "nothing in chunks", "DELETE"} {
				t.Run(fmt.Sprintf("%s %s %s", chain, header, name), func(t *testing.T) {
					b := rig.NewRawBackend(t, func(conn net.Conn, n int64, _ *http.Request) bool {
						if n > 1 {
							return false
						}
						fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
						return true
					})
					s := among(t, nil, chain, "header: "+header, []string{b.URL}, b.URL)
					request := func(key string) rig.Call {
						c := rig.Post("/", "", header, key)
						payloads[name](&c)
						return c
					}
					s.Want(s.Do(request("one")), 200, "first") // leaves a connection to reuse
					s.Want(s.Do(request("two")), 502, "unknown")
					s.WantProblem(s.Do(request("two")), 409, "outcome-unknown", "unknown")
					b.Calls(t, 2)
					seen := b.Header.Load().(http.Header)
					if seen.Get(header) != "two" {
						t.Errorf("the backend does not get the key: %v", seen)
					}
				})
			}
		}
	}
}

// TestTrailersBelowRetry: the header that retry hands to the plugin is not the client's any more when the trailers come.
func TestTrailersBelowRetry(t *testing.T) {
	b := rig.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		w.WriteHeader(asked(r))
		_, _ = io.WriteString(w, "hello")
		w.Header().Set("X-Sum", "5")
	})
	for _, chain := range []string{"[retry]", "[retry, idem]", "[retry, headers, idem]"} {
		s := among(t, b, chain, "", []string{b.URL}, b.URL)
		for _, status := range []int{200, 400} {
			response, err := s.HTTP.Do(s.Request(rig.Post(fmt.Sprintf("/%d", status), "k")))
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			body, err := io.ReadAll(response.Body)
			if err != nil || string(body) != "hello" || response.Header.Get("X-Sum") != "" || response.Trailer.Get("X-Sum") != "5" {
				t.Errorf("%s: %q, header %v, trailer %v, %v", chain, body, response.Header, response.Trailer, err)
			}
		}
	}
}
