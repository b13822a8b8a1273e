package e2e

// Leases of requests that run while Redis loses them, or is out of reach.

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
)

// slowFirst answers 201, the first request with the key k slowly: it begins, tells so, and ends when there is something to
// receive. No time-out for the header of an answer ends it before.
func slowFirst(arrived chan<- struct{}, proceed <-chan struct{}) http.HandlerFunc {
	var calls atomic.Int64
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusCreated)
		if r.Header.Get("X-Request-ID") == "k" && calls.Add(1) == 1 {
			_ = http.NewResponseController(w).Flush()
			arrived <- struct{}{}
			<-proceed
		}
		fmt.Fprintf(w, "payment %d", unique.Add(1))
	}
}

// byName is another name of the server at addr: under two names, two sites take it for two, and have no memory in common, as two
// Traefiks have none.
func byName(addr string) string {
	return strings.Replace(addr, "127.0.0.1", "localhost", 1)
}

// twoTraefiks serves two sites that see the same keys in server and share no memory. The first notices within a second that
// Redis does not answer; a busy machine does not look like that to the other.
func twoTraefiks(t *testing.T, host hosts.Host, server *redistest.Server, more hosts.Settings, b *backend) (one, other *site) {
	t.Helper()
	prefix := fmt.Sprintf("t%d", prefixCount.Add(1))
	build := func(addr, timeout string) *site {
		settings := hosts.Settings{"statusHeader": "Decision", "scope": "Authorization", "inFlight": "reject",
			"redis": map[string]any{"endpoints": addr, "keyPrefix": prefix, "dialTimeout": timeout, "readTimeout": timeout, "writeTimeout": timeout}}
		for key, value := range more {
			settings[key] = value
		}
		return siteOf(t, host.Serve(t, b.URL, settings), b)
	}
	one = build(server.Addr, "1s")
	more["lease"] = "10m" // it only asks
	return one, build(byName(server.Addr), "20s")
}

// TestALeaseThatRedisLostIsClaimedAgain: whatever became of it, no other Traefik runs the request a second time.
func TestALeaseThatRedisLostIsClaimedAgain(t *testing.T) {
	losses := map[string]func(server *redistest.Server){
		"paused for longer than the lease": func(server *redistest.Server) {
			server.Pause()
			time.Sleep(5 * time.Second)
			server.Resume()
		},
		"restarted empty": func(server *redistest.Server) { server.Restart() },
		"flushed":         func(server *redistest.Server) { server.Do("FLUSHALL") },
	}
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		for loss, lose := range losses {
			for _, mode := range []string{"reject", "degrade"} {
				t.Run(loss+"/"+mode, func(t *testing.T) {
					t.Parallel()
					server := redistest.Start(t)
					arrived, proceed := make(chan struct{}, 1), make(chan struct{})
					b := newBackend(t, slowFirst(arrived, proceed))
					one, other := twoTraefiks(t, host, server, hosts.Settings{"lease": "3s", "onStoreError": mode}, b)
					first := make(chan answer, 1)
					go func() { first <- one.send(post("/", "k")) }()
					<-arrived
					lose(server)
					until(t, "the lease is claimed again", 30*time.Second, func() bool { return redisKeys(server, "idem1R") == 1 })
					server.Pass(4 * time.Second) // and renewed
					other.awaitStore()
					other.awaitRedis()
					other.wantProblem(other.do(post("/", "k")), 409, "in-flight", "conflict")
					close(proceed)
					a := <-first
					one.want(a, 201, "first")
					other.wantReplay(a, other.unless409(post("/", "k")))
					one.wantReplay(a, one.do(post("/", "k")))
					if b.byKey["k"] != 1 {
						t.Errorf("the backend was called %d times, want once", b.byKey["k"])
					}
				})
			}
		}
	})
}

// TestLeasesAreRenewedAsSoonAsRedisIsBack has one that is not due for a long time, and a Redis that comes back empty.
func TestLeasesAreRenewedAsSoonAsRedisIsBack(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		for _, mode := range []string{"reject", "degrade", "pass"} {
			t.Run(mode, func(t *testing.T) {
				t.Parallel()
				server := redistest.Start(t)
				arrived, proceed := make(chan struct{}, 1), make(chan struct{})
				b := newBackend(t, slowFirst(arrived, proceed))
				one, other := twoTraefiks(t, host, server, hosts.Settings{"lease": "10m", "onStoreError": mode}, b)
				first := make(chan answer, 1)
				go func() { first <- one.send(post("/", "k")) }()
				<-arrived
				time.Sleep(500 * time.Millisecond) // it is looked after by now; if it is not, the test waits for nothing
				server.Kill()
				one.do(post("/", "notice"))
				server.Restart()
				until(t, "the lease is claimed again", 30*time.Second, func() bool { return redisKeys(server, "idem1R") == 1 })
				other.awaitStore()
				other.awaitRedis()
				other.wantProblem(other.do(post("/", "k")), 409, "in-flight", "conflict")
				close(proceed)
				other.wantReplay(<-first, other.unless409(post("/", "k")))
			})
		}
	})
}

