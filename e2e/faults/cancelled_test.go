package faults

// What Traefik's own middlewares and proxies answer when the client has gone is nobody's answer to its request.

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// abandon sends c, gives it up when arrived returns, and returns when the client has gone.
func abandon(t *testing.T, s *rig.Site, c rig.Call, arrived func()) {
	t.Helper()
	if !leaves(s, c, arrived) {
		t.Fatal("the request was not given up")
	}
}

// leaves is abandon for a request that may be answered before. It reports whether it was given up.
func leaves(s *rig.Site, c rig.Call, arrived func()) bool {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		response, err := s.HTTP.Do(s.Request(c).WithContext(ctx))
		if err == nil {
			_ = response.Body.Close()
		}
		ended <- err
	}()
	arrived()
	cancel()
	return <-ended != nil
}

// givesUp are settings under which the call of the backend is cancelled when its client has gone.
var givesUp = map[string]hosts.Settings{"detach": {"detach": false}, "detachTimeout": {"detachTimeout": "50ms"}}

// TestWhatIsAnsweredToACancelledCall has handlers below the plugin that end as Traefik's do when their client has gone.
func TestWhatIsAnsweredToACancelledCall(t *testing.T) {
	silent := func(http.ResponseWriter) {}
	written := func(w http.ResponseWriter) { w.WriteHeader(http.StatusOK) }
	cancelled := func(w http.ResponseWriter) {
		http.Error(w, "context canceled", http.StatusInternalServerError)
	}
	unseen := func(*http.Request) {}
	sought := func(r *http.Request) { httptrace.ContextClientTrace(r.Context()).GetConn("backend:80") }
	sent := func(r *http.Request) {
		sought(r)
		_, _ = io.Copy(io.Discard, r.Body)
		httptrace.ContextClientTrace(r.Context()).WroteHeaders()
	}
	for name, c := range map[string]struct {
		reach    func(r *http.Request) // how far the request gets
		answer   func(w http.ResponseWriter)
		body     string
		decision string // on the next try
	}{
		"retry between tries":                   {sought, silent, "body", "first"},
		"retry between tries, no body":          {sought, silent, "", "first"},
		"compress above retry":                  {sought, written, "", "first"},
		"rateLimit during its delay":            {unseen, cancelled, "body", "first"},
		"rateLimit during its delay, no body":   {unseen, cancelled, "", "unknown"}, // fastProxy reports no more of what it has sent
		"a request that was sent":               {sent, silent, "body", "unknown"},
		"a request that was sent, and an error": {sent, cancelled, "body", "unknown"},
		"the backend's answer": {sent, func(w http.ResponseWriter) {
			w.Header().Set("Date", "Thu, 26 Nov 2026 03:14:04 GMT")
			rig.Created(w, &http.Request{Body: http.NoBody})
		}, "body", "replayed"},
	} {
		for why, settings := range givesUp {
			t.Run(name+" "+why, func(t *testing.T) {
				below(t, settings, func(t *testing.T, build func(http.Handler) *rig.Site) {
					arrived, calls := make(chan struct{}), 0
					s := build(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						calls++
						if calls > 1 {
							rig.Created(w, r)
							return
						}
						c.reach(r)
						arrived <- struct{}{}
						<-r.Context().Done()
						c.answer(w)
					}))
					call := rig.Post("/", "k").With(func(r *rig.Call) { r.Body = c.body })
					abandon(t, s, call, func() { <-arrived })
					again := s.Do(call)
					if again.Header.Get("Decision") != c.decision {
						t.Errorf("the next try gets %d %q %q, want %s", again.Status, again.Header.Get("Decision"), again.Body, c.decision)
					}
				})
			})
		}
	}
}

// between is a site in Traefik with this chain, where idem is the plugin with these settings, before the server at url.
func between(t *testing.T, chain, settings, url string) *rig.Site {
	t.Helper()
	names := strings.NewReplacer("[", "[ROUTER-", ", ", ", ROUTER-").Replace(chain)
	return rig.SiteOf(t, hosts.ServeAs(t, strings.ReplaceAll(fmt.Sprintf(`
http:
  routers: {ROUTER: {rule: "Host('NAME')", service: ROUTER, middlewares: %s}}
  services: {ROUTER: {loadBalancer: {servers: [{url: %q}]}}}
  middlewares:
    ROUTER-idem: {plugin: {idem: {statusHeader: Decision, %s}}}
    ROUTER-retry: {retry: {attempts: 4, initialInterval: 5m}}
    ROUTER-compress: {compress: {}}
    ROUTER-errors: {errors: {status: ["400-599"], service: ROUTER, query: "/page"}}
    ROUTER-rate: {rateLimit: {average: 1, period: 1s, burst: 1}}
`, names, url, settings), "'", "`")), nil)
}

