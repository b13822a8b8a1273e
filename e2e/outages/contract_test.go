package outages

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// twoOn serves two sites that see the same keys in the Redis at addr and share no memory, as two Traefiks do: the second, without
// a local cache, knows it by another name.
func twoOn(t *testing.T, host hosts.Host, addr string, more hosts.Settings, redis map[string]any, b *rig.Backend) (first, second *rig.Site) {
	t.Helper()
	common := map[string]any{"endpoints": addr, "keyPrefix": fmt.Sprintf("t%d", rig.PrefixCount.Add(1)), "dialTimeout": "20s", "readTimeout": "20s", "writeTimeout": "20s"}
	for key, value := range redis {
		common[key] = value
	}
	build := func(addr string, cache int) *rig.Site {
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
		return rig.SiteOf(t, host.Serve(t, b.URL, settings), b)
	}
	return build(addr, 1<<20), build(byName(addr), 0)
}

// "one atomic step", "kept for ttl and replayed". Two requests with one key find Redis out of reach. One
// runs from memory and frees the key; Redis is back, and the other claims the key there. The mark of the outage that
// its lease still has keeps its answer from Redis.
func TestAClaimAfterAnOutageIsFinishedInRedis(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		t.Parallel() // it waits for time-outs
		server := redistest.Start(t)
		f := rig.NewFront(t, server.Addr)
		arrived, proceed := make(chan struct{}, 5), make(chan struct{})
		calls := atomic.Int64{}
		calls.Store(1)
		b := rig.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
			if calls.Add(1) == 1 {
				arrived <- struct{}{}
				<-proceed
				http.Error(w, "come again", 503)
				return
			}
			rig.Created(w, r)
		})
		one, _ := twoOn(t, host, f.Addr, hosts.Settings{"inFlight": "wait"}, map[string]any{"readTimeout": "4s"}, b)
		one.Do(rig.Post("/", "warm"))
		calls.Store(0)
		f.Swallow.Store(true)
		answers := make(chan rig.Answer, 2)
		for range 2 {
			go func() { answers <- one.Send(rig.Post("/", "k")) }()
		}
		<-arrived
		time.Sleep(1500 * time.Millisecond) // by now the other has found Redis out of reach as well
		f.Swallow.Store(false)
		one.AwaitRedis()
		close(proceed)
		a, c := <-answers, <-answers
		if a.Status == 503 {
			a, c = c, a
		}
		if a.Status != 201 || c.Status != 503 {
			t.Fatalf("answers %d and %d, want 201 and 503", a.Status, c.Status)
		}
		if a.Header.Get("Decision") != "first" {
			t.Errorf("decision %q after Redis came back", a.Header.Get("Decision"))
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

// The same, with a request that outlives what it had of its lease: the renewal learns that the lease is lost, and
// gives up the lease in memory as well, though the request still runs in this very process.
func TestARunningRequestIsKnownHereAfterRedisRestartedEmpty(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		e, server := rig.Restartable(t, host)
		arrived, proceed := make(chan struct{}, 1), make(chan struct{})
		s := rig.Serve(t, host, slowFirst(arrived, proceed), rig.WithTimeouts("8s", e.Settings(hosts.Settings{"lease": "12s", "inFlight": "reject"})))
		first := make(chan rig.Answer)
		go func() { first <- s.Send(rig.Post("/", "k")) }()
		<-arrived
		server.Restart()
		for redisKeys(server, "idem1R") == 0 { // a renewal that never comes ends in the test's time-out
			time.Sleep(10 * time.Millisecond)
		}
		s.WantProblem(s.Do(rig.Post("/", "k")), 409, "in-flight", "conflict")
		close(proceed)
		<-first
		s.Calls(1)
	})
}

// The promise again: a duplicate that waits knows that the first request runs. An outage of Redis meanwhile is no
// reason to send the payment a second time.
func TestAWaiterDoesNotRunBecauseRedisWentAway(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for _, mode := range []string{"degrade", "pass"} {
			server := redistest.Start(t)
			arrived, proceed := make(chan struct{}, 5), make(chan struct{})
			b := rig.NewBackend(t, rig.Gated(arrived, proceed))
			f := rig.NewFront(t, server.Addr)
			owner, waiter := twoOn(t, host, f.Addr, hosts.Settings{"onStoreError": mode}, nil, b)
			first, again := make(chan rig.Answer, 1), make(chan rig.Answer, 1)
			go func() { first <- owner.Send(rig.Post("/", "k")) }()
			<-arrived
			before := f.Commands.Load()
			go func() { again <- waiter.Send(rig.Post("/", "k")) }()
			rig.Until(t, "the duplicate polls", rig.Never, func() bool { return f.Commands.Load() > before+3 })
			server.Kill()
			select {
			case <-arrived:
				t.Errorf("%s: the waiting duplicate reached the backend while the first request was running", mode)
			case a := <-again:
				if a.Status != 409 {
					t.Errorf("%s: the waiting duplicate got %d", mode, a.Status)
				}
			case <-time.After(1500 * time.Millisecond): // it goes on waiting: right as well
			}
			close(proceed)
			<-first
			if n := b.Calls.Load(); n != 1 {
				t.Errorf("%s: the backend was called %d times", mode, n)
			}
		}
	})
}
