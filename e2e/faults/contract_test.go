package faults

// Corners of the contract: what happens when two things go wrong at once, or somebody else has a hand in it.

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// "the backend is never called twice for a key that is held". Redis
// loses its memory while the request runs; this Traefik still knows the answer.
func TestRedisRestartsEmptyDuringARequest(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		e, server := rig.Restartable(t, host)
		s := e.Serve(t, nil, func(w http.ResponseWriter, r *http.Request) {
			server.Lapse()
			rig.Created(w, r)
		})
		first := s.Do(rig.Post("/", "k"))
		s.Want(first, 201, "first")
		s.WantReplay(first, s.Do(rig.Post("/", "k")))
		s.Calls(1)
	})
}

// "nothing was done". The claim took place in Redis and its reply was lost; nobody
// gives the lease back, so that every retry is told that a request is in flight which there is not.
func TestAClaimWhoseReplyWasLostIsGivenBack(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		f := rig.NewFront(t, server.Addr)
		s := rig.Serve(t, host, rig.Created, hosts.Settings{"statusHeader": "Decision", "onStoreError": "reject", "inFlight": "reject", "lease": "1m",
			"redis": map[string]any{"endpoints": f.Addr, "readTimeout": "500ms"}})
		s.Do(rig.Post("/", "warm"))
		f.Mute.Store(true)
		s.WantProblem(s.Do(rig.Post("/", "k")), 503, "store-unavailable", "unavailable;degraded")
		f.Mute.Store(false)
		var a rig.Answer
		for a.Status != 201 { // a claim that is never given back ends in the test's time-out
			time.Sleep(20 * time.Millisecond)
			a = s.Do(rig.Post("/", "k"))
		}
		s.Want(a, 201, "first")
	})
}

// the backend's own answer arrived whole". With detach: false a client goes away while Redis is
// asked. Traefik's 499 is nobody's answer, and nothing was sent.
func TestA499IsNoAnswer(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		f := rig.NewFront(t, server.Addr)
		s := rig.Serve(t, host, rig.Created, hosts.Settings{"statusHeader": "Decision", "detach": false, "lease": "1m",
			"redis": map[string]any{"endpoints": f.Addr, "readTimeout": "20s"}})
		s.Do(rig.Post("/", "warm"))
		before := f.Commands.Load()
		f.Gate.Lock()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			response, err := s.HTTP.Do(s.Request(rig.Post("/", "k")).WithContext(ctx))
			if err == nil {
				_ = response.Body.Close()
			}
			close(done)
		}()
		rig.Until(t, "the claim", 10*time.Second, func() bool { return f.Commands.Load() > before })
		cancel()
		<-done
		time.Sleep(300 * time.Millisecond) // so that the server knows
		f.Gate.Unlock()
		a := s.Do(rig.Post("/", "k"))
		if a.Status != 201 {
			t.Errorf("the retry got %d %q %q, want 201", a.Status, a.Header.Get("Decision"), a.Body)
		}
	})
}

// The same for a backend whose certificate is not trusted: Traefik answers 500, and no request was written.
func TestAFailedHandshakeIsNoAnswer(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		tls := httptest.NewUnstartedServer(http.HandlerFunc(rig.Created))
		tls.Config.ErrorLog = rig.Quiet
		tls.StartTLS()
		defer tls.Close()
		s := rig.SiteOf(t, host.Serve(t, tls.URL, (&rig.Env{Host: host}).Settings(nil)), nil)
		first := s.Do(rig.Post("/", "k"))
		again := s.Do(rig.Post("/", "k"))
		if again.Header.Get("Decision") == "replayed" {
			t.Errorf("Traefik's own %d %q (decision %q) was kept as the backend's answer", first.Status, first.Body, first.Header.Get("Decision"))
		}
	})
}

