package idem

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	miniredisserver "github.com/alicebob/miniredis/v2/server"

	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/stats"
	"github.com/example/traefik-idem/store"
	"github.com/example/traefik-idem/store/storetest"
)

// TestWhatRunsForLongIsListed has a request run for longer than the middleware calls long, until it ends.
func TestWhatRunsForLongIsListed(t *testing.T) {
	for _, endpoints := range [][]string{nil, {miniredis.RunT(t).Addr()}} {
		arrived, proceed, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
		next := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			close(arrived)
			<-proceed
			w.WriteHeader(http.StatusCreated)
		})
		config := CreateConfig()
		config.Redis.Endpoints = endpoints
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		built, err := New(ctx, next, config, t.Name())
		if err != nil {
			t.Fatal(err)
		}
		h, _ := built.(*handler)
		h.keys.Terms.Long = time.Millisecond
		go func() {
			defer close(ended)
			r := httptest.NewRequest(http.MethodPost, "http://shop.example/pay/4711?a=b", strings.NewReader("{}"))
			r.Header.Set("X-Request-ID", fmt.Sprint("k", time.Now().UnixNano()))
			h.ServeHTTP(httptest.NewRecorder(), r)
		}()
		<-arrived
		list := listKeys(h, "running")
		for len(list.Keys) == 0 { // what is never listed ends in the test's time-out, as below
			time.Sleep(10 * time.Millisecond)
			list = listKeys(h, "running")
		}
		k := list.Keys[0]
		since, err := time.Parse(time.RFC3339, k.Since)
		if k.State != "running" || k.Method != "POST" || k.Host != "shop.example" || k.Path != "/pay/4711" || k.Traefik != h.notebook.name || err != nil || time.Since(since) > time.Minute {
			t.Errorf("%s: listed is %+v", endpoints, k)
		}
		if all := listKeys(h, ""); len(all.Keys) != 1 || all.Keys[0].ID != k.ID {
			t.Errorf("%s: of all states: %+v", endpoints, all.Keys)
		}
		close(proceed)
		<-ended
		runs := 1
		for runs > 0 {
			time.Sleep(10 * time.Millisecond)
			_ = listKeys(h, "")
			h.notebook.io.Lock()
			runs = len(h.notebook.running)
			h.notebook.io.Unlock()
		}
		if again := lookKey(h, k.ID); again.Status != http.StatusOK || again.Key.State != "done" {
			t.Errorf("%s: when it has ended: %+v %+v", endpoints, again, again.Key)
		}
	}
}

// desks are handlers with keys in Redis and in memory, and what makes a record of a key there.
func desks(t *testing.T) map[string]func() (*handler, func(key, record string)) {
	fingerprint := strings.Repeat("f", store.FingerprintSize)
	return map[string]func() (*handler, func(key, record string)){
		"Redis": func() (*handler, func(key, record string)) {
			server := miniredis.RunT(t)
			h := newDoor(t, store.NewMemory(1<<20), server.Addr())
			return h, func(key, record string) {
				_ = server.Set("idem:req:"+newNote(noteOther, key, "").hash, fmt.Sprintf(record, fingerprint, "owner"))
			}
		},
		"memory": func() (*handler, func(key, record string)) {
			memory := store.NewMemory(1 << 20)
			t.Cleanup(memory.Close)
			h := newTestHandler(t, func(*Config) {})
			h.keys = &store.Keys{Memory: memory}
			h.notebook = newNotebook(memory)
			t.Cleanup(h.notebook.Close)
			return h, func(key, record string) {
				l := &store.Lease{Key: key, Fingerprint: fingerprint, Owner: "owner"}
				_ = store.Claim(memory, l, store.Endless)
				if record != store.RunningFormat {
					store.Finish(memory, l, fmt.Sprintf(record, fingerprint, "owner"), time.Minute, true)
				}
			}
		},
	}
}

