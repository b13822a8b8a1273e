package behaviour

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// handlers runs test with the plugin before a handler of the test's own, compiled and interpreted.
func handlers(t *testing.T, test func(t *testing.T, build func(next http.HandlerFunc) http.Handler)) {
	t.Helper()
	handlersWith(t, nil, test)
}

// handlersWith is handlers with more settings.
func handlersWith(t *testing.T, more hosts.Settings, test func(t *testing.T, build func(next http.HandlerFunc) http.Handler)) {
	t.Helper()
	settings := (&rig.Env{}).Settings(more)
	for name, builder := range hosts.Builders(t) {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			test(t, func(next http.HandlerFunc) http.Handler {
				handler, err := builder(ctx, next, settings, fmt.Sprintf("handler%d", rig.PrefixCount.Add(1)))
				if err != nil {
					t.Fatal(err)
				}
				return handler
			})
		})
	}
}

// TestAPanicPasses has a handler below that panics: what it did is not known.
func TestAPanicPasses(t *testing.T) {
	handlers(t, func(t *testing.T, build func(http.HandlerFunc) http.Handler) {
		for _, value := range []any{"boom", http.ErrAbortHandler} {
			for _, late := range []bool{false, true} {
				calls := 0
				h := build(func(w http.ResponseWriter, _ *http.Request) {
					calls++
					if late {
						_, _ = w.Write([]byte("half"))
					}
					panic(value)
				})
				func() {
					defer func() {
						if got := recover(); got != value {
							t.Errorf("panic %v comes out as %v", value, got)
						}
					}()
					h.ServeHTTP(httptest.NewRecorder(), rig.Keyed("POST", "k"))
				}()
				w := httptest.NewRecorder()
				h.ServeHTTP(w, rig.Keyed("POST", "k"))
				if w.Code != 409 || !strings.Contains(w.Body.String(), "outcome-unknown") || calls != 1 {
					t.Errorf("after the panic: %d %s, %d calls", w.Code, w.Body, calls)
				}
			}
		}
	})
}

// TestTheOriginalPasses checks that a request that is none of the plugin's business comes through as it is.
func TestTheOriginalPasses(t *testing.T) {
	handlers(t, func(t *testing.T, build func(http.HandlerFunc) http.Handler) {
		upgrade := rig.Keyed("POST", "k")
		upgrade.Header.Set("Connection", "Upgrade")
		upgrade.Header.Set("Upgrade", "websocket")
		grpc := rig.Keyed("POST", "k")
		grpc.Header.Set("Content-Type", "application/grpc")
		keyless := rig.Keyed("POST", "")
		for name, r := range map[string]*http.Request{"not protected": rig.Keyed("GET", "k"), "TRACE": rig.Keyed("TRACE", "k"), "no key": keyless, "upgrade": upgrade, "gRPC": grpc} {
			w := httptest.NewRecorder()
			called := false
			h := build(func(w2 http.ResponseWriter, r2 *http.Request) {
				called = true
				if w2 != http.ResponseWriter(w) || r2 != r {
					t.Errorf("%s: another writer or request", name)
				}
			})
			h.ServeHTTP(w, r)
			if !called {
				t.Errorf("%s: not passed on", name)
			}
		}
	})
}