// … never a second run". What the store in memory cannot hold is forgotten, and takes every
// other key with it.
func TestAnAnswerLargerThanTheMemoryStore(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		s := rig.Serve(t, host, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/big" {
				_, _ = w.Write(make([]byte, 200_000))
				return
			}
			rig.Created(w, r)
		}, hosts.Settings{"statusHeader": "Decision", "localCacheBytes": 100_000})
		small := s.Do(rig.Post("/small", "k"))
		s.Want(s.Do(rig.Post("/big", "k")), 200, "first")
		again := s.Do(rig.Post("/big", "k"))
		if again.Header.Get("Decision") == "first" {
			t.Errorf("an answer of 200,000 bytes with localCacheBytes 100,000: the duplicate ran")
		}
		smallAgain := s.Do(rig.Post("/small", "k"))
		if smallAgain.Header.Get("Decision") != "replayed" {
			t.Errorf("the key of a small answer is forgotten: %q; %q and %q", smallAgain.Header.Get("Decision"), small.Body, smallAgain.Body)
		}
		s.Calls(2)
	})
}

// "followed by ;degraded while Redis is out of reach".
func TestEveryDecisionInAnOutageSaysDegraded(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		e, server := rig.Restartable(t, host)
		s := e.Serve(t, nil, rig.Created)
		s.Do(rig.Post("/", "before"))
		server.Kill()
		s.Want(s.Do(rig.Post("/", "during")), 201, "first;degraded")
		s.Want(s.Do(rig.Post("/", "during")), 201, "replayed;degraded")
		s.Want(s.Do(rig.Post("/", "before")), 201, "replayed;degraded")
		s.WantProblem(s.Do(rig.Post("/", "during").With(func(c *rig.Call) { c.Body = "x" })), 422, "key-reused", "mismatch;degraded")
	})
}

// "same headers". A stream without a Content-Type gets none at first, since its header is flushed before
// there is anything to guess from, as without the plugin; nor does its replay.
func TestAStreamWithoutATypeIsReplayedWithItsOwnHeader(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		read := make(chan struct{}) // the client has the header
		s := e.Serve(t, nil, func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = nil
			w.(http.Flusher).Flush()
			<-read
			_, _ = io.WriteString(w, "<html><body>guess</body></html>")
		})
		stream := func(key string) string {
			response, err := s.HTTP.Do(s.Request(rig.Post("/", key)))
			read <- struct{}{}
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			_, err = io.Copy(io.Discard, response.Body)
			if err != nil {
				t.Error(err)
			}
			return response.Header.Get("Content-Type")
		}
		bare, first := stream(""), stream("k")
		again := s.Do(rig.Post("/", "k")).Header.Get("Content-Type")
		if first != again || bare != first {
			t.Errorf("Content-Type %q without a key, %q at first, %q in the replay", bare, first, again)
		}
	})
}

// below builds the plugin before next in this process, compiled and interpreted.
func below(t *testing.T, settings hosts.Settings, test func(t *testing.T, build func(next http.Handler) *rig.Site)) {
	t.Helper()
	for name, builder := range hosts.Builders(t) {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			test(t, func(next http.Handler) *rig.Site {
				all := hosts.Settings{"statusHeader": "Decision"}
				for key, value := range settings {
					all[key] = value
				}
				h, err := builder(ctx, next, all, fmt.Sprintf("below%d", rig.PrefixCount.Add(1)))
				if err != nil {
					t.Fatal(err)
				}
				server := httptest.NewUnstartedServer(h)
				server.Config.ErrorLog = rig.Quiet
				server.Start()
				t.Cleanup(server.Close)
				return rig.SiteOf(t, &hosts.Site{Addr: server.Listener.Addr().String(), Name: "below.test"}, nil)
			})
		})
	}
}

