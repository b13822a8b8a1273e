package soak

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

const (
	soakTTL     = 10 * time.Second
	soakWorkers = 12
	soakReload  = 2 * time.Second  // between two reloads
	soakRestart = 10 * time.Second // between two restarts of Redis
	soakWarmUp  = 25 * time.Second // in which each of these happens more than once
)

// soakLedger is what the backend executed, and what was answered wrongly.
type soakLedger struct {
	begin time.Time
	stop  chan struct{}

	mu       sync.Mutex // guards everything below
	runs     map[string][]*execution
	recent   []string // keys that are asked for again
	answers  map[string]int
	wrong    []string
	restarts int
	reloads  int
}

// execution is one call of the backend.
type execution struct {
	body  string
	ended time.Duration // since the ledger began; 0: it has not
	free  bool          // its key was freed afterwards, for the client was asked to come again
}

func (l *soakLedger) mistake(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wrong = append(l.wrong, fmt.Sprintf(format, args...))
}

// serve is the backend. What it does stands before the first - of the key.
func (l *soakLedger) serve(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	key := r.Header.Get("X-Request-ID")
	kind, _, _ := strings.Cut(key, "-")
	id := r.Host + " " + key
	this := &execution{body: fmt.Sprintf("%s %d", key, rig.Unique.Add(1))}
	protected := key != "" && r.Method == http.MethodPost
	first := true
	if protected {
		l.mu.Lock()
		before := l.runs[id]
		first = len(before) == 0
		if !first {
			last := before[len(before)-1]
			age := time.Since(l.begin) - last.ended
			// An answer is kept for at least ttl from here on. The two clocks may differ by a little.
			if last.ended == 0 || (!last.free && age < soakTTL-soakTTL/100) {
				l.wrong = append(l.wrong, fmt.Sprintf("%s at %s: executed again; %q ended at %s", id, time.Since(l.begin), last.body, last.ended))
			}
		}
		l.runs[id] = append(before, this)
		l.mu.Unlock()
	}
	time.Sleep(time.Duration(rand.IntN(10)) * time.Millisecond) // so that others meet it; nothing depends on it
	l.mu.Lock()
	this.free = kind == "retry" && first
	this.ended = time.Since(l.begin)
	l.mu.Unlock()
	switch {
	case this.free:
		w.WriteHeader(http.StatusServiceUnavailable)
	case kind == "abort":
		panic(http.ErrAbortHandler)
	case kind == "large":
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, strings.Repeat("x", 200<<10))
	case kind == "stream":
		w.WriteHeader(http.StatusCreated)
		_ = http.NewResponseController(w).Flush()
		_, _ = io.WriteString(w, this.body)
	default:
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, this.body)
	}
}

// executed reports whether body is the answer of an execution under key.
func (l *soakLedger) executed(id, body string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.runs[id], func(r *execution) bool { return r.body == body })
}

// visitor sends the requests of one scenario.
type visitor struct {
	*rig.Site
	*soakLedger
}

// ask sends c and checks that it is answered as one of wants: status and decision. A 201 has to be an answer that the
// backend gave under this key.
func (v *visitor) ask(c rig.Call, wants ...string) rig.Answer {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	response, err := v.HTTP.Do(v.Request(c).WithContext(ctx))
	if err != nil {
		v.mistake("%v: no answer: %v", c.Header["X-Request-Id"], err)
		return rig.Answer{Err: err}
	}
	defer response.Body.Close()
	a := rig.Answer{Status: response.StatusCode, Header: response.Header}
	a.Body, a.Err = io.ReadAll(response.Body)
	decision, _, degraded := strings.Cut(a.Header.Get("Decision"), ";")
	is := strings.TrimSpace(fmt.Sprint(a.Status, " ", decision))
	key := c.Header.Get("X-Request-ID")
	switch {
	case a.Err != nil || !slices.Contains(wants, is):
		v.mistake("%s %s: %s %.200q %v, want %v", v.Name, key, is, a.Body, a.Err, wants)
	case a.Status == http.StatusCreated && decision != "" && !strings.HasPrefix(key, "large") && !v.executed(v.Name+" "+key, string(a.Body)):
		v.mistake("%s %s: %s with %.200q, which the backend never answered to it", v.Name, key, is, a.Body)
	}
	if degraded {
		is += ", degraded"
	}
	v.mu.Lock()
	v.answers[is]++
	v.mu.Unlock()
	return a
}

// same checks that a and b have the same body.
func (v *visitor) same(key string, a, b rig.Answer) {
	if a.Err == nil && b.Err == nil && string(a.Body) != string(b.Body) {
		v.mistake("%s %s: answered %.200q and %.200q", v.Name, key, a.Body, b.Body)
	}
}

