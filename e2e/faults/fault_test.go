package faults

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

func TestARequestThatWasNeverSentFreesTheKey(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		b := rig.NewBackend(t, rig.Created)
		addr := rig.FreeAddress(t)
		s := rig.SiteOf(t, e.Host.Serve(t, "http://"+addr, e.Settings(nil)), b)
		s.Want(s.Do(rig.Post("/", "k")), 502, "released")
		s.Want(s.Do(rig.Post("/", "k")), 502, "released")
		// The backend comes up where it was looked for.
		listener, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		up := &http.Server{Handler: b.Config.Handler}
		go func() { _ = up.Serve(listener) }()
		defer up.Close()
		s.Want(s.Do(rig.Post("/", "k")), 201, "first")
		s.Want(s.Do(rig.Post("/", "k")), 201, "replayed")
		s.Calls(1)
	})
}

// TestNoTransportResends has a backend that breaks a kept connection after it read a request: Go's transport, and
// Traefik's fast proxy, send some requests again then, of themselves.
func TestNoTransportResends(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		for _, c := range []struct{ method, header string }{
			{"POST", "Idempotency-Key"}, {"POST", "X-Idempotency-Key"}, {"PATCH", "Idempotency-Key"},
			{"GET", "X-Request-ID"}, {"GET", "Idempotency-Key"}, {"HEAD", "X-Request-ID"}, {"DELETE", "Idempotency-Key"}, {"OPTIONS", "Idempotency-Key"},
		} {
			b := rig.NewRawBackend(t, func(conn net.Conn, n int64, _ *http.Request) bool {
				if n > 1 {
					return false
				}
				fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				return true
			})
			s := rig.RawSite(t, e, b, hosts.Settings{"header": c.header, "methods": "GET,HEAD,POST,PATCH,DELETE,OPTIONS"})
			request := rig.Call{Method: c.method, Path: "/", Header: http.Header{}}
			request.Header.Set(c.header, "one")
			s.Want(s.Do(request), 200, "first") // leaves a connection to reuse
			request.Header.Set(c.header, "two")
			a := s.Do(request)
			if a.Status != 502 || a.Header.Get("Decision") != "unknown" {
				t.Errorf("%s %s: %d %q, want 502 unknown", c.method, c.header, a.Status, a.Header.Get("Decision"))
			}
			b.Calls(t, 2)
			seen := b.Header.Load().(http.Header)
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
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		arrived, proceed := make(chan struct{}), make(chan struct{})
		s := e.Serve(t, nil, func(w http.ResponseWriter, r *http.Request) {
			arrived <- struct{}{}
			<-proceed
			if r.Context().Err() != nil {
				t.Error("the upstream call was cancelled")
			}
			rig.Created(w, r)
		})
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			<-arrived
			cancel()
		}()
		_, err := s.HTTP.Do(s.Request(rig.Post("/", "k")).WithContext(ctx)) //nolint:bodyclose // there is none
		if err == nil {
			t.Fatal("the request was not given up")
		}
		retry := make(chan rig.Answer)
		go func() { retry <- s.Send(rig.Post("/", "k")) }()
		close(proceed)
		s.Want(<-retry, 201, "replayed")
		s.Calls(1)
	})
}

func TestDetachHasAnEnd(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		for _, settings := range []hosts.Settings{{"detach": false}, {"detachTimeout": "50ms"}} {
			arrived := make(chan struct{})
			cancelled := make(chan struct{})
			s := e.Serve(t, settings, func(_ http.ResponseWriter, r *http.Request) {
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
			_, err := s.HTTP.Do(s.Request(rig.Post("/", "k")).WithContext(ctx)) //nolint:bodyclose // there is none
			if err == nil {
				t.Fatal("the request was not given up")
			}
			<-cancelled
			s.WantProblem(s.Do(rig.Post("/", "k")), 409, "outcome-unknown", "unknown")
			s.Calls(1)
		}
	})
}