// "bytes were sent, and no whole answer came back". A middleware below the plugin that adds a
// header (headers.customResponseHeaders, a sticky cookie with omitHeaders: []) makes Traefik's own 500 look like the
// backend's.
func TestAHeaderAddedBelowHidesNoUnknownOutcome(t *testing.T) {
	below(t, nil, func(t *testing.T, build func(http.Handler) *rig.Site) {
		b := rig.NewRawBackend(t, func(conn net.Conn, _ int64, _ *http.Request) bool {
			fmt.Fprint(conn, "this is not HTTP\r\n\r\n")
			return false
		})
		proxy := hosts.Proxy(t, b.URL)
		s := build(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Frame-Options", "DENY")
			proxy.ServeHTTP(w, r)
		}))
		first := s.Do(rig.Post("/", "k"))
		if first.Status != 500 || first.Header.Get("Decision") != "unknown" {
			t.Errorf("first: %d %q, want 500 unknown", first.Status, first.Header.Get("Decision"))
		}
		s.WantProblem(s.Do(rig.Post("/", "k")), 409, "outcome-unknown", "unknown")
	})
}

// its status is in retryableStatuses". A backend's 503 with no header at all.
func TestABare503AsksToComeAgain(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		b := rig.NewRawBackend(t, func(conn net.Conn, _ int64, _ *http.Request) bool {
			fmt.Fprint(conn, "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\n")
			return false
		})
		s := rig.RawSite(t, &rig.Env{Host: host}, b, nil)
		s.Want(s.Do(rig.Post("/", "k")), 503, "released")
	})
}

// "a longer ttl is cut to it, with a warning".
func TestATTLOfAMonthIsCut(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		if refusal := host.Refusal(t, hosts.Settings{"ttl": "720h"}); refusal != "" {
			t.Error(refusal)
		}
	})
}

// settings under which nothing is ever protected are a slip of the pen: net/http takes Host out of the
// header, and a path has no query.
func TestSettingsThatProtectNothingAreRefused(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for _, settings := range []hosts.Settings{{"header": "Host"}, {"endpoints": "POST /pay?x=1"}} {
			if host.Refusal(t, settings) == "" {
				t.Errorf("%v is accepted", settings)
			}
		}
	})
}

// "Left out: … omitHeaders". Two middlewares on one Redis: the one that replays leaves out its own.
func TestWhoReplaysOmitsItsHeaders(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		b := rig.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Internal", "secret")
			rig.Created(w, r)
		})
		strict := rig.SiteOf(t, host.Serve(t, b.URL, hosts.Settings{"statusHeader": "Decision", "scope": "Authorization", "omitHeaders": "X-Internal", "localCacheBytes": 0, "lease": "1m",
			"redis": map[string]any{"endpoints": server.Addr, "readTimeout": "20s", "keyPrefix": "omit"}}), b)
		loose := rig.SiteOf(t, host.Serve(t, b.URL, hosts.Settings{"statusHeader": "Decision", "scope": "Authorization", "localCacheBytes": 0, "lease": "1m",
			"redis": map[string]any{"endpoints": server.Addr, "readTimeout": "20s", "keyPrefix": "omit"}}), b)
		loose.Do(rig.Post("/", "k"))
		a := strict.Do(rig.Post("/", "k"))
		strict.Want(a, 201, "replayed")
		if a.Header.Get("X-Internal") != "" {
			t.Error("a header in omitHeaders is replayed")
		}
	})
}

// an upgrade is the token "upgrade" in Connection, not part of another.
func TestPartOfATokenIsNoUpgrade(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		s := rig.Serve(t, host, rig.Created, hosts.Settings{"statusHeader": "Decision"})
		s.Want(s.Do(rig.Post("/", "k", "Connection", "X-No-Upgrade-Please")), 201, "first")
	})
}

