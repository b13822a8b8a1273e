package stats

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"
)

// slowStore is a process' store that fails when it is told to, before or after it has done its work.
type slowStore struct {
	ProcessStore
	sequence     int64
	fail, forget bool
}

var errAway = errors.New("away")

func (s *slowStore) Add(process string, sequence, now int64, numbers *Numbers, limits Limits) error {
	if s.forget {
		s.numbers = NewNumbers()
		s.forget = false
	}
	if sequence > s.sequence {
		s.sequence = sequence
		_ = s.ProcessStore.Add(process, sequence, now, numbers, limits)
	}
	if s.fail {
		return errAway
	}
	return nil
}

func (s *slowStore) Trouble() error {
	if s.fail {
		return errAway
	}
	return nil
}

func to(path string) *http.Request {
	return &http.Request{Method: http.MethodPost, Host: "a", URL: &url.URL{Path: path}}
}

type noRecords struct{}

func (noRecords) Usage() (records int, bytes, evicted int64) { return 0, 0, 0 }

type noRequests struct{}

func (noRequests) TakeClaims() int64               { return 0 }
func (noRequests) Running() (int, int, *Histogram) { return 0, 0, NewHistogram() }
func (noRequests) CountIn(*Collector) bool         { return false }

// oneRequest runs until it is told to end.
type oneRequest struct {
	noRequests
	ended bool
}

func (r *oneRequest) CountIn(*Collector) bool { return !r.ended }

func newCollector(t *testing.T) (*Collector, *slowStore) {
	store := &slowStore{ProcessStore: *NewProcessStore(noRecords{})}
	c := New("this process", store, Limits{TTL: time.Hour, MaxEndpoints: 10}, noRequests{})
	t.Cleanup(c.Close)
	return c, store
}

func TestWhatIsSentTwiceIsAddedOnce(t *testing.T) {
	c, store := newCollector(t)
	for round := int64(1); round <= 3; round++ {
		store.fail = true
		Count(c.Counter("", nil), Conflicts, to("/"))
		c.flush(time.Now()) // it arrives, and the reply is lost
		Count(c.Counter("", nil), Conflicts, to("/"))
		c.flush(time.Now())
		store.fail = false
		c.flush(time.Now())
		c.flush(time.Now())
		if got := store.numbers.Totals[Conflicts]; got != 2*round {
			t.Errorf("round %d: %d", round, got)
		}
	}
	if got := store.numbers.Endpoints["POST a /"].Duplicates; got != 6 {
		t.Errorf("%d duplicates", got)
	}
}

// TestSharedMetricsBeginWithWhatAllShare in a process that cannot ask the store at first.
func TestSharedMetricsBeginWithWhatAllShare(t *testing.T) {
	c, store := newCollector(t)
	store.numbers.Totals[UnknownOutcomes] = 40
	store.fail = true
	c.Counts[UnknownOutcomes].Add(1)
	for range 2 {
		text := c.Metrics("v")
		if strings.Contains(text, "_total") || strings.Contains(text, "memory_bytes") || !strings.Contains(text, "\ntraefik_idem_store_healthy 0\n") || !strings.Contains(text, "build_info") {
			t.Errorf("while the store is away:\n%s", text)
		}
		if page := Page(c.Read(), "m", "v", &Desk{}); !strings.Contains(page, "what this Traefik has counted since it started") {
			t.Errorf("the page says\n%s", page)
		}
	}
	store.fail = false
	c.lastFailure = time.Time{}
	for _, fails := range []bool{false, true} {
		store.fail = fails
		c.Counts[UnknownOutcomes].Add(1)
		if text := c.Metrics("v"); !regexp.MustCompile(`\ntraefik_idem_unknown_outcomes_total 4[23]\n`).MatchString(text) {
			t.Errorf("once the store has answered:\n%s", text)
		}
	}
}

