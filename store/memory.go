package store

import (
	"context"
	"log"
	"math"
	"sync"
	"time"
)

// entryBytes is what an entry costs beside its record and its form on the wire: the key, the fingerprint, the map's slot,
// the lease, the place in a queue.
const entryBytes = 832

// heldBytes is what a Held costs that is kept.
const heldBytes = 192

// headerBytes is what a name or a value in an answer's header costs beside its text.
const headerBytes = 64

// Endless is the lease of a claim that ends only when its owner says so.
const Endless = time.Duration(math.MaxInt64)

// sweepChunk is how many entries are freed in one go.
const sweepChunk = 128

// Memory is a store in this process's memory. Finished records take at most limit bytes, and are freed within about a
// second after they expired, traffic or not. Running records are never dropped: there are as many as requests under way,
// each of which finishes or releases its own.
//
// When there is no room, what expires first goes first: with one time to live, the oldest. Answers go before keys: of a
// record that no other store has the key stays, so that its request does not run a second time; it becomes Unkept. Such
// bare keys take at most half of limit; then the oldest of them go too.
type Memory struct {
	since func(epoch time.Time) time.Duration // the clock
	epoch time.Time

	lock, unlock func() // guard everything below, and the entries. Bound once: Yaegi finds a field faster than a method

	limit     int
	bytes     int // of finished records
	bareBytes int // of those in bare
	evicted   int
	entries   map[string]*Lease
	full      *queue      // finished entries with answers or known elsewhere
	bare      *queue      // finished entries without an answer that only this store has
	timer     *time.Timer // of the next sweep; nil while there is nothing to free

	token    string // that the owners of its leases begin with
	claims   int    // that ClaimKey has granted, or left to others
	left     int    // of these, to others, where there is no Redis
	granted  int    // that ClaimLocal has granted
	told     int    // to TakeClaims
	shared   bool   // there is a Redis behind it
	watchdog *time.Timer
	tick     time.Duration // of the watchdog
	armed    bool          // the watchdog ticks
	begun    []*Run        // claimed by ClaimKey since the last tick; nil: it leaves all claims to claimFurther
	watched  []*Run        // claimed before, or by claimFurther, and running at the last tick
}

// reserveBytes is how much memory is set aside, at the most, until a store has filled as much.
const reserveBytes = 16 << 20

// reserve is memory that nobody writes to, so that it takes next to no room itself; but the garbage collector reckons with
// it and comes less often. It has to go through all of Traefik, with the syntax tree of the plugin, each time; with nothing
// set aside that is a tenth of what a request costs. When stores fill, what they hold has the same effect.
var reserve struct {
	mu    sync.Mutex // guards all below
	bytes []byte
	done  bool // a store has filled as much
}

// setAside sees to it that half of limit is set aside, as far as reserveBytes goes.
func setAside(limit int64) {
	size := limit / 2
	if size > reserveBytes {
		size = reserveBytes
	}
	reserve.mu.Lock()
	defer reserve.mu.Unlock()
	if !reserve.done && size > int64(len(reserve.bytes)) {
		reserve.bytes = make([]byte, size)
	}
}

// useReserve gives up what is set aside if a store holds so much.
func useReserve(held int) {
	reserve.mu.Lock()
	defer reserve.mu.Unlock()
	if held > reserveBytes {
		reserve.bytes = nil
		reserve.done = true
	}
}

// queue holds finished entries in the order in which they expire.
type queue struct {
	due   map[time.Duration][]*Lease // by the second in which they expire; no list is empty
	first time.Duration              // no list comes before this second
}

// NewMemory returns a store of at most limit bytes of finished records. Close frees it.
func NewMemory(limit int64) *Memory {
	return NewMemoryClock(limit, time.Since)
}

// NewMemoryClock is NewMemory with a clock of the caller's: since tells how much time has passed since epoch.
func NewMemoryClock(limit int64, since func(epoch time.Time) time.Duration) *Memory {
	setAside(limit)
	var mu sync.Locker = &sync.Mutex{}
	m := &Memory{since: since, epoch: time.Now(), lock: mu.Lock, unlock: mu.Unlock, limit: int(limit), entries: map[string]*Lease{}, full: newQueue(), bare: newQueue(), token: newToken(), tick: longestTick}
	// A timer made anew at each tick would have, under Yaegi, the variables of the last tick as its own, and so those of all
	// ticks before.
	m.watchdog = time.AfterFunc(longestTick, m.watch)
	m.watchdog.Stop()
	return m
}