// "A reload forgets no key." The connections and the memory of a handler whose context has ended are
// closed after some seconds, also under a request whose answer is still streamed.
func TestARequestThatOutlivesAReloadKeepsItsAnswer(t *testing.T) {
	server := redistest.Start(t)
	for name, builder := range hosts.Builders(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var calls atomic.Int64
			arrived, proceed := make(chan struct{}, 5), make(chan struct{})
			next := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if calls.Add(1) == 1 {
					w.Header().Set("Date", "Thu, 01 Jan 2026 00:00:00 GMT") // a backend's answer
					_, _ = io.WriteString(w, "this is ")
					arrived <- struct{}{}
					<-proceed
				}
				rig.Created(w, r)
			})
			prefix := fmt.Sprintf("t%d", rig.PrefixCount.Add(1))
			settings := func(timeout string) hosts.Settings {
				return hosts.Settings{"statusHeader": "Decision", "lease": "3s", "inFlightTimeout": "40s",
					"redis": map[string]any{"endpoints": server.Addr, "keyPrefix": prefix, "readTimeout": timeout}}
			}
			ctx, cancel := context.WithCancel(context.Background())
			old, err := builder(ctx, next, settings("2s"), name+"reload")
			if err != nil {
				t.Fatal(err)
			}
			first := make(chan *httptest.ResponseRecorder, 1)
			go func() {
				w := httptest.NewRecorder()
				old.ServeHTTP(w, rig.Keyed("POST", "k"))
				first <- w
			}()
			<-arrived
			waiter := make(chan *httptest.ResponseRecorder, 1)
			go func() {
				w := httptest.NewRecorder()
				old.ServeHTTP(w, rig.Keyed("POST", "k"))
				waiter <- w
			}()
			time.Sleep(200 * time.Millisecond) // it waits now; if it does not, the test sees less
			cancel()
			ctx, cancel = context.WithCancel(context.Background())
			defer cancel()
			reloaded, err := builder(ctx, next, settings("1900ms"), name+"reload") // another connection setting
			if err != nil {
				t.Fatal(err)
			}
			select {
			case <-waiter:
				t.Fatalf("the waiting duplicate was let go while the first request ran: %d calls of the backend", calls.Load())
			case <-time.After(13 * time.Second):
			}
			again := make(chan *httptest.ResponseRecorder, 1)
			go func() {
				w := httptest.NewRecorder()
				reloaded.ServeHTTP(w, rig.Keyed("POST", "k"))
				again <- w
			}()
			select {
			case w := <-again:
				t.Fatalf("a duplicate after the reload got %d %q while the first request ran", w.Code, w.Header().Get("Decision"))
			case <-time.After(2 * time.Second):
			}
			close(proceed)
			whole := (<-first).Body.String()
			if !strings.HasPrefix(whole, "this is payment ") || calls.Load() != 1 {
				t.Errorf("%q after %d calls of the backend, want 1", whole, calls.Load())
			}
			for _, duplicate := range []chan *httptest.ResponseRecorder{waiter, again} {
				w := <-duplicate
				if w.Body.String() != whole || w.Header().Get("Decision") != "replayed" {
					t.Errorf("a duplicate got %d %q %q, want %q", w.Code, w.Header().Get("Decision"), w.Body, whole)
				}
			}
		})
	}
}

// An alert tells of unknown outcomes. What counts for a handler whose context has ended is given up after some seconds, but not while
// a request of that handler still runs.
func TestARequestThatOutlivesAReloadIsCounted(t *testing.T) {
	server := redistest.Start(t)
	for name, builder := range hosts.Builders(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			arrived, proceed, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
			next := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
				close(arrived)
				<-proceed
				panic(http.ErrAbortHandler)
			})
			prefix := fmt.Sprintf("t%d", rig.PrefixCount.Add(1))
			build := func(timeout string) (http.Handler, context.CancelFunc) {
				ctx, cancel := context.WithCancel(context.Background())
				h, err := builder(ctx, next, hosts.Settings{"stats": map[string]any{"insecure": true},
					"redis": map[string]any{"endpoints": server.Addr, "keyPrefix": prefix, "readTimeout": timeout}}, name+"counted")
				if err != nil {
					t.Fatal(err)
				}
				return h, cancel
			}
			old, cancel := build("2s")
			go func() {
				defer close(ended)
				defer func() { _ = recover() }()
				old.ServeHTTP(httptest.NewRecorder(), rig.Keyed("POST", "k"))
			}()
			<-arrived
			cancel()
			reloaded, cancel := build("1900ms") // another connection setting
			defer cancel()
			time.Sleep(13 * time.Second)
			close(proceed)
			<-ended
			for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
				w := httptest.NewRecorder()
				reloaded.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/_idem/stats.json", nil))
				if strings.Contains(w.Body.String(), `"unknownOutcomes":1`) {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("the outcome is not counted: %s", w.Body)
				}
			}
		})
	}
}