// TestAGatewayErrorWithoutATraceIsUnknown has a handler that no transport reports about, as Traefik's fast proxy.
func TestAGatewayErrorWithoutATraceIsUnknown(t *testing.T) {
	handlers(t, func(t *testing.T, build func(http.HandlerFunc) http.Handler) {
		for status, want := range map[int]int{502: 409, 504: 409, 500: 500, 503: 503, 200: 200} {
			h := build(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
			h.ServeHTTP(httptest.NewRecorder(), rig.Keyed("POST", "k"))
			w := httptest.NewRecorder()
			h.ServeHTTP(w, rig.Keyed("POST", "k"))
			if w.Code != want {
				t.Errorf("%d, and then %d, want %d", status, w.Code, want)
			}
		}
	})
}

// TestHeadersOfMiddlewaresAboveAreTheirs: they set them again for a replay, perhaps to something else.
func TestHeadersOfMiddlewaresAboveAreTheirs(t *testing.T) {
	handlers(t, func(t *testing.T, build func(http.HandlerFunc) http.Handler) {
		h := build(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X-Backend", "b") })
		first, again := httptest.NewRecorder(), httptest.NewRecorder()
		first.Header().Set("X-Trace", "one")
		h.ServeHTTP(first, rig.Keyed("POST", "k"))
		again.Header().Set("X-Trace", "two")
		h.ServeHTTP(again, rig.Keyed("POST", "k"))
		if again.Header().Get("X-Trace") != "two" || again.Header().Get("X-Backend") != "b" || again.Header().Get("Decision") != "replayed" {
			t.Errorf("replayed header %v", again.Header())
		}
		typed := httptest.NewRecorder()
		typed.Header().Set("X-Trace", "three")
		typed.Header().Set("Content-Type", "text/above")
		h.ServeHTTP(typed, rig.Keyed("POST", "k"))
		if typed.Header().Get("Content-Type") != "text/above" {
			t.Errorf("a replay without a type of its own has the header %v, want the type that was set above", typed.Header())
		}
	})
}

// TestABodyThatWasRewound has a middleware above try again with the same body, which it rewinds, as Traefik's buffering does, or
// does not, as its retry.
func TestABodyThatWasRewound(t *testing.T) {
	handlers(t, func(t *testing.T, build func(http.HandlerFunc) http.Handler) {
		for _, rewinds := range []bool{true, false} {
			var got []byte
			calls := 0
			h := build(func(w http.ResponseWriter, r *http.Request) {
				calls++
				if calls == 1 { // as Traefik for a server that nobody is at
					httptrace.ContextClientTrace(r.Context()).GetConn("nobody:80")
					w.WriteHeader(http.StatusBadGateway)
					return
				}
				got, _ = io.ReadAll(r.Body)
			})
			body := make([]byte, 2<<20)
			_, _ = rand.Read(body)
			whole := bytes.NewReader(body)
			ctx, cancel := context.WithCancel(t.Context())
			for range 2 {
				r := rig.Keyed("POST", fmt.Sprint("k", rewinds)).WithContext(ctx)
				r.Body = io.NopCloser(whole)
				r.ContentLength = int64(len(body))
				h.ServeHTTP(httptest.NewRecorder(), r)
				if rewinds {
					_, _ = whole.Seek(0, io.SeekStart)
				}
			}
			cancel()
			if !bytes.Equal(got, body) {
				t.Errorf("rewound: %t: after %d calls, the backend has %d bytes, and not the %d of the client", rewinds, calls, len(got), len(body))
			}
		}
	})
}

// lax is a writer that takes any status, as the one of Traefik's buffering does.
type lax struct{ http.ResponseWriter }

func (lax) WriteHeader(int) {}

func TestAStatusThatHTTPDoesNotHaveIsUnknown(t *testing.T) {
	handlers(t, func(t *testing.T, build func(http.HandlerFunc) http.Handler) {
		h := build(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(1000) })
		h.ServeHTTP(lax{httptest.NewRecorder()}, rig.Keyed("POST", "k"))
		again := httptest.NewRecorder()
		h.ServeHTTP(again, rig.Keyed("POST", "k"))
		if again.Code != 409 || again.Header().Get("Decision") != "unknown" {
			t.Errorf("the duplicate gets %d %v", again.Code, again.Header())
		}
	})
}

// TestWhatHasRunIsFreed has requests end while one more still runs, each long enough to be seen by the timer that looks
// after running requests. Under Yaegi a timer set anew by the function that it calls would hold on to all that this
// function has ever seen.
func TestWhatHasRunIsFreed(t *testing.T) {
	handlers(t, func(t *testing.T, build func(http.HandlerFunc) http.Handler) {
		var held atomic.Int64
		hold, begun := make(chan struct{}), make(chan struct{})
		h := build(func(_ http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPut {
				close(begun)
				<-hold
				return
			}
			time.Sleep(600 * time.Millisecond)
		})
		var all sync.WaitGroup
		all.Go(func() { h.ServeHTTP(httptest.NewRecorder(), rig.Keyed("PUT", "long")) })
		<-begun
		for round := range 4 {
			var short sync.WaitGroup
			for i := range 25 {
				short.Go(func() {
					w := httptest.NewRecorder()
					held.Add(1)
					runtime.AddCleanup(w, func(n int64) { held.Add(n) }, -1)
					h.ServeHTTP(w, rig.Keyed("POST", fmt.Sprint(round, "-", i)))
				})
			}
			short.Wait()
		}
		for end := time.Now().Add(20 * time.Second); held.Load() > 10 && time.Now().Before(end); {
			runtime.GC()
			time.Sleep(10 * time.Millisecond)
		}
		if n := held.Load(); n > 10 {
			t.Errorf("of 100 requests that have ended, %d are held in memory", n)
		}
		close(hold)
		all.Wait()
	})
}

// TestAHeaderThatIsSpeltInAnotherWay has a middleware above write the user's name as Traefik's basicAuth and digestAuth do: under
// the name in headerField as it is spelt there, beside what the client has sent.
func TestAHeaderThatIsSpeltInAnotherWay(t *testing.T) {
	const header = "X-WebAuth-User"
	for name, builder := range hosts.Builders(t) {
		for _, settings := range []hosts.Settings{
			{"scope": "Host, X-WebAuth-User"},
			{"scope": "Host, x-webauth-user", "requireCaller": true},
			{"scope": "Authorization, X-Webauth-User"},
			{"scope": "Host, X-WebAuth-User + cookie:a"},
			{"scope": "none", "key": "X-WebAuth-User + X-Request-ID"},
			{"scope": "none", "key": "X-None, X-WebAuth-User"},
		} {
			t.Run(fmt.Sprint(name, settings), func(t *testing.T) {
				calls := map[string]int{}
				backend := func(_ http.ResponseWriter, r *http.Request) { calls[r.Header[header][0]]++ } //nolint:staticcheck // it is not canonical
				h, err := builder(t.Context(), http.HandlerFunc(backend), settings, fmt.Sprintf("handler%d", rig.PrefixCount.Add(1)))
				if err != nil {
					t.Fatal(err)
				}
				for range 2 {
					for _, sent := range []string{"", "alice"} {
						for _, user := range []string{"alice", "bob"} {
							r := rig.Keyed("POST", "k")
							r.Header.Set("Content-Type", "application/json")
							r.Header.Set("Cookie", "a=b")
							if sent != "" {
								r.Header.Set(header, sent)
							}
							r.Header[header] = []string{user}
							h.ServeHTTP(httptest.NewRecorder(), r)
						}
					}
				}
				if calls["alice"] == 0 || calls["alice"] > 2 || calls["bob"] != calls["alice"] {
					t.Errorf("the backend was called by %v, want each user once, or once more with a header of the client's own", calls)
				}
			})
		}
	}
}
