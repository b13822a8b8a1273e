package e2e

// What redis.waitReplicas does while replicas are missing.

import (
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
)

// onPair serves a site whose claims wait for a replica of the server at addr. Sites with different addresses share no
// memory, as two Traefiks do.
func onPair(t *testing.T, host hosts.Host, addr, prefix, onStoreError string, b *backend) *site {
	t.Helper()
	return siteOf(t, host.Serve(t, b.URL, hosts.Settings{"statusHeader": "Decision", "onStoreError": onStoreError, "localCacheBytes": 0, "scope": []any{"Authorization"}, "stats": open["stats"],
		"redis": map[string]any{"endpoints": addr, "waitReplicas": "1", "dialTimeout": "9s", "keyPrefix": prefix}}), b)
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
					one := onPair(t, host, newFront(t, master.Addr).addr, "p", c.onStoreError, b)
					other := onPair(t, host, master.Addr, "p", c.onStoreError, b)
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
