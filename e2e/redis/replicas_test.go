package redis

// What redis.waitReplicas does while replicas are missing.

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// onPair serves a site whose claims wait for a replica of the server at addr. Sites with different addresses share no
// memory, as two Traefiks do.
func onPair(t *testing.T, host hosts.Host, addr, prefix, onStoreError, readTimeout string, b *rig.Backend) *rig.Site {
	t.Helper()
	return rig.SiteOf(t, host.Serve(t, b.URL, hosts.Settings{"statusHeader": "Decision", "onStoreError": onStoreError, "localCacheBytes": 0, "scope": []any{"Authorization"}, "lease": "10m",
		"redis": patient(map[string]any{"endpoints": addr, "waitReplicas": "1", "readTimeout": readTimeout, "keyPrefix": prefix})}), b)
}

// TestADuplicateFindsItsKeyFree waits for a request at another Traefik, which frees the key while the replica is stopped, or
// Redis refuses to write. What the duplicate's next claim fails with is not to say that somebody else has the key.
func TestADuplicateFindsItsKeyFree(t *testing.T) {
	faults := map[string]struct {
		begin, end func(master, replica *redistest.Server)
		degraded   string // the decision with degrade
	}{
		"replica stopped": {
			func(_, replica *redistest.Server) { replica.Pause() },
			func(master, replica *redistest.Server) { replica.Resume(); master.AwaitReplicas(1) },
			"first",
		},
		"out of memory": {
			func(master, _ *redistest.Server) { master.Do("CONFIG", "SET", "maxmemory", "1") },
			func(master, _ *redistest.Server) { master.Do("CONFIG", "SET", "maxmemory", "0") },
			"first;degraded",
		},
	}
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for name, fault := range faults {
			for _, c := range []struct {
				onStoreError string
				status       int
				decision     string
				runs         int64
			}{
				{"reject", 503, "unavailable;degraded", 1},
				{"pass", 201, "first;degraded", 2},
				{"degrade", 201, fault.degraded, 2},
			} {
				t.Run(name+"/"+c.onStoreError, func(t *testing.T) {
					t.Parallel() // it waits for a replica that is stopped
					master, replica := pair(t)
					arrived, proceed := make(chan struct{}), make(chan struct{})
					var runs atomic.Int64
					b := rig.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
						if runs.Add(1) > 1 {
							rig.Created(w, r)
							return
						}
						close(arrived)
						<-proceed
						w.WriteHeader(http.StatusServiceUnavailable)
					})
					one := onPair(t, host, rig.NewFront(t, master.Addr).Addr, "p", c.onStoreError, "6s", b)
					other := onPair(t, host, master.Addr, "p", c.onStoreError, "6s", b)
					first, again := make(chan rig.Answer, 1), make(chan rig.Answer, 1)
					go func() { first <- one.Send(rig.Post("/", "k")) }()
					<-arrived
					rig.LogCommands(master)
					go func() { again <- other.Send(rig.Post("/", "k")) }()
					for rig.ScriptsForKeys(master) == 0 { // until it is told that the request runs
						time.Sleep(time.Millisecond)
					}
					fault.begin(master, replica)
					close(proceed)
					one.Want(<-first, 503, "released")
					other.Want(<-again, c.status, c.decision)
					if n := runs.Load(); n != c.runs {
						t.Errorf("%d runs, want %d", n, c.runs)
					}
					fault.end(master, replica)
					if c.onStoreError == "reject" {
						other.AwaitStore()
						other.WantRun("k") // nothing was left behind
					}
				})
			}
		}
	})
}

// waits counts the WAIT that server was sent.
func waits(server *redistest.Server) string {
	return rig.InfoField(server, "commandstats", "cmdstat_wait")
}

// blocked reports whether a client of server waits for replicas.
func blocked(server *redistest.Server) bool {
	return rig.InfoField(server, "clients", "blocked_clients") != "0"
}

