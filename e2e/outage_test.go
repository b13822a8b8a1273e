package e2e

// Every way in which Redis fails: what a request is answered meanwhile, what is logged, and that all is well afterwards.

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/Shopify/toxiproxy/v2/toxics"
	"github.com/rs/zerolog"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
)

// garble makes every chunk unreadable. TCP lets no single wrong byte through, so none is tried.
type garble struct{}

// Pipe implements toxics.Toxic.
func (*garble) Pipe(stub *toxics.ToxicStub) {
	for {
		select {
		case <-stub.Interrupt:
			return
		case c := <-stub.Input:
			if c == nil {
				stub.Close()
				return
			}
			for i, b := range c.Data {
				if b != '\n' {
					c.Data[i] = '#'
				}
			}
			stub.Output <- c
		}
	}
}

func init() { toxics.Register("garble", &garble{}) }

// weather is what stands between the plugin and a Redis.
type weather struct {
	t     *testing.T
	proxy *toxiproxy.Proxy
}

func newWeather(t *testing.T, upstream string) *weather {
	t.Helper()
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	w := &weather{t: t, proxy: toxiproxy.NewProxy(server, "redis", "127.0.0.1:0", upstream)}
	err := w.proxy.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.proxy.Stop)
	return w
}

// bad has the weather do harm: toxiproxy's toxics, and garble.
func (w *weather) bad(toxic, stream string, attributes map[string]any) {
	w.t.Helper()
	data, _ := json.Marshal(map[string]any{"type": toxic, "stream": stream, "attributes": attributes})
	_, err := w.proxy.Toxics.AddToxicJson(bytes.NewReader(data))
	if err != nil {
		w.t.Error(err)
	}
}

// fair ends all harm. Connections that have suffered it are broken.
func (w *weather) fair() { w.proxy.Toxics.ResetToxics(w.t.Context()) }

// cut breaks all connections.
func (w *weather) cut() {
	listen := w.proxy.Listen
	w.proxy.Stop()
	w.proxy.Listen = listen
	err := w.proxy.Start()
	if err != nil {
		w.t.Error(err)
	}
}

// admin is a connection to a Redis that no fault of the test closes.
type admin struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
}

func newAdmin(t *testing.T, addr string) *admin {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &admin{t: t, conn: conn, r: bufio.NewReader(conn)}
}

// do sends a command whose reply is one line.
func (a *admin) do(command string) {
	a.t.Helper()
	fmt.Fprint(a.conn, command+"\r\n")
	line, err := a.r.ReadString('\n')
	if err != nil || line[0] == '-' {
		a.t.Errorf("%s: %q %v", command, line, err)
	}
}

// ground is where a fault happens.
type ground struct {
	*weather

	server *redistest.Server
	admin  *admin
}

