package store_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/store"
	"github.com/example/traefik-idem/store/storetest"
)

func newMemory(t *testing.T, limit int64) (*store.Memory, *storetest.Clock) {
	t.Helper()
	c := storetest.NewClock()
	m := store.NewMemoryClock(limit, c.Since)
	t.Cleanup(m.Close)
	return m, c
}

func newKeys(t *testing.T) (*redisclient.Keys, *miniredis.Miniredis) {
	t.Helper()
	server := miniredis.RunT(t)
	client := redisclient.New(redisclient.Options{Address: server.Addr(), DialTimeout: time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second}, redisclient.NewBacklog())
	t.Cleanup(client.Close)
	return redisclient.NewKeys(client, "idem"), server
}

func TestMemoryConforms(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Subject {
		m, c := newMemory(t, 1<<20)
		return storetest.Memory(m, c.Pass)
	})
}

func TestRedisConforms(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Subject {
		keys, server := newKeys(t)
		return storetest.Redis(keys, server.FastForward)
	})
}

func TestLifeInMemory(t *testing.T) {
	storetest.Life(t, 5000, func() storetest.World {
		m, c := newMemory(t, 1<<20)
		return storetest.World{Start: func() storetest.Subject { return storetest.Memory(m, c.Pass) }, Pass: c.Pass}
	})
}

// TestLifeInRedis has every step sent once, and then sent twice, as if the first reply was lost.
func TestLifeInRedis(t *testing.T) {
	for _, times := range []int{1, 2} {
		keys, server := newKeys(t)
		storetest.Life(t, 300, func() storetest.World {
			server.FlushAll()
			return storetest.World{Start: func() storetest.Subject { return repeated(storetest.Redis(keys, nil), times) }, Pass: server.FastForward}
		})
	}
}

// repeated takes every step of s that many times, and tells what the last one said; of releases, whether any had an effect.
func repeated(s storetest.Subject, times int) storetest.Subject {
	again := s
	again.Claim = func(l *store.Lease, d time.Duration) (held *store.Held, err error) {
		for i := 0; i < times && err == nil; i++ {
			held, err = s.Claim(l, d)
		}
		return held, err
	}
	again.Renew = func(l *store.Lease, d time.Duration) (kept bool, err error) {
		for i := 0; i < times && err == nil; i++ {
			kept, err = s.Renew(l, d)
		}
		return kept, err
	}
	again.Finish = func(l *store.Lease, record string, ttl time.Duration) (kept bool, err error) {
		for i := 0; i < times && err == nil; i++ {
			kept, err = s.Finish(l, record, ttl)
		}
		return kept, err
	}
	again.Settle = func(key string, seen *redisclient.Seen, record string, ttl time.Duration) (kept bool, err error) {
		for i := 0; i < times && err == nil; i++ {
			var now bool
			now, err = s.Settle(key, seen, record, ttl)
			kept = kept || now
		}
		return kept, err
	}
	again.Release = func(l *store.Lease) (kept bool, err error) {
		for i := 0; i < times && err == nil; i++ {
			var now bool
			now, err = s.Release(l)
			kept = kept || now
		}
		return kept, err
	}
	return again
}

var fingerprint = strings.Repeat("f", store.FingerprintSize)

// finished has a header, so that there is something to be read.
func finished(m *store.Memory, key string, size int, ttl time.Duration, onlyCopy bool) {
	l := &store.Lease{Key: key, Fingerprint: fingerprint, Owner: "o", Wire: strings.Repeat("w", 100)}
	store.Claim(m, l, store.Endless)
	store.Finish(m, l, storetest.Record(fingerprint, &store.Answer{Status: 200, Header: http.Header{"A": {"b"}}, Body: strings.Repeat("x", size)}), ttl, onlyCopy)
}

// stateOf is what the store says of a key.
func stateOf(m *store.Memory, key string) store.State {
	held := store.Lookup(m, key)
	if held == nil {
		return store.Free
	}
	return held.State
}

