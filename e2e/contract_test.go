package e2e

// Corners of the contract: what happens when two things go wrong at once, or somebody else has a hand in it.

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
)

// front stands between the plugin and Redis.
type front struct {
	addr     string
	target   atomic.Value // string: address that new connections lead to
	swallow  atomic.Bool  // commands do not reach Redis, and have no reply
	mute     atomic.Bool  // commands reach Redis, replies are dropped
	commands atomic.Int64 // chunks that came from the plugin
	gate     sync.RWMutex // held by a test: commands wait
}

func newFront(t *testing.T, target string) *front {
	t.Helper()
	f := &front{}
	f.target.Store(target)
	f.addr = listen(t, func(conn net.Conn) {
		server, err := net.Dial("tcp", f.target.Load().(string))
		if err != nil {
			return
		}
		defer server.Close()
		go func() {
			buffer := make([]byte, 64<<10)
			for {
				n, err := server.Read(buffer)
				if err != nil {
					_ = conn.Close()
					return
				}
				if !f.mute.Load() {
					_, _ = conn.Write(buffer[:n])
				}
			}
		}()
		buffer := make([]byte, 64<<10)
		for {
			n, err := conn.Read(buffer)
			if err != nil {
				return
			}
			f.commands.Add(1)
			f.gate.RLock()
			f.gate.RUnlock() //nolint:staticcheck // it is a gate
			if !f.swallow.Load() {
				_, _ = server.Write(buffer[:n])
			}
		}
	})
	return f
}

func until(t *testing.T, what string, limit time.Duration, reached func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !reached(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s", what, limit)
		}
	}
}

// twoOn serves two sites that see the same keys in the Redis at addr and share no memory, as two Traefiks do: the second, without
// a local cache, knows it by another name.
func twoOn(t *testing.T, host hosts.Host, addr string, more hosts.Settings, redis map[string]any, b *backend) (first, second *site) {
	t.Helper()
	common := map[string]any{"endpoints": addr, "keyPrefix": fmt.Sprintf("t%d", prefixCount.Add(1)), "dialTimeout": "20s", "readTimeout": "20s", "writeTimeout": "20s"}
	for key, value := range redis {
		common[key] = value
	}
	build := func(addr string, cache int) *site {
		own := map[string]any{"endpoints": addr}
		for key, value := range common {
			if key != "endpoints" {
				own[key] = value
			}
		}
		settings := hosts.Settings{"statusHeader": "Decision", "scope": "Authorization", "redis": own, "localCacheBytes": cache, "lease": "1m"}
		for key, value := range more {
			settings[key] = value
		}
		return siteOf(t, host.Serve(t, b.URL, settings), b)
	}
	return build(addr, 1<<20), build(byName(addr), 0)
}

// "one atomic step", "kept for ttl and replayed". Two requests with one key find Redis out of reach. One
// runs from memory and frees the key; Redis is back, and the other claims the key there. The mark of the outage that
// its lease still has keeps its answer from Redis.
func TestAClaimAfterAnOutageIsFinishedInRedis(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		f := newFront(t, server.Addr)
		arrived, proceed := make(chan struct{}, 5), make(chan struct{})
		calls := atomic.Int64{}
		calls.Store(1)
		b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
			if calls.Add(1) == 1 {
				arrived <- struct{}{}
				<-proceed
				http.Error(w, "come again", 503)
				return
			}
			created(w, r)
		})
		one, _ := twoOn(t, host, f.addr, hosts.Settings{"inFlight": "wait"}, map[string]any{"readTimeout": "1s"}, b)
		one.do(post("/", "warm"))
		calls.Store(0)
		f.swallow.Store(true)
		answers := make(chan answer, 2)
		for range 2 {
			go func() { answers <- one.send(post("/", "k")) }()
		}
		<-arrived
		time.Sleep(1500 * time.Millisecond) // by now the other has found Redis out of reach as well
		f.swallow.Store(false)
		one.awaitRedis()
		close(proceed)
		a, c := <-answers, <-answers
		if a.status == 503 {
			a, c = c, a
		}
		if a.status != 201 || c.status != 503 {
			t.Fatalf("answers %d and %d, want 201 and 503", a.status, c.status)
		}
		if a.header.Get("Decision") != "first" {
			t.Errorf("decision %q after Redis came back", a.header.Get("Decision"))
		}
		if keys := server.Do("KEYS", "*:req:*"); keys != "" {
			for _, key := range strings.Fields(keys) {
				if value := server.Do("GET", key); strings.HasPrefix(value, "idem1R") {
					t.Errorf("Redis still has a running record after the answer was given (ttl %s ms): another Traefik waits for nothing, and then runs the request again", server.Do("PTTL", key))
				}
			}
		}
	})
}