// TestABodyCutOffByTheClientClaimsNothing sends half of a body, short and longer than the fingerprint reads.
func TestABodyCutOffByTheClientClaimsNothing(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"maxRequestBodyBytes": 1000}, func(w http.ResponseWriter, r *http.Request) {
			_, err := io.Copy(io.Discard, r.Body)
			if err != nil {
				panic(http.ErrAbortHandler) // half a payment is no payment
			}
			rig.Created(w, r)
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
			a := s.Do(rig.Post("/cut", key))
			s.Want(a, 201, "first")
		}
	})
}

func TestRedisDown(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		e, server := rig.Restartable(t, host)
		degrade := e.Serve(t, hosts.Settings{"onStoreError": "degrade"}, rig.Created)
		pass := e.Serve(t, hosts.Settings{"onStoreError": "pass", "localCacheBytes": 0}, rig.Created)
		reject := e.Serve(t, hosts.Settings{"onStoreError": "reject", "localCacheBytes": 0}, rig.Created)
		before := degrade.Do(rig.Post("/", "before"))
		pass.Do(rig.Post("/", "before"))
		reject.Do(rig.Post("/", "before"))
		server.Kill()

		degrade.Want(degrade.Do(rig.Post("/", "notice")), 201, "first;degraded")
		degrade.WantReplayAs(before, degrade.Do(rig.Post("/", "before")), "replayed;degraded")
		first := degrade.Do(rig.Post("/", "during"))
		degrade.Want(first, 201, "first;degraded")
		degrade.WantReplayAs(first, degrade.Do(rig.Post("/", "during")), "replayed;degraded")
		degrade.Calls(3)

		pass.Want(pass.Do(rig.Post("/", "during")), 201, "first;degraded")
		pass.Want(pass.Do(rig.Post("/", "during")), 201, "first;degraded")
		pass.Calls(3)

		a := reject.Do(rig.Post("/", "during"))
		reject.WantProblem(a, 503, "store-unavailable", "unavailable;degraded")
		if a.Header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
		reject.Calls(1)
		reject.Want(reject.Do(rig.Post("/", "")), 201, "") // what needs no store is served

		// Redis comes back, empty, where it was.
		server.Restart()
		for _, s := range []*rig.Site{degrade, pass, reject} {
			s.AwaitRedis()
			s.Want(s.Do(rig.Post("/", "after")), 201, "first")
			s.Want(s.Do(rig.Post("/", "after")), 201, "replayed")
		}
		degrade.WantReplay(first, degrade.Do(rig.Post("/", "during")))
	})
}

// TestAnAnswerThatCannotBeStoredIsDelivered kills Redis while the request runs.
func TestAnAnswerThatCannotBeStoredIsDelivered(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		e, server := rig.Restartable(t, host)
		// An outage is logged once: with time-outs as long as here, a shorter lease is renewed at once, and that may be what is logged.
		s := e.Serve(t, hosts.Settings{"lease": "10m"}, func(w http.ResponseWriter, r *http.Request) {
			server.Kill()
			rig.Created(w, r)
		})
		first := s.Do(rig.Post("/", "k"))
		s.Want(first, 201, "first")
		s.WantReplayAs(first, s.Do(rig.Post("/", "k")), "replayed;degraded") // from this process's memory
		s.Calls(1)
		s.AwaitLog("the end of a request could not be stored")
	})
}

// TestRedisRestartedBetweenRequests has pooled connections that are all dead, and a server that has forgotten the scripts.
func TestRedisRestartedBetweenRequests(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		e, server := rig.Restartable(t, host)
		s := e.Serve(t, hosts.Settings{"onStoreError": "reject"}, rig.Created)
		s.Want(s.Do(rig.Post("/", "k1")), 201, "first")
		server.Lapse()
		s.Want(s.Do(rig.Post("/", "k2")), 201, "first")
		server.Do("SCRIPT", "FLUSH") // over a connection that lives
		s.Want(s.Do(rig.Post("/", "k3")), 201, "first")
		s.Want(s.Do(rig.Post("/", "k3")), 201, "replayed")
		s.Calls(3)
	})
}