func TestMemoryIsBoundedAndDropsTheOldestFirst(t *testing.T) {
	const limit = 100 << 10
	m, _ := newMemory(t, limit)
	for i := 0; i < 1000; i++ {
		finished(m, fmt.Sprint(i), 1000, time.Minute, false)
		_, used, _ := m.Usage()
		if used > limit {
			t.Fatalf("%d bytes after %d answers, limit %d", used, i+1, limit)
		}
	}
	records, _, evicted := m.Usage()
	if records < 40 || int(evicted) != 1000-records {
		t.Errorf("%d records left and %d dropped, want at least 40, and 1000 together", records, evicted)
	}
	for i := 0; i < 1000; i++ {
		ok := stateOf(m, fmt.Sprint(i)) != store.Free
		if ok != (i >= 1000-records) {
			t.Fatalf("answer %d kept: %t, with the youngest %d kept", i, ok, records)
		}
	}
}

// TestWhatIsReadFromARecordCounts has a duplicate of every request, so that the store keeps what it has read.
func TestWhatIsReadFromARecordCounts(t *testing.T) {
	const limit = 100 << 10
	m, c := newMemory(t, limit)
	for i := 0; i < 300; i++ {
		finished(m, fmt.Sprint(i), 1000, time.Minute, i%2 == 0)
		_, before, _ := m.Usage()
		first, second := store.Lookup(m, fmt.Sprint(i)), store.Lookup(m, fmt.Sprint(i))
		_, used, _ := m.Usage()
		if used > limit || (used <= before && before < limit/2) || first.Answer != second.Answer {
			t.Fatalf("%d bytes and then %d, limit %d; one answer for both duplicates: %t", before, used, limit, first.Answer == second.Answer)
		}
	}
	c.Pass(2 * time.Minute)
	m.Sweep()
	records, used, _ := m.Usage()
	if records != 0 || used != 0 {
		t.Errorf("%d records and %d bytes after all expired", records, used)
	}
}

func TestAKeyOutlivesItsAnswer(t *testing.T) {
	const limit = 100 << 10
	m, _ := newMemory(t, limit)
	state := func(i int) store.State { return stateOf(m, fmt.Sprint(i)) }
	for i := 0; i < 50; i++ {
		finished(m, fmt.Sprint(i), 5000, time.Minute, true)
		_, used, _ := m.Usage()
		if used > limit {
			t.Fatalf("%d bytes after %d answers, limit %d", used, i+1, limit)
		}
	}
	if state(0) != store.Unkept || state(49) != store.Done {
		t.Errorf("the oldest key is %q and the youngest %q, want %q and %q", state(0), state(49), store.Unkept, store.Done)
	}
	finished(m, "huge", limit, time.Minute, true)
	if held := store.Lookup(m, "huge"); held == nil || held.State != store.Unkept || held.Answer.Status != 200 {
		t.Errorf("an answer larger than the store: %+v", held)
	}
	if state(49) != store.Done {
		t.Error("an answer larger than the store dropped others")
	}
	for i := 100; i < 2100; i++ {
		finished(m, fmt.Sprint(i), 5000, time.Minute, true)
	}
	records, used, _ := m.Usage()
	if used > limit || state(100) != store.Free || state(2099) != store.Done || state(2098) != store.Done || state(2080) != store.Unkept {
		t.Errorf("%d records of %d bytes, limit %d; the youngest is %q, an older one %q, the oldest %q", records, used, limit, state(2099), state(2080), state(100))
	}
}