// "the backend is never called twice for a key that is held". Redis
// loses its memory while the request runs; this Traefik still knows the answer.
func TestRedisRestartsEmptyDuringARequest(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		e, server := restartable(t, host)
		s := e.serve(t, nil, func(w http.ResponseWriter, r *http.Request) {
			server.Restart()
			created(w, r)
		})
		first := s.do(post("/", "k"))
		s.want(first, 201, "first")
		s.wantReplay(first, s.do(post("/", "k")))
		s.calls(1)
	})
}

// The same, with a request that outlives what it had of its lease: the renewal learns that the lease is lost, and
// gives up the lease in memory as well, though the request still runs in this very process.
func TestARunningRequestIsKnownHereAfterRedisRestartedEmpty(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		e, server := restartable(t, host)
		arrived, proceed := make(chan struct{}, 5), make(chan struct{})
		s := serve(t, host, gated(arrived, proceed), withTimeouts("1s", e.settings(hosts.Settings{"lease": "1500ms", "inFlight": "reject"})))
		first := make(chan answer)
		go func() { first <- s.send(post("/", "k")) }()
		<-arrived
		server.Restart()
		time.Sleep(2 * time.Second)
		again := make(chan answer)
		go func() { again <- s.send(post("/", "k")) }()
		var a answer
		select {
		case <-arrived:
			t.Error("the duplicate reached the backend while the first request was still running in this process")
			close(proceed)
			<-again
		case a = <-again:
			close(proceed)
			s.wantProblem(a, 409, "in-flight", "conflict")
		}
		<-first
	})
}

// The promise again: a duplicate that waits knows that the first request runs. An outage of Redis meanwhile is no
// reason to send the payment a second time.
func TestAWaiterDoesNotRunBecauseRedisWentAway(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		for _, mode := range []string{"degrade", "pass"} {
			server := redistest.Start(t)
			arrived, proceed := make(chan struct{}, 5), make(chan struct{})
			b := newBackend(t, gated(arrived, proceed))
			f := newFront(t, server.Addr)
			owner, waiter := twoOn(t, host, f.addr, hosts.Settings{"onStoreError": mode}, nil, b)
			first, again := make(chan answer, 1), make(chan answer, 1)
			go func() { first <- owner.send(post("/", "k")) }()
			<-arrived
			before := f.commands.Load()
			go func() { again <- waiter.send(post("/", "k")) }()
			until(t, "the duplicate polls", 10*time.Second, func() bool { return f.commands.Load() > before+3 })
			server.Kill()
			select {
			case <-arrived:
				t.Errorf("%s: the waiting duplicate reached the backend while the first request was running", mode)
			case a := <-again:
				if a.status != 409 {
					t.Errorf("%s: the waiting duplicate got %d", mode, a.status)
				}
			case <-time.After(1500 * time.Millisecond): // it goes on waiting: right as well
			}
			close(proceed)
			<-first
			if n := b.calls.Load(); n != 1 {
				t.Errorf("%s: the backend was called %d times", mode, n)
			}
		}
	})
}

// "nothing was done". The claim took place in Redis and its reply was lost; nobody
// gives the lease back, so that every retry is told that a request is in flight which there is not.
func TestAClaimWhoseReplyWasLostIsGivenBack(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		f := newFront(t, server.Addr)
		s := serve(t, host, created, hosts.Settings{"statusHeader": "Decision", "onStoreError": "reject", "inFlight": "reject", "lease": "1m",
			"redis": map[string]any{"endpoints": f.addr, "readTimeout": "500ms"}})
		s.do(post("/", "warm"))
		f.mute.Store(true)
		s.wantProblem(s.do(post("/", "k")), 503, "store-unavailable", "unavailable;degraded")
		f.mute.Store(false)
		var a answer
		for a.status != 201 { // a claim that is never given back ends in the test's time-out
			time.Sleep(20 * time.Millisecond)
			a = s.do(post("/", "k"))
		}
		s.want(a, 201, "first")
	})
}