// a client that has the whole answer and asks again gets it again. The last bytes of a
// long answer are delivered before it is kept.
func TestWhoHasTheWholeAnswerFindsItKept(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		f := rig.NewFront(t, server.Addr)
		body := bytes.Repeat([]byte("0123456789"), 10_000)
		var calls atomic.Int64
		s := rig.Serve(t, host, func(w http.ResponseWriter, _ *http.Request) {
			if calls.Add(1) == 2 {
				f.Gate.Lock() // Redis is slow to keep the answer
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			_, _ = w.Write(body)
		}, hosts.Settings{"statusHeader": "Decision", "inFlight": "reject", "lease": "1m", "redis": map[string]any{"endpoints": f.Addr, "readTimeout": "20s"}})
		s.Do(rig.Post("/", "warm"))
		response, err := s.HTTP.Do(s.Request(rig.Post("/", "k")))
		if err != nil {
			t.Fatal(err)
		}
		read := make(chan struct{})
		go func() {
			_, _ = io.ReadAll(response.Body)
			_ = response.Body.Close()
			close(read)
		}()
		other := rig.SiteOf(t, s.Site, s.Backend) // with a connection of its own: on one connection a server takes requests in turn
		select {
		case <-read:
			a := other.Do(rig.Post("/", "k"))
			if a.Status != 200 {
				t.Errorf("a duplicate, sent after the whole answer was received, got %d %q", a.Status, a.Header.Get("Decision"))
			}
			f.Gate.Unlock()
		case <-time.After(time.Second): // the end is held back until the answer is kept: right
			f.Gate.Unlock()
			<-read
			a := other.Do(rig.Post("/", "k"))
			if a.Status != 200 || a.Header.Get("Decision") != "replayed" {
				t.Errorf("then %d %q", a.Status, a.Header.Get("Decision"))
			}
		}
	})
}

// if
// that hangs for longer than the lease, the answer is lost here as well, and the duplicate runs.
func TestAnAnswerThatHangsOnItsWayToRedisIsKeptHere(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		f := rig.NewFront(t, server.Addr)
		var calls atomic.Int64
		s := rig.Serve(t, host, func(w http.ResponseWriter, r *http.Request) {
			if calls.Add(1) == 2 {
				f.Swallow.Store(true)
			}
			rig.Created(w, r)
		}, rig.WithTimeouts("2s", hosts.Settings{"statusHeader": "Decision", "lease": "3s", "redis": map[string]any{"endpoints": f.Addr}}))
		s.Do(rig.Post("/", "warm"))
		first := s.Do(rig.Post("/", "k"))
		s.Want(first, 201, "first")
		again := s.Do(rig.Post("/", "k"))
		if !bytes.Equal(first.Body, again.Body) || calls.Load() != 2 {
			t.Errorf("the duplicate got %d %q %q, want %q; %d calls", again.Status, again.Header.Get("Decision"), again.Body, first.Body, calls.Load())
		}
	})
}

