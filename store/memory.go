package store

import (
	"container/list"
	"context"
	"log"
	"sync"
	"time"
)

// entryBytes is what an entry costs beside its key, fingerprint and answer: the map's slot, the structs, the list
// element, the place in the expiry list. HeaderBytes is the same for one header value.
const (
	entryBytes  = 640
	HeaderBytes = 96
)

// sweepChunk is how many entries are looked at under one hold of the lock.
const sweepChunk = 128

// Memory is a store in this process's memory. Finished records take at most limit bytes, and are freed within about a
// second after they expired, traffic or not. Running records are never dropped: there are as many as requests under way,
// each of which finishes or releases its own.
//
// When there is no room, the oldest answers go first. Of a record that no other store has the key stays, so that its
// request does not run a second time: it becomes Unkept. Such bare keys take at most half of limit; then the oldest of
// them go too.
type Memory struct {
	now func() time.Time

	mu       sync.Mutex // guards everything below, and the fields of every entry
	limit    int64
	bytes    int64 // of finished records
	bareSize int64 // of those in bare
	evicted  int64
	entries  map[string]*entry
	full     *list.List           // finished entries with answers or known elsewhere, first finished first
	bare     *list.List           // finished entries without an answer that only this store has, likewise
	due      map[int64]*list.List // all finished entries by the second in which they have expired
	swept    int64                // the last second that was swept
	timer    *time.Timer          // of the next sweep; nil while there is nothing to free
}

type entry struct {
	key     string
	rec     Record
	expires int64         // Unix time in ns
	done    chan struct{} // running: closed at its end; nil while nobody waits for it

	// Of a finished entry:
	sole   bool          // no other store has it
	size   int64         // bytes counted
	list   *list.List    // Memory.full or Memory.bare
	age    *list.Element // place in list
	second int64         // the second in which it has expired
	place  *list.Element // place in Memory.due[second]
}

// NewMemory returns a store of at most limit bytes of finished records. Close frees it.
func NewMemory(limit int64) *Memory {
	return NewMemoryClock(limit, time.Now)
}

// NewMemoryClock is NewMemory with a clock of the caller's.
func NewMemoryClock(limit int64, now func() time.Time) *Memory {
	return &Memory{now: now, limit: limit, entries: map[string]*entry{}, full: list.New(), bare: list.New(), due: map[int64]*list.List{}}
}

// SetLimit changes the bound on finished records, in bytes.
func (m *Memory) SetLimit(limit int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.limit = limit
	evict(m)
}

// Close frees what is finished. Requests that still run may come to their end, and are known to their duplicates.
func (m *Memory) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, finished := range m.due {
		for finished.Len() > 0 {
			e, _ := finished.Front().Value.(*entry)
			drop(m, e)
		}
	}
	if m.timer != nil {
		m.timer.Stop()
		m.timer = nil
	}
}

// Usage tells how many records there are, how many bytes the finished ones take, and how many answers and keys were
// dropped before their time because the store was full.
func (m *Memory) Usage() (records int, bytes, evicted int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.entries), m.bytes, m.evicted
}

// Lookup is Claim without claiming: it returns Free where Claim would give the key to l. What l holds itself it has
// claimed, and asks again because an answer was lost. An expired record is freed.
func Lookup(m *Memory, l *Lease) Held {
	var held Held
	m.mu.Lock()
	e := m.entries[l.Key]
	if e != nil {
		held.Left = time.Duration(e.expires - m.now().UnixNano())
		if held.Left > 0 {
			held.Record = e.rec
			held.Local = true
		} else {
			drop(m, e)
		}
	}
	m.mu.Unlock()
	if held.State == Running && held.Owner == l.Owner {
		held.State = Claimed
	}
	return held
}

// Claim gives the key to the lease for d if nobody holds it, and else tells who does.
func Claim(m *Memory, l *Lease, d time.Duration) Held {
	now := m.now().UnixNano()
	m.mu.Lock()
	taken := m.entries[l.Key] != nil
	if !taken {
		m.entries[l.Key] = &entry{key: l.Key, rec: Record{State: Running, Fingerprint: l.Fingerprint, Owner: l.Owner}, expires: now + int64(d)}
	}
	m.mu.Unlock()
	held := Held{Record: Record{State: Claimed}, Left: d, Local: true}
	if taken {
		held = Lookup(m, l)
	}
	if held.State == Free { // it was there, and had expired
		held = Claim(m, l, d)
	}
	return held
}

// Finish replaces the lease by rec for ttl; false, and nothing is changed, if the lease is lost. sole says that no other
// store has the record: see Memory for what that means to it.
func Finish(m *Memory, l *Lease, rec *Record, ttl time.Duration, sole bool) bool {
	now := m.now().UnixNano()
	m.mu.Lock()
	e := m.entries[l.Key]
	if e == nil || e.rec.Owner != l.Owner || now >= e.expires {
		owned(m, l, now) // frees it, if it was l's
		m.mu.Unlock()
		return false
	}
	e.rec = *rec
	e.sole = sole
	e.expires = now + int64(ttl)
	keep(m, e)
	m.mu.Unlock()
	return true
}

// Release makes the key free; false, and nothing is changed, if the lease is lost.
func Release(m *Memory, l *Lease) bool {
	now := m.now().UnixNano()
	m.mu.Lock()
	e := owned(m, l, now)
	if e != nil {
		drop(m, e)
	}
	m.mu.Unlock()
	return e != nil
}