// TestAClaimThatIsSentAgainWaitsAgain cuts the connections while claims wait for a replica that is stopped. Sent once more,
// over others, they find their own work; it is not at the replica for that. From Redis 7.2 on WAIT waits for what its own
// connection wrote, and for nothing else: what is wrong here is not to be seen before that.
func TestAClaimThatIsSentAgainWaitsAgain(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		t.Parallel() // as above
		master, replica := pair(t)
		w := rig.NewWeather(t, master.Addr)
		s := onPair(t, host, w.Proxy.Listen, "p", "reject", "6s", rig.NewBackend(t, rig.Created))
		s.WantRun("before")
		s.WantRun("before-too")
		replica.Pause()
		for cuts := 0; cuts < 5; time.Sleep(10 * time.Millisecond) {
			a := make(chan rig.Answer, 1)
			go func() { a <- s.Send(rig.Post("/", rig.UnusedKey())) }()
			for !blocked(master) && len(a) == 0 { // a new connection that is cut counts as an outage
				time.Sleep(time.Millisecond)
			}
			if len(a) == 0 {
				w.Cut()
				cuts++
			}
			s.WantProblem(<-a, 503, "store-unavailable", "unavailable;degraded")
		}
		s.Calls(2)
		replica.Resume()
		s.AwaitStore()
		s.WantRun("after")
	})
}

// TestOnlyClaimsWaitForReplicas has replays and renewals while the replica is stopped, and others' claims wait for it.
func TestOnlyClaimsWaitForReplicas(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		master, replica := pair(t)
		s := onPair(t, host, master.Addr, "p", "reject", "1m", rig.NewBackend(t, rig.Created))
		first := s.Do(rig.Post("/", "done"))
		s.Want(first, 201, "first")
		replica.Pause()
		before := waits(master)
		for range 20 {
			s.WantReplay(first, s.Do(rig.Post("/", "done")))
		}
		if now := waits(master); now != before {
			t.Errorf("replays have waited for replicas: %s, and then %s", before, now)
		}
		answers := make(chan rig.Answer, 8)
		for i := range 8 { // they are more than there are connections
			go func() { answers <- s.Send(rig.Post("/", fmt.Sprint(i))) }()
		}
		for !blocked(master) {
			time.Sleep(time.Millisecond)
		}
		for range 20 {
			s.WantReplay(first, s.Do(rig.Post("/", "done")))
		}
		if len(answers) > 0 {
			t.Errorf("a request ran without its replica: %+v", <-answers)
		}
		replica.Resume()
		for range 8 {
			s.Want(<-answers, 201, "first")
		}
	})
}

// TestClaimsAreGivenBackUnderLoad has a replica stopped, clients with new keys all the time, and clients that try their key
// again and again. What is given back does not wait behind what waits for replicas.
func TestClaimsAreGivenBackUnderLoad(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		const clients = 20
		master, replica := pair(t)
		load := func(s *rig.Site, key func(client, try int) string, each func(a rig.Answer)) (served *atomic.Int64, end func()) {
			served = &atomic.Int64{}
			var stop atomic.Bool
			var wg sync.WaitGroup
			for client := range clients {
				wg.Add(1)
				go func() {
					defer wg.Done()
					for try := 0; !stop.Load(); try++ {
						each(s.Send(rig.Post("/", key(client, try))))
						served.Add(1)
					}
				}()
			}
			return served, func() { stop.Store(true); wg.Wait() }
		}
		pass := onPair(t, host, master.Addr, "pass", "pass", "1s", rig.NewBackend(t, rig.Created))
		reject := onPair(t, host, rig.NewFront(t, master.Addr).Addr, "reject", "reject", "1s", rig.NewBackend(t, rig.Created))
		replica.Pause()
		served, end := load(pass, func(_, _ int) string { return rig.UnusedKey() }, func(a rig.Answer) { pass.Want(a, 201, "first;degraded") })
		for served.Load() < 5*clients || rig.KeysIn(master) > clients { // claims that stay end in the test's time-out
			time.Sleep(10 * time.Millisecond)
		}
		end()
		served, end = load(reject, func(client, _ int) string { return fmt.Sprint(client) }, func(a rig.Answer) {
			reject.WantProblem(a, 503, "store-unavailable", "unavailable;degraded")
		})
		for served.Load() < 3*clients {
			time.Sleep(10 * time.Millisecond)
		}
		end()
		reject.Calls(0)
	})
}