func newQueue() *queue {
	return &queue{due: map[time.Duration][]*Lease{}, first: Endless}
}

// SetLimit changes the bound on finished records, in bytes.
func (m *Memory) SetLimit(limit int64) {
	m.lock()
	defer m.unlock()
	m.limit = int(limit)
	evict(m)
	setAside(limit)
}

// Idle tells that there is no record, running or finished.
func (m *Memory) Idle() bool {
	m.lock()
	defer m.unlock()
	return len(m.entries) == 0
}

// Close frees what is finished. Requests that still run may come to their end, and are known to their duplicates.
func (m *Memory) Close() {
	m.lock()
	defer m.unlock()
	for key, e := range m.entries {
		if e.record != "" {
			delete(m.entries, key)
		}
	}
	queueFinished(m)
	m.bytes = 0
	m.bareBytes = 0
	for _, q := range []*queue{m.full, m.bare} {
		q.due = map[time.Duration][]*Lease{}
		q.first = Endless
	}
	if m.timer != nil {
		m.timer.Stop()
		m.timer = nil
	}
}

// Usage tells how many records there are, how many bytes the finished ones take, and how many answers and keys were
// dropped before their time because the store was full.
func (m *Memory) Usage() (records int, bytes, evicted int64) {
	m.lock()
	defer m.unlock()
	return len(m.entries), int64(m.bytes), int64(m.evicted)
}

// TakeClaims returns how many claims of requests were granted since it was last called.
func (m *Memory) TakeClaims() int64 {
	m.lock()
	defer m.unlock()
	granted := m.granted
	if !m.shared { // ClaimKey counts each claim that it grants
		granted += m.claims - m.left
	}
	news := granted - m.told
	m.told = granted
	return int64(news)
}

// Claim gives the key to the lease for d and returns nil if nobody holds it, and else tells who does.
func Claim(m *Memory, l *Lease, d time.Duration) *Held {
	m.lock()
	free := m.entries[l.Key] == nil
	if free {
		m.entries[l.Key] = l
		if d != Endless {
			l.expires = m.since(m.epoch) + d
		}
	}
	m.unlock()
	if free {
		return nil
	}
	held := describe(m, l)
	if held == nil { // it was there, and had expired
		held = Claim(m, l, d)
	} else if held.State == Running && held.Owner == l.Owner {
		extend(m, l, d)
		held = nil // it asks again because an answer was lost
	}
	return held
}

// extend makes the lease last d from now, if it is not over.
func extend(m *Memory, l *Lease, d time.Duration) {
	m.lock()
	defer m.unlock()
	e := m.entries[l.Key]
	if e == nil || e.record != "" || e.Owner != l.Owner {
		return
	}
	e.expires = 0
	if d != Endless {
		e.expires = m.since(m.epoch) + d
	}
}

// Lookup tells who has the key, or returns nil if nobody has it or l has it itself.
func Lookup(m *Memory, l *Lease) *Held {
	m.lock()
	e := m.entries[l.Key]
	m.unlock()
	if e == nil || e.Owner == l.Owner {
		return nil
	}
	return describe(m, l)
}

// StateOf tells what has become of l: Running until it ends, the state of its record when that is kept, and Free if it was
// released, never had the key, or is forgotten.
func StateOf(m *Memory, l *Lease) State {
	m.lock()
	defer m.unlock()
	switch {
	case m.entries[l.Key] != l:
		return Free
	case l.record == "":
		return Running
	}
	return State(l.record[len(magic)])
}

// describe tells who has the key of l, or returns nil if nobody has it. An expired entry is dropped; a finished one stays
// in its queue until it is swept.
func describe(m *Memory, l *Lease) *Held {
	held := &Held{Local: true, State: Running}
	now := m.since(m.epoch)
	m.lock()
	e := m.entries[l.Key]
	if e != nil && e.expires > 0 && now >= e.expires {
		drop(m, e)
		e = nil
	}
	if e == nil {
		m.unlock()
		return nil
	}
	if e.held != nil {
		held.Answer = e.held.Answer
	}
	held.Fingerprint = e.Fingerprint
	held.Owner = e.Owner
	if e.expires > 0 {
		held.Left = e.expires - now
	}
	if e.record != "" {
		held.OnlyCopy = !e.elsewhere
		held.State = State(e.record[len(magic)])
		held.Record = e.record
	}
	m.unlock()
	if held.Answer == nil && held.Record != "" {
		_ = Read(held) // it is one, so there is no error
		remember(m, e, held)
	}
	return held
}

