package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/store/storetest"
)

// TestStoreInARealRedisConforms runs the conformance suite of stores against redis-server.
func TestStoreInARealRedisConforms(t *testing.T) {
	server := redistest.Start(t)
	storetest.Run(t, func(t *testing.T) storetest.Subject {
		server.Do("FLUSHDB")
		options := redisclient.Options{Address: server.Addr, DialTimeout: hour, ReadTimeout: hour, WriteTimeout: hour}
		client := redisclient.New(options)
		t.Cleanup(client.Close)
		return storetest.Redis(redisclient.NewKeys(client, "idem"), server.Pass)
	})
}

func ping(client *redisclient.Client) ([]any, error) {
	return client.Batch([]redisclient.Command{{Name: "PING"}})
}

func TestThePoolIsBounded(t *testing.T) {
	server := redistest.Start(t)
	client := redisclient.New(redisclient.Options{Address: server.Addr, DialTimeout: hour, ReadTimeout: hour, WriteTimeout: hour, PoolSize: 2, MaxActiveConns: 3, MinIdleConns: 2})
	var wg sync.WaitGroup
	for range 50 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range 20 {
				_, err := ping(client)
				if err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	if n := connections(t, server); n > 2 {
		t.Errorf("%d connections, want at most poolSize 2", n)
	}
	client.Close()
	_, err := ping(client) // of a request that outlives its configuration
	if err != nil {
		t.Error(err)
	}
	for connections(t, server) > 0 { // a connection that is left ends in the test's time-out
		time.Sleep(5 * time.Millisecond)
	}
}

func TestABusyPoolSaysSo(t *testing.T) {
	server := redistest.Start(t)
	client := redisclient.New(redisclient.Options{Address: server.Addr, DialTimeout: hour, ReadTimeout: 200 * time.Millisecond, WriteTimeout: hour, MaxActiveConns: 1})
	defer client.Close()
	server.Pause()
	defer server.Resume()
	failures := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := ping(client)
			failures <- err
		}()
	}
	for range 2 {
		if err := <-failures; err == nil {
			t.Error("a server that is stopped answers")
		}
	}
}

func infoField(server *redistest.Server, section, name string) string {
	for line := range strings.Lines(server.Do("INFO", section)) {
		value, ok := strings.CutPrefix(line, name+":")
		if ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// connections counts the clients of server, without the one that asks.
func connections(t *testing.T, server *redistest.Server) int {
	t.Helper()
	n, err := strconv.Atoi(infoField(server, "clients", "connected_clients"))
	if err != nil {
		t.Fatal(err)
	}
	return n - 1
}

var evalsha = regexp.MustCompile(`cmdstat_evalsha:calls=(\d+)`)

// roundTrips counts the commands that server was sent by the plugin: it sends nothing but EVALSHA, once its scripts
// are known and its connections open.
func roundTrips(t *testing.T, server *redistest.Server) int {
	t.Helper()
	stats := server.Do("INFO", "commandstats")
	for _, other := range []string{"cmdstat_auth", "cmdstat_select", "cmdstat_ping", "cmdstat_multi"} {
		if strings.Contains(stats, other+":") {
			t.Errorf("the plugin sends more than scripts: %s", stats)
		}
	}
	found := evalsha.FindStringSubmatch(stats)
	if found == nil {
		return 0
	}
	n, _ := strconv.Atoi(found[1])
	return n
}

func TestRoundTrips(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		e := &env{host: host, redis: server}
		cached := e.serve(t, nil, created)
		plain := e.serve(t, hosts.Settings{"localCacheBytes": 0}, created)
		for _, s := range []*site{cached, plain} {
			s.do(post("/", "warm")) // Redis learns the scripts
			for _, c := range []struct {
				name string
				call call
				want int
			}{
				{"first", post("/", "k"), 2},
				{"duplicate", post("/", "k"), 1},
				{"mismatch", post("/", "k").with(func(c *call) { c.body = "{}" }), 1},
				{"without a key", post("/", ""), 0},
				{"not protected", post("/", "k").with(func(c *call) { c.method = http.MethodGet }), 0},
				{"invalid key", post("/", "a b"), 0},
			} {
				server.Do("CONFIG", "RESETSTAT")
				s.do(c.call)
				got := roundTrips(t, server)
				want := c.want
				if s == cached && want == 1 {
					want = 0 // known here
				}
				if got != want {
					t.Errorf("%s: %d round trips, want %d", c.name, got, want)
				}
			}
		}
	})
}