// faults are what can be wrong with a Redis.
var faults = []struct {
	name       string
	begin, end func(g *ground)
	log        string // what it is called in the log
	cause      string // and the cause
	reads      bool   // what Redis has is replayed meanwhile
}{
	{
		name: "killed", log: "Redis is out of reach", cause: "",
		begin: func(g *ground) { g.server.Kill() },
		end:   func(g *ground) { g.server.Restart() },
	}, {
		name: "paused", log: "Redis is out of reach", cause: "i/o timeout",
		begin: func(g *ground) { g.server.Pause() },
		end:   func(g *ground) { g.server.Resume() },
	}, {
		name: "slow", log: "Redis is out of reach", cause: "i/o timeout",
		begin: func(g *ground) { g.bad("latency", "downstream", map[string]any{"latency": 20_000}) },
		end:   func(g *ground) { g.fair() },
	}, {
		name: "lost on the way", log: "Redis is out of reach", cause: "i/o timeout",
		begin: func(g *ground) { g.bad("timeout", "upstream", map[string]any{"timeout": 0}) },
		end:   func(g *ground) { g.fair() },
	}, {
		name: "cut in mid-reply", log: "Redis is out of reach", cause: "EOF",
		begin: func(g *ground) { g.bad("limit_data", "downstream", map[string]any{"bytes": 3}); g.cut() },
		end:   func(g *ground) { g.fair() },
	}, {
		name: "garbled", log: "Redis is out of reach", cause: "bad response",
		begin: func(g *ground) { g.bad("garble", "downstream", nil) },
		end:   func(g *ground) { g.fair() },
	}, {
		name: "out of memory", log: "Redis refuses to write", cause: "OOM command not allowed", reads: true,
		begin: func(g *ground) { g.admin.do("CONFIG SET maxmemory 1") },
		end:   func(g *ground) { g.admin.do("CONFIG SET maxmemory 0") },
	}, {
		name: "read-only", log: "Redis refuses to write", cause: "READONLY", reads: true,
		begin: func(g *ground) { g.admin.do("REPLICAOF 127.0.0.1 1") },
		end:   func(g *ground) { g.admin.do("REPLICAOF NO ONE") },
	}, {
		name: "loading", log: "Redis refuses to write", cause: "LOADING",
		begin: func(g *ground) {
			for _, command := range []string{"CONFIG SET rdbcompression no", "CONFIG SET loading-process-events-interval-bytes 1024", "DEBUG POPULATE 5000 x 200", "CONFIG SET key-load-delay 20000"} {
				g.admin.do(command)
			}
			fmt.Fprint(newAdmin(g.t, g.server.Addr).conn, "AUTH right\r\nDEBUG RELOAD\r\n")
			for loading := false; !loading; {
				fmt.Fprint(g.admin.conn, "GET x\r\n")
				line, err := g.admin.r.ReadString('\n')
				if err != nil {
					g.t.Fatal(err)
				}
				loading = strings.Contains(line, "LOADING")
			}
		},
		end: func(g *ground) { g.admin.do("CONFIG SET key-load-delay 0") },
	}, {
		name: "another password", log: "Redis is out of reach", cause: "AUTH: WRONGPASS",
		begin: func(g *ground) {
			g.admin.do("CONFIG SET requirepass other")
			g.cut()
		},
		end: func(g *ground) { g.admin.do("CONFIG SET requirepass right") },
	}, {
		name: "full of clients", log: "Redis is out of reach", cause: "",
		begin: func(g *ground) {
			g.admin.do("CONFIG SET maxclients 1")
			g.cut()
		},
		end: func(g *ground) { g.admin.do("CONFIG SET maxclients 100") },
	},
}