// visit plays one scenario.
func (v *visitor) visit(number int64) {
	kinds := []string{"pair", "stream", "burst", "mismatch", "large", "retry", "abort", "gone", "again", "keyless", "get", "invalid", "stats"}
	kind := kinds[number%int64(len(kinds))]
	key := fmt.Sprintf("%s-%d", kind, number)
	switch kind {
	case "pair", "stream":
		v.same(key, v.ask(rig.Post("/", key), "201 first"), v.ask(rig.Post("/", key), "201 replayed"))
		v.mu.Lock()
		v.recent = append(v.recent[max(0, len(v.recent)-1000):], v.Name+" "+key)
		v.mu.Unlock()
	case "burst":
		answers := make([]rig.Answer, 4)
		var wg sync.WaitGroup
		for i := range answers {
			wg.Go(func() { answers[i] = v.ask(rig.Post("/", key), "201 first", "201 replayed") })
		}
		wg.Wait()
		for _, a := range answers[1:] {
			v.same(key, answers[0], a)
		}
	case "mismatch":
		v.ask(rig.Post("/", key), "201 first")
		v.ask(rig.Post("/", key).With(func(c *rig.Call) { c.Body = "other" }), "422 mismatch")
	case "large":
		v.ask(rig.Post("/", key), "201 unkept", "201 first")
		v.ask(rig.Post("/", key), "409 unkept")
	case "retry":
		v.ask(rig.Post("/", key), "503 released")
		v.same(key, v.ask(rig.Post("/", key), "201 first"), v.ask(rig.Post("/", key), "201 replayed"))
	case "abort":
		v.ask(rig.Post("/", key), "502 unknown")
		v.ask(rig.Post("/", key), "409 unknown")
	case "gone":
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.IntN(5))*time.Millisecond)
		response, err := v.HTTP.Do(v.Request(rig.Post("/", key)).WithContext(ctx))
		if err == nil {
			_ = response.Body.Close()
		}
		cancel()
		v.ask(rig.Post("/", key), "201 first", "201 replayed")
	case "again": // a key of before: its time may be over
		v.mu.Lock()
		old := ""
		if len(v.recent) > 0 {
			old = v.recent[rand.IntN(len(v.recent))]
		}
		v.mu.Unlock()
		name, key, _ := strings.Cut(old, " ")
		if name == v.Name {
			v.ask(rig.Post("/", key), "201 first", "201 replayed")
		}
	case "keyless":
		v.ask(rig.Post("/", ""), "201")
	case "get":
		v.ask(rig.Post("/", key).With(func(c *rig.Call) { c.Method = http.MethodGet }), "201")
	case "invalid":
		v.ask(rig.Post("/", "not valid"), "400 invalid")
	case "stats":
		v.ask(rig.Call{Method: http.MethodGet, Path: "/_idem/stats.json", Header: http.Header{}}, "200")
	}
}

// soak is a Traefik under traffic that is reloaded all the time, and its Redis, which is restarted.
type soak struct {
	t       *testing.T
	traefik *hosts.Process
	redis   *redistest.Server
	backend *rig.Backend
	sites   []*rig.Site
	ledger  *soakLedger
	write   func(round int)
	number  atomic.Int64
	round   int
}

// load sends traffic for d.
func (s *soak) load(d time.Duration) {
	l := s.ledger
	l.stop = make(chan struct{})
	var wg sync.WaitGroup
	for range soakWorkers {
		wg.Go(func() {
			for !rig.Closed(l.stop) {
				n := s.number.Add(1)
				v := &visitor{s.sites[rand.IntN(len(s.sites))], l}
				v.visit(n)
			}
		})
	}
	wg.Go(func() { // restarts of Redis
		for i := 0; pause(l.stop, soakRestart); i++ {
			if i%2 == 0 {
				s.redis.Kill()
			} else {
				s.redis.Stop()
			}
			for from := s.number.Load(); s.number.Load() < from+100 && !rig.Closed(l.stop); { // so much happens without it
				time.Sleep(10 * time.Millisecond)
			}
			s.redis.Restart()
			l.mu.Lock()
			l.restarts++
			l.mu.Unlock()
		}
	})
	wg.Go(func() { // reloads
		for pause(l.stop, soakReload) {
			s.round++
			s.write(s.round)
			for rig.KeyLength(s.t, s.traefik, "soak0") != 100+s.round%50 || rig.KeyLength(s.t, s.traefik, "soak1") != 100+s.round%50 {
				time.Sleep(10 * time.Millisecond)
			}
			l.mu.Lock()
			l.reloads++
			l.mu.Unlock()
		}
	})
	time.Sleep(d)
	close(l.stop)
	wg.Wait()
}

// pause returns after d; false if stop was closed before.
func pause(stop <-chan struct{}, d time.Duration) bool {
	select {
	case <-stop:
		return false
	case <-time.After(d):
		return true
	}
}

