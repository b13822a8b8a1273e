package load

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// TestBurst sends 200 requests with one key at once to two Traefik processes on one Redis.
func TestBurst(t *testing.T) {
	server := redistest.Start(t)
	e := &rig.Env{Redis: server}
	settings := e.Settings(hosts.Settings{"scope": []any{"Authorization"}, "inFlightTimeout": "60s"})
	arrived := make(chan struct{}, 1)
	b := rig.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		time.Sleep(300 * time.Millisecond) // so that most arrive while it runs; nothing depends on it
		rig.Created(w, r)
	})
	var sites []*rig.Site
	for range 2 {
		sites = append(sites, rig.SiteOf(t, hosts.StartTraefik(t).Serve(t, b.URL, settings), b))
	}
	for round := range 5 {
		before := b.Calls.Load()
		key := fmt.Sprintf("burst-%d", round)
		answers := make([]rig.Answer, 200)
		var wg sync.WaitGroup
		wg.Add(len(answers))
		for i := range answers {
			go func() {
				defer wg.Done()
				answers[i] = sites[i%2].Send(rig.Post("/", key))
			}()
		}
		wg.Wait()
		<-arrived
		firsts := 0
		for i, a := range answers {
			if a.Err != nil || a.Status != 201 || !bytes.Equal(a.Body, answers[0].Body) {
				t.Fatalf("answer %d: %d %q %v, want 201 %q", i, a.Status, a.Body, a.Err, answers[0].Body)
			}
			if a.Header.Get("Decision") == "first" {
				firsts++
			}
		}
		if firsts != 1 || b.Calls.Load() != before+1 {
			t.Errorf("round %d: %d first answers and %d calls of the backend, want 1 and 1", round, firsts, b.Calls.Load()-before)
		}
	}
}

// TestATraefikThatDies holds a key that is free again when its lease is over, and not before.
func TestATraefikThatDies(t *testing.T) {
	server := redistest.Start(t)
	e := &rig.Env{Redis: server}
	settings := rig.WithTimeouts("4s", e.Settings(hosts.Settings{"scope": []any{"Authorization"}, "lease": "6s", "inFlightTimeout": "60s"}))
	arrived := make(chan struct{})
	var calls atomic.Int64
	b := rig.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1) == 1 {
			_, _ = io.Copy(io.Discard, r.Body)
			close(arrived)
			<-r.Context().Done()
			return
		}
		rig.Created(w, r)
	})
	doomed, heir := hosts.StartTraefik(t), hosts.StartTraefik(t)
	first := rig.SiteOf(t, doomed.Serve(t, b.URL, settings), b)
	second := rig.SiteOf(t, heir.Serve(t, b.URL, settings), b)
	go first.Send(rig.Post("/", "k"))
	<-arrived
	begin := time.Now()
	_ = doomed.Cmd.Process.Kill()
	second.Want(second.Do(rig.Post("/", "k")), 201, "first")
	// It was renewed at least every lease/3.
	if waited := time.Since(begin); waited < 2*time.Second {
		t.Errorf("the key was free %s after its owner died, with a lease of 6s", waited)
	}
	second.Want(second.Do(rig.Post("/", "k")), 201, "replayed")
	second.Calls(2)
}

// traffic sends keyed requests, each twice, until stop is closed. It has so few keys that memory keeps all of them, however long that
// takes.
func traffic(s *rig.Site, workers int, stop <-chan struct{}) *sync.WaitGroup {
	var wg sync.WaitGroup
	for w := range workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				key := fmt.Sprintf("w%d-%d", w, i%2000)
				first, again := s.Send(rig.Post("/", key)), s.Send(rig.Post("/", key))
				if first.Status != 201 || again.Status != 201 || !bytes.Equal(first.Body, again.Body) {
					s.T.Errorf("key %s: %d %q %v, then %d %q %v", key, first.Status, first.Body, first.Err, again.Status, again.Body, again.Err)
					return
				}
			}
		}()
	}
	return &wg
}

// TestReloads changes the configuration 50 times under traffic: no key is forgotten, and nothing is left behind.
func TestReloads(t *testing.T) {
	server := redistest.Start(t)
	p := hosts.StartTraefik(t)
	b := rig.NewBackend(t, rig.Created)
	var sites []*rig.Site
	var configs []func(round int)
	for _, e := range []*rig.Env{{}, {Redis: server}} {
		settings := e.Settings(hosts.Settings{"ttl": "1h", "maxTTL": "1h"})
		name := fmt.Sprintf("reload%d.test", len(sites))
		write := func(round int) {
			settings["maxKeyLength"] = 100 + round // each round is another configuration
			p.Write(t, name, hosts.Dynamic(name, b.URL, settings))
		}
		write(0)
		configs = append(configs, write)
		sites = append(sites, rig.SiteOf(t, p.Site(t, name), b))
	}
	held := make([]rig.Answer, len(sites))
	for i, s := range sites {
		held[i] = s.Do(rig.Post("/", "held"))
	}
	load := func(rounds int) {
		stop := make(chan struct{})
		var groups []*sync.WaitGroup
		for _, s := range sites {
			groups = append(groups, traffic(s, 4, stop))
		}
		for round := range rounds {
			for _, write := range configs {
				write(round + 1)
			}
			for reloaded := false; !reloaded; time.Sleep(10 * time.Millisecond) {
				reloaded = true
				for i := range sites {
					reloaded = reloaded && rig.KeyLength(t, p, fmt.Sprintf("reload%d", i)) == 101+round
				}
			}
		}
		close(stop)
		for _, wg := range groups {
			wg.Wait()
		}
		for i, s := range sites {
			s.WantReplay(held[i], s.Do(rig.Post("/", "held")))
			s.HTTP.CloseIdleConnections()
		}
	}
	load(5) // warm: pools and caches have their size
	settle := func() rig.Usage {
		var u rig.Usage
		for i, low := 0, 1<<30; i < 200 && (i < 15 || u.Goroutines > low); i++ { // the grace time of what reloads replaced
			u = rig.Measure(t, p, server)
			low = min(low, u.Goroutines)
			time.Sleep(100 * time.Millisecond)
		}
		return u
	}
	before := settle()
	load(50)
	var after rig.Usage
	for try := 0; ; try++ { // leftovers end on their own: idle connections, grace times
		after = settle()
		if after.Goroutines <= before.Goroutines+20 && after.Connections <= before.Connections+8 || try == 20 {
			break
		}
	}
	t.Logf("before 50 reloads %+v, after %+v", before, after)
	if after.Goroutines > before.Goroutines+20 {
		t.Errorf("%d goroutines before, %d after", before.Goroutines, after.Goroutines)
	}
	if after.Connections > before.Connections+8 {
		t.Errorf("%d connections to Redis before, %d after", before.Connections, after.Connections)
	}
	// The answers of the second load are kept for an hour, in memory of a bounded size.
	if after.Heap > before.Heap+(32<<20) {
		t.Errorf("a heap of %d bytes before, %d after", before.Heap, after.Heap)
	}
}