// remember keeps what was read from the record of an answer, which is as good as that: duplicates seldom come alone.
func remember(m *Memory, e *Lease, held *Held) {
	if held.State != Done {
		return
	}
	size := heldBytes
	for name, values := range held.Answer.Header {
		size += headerBytes + len(name)
		for _, value := range values {
			size += headerBytes + len(value)
		}
	}
	m.lock()
	defer m.unlock()
	if m.entries[e.Key] != e || e.held != nil || e.record != held.Record {
		return
	}
	e.held = &Held{State: Done, Fingerprint: held.Fingerprint, Answer: held.Answer, Record: held.Record, Local: true, OnlyCopy: held.OnlyCopy}
	e.read = size
	m.bytes += size
	evict(m)
}

// Finish replaces the lease by record, which is finished, for ttl; false, and nothing is changed, if the lease is lost.
// onlyCopy says that no other store has the record: see Memory for what that means to it.
func Finish(m *Memory, l *Lease, record string, ttl time.Duration, onlyCopy bool) bool {
	now := m.since(m.epoch)
	m.lock()
	defer m.unlock()
	e := owned(m, l, now)
	if e == nil {
		return false
	}
	e.record = record
	e.elsewhere = !onlyCopy
	e.expires = now + ttl
	keep(m, e)
	return true
}

// Release makes the key free; false, and nothing is changed, if the lease is lost.
func Release(m *Memory, l *Lease) bool {
	now := m.since(m.epoch)
	m.lock()
	defer m.unlock()
	e := owned(m, l, now)
	if e == nil {
		return false
	}
	drop(m, e)
	return true
}

// Remember keeps what another store told of a finished key for as long as it is kept there, unless something is known
// about the key already.
func Remember(m *Memory, key string, held *Held) {
	l := &Lease{Key: key, Fingerprint: held.Fingerprint}
	if Claim(m, l, Endless) == nil {
		Finish(m, l, held.Record, held.Left, false)
	}
}

// Wait returns as soon as the request that runs under key ends or its lease does, at once if none runs, and in any case
// at the end of ctx. It tells whether there was anything to wait for.
func Wait(ctx context.Context, m *Memory, key string) bool {
	left := Endless
	m.lock()
	e := m.entries[key]
	if e == nil || e.record != "" {
		m.unlock()
		return false
	}
	if e.done == nil {
		e.done = make(chan struct{})
	}
	if e.expires != 0 {
		left = e.expires - m.since(m.epoch)
	}
	done := e.done
	m.unlock()
	sleep(ctx, left, done)
	return true
}

// owned returns the entry that l holds, or nil if its lease is over. What is left of a lease that is over is dropped.
func owned(m *Memory, l *Lease, now time.Duration) *Lease {
	e := m.entries[l.Key]
	if e == nil || e.record != "" || e.Owner != l.Owner {
		return nil
	}
	if e.expires > 0 && now >= e.expires {
		drop(m, e)
		return nil
	}
	return e
}

// keep gives an entry that has just been finished its place, and wakes those who wait for it.
func keep(m *Memory, e *Lease) {
	size := sizeOf(e)
	answered := e.record[len(magic)] == byte(Done)
	switch {
	case !e.elsewhere && (size > m.limit || !answered):
		keepBare(m, e)
	case size <= m.limit:
		m.bytes += size
		push(m, m.full, e)
	default:
		delete(m.entries, e.Key)
	}
	wake(e)
	evict(m)
}

// keepBare keeps of e, which is in no queue now, no more than that its request is not to run again.
func keepBare(m *Memory, e *Lease) {
	if e.record[len(magic)] == byte(Done) {
		e.record = Bare(e.record)
		m.evicted++
	}
	size := sizeOf(e)
	m.bytes += size
	m.bareBytes += size
	push(m, m.bare, e)
}

// sizeOf is how many bytes a finished entry counts, without what was read from its record.
func sizeOf(e *Lease) int {
	return entryBytes + len(e.Key) + len(e.Wire) + len(e.record)
}

// push puts a finished entry into q, and sees to it that it is freed when it has expired.
func push(m *Memory, q *queue, e *Lease) {
	second := e.expires / time.Second
	q.due[second] = append(q.due[second], e)
	if second < q.first {
		q.first = second
		startSweeping(m)
	}
}