// noteKeys notes count keys, and returns the first.
func noteKeys(h *handler, kind string, count int, life time.Duration) string {
	h.notebook.io.Lock()
	defer h.notebook.io.Unlock()
	for i := 0; i < count; i++ {
		note := newNote(kind, fmt.Sprint(kind, i, life), "")
		note.until = time.Now().Add(life).UnixMilli()
		note.state = map[string]store.State{noteUnknown: store.Unknown, noteRunning: store.Running}[kind]
		note.since = time.Now().UnixMilli()
		h.notebook.notes.add(note)
	}
	return fmt.Sprint(kind, 0, life)
}

// TestWhatWaitsForAnOperatorIsListed however many long runs, notes that have expired, and notes of other states are newer.
func TestWhatWaitsForAnOperatorIsListed(t *testing.T) {
	for name, open := range desks(t) {
		h, hold := open()
		waits := noteKeys(h, noteUnknown, 1, time.Hour)
		if list := listKeys(h, ""); len(list.Keys) != 0 {
			t.Errorf("%s: listed without a record: %+v", name, list)
		}
		hold(waits, store.UnknownFormat) // as after an outage
		noteKeys(h, noteUnknown, 250, 40*time.Millisecond)
		if err := exchange(h.notebook); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
		noteKeys(h, noteUnknown, 250, time.Minute) // whose records are gone
		noteKeys(h, noteRunning, 250, time.Hour)
		for i := 0; i < 250; i++ {
			hold(fmt.Sprint(noteRunning, i, time.Hour), store.RunningFormat)
		}
		for state, want := range map[string]int{"": mostListed, "unknown": 1, "running": mostListed} {
			list := listKeys(h, state)
			unknown := 0
			for _, k := range list.Keys {
				if k.ID == publicID(waits) && k.State == "unknown" {
					unknown++
				}
			}
			if len(list.Keys) != want || (unknown != 1 && state != "running") {
				t.Errorf("%s: of state %q %d are listed (%s), and of these %d wait", name, state, len(list.Keys), list.Detail, unknown)
			}
		}
	}
}

// TestNotesStayFew without Redis.
func TestNotesStayFew(t *testing.T) {
	memory := store.NewMemory(1 << 20)
	t.Cleanup(memory.Close)
	h := &handler{settings: settings{ttl: time.Minute}, notebook: newNotebook(memory)}
	t.Cleanup(h.notebook.Close)
	for i := 0; i < 20*redisclient.MaxNotes; i++ {
		sight(h, noteUnknown, fmt.Sprint("unknown ", i), "", store.Unknown)
		sight(h, noteOther, fmt.Sprint("other ", i), "", store.Free)
		if i%1500 == 0 {
			_ = exchange(h.notebook)
		}
	}
	_ = exchange(h.notebook)
	notes := h.notebook.notes
	if n := len(notes.byID); n > 4*redisclient.MaxNotes {
		t.Errorf("%d notes", n)
	}
	newest := notes.newest(noteUnknown, math.MaxInt64, 200)
	if len(newest) != 200 || newest[0].identity != fmt.Sprint("unknown ", 20*redisclient.MaxNotes-1) {
		t.Errorf("%d are listed, from %q on", len(newest), newest[0].identity)
	}
	notes.end(newest[0].id, noteUnknown)
	notes.prune(time.Now().UnixMilli())
	if n := len(notes.order[noteUnknown]) + len(notes.order[noteOther]); n != len(notes.byID) {
		t.Errorf("%d notes stay, and %d are wanted", n, len(notes.byID))
	}
	notes.prune(time.Now().Add(time.Hour).UnixMilli())
	if len(notes.byID)+len(notes.order[noteUnknown])+len(notes.order[noteOther]) != 0 {
		t.Errorf("%d notes when all have expired", len(notes.byID))
	}
	for i := 0; i < 2*redisclient.MaxNotes; i++ {
		notes.end(fmt.Sprint(i), noteRunning)
	}
	if len(notes.gone) > redisclient.MaxNotes {
		t.Errorf("Redis is to be told of %d notes that have ended", len(notes.gone))
	}
}

