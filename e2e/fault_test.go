package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
)

// hour is a time-out that no test is meant to reach.
const hour = time.Hour

// rawBackend is a server that is free to break HTTP: serve gets each connection after a whole request was read from it.
type rawBackend struct {
	URL      string
	requests atomic.Int64
	header   atomic.Value // of the last request, http.Header
}

func newRawBackend(t *testing.T, serve func(conn net.Conn, n int64, r *http.Request) (keep bool)) *rawBackend {
	t.Helper()
	b := &rawBackend{}
	b.URL = "http://" + listen(t, func(conn net.Conn) {
		reader := bufio.NewReader(conn)
		for {
			r, err := http.ReadRequest(reader)
			if err != nil {
				return
			}
			_, err = io.Copy(io.Discard, r.Body)
			if err != nil {
				return
			}
			if hosts.IsProbe(r) {
				fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				continue
			}
			b.header.Store(r.Header)
			if !serve(conn, b.requests.Add(1), r) {
				return
			}
		}
	})
	return b
}

// listen serves each connection to the address that it returns, and closes it then.
func listen(t *testing.T, serve func(conn net.Conn)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	return listener.Addr().String()
}

func (b *rawBackend) calls(t *testing.T, want int64) {
	t.Helper()
	if got := b.requests.Load(); got != want {
		t.Errorf("the backend was called %d times, want %d", got, want)
	}
}

// rawSite is a site before b.
func rawSite(t *testing.T, e *env, b *rawBackend, more hosts.Settings) *site {
	t.Helper()
	return siteOf(t, e.host.Serve(t, b.URL, e.settings(more)), nil)
}

func TestAnUnknownOutcomeIsHeld(t *testing.T) {
	breaks := map[string]struct {
		serve  func(conn net.Conn)
		status int // 0: the client sees the answer break off
	}{
		"reset before an answer": {func(net.Conn) {}, 502},
		"no answer in time":      {func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }, 504},
		"garbage":                {func(conn net.Conn) { fmt.Fprint(conn, "this is not HTTP\r\n\r\n") }, 500},
		"break after early hints": {func(conn net.Conn) {
			fmt.Fprint(conn, "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n")
		}, 500},
		"break in the body": {func(conn net.Conn) {
			fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
		}, 0},
		"break in a chunk": {func(conn net.Conn) {
			fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nhalf")
		}, 0},
	}
	everywhere(t, func(t *testing.T, e *env) {
		for name, c := range breaks {
			b := newRawBackend(t, func(conn net.Conn, _ int64, _ *http.Request) bool {
				c.serve(conn)
				return false
			})
			s := rawSite(t, e, b, hosts.Settings{"ttl": "50s", "retryableStatuses": "500-504"})
			first, calls := s.send(post("/", "k")), int64(1)
			switch {
			case c.status == 0 && first.err == nil: // Traefik 3.0 ends a broken answer as if it were whole, also without the plugin
				calls++
				if s.send(post("/", "")).err != nil {
					t.Errorf("%s: the client sees a whole answer: %d %q", name, first.status, first.body)
				}
			case c.status != 0 && (first.status != c.status || first.header.Get("Decision") != "unknown"):
				t.Errorf("%s: first answer %d %q %v, want %d unknown", name, first.status, first.header.Get("Decision"), first.err, c.status)
			}
			again := s.do(post("/", "k"))
			s.wantProblem(again, 409, "outcome-unknown", "unknown")
			var seconds int
			_, _ = fmt.Sscan(again.header.Get("Retry-After"), &seconds)
			if seconds < 1 || seconds > 50 {
				t.Errorf("%s: Retry-After %q with a ttl of 50 s", name, again.header.Get("Retry-After"))
			}
			b.calls(t, calls)
		}
		b := newRawBackend(t, func(net.Conn, int64, *http.Request) bool { return false })
		s := rawSite(t, e, b, hosts.Settings{"onUnknown": "release"})
		s.send(post("/", "k"))
		s.send(post("/", "k"))
		b.calls(t, 2)
	})
}

func TestARequestThatWasNeverSentFreesTheKey(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		b := newBackend(t, created)
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := listener.Addr().String()
		_ = listener.Close()
		s := siteOf(t, e.host.Serve(t, "http://"+addr, e.settings(nil)), b)
		s.want(s.do(post("/", "k")), 502, "released")
		s.want(s.do(post("/", "k")), 502, "released")
		// The backend comes up where it was looked for.
		listener, err = net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		up := &http.Server{Handler: b.Config.Handler}
		go func() { _ = up.Serve(listener) }()
		defer up.Close()
		s.want(s.do(post("/", "k")), 201, "first")
		s.want(s.do(post("/", "k")), 201, "replayed")
		s.calls(1)
	})
}