func startSweeping(m *Memory) {
	if m.timer == nil {
		m.timer = time.AfterFunc(time.Second, m.sweepLater)
	}
}

// earliest is the second of the first list in q, which is not empty. It is mostly the one it was, or the next: only
// behind a gap are all looked through.
func earliest(q *queue) time.Duration {
	if q.due[q.first] == nil {
		q.first++
	}
	if q.due[q.first] == nil {
		q.first = Endless
		for second := range q.due {
			if second < q.first {
				q.first = second
			}
		}
	}
	return q.first
}

func wake(e *Lease) {
	if e.done != nil {
		close(e.done)
		e.done = nil
	}
}

// drop makes the key of a running or expired entry free.
func drop(m *Memory, e *Lease) {
	delete(m.entries, e.Key)
	wake(e)
}

// evict drops what expires first, or its answer, until the rest fits. Where many records are, it makes room for more than
// is needed, so that most requests find some.
func evict(m *Memory) {
	if m.bytes <= m.limit {
		return
	}
	queueFinished(m)
	goal := m.limit
	if len(m.entries) > 8*sweepChunk {
		goal -= m.limit / 64
	}
	for m.bytes > m.limit {
		from := m.full
		if len(from.due) == 0 || m.bareBytes > m.limit/2 {
			from = m.bare
		}
		evictSome(m, from, goal)
	}
}

// evictSome drops entries of q, which is not empty, or their answers: as many as it takes to reach goal, but no more than
// sweepChunk, and of one second. The last of that second, which may be the newest of all, goes only if it does not fit.
func evictSome(m *Memory, q *queue, goal int) {
	second := earliest(q)
	list, done := q.due[second], 0
	var bare []*Lease
	for _, e := range list {
		if done == sweepChunk || (q == m.full && m.bareBytes > m.limit/2) {
			break
		}
		if m.bytes <= m.limit && (m.bytes <= goal || done == len(list)-1) {
			break
		}
		list[done] = nil // the array lives on
		done++
		m.evicted++
		size := sizeOf(e)
		m.bytes -= size + e.read
		e.held = nil
		e.read = 0
		if !e.elsewhere && e.record[len(magic)] == byte(Done) {
			e.record = Bare(e.record)
			size = sizeOf(e)
			m.bytes += size
			m.bareBytes += size
			bare = append(bare, e)
			continue
		}
		if q == m.bare {
			m.bareBytes -= size
		}
		if m.entries[e.Key] == e { // else it had expired, and the key is taken again
			delete(m.entries, e.Key)
		}
	}
	cut(q, done)
	if len(bare) > 0 {
		m.bare.due[second] = append(m.bare.due[second], bare...)
		if second < m.bare.first {
			m.bare.first = second
		}
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
	m.lock()
	defer m.unlock()
	useReserve(m.bytes)
	if m.timer == nil { // closed meanwhile
		return
	}
	if len(m.full.due)+len(m.bare.due) == 0 {
		m.timer = nil
		return
	}
	m.timer.Reset(time.Second)
}

// Sweep frees all finished records that have expired. It is called once a second while there are any.
func (m *Memory) Sweep() {
	now := m.since(m.epoch)
	m.lock()
	queueFinished(m)
	m.unlock()
	for _, q := range []*queue{m.full, m.bare} {
		more := true
		for more {
			more = sweepSome(m, q, now)
		}
	}
}

// sweepSome frees up to sweepChunk entries of q from a second that was over at now, and tells whether there may be more.
func sweepSome(m *Memory, q *queue, now time.Duration) bool {
	m.lock()
	defer m.unlock()
	if len(q.due) == 0 || earliest(q) >= now/time.Second {
		return false
	}
	list, size := q.due[q.first], 0
	chunk := len(list)
	if chunk > sweepChunk {
		chunk = sweepChunk
	}
	for i, e := range list[:chunk] {
		list[i] = nil // the array lives on
		size += sizeOf(e)
		m.bytes -= e.read
		if m.entries[e.Key] == e {
			delete(m.entries, e.Key)
		}
	}
	m.bytes -= size
	if q == m.bare {
		m.bareBytes -= size
	}
	cut(q, chunk)
	return true
}

// cut takes the first n entries of its first second out of q.
func cut(q *queue, n int) {
	list := q.due[q.first]
	if n < len(list) {
		q.due[q.first] = list[n:]
		return
	}
	delete(q.due, q.first)
	if len(q.due) == 0 {
		q.first = Endless
	}
}
