package store

import (
	"container/list"
	"context"
	"log"
	"reflect"
	"sync"
	"time"
)

// entryBytes is what an entry costs beside its key, fingerprint and answer: the map's slot, the structs, the list
// element, the place in the expiry list. headerBytes is the same for one header value.
const (
	entryBytes  = 640
	headerBytes = 96
)

// sweepChunk is how many keys are looked at under one hold of the lock.
const sweepChunk = 128

// Memory is a Store in this process's memory. Finished records take at most limit bytes: the oldest are dropped for
// new ones. Running records are as many as there are requests under way and are never dropped. Expired records are
// freed within about a second, traffic or not.
type Memory struct {
	now func() time.Time

	mu      sync.Mutex // guards everything below, and the fields of every entry
	limit   int64
	bytes   int64 // of finished records
	evicted int64
	entries map[string]*entry
	oldest  *list.List         // keys of finished records, first finished first
	due     map[int64][]string // keys by the second in which to look whether they have expired
	swept   int64              // the last second that was looked at
	timer   *time.Timer        // of the next sweep; nil while there is nothing to free
	closed  bool
}

type entry struct {
	rec     Record
	expires time.Time
	due     int64         // the second under which the key stands in Memory.due
	size    int64         // finished: bytes counted
	age     *list.Element // finished: place in Memory.oldest
	done    chan struct{} // running: closed at its end
}

// NewMemory returns a store of at most limit bytes of finished records. Close frees it.
func NewMemory(limit int64) *Memory {
	return NewMemoryClock(limit, time.Now)
}

// NewMemoryClock is NewMemory with a clock of the caller's.
func NewMemoryClock(limit int64, now func() time.Time) *Memory {
	return &Memory{now: now, limit: limit, entries: map[string]*entry{}, oldest: list.New(), due: map[int64][]string{}}
}

// SetLimit changes the bound on finished records, in bytes.
func (m *Memory) SetLimit(limit int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.limit = limit
	m.evict()
}

// Close drops everything.
func (m *Memory) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	for key, e := range m.entries {
		m.drop(key, e)
	}
	m.due = map[int64][]string{}
	if m.timer != nil {
		m.timer.Stop()
	}
}

// Usage tells how many records there are, how many bytes the finished ones take, and how many of those were dropped
// before their time because the store was full.
func (m *Memory) Usage() (records int, bytes, evicted int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.entries), m.bytes, m.evicted
}

// Lookup is Claim without claiming: it returns false where Claim would give the key to l.
func (m *Memory) Lookup(l *Lease) (Held, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.heldFor(l)
}

// Claim implements Store. It never fails.
func (m *Memory) Claim(l *Lease, d time.Duration) (Held, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	held, ok := m.heldFor(l)
	if ok {
		return held, nil
	}
	rec := Record{State: Running, Fingerprint: l.Fingerprint, Owner: l.Owner}
	m.put(l.Key, &entry{rec: rec, expires: m.now().Add(d), done: make(chan struct{})})
	rec.State = Claimed
	return Held{Record: rec, Left: d, Local: true}, nil
}

// Renew implements Store. It never fails.
func (m *Memory) Renew(l *Lease, d time.Duration) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.owned(l)
	if e == nil {
		return false, nil
	}
	e.expires = m.now().Add(d)
	m.schedule(l.Key, e)
	return true, nil
}

// Finish implements Store. It never fails.
func (m *Memory) Finish(l *Lease, rec Record, ttl time.Duration) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.owned(l)
	if e == nil {
		return false, nil
	}
	m.drop(l.Key, e)
	m.putFinished(l.Key, rec, ttl)
	return true, nil
}

// Release implements Store. It never fails.
func (m *Memory) Release(l *Lease) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.owned(l)
	if e == nil {
		return false, nil
	}
	m.drop(l.Key, e)
	return true, nil
}

// Remember keeps a finished record that another store gave, unless something is known about the key already.
func (m *Memory) Remember(key string, rec Record, ttl time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.held(key)
	if !ok {
		m.putFinished(key, rec, ttl)
	}
}

// Wait implements Store: it returns as soon as the request that runs under key ends, at once if none does.
func (m *Memory) Wait(ctx context.Context, key string, _ int) {
	m.wait(ctx, key)
}

// wait tells whether there was anything to wait for.
func (m *Memory) wait(ctx context.Context, key string) bool {
	m.mu.Lock()
	e := m.entries[key]
	running := e != nil && e.rec.State == Running && m.now().Before(e.expires)
	m.mu.Unlock()
	if running { // e.done never changes
		first(ctx, reflect.ValueOf(e.done))
	}
	return running
}