// TestBurst sends 200 requests with one key at once to two Traefik processes on one Redis.
func TestBurst(t *testing.T) {
	server := redistest.Start(t)
	e := &env{redis: server}
	settings := e.settings(hosts.Settings{"scope": []any{"Authorization"}, "inFlightTimeout": "60s"})
	arrived := make(chan struct{}, 1)
	b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		time.Sleep(300 * time.Millisecond) // so that most arrive while it runs; nothing depends on it
		created(w, r)
	})
	var sites []*site
	for range 2 {
		sites = append(sites, siteOf(t, hosts.StartTraefik(t).Serve(t, b.URL, settings), b))
	}
	for round := range 5 {
		before := b.calls.Load()
		key := fmt.Sprintf("burst-%d", round)
		answers := make([]answer, 200)
		var wg sync.WaitGroup
		wg.Add(len(answers))
		for i := range answers {
			go func() {
				defer wg.Done()
				answers[i] = sites[i%2].send(post("/", key))
			}()
		}
		wg.Wait()
		<-arrived
		firsts := 0
		for i, a := range answers {
			if a.err != nil || a.status != 201 || !bytes.Equal(a.body, answers[0].body) {
				t.Fatalf("answer %d: %d %q %v, want 201 %q", i, a.status, a.body, a.err, answers[0].body)
			}
			if a.header.Get("Decision") == "first" {
				firsts++
			}
		}
		if firsts != 1 || b.calls.Load() != before+1 {
			t.Errorf("round %d: %d first answers and %d calls of the backend, want 1 and 1", round, firsts, b.calls.Load()-before)
		}
	}
}

// TestATraefikThatDies holds a key that is free again when its lease is over, and not before.
func TestATraefikThatDies(t *testing.T) {
	server := redistest.Start(t)
	e := &env{redis: server}
	settings := withTimeouts("4s", e.settings(hosts.Settings{"scope": []any{"Authorization"}, "lease": "6s", "inFlightTimeout": "60s"}))
	arrived := make(chan struct{})
	var calls atomic.Int64
	b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1) == 1 {
			_, _ = io.Copy(io.Discard, r.Body)
			close(arrived)
			<-r.Context().Done()
			return
		}
		created(w, r)
	})
	doomed, heir := hosts.StartTraefik(t), hosts.StartTraefik(t)
	first := siteOf(t, doomed.Serve(t, b.URL, settings), b)
	second := siteOf(t, heir.Serve(t, b.URL, settings), b)
	go first.send(post("/", "k"))
	<-arrived
	begin := time.Now()
	_ = doomed.Cmd.Process.Kill()
	second.want(second.do(post("/", "k")), 201, "first")
	// It was renewed at least every lease/3.
	if waited := time.Since(begin); waited < 2*time.Second {
		t.Errorf("the key was free %s after its owner died, with a lease of 6s", waited)
	}
	second.want(second.do(post("/", "k")), 201, "replayed")
	second.calls(2)
}

// usage is what a Traefik process holds.
type usage struct {
	goroutines, connections, files int // connections: to Redis; files: open descriptors
	heap, rss                      int64
}