// TestRetryGivesUpBetweenTries has the client of a request go while Traefik's retry waits for its next try.
func TestRetryGivesUpBetweenTries(t *testing.T) {
	for _, chain := range []string{"[idem, retry]", "[idem, compress, retry]", "[idem, errors, retry]"} {
		for _, settings := range []string{"detach: false", "detachTimeout: 50ms"} {
			t.Run(chain+" "+settings, func(t *testing.T) {
				addr := rig.FreeAddress(t)
				serve := func() *http.Server {
					listener, err := net.Listen("tcp", addr)
					if err != nil {
						t.Fatal(err)
					}
					up := &http.Server{Handler: http.HandlerFunc(rig.Created)}
					up.SetKeepAlivesEnabled(false) // so that Traefik is left with none of its connections
					go func() { _ = up.Serve(listener) }()
					t.Cleanup(func() { _ = up.Close() })
					return up
				}
				up := serve() // for the request that asks whether the site is there
				s := between(t, chain, settings, "http://"+addr)
				_ = up.Close()
				c := rig.Post("/", "k", "Accept-Encoding", "br")
				abandon(t, s, c, func() { s.AwaitLog("New attempt 2 for request") })
				serve()
				s.Want(s.Do(c), 201, "first")
				s.Want(s.Do(c), 201, "replayed")
			})
		}
	}
}

// TestRateLimitGivesUpDuringItsDelay has clients that go while Traefik's rateLimit holds them up for less than half a second. On a
// machine that is slower, it sees less.
func TestRateLimitGivesUpDuringItsDelay(t *testing.T) {
	b := rig.NewBackend(t, rig.Created)
	s := between(t, "[idem, rate]", "detach: false", b.URL)
	for range 3 {
		for heldUp := false; !heldUp; { // on a machine that is slow just then, it is answered, or was sent when its client went
			s.DoWhile(429, rig.Post("/", rig.UnusedKey()))
			time.Sleep(600 * time.Millisecond)
			key := rig.UnusedKey()
			gone := leaves(s, rig.Post("/", key), func() { time.Sleep(50 * time.Millisecond) })
			a := s.DoWhile(429, rig.Post("/", key))
			b.Mu.Lock()
			sent := a.Status != 201 && b.ByKey[key] > 0
			b.Mu.Unlock()
			heldUp = gone && !sent
			if heldUp && a.Status != 201 {
				t.Errorf("the next try gets %d %q %q", a.Status, a.Header.Get("Decision"), a.Body)
			}
		}
	}
}

// cutOff sends more of a request's body than is read in advance, and breaks it off. It returns the whole request.
func cutOff(t *testing.T, s *rig.Site) rig.Call {
	t.Helper()
	c := rig.Post("/", "k").With(func(c *rig.Call) { c.Body = strings.Repeat("x", 300000) })
	conn, err := net.Dial("tcp", s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: %s\r\nX-Request-ID: k\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", s.Name, len(c.Body), c.Body[:200000])
	_ = conn.(*net.TCPConn).CloseWrite()
	_, _ = io.Copy(io.Discard, conn)
	return c
}

// TestABodyCutOffBelowTheFastProxy: it answers for the backend, and reports nothing of its connections.
func TestABodyCutOffBelowTheFastProxy(t *testing.T) {
	hosts.NotIn30(t)
	b := rig.NewBackend(t, rig.Created)
	s := rig.SiteOf(t, rig.StartExperimental(t, "fastProxy: {}, ", rig.FreeAddress(t), b.URL, "statusHeader: Decision, maxRequestBodyBytes: 1000"), b)
	c := cutOff(t, s)
	s.Want(s.Do(c), 201, "first")
}

// TestABodyCutOffBelow has handlers that read the whole body before they call a backend, as mirroring and plugins do.
func TestABodyCutOffBelow(t *testing.T) {
	for _, status := range []int{400, 500} {
		below(t, hosts.Settings{"maxRequestBodyBytes": 1000}, func(t *testing.T, build func(http.Handler) *rig.Site) {
			s := build(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, err := io.Copy(io.Discard, r.Body)
				if err != nil {
					http.Error(w, http.StatusText(status), status)
					return
				}
				rig.Created(w, r)
			}))
			c := cutOff(t, s)
			s.Want(s.Do(c), 201, "first")
		})
	}
}