// the backend's own answer arrived whole". With detach: false a client goes away while Redis is
// asked. Traefik's 499 is nobody's answer, and nothing was sent.
func TestA499IsNoAnswer(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		f := newFront(t, server.Addr)
		s := serve(t, host, created, hosts.Settings{"statusHeader": "Decision", "detach": false, "lease": "1m",
			"redis": map[string]any{"endpoints": f.addr, "readTimeout": "20s"}})
		s.do(post("/", "warm"))
		before := f.commands.Load()
		f.gate.Lock()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			response, err := s.client.Do(s.request(post("/", "k")).WithContext(ctx))
			if err == nil {
				_ = response.Body.Close()
			}
			close(done)
		}()
		until(t, "the claim", 10*time.Second, func() bool { return f.commands.Load() > before })
		cancel()
		<-done
		time.Sleep(300 * time.Millisecond) // so that the server knows
		f.gate.Unlock()
		a := s.do(post("/", "k"))
		if a.status != 201 {
			t.Errorf("the retry got %d %q %q, want 201", a.status, a.header.Get("Decision"), a.body)
		}
	})
}

// The same for a backend whose certificate is not trusted: Traefik answers 500, and no request was written.
func TestAFailedHandshakeIsNoAnswer(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		tls := httptest.NewUnstartedServer(http.HandlerFunc(created))
		tls.Config.ErrorLog = quiet
		tls.StartTLS()
		defer tls.Close()
		s := siteOf(t, host.Serve(t, tls.URL, (&env{host: host}).settings(nil)), nil)
		first := s.do(post("/", "k"))
		again := s.do(post("/", "k"))
		if again.header.Get("Decision") == "replayed" {
			t.Errorf("Traefik's own %d %q (decision %q) was kept as the backend's answer", first.status, first.body, first.header.Get("Decision"))
		}
	})
}

// … never a second run". What the store in memory cannot hold is forgotten, and takes every
// other key with it.
func TestAnAnswerLargerThanTheMemoryStore(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		s := serve(t, host, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/big" {
				_, _ = w.Write(make([]byte, 200_000))
				return
			}
			created(w, r)
		}, hosts.Settings{"statusHeader": "Decision", "localCacheBytes": 100_000})
		small := s.do(post("/small", "k"))
		s.want(s.do(post("/big", "k")), 200, "first")
		again := s.do(post("/big", "k"))
		if again.header.Get("Decision") == "first" {
			t.Errorf("an answer of 200,000 bytes with localCacheBytes 100,000: the duplicate ran")
		}
		smallAgain := s.do(post("/small", "k"))
		if smallAgain.header.Get("Decision") != "replayed" {
			t.Errorf("the key of a small answer is forgotten: %q; %q and %q", smallAgain.header.Get("Decision"), small.body, smallAgain.body)
		}
		s.calls(2)
	})
}

// "followed by ;degraded while Redis is out of reach".
func TestEveryDecisionInAnOutageSaysDegraded(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		e, server := restartable(t, host)
		s := e.serve(t, nil, created)
		s.do(post("/", "before"))
		server.Kill()
		s.want(s.do(post("/", "during")), 201, "first;degraded")
		s.want(s.do(post("/", "during")), 201, "replayed;degraded")
		s.want(s.do(post("/", "before")), 201, "replayed;degraded")
		s.wantProblem(s.do(post("/", "during").with(func(c *call) { c.body = "x" })), 422, "key-reused", "mismatch;degraded")
	})
}

// "same headers". A stream without a Content-Type gets none at first, since its header is flushed before
// there is anything to guess from, as without the plugin; nor does its replay.
func TestAStreamWithoutATypeIsReplayedWithItsOwnHeader(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		read := make(chan struct{}) // the client has the header
		s := e.serve(t, nil, func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = nil
			w.(http.Flusher).Flush()
			<-read
			_, _ = io.WriteString(w, "<html><body>guess</body></html>")
		})
		stream := func(key string) string {
			response, err := s.client.Do(s.request(post("/", key)))
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
		again := s.do(post("/", "k")).header.Get("Content-Type")
		if first != again || bare != first {
			t.Errorf("Content-Type %q without a key, %q at first, %q in the replay", bare, first, again)
		}
	})
}

