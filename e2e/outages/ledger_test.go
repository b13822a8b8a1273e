package outages

// Traffic through every fault of Redis, with a ledger of what the backend did.

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// storms are faults that come and go under traffic.
var storms = []struct {
	name       string
	begin, end func(g *ground)
}{
	{"killed", func(g *ground) { g.server.Kill() }, func(g *ground) { g.server.Restart() }},
	{"paused", func(g *ground) { g.server.Pause() }, func(g *ground) { g.server.Resume() }},
	{"slow", func(g *ground) { g.Bad("latency", "downstream", map[string]any{"latency": 2000}) }, (*ground).fairWeather},
	{"lost on the way there", func(g *ground) { g.Bad("timeout", "upstream", map[string]any{"timeout": 0}) }, (*ground).fairWeather},
	{"lost on the way back", func(g *ground) { g.Bad("timeout", "downstream", map[string]any{"timeout": 0}) }, (*ground).fairWeather},
	{"garbled", func(g *ground) { g.Bad("garble", "downstream", nil) }, (*ground).fairWeather},
	{"cut in mid-reply", func(g *ground) { g.Bad("limit_data", "downstream", map[string]any{"bytes": 1000}) }, (*ground).fairWeather},
	{"cut", func(g *ground) { g.Cut() }, func(*ground) {}},
	{"out of memory", func(g *ground) { g.server.Do("CONFIG", "SET", "maxmemory", "1") }, func(g *ground) { g.server.Do("CONFIG", "SET", "maxmemory", "0") }},
}

func (g *ground) fairWeather() { g.Fair() }

// durable is a Redis that forgets nothing that it has confirmed, behind a weather.
func durable(t *testing.T) *ground {
	t.Helper()
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	return &ground{Weather: rig.NewWeather(t, server.Addr), server: server}
}

// stormy has every storm once, in an order of its own, while work runs in many goroutines again and again.
func (g *ground) stormy(t *testing.T, work func(worker, round int), calm func()) {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	order := rand.New(rand.NewPCG(seed, 0)).Perm(len(storms))
	var stop atomic.Bool
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for round := 0; !stop.Load() && !t.Failed(); round++ {
				work(worker, round)
				time.Sleep(10 * time.Millisecond) // room for others on this machine
			}
		}()
	}
	for _, i := range order {
		time.Sleep(300 * time.Millisecond) // some traffic before, and then during the storm; nothing depends on how much
		storms[i].begin(g)
		time.Sleep(1200 * time.Millisecond)
		storms[i].end(g)
		calm()
	}
	stop.Store(true)
	wg.Wait()
}

// entered checks that the backend was called once for each key, and returns how many there are.
func entered(b *rig.Backend, t *testing.T) int {
	t.Helper()
	b.Mu.Lock()
	defer b.Mu.Unlock()
	n := 0
	for key, calls := range b.ByKey {
		if strings.HasPrefix(key, "back-") { // of AwaitRedis
			continue
		}
		n++
		if calls != 1 {
			t.Errorf("the backend executed %s %d times", key, calls)
		}
	}
	return n
}

// patient is a client's patience: longer than all of a request's time-outs together. A request that takes longer hangs.
const patience = 15 * time.Second

func stormSettings(g *ground, mode string) hosts.Settings {
	return hosts.Settings{"statusHeader": "Decision", "onStoreError": mode, "lease": "1h", "ttl": "1h", "maxTTL": "1h", "scope": "Authorization", "inFlightTimeout": "1s",
		"redis": map[string]any{"endpoints": g.Proxy.Listen, "keyPrefix": "ledger", "dialTimeout": "500ms", "readTimeout": "500ms", "writeTimeout": "500ms"}}
}