// TestNoTransportResends has a backend that breaks a kept connection after it read a request: Go's transport, and
// Traefik's fast proxy, send some requests again then, of themselves.
func TestNoTransportResends(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		for _, c := range []struct{ method, header string }{
			{"POST", "Idempotency-Key"}, {"POST", "X-Idempotency-Key"}, {"PATCH", "Idempotency-Key"},
			{"GET", "X-Request-ID"}, {"GET", "Idempotency-Key"}, {"HEAD", "X-Request-ID"}, {"DELETE", "Idempotency-Key"}, {"OPTIONS", "Idempotency-Key"},
		} {
			b := newRawBackend(t, func(conn net.Conn, n int64, _ *http.Request) bool {
				if n > 1 {
					return false
				}
				fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				return true
			})
			s := rawSite(t, e, b, hosts.Settings{"header": c.header, "methods": "GET,HEAD,POST,PATCH,DELETE,OPTIONS"})
			request := call{method: c.method, path: "/", header: http.Header{}}
			request.header.Set(c.header, "one")
			s.want(s.do(request), 200, "first") // leaves a connection to reuse
			request.header.Set(c.header, "two")
			a := s.do(request)
			if a.status != 502 || a.header.Get("Decision") != "unknown" {
				t.Errorf("%s %s: %d %q, want 502 unknown", c.method, c.header, a.status, a.header.Get("Decision"))
			}
			b.calls(t, 2)
			seen := b.header.Load().(http.Header)
			if seen.Get(c.header) != "two" {
				t.Errorf("%s: the backend does not get the key header %s: %v", c.method, c.header, seen)
			}
			if seen.Get("Transfer-Encoding") != "" {
				t.Errorf("%s: the backend gets a chunked body where there was none", c.method)
			}
		}
	})
}

func TestAClientThatHasGoneFindsItsAnswerLater(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		arrived, proceed := make(chan struct{}), make(chan struct{})
		s := e.serve(t, nil, func(w http.ResponseWriter, r *http.Request) {
			arrived <- struct{}{}
			<-proceed
			if r.Context().Err() != nil {
				t.Error("the upstream call was cancelled")
			}
			created(w, r)
		})
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			<-arrived
			cancel()
		}()
		_, err := s.client.Do(s.request(post("/", "k")).WithContext(ctx)) //nolint:bodyclose // there is none
		if err == nil {
			t.Fatal("the request was not given up")
		}
		retry := make(chan answer)
		go func() { retry <- s.send(post("/", "k")) }()
		close(proceed)
		s.want(<-retry, 201, "replayed")
		s.calls(1)
	})
}

func TestDetachHasAnEnd(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		for _, settings := range []hosts.Settings{{"detach": false}, {"detachTimeout": "50ms"}} {
			arrived := make(chan struct{})
			cancelled := make(chan struct{})
			s := e.serve(t, settings, func(_ http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				close(arrived)
				<-r.Context().Done()
				close(cancelled)
			})
			ctx, cancel := context.WithCancel(context.Background())
			go func() {
				<-arrived
				cancel()
			}()
			_, err := s.client.Do(s.request(post("/", "k")).WithContext(ctx)) //nolint:bodyclose // there is none
			if err == nil {
				t.Fatal("the request was not given up")
			}
			<-cancelled
			s.wantProblem(s.do(post("/", "k")), 409, "outcome-unknown", "unknown")
			s.calls(1)
		}
	})
}

// TestABodyCutOffByTheClientClaimsNothing sends half of a body, short and longer than the fingerprint reads.
func TestABodyCutOffByTheClientClaimsNothing(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		s := e.serve(t, hosts.Settings{"maxRequestBodyBytes": 1000}, func(w http.ResponseWriter, r *http.Request) {
			_, err := io.Copy(io.Discard, r.Body)
			if err != nil {
				panic(http.ErrAbortHandler) // half a payment is no payment
			}
			created(w, r)
		})
		for _, c := range []struct{ name, head, part string }{
			{"short", "Content-Length: 100", "half"},
			{"long", "Content-Length: 100000", strings.Repeat("x", 5000)},
			{"short chunk", "Transfer-Encoding: chunked", "64\r\nhalf"},
			{"long chunk", "Transfer-Encoding: chunked", "2000\r\n" + strings.Repeat("x", 5000)},
			{"no chunk", "Transfer-Encoding: chunked", "zz\r\n"},
		} {
			conn, err := net.Dial("tcp", s.Addr)
			if err != nil {
				t.Fatal(err)
			}
			key := strings.ReplaceAll(c.name, " ", "-")
			fmt.Fprintf(conn, "POST /cut HTTP/1.1\r\nHost: %s\r\nX-Request-ID: %s\r\nContent-Type: application/json\r\n%s\r\n\r\n%s", s.Name, key, c.head, c.part)
			_ = conn.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, conn)
			_ = conn.Close()
			// The key is free, at the latest when the broken request has come to its end.
			a := s.do(post("/cut", key))
			s.want(a, 201, "first")
		}
	})
}