// "It is renewed while the upstream runs." A renewal that hangs on Redis keeps the lease in this process's
// memory from being renewed, so that a duplicate runs beside the first request in one and the same process.
func TestARenewalThatHangsLosesNoLeaseHere(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		arrived, proceed := make(chan struct{}, 5), make(chan struct{})
		b := rig.NewBackend(t, rig.Gated(arrived, proceed))
		s := rig.SiteOf(t, host.Serve(t, b.URL, rig.WithTimeouts("500ms", hosts.Settings{"statusHeader": "Decision", "lease": "750ms", "inFlight": "reject",
			"redis": map[string]any{"endpoints": server.Addr}})), b)
		first := make(chan rig.Answer, 1)
		go func() { first <- s.Send(rig.Post("/", "k")) }()
		<-arrived
		server.Pause()
		defer server.Resume()
		ran := false
		for end := time.Now().Add(2500 * time.Millisecond); !ran && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			again := make(chan rig.Answer, 1)
			go func() { again <- s.Send(rig.Post("/", "k")) }()
			select {
			case <-arrived:
				ran = true
			case <-again:
			}
		}
		if ran {
			t.Error("the duplicate reached the backend while the first request was running in this process")
		}
		close(proceed)
		<-first
	})
}

// "The backend is never called twice for a key that is held." A store in memory that is full forgets whole keys, and
// not only the bytes of their answers: with the defaults after 32 answers of 1 MiB.
func TestAFullMemoryStoreDropsAnswersBeforeKeys(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		s := rig.Serve(t, host, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 100_000)) },
			hosts.Settings{"statusHeader": "Decision", "localCacheBytes": 1_000_000})
		for i := range 20 {
			s.Want(s.Do(rig.Post("/", fmt.Sprintf("k%d", i))), 200, "first")
		}
		for i := range 20 {
			if a := s.Do(rig.Post("/", fmt.Sprintf("k%d", i))); a.Header.Get("Decision") == "first" {
				t.Errorf("key %d of 20 ran again", i)
				break
			}
		}
	})
}

// The same with middlewares of Traefik's own below the plugin.
func TestMiddlewaresOfTraefikBelow(t *testing.T) {
	p := hosts.StartTraefik(t)
	garbage := rig.NewRawBackend(t, func(conn net.Conn, _ int64, _ *http.Request) bool {
		fmt.Fprint(conn, "this is not HTTP\r\n\r\n")
		return false
	})
	auth := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer auth.Close()
	for name, c := range map[string]struct {
		backend  string
		below    map[string]any
		status   int
		decision string
	}{
		"headers": {garbage.URL, map[string]any{"headers": map[string]any{"customResponseHeaders": map[string]any{"X-Frame": "DENY"}}}, 500, "unknown"},
		"frame":   {garbage.URL, map[string]any{"headers": map[string]any{"frameDeny": true}}, 500, "unknown"},
		"noauth":  {auth.URL, map[string]any{"forwardAuth": map[string]any{"address": "http://127.0.0.1:1"}}, 500, "released"},
	} {
		t.Run(name, func(t *testing.T) {
			host := name + ".test"
			config := hosts.Dynamic(host, c.backend, hosts.Settings{"statusHeader": "Decision"})
			parts := config["http"].(map[string]any)
			parts["middlewares"].(map[string]any)[name+"-below"] = c.below
			router := parts["routers"].(map[string]any)[name].(map[string]any)
			router["middlewares"] = append(router["middlewares"].([]string), name+"-below")
			p.Write(t, host, config)
			s := rig.SiteOf(t, p.Site(t, host), nil)
			first := s.Do(rig.Post("/", "k"))
			again := s.Do(rig.Post("/", "k"))
			if first.Status != c.status || first.Header.Get("Decision") != c.decision {
				t.Errorf("%d %q %v, want %d %s; the duplicate got %d %q", first.Status, first.Header.Get("Decision"), first.Header, c.status, c.decision, again.Status, again.Header.Get("Decision"))
			}
		})
	}
}