// TestManyRecords fills a store that makes room for many records at a time.
func TestManyRecords(t *testing.T) {
	for _, onlyCopy := range []bool{false, true} {
		const limit = 4 << 20
		m, c := newMemory(t, limit)
		var before int64
		for i := 0; i < 10000; i++ {
			finished(m, fmt.Sprint(i), 500, time.Minute, onlyCopy)
			_, used, _ := m.Usage()
			if used > limit || (i > 5000 && used < limit*9/10) {
				t.Fatalf("onlyCopy %t: %d bytes after %d answers, and %d before, limit %d", onlyCopy, used, i+1, before, limit)
			}
			before = used
		}
		states := ""
		for i := 0; i < 10000; i++ {
			s := string(stateOf(m, fmt.Sprint(i)))
			if !strings.HasSuffix(states, s) {
				states += s
			}
		}
		want := "\x00D"
		if onlyCopy {
			want = "\x00KD"
		}
		if states != want {
			t.Errorf("onlyCopy %t: from the oldest on, states are %q, want %q", onlyCopy, states, want)
		}
		if !onlyCopy { // an answer that has room alone drops all others, and not itself
			finished(m, "large", limit-2000, time.Minute, false)
			if got := stateOf(m, "large"); got != store.Done {
				t.Errorf("an answer that has room alone is %q, want %q", got, store.Done)
			}
		}
		c.Pass(2 * time.Minute)
		m.Sweep()
		records, used, _ := m.Usage()
		if records != 0 || used != 0 {
			t.Errorf("onlyCopy %t: %d records of %d bytes when all have expired", onlyCopy, records, used)
		}
	}
}

// TestMostLargeAnswersFindRoom in a full store: evicting looks at all that was finished lately.
func TestMostLargeAnswersFindRoom(t *testing.T) {
	for _, onlyCopy := range []bool{false, true} {
		const limit = 8 << 20
		m, _ := newMemory(t, limit)
		made := 0
		for i := 0; i < 2000; i++ {
			_, _, before := m.Usage()
			finished(m, fmt.Sprint(i), limit/200, time.Minute, onlyCopy)
			_, used, after := m.Usage()
			if after > before {
				made++
			}
			if used > limit || (i > 1000 && used < limit*9/10) {
				t.Fatalf("onlyCopy %t: %d bytes after %d answers, limit %d", onlyCopy, used, i+1, limit)
			}
		}
		if made > 1000 {
			t.Errorf("onlyCopy %t: room was made %d times for 2000 answers", onlyCopy, made)
		}
	}
}

// TestAnExpiredRecordIsNotTheKeysNextOne has a key claimed anew while its last record is still to be swept.
func TestAnExpiredRecordIsNotTheKeysNextOne(t *testing.T) {
	for _, onlyCopy := range []bool{false, true} {
		m, c := newMemory(t, 100<<10)
		finished(m, "k", 1000, time.Second, onlyCopy)
		c.Pass(time.Second)
		if held := store.Claim(m, &store.Lease{Key: "k", Owner: "next"}, store.Endless); held != nil {
			t.Fatalf("an expired key is %q", held.State)
		}
		for i := 0; i < 1000; i++ {
			finished(m, fmt.Sprint(i), 1000, time.Minute, onlyCopy)
		}
		if got := stateOf(m, "k"); got != store.Running {
			t.Errorf("onlyCopy %t: the key is %q, want %q", onlyCopy, got, store.Running)
		}
	}
}

// TestAFormOnTheWireCounts has leases that another store knows.
func TestAFormOnTheWireCounts(t *testing.T) {
	m, c := newMemory(t, 100<<10)
	l := &store.Lease{Key: "k", Fingerprint: fingerprint, Owner: "o", Wire: strings.Repeat("w", 5000)}
	store.Claim(m, l, store.Endless)
	store.Finish(m, l, storetest.Record(fingerprint, &store.Answer{Status: 200}), time.Minute, false)
	_, used, _ := m.Usage()
	if used < 5000 {
		t.Errorf("%d bytes, 5000 of them on the wire", used)
	}
	c.Pass(2 * time.Minute)
	m.Sweep()
	_, used, _ = m.Usage()
	if used != 0 {
		t.Errorf("%d bytes when all have expired", used)
	}
}