// restartable is an environment with a Redis of its own.
func restartable(t *testing.T, host hosts.Host) (*env, *redistest.Server) {
	t.Helper()
	server := redistest.Start(t)
	return &env{host: host, redis: server}, server
}

func TestRedisDown(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		e, server := restartable(t, host)
		degrade := e.serve(t, hosts.Settings{"onStoreError": "degrade"}, created)
		pass := e.serve(t, hosts.Settings{"onStoreError": "pass", "localCacheBytes": 0}, created)
		reject := e.serve(t, hosts.Settings{"onStoreError": "reject", "localCacheBytes": 0}, created)
		before := degrade.do(post("/", "before"))
		pass.do(post("/", "before"))
		reject.do(post("/", "before"))
		server.Kill()

		degrade.want(degrade.do(post("/", "notice")), 201, "first;degraded")
		degrade.wantReplayAs(before, degrade.do(post("/", "before")), "replayed;degraded")
		first := degrade.do(post("/", "during"))
		degrade.want(first, 201, "first;degraded")
		degrade.wantReplayAs(first, degrade.do(post("/", "during")), "replayed;degraded")
		degrade.calls(3)

		pass.want(pass.do(post("/", "during")), 201, "first;degraded")
		pass.want(pass.do(post("/", "during")), 201, "first;degraded")
		pass.calls(3)

		a := reject.do(post("/", "during"))
		reject.wantProblem(a, 503, "store-unavailable", "unavailable;degraded")
		if a.header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
		reject.calls(1)
		reject.want(reject.do(post("/", "")), 201, "") // what needs no store is served

		// Redis comes back, empty, where it was.
		server.Restart()
		for _, s := range []*site{degrade, pass, reject} {
			s.awaitRedis()
			s.want(s.do(post("/", "after")), 201, "first")
			s.want(s.do(post("/", "after")), 201, "replayed")
		}
		degrade.wantReplay(first, degrade.do(post("/", "during")))
	})
}

// TestAnAnswerThatCannotBeStoredIsDelivered kills Redis while the request runs.
func TestAnAnswerThatCannotBeStoredIsDelivered(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		e, server := restartable(t, host)
		s := e.serve(t, nil, func(w http.ResponseWriter, r *http.Request) {
			server.Kill()
			created(w, r)
		})
		first := s.do(post("/", "k"))
		s.want(first, 201, "first")
		s.wantReplayAs(first, s.do(post("/", "k")), "replayed;degraded") // from this process's memory
		s.calls(1)
		s.awaitLog("the end of a request could not be stored")
	})
}

// TestRedisRestartedBetweenRequests has pooled connections that are all dead.
func TestRedisRestartedBetweenRequests(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		e, server := restartable(t, host)
		s := e.serve(t, hosts.Settings{"onStoreError": "reject"}, created)
		s.want(s.do(post("/", "k1")), 201, "first")
		server.Kill()
		server.Restart()
		s.want(s.do(post("/", "k2")), 201, "first")
		server.Do("SCRIPT", "FLUSH") // and a server that has forgotten the scripts
		s.want(s.do(post("/", "k3")), 201, "first")
		s.want(s.do(post("/", "k3")), 201, "replayed")
		s.calls(3)
	})
}