func measure(t *testing.T, p *hosts.Process, server *redistest.Server) usage {
	t.Helper()
	var u usage
	text := get(t, p.API+"/debug/pprof/heap?gc=1&debug=1")
	found := regexp.MustCompile(`# HeapAlloc = (\d+)`).FindStringSubmatch(text)
	if found == nil {
		t.Fatal("no heap profile")
	}
	u.heap, _ = strconv.ParseInt(found[1], 10, 64)
	found = regexp.MustCompile(`goroutine profile: total (\d+)`).FindStringSubmatch(get(t, p.API+"/debug/pprof/goroutine?debug=1"))
	u.goroutines, _ = strconv.Atoi(found[1])
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Cmd.Process.Pid))
	if err == nil {
		found = regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindStringSubmatch(string(status))
		u.rss, _ = strconv.ParseInt(found[1], 10, 64)
		u.rss <<= 10
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.Cmd.Process.Pid))
	if err == nil {
		u.files = len(files)
	}
	u.connections = connections(t, server)
	return u
}

func get(t *testing.T, url string) string {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != 200 {
		t.Fatalf("%s: %d %v", url, response.StatusCode, err)
	}
	return string(body)
}

// traffic sends keyed requests, each twice, until stop is closed, and returns how many.
func traffic(s *site, workers int, stop <-chan struct{}) *sync.WaitGroup {
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
				key := fmt.Sprintf("w%d-%d", w, i)
				first, again := s.send(post("/", key)), s.send(post("/", key))
				if first.status != 201 || again.status != 201 || !bytes.Equal(first.body, again.body) {
					s.t.Errorf("key %s: %d %q %v, then %d %q %v", key, first.status, first.body, first.err, again.status, again.body, again.err)
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
	b := newBackend(t, created)
	var sites []*site
	var configs []func(round int)
	for _, e := range []*env{{}, {redis: server}} {
		settings := e.settings(hosts.Settings{"ttl": "1h", "maxTTL": "1h"})
		name := fmt.Sprintf("reload%d.test", len(sites))
		write := func(round int) {
			settings["maxKeyLength"] = 100 + round // each round is another configuration
			p.Write(t, name, hosts.Dynamic(name, b.URL, settings))
		}
		write(0)
		configs = append(configs, write)
		sites = append(sites, siteOf(t, p.Site(t, name), b))
	}
	held := make([]answer, len(sites))
	for i, s := range sites {
		held[i] = s.do(post("/", "held"))
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
					reloaded = reloaded && keyLength(t, p, fmt.Sprintf("reload%d", i)) == 101+round
				}
			}
		}
		close(stop)
		for _, wg := range groups {
			wg.Wait()
		}
		for i, s := range sites {
			s.wantReplay(held[i], s.do(post("/", "held")))
			s.client.CloseIdleConnections()
		}
	}
	load(5) // warm: pools and caches have their size
	settle := func() usage {
		var u usage
		for i, low := 0, 1<<30; i < 200 && (i < 15 || u.goroutines > low); i++ { // the grace time of what reloads replaced
			u = measure(t, p, server)
			low = min(low, u.goroutines)
			time.Sleep(100 * time.Millisecond)
		}
		return u
	}
	before := settle()
	load(50)
	var after usage
	for try := 0; ; try++ { // leftovers end on their own: idle connections, grace times
		after = settle()
		if after.goroutines <= before.goroutines+20 && after.connections <= before.connections+8 || try == 20 {
			break
		}
	}
	t.Logf("before 50 reloads %+v, after %+v", before, after)
	if after.goroutines > before.goroutines+20 {
		t.Errorf("%d goroutines before, %d after", before.goroutines, after.goroutines)
	}
	if after.connections > before.connections+8 {
		t.Errorf("%d connections to Redis before, %d after", before.connections, after.connections)
	}
	// The answers of the second load are kept for an hour, in memory of a bounded size.
	if after.heap > before.heap+(32<<20) {
		t.Errorf("a heap of %d bytes before, %d after", before.heap, after.heap)
	}
}