// below builds the plugin before next in this process, compiled and interpreted.
func below(t *testing.T, settings hosts.Settings, test func(t *testing.T, build func(next http.Handler) *site)) {
	t.Helper()
	for name, builder := range hosts.Builders(t) {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			test(t, func(next http.Handler) *site {
				all := hosts.Settings{"statusHeader": "Decision"}
				for key, value := range settings {
					all[key] = value
				}
				h, err := builder(ctx, next, all, fmt.Sprintf("below%d", prefixCount.Add(1)))
				if err != nil {
					t.Fatal(err)
				}
				server := httptest.NewUnstartedServer(h)
				server.Config.ErrorLog = quiet
				server.Start()
				t.Cleanup(server.Close)
				return siteOf(t, &hosts.Site{Addr: server.Listener.Addr().String(), Name: "below.test"}, nil)
			})
		})
	}
}

// proxyTo answers for a backend that fails as Traefik does.
func proxyTo(target string) http.Handler {
	u, _ := url.Parse(target)
	return &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(u) },
		Transport: &http.Transport{},
		ErrorLog:  quiet,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			status := 500
			if _, isNet := err.(net.Error); isNet || err == io.EOF { //nolint:errorlint // as Traefik
				status = 502
			}
			w.WriteHeader(status)
			_, _ = io.WriteString(w, http.StatusText(status))
		},
	}
}

// "bytes were sent, and no whole answer came back". A middleware below the plugin that adds a
// header (headers.customResponseHeaders, a sticky cookie with omitHeaders: []) makes Traefik's own 500 look like the
// backend's.
func TestAHeaderAddedBelowHidesNoUnknownOutcome(t *testing.T) {
	below(t, nil, func(t *testing.T, build func(http.Handler) *site) {
		b := newRawBackend(t, func(conn net.Conn, _ int64, _ *http.Request) bool {
			fmt.Fprint(conn, "this is not HTTP\r\n\r\n")
			return false
		})
		proxy := proxyTo(b.URL)
		s := build(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Frame-Options", "DENY")
			proxy.ServeHTTP(w, r)
		}))
		first := s.do(post("/", "k"))
		if first.status != 500 || first.header.Get("Decision") != "unknown" {
			t.Errorf("first: %d %q, want 500 unknown", first.status, first.header.Get("Decision"))
		}
		s.wantProblem(s.do(post("/", "k")), 409, "outcome-unknown", "unknown")
	})
}

// its status is in retryableStatuses". A backend's 503 with no header at all.
func TestABare503AsksToComeAgain(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		b := newRawBackend(t, func(conn net.Conn, _ int64, _ *http.Request) bool {
			fmt.Fprint(conn, "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\n")
			return false
		})
		s := rawSite(t, &env{host: host}, b, nil)
		s.want(s.do(post("/", "k")), 503, "released")
	})
}

// "a longer ttl is cut to it, with a warning".
func TestATTLOfAMonthIsCut(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		if refusal := host.Refusal(t, hosts.Settings{"ttl": "720h"}); refusal != "" {
			t.Error(refusal)
		}
	})
}

// settings under which nothing is ever protected are a slip of the pen: net/http takes Host out of the
// header, and a path has no query.
func TestSettingsThatProtectNothingAreRefused(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		for _, settings := range []hosts.Settings{{"header": "Host"}, {"endpoints": "POST /pay?x=1"}} {
			if host.Refusal(t, settings) == "" {
				t.Errorf("%v is accepted", settings)
			}
		}
	})
}

// "Left out: … omitHeaders". Two middlewares on one Redis: the one that replays leaves out its own.
func TestWhoReplaysOmitsItsHeaders(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Internal", "secret")
			created(w, r)
		})
		strict := siteOf(t, host.Serve(t, b.URL, hosts.Settings{"statusHeader": "Decision", "scope": "Authorization", "omitHeaders": "X-Internal", "localCacheBytes": 0, "lease": "1m",
			"redis": map[string]any{"endpoints": server.Addr, "readTimeout": "20s", "keyPrefix": "omit"}}), b)
		loose := siteOf(t, host.Serve(t, b.URL, hosts.Settings{"statusHeader": "Decision", "scope": "Authorization", "localCacheBytes": 0, "lease": "1m",
			"redis": map[string]any{"endpoints": server.Addr, "readTimeout": "20s", "keyPrefix": "omit"}}), b)
		loose.do(post("/", "k"))
		a := strict.do(post("/", "k"))
		strict.want(a, 201, "replayed")
		if a.header.Get("X-Internal") != "" {
			t.Error("a header in omitHeaders is replayed")
		}
	})
}