// TestNotesStaySmall where requests with as long a path, or caller, as net/http takes are refused.
func TestNotesStaySmall(t *testing.T) {
	memory := store.NewMemory(1 << 20)
	t.Cleanup(memory.Close)
	h := &handler{settings: settings{ttl: time.Minute}, notebook: newNotebook(memory)}
	t.Cleanup(h.notebook.Close)
	long := strings.Repeat("x", http.DefaultMaxHeaderBytes)
	for i := 0; i < 100; i++ {
		for _, kind := range []string{noteUnknown, noteUnkept, noteOther} {
			sight(h, kind, fmt.Sprint(kind, i, long), "", store.Free)
		}
	}
	keys := store.NewKeys(memory, nil, store.Terms{TTL: time.Minute, Long: time.Nanosecond})
	_ = store.ClaimKey(keys, &store.Run{Lease: &store.Lease{Key: "runs for long" + long}, Client: context.Background()})
	for len(store.LongRuns(memory)) == 0 { // one that is never found ends in the test's time-out
		time.Sleep(10 * time.Millisecond)
	}
	_ = exchange(h.notebook)
	sight(h, noteUnknown, "short", "", store.Unknown)
	_ = exchange(h.notebook)
	taken := 0
	for _, note := range h.notebook.notes.byID {
		taken += len(note.identity)
	}
	if n := len(h.notebook.notes.byID); n == 0 || taken > n*longestNoted {
		t.Errorf("%d notes take %d bytes", n, taken)
	}
}

// remembering is a process of its own that remembers, of the keys a to e, Redis' records of a to d, and has the only one of e.
func remembering(t *testing.T, address string) (*handler, func() string) {
	t.Helper()
	memory := store.NewMemory(1 << 20)
	t.Cleanup(memory.Close)
	h := newDoor(t, memory, address)
	only := "e" + store.Token(memory)
	for _, key := range []string{"a", "b", "c", "d", only} {
		l := &store.Run{Lease: &store.Lease{Key: key, Fingerprint: strings.Repeat("f", store.FingerprintSize)}, Client: context.Background()}
		held := claim(h, l)
		if key == only {
			_ = store.Finish(memory, l.Lease, unknownRecord(l), time.Minute, true)
		} else if held == nil {
			finish(h, l, unknownRecord(l))
		}
	}
	return h, func() string {
		known := ""
		for _, key := range []string{"a", "b", "c", "d", only} {
			if store.Lookup(memory, key) != nil {
				known += key[:1]
			}
		}
		return known
	}
}

// TestWhoHasMissedMuchForgetsAll has a process sleep while more keys are settled than Redis tells of, another one while Redis loses its
// data, and one that hears of all.
func TestWhoHasMissedMuchForgetsAll(t *testing.T) {
	server := miniredis.RunT(t)
	hears, known := remembering(t, server.Addr())
	sleeps, knownAsleep := remembering(t, server.Addr())
	for _, h := range []*handler{hears, sleeps} {
		if err := exchange(h.notebook); err != nil {
			t.Fatal(err)
		}
	}
	operator := newDoor(t, store.NewMemory(1<<20), server.Addr())
	settle := func(key string) {
		note := newNote(noteOther, key, "")
		seen, err := lookAt(operator, note)
		if err != nil || seen == nil {
			t.Fatalf("key %s has %+v, %v", key, seen, err)
		}
		if answer := settleKey(operator, "boss", note, seen, "", "settled"); answer.Status != http.StatusOK {
			t.Fatalf("%+v", answer)
		}
	}
	settle("a")
	settle("b")
	_ = exchange(hears.notebook)
	if got := known(); got != "cde" {
		t.Errorf("who has heard knows %s", got)
	}
	if got := knownAsleep(); got != "abcde" {
		t.Errorf("who sleeps knows %s", got)
	}
	for i := 0; i < 300; i++ {
		operator.notebook.settled = append(operator.notebook.settled, redisclient.Settled{Hash: fmt.Sprintf("%064x", i), Version: "v"})
	}
	_ = exchange(operator.notebook)
	_ = exchange(sleeps.notebook)
	if got := knownAsleep(); got != "e" {
		t.Errorf("who has slept knows %s", got)
	}
	server.FlushAll()
	_ = exchange(hears.notebook)
	if got := known(); got != "cde" {
		t.Errorf("who remembers what Redis has lost knows %s", got)
	}
}