// held returns the unexpired record of key, and frees an expired one.
func (m *Memory) held(key string) (Held, bool) {
	e := m.entries[key]
	if e == nil {
		return Held{}, false
	}
	left := e.expires.Sub(m.now())
	if left <= 0 {
		m.drop(key, e)
		return Held{}, false
	}
	return Held{Record: e.rec, Left: left, Local: true}, true
}

// heldFor is held as l is told: what l holds itself it has claimed, and asks again because an answer was lost.
func (m *Memory) heldFor(l *Lease) (Held, bool) {
	held, ok := m.held(l.Key)
	if held.State == Running && held.Owner == l.Owner {
		held.State = Claimed
	}
	return held, ok
}

// owned returns the entry that l holds, or nil if its lease is over.
func (m *Memory) owned(l *Lease) *entry {
	held, ok := m.held(l.Key)
	if !ok || held.State != Running || held.Owner != l.Owner {
		return nil
	}
	return m.entries[l.Key]
}

func (m *Memory) putFinished(key string, rec Record, ttl time.Duration) {
	size := int64(entryBytes + 3*len(key))
	if rec.Answer != nil {
		size += int64(cap(rec.Answer.Body))
		for name, values := range rec.Answer.Header {
			for _, value := range values {
				size += int64(headerBytes + len(name) + len(value))
			}
		}
	}
	m.bytes += size
	m.put(key, &entry{rec: rec, expires: m.now().Add(ttl), size: size, age: m.oldest.PushBack(key)})
	m.evict()
}

func (m *Memory) put(key string, e *entry) {
	if m.closed {
		return
	}
	if m.timer == nil {
		m.swept = m.now().Unix() - 1
		m.timer = time.AfterFunc(time.Second, m.sweepLater)
	}
	m.entries[key] = e
	m.schedule(key, e)
}

// evict drops the oldest finished records until the rest fits.
func (m *Memory) evict() {
	for m.bytes > m.limit && m.oldest.Len() > 0 {
		key, _ := m.oldest.Front().Value.(string)
		m.drop(key, m.entries[key])
		m.evicted++
	}
}

// drop removes e and wakes those who wait for it.
func (m *Memory) drop(key string, e *entry) {
	delete(m.entries, key)
	if e.done != nil {
		close(e.done)
	}
	if e.age != nil {
		m.oldest.Remove(e.age)
		m.bytes -= e.size
	}
}

// schedule sees to it that a sweep looks at key when e has expired. A key that is due earlier already is looked at
// then and scheduled again, so that renewing a lease costs nothing here.
func (m *Memory) schedule(key string, e *entry) {
	second := e.expires.Unix() + 1
	if second <= m.swept { // the clock was set back
		second = m.swept + 1
	}
	if e.due == 0 || second < e.due {
		e.due = second
		m.due[second] = append(m.due[second], key)
	}
}

// sweepLater frees what has expired and comes again in a second while there is anything left.
func (m *Memory) sweepLater() {
	defer func() {
		if p := recover(); p != nil {
			log.Printf("level=error msg=\"sweep of the memory store failed\" cause=%q", p)
		}
	}()
	m.Sweep()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || len(m.due) == 0 {
		m.timer = nil
		return
	}
	m.timer.Reset(time.Second)
}

// Sweep frees all records that have expired. It is called once a second while there are any.
func (m *Memory) Sweep() {
	now := m.now()
	more := true
	for more {
		more = m.sweepOne(now)
	}
}

// sweepOne frees up to sweepChunk keys of the earliest second that is over, and tells whether there is more to do.
func (m *Memory) sweepOne(now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.due) == 0 {
		return false
	}
	for m.due[m.swept+1] == nil {
		if m.swept+1 > now.Unix() {
			return false
		}
		m.swept++
	}
	second := m.swept + 1
	if second > now.Unix() {
		return false
	}
	keys := m.due[second]
	rest := len(keys) - sweepChunk
	if rest < 0 {
		rest = 0
	}
	for _, key := range keys[rest:] {
		e := m.entries[key]
		if e == nil || e.due != second { // gone, or another record by now
			continue
		}
		e.due = 0
		if now.Before(e.expires) {
			m.schedule(key, e)
		} else {
			m.drop(key, e)
		}
	}
	if rest > 0 {
		m.due[second] = keys[:rest]
	} else {
		delete(m.due, second)
	}
	return true
}