// TestARequestThatEndsWithItsLeaseGoneIsKept: Redis has lost the claim, and has not been told of it when the request ends.
func TestARequestThatEndsWithItsLeaseGoneIsKept(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		for _, mode := range []string{"reject", "degrade"} {
			server := redistest.Start(t)
			arrived, proceed := make(chan struct{}, 1), make(chan struct{})
			b := newBackend(t, slowFirst(arrived, proceed))
			one, other := twoTraefiks(t, host, server, hosts.Settings{"lease": "10m", "onStoreError": mode}, b)
			first := make(chan answer, 1)
			go func() { first <- one.send(post("/", "k")) }()
			<-arrived
			server.Do("FLUSHALL")
			close(proceed)
			a := <-first
			one.want(a, 201, "first")
			other.wantReplay(a, other.do(post("/", "k")))
			one.wantReplay(a, one.do(post("/", "k")))
		}
	})
}

// latecomer stands between the plugin and Redis, and holds back a step.
type latecomer struct {
	addr string
	hold atomic.Bool   // the next step that comes is held
	held chan struct{} // it is there
	let  chan struct{} // closed: it goes on
}

func newLatecomer(t *testing.T, target string) *latecomer {
	t.Helper()
	l := &latecomer{held: make(chan struct{}, 1), let: make(chan struct{})}
	l.addr = listen(t, func(conn net.Conn) {
		server, err := net.Dial("tcp", target)
		if err != nil {
			return
		}
		defer server.Close()
		go func() {
			_, _ = io.Copy(conn, server)
			_ = conn.Close()
		}()
		buffer := make([]byte, 64<<10)
		for {
			n, err := conn.Read(buffer)
			if err != nil {
				return
			}
			step := bytes.Contains(buffer[:n], []byte("EVAL")) && bytes.Contains(buffer[:n], []byte(":req:"))
			if step && l.hold.CompareAndSwap(true, false) {
				l.held <- struct{}{}
				<-l.let
			}
			_, _ = server.Write(buffer[:n])
		}
	})
	return l
}

// TestARenewalThatComesLate reaches Redis when the request has ended: a key that was released stays free, and an answer
// keeps its time to live.
func TestARenewalThatComesLate(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		for _, status := range []int{http.StatusServiceUnavailable, http.StatusCreated} {
			t.Run(strconv.Itoa(status), func(t *testing.T) {
				t.Parallel()
				server := redistest.Start(t)
				l := newLatecomer(t, server.Addr)
				arrived, proceed := make(chan struct{}), make(chan struct{})
				s := serve(t, host, func(w http.ResponseWriter, _ *http.Request) {
					w.WriteHeader(status)
					_ = http.NewResponseController(w).Flush()
					arrived <- struct{}{}
					<-proceed
				}, hosts.Settings{"statusHeader": "Decision", "lease": "9s", "ttl": "1h", "maxTTL": "1h",
					"redis": map[string]any{"endpoints": l.addr, "dialTimeout": "6s", "readTimeout": "6s", "writeTimeout": "6s"}})
				first := make(chan answer, 1)
				go func() { first <- s.send(post("/", "k")) }()
				<-arrived
				l.hold.Store(true)
				<-l.held
				close(proceed)
				if a := <-first; a.status != status {
					t.Fatalf("%d %v, want %d", a.status, a.err, status)
				}
				close(l.let)
				if status == http.StatusCreated {
					time.Sleep(time.Second) // the renewal has come by now; if it has not, the test sees less
					key := strings.Fields(server.Do("KEYS", "*:req:*"))
					if len(key) != 1 || server.Do("PTTL", key[0]) < "3000000" {
						t.Errorf("Redis has %q, for %s ms, want an answer for an hour", key, server.Do("PTTL", key[0]))
					}
					return
				}
				begin := time.Now()
				for redisKeys(server, "idem1R") == 0 && time.Since(begin) < time.Second { // it is taken, or free again already
					time.Sleep(time.Millisecond)
				}
				until(t, "the key is free", 6*time.Second, func() bool { return redisKeys(server, "idem1R") == 0 })
			})
		}
	})
}

// TestAClaimThatTookLongIsRenewedBeforeTheRun: the reply to a claim comes late, when much of its lease is over.
func TestAClaimThatTookLongIsRenewedBeforeTheRun(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		t.Parallel()
		server := redistest.Start(t)
		var slow atomic.Bool
		addr := listen(t, func(conn net.Conn) {
			to, err := net.Dial("tcp", server.Addr)
			if err != nil {
				return
			}
			defer to.Close()
			go func() {
				_, _ = io.Copy(to, conn)
				_ = to.Close()
			}()
			buffer := make([]byte, 64<<10)
			for {
				n, err := to.Read(buffer)
				if err != nil {
					return
				}
				if bytes.HasPrefix(buffer[:n], []byte("$-1")) && slow.CompareAndSwap(true, false) {
					time.Sleep(5 * time.Second)
				}
				_, _ = conn.Write(buffer[:n])
			}
		})
		left := make(chan int, 2)
		s := serve(t, host, func(w http.ResponseWriter, r *http.Request) {
			if keys := strings.Fields(server.Do("KEYS", "*:req:*")); r.URL.Path == "/slow" && len(keys) == 1 {
				n, _ := strconv.Atoi(server.Do("PTTL", keys[0]))
				left <- n
			}
			created(w, r)
		}, hosts.Settings{"statusHeader": "Decision", "lease": "12s", "retryableStatuses": "201",
			"redis": map[string]any{"endpoints": addr, "dialTimeout": "8s", "readTimeout": "8s", "writeTimeout": "8s"}})
		s.do(post("/warm", "warm"))
		slow.Store(true)
		s.want(s.do(post("/slow", "k")), 201, "released")
		if n := <-left; n < 8000 {
			t.Errorf("the request runs with %d ms left of a lease of 12 s", n)
		}
	})
}