// TestAnOnlyCopyIsForgottenIfItWasSettled but not another record of that key, nor one that came after.
func TestAnOnlyCopyIsForgottenIfItWasSettled(t *testing.T) {
	c := storetest.NewClock()
	m := store.NewMemoryClock(1<<20, c.Since)
	t.Cleanup(m.Close)
	hash := strings.Repeat("0123456789abcdef", 4)
	fingerprint := strings.Repeat("f", store.FingerprintSize)
	keep := func(record string, onlyCopy bool) {
		l := &store.Lease{Key: "k", Owner: "o", Fingerprint: fingerprint, Wire: "$80\r\n" + hash + "\r\n"}
		if store.Claim(m, l, store.Endless) != nil || !store.Finish(m, l, record, time.Minute, onlyCopy) {
			t.Fatal("it was not kept")
		}
	}
	answer := storetest.Record(fingerprint, &store.Answer{Status: 201, Body: "yes"})
	other := fmt.Sprintf(store.UnknownFormat, fingerprint, "o")
	before, after := -time.Second, 2*time.Second // the record was kept
	for _, test := range []struct {
		settled  string // the record that was
		at       time.Duration
		onlyCopy bool
		copies   bool
		dropped  bool
	}{
		{answer, before, true, true, true},
		{store.KeyOnly(answer), before, true, true, true},
		{other, before, true, true, false},
		{other, after, true, true, true}, // Redis had not taken this one
		{other, after, true, false, false},
		{answer, after, true, false, false},
		{other, before, false, false, true},
	} {
		keep(answer, test.onlyCopy)
		at := c.Now().Add(test.at)
		store.Forget(m, map[string]store.Settlement{"other": {Version: "v", At: at}}, 5, true)
		if store.Lookup(m, "k") == nil {
			t.Fatalf("%+v: another key's is forgotten", test)
		}
		store.Forget(m, map[string]store.Settlement{hash: {Version: store.Version(test.settled), At: at}}, 5, test.copies)
		if dropped := store.Lookup(m, "k") == nil; dropped != test.dropped {
			t.Errorf("%+v: forgotten: %t", test, dropped)
		}
		c.Pass(2 * time.Minute)
		m.Sweep()
	}
}

// TestWhoHasSleptAsksWhatWasSettled before it replays what it remembers, once for all that ask.
func TestWhoHasSleptAsksWhatWasSettled(t *testing.T) {
	server := miniredis.RunT(t)
	c := storetest.NewClock()
	m := store.NewMemoryClock(1<<20, c.Since)
	t.Cleanup(m.Close)
	sleeper, operator := newDoor(t, m, server.Addr()), newDoor(t, store.NewMemory(1<<20), server.Addr())
	fingerprint := strings.Repeat("f", store.FingerprintSize)
	record := storetest.Record(fingerprint, &store.Answer{Status: 201, Body: "old"})
	run := func(h *handler, key string) *store.Held {
		l := &store.Run{Lease: &store.Lease{Key: key, Fingerprint: fingerprint}, Client: context.Background()}
		held := claim(h, l)
		if held == nil && !finish(h, l, record) {
			t.Fatal("it was not kept")
		}
		return held
	}
	for _, key := range []string{"a", "b"} {
		if run(sleeper, key) != nil || run(sleeper, key).State != store.Done {
			t.Fatal("it is not remembered")
		}
		note := newNote(noteOther, key, "")
		seen, err := lookAt(operator, note)
		if err != nil {
			t.Fatal(err)
		}
		if answer := settleKey(operator, "boss", note, seen, "", "settled"); answer.Status != http.StatusOK {
			t.Fatalf("%+v", answer)
		}
		if held := run(sleeper, key); held == nil {
			t.Error("what was just remembered is not replayed from memory")
		}
		c.Pass(newsLife)
		if held := run(sleeper, key); held != nil {
			t.Errorf("%s: after a sleep, the released key has %+v", key, held)
		}
	}
	server.Close()
	c.Pass(newsLife)
	if held := run(sleeper, "b"); held == nil || held.State != store.Done {
		t.Errorf("without Redis, what is remembered is not replayed: %+v", held)
	}
}

