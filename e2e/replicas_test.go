package e2e

// What redis.waitReplicas does while replicas are missing.

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
)

// onPair serves a site whose claims wait for a replica of the server at addr. Sites with different addresses share no
// memory, as two Traefiks do.
func onPair(t *testing.T, host hosts.Host, addr, prefix, onStoreError, readTimeout string, b *backend) *site {
	t.Helper()
	return siteOf(t, host.Serve(t, b.URL, hosts.Settings{"statusHeader": "Decision", "onStoreError": onStoreError, "localCacheBytes": 0, "scope": []any{"Authorization"}, "lease": "10m",
		"redis": map[string]any{"endpoints": addr, "waitReplicas": "1", "readTimeout": readTimeout, "keyPrefix": prefix}}), b)
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
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
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
					master, replica := pair(t)
					arrived, proceed := make(chan struct{}), make(chan struct{})
					var runs atomic.Int64
					b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
						if runs.Add(1) > 1 {
							created(w, r)
							return
						}
						close(arrived)
						<-proceed
						w.WriteHeader(http.StatusServiceUnavailable)
					})
					one := onPair(t, host, newFront(t, master.Addr).addr, "p", c.onStoreError, "1s", b)
					other := onPair(t, host, master.Addr, "p", c.onStoreError, "1s", b)
					first, again := make(chan answer, 1), make(chan answer, 1)
					go func() { first <- one.send(post("/", "k")) }()
					<-arrived
					asked := infoField(master, "commandstats", "cmdstat_pttl")
					go func() { again <- other.send(post("/", "k")) }()
					for infoField(master, "commandstats", "cmdstat_pttl") == asked { // until it is told that the request runs
						time.Sleep(time.Millisecond)
					}
					fault.begin(master, replica)
					close(proceed)
					one.want(<-first, 503, "released")
					other.want(<-again, c.status, c.decision)
					if n := runs.Load(); n != c.runs {
						t.Errorf("%d runs, want %d", n, c.runs)
					}
					fault.end(master, replica)
					if c.onStoreError == "reject" {
						other.awaitStore()
						other.wantRun("k") // nothing was left behind
					}
				})
			}
		}
	})
}

// redisBinaries are the redis-server of the system and, if it was made, the newest of Debian. From 7.2 on WAIT waits for what
// its own connection wrote, and for nothing else: before that, much that is wrong cannot be seen.
func redisBinaries(t *testing.T) map[string]string {
	t.Helper()
	binaries := map[string]string{"system": redistest.Path(t)}
	newest := filepath.Join(hosts.Root(), ".build", "redis-of-debian", "redis-server")
	_, err := os.Stat(newest)
	switch {
	case err == nil:
		binaries["newest"] = newest
	case os.Getenv("CI") != "":
		t.Fatalf("make redis: %v", err)
	}
	return binaries
}

// waits counts the WAIT that server was sent.
func waits(server *redistest.Server) string { return infoField(server, "commandstats", "cmdstat_wait") }

// blocked tells whether a client of server waits for replicas.
func blocked(server *redistest.Server) bool {
	return infoField(server, "clients", "blocked_clients") != "0"
}

// TestAClaimThatIsSentAgainWaitsAgain cuts the connections while claims wait for a replica that is stopped. Sent once more,
// over others, they find their own work; it is not at the replica for that.
func TestAClaimThatIsSentAgainWaitsAgain(t *testing.T) {
	for version, path := range redisBinaries(t) {
		t.Run(version, func(t *testing.T) {
			onEveryHost(t, func(t *testing.T, host hosts.Host) {
				master, replica := pairOf(t, path)
				w := newWeather(t, master.Addr)
				s := onPair(t, host, w.proxy.Listen, "p", "reject", "2s", newBackend(t, created))
				s.wantRun("before")
				s.wantRun("before-too")
				replica.Pause()
				for cuts := 0; cuts < 5; time.Sleep(10 * time.Millisecond) {
					a := make(chan answer, 1)
					go func() { a <- s.send(post("/", unusedKey())) }()
					for !blocked(master) && len(a) == 0 { // a new connection that is cut counts as an outage
						time.Sleep(time.Millisecond)
					}
					if len(a) == 0 {
						w.cut()
						cuts++
					}
					s.wantProblem(<-a, 503, "store-unavailable", "unavailable;degraded")
				}
				s.calls(2)
				replica.Resume()
				s.awaitStore()
				s.wantRun("after")
			})
		})
	}
}

// TestOnlyClaimsWaitForReplicas has replays and renewals while the replica is stopped, and others' claims wait for it.
func TestOnlyClaimsWaitForReplicas(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		master, replica := pair(t)
		s := onPair(t, host, master.Addr, "p", "reject", "1m", newBackend(t, created))
		first := s.do(post("/", "done"))
		s.want(first, 201, "first")
		replica.Pause()
		before := waits(master)
		for range 20 {
			s.wantReplay(first, s.do(post("/", "done")))
		}
		if now := waits(master); now != before {
			t.Errorf("replays have waited for replicas: %s, and then %s", before, now)
		}
		answers := make(chan answer, 8)
		for i := range 8 { // they are more than there are connections
			go func() { answers <- s.send(post("/", fmt.Sprint(i))) }()
		}
		for !blocked(master) {
			time.Sleep(time.Millisecond)
		}
		for range 20 {
			s.wantReplay(first, s.do(post("/", "done")))
		}
		if len(answers) > 0 {
			t.Errorf("a request ran without its replica: %+v", <-answers)
		}
		replica.Resume()
		for range 8 {
			s.want(<-answers, 201, "first")
		}
	})
}

// TestClaimsAreGivenBackUnderLoad has a replica stopped, clients with new keys all the time, and clients that try their key
// again and again. What is given back does not wait behind what waits for replicas.
func TestClaimsAreGivenBackUnderLoad(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		const clients = 20
		master, replica := pair(t)
		load := func(s *site, key func(client, try int) string, each func(a answer)) (served *atomic.Int64, end func()) {
			served = &atomic.Int64{}
			var stop atomic.Bool
			var wg sync.WaitGroup
			for client := range clients {
				wg.Add(1)
				go func() {
					defer wg.Done()
					for try := 0; !stop.Load(); try++ {
						each(s.send(post("/", key(client, try))))
						served.Add(1)
					}
				}()
			}
			return served, func() { stop.Store(true); wg.Wait() }
		}
		pass := onPair(t, host, master.Addr, "pass", "pass", "1s", newBackend(t, created))
		reject := onPair(t, host, newFront(t, master.Addr).addr, "reject", "reject", "1s", newBackend(t, created))
		replica.Pause()
		served, end := load(pass, func(_, _ int) string { return unusedKey() }, func(a answer) { pass.want(a, 201, "first;degraded") })
		for served.Load() < 5*clients || keysIn(master) > clients { // claims that stay end in the test's time-out
			time.Sleep(10 * time.Millisecond)
		}
		end()
		served, end = load(reject, func(client, _ int) string { return fmt.Sprint(client) }, func(a answer) {
			reject.wantProblem(a, 503, "store-unavailable", "unavailable;degraded")
		})
		for served.Load() < 3*clients {
			time.Sleep(10 * time.Millisecond)
		}
		end()
		reject.calls(0)
	})
}
