package idem

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

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
		for len(listKeys(h, "running").Keys) > 0 {
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// TestNotesStayFew without Redis.
func TestNotesStayFew(t *testing.T) {
	memory := store.NewMemory(1 << 20)
	t.Cleanup(memory.Close)
	h := &handler{settings: settings{ttl: time.Minute}, notebook: newNotebook(memory)}
	t.Cleanup(h.notebook.Close)
	for i := 0; i < 20*redisclient.MostNotes; i++ {
		sight(h, noteUnknown, fmt.Sprint("unknown ", i), "", store.Unknown)
		sight(h, noteOther, fmt.Sprint("other ", i), "", store.Free)
		if i%1500 == 0 {
			_ = exchange(h.notebook)
		}
	}
	_ = exchange(h.notebook)
	notes := h.notebook.notes
	if n := len(notes.byID); n > 4*redisclient.MostNotes {
		t.Errorf("%d notes", n)
	}
	newest := notes.newest(noteUnknown, 200)
	if len(newest) != 200 || newest[0].identity != fmt.Sprint("unknown ", 20*redisclient.MostNotes-1) {
		t.Errorf("%d are listed, from %q on", len(newest), newest[0].identity)
	}
	notes.prune(time.Now().Add(time.Hour).UnixMilli())
	if len(notes.byID) != 0 {
		t.Errorf("%d notes when all have expired", len(notes.byID))
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
			if store.Look(memory, key) != nil {
				known += key[:1]
			}
		}
		return known
	}
}

func unknownRecord(l *store.Run) string {
	return fmt.Sprintf(store.UnknownFormat, l.Fingerprint, l.Owner)
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
	for _, test := range []struct {
		settled  string // the record that was
		onlyCopy bool
		copies   bool
		dropped  bool
	}{
		{answer, true, true, true},
		{store.Bare(answer), true, true, true},
		{fmt.Sprintf(store.UnknownFormat, fingerprint, "o"), true, true, false},
		{answer, true, false, false},
		{fmt.Sprintf(store.UnknownFormat, fingerprint, "o"), false, false, true},
	} {
		keep(answer, test.onlyCopy)
		store.Forget(m, map[string]string{"other": "v"}, 5, true)
		if store.Look(m, "k") == nil {
			t.Fatalf("%+v: another key's is forgotten", test)
		}
		store.Forget(m, map[string]string{hash: store.Version(test.settled)}, 5, test.copies)
		if dropped := store.Look(m, "k") == nil; dropped != test.dropped {
			t.Errorf("%+v: forgotten: %t", test, dropped)
		}
		c.Pass(2 * time.Minute)
		m.Sweep()
	}
}

// TestWhereARequestWentStandsInItsIdentity with every kind of scope.
func TestWhereARequestWentStandsInItsIdentity(t *testing.T) {
	for _, scope := range [][]string{{"none"}, {"Host"}, {"Authorization"}, {"Host", "Authorization", "X-Tenant"}, {"Host", "cookie:session"}} {
		h := newTestHandler(t, func(c *Config) { c.Scope = scope })
		r := httptest.NewRequest(http.MethodPost, "http://Shop.example/a%2Fb/%C3%A4%20%22?x=y", nil)
		r.Header = http.Header{"X-Request-Id": {"k"}, "Authorization": {`"a" "b"`}, "X-Tenant": {`"t"`}, "Cookie": {"session=s"}, "X-Forwarded-Prefix": {`/"p"`}}
		l := newLease(h, r, findKey(h, r, nil, present), nil)
		want := stats.Where("POST", "shop.example", r.URL.EscapedPath())
		if got := whereOf(l.Key, "shop.example"); got != want {
			t.Errorf("scope %s: %q, want %q", scope, got, want)
		}
	}
}