func TestMemoryNeverDropsARunningKey(t *testing.T) {
	m, _ := newMemory(t, 0)
	for i := 0; i < 100; i++ {
		store.Claim(m, &store.Lease{Key: fmt.Sprint(i), Owner: "o"}, time.Minute)
		finished(m, "f"+fmt.Sprint(i), 10, time.Minute, false)
	}
	records, used, _ := m.Usage()
	if records != 100 || used != 0 {
		t.Errorf("%d records and %d bytes, want the 100 running ones and none", records, used)
	}
}

func TestMemoryFreesWhatExpired(t *testing.T) {
	m, c := newMemory(t, 1<<30)
	for i := 0; i < 1000; i++ { // more than one sweep looks at under one hold of its lock
		finished(m, fmt.Sprint(i), 10, time.Duration(1+i%3)*time.Second, false)
	}
	finished(m, "kept", 10, time.Minute, false)
	c.Pass(5 * time.Second)
	m.Sweep()
	records, used, _ := m.Usage()
	if records != 1 || used <= 0 {
		t.Errorf("%d records and %d bytes after all but one expired", records, used)
	}
	c.Pass(time.Minute)
	m.Sweep()
	records, used, _ = m.Usage()
	if records != 0 || used != 0 {
		t.Errorf("%d records and %d bytes after all expired", records, used)
	}
}

// TestALostLeaseLeavesNothing has owners that come to their end after their lease, whatever that end is.
func TestALostLeaseLeavesNothing(t *testing.T) {
	m, c := newMemory(t, 1<<20)
	for i, end := range []func(l *store.Lease) bool{
		func(l *store.Lease) bool { return store.Release(m, l) },
		func(l *store.Lease) bool {
			return store.Finish(m, l, fmt.Sprintf(store.UnknownFormat, fingerprint, l.Owner), time.Minute, true)
		},
	} {
		l := &store.Lease{Key: fmt.Sprint(i), Owner: "o"}
		store.Claim(m, l, time.Second)
		c.Pass(time.Second)
		if end(l) {
			t.Errorf("end %d of a lost lease had an effect", i)
		}
	}
	records, _, _ := m.Usage()
	if records != 0 {
		t.Errorf("%d records left", records)
	}
}