// TestLoad sends 100,000 requests over 64 connections, half of them duplicates, with keys in Redis.
func TestLoad(t *testing.T) {
	const total, workers = 100_000, 64
	server := redistest.Start(t)
	p := hosts.StartTraefik(t)
	e := &rig.Env{Redis: server}
	// A short life and a small cache, so that what is kept stops growing long before half-time.
	settings := e.Settings(hosts.Settings{"ttl": "10s", "localCacheBytes": 4 << 20})
	b := rig.NewBackend(t, rig.Created)
	s := rig.SiteOf(t, p.Serve(t, b.URL, settings), b)
	var next, wrong atomic.Int64
	var half, end rig.Usage
	run := func(until int64) {
		var wg sync.WaitGroup
		for range workers {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for {
					n := next.Add(2)
					if n > until {
						next.Add(-2)
						return
					}
					key := fmt.Sprintf("load-%d", n)
					first, again := s.Send(rig.Post("/", key)), s.Send(rig.Post("/", key))
					if first.Status != 201 || again.Status != 201 || first.Header.Get("Decision") != "first" ||
						again.Header.Get("Decision") != "replayed" || !bytes.Equal(first.Body, again.Body) {
						if wrong.Add(1) <= 5 {
							t.Errorf("key %s: %d %q %v, then %d %q %v", key, first.Status, first.Header.Get("Decision"), first.Err, again.Status, again.Header.Get("Decision"), again.Err)
						}
					}
				}
			}()
		}
		wg.Wait()
	}
	begin := time.Now()
	run(total / 2)
	half = rig.Measure(t, p, server)
	run(total)
	end = rig.Measure(t, p, server)
	t.Logf("%d requests in %s; at half-time %+v, at the end %+v", total, time.Since(begin).Round(time.Second), half, end)
	s.Calls(total / 2)
	if n := wrong.Load(); n > 0 {
		t.Errorf("%d wrong answers", n)
	}
	for line := range strings.Lines(p.Logs()) {
		if strings.Contains(line, "panic") || strings.Contains(line, "level=error") || strings.Contains(line, "level=warn") || strings.Contains(line, " ERR ") {
			t.Errorf("in Traefik's log: %.300s", line)
			break
		}
	}
	if end.Rss > half.Rss+half.Rss/10+(16<<20) {
		t.Errorf("resident memory grew from %d to %d MiB over the second half", half.Rss>>20, end.Rss>>20)
	}
	if end.Goroutines > half.Goroutines+workers {
		t.Errorf("goroutines grew from %d to %d", half.Goroutines, end.Goroutines)
	}
}

// TestAWaitInAnotherProcessEndsSoon reports how long a duplicate at another Traefik takes to notice the end.
func TestAWaitInAnotherProcessEndsSoon(t *testing.T) {
	server := redistest.Start(t)
	settings := (&rig.Env{Redis: server}).Settings(hosts.Settings{"scope": []any{"Authorization"}, "inFlightTimeout": "60s"})
	arrived, proceed := make(chan struct{}), make(chan struct{})
	b := rig.NewBackend(t, rig.Gated(arrived, proceed))
	owner := rig.SiteOf(t, hosts.StartTraefik(t).Serve(t, b.URL, settings), b)
	other := rig.SiteOf(t, hosts.StartTraefik(t).Serve(t, b.URL, settings), b)
	var longest time.Duration
	for round := range 10 {
		key := fmt.Sprintf("wait-%d", round)
		ended := make(chan time.Time, 2)
		var wg sync.WaitGroup
		send := func(s *rig.Site, decision string) {
			defer wg.Done()
			s.Want(s.Send(rig.Post("/", key)), 201, decision)
			ended <- time.Now()
		}
		wg.Add(2)
		go send(owner, "first")
		<-arrived
		go send(other, "replayed")
		time.Sleep(200 * time.Millisecond) // by now it polls as seldom as it ever does; the outcome does not depend on it
		proceed <- struct{}{}
		wg.Wait()
		longest = max(longest, (<-ended).Sub(<-ended).Abs())
	}
	t.Logf("the longest of 10 waits across processes ended %s after the first answer", longest.Round(time.Millisecond))
	owner.Calls(10)
}