// an upgrade is the token "upgrade" in Connection, not part of another.
func TestPartOfATokenIsNoUpgrade(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		s := serve(t, host, created, hosts.Settings{"statusHeader": "Decision"})
		s.want(s.do(post("/", "k", "Connection", "X-No-Upgrade-Please")), 201, "first")
	})
}

// "A reload forgets no key." The connections and the memory of a handler whose context has ended are
// closed after some seconds, also under a request that still runs.
func TestARequestThatOutlivesAReloadKeepsItsAnswer(t *testing.T) {
	server := redistest.Start(t)
	for name, builder := range hosts.Builders(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var calls atomic.Int64
			arrived, proceed := make(chan struct{}, 5), make(chan struct{})
			next := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if calls.Add(1) == 1 {
					arrived <- struct{}{}
					<-proceed
				}
				created(w, r)
			})
			prefix := fmt.Sprintf("t%d", prefixCount.Add(1))
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
				old.ServeHTTP(w, keyed("POST", "k"))
				first <- w
			}()
			<-arrived
			waiter := make(chan *httptest.ResponseRecorder, 1)
			go func() {
				w := httptest.NewRecorder()
				old.ServeHTTP(w, keyed("POST", "k"))
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
				t.Errorf("the waiting duplicate was let go while the first request ran: %d calls of the backend", calls.Load())
			case <-time.After(13 * time.Second):
			}
			again := make(chan *httptest.ResponseRecorder, 1)
			go func() {
				w := httptest.NewRecorder()
				reloaded.ServeHTTP(w, keyed("POST", "k"))
				again <- w
			}()
			select {
			case w := <-again:
				t.Errorf("a duplicate after the reload got %d %q while the first request ran", w.Code, w.Header().Get("Decision"))
			case <-time.After(2 * time.Second):
			}
			close(proceed)
			<-first
			if n := calls.Load(); n != 1 {
				t.Errorf("the backend was called %d times, want 1", n)
			}
		})
	}
}

// a client that has the whole answer and asks again gets it again. The last bytes of a
// long answer are delivered before it is kept.
func TestWhoHasTheWholeAnswerFindsItKept(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		f := newFront(t, server.Addr)
		body := bytes.Repeat([]byte("0123456789"), 10_000)
		var calls atomic.Int64
		s := serve(t, host, func(w http.ResponseWriter, _ *http.Request) {
			if calls.Add(1) == 2 {
				f.gate.Lock() // Redis is slow to keep the answer
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			_, _ = w.Write(body)
		}, hosts.Settings{"statusHeader": "Decision", "inFlight": "reject", "lease": "1m", "redis": map[string]any{"endpoints": f.addr, "readTimeout": "20s"}})
		s.do(post("/", "warm"))
		response, err := s.client.Do(s.request(post("/", "k")))
		if err != nil {
			t.Fatal(err)
		}
		read := make(chan struct{})
		go func() {
			_, _ = io.ReadAll(response.Body)
			_ = response.Body.Close()
			close(read)
		}()
		other := siteOf(t, s.Site, s.backend) // with a connection of its own: on one connection a server takes requests in turn
		select {
		case <-read:
			a := other.do(post("/", "k"))
			if a.status != 200 {
				t.Errorf("a duplicate, sent after the whole answer was received, got %d %q", a.status, a.header.Get("Decision"))
			}
			f.gate.Unlock()
		case <-time.After(time.Second): // the end is held back until the answer is kept: right
			f.gate.Unlock()
			<-read
			a := other.do(post("/", "k"))
			if a.status != 200 || a.header.Get("Decision") != "replayed" {
				t.Errorf("then %d %q", a.status, a.header.Get("Decision"))
			}
		}
	})
}