// Remember keeps a finished record that another store gave, unless something is known about the key already.
func Remember(m *Memory, l *Lease, rec *Record, ttl time.Duration) {
	held := Claim(m, l, ttl)
	if held.State == Claimed {
		Finish(m, l, rec, ttl, false)
	}
}

// Wait returns as soon as the request that runs under key ends or its lease does, at once if none runs, and in any case
// at the end of ctx. It tells whether there was anything to wait for.
func Wait(ctx context.Context, m *Memory, key string) bool {
	m.mu.Lock()
	e := m.entries[key]
	if e == nil || e.rec.State != Running {
		m.mu.Unlock()
		return false
	}
	if e.done == nil {
		e.done = make(chan struct{})
	}
	done, left := e.done, time.Duration(e.expires-m.now().UnixNano())
	m.mu.Unlock()
	sleep(ctx, left, done)
	return true
}

// owned returns the entry that l holds, or nil if its lease is over. What is left of a lease that is over is freed.
func owned(m *Memory, l *Lease, now int64) *entry {
	e := m.entries[l.Key]
	if e == nil || e.rec.State != Running || e.rec.Owner != l.Owner {
		return nil
	}
	if now >= e.expires {
		drop(m, e)
		return nil
	}
	return e
}

// keep gives an entry that has just been finished its places, and wakes those who wait for it.
func keep(m *Memory, e *entry) {
	e.second = e.expires/int64(time.Second) + 1
	due := m.due[e.second]
	if due == nil {
		due = newSecond(m, e.second)
	}
	e.place = due.PushBack(e)
	e.size = int64(entryBytes + 3*len(e.key))
	if e.rec.Answer != nil {
		e.size += int64(e.rec.Answer.HeaderSize + cap(e.rec.Answer.Body))
	}
	m.bytes += e.size
	if e.rec.State == Done && e.size <= m.limit {
		e.list = m.full
		e.age = m.full.PushBack(e)
	} else {
		keepOdd(m, e)
	}
	if e.done != nil || m.bytes > m.limit {
		wakeAndEvict(m, e)
	}
}

// newSecond makes the list of entries that are due in second, and sees to it that they are freed.
func newSecond(m *Memory, second int64) *list.List {
	due := list.New()
	m.due[second] = due
	if m.timer == nil || second <= m.swept {
		startSweeping(m, second)
	}
	return due
}

func wakeAndEvict(m *Memory, e *entry) {
	if e.done != nil {
		close(e.done)
		e.done = nil
	}
	evict(m)
}

// keepOdd keeps an entry without an answer, or with one that is too large.
func keepOdd(m *Memory, e *entry) {
	if e.sole {
		keepBare(m, e)
	} else {
		e.list = m.full
		e.age = m.full.PushBack(e)
	}
}

// keepBare keeps of e, which is in no list now, no more than that its request is not to run again.
func keepBare(m *Memory, e *entry) {
	m.bytes -= e.size
	if e.rec.State == Done {
		e.rec = Record{State: Unkept, Fingerprint: e.rec.Fingerprint, Answer: &Answer{Status: e.rec.Answer.Status}}
		m.evicted++
	}
	e.size = int64(entryBytes + 3*len(e.key))
	m.bytes += e.size
	m.bareSize += e.size
	e.list = m.bare
	e.age = m.bare.PushBack(e)
}

// evict drops the oldest finished records, or their answers, until the rest fits.
func evict(m *Memory) {
	for m.bytes > m.limit && len(m.due) > 0 {
		from := m.full
		if from.Len() == 0 || m.bareSize > m.limit/2 {
			from = m.bare
		}
		if from.Len() == 0 {
			return
		}
		e, _ := from.Front().Value.(*entry)
		if e.sole && e.rec.State == Done {
			from.Remove(e.age)
			keepBare(m, e)
		} else {
			drop(m, e)
			m.evicted++
		}
	}
}

// drop removes e and wakes those who wait for it.
func drop(m *Memory, e *entry) {
	delete(m.entries, e.key)
	if e.done != nil {
		close(e.done)
	}
	if e.list != nil {
		dropFinished(m, e)
	}
}

func dropFinished(m *Memory, e *entry) {
	e.list.Remove(e.age)
	m.bytes -= e.size
	if e.list == m.bare {
		m.bareSize -= e.size
	}
	due := m.due[e.second]
	due.Remove(e.place)
	if due.Len() == 0 {
		delete(m.due, e.second)
	}
}

// startSweeping sees to it that the entries due in second, and later ones, are freed.
func startSweeping(m *Memory, second int64) {
	if m.timer == nil {
		m.swept = m.now().Unix() - 1
		m.timer = time.AfterFunc(time.Second, m.sweepLater)
	}
	if second <= m.swept { // the clock was set back
		m.swept = second - 1
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
	if m.timer == nil { // closed meanwhile
		return
	}
	if len(m.due) == 0 {
		m.timer = nil
		return
	}
	m.timer.Reset(time.Second)
}

// Sweep frees all finished records that have expired. It is called once a second while there are any.
func (m *Memory) Sweep() {
	now := m.now().Unix()
	more := true
	for more {
		more = m.sweepOne(now)
	}
}

// sweepOne frees up to sweepChunk entries of the earliest second that is over, and tells whether there is more to do.
func (m *Memory) sweepOne(now int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.due) == 0 {
		return false
	}
	for m.swept < now && m.due[m.swept+1] == nil {
		m.swept++
	}
	second := m.swept + 1
	if second > now {
		return false
	}
	due := m.due[second]
	for i := 0; i < sweepChunk && due.Len() > 0; i++ {
		e, _ := due.Front().Value.(*entry)
		drop(m, e)
	}
	return true
}