// keyLength is the setting of a site's middleware as Traefik runs it.
func keyLength(t *testing.T, p *hosts.Process, site string) int {
	t.Helper()
	var middleware struct {
		Plugin struct {
			Idem struct {
				MaxKeyLength string `json:"maxKeyLength"`
			} `json:"idem"`
		} `json:"plugin"`
	}
	err := json.Unmarshal([]byte(get(t, fmt.Sprintf("%s/api/http/middlewares/%s-0@file", p.API, site))), &middleware)
	if err != nil {
		t.Fatal(err)
	}
	n, _ := strconv.Atoi(middleware.Plugin.Idem.MaxKeyLength)
	return n
}

// TestLoad sends 100,000 requests over 64 connections, half of them duplicates, with keys in Redis.
func TestLoad(t *testing.T) {
	const total, workers = 100_000, 64
	server := redistest.Start(t)
	p := hosts.StartTraefik(t)
	e := &env{redis: server}
	// A short life and a small cache, so that what is kept stops growing long before half-time.
	settings := e.settings(hosts.Settings{"ttl": "10s", "localCacheBytes": 4 << 20})
	b := newBackend(t, created)
	s := siteOf(t, p.Serve(t, b.URL, settings), b)
	var next, wrong atomic.Int64
	var half, end usage
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
					first, again := s.send(post("/", key)), s.send(post("/", key))
					if first.status != 201 || again.status != 201 || first.header.Get("Decision") != "first" ||
						again.header.Get("Decision") != "replayed" || !bytes.Equal(first.body, again.body) {
						if wrong.Add(1) <= 5 {
							t.Errorf("key %s: %d %q %v, then %d %q %v", key, first.status, first.header.Get("Decision"), first.err, again.status, again.header.Get("Decision"), again.err)
						}
					}
				}
			}()
		}
		wg.Wait()
	}
	begin := time.Now()
	run(total / 2)
	half = measure(t, p, server)
	run(total)
	end = measure(t, p, server)
	t.Logf("%d requests in %s; at half-time %+v, at the end %+v", total, time.Since(begin).Round(time.Second), half, end)
	s.calls(total / 2)
	if n := wrong.Load(); n > 0 {
		t.Errorf("%d wrong answers", n)
	}
	for line := range strings.Lines(p.Logs()) {
		if strings.Contains(line, "panic") || strings.Contains(line, "level=error") || strings.Contains(line, "level=warn") || strings.Contains(line, " ERR ") {
			t.Errorf("in Traefik's log: %.300s", line)
			break
		}
	}
	if end.rss > half.rss+half.rss/10+(16<<20) {
		t.Errorf("resident memory grew from %d to %d MiB over the second half", half.rss>>20, end.rss>>20)
	}
	if end.goroutines > half.goroutines+workers {
		t.Errorf("goroutines grew from %d to %d", half.goroutines, end.goroutines)
	}
}

// TestAWaitInAnotherProcessEndsSoon reports how long a duplicate at another Traefik takes to notice the end.
func TestAWaitInAnotherProcessEndsSoon(t *testing.T) {
	server := redistest.Start(t)
	settings := (&env{redis: server}).settings(hosts.Settings{"scope": []any{"Authorization"}, "inFlightTimeout": "60s"})
	arrived, proceed := make(chan struct{}), make(chan struct{})
	b := newBackend(t, gated(arrived, proceed))
	owner := siteOf(t, hosts.StartTraefik(t).Serve(t, b.URL, settings), b)
	other := siteOf(t, hosts.StartTraefik(t).Serve(t, b.URL, settings), b)
	var longest time.Duration
	for round := range 10 {
		key := fmt.Sprintf("wait-%d", round)
		ended := make(chan time.Time, 2)
		var wg sync.WaitGroup
		send := func(s *site, decision string) {
			defer wg.Done()
			s.want(s.send(post("/", key)), 201, decision)
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
	owner.calls(10)
}