// if
// that hangs for longer than the lease, the answer is lost here as well, and the duplicate runs.
func TestAnAnswerThatHangsOnItsWayToRedisIsKeptHere(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		f := newFront(t, server.Addr)
		var calls atomic.Int64
		s := serve(t, host, func(w http.ResponseWriter, r *http.Request) {
			if calls.Add(1) == 2 {
				f.swallow.Store(true)
			}
			created(w, r)
		}, withTimeouts("600ms", hosts.Settings{"statusHeader": "Decision", "lease": "900ms", "redis": map[string]any{"endpoints": f.addr}}))
		s.do(post("/", "warm"))
		first := s.do(post("/", "k"))
		s.want(first, 201, "first")
		again := s.do(post("/", "k"))
		if !bytes.Equal(first.body, again.body) || calls.Load() != 2 {
			t.Errorf("the duplicate got %d %q %q, want %q; %d calls", again.status, again.header.Get("Decision"), again.body, first.body, calls.Load())
		}
	})
}

// "It is renewed while the upstream runs." A renewal that hangs on Redis keeps the lease in this process's
// memory from being renewed, so that a duplicate runs beside the first request in one and the same process.
func TestARenewalThatHangsLosesNoLeaseHere(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		arrived, proceed := make(chan struct{}, 5), make(chan struct{})
		b := newBackend(t, gated(arrived, proceed))
		s := siteOf(t, host.Serve(t, b.URL, withTimeouts("500ms", hosts.Settings{"statusHeader": "Decision", "lease": "750ms", "inFlight": "reject",
			"redis": map[string]any{"endpoints": server.Addr}})), b)
		first := make(chan answer, 1)
		go func() { first <- s.send(post("/", "k")) }()
		<-arrived
		server.Pause()
		defer server.Resume()
		ran := false
		for end := time.Now().Add(2500 * time.Millisecond); !ran && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			again := make(chan answer, 1)
			go func() { again <- s.send(post("/", "k")) }()
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
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		s := serve(t, host, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 100_000)) },
			hosts.Settings{"statusHeader": "Decision", "localCacheBytes": 1_000_000})
		for i := range 20 {
			s.want(s.do(post("/", fmt.Sprintf("k%d", i))), 200, "first")
		}
		for i := range 20 {
			if a := s.do(post("/", fmt.Sprintf("k%d", i))); a.header.Get("Decision") == "first" {
				t.Errorf("key %d of 20 ran again", i)
				break
			}
		}
	})
}

// The same with middlewares of Traefik's own below the plugin.
func TestMiddlewaresOfTraefikBelow(t *testing.T) {
	p := hosts.StartTraefik(t)
	garbage := newRawBackend(t, func(conn net.Conn, _ int64, _ *http.Request) bool {
		fmt.Fprint(conn, "this is not HTTP\r\n\r\n")
		return false
	})
	auth := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer auth.Close()
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = dead.Close()
	for name, c := range map[string]struct {
		backend  string
		below    map[string]any
		status   int
		decision string
	}{
		"headers": {garbage.URL, map[string]any{"headers": map[string]any{"customResponseHeaders": map[string]any{"X-Frame": "DENY"}}}, 500, "unknown"},
		"frame":   {garbage.URL, map[string]any{"headers": map[string]any{"frameDeny": true}}, 500, "unknown"},
		"noauth":  {auth.URL, map[string]any{"forwardAuth": map[string]any{"address": "http://" + dead.Addr().String()}}, 500, "released"},
	} {
		t.Run(name, func(t *testing.T) {
			host := name + ".test"
			config := hosts.Dynamic(host, c.backend, hosts.Settings{"statusHeader": "Decision"})
			parts := config["http"].(map[string]any)
			parts["middlewares"].(map[string]any)[name+"-below"] = c.below
			router := parts["routers"].(map[string]any)[name].(map[string]any)
			router["middlewares"] = append(router["middlewares"].([]string), name+"-below")
			p.Write(t, host, config)
			s := siteOf(t, p.Site(t, host), nil)
			first := s.do(post("/", "k"))
			again := s.do(post("/", "k"))
			if first.status != c.status || first.header.Get("Decision") != c.decision {
				t.Errorf("%d %q %v, want %d %s; the duplicate got %d %q", first.status, first.header.Get("Decision"), first.header, c.status, c.decision, again.status, again.header.Get("Decision"))
			}
		})
	}
}