// TestLedgerOfTwoStrictTraefiks: with reject, and a Redis that keeps what it has confirmed, no fault has a key executed
// twice, whichever of two Traefiks its requests and duplicates come to, and no answer that a client has got changes.
func TestLedgerOfTwoStrictTraefiks(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		g := durable(t)
		b := rig.NewBackend(t, rig.Created)
		sites := make([]*rig.Site, 2)
		for i := range sites {
			settings := stormSettings(g, "reject")
			settings["localCacheBytes"] = i << 20 // so that two in one process share no memory
			serve := host.Serve
			if host == hosts.Traefik {
				serve = hosts.StartTraefik(t).Serve
			}
			sites[i] = rig.SiteOf(t, serve(t, b.URL, settings), b)
			sites[i].HTTP.Timeout = patience
		}
		// answered sends a request until it is answered by the backend, now or before.
		answered := func(s *rig.Site, key string) (string, bool) {
			for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
				a := s.Send(rig.Post("/", key))
				switch {
				case a.Err != nil:
					t.Errorf("key %s: no answer: %v", key, a.Err)
					return "", false
				case a.Status == 201:
					return string(a.Body), true
				case a.Status != 503 && a.Status != 409:
					t.Errorf("key %s: %d %q", key, a.Status, a.Body)
					return "", false
				}
			}
			t.Errorf("key %s is not answered", key)
			return "", false
		}
		g.stormy(t, func(worker, round int) {
			key := fmt.Sprintf("k%d-%d", worker, round)
			first, ok := answered(sites[(worker+round)%2], key)
			for i := 0; ok && i < 2; i++ {
				again := ""
				again, ok = answered(sites[i], key)
				if ok && again != first {
					t.Errorf("key %s is answered %q, and then %q", key, first, again)
				}
			}
		}, func() {
			for _, s := range sites {
				s.AwaitRedis()
			}
		})
		t.Logf("%d keys", entered(b, t))
	})
}

// TestLedgerOfADegradedTraefik: with degrade, every request is answered at once through every fault, no key that comes to
// one Traefik is executed twice, and in the end all is in Redis for the others.
func TestLedgerOfADegradedTraefik(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		g := durable(t)
		b := rig.NewBackend(t, rig.Created)
		build := func(cache int, timeout string) *rig.Site {
			settings := rig.WithTimeouts(timeout, stormSettings(g, "degrade"))
			settings["localCacheBytes"] = cache
			settings["inFlightTimeout"] = "10s"
			s := rig.SiteOf(t, host.Serve(t, b.URL, settings), b)
			s.HTTP.Timeout = patience
			return s
		}
		one := build(32<<20, "500ms")
		other := build(0, "20s") // to which a busy machine does not look like an outage
		var mu sync.Mutex        // guards bodies
		bodies := map[string]string{}
		g.stormy(t, func(worker, round int) {
			key := fmt.Sprintf("k%d-%d", worker, round)
			answers := make([]rig.Answer, 3)
			var wg sync.WaitGroup
			for i := range answers {
				wg.Add(1)
				go func() {
					defer wg.Done()
					answers[i] = one.Send(rig.Post("/", key))
				}()
			}
			wg.Wait()
			for _, a := range answers {
				if a.Err != nil || a.Status != 201 || string(a.Body) != string(answers[0].Body) {
					t.Errorf("key %s: %d %q %v, want 201 %q", key, a.Status, a.Body, a.Err, answers[0].Body)
				}
			}
			mu.Lock()
			bodies[key] = string(answers[0].Body)
			mu.Unlock()
		}, one.AwaitRedis)
		n := entered(b, t)
		t.Logf("%d keys", n)
		for redisKeys(g.server, "idem1R") > 0 || redisKeys(g.server, "idem1D") < len(b.ByKey) { // an answer that is never written ends in the test's time-out
			time.Sleep(50 * time.Millisecond)
		}
		for key, body := range bodies {
			a := other.Do(rig.Post("/", key))
			if a.Header.Get("Decision") != "replayed" || string(a.Body) != body {
				t.Errorf("key %s elsewhere: %d %q %q, want %q", key, a.Status, a.Header.Get("Decision"), a.Body, body)
			}
		}
		entered(b, t)
	})
}