// TestForeignValues puts under our keys what is not ours: other text, other types, cut records.
func TestForeignValues(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		e, server := rig.Restartable(t, host)
		s := e.Serve(t, hosts.Settings{"localCacheBytes": 0}, rig.Created)
		strict := e.Serve(t, hosts.Settings{"localCacheBytes": 0, "onStoreError": "reject"}, rig.Created)
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
			for _, at := range []*rig.Site{s, strict} {
				server.Do("FLUSHDB")
				at.Want(at.Do(rig.Post("/", key)), 201, "first")
				for _, name := range strings.Fields(server.Do("KEYS", "*:req:*")) { // what is counted and noted comes in the background
					f(name)
				}
				if at == strict {
					at.WantProblem(at.Do(rig.Post("/", key)), 503, "store-unavailable", "unavailable;degraded")
					continue
				}
				first := at.Do(rig.Post("/", key)) // this Traefik's memory goes on
				at.Want(first, 201, "first;degraded")
				at.WantReplay(first, at.Do(rig.Post("/", key))) // nothing is wrong with Redis
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
	lengths := map[string]string{ // they end a process that believes them
		"a huge bulk":   "$99999999999\r\n",
		"a huge array":  "*99999999999\r\n",
		"huge arrays":   strings.Repeat("*1048576\r\n", 10_000),
		"nested arrays": strings.Repeat("*1\r\n", 1<<20),
	}
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		all := maps.Clone(replies)
		if host != hosts.Compiled { // its redigo is not the one of vendor/
			maps.Copy(all, lengths)
		}
		for name, reply := range all {
			addr := rig.Listen(t, func(conn net.Conn) {
				_, err := conn.Read(make([]byte, 64<<10))
				if err == nil {
					_, _ = io.WriteString(conn, reply)
				}
			})
			s := rig.Serve(t, host, rig.Created, hosts.Settings{"statusHeader": "Decision", "redis": map[string]any{"endpoints": addr}})
			first := s.Do(rig.Post("/", "k"))
			if first.Status != 201 || first.Header.Get("Decision") != "first;degraded" {
				t.Errorf("%s: %d %q", name, first.Status, first.Header.Get("Decision"))
			}
			again := s.Do(rig.Post("/", "k"))
			decision := "replayed" // some of these replies are wrong for one key alone
			if strings.HasSuffix(again.Header.Get("Decision"), ";degraded") {
				decision += ";degraded"
			}
			s.WantReplayAs(first, again, decision)
			s.Calls(1)
		}
	})
}

func TestRedisWithAPasswordAndADatabase(t *testing.T) {
	server := redistest.Start(t, "--requirepass", "secret-pass", "--user", "shop", "on", ">secret-shop", "~idem:*", "+@all")
	file := t.TempDir() + "/password"
	rig.WriteFile(t, file, "secret-shop\n")
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for i, c := range []map[string]any{
			{"password": "secret-pass"},
			{"username": "shop", "password": "secret-shop", "db": "3"},
			{"username": "shop", "passwordFile": file},
		} {
			c["endpoints"] = server.Addr
			c["readTimeout"] = "20s"
			s := rig.Serve(t, host, rig.Created, hosts.Settings{"statusHeader": "Decision", "onStoreError": "reject", "localCacheBytes": 0, "lease": "1m", "redis": c})
			key := fmt.Sprintf("%s-%d", host, i)
			s.Want(s.Do(rig.Post("/", key)), 201, "first")
			s.Want(s.Do(rig.Post("/", key)), 201, "replayed")
		}
		s := rig.Serve(t, host, rig.Created, hosts.Settings{"statusHeader": "Decision", "onStoreError": "reject", "redis": map[string]any{"endpoints": server.Addr, "password": "secret-wrong"}})
		s.WantProblem(s.Do(rig.Post("/", "k")), 503, "store-unavailable", "unavailable;degraded")
		s.AwaitLog("AUTH: WRONGPASS")
		for line := range strings.Lines(s.Logs()) {
			ours := strings.Contains(line, "middleware=") // Traefik's own DEBUG lines show the whole configuration
			if ours && strings.Contains(line, "secret-") {
				t.Errorf("a password in the log: %s", line)
			}
		}
	})
}