// rest waits until nothing has ended by itself for 5 seconds, and tells what is left: answers and leases have expired
// then, and what reloads replaced is freed.
func (s *soak) rest() rig.Usage {
	for _, at := range s.sites {
		at.HTTP.CloseIdleConnections()
	}
	s.backend.CloseClientConnections()
	time.Sleep(soakTTL)
	least := rig.Measure(s.t, s.traefik, s.redis)
	for unchanged := 0; unchanged < 10; unchanged++ {
		time.Sleep(time.Second / 2)
		u := rig.Measure(s.t, s.traefik, s.redis)
		if u.Goroutines < least.Goroutines || u.Files < least.Files || u.Connections < least.Connections || u.Heap < least.Heap-(1<<20) {
			unchanged = 0
		}
		least = rig.Usage{Goroutines: min(u.Goroutines, least.Goroutines), Connections: min(u.Connections, least.Connections), Files: min(u.Files, least.Files), Heap: min(u.Heap, least.Heap), Rss: u.Rss}
	}
	return least
}

// TestSoak sends mixed traffic for SOAK, or a minute, while the configuration is reloaded and Redis restarted. It ends as
// it was after a shorter time of the same.
func TestSoak(t *testing.T) {
	d := time.Minute
	if text := os.Getenv("SOAK"); text != "" {
		var err error
		d, err = time.ParseDuration(text)
		if err != nil {
			t.Fatalf("SOAK: %v", err)
		}
	}
	l := &soakLedger{begin: time.Now(), runs: map[string][]*execution{}, answers: map[string]int{}}
	s := &soak{t: t, traefik: hosts.StartTraefik(t), redis: redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always"), backend: rig.NewBackend(t, l.serve), ledger: l}
	settings := []hosts.Settings{(&rig.Env{Redis: s.redis}).Settings(nil), (&rig.Env{}).Settings(nil)}
	s.write = func(round int) {
		for i, more := range settings {
			for key, value := range (hosts.Settings{
				"maxKeyLength": 100 + round%50, "ttl": soakTTL.String(), "lease": "30s", "inFlightTimeout": "10m", "maxResponseBodyBytes": 100 << 10, "localCacheBytes": 64 << 20,
				"stats": map[string]any{"insecure": true},
			}) {
				more[key] = value
			}
			name := fmt.Sprintf("soak%d.test", i)
			s.traefik.Write(t, name, hosts.Dynamic(name, s.backend.URL, more))
		}
	}
	s.write(0)
	for i := range settings {
		s.sites = append(s.sites, rig.SiteOf(t, s.traefik.Site(t, fmt.Sprintf("soak%d.test", i)), s.backend))
	}

	s.load(soakWarmUp)
	before := s.rest()
	l.mu.Lock()
	l.answers, l.restarts, l.reloads = map[string]int{}, 0, 0
	l.mu.Unlock()
	s.load(d)
	after := s.rest()
	grown := func() []string {
		var all []string
		for name, of := range map[string][3]int{
			"goroutines":           {before.Goroutines, after.Goroutines, 5},
			"file descriptors":     {before.Files, after.Files, 5},
			"connections to Redis": {before.Connections, after.Connections, 2},
			"MiB of heap":          {int(before.Heap >> 20), int(after.Heap >> 20), 8},
		} {
			if of[1] > of[0]+of[2] {
				all = append(all, fmt.Sprintf("%d %s at the beginning, %d at the end", of[0], name, of[1]))
			}
		}
		return all
	}
	for try := 0; try < 10 && len(grown()) > 0; try++ { // what ends by itself may take its time on a busy machine
		after = s.rest()
	}

	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "\n%s of traffic\tbefore\tafter\t\n", d)
	fmt.Fprintf(w, "heap, MiB\t%.1f\t%.1f\t\n", float64(before.Heap)/(1<<20), float64(after.Heap)/(1<<20))
	fmt.Fprintf(w, "goroutines\t%d\t%d\t\n", before.Goroutines, after.Goroutines)
	fmt.Fprintf(w, "file descriptors\t%d\t%d\t\n", before.Files, after.Files)
	fmt.Fprintf(w, "connections to Redis\t%d\t%d\t\n", before.Connections, after.Connections)
	fmt.Fprintf(w, "RSS, MiB\t%d\t%d\t\n\n", before.Rss>>20, after.Rss>>20)
	total := 0
	for _, is := range sortedKeys(l.answers) {
		fmt.Fprintf(w, "%s\t\t%d\t\n", is, l.answers[is])
		total += l.answers[is]
	}
	fmt.Fprintf(w, "answers\t\t%d\t\nreloads\t\t%d\t\nrestarts of Redis\t\t%d\t\nwrong answers\t\t%d\t\n", total, l.reloads, l.restarts, len(l.wrong))
	_ = w.Flush()
	t.Log(table.String())

	for i, wrong := range l.wrong {
		if i == 10 {
			t.Errorf("and %d more", len(l.wrong)-i)
			break
		}
		t.Error(wrong)
	}
	for _, what := range grown() {
		t.Error(what)
	}
	if l.reloads == 0 || l.restarts == 0 || total == 0 {
		t.Error("nothing happened")
	}
}

func sortedKeys(counts map[string]int) []string {
	keys := make([]string, 0, len(counts))
	for key := range counts {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
