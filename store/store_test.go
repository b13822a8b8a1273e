package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/store"
	"github.com/example/traefik-idem/store/storetest"
)

// clock is a clock that a test sets forward.
type clock struct {
	mu  sync.Mutex // guards now
	now time.Time
}

func newClock() *clock { return &clock{now: time.Unix(1700000000, 0)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func newMemory(t *testing.T, limit int64) (*store.Memory, *clock) {
	t.Helper()
	c := newClock()
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
		return storetest.Subject{Store: m, Pass: c.Pass}
	})
}

func TestRedisConforms(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Subject {
		keys, server := newKeys(t)
		return storetest.Subject{Store: keys, Pass: server.FastForward}
	})
}

func TestTieredConforms(t *testing.T) {
	for _, cache := range []bool{false, true} {
		t.Run(fmt.Sprintf("cache=%t", cache), func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) storetest.Subject {
				keys, server := newKeys(t)
				m, c := newMemory(t, 1<<20)
				pass := func(d time.Duration) {
					server.FastForward(d)
					c.Pass(d)
				}
				return storetest.Subject{Store: &store.Tiered{Shared: keys, Local: m, Cache: cache}, Pass: pass}
			})
		})
	}
}

func finished(t *testing.T, s store.Store, key string, size int, ttl time.Duration) {
	t.Helper()
	l := &store.Lease{Key: key, Fingerprint: strings.Repeat("f", store.FingerprintSize), Owner: "o"}
	_, err := s.Claim(l, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Finish(l, store.Record{State: store.Done, Fingerprint: l.Fingerprint, Answer: &store.Answer{Status: 200, Body: make([]byte, size)}}, ttl)
	if err != nil {
		t.Fatal(err)
	}
}

func TestMemoryIsBoundedAndDropsTheOldestFirst(t *testing.T) {
	const limit = 100 << 10
	m, _ := newMemory(t, limit)
	for i := 0; i < 1000; i++ {
		finished(t, m, fmt.Sprint(i), 1000, time.Minute)
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
		_, ok := m.Lookup(&store.Lease{Key: fmt.Sprint(i)})
		if ok != (i >= 1000-records) {
			t.Fatalf("answer %d kept: %t, with the youngest %d kept", i, ok, records)
		}
	}
}

func TestMemoryNeverDropsARunningKey(t *testing.T) {
	m, _ := newMemory(t, 0)
	for i := 0; i < 100; i++ {
		_, _ = m.Claim(&store.Lease{Key: fmt.Sprint(i), Owner: "o"}, time.Minute)
		finished(t, m, "f"+fmt.Sprint(i), 10, time.Minute)
	}
	records, used, _ := m.Usage()
	if records != 100 || used != 0 {
		t.Errorf("%d records and %d bytes, want the 100 running ones and none", records, used)
	}
}

func TestMemoryFreesWhatExpired(t *testing.T) {
	m, c := newMemory(t, 1<<30)
	for i := 0; i < 1000; i++ { // more than one sweep looks at under one hold of its lock
		finished(t, m, fmt.Sprint(i), 10, time.Duration(1+i%3)*time.Second)
		_, _ = m.Claim(&store.Lease{Key: "r" + fmt.Sprint(i), Owner: "o"}, 2*time.Second)
	}
	kept := &store.Lease{Key: "kept", Owner: "o"}
	_, _ = m.Claim(kept, 2*time.Second)
	_, _ = m.Renew(kept, time.Minute)
	c.Pass(5 * time.Second)
	m.Sweep()
	records, used, _ := m.Usage()
	if records != 1 || used != 0 {
		t.Errorf("%d records and %d bytes after all but one lease expired, want 1 and 0", records, used)
	}
	c.Pass(time.Minute)
	m.Sweep()
	records, _, _ = m.Usage()
	if records != 0 {
		t.Errorf("%d records after all expired", records)
	}
}

func TestMemoryFreesWithoutTraffic(t *testing.T) {
	m := store.NewMemory(1 << 20)
	defer m.Close()
	finished(t, m, "k", 10, 10*time.Millisecond)
	for {
		records, _, _ := m.Usage() // the test's own time-out ends a sweep that never comes
		if records == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestAnExpiredLeaseWakesItsWaiters(t *testing.T) {
	m, c := newMemory(t, 1<<20)
	_, _ = m.Claim(&store.Lease{Key: "k", Owner: "o"}, time.Second)
	woken := make(chan struct{})
	go func() {
		m.Wait(context.Background(), "k", 0)
		close(woken)
	}()
	c.Pass(3 * time.Second)
	m.Sweep()
	<-woken
}

func TestTieredAsksTheSharedStoreOnce(t *testing.T) {
	m, _ := newMemory(t, 1<<20)
	down := &failing{}
	tiered := &store.Tiered{Shared: down, Local: m, Cache: true, Fallback: true}
	finished(t, tiered, "k", 10, time.Minute)
	asked := down.calls
	held, err := tiered.Claim(&store.Lease{Key: "k", Owner: "p"}, time.Minute)
	if err != nil || held.State != store.Done || !held.Local {
		t.Errorf("claim of an answer known here: %+v, %v", held, err)
	}
	if down.calls != asked {
		t.Errorf("the shared store was asked for an answer that is known here")
	}
}

func TestTieredFallsBackToMemory(t *testing.T) {
	m, _ := newMemory(t, 1<<20)
	tiered := &store.Tiered{Shared: &failing{}, Local: m, Fallback: true}
	l := &store.Lease{Key: "k", Fingerprint: "f", Owner: "o"}
	held, err := tiered.Claim(l, time.Minute)
	if err != nil || held.State != store.Claimed || !held.Degraded || !errors.Is(held.Cause, errDown) {
		t.Fatalf("claim while the shared store is down: %+v, %v", held, err)
	}
	kept, err := tiered.Renew(l, time.Minute)
	if !kept || err != nil {
		t.Errorf("renewal of a lease in memory: %t, %v", kept, err)
	}
	kept, err = tiered.Finish(l, store.Record{State: store.Unknown}, time.Minute)
	if !kept || err != nil {
		t.Errorf("finish of a lease in memory: %t, %v", kept, err)
	}
	held, err = tiered.Claim(&store.Lease{Key: "k", Owner: "p"}, time.Minute)
	if err != nil || held.State != store.Unknown {
		t.Errorf("duplicate while the shared store is down: %+v, %v", held, err)
	}
}

func TestTieredWithoutFallbackReturnsTheError(t *testing.T) {
	m, _ := newMemory(t, 1<<20)
	tiered := &store.Tiered{Shared: &failing{}, Local: m}
	_, err := tiered.Claim(&store.Lease{Key: "k", Owner: "o"}, time.Minute)
	if !errors.Is(err, errDown) {
		t.Errorf("error %v, want %v", err, errDown)
	}
}

var errDown = errors.New("down")

// failing is a shared store that is out of reach.
type failing struct{ calls int }

func (f *failing) fail() (bool, error) { f.calls++; return false, errDown }

func (f *failing) Claim(*store.Lease, time.Duration) (store.Held, error) {
	_, err := f.fail()
	return store.Held{}, err
}
func (f *failing) Renew(*store.Lease, time.Duration) (bool, error) { return f.fail() }
func (f *failing) Finish(*store.Lease, store.Record, time.Duration) (bool, error) {
	return f.fail()
}
func (f *failing) Release(*store.Lease) (bool, error) { return f.fail() }
func (f *failing) Wait(context.Context, string, int)  {}

func TestDecodeRefusesWhatIsNotARecord(t *testing.T) {
	answer := &store.Answer{Status: 200, Header: http.Header{"A": {"b"}}, Body: []byte("body")}
	good := store.Encode(store.Record{State: store.Done, Fingerprint: strings.Repeat("f", store.FingerprintSize), Answer: answer})
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
		"cut in the length": good[:45],
		"cut in the header": good[:51],
		"state":             edit(5, "X"),
		"result as a state": edit(5, "C"),
		"status":            edit(38, "abc"),
		"small status":      edit(38, "099"),
		"length":            edit(41, "ffffffff"),
		"length no number":  edit(41, "zzzzzzzz"),
		"header":            edit(49, "\r\r\r"),
	} {
		_, err := store.Decode(data)
		if !errors.Is(err, store.ErrForeign) {
			t.Errorf("%s: error %v, want %v", name, err, store.ErrForeign)
		}
	}
}
