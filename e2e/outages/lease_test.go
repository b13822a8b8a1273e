package outages

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
	"github.com/example/traefik-idem/e2e/internal/rig"
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
		fmt.Fprintf(w, "payment %d", rig.Unique.Add(1))
	}
}

// byName is another name of the server at addr: under two names, two sites take it for two, and have no memory in common, as two
// Traefiks have none.
func byName(addr string) string {
	return strings.Replace(addr, "127.0.0.1", "localhost", 1)
}

// twoTraefiks serves two sites that see the same keys in server and share no memory. The first notices within three seconds that
// Redis does not answer; a busy machine does not look like that to the other.
func twoTraefiks(t *testing.T, host hosts.Host, server *redistest.Server, more hosts.Settings, b *rig.Backend) (one, other *rig.Site) {
	t.Helper()
	prefix := fmt.Sprintf("t%d", rig.PrefixCount.Add(1))
	build := func(addr, timeout string) *rig.Site {
		settings := hosts.Settings{"statusHeader": "Decision", "scope": "Authorization", "inFlight": "reject",
			"redis": map[string]any{"endpoints": addr, "keyPrefix": prefix, "dialTimeout": timeout, "readTimeout": timeout, "writeTimeout": timeout}}
		for key, value := range more {
			settings[key] = value
		}
		return rig.SiteOf(t, host.Serve(t, b.URL, settings), b)
	}
	one = build(server.Addr, "3s")
	more["lease"] = "10m" // it only asks
	return one, build(byName(server.Addr), "20s")
}

// TestALeaseThatRedisLostIsClaimedAgain: whatever became of it, no other Traefik runs the request a second time.
func TestALeaseThatRedisLostIsClaimedAgain(t *testing.T) {
	losses := map[string]func(server *redistest.Server){
		"paused for longer than the lease": func(server *redistest.Server) {
			server.Pause()
			time.Sleep(7 * time.Second)
			server.Resume()
		},
		"restarted empty": func(server *redistest.Server) { server.Restart() },
		"flushed":         func(server *redistest.Server) { server.Do("FLUSHALL") },
	}
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for loss, lose := range losses {
			for _, mode := range []string{"reject", "degrade"} {
				t.Run(loss+"/"+mode, func(t *testing.T) {
					t.Parallel()
					server := redistest.Start(t)
					arrived, proceed := make(chan struct{}, 1), make(chan struct{})
					b := rig.NewBackend(t, slowFirst(arrived, proceed))
					one, other := twoTraefiks(t, host, server, hosts.Settings{"lease": "5s", "onStoreError": mode}, b)
					first := make(chan rig.Answer, 1)
					go func() { first <- one.Send(rig.Post("/", "k")) }()
					<-arrived
					lose(server)
					rig.Until(t, "the lease is claimed again", rig.Never, func() bool { return redisKeys(server, "idem1R") == 1 })
					server.Pass(6 * time.Second) // and renewed
					other.AwaitStore()
					other.AwaitRedis()
					other.WantProblem(other.Do(rig.Post("/", "k")), 409, "in-flight", "conflict")
					close(proceed)
					a := <-first
					one.Want(a, 201, "first")
					other.WantReplay(a, unless409(other, rig.Post("/", "k")))
					one.WantReplay(a, one.Do(rig.Post("/", "k")))
					if b.ByKey["k"] != 1 {
						t.Errorf("the backend was called %d times, want once", b.ByKey["k"])
					}
				})
			}
		}
	})
}