// TestFaults has each fault met by three middlewares with different settings: what they answer, what is logged once, what
// the statistics say; and that without a restart all is well afterwards, and what was answered meanwhile is in Redis.
func TestFaults(t *testing.T) {
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			onEveryHost(t, func(t *testing.T, host hosts.Host) {
				server := redistest.Start(t, "--requirepass", "right", "--enable-debug-command", "local", "--appendonly", "yes", "--appendfsync", "always")
				g := &ground{weather: newWeather(t, server.Addr), server: server, admin: newAdmin(t, server.Addr)}
				g.admin.do("AUTH right")
				b := newBackend(t, created)
				at := g.proxy.Listen
				build := func(prefix, mode string, cache int) *site {
					settings := hosts.Settings{"statusHeader": "Decision", "scope": "Authorization", "onStoreError": mode, "localCacheBytes": cache, "stats": open["stats"],
						"ttl": "1h", "maxTTL": "1h",
						"redis": map[string]any{"endpoints": at, "password": "right", "keyPrefix": prefix, "dialTimeout": "3s", "readTimeout": "3s", "writeTimeout": "3s"}}
					return siteOf(t, host.Serve(t, b.URL, settings), b)
				}
				degrade, pass, reject := build("d", "degrade", 1<<20), build("p", "pass", 0), build("r", "reject", 0)
				at = byName(at)
				other := build("d", "degrade", 0) // another Traefik, as it were
				before := map[*site]answer{}
				for _, s := range []*site{degrade, pass, reject} {
					before[s] = s.do(post("/", "before"))
					s.want(before[s], 201, "first")
				}

				f.begin(g)
				during := degrade.do(post("/", "during"))
				degrade.want(during, 201, "first;degraded")
				degrade.wantReplayAs(during, degrade.do(post("/", "during")), "replayed;degraded")
				degrade.wantReplayAs(before[degrade], degrade.do(post("/", "before")), "replayed;degraded")
				pass.want(pass.do(post("/", "during")), 201, "first;degraded")
				pass.want(pass.do(post("/", "during")), 201, "first;degraded")
				for range 3 {
					reject.wantProblem(reject.do(post("/", "during")), 503, "store-unavailable", "unavailable;degraded")
				}
				if f.reads {
					pass.wantReplay(before[pass], pass.do(post("/", "before")))
					reject.wantReplay(before[reject], reject.do(post("/", "before")))
				} else {
					pass.want(pass.do(post("/", "before")), 201, "first;degraded")
					reject.wantProblem(reject.do(post("/", "before")), 503, "store-unavailable", "unavailable;degraded")
				}
				g.logged(degrade, f.log, f.cause)
				for _, s := range []*site{degrade, reject} {
					figures := s.counted(func(f figures) bool { return !f.Store.Healthy })
					if figures.Store.Error == "" {
						t.Error("the statistics do not say what is wrong")
					}
				}

				f.end(g)
				reject.awaitRedis()
				g.logged(degrade, "Redis is back", "")
				g.logged(degrade, "answers of the outage were written to Redis", "written=1 held=0 dropped=0")
				other.wantReplay(during, other.do(post("/", "during")))
				degrade.wantReplay(during, degrade.do(post("/", "during")))
				for _, s := range []*site{degrade, pass, reject} {
					s.wantReplay(before[s], s.do(post("/", "before")))
				}
				reject.want(reject.do(post("/", "during")), 201, "first")
				degrade.counted(func(f figures) bool { return f.Store.Healthy })
				want := map[string]int{"before": 3, "during": 1 + 2 + 1}
				if !f.reads {
					want["before"]++ // passed
				}
				b.mu.Lock()
				defer b.mu.Unlock()
				for key, calls := range want {
					if b.byKey[key] != calls {
						t.Errorf("the backend got %s %d times, want %d", key, b.byKey[key], calls)
					}
				}
			})
		})
	}
}