func TestManyCountAtOnce(t *testing.T) {
	c, _ := newCollector(t)
	var all sync.WaitGroup
	for worker := range 8 {
		all.Add(1)
		go func() {
			defer all.Done()
			for i := range 500 {
				c.Counts[First].Add(1)
				Count(c.Counter("", nil), ReplaysLocal, to(fmt.Sprintf("/p%d", i%(worker+1))))
				if i%100 == 0 {
					c.flush(time.Now())
					_ = c.Metrics("v0")
				}
			}
		}()
	}
	all.Wait()
	n := c.Read().Numbers
	sum := int64(0)
	for _, e := range n.Endpoints {
		sum += e.Duplicates
	}
	if n.Totals[First] != 4000 || n.Duplicates() != 4000 || sum != 4000 || n.Protected() != 8000 || len(n.Endpoints) != 8 {
		t.Errorf("%v, %d endpoints with %d", n.Totals, len(n.Endpoints), sum)
	}
}

func TestMetricsGoOnAfterALoss(t *testing.T) {
	c, store := newCollector(t)
	for want := 1; want <= 6; want++ {
		Count(c.Counter("", nil), Unknown, to("/"))
		store.forget = want%2 == 0
		metrics := c.Metrics("v0")
		for _, line := range []string{"traefik_idem_duplicates_total %d\n", `traefik_idem_endpoint_duplicates_total{method="POST",host="a",path="/"} %d` + "\n"} {
			if !strings.Contains(metrics, fmt.Sprintf(line, want)) {
				t.Errorf("want %d:\n%s", want, metrics)
			}
		}
	}
}

func TestPrune(t *testing.T) {
	n := NewNumbers()
	now := int64(1_000_000_000)
	for i := range int64(500) {
		n.Minutes[now/60-i] = 1
		n.Hours[now/3600-i] = 1
		n.Endpoints[fmt.Sprint("POST a /", i)] = Endpoint{Duplicates: 1, Last: now - 60*i}
	}
	n.Prune(now, time.Hour)
	if len(n.Minutes) != Minutes || len(n.Hours) != Hours || len(n.Endpoints) != 61 {
		t.Errorf("%d minutes, %d hours, %d endpoints", len(n.Minutes), len(n.Hours), len(n.Endpoints))
	}
	for _, count := range bars(n.Minutes, now/60, Minutes) {
		if count != 1 {
			t.Errorf("minutes %v", n.Minutes)
		}
	}
}

func FuzzEndpoint(f *testing.F) {
	f.Add("POST", "a.test", "/")
	f.Add("P\nOST", "<b>", "/\xff")
	f.Add("", strings.Repeat("x", 300), strings.Repeat("é", 9000))
	f.Add("", "\x80"+strings.Repeat("x", 300), "/")
	f.Add("GET", "a.test", "/1/2/з %/a/x/b?"+strings.Repeat("\u202e", 300))
	f.Add("GET", "a.test", "/1/"+strings.Repeat("x", 505)+" 1/")
	f.Add("  % %23", "", "/")
	f.Add("GET", "a % %23", "/%2523")
	k := &Counter{patterns: []Pattern{{Path: "/a/*/b", Methods: map[string]bool{"*": true}, Matches: regexp.MustCompile("^(?s:/a/.*/b)")}}}
	f.Fuzz(func(t *testing.T, method, host, path string) {
		path = (&url.URL{Path: path}).EscapedPath()
		for _, raw := range []string{path, clip(path, maxRaw), clip(path, 100)} {
			name := k.endpointOf(method + " " + host + " " + raw)
			if !utf8.ValidString(name) || strings.Count(name, " ") != 2 || len(name) > maxMethod+maxHost+maxPath+2+3*len(ellipsis) {
				t.Errorf("%q", name)
			}
			if again := k.endpointOf(name); again != name {
				t.Errorf("%q becomes %q", name, again)
			}
		}
	})
}