// TestLeasesAreRenewedAsSoonAsRedisIsBack has one that is not due for a long time, and a Redis that comes back empty.
func TestLeasesAreRenewedAsSoonAsRedisIsBack(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for _, mode := range []string{"reject", "degrade", "pass"} {
			t.Run(mode, func(t *testing.T) {
				t.Parallel()
				server := redistest.Start(t)
				arrived, proceed := make(chan struct{}, 1), make(chan struct{})
				b := rig.NewBackend(t, slowFirst(arrived, proceed))
				one, other := twoTraefiks(t, host, server, hosts.Settings{"lease": "10m", "onStoreError": mode}, b)
				first := make(chan rig.Answer, 1)
				go func() { first <- one.Send(rig.Post("/", "k")) }()
				<-arrived
				time.Sleep(500 * time.Millisecond) // it is looked after by now; if it is not, the test waits for nothing
				server.Kill()
				one.Do(rig.Post("/", "notice"))
				server.Restart()
				rig.Until(t, "the lease is claimed again", rig.Never, func() bool { return redisKeys(server, "idem1R") == 1 })
				other.AwaitStore()
				other.AwaitRedis()
				other.WantProblem(other.Do(rig.Post("/", "k")), 409, "in-flight", "conflict")
				close(proceed)
				other.WantReplay(<-first, unless409(other, rig.Post("/", "k")))
			})
		}
	})
}

// TestARequestThatEndsWithItsLeaseGoneIsKept: Redis has lost the claim, and has not been told of it when the request ends.
func TestARequestThatEndsWithItsLeaseGoneIsKept(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for _, mode := range []string{"reject", "degrade"} {
			server := redistest.Start(t)
			arrived, proceed := make(chan struct{}, 1), make(chan struct{})
			b := rig.NewBackend(t, slowFirst(arrived, proceed))
			one, other := twoTraefiks(t, host, server, hosts.Settings{"lease": "10m", "onStoreError": mode}, b)
			first := make(chan rig.Answer, 1)
			go func() { first <- one.Send(rig.Post("/", "k")) }()
			<-arrived
			server.Do("FLUSHALL")
			close(proceed)
			a := <-first
			one.Want(a, 201, "first")
			other.WantReplay(a, other.Do(rig.Post("/", "k")))
			one.WantReplay(a, one.Do(rig.Post("/", "k")))
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
	l.addr = relay(t, target, func(data []byte) {
		step := bytes.Contains(data, []byte("EVAL")) && bytes.Contains(data, []byte(":req:"))
		if step && l.hold.CompareAndSwap(true, false) {
			l.held <- struct{}{}
			<-l.let
		}
	}, func([]byte) {})
	return l
}

// relay stands between the plugin and target, and shows what comes, before it goes on, to request or to reply.
func relay(t *testing.T, target string, request, reply func(data []byte)) (addr string) {
	t.Helper()
	return rig.Listen(t, func(conn net.Conn) {
		server, err := net.Dial("tcp", target)
		if err != nil {
			return
		}
		go passOn(conn, server, reply)
		passOn(server, conn, request)
	})
}

func passOn(to, from net.Conn, show func(data []byte)) {
	defer to.Close()
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		show(buffer[:n])
		_, _ = to.Write(buffer[:n])
	}
}

// TestARenewalThatComesLate reaches Redis when the request has ended: a key that was released stays free, and an answer
// keeps its time to live.
func TestARenewalThatComesLate(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for _, status := range []int{http.StatusServiceUnavailable, http.StatusCreated} {
			t.Run(strconv.Itoa(status), func(t *testing.T) {
				t.Parallel()
				server := redistest.Start(t)
				l := newLatecomer(t, server.Addr)
				arrived, proceed := make(chan struct{}), make(chan struct{})
				s := rig.Serve(t, host, func(w http.ResponseWriter, _ *http.Request) {
					w.WriteHeader(status)
					_ = http.NewResponseController(w).Flush()
					arrived <- struct{}{}
					<-proceed
				}, hosts.Settings{"statusHeader": "Decision", "lease": "1m", "ttl": "1h", "maxTTL": "1h",
					"redis": map[string]any{"endpoints": l.addr, "dialTimeout": "20s", "readTimeout": "20s", "writeTimeout": "20s"}})
				first := make(chan rig.Answer, 1)
				go func() { first <- s.Send(rig.Post("/", "k")) }()
				<-arrived
				l.hold.Store(true)
				<-l.held
				close(proceed)
				if a := <-first; a.Status != status {
					t.Fatalf("%d %v, want %d", a.Status, a.Err, status)
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
				rig.Until(t, "the key is free", 30*time.Second, func() bool { return redisKeys(server, "idem1R") == 0 })
			})
		}
	})
}