// logged waits until the log says msg of this Redis, and checks that it says so once, with cause.
func (g *ground) logged(s *site, msg, cause string) {
	g.t.Helper()
	said := []string{}
	for len(said) == 0 {
		for line := range strings.Lines(s.Logs()) {
			if strings.Contains(line, msg) && strings.Contains(line, g.proxy.Listen) {
				said = append(said, line)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	if len(said) != 1 || !strings.Contains(said[0], cause) {
		g.t.Errorf("the log says %q, want %q once, with %q", said, msg, cause)
	}
}

// TestAnOutageCostsOneTimeOut counts what is sent to a Redis that does not answer: after the first request nothing but
// probes, each of which waits as long as a request would.
func TestAnOutageCostsOneTimeOut(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		f := newFront(t, server.Addr)
		build := func(mode string) *site {
			return serve(t, host, created, hosts.Settings{"statusHeader": "Decision", "onStoreError": mode,
				"redis": map[string]any{"endpoints": f.addr, "readTimeout": "1s"}})
		}
		degrade, reject := build("degrade"), build("reject")
		degrade.do(post("/", "warm"))
		reject.do(post("/", "warm"))
		f.swallow.Store(true)
		degrade.want(degrade.do(post("/", "notice")), 201, "first;degraded")
		sent, goroutines := f.commands.Load(), runtime.NumGoroutine()
		for i := range 200 {
			degrade.want(degrade.do(post("/", fmt.Sprint(i))), 201, "first;degraded")
			reject.wantProblem(reject.do(post("/", fmt.Sprint(i))), 503, "store-unavailable", "unavailable;degraded")
		}
		if n := f.commands.Load() - sent; n > 100 {
			t.Errorf("400 requests sent %d times to a Redis that does not answer", n)
		}
		if n := runtime.NumGoroutine() - goroutines; n > 100 { // those of a Traefik are not here
			t.Errorf("400 requests left %d goroutines", n)
		}
		f.swallow.Store(false)
		reject.awaitRedis()
		degrade.want(degrade.do(post("/", "after")), 201, "first")
		for degrade.calls(202 + 1); redisKeys(server, "idem1D") < 203; { // an answer that is never written ends in the test's time-out
			time.Sleep(10 * time.Millisecond)
		}
	})
}

// redisKeys counts the records in server that begin with head.
func redisKeys(server *redistest.Server, head string) int {
	n, _ := strconv.Atoi(server.Do("EVAL", `
local n = 0
for _, key in ipairs(redis.call('KEYS', '*:req:*')) do
  if string.find(redis.call('GET', key), ARGV[1], 1, true) == 1 then n = n + 1 end
end
return n`, "0", head))
	return n
}

// TestARequestThatBeganInAnOutageIsClaimedWhenItEnds: Redis is back while the request runs, and another Traefik learns
// that it does.
func TestARequestThatBeganInAnOutageIsClaimedWhenItEnds(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		arrived, proceed := make(chan struct{}, 5), make(chan struct{})
		b := newBackend(t, gated(arrived, proceed))
		one, other := twoOn(t, host, server.Addr, hosts.Settings{"lease": "3s", "inFlight": "reject"}, map[string]any{"dialTimeout": "2s", "readTimeout": "2s", "writeTimeout": "2s"}, b)
		server.Kill()
		first := make(chan answer, 1)
		go func() { first <- one.send(post("/", "k")) }()
		<-arrived
		server.Restart()
		for redisKeys(server, "idem1R") == 0 { // a claim that never comes ends in the test's time-out
			time.Sleep(10 * time.Millisecond)
		}
		a := other.do(post("/", "k"))
		if a.status != 409 {
			t.Errorf("a duplicate elsewhere got %d %q while the request runs", a.status, a.header.Get("Decision"))
		}
		close(proceed)
		other.wantReplay(<-first, other.unless409(post("/", "k")))
		other.calls(1)
	})
}

// TestAClaimWhoseReplyWasLostIsFinishedInRedis: the request runs from memory, and Redis has its claim.
func TestAClaimWhoseReplyWasLostIsFinishedInRedis(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		f := newFront(t, server.Addr)
		retryable := false
		b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
			if retryable {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			created(w, r)
		})
		settings := hosts.Settings{"lease": "1h", "inFlight": "reject"}
		one, _ := twoOn(t, host, f.addr, settings, map[string]any{"readTimeout": "1s", "keyPrefix": "lost"}, b)
		_, other := twoOn(t, host, server.Addr, settings, map[string]any{"keyPrefix": "lost"}, b) // it notices nothing
		lost := func(key string) answer {
			one.awaitRedis()
			f.mute.Store(true)
			a := one.do(post("/", key))
			n := redisKeys(server, "idem1R")
			f.mute.Store(false)
			if n != 1 {
				t.Fatalf("%d claims in Redis, want the one whose reply was lost", n)
			}
			other.unless409(post("/", key))
			return a
		}
		first := lost("k")
		one.want(first, 201, "first;degraded")
		other.wantReplay(first, other.do(post("/", "k")))
		if b.byKey["k"] != 1 {
			t.Errorf("the backend was called %d times, want once", b.byKey["k"])
		}
		retryable = true
		one.want(lost("freed"), 503, "released;degraded")
	})
}