func TestAmounts(t *testing.T) {
	for got, want := range map[string]string{
		grouped(0): "0", grouped(999): "999", grouped(1000): "1 000", grouped(1234567): "1 234 567",
		percent(0, 0): "–", percent(1, 3): "33.3 %", percent(1, 100000): "< 0.1 %",
		size(0): "0 bytes", size(2048): "2.0 KB", size(11 << 20): "11.0 MB",
		ago(0): "just now", ago(59): "59 s ago", ago(3599): "59 min ago", ago(7200): "2 h ago", ago(200000): "2 days ago",
		several(1, "key"): "1 key", several(0, "key"): "0 keys",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestThePageSaysWhenMemoryWasMeasured, since there may be other keys by now.
func TestThePageSaysWhenMemoryWasMeasured(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 35, 0, time.UTC)
	for _, c := range []struct {
		snapshot Snapshot
		want     string
	}{
		{Snapshot{Memory: Memory{Exact: true}, Measured: now.Add(-29 * time.Second)}, `0 keys in Redis, each measured. Measured <time datetime="2026-01-02T03:04:06Z" title="2 Jan 2026, 03:04:06 UTC">29 s ago</time>`},
		{Snapshot{Memory: Memory{Keys: 7, Estimated: true}, Measured: now}, `by its own accounts. Measured <time datetime="2026-01-02T03:04:35Z" title="2 Jan 2026, 03:04:35 UTC">just now</time>`},
		{Snapshot{Memory: Memory{Keys: 7, Bytes: 9, Scanned: 0.5}, Measured: now.Add(-time.Hour)}, `title="2 Jan 2026, 02:04:35 UTC">1 h ago</time>`},
		{Snapshot{}, "It could not be measured yet.</span>"},
		{Snapshot{Measured: now, Unmeasured: errors.New("NOPERM")}, "It cannot be measured: NOPERM</span>"},
	} {
		c.snapshot.Now, c.snapshot.Numbers = now, NewNumbers()
		page := Page(c.snapshot, "idem", "v1", &Desk{})
		if !strings.Contains(page, c.want) {
			t.Errorf("no %s in\n%s", c.want, page)
		}
	}
}

// TestAPathWhoseCallsAllBreakIsSeen, though nothing of it was ever a duplicate.
func TestAPathWhoseCallsAllBreakIsSeen(t *testing.T) {
	c, store := newCollector(t)
	for range 3 {
		Count(c.Counter("", nil), UnknownOutcomes, to("/broken"))
	}
	Count(c.Counter("", nil), Mismatches, to("/reused"))
	Count(c.Counter("", nil), ReplaysStore, to("/pay"))
	Count(c.Counter("", nil), UnknownOutcomes, to("/pay"))
	c.flush(time.Now())
	Count(c.Counter("", nil), ReplaysStore, to("/pay"))
	n := c.Read().Numbers
	for name, want := range map[string]string{"POST a /broken": "0 [0 0 0 0 0 0 0 0 3]", "POST a /reused": "0 [0 0 0 0 0 0 1]", "POST a /pay": "2 [0 2 0 0 0 0 0 0 1]"} {
		e := n.Endpoints[name]
		if got := fmt.Sprint(e.Duplicates, e.Outcomes); got != want || (e.Last == 0) != (e.Duplicates == 0) || e.Seen == 0 {
			t.Errorf("%s: %s, want %s: %+v", name, got, want, e)
		}
	}
	if got := fmt.Sprint(n.ranked()); got != "[POST a /pay POST a /broken POST a /reused]" || n.Duplicates() != 2 || n.Protected() != 3 {
		t.Errorf("%s, %d duplicates, %d protected", got, n.Duplicates(), n.Protected())
	}
	if n.Problems[0].lastHour() != 4 || n.Problems[2].lastHour() != 1 || n.Problems[1].Last != 0 {
		t.Errorf("problems %+v", n.Problems)
	}
	later := time.Now().Add(2 * time.Hour)
	n.Prune(later.Unix(), time.Hour)
	if len(n.Endpoints) != 0 || n.Problems[0].lastHour() != 0 || len(n.Problems[0].Hours) != 1 {
		t.Errorf("two hours later: %v %+v", n.Endpoints, n.Problems[0])
	}
	if got := store.numbers.Endpoints["POST a /pay"].Outcomes; fmt.Sprint(got) != "[0 2 0 0 0 0 0 0 1]" {
		t.Errorf("what is kept changes with what is shown: %v", got)
	}
}

// TestASumOfCenturies is what many long requests come to in time.
func TestASumOfCenturies(t *testing.T) {
	h := NewHistogram(time.Second)
	const year = 365 * 24 * time.Hour
	h.Observe(200*year, 1)
	h.Observe(2*year, 100)
	var b strings.Builder
	h.Copy().write(&b, "x", "")
	if !strings.Contains(b.String(), "traefik_idem_x_sum 12614400000\n") {
		t.Errorf("400 years are\n%s", b.String())
	}
}

// TestCountersAreGivenUp some time after the last of their handlers, with nothing that they have counted lost.
func TestCountersAreGivenUp(t *testing.T) {
	c, store := newCollector(t)
	k := c.Counter("", nil)
	c.Counter("", nil)
	age := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.left = k.left.Add(-counterLife)
	}
	k.Leave()
	age()
	c.flush(time.Now())
	if c.Counter("", nil) != k {
		t.Fatal("it is given up while a handler uses it")
	}
	k.Leave()
	k.Leave()
	c.flush(time.Now())
	if c.counters[""] != k {
		t.Error("it is given up at once: requests may still run")
	}
	age()
	Count(k, Conflicts, to("/"))
	c.flush(time.Now())
	if c.counters[""] != nil {
		t.Error("it is kept")
	}
	if got := store.numbers.Totals[Conflicts]; got != 1 {
		t.Errorf("of what it has counted there is %d", got)
	}
}