func TestMemoryFreesWithoutTraffic(_ *testing.T) {
	m := store.NewMemory(1 << 20)
	defer m.Close()
	finished(m, "k", 10, 10*time.Millisecond, false)
	for {
		records, _, _ := m.Usage() // the test's own time-out ends a sweep that never comes
		if records == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestAPanicInASweep ends neither the sweeping nor, with a lock that it holds, everything.
func TestAPanicInASweep(t *testing.T) {
	var calls, first, last atomic.Int64 // of the clock; from first to last it panics
	first.Store(math.MaxInt64)
	m := store.NewMemoryClock(1<<20, func(epoch time.Time) time.Duration {
		n := calls.Add(1)
		if n >= first.Load() && n <= last.Load() {
			panic("no time")
		}
		return time.Since(epoch)
	})
	defer m.Close()
	finished(m, "k", 10, 10*time.Millisecond, false)
	k := store.NewKeys(m, nil, store.Terms{TTL: time.Millisecond, Lease: time.Minute})
	r := &store.Run{Lease: &store.Lease{Key: "l", Fingerprint: fingerprint}, Client: context.Background()}
	store.ClaimKey(k, r)
	store.KeepAnswer(k, r.Lease, fmt.Sprintf(store.UnknownFormat, fingerprint, "o"))
	n := calls.Load()
	last.Store(n + 10) // also of the first sweeps by the timer
	first.Store(n + 2) // when it puts what has ended where it expires
	func() {
		defer func() {
			if recover() == nil {
				t.Error("there was no panic")
			}
		}()
		m.Sweep()
	}()
	for {
		records, _, _ := m.Usage() // the test's own time-out ends a sweep that never comes
		if records == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestTheWatchdogTicksRarely whatever a middleware has for detachTimeout.
func TestTheWatchdogTicksRarely(t *testing.T) {
	var calls atomic.Int64 // of the clock: some at each tick
	m := store.NewMemoryClock(1<<20, func(epoch time.Time) time.Duration {
		calls.Add(1)
		return time.Since(epoch)
	})
	defer m.Close()
	k := store.NewKeys(m, nil, store.Terms{TTL: time.Minute, Lease: time.Minute, DetachTimeout: time.Millisecond})
	r := &store.Run{Lease: &store.Lease{Key: "k", Fingerprint: fingerprint}, Client: context.Background()}
	begin := time.Now()
	store.ClaimKey(k, r)
	for time.Since(begin) < 250*time.Millisecond || calls.Load() < 2 { // a watchdog that never ticks ends in the test's time-out
		time.Sleep(10 * time.Millisecond)
	}
	if n, took := calls.Load(), time.Since(begin); n > int64(100*took/(250*time.Millisecond)) {
		t.Errorf("it looked at the clock %d times in %s", n, took)
	}
	store.Release(m, r.Lease)
}

// TestAShortLeaseHurriesNoOther has renewals fail of a lease that is long, beside a middleware whose lease is short.
func TestAShortLeaseHurriesNoOther(t *testing.T) {
	m := store.NewMemory(1 << 20)
	defer m.Close()
	failing := &atomic.Int32{}
	terms := func(lease time.Duration, tries *atomic.Int64) store.Terms {
		return store.Terms{TTL: time.Minute, Lease: lease, Renew: func(*store.Lease, bool) bool {
			tries.Add(1)
			return false
		}}
	}
	var long, short atomic.Int64
	begin := time.Now()
	for key, terms := range map[string]store.Terms{"long": terms(time.Hour, &long), "short": terms(60*time.Millisecond, &short)} {
		r := &store.Run{Lease: &store.Lease{Key: key, Fingerprint: fingerprint, Degraded: true}, Client: context.Background()}
		store.ClaimLocal(store.NewKeys(m, failing, terms), r)
		defer store.Release(m, r.Lease)
	}
	for long.Load() < 3 || short.Load() < 50 { // what is never renewed ends in the test's time-out
		time.Sleep(time.Millisecond)
	}
	if n, most := long.Load(), int64(time.Since(begin)/(250*time.Millisecond))+1; n > most {
		t.Errorf("the long one was renewed %d times, want %d at most", n, most)
	}
}

func TestAnExpiredLeaseWakesItsWaiters(_ *testing.T) {
	m := store.NewMemory(1 << 20)
	defer m.Close()
	store.Claim(m, &store.Lease{Key: "k", Owner: "o"}, 10*time.Millisecond)
	for store.Wait(context.Background(), m, "k") { // a waiter that is not woken ends in the test's time-out
		if stateOf(m, "k") == store.Free {
			return
		}
	}
}

func TestDecodeRefusesWhatIsNotARecord(t *testing.T) {
	answer := &store.Answer{Status: 200, Header: http.Header{"A": {"b"}}, Body: "body"}
	good := storetest.Record(fingerprint, answer)
	held, err := store.Decode(good)
	if err != nil || !reflect.DeepEqual(held.Answer, answer) {
		t.Fatalf("decode of a record: %+v, %v", held, err)
	}
	edit := func(at int, s string) string {
		return good[:at] + s + good[at+len(s):]
	}
	for name, record := range map[string]string{
		"nothing":           "",
		"text":              "somebody else's value, long enough to have a head",
		"cut in the head":   good[:20],
		"cut in the status": good[:39],
		"cut behind it":     good[:42],
		"cut in the header": good[:46],
		"other layout":      edit(4, "0"),
		"state":             edit(5, "X"),
		"status":            edit(38, "abc"),
		"small status":      edit(38, "099"),
		"no line":           edit(41, "  "),
		"header":            edit(43, ": b"),
	} {
		_, err := store.Decode(record)
		if !errors.Is(err, store.ErrForeign) {
			t.Errorf("%s: error %v, want %v", name, err, store.ErrForeign)
		}
	}
}