// TestAnAnswerThatRedisHasNoRoomFor is known to have been given: its claim stays until there is room.
func TestAnAnswerThatRedisHasNoRoomFor(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		full := func(w http.ResponseWriter, r *http.Request) {
			server.Do("CONFIG", "SET", "maxmemory", "1")
			created(w, r)
		}
		b := newBackend(t, full)
		one, other := twoOn(t, host, server.Addr, hosts.Settings{"lease": "1500ms", "inFlight": "reject"}, map[string]any{"dialTimeout": "1s", "readTimeout": "1s", "writeTimeout": "1s"}, b)
		first := one.do(post("/", "k"))
		one.want(first, 201, "first")
		server.Pass(2 * time.Second) // the lease would be over, and nobody renews it
		other.wantProblem(other.do(post("/", "k")), 409, "in-flight", "conflict")
		one.wantReplayAs(first, one.do(post("/", "k")), "replayed;degraded")
		server.Do("CONFIG", "SET", "maxmemory", "0")
		other.wantReplay(first, other.unless409(post("/", "k")))
		other.calls(1)
	})
}

// unless409 sends c until Redis has been told how the request with its key ended. Otherwise the test's time-out ends it.
func (s *site) unless409(c call) answer {
	s.t.Helper()
	a := s.do(c)
	for a.status == http.StatusConflict {
		time.Sleep(10 * time.Millisecond)
		a = s.do(c)
	}
	return a
}

// TestOneOfTwoFindsRedisOutOfReach has two requests with one key ask Redis at the same time. One gets no reply and runs
// from memory; then the other gets the key from Redis.
func TestOneOfTwoFindsRedisOutOfReach(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		asked, reply := make(chan struct{}), make(chan struct{})
		var connections atomic.Int64
		addr := listen(t, func(conn net.Conn) {
			if connections.Add(1) > 1 {
				return
			}
			_, _ = conn.Read(make([]byte, 64<<10))
			close(asked)
			<-reply
			fmt.Fprint(conn, "$-1\r\n")
			_, _ = io.Copy(io.Discard, conn)
		})
		arrived, proceed := make(chan struct{}, 5), make(chan struct{})
		s := serve(t, host, gated(arrived, proceed), hosts.Settings{"statusHeader": "Decision", "lease": "2m", "stats": map[string]any{"path": ""},
			"redis": map[string]any{"endpoints": addr, "readTimeout": "1m"}})
		answers := make(chan answer, 2)
		send := func() { answers <- s.send(post("/", "k")) }
		go send()
		<-asked
		go send()
		<-arrived
		close(reply)
		go func() {
			for a := range arrived {
				t.Error("both reached the backend", a)
			}
		}()
		time.Sleep(200 * time.Millisecond) // the other gets the key now; if it does not, the test sees less
		close(proceed)
		first, again := <-answers, <-answers
		close(arrived)
		if !bytes.Equal(first.body, again.body) || first.status != 201 || again.status != 201 {
			t.Errorf("answers %d %q and %d %q", first.status, first.body, again.status, again.body)
		}
		s.calls(1)
	})
}

// TestAFloodOfDuplicatesIsBounded: of 600 duplicates of one slow request 512 wait, and the others are told at once.
func TestAFloodOfDuplicatesIsBounded(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		arrived, proceed := make(chan struct{}), make(chan struct{})
		s := e.serve(t, hosts.Settings{"inFlightTimeout": "10m"}, gated(arrived, proceed))
		first := make(chan answer, 1)
		go func() { first <- s.send(post("/", "k")) }()
		<-arrived
		answers := make(chan answer, 600)
		for range 600 {
			go func() { answers <- s.send(post("/", "k")) }()
		}
		for range 600 - 512 { // with another bound the test's time-out ends this, or the backend is asked twice below
			s.wantProblem(<-answers, 409, "in-flight", "conflict")
		}
		close(proceed)
		a := <-first
		for range 512 {
			s.wantReplay(a, <-answers)
		}
		s.calls(1)
		s.awaitLog("too many duplicates wait")
	})
}