// TestACollectorIsKept while a request may still be counted, and while its store has not taken all numbers, but not for ever.
func TestACollectorIsKept(t *testing.T) {
	store, request := &slowStore{ProcessStore: *NewProcessStore(noRecords{})}, &oneRequest{}
	c := New("this process", store, Limits{TTL: time.Hour, MaxEndpoints: 10}, request)
	c.timer.Stop() // the test flushes
	want := func(idle bool, when string) {
		t.Helper()
		if c.Idle() != idle {
			t.Errorf("%s: idle is %t", when, !idle)
		}
	}
	want(false, "while a request runs")
	c.Coming.Add(1)
	request.ended = true
	want(false, "while a request waits")
	c.Coming.Add(-1)
	want(true, "when nobody is on the way")
	store.fail = true
	Count(c.Counter("", nil), UnknownOutcomes, to("/"))
	for range 2 {
		c.flush(time.Now())
		want(false, "while the store fails")
	}
	c.failingSince = c.failingSince.Add(-unsentLife)
	c.flush(time.Now())
	want(true, "when the store has failed for long")
	store.fail = false
	c.flush(time.Now())
	want(true, "when the store has all")
	store.fail = true
	Count(c.Counter("", nil), UnknownOutcomes, to("/"))
	c.flush(time.Now())
	want(false, "when the store fails again")
	if got := store.numbers.Totals[UnknownOutcomes]; got != 2 {
		t.Errorf("%d are counted", got)
	}
}

// TestTheTileOfAListThatIsFull says that there may be more. Unknown outcomes come first in a list.
func TestTheTileOfAListThatIsFull(t *testing.T) {
	for _, c := range []struct {
		unknown, running int
		full             bool
		want             string
	}{
		{2, 1, false, ">2 to settle<"}, {3, 0, true, ">3 or more to settle<"}, {2, 1, true, ">2 to settle<"},
		{0, 1, false, ">1 long run<"}, {0, 3, false, ">3 long runs<"}, {0, 3, true, ">3 or more long runs<"},
	} {
		d := &Desk{Full: c.full}
		for i := range c.unknown + c.running {
			k := &Key{State: "unknown"}
			if i >= c.unknown {
				k.State = "running"
			}
			d.Keys = append(d.Keys, k)
		}
		if page := Page(Snapshot{Now: time.Now(), Numbers: NewNumbers(), Loaded: true}, "m", "v", d); !strings.Contains(page, c.want) {
			t.Errorf("%+v is not on the page", c)
		}
	}
}