// TestForeignValues puts under our keys what is not ours: other text, other types, cut records.
func TestForeignValues(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		e, server := restartable(t, host)
		s := e.serve(t, hosts.Settings{"localCacheBytes": 0}, created)
		strict := e.serve(t, hosts.Settings{"localCacheBytes": 0, "onStoreError": "reject"}, created)
		spoil := []func(key string){
			func(key string) { server.Do("SET", key, "hello") },
			func(key string) { server.Do("SET", key, "") },
			func(key string) { server.Do("SET", key, "idem1D") },
			func(key string) { server.Do("SETRANGE", key, "38", "xxx") },
			func(key string) { server.Do("DEL", key); server.Do("LPUSH", key, "a") },
			func(key string) { server.Do("DEL", key); server.Do("HSET", key, "a", "b") },
		}
		for i, f := range spoil {
			key := fmt.Sprintf("f%d", i)
			for _, at := range []*site{s, strict} {
				server.Do("FLUSHDB")
				at.want(at.do(post("/", key)), 201, "first")
				for _, name := range strings.Fields(server.Do("KEYS", "*")) {
					f(name)
				}
				if at == strict {
					at.wantProblem(at.do(post("/", key)), 503, "store-unavailable", "unavailable;degraded")
					continue
				}
				first := at.do(post("/", key)) // this Traefik's memory goes on
				at.want(first, 201, "first;degraded")
				at.wantReplay(first, at.do(post("/", key))) // nothing is wrong with Redis
			}
		}
		if host == hosts.Traefik {
			return // where sites of other tests come and go, and every reload begins a new log
		}
		said := 0
		for line := range strings.Lines(s.Logs()) {
			if strings.Contains(line, `"`+s.Name+"-0@") && strings.Contains(line, "level=error") {
				said++
			}
		}
		if said != 1 {
			t.Errorf("%d errors in the log, want the first alone", said)
		}
	})
}

func TestStrangeRedisReplies(t *testing.T) {
	replies := map[string]string{
		"nothing":         "",
		"garbage":         "what?\r\n",
		"another type":    "+OK\r\n",
		"an integer":      ":7\r\n",
		"a short array":   "*1\r\n$1\r\na\r\n",
		"a wrong array":   "*2\r\n:1\r\n:2\r\n",
		"a foreign array": "*2\r\n$5\r\nhello\r\n:1000\r\n",
		"a negative size": "$-7\r\n",
		"a broken bulk":   "$10\r\nabc",
		"an empty line":   "\r\n",
		"an error":        "-ERR no\r\n",
		"out of memory":   "-OOM command not allowed when used memory > 'maxmemory'.\r\n",
		"a bulk":          "$5\r\nhello\r\n",
	}
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		for name, reply := range replies {
			addr := listen(t, func(conn net.Conn) {
				_, err := conn.Read(make([]byte, 64<<10))
				if err == nil {
					_, _ = io.WriteString(conn, reply)
				}
			})
			s := serve(t, host, created, hosts.Settings{"statusHeader": "Decision", "redis": map[string]any{"endpoints": addr}})
			first := s.do(post("/", "k"))
			if first.status != 201 || first.header.Get("Decision") != "first;degraded" {
				t.Errorf("%s: %d %q", name, first.status, first.header.Get("Decision"))
			}
			again := s.do(post("/", "k"))
			decision := "replayed" // some of these replies are wrong for one key alone
			if strings.HasSuffix(again.header.Get("Decision"), ";degraded") {
				decision += ";degraded"
			}
			s.wantReplayAs(first, again, decision)
			s.calls(1)
		}
	})
}

func TestRedisWithAPasswordAndADatabase(t *testing.T) {
	server := redistest.Start(t, "--requirepass", "secret-pass", "--user", "shop", "on", ">secret-shop", "~idem:*", "+@all")
	file := t.TempDir() + "/password"
	writeFile(t, file, "secret-shop\n")
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		for i, c := range []map[string]any{
			{"password": "secret-pass"},
			{"username": "shop", "password": "secret-shop", "db": "3"},
			{"username": "shop", "passwordFile": file},
		} {
			c["endpoints"] = server.Addr
			c["readTimeout"] = "20s"
			s := serve(t, host, created, hosts.Settings{"statusHeader": "Decision", "onStoreError": "reject", "localCacheBytes": 0, "lease": "1m", "redis": c})
			key := fmt.Sprintf("%s-%d", host, i)
			s.want(s.do(post("/", key)), 201, "first")
			s.want(s.do(post("/", key)), 201, "replayed")
		}
		s := serve(t, host, created, hosts.Settings{"statusHeader": "Decision", "onStoreError": "reject", "redis": map[string]any{"endpoints": server.Addr, "password": "secret-wrong"}})
		s.wantProblem(s.do(post("/", "k")), 503, "store-unavailable", "unavailable;degraded")
		s.awaitLog("AUTH: WRONGPASS")
		for line := range strings.Lines(s.Logs()) {
			ours := strings.Contains(line, "middleware=") // Traefik's own DEBUG lines show the whole configuration
			if ours && strings.Contains(line, "secret-") {
				t.Errorf("a password in the log: %s", line)
			}
		}
	})
}
