package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
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
	m := store.NewMemoryClock(limit, c.Now)
	t.Cleanup(m.Close)
	return m, c
}

func newKeys(t *testing.T) (*redisclient.Keys, *miniredis.Miniredis) {
	t.Helper()
	server := miniredis.RunT(t)
	client := redisclient.New(redisclient.Options{Address: server.Addr(), DialTimeout: time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second})
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

// repeated takes every step of s so many times, and tells what the last one said; of releases, whether any had an effect.
func repeated(s storetest.Subject, times int) storetest.Subject {
	again := s
	again.Claim = func(l *store.Lease, d time.Duration) (held store.Held, err error) {
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
	again.Finish = func(l *store.Lease, rec *store.Record, ttl time.Duration) (kept bool, err error) {
		for i := 0; i < times && err == nil; i++ {
			kept, err = s.Finish(l, rec, ttl)
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

func finished(m *store.Memory, key string, size int, ttl time.Duration, sole bool) {
	l := &store.Lease{Key: key, Fingerprint: strings.Repeat("f", store.FingerprintSize), Owner: "o"}
	store.Claim(m, l, time.Minute)
	store.Finish(m, l, &store.Record{State: store.Done, Fingerprint: l.Fingerprint, Answer: &store.Answer{Status: 200, Body: make([]byte, size)}}, ttl, sole)
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
		ok := store.Lookup(m, &store.Lease{Key: fmt.Sprint(i)}).State != store.Free
		if ok != (i >= 1000-records) {
			t.Fatalf("answer %d kept: %t, with the youngest %d kept", i, ok, records)
		}
	}
}

func TestAKeyOutlivesItsAnswer(t *testing.T) {
	const limit = 100 << 10
	m, _ := newMemory(t, limit)
	state := func(i int) store.State { return store.Lookup(m, &store.Lease{Key: fmt.Sprint(i)}).State }
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
	if held := store.Lookup(m, &store.Lease{Key: "huge"}); held.State != store.Unkept || held.Answer.Status != 200 {
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
			return store.Finish(m, l, &store.Record{State: store.Unknown}, time.Minute, true)
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

func TestAnExpiredLeaseWakesItsWaiters(_ *testing.T) {
	m := store.NewMemory(1 << 20)
	defer m.Close()
	store.Claim(m, &store.Lease{Key: "k", Owner: "o"}, 10*time.Millisecond)
	for store.Wait(context.Background(), m, "k") { // a waiter that is not woken ends in the test's time-out
		if store.Lookup(m, &store.Lease{Key: "k"}).State == store.Free {
			return
		}
	}
}

func TestDecodeRefusesWhatIsNotARecord(t *testing.T) {
	answer := &store.Answer{Status: 200, Header: http.Header{"A": {"b"}}, Body: []byte("body")}
	head := store.Head(&store.Record{State: store.Done, Fingerprint: strings.Repeat("f", store.FingerprintSize), Answer: answer})
	good := append([]byte(head), answer.Body...)
	rec, err := store.Decode(good)
	if err != nil || !bytes.Equal(rec.Answer.Body, answer.Body) {
		t.Fatalf("decode of an encoded record: %+v, %v", rec, err)
	}
	edit := func(at int, s string) []byte {
		bad := append([]byte(nil), good...)
		copy(bad[at:], s)
		return bad
	}
	for name, data := range map[string][]byte{
		"nothing":           nil,
		"text":              []byte("somebody else's value, long enough to have a head"),
		"cut in the head":   good[:20],
		"cut in the status": good[:39],
		"cut in the length": good[:42],
		"cut in the header": good[:46],
		"state":             edit(5, "X"),
		"result as a state": edit(5, "C"),
		"status":            edit(38, "abc"),
		"small status":      edit(38, "099"),
		"no length":         edit(41, " "),
		"length no number":  edit(41, "z"),
		"negative length":   edit(41, "-1 "),
		"header":            edit(43, "\r\r\r"),
		"long length":       []byte(strings.Replace(string(good), "2006 ", "20099999 ", 1)),
	} {
		_, err := store.Decode(data)
		if !errors.Is(err, store.ErrForeign) {
			t.Errorf("%s: error %v, want %v", name, err, store.ErrForeign)
		}
	}
}