// TestAClaimThatTookLongIsRenewedBeforeTheRun: the reply to a claim comes late, when much of its lease is over.
func TestAClaimThatTookLongIsRenewedBeforeTheRun(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		t.Parallel()
		server := redistest.Start(t)
		var slow atomic.Bool
		addr := relay(t, server.Addr, func([]byte) {}, func(data []byte) {
			if bytes.HasPrefix(data, []byte("$-1")) && slow.CompareAndSwap(true, false) {
				time.Sleep(5 * time.Second)
			}
		})
		left := make(chan int, 2)
		s := rig.Serve(t, host, func(w http.ResponseWriter, r *http.Request) {
			if keys := strings.Fields(server.Do("KEYS", "*:req:*")); r.URL.Path == "/slow" && len(keys) == 1 {
				n, _ := strconv.Atoi(server.Do("PTTL", keys[0]))
				left <- n
			}
			rig.Created(w, r)
		}, hosts.Settings{"statusHeader": "Decision", "lease": "12s", "retryableStatuses": "201",
			"redis": map[string]any{"endpoints": addr, "dialTimeout": "8s", "readTimeout": "8s", "writeTimeout": "8s"}})
		s.Do(rig.Post("/warm", "warm"))
		slow.Store(true)
		s.Want(s.Do(rig.Post("/slow", "k")), 201, "released")
		if n := <-left; n < 8000 {
			t.Errorf("the request runs with %d ms left of a lease of 12 s", n)
		}
	})
}

// TestAWaiterThatRunsKeepsItsClaim: two with one key get no reply from Redis. The one that waits runs after the other, while Redis
// is still to be told that its first claim is given back.
func TestAWaiterThatRunsKeepsItsClaim(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		t.Parallel()
		server := redistest.Start(t)
		arrived, proceed := make(chan struct{}, 5), make(chan int)
		var calls atomic.Int64
		b := rig.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-Request-ID") != "k" {
				return
			}
			arrived <- struct{}{}
			if calls.Add(1) > 1 { // no time-out for the header of an answer ends it before
				w.WriteHeader(http.StatusCreated)
				_ = http.NewResponseController(w).Flush()
				<-proceed
				return
			}
			w.WriteHeader(<-proceed)
		})
		one, other := twoTraefiks(t, host, server, hosts.Settings{"lease": "10m", "inFlight": "wait", "inFlightTimeout": "8s"}, b)
		one.Do(rig.Post("/", "warm"))
		server.Pause()
		answers := make(chan rig.Answer, 2)
		for range 2 {
			go func() { answers <- one.Send(rig.Post("/", "k")) }()
		}
		<-arrived
		time.Sleep(500 * time.Millisecond) // the other one waits by now; if it does not, the test sees less
		proceed <- http.StatusServiceUnavailable
		one.Want(<-answers, 503, "released;degraded")
		<-arrived
		server.Resume()
		rig.Until(t, "the claim is in Redis", rig.Never, func() bool { return redisKeys(server, "idem1R") == 1 })
		one.AwaitRedis()
		time.Sleep(time.Second) // Redis has been told of all by now; if it has not, the test sees less
		other.AwaitRedis()
		a := make(chan rig.Answer, 1)
		go func() { a <- other.Send(rig.Post("/", "k")) }()
		select {
		case <-arrived:
			t.Error("a duplicate elsewhere runs at the same time")
			proceed <- http.StatusCreated
		case again := <-a:
			other.WantProblem(again, 409, "in-flight", "conflict")
		}
		proceed <- http.StatusCreated
		one.Want(<-answers, 201, "first;degraded")
	})
}