// TestWhatIsRememberedLateIsForgotten also where many keys are settled meanwhile: a request has read a record before it was settled,
// and remembers it after.
func TestWhatIsRememberedLateIsForgotten(t *testing.T) {
	server := miniredis.RunT(t)
	other, _ := remembering(t, server.Addr())
	memory := store.NewMemory(1 << 20)
	t.Cleanup(memory.Close)
	h := newDoor(t, memory, server.Addr())
	l := &store.Run{Lease: &store.Lease{Key: "a", Fingerprint: strings.Repeat("f", store.FingerprintSize)}, Client: context.Background()}
	held, err := redisclient.Claim(h.shared, l.Lease, time.Minute)
	if err != nil || held == nil {
		t.Fatalf("%+v, %v", held, err)
	}
	for _, key := range []string{"a", "b", "c", "d"} {
		note := newNote(noteOther, key, "")
		seen, err := lookAt(other, note)
		if err != nil {
			t.Fatal(err)
		}
		if answer := settleKey(h, "boss", note, seen, "", "settled"); answer.Status != http.StatusOK {
			t.Fatalf("%+v", answer)
		}
	}
	notGranted(h, l, held, nil)
	if store.Lookup(memory, "a") == nil {
		t.Fatal("it is not remembered")
	}
	for store.Lookup(memory, "a") != nil { // what is never forgotten ends in the test's time-out
		time.Sleep(10 * time.Millisecond)
		_ = exchange(h.notebook)
	}
}

// TestNewsAreAsOldAsTheQuestion has Redis take its time to reply: something may be settled meanwhile.
func TestNewsAreAsOldAsTheQuestion(t *testing.T) {
	const took = 100 * time.Millisecond
	server := miniredis.RunT(t)
	c := storetest.NewClock()
	m := store.NewMemoryClock(1<<20, c.Since)
	t.Cleanup(m.Close)
	h := newDoor(t, m, server.Addr())
	sight(h, noteOther, "k", "", store.Free)
	server.Server().SetPreHook(func(_ *miniredisserver.Peer, command string, _ ...string) bool {
		if command == "EVAL" {
			time.Sleep(took)
		}
		return false
	})
	err := exchange(h.notebook)
	c.Pass(newsLife - took/2)
	if err != nil || !store.Behind(m) {
		t.Errorf("what was settled %s ago counts as known: %v", newsLife+took/2, err)
	}
}

// TestWhereARequestWentStandsInItsIdentity with every kind of scope.
func TestWhereARequestWentStandsInItsIdentity(t *testing.T) {
	for _, scope := range [][]string{{"none"}, {"Host"}, {"Authorization"}, {"Host", "Authorization", "X-Tenant"}, {"Host", "cookie:session"}} {
		h := newTestHandler(t, func(c *Config) { c.Scope = scope })
		r := httptest.NewRequest(http.MethodPost, "http://Shop.example/a%2Fb/%C3%A4%20%22?x=y", nil)
		r.Header = http.Header{"X-Request-Id": {"k"}, "Authorization": {`"a" "b"`}, "X-Tenant": {`"t"`}, "Cookie": {"session=s"}, "X-Forwarded-Prefix": {`/"p"`}}
		l := newRun(h, r, findKey(h, r, nil, present), nil)
		want := stats.Where("POST", "shop.example", r.URL.EscapedPath())
		if got := whereOf(l.Key, "shop.example"); got != want {
			t.Errorf("scope %s: %q, want %q", scope, got, want)
		}
	}
}
