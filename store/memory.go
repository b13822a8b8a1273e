package store

import (
	"context"
	"log"
	"math"
	"sync"
	"time"

	"github.com/example/traefik-idem/stats"
)

// entryBytes is what an entry costs in addition to its key, record and wire form: the fingerprint, the map's slot, the lease,
// the slot in a bucket.
const entryBytes = 832

// cachedHeldBytes is what a cached Held costs.
const cachedHeldBytes = 208

// headerBytes is what a name or a value in an answer's header costs in addition to its text.
const headerBytes = 64

// Endless is the duration of a lease that only its owner ends.
const Endless = time.Duration(math.MaxInt64)

// sweepPause is the time between two sweeps.
const sweepPause = time.Second

// sweepChunk is how many entries are freed while the lock is held once.
const sweepChunk = 128

// roomShares is the number of equal shares of the limit of which one is made free at a time, if there are more records than
// shares.
const roomShares = 64

// Memory is a store in this process's memory. Finished records take at most limit bytes, and are freed within about two
// seconds after they expired, traffic or not. Running records are never dropped: there are as many as requests under way,
// each of which finishes or releases its own.
//
// When there is no room, the records that expire first are evicted first: with one time to live, the oldest. A record that no
// other store has loses its answer but stays as an Unkept one, so that its request does not run a second time. These key-only
// records take at most half of limit; beyond that, the oldest of them are evicted too.
type Memory struct {
	since    func(epoch time.Time) time.Duration // the clock
	epoch    time.Time
	token    string      // prefix of its owner tokens, which no other process and no other Memory has
	sweeper  *time.Timer // of the next sweep
	watchdog *time.Timer // of the next tick

	lock, unlock func() // guard everything below but seen, and the entries. Fields, because Yaegi finds a field faster than a method

	limit        int
	bytes        int // taken by finished records
	keyOnlyBytes int // taken by those in keyOnly
	evicted      int // number of answers and keys
	entries      map[string]*Lease
	answers      *buckets // finished entries with an answer, or that another store has too
	keyOnly      *buckets // finished entries without an answer that no other store has
	sweeping     bool     // the sweeper runs, since there is something to free

	claims    int              // owner tokens given out
	granted   int              // claims granted to requests, without those of fresh
	reported  int              // granted claims that TakeClaims has returned
	newsUntil time.Duration    // on the clock: until then, all that was settled by hand in Redis counts as known
	tick      time.Duration    // between two ticks of the watchdog
	armed     bool             // the watchdog ticks
	fresh     []*Run           // claimed by ClaimKey since the last tick; nil: ClaimKey leaves all claims to ClaimLocal
	watched   []*Run           // claimed before, or by ClaimLocal, and running at the last tick
	long      []LongRun        // of these, those that ran for long; replaced as a whole
	lasted    *stats.Histogram // of runs that have ended, as the ticks saw them

	seen []time.Duration // when a tick first saw the runs at the beginning of watched, on the clock. Only ticks change it, under the lock; they read it without
}

// buckets hold finished entries by the second in which they expire. The Memory's lock guards them.
type buckets struct {
	bySecond map[time.Duration][]*Lease // no bucket is empty
	first    time.Duration              // no bucket comes before this second
}

// NewMemory returns a store of at most limit bytes of finished records. Close frees it.
func NewMemory(limit int64) *Memory {
	return NewMemoryClock(limit, time.Since)
}

// NewMemoryClock is NewMemory with another clock: since returns how much time has passed since epoch.
func NewMemoryClock(limit int64, since func(epoch time.Time) time.Duration) *Memory {
	setBallast(limit)
	var mu sync.Locker = &sync.Mutex{}
	m := &Memory{since: since, epoch: time.Now(), lock: mu.Lock, unlock: mu.Unlock, limit: bounded(limit), entries: map[string]*Lease{}, answers: newBuckets(), keyOnly: newBuckets(), token: RandomHex(16) + "-", tick: longestTick, lasted: stats.NewHistogram(runBounds...)}
	// The timers are made once: under Yaegi, a timer made in a tick would keep the variables of that tick alive, and through them
	// those of all ticks before.
	m.watchdog = time.AfterFunc(longestTick, m.watch)
	m.watchdog.Stop()
	m.sweeper = time.AfterFunc(sweepPause, m.sweep)
	m.sweeper.Stop()
	return m
}

// bounded returns limit as an int. Where an int has 32 bits, that is at most 1 GiB, so that there is room to count what is too much.
func bounded(limit int64) int {
	if 2*limit != int64(int(2*limit)) {
		return 1 << 30
	}
	return int(limit)
}

func newBuckets() *buckets {
	return &buckets{bySecond: map[time.Duration][]*Lease{}, first: Endless}
}

// Token is what the owner tokens of all leases in m begin with, up to a hyphen.
func Token(m *Memory) string { return m.token[:len(m.token)-1] }

// SetLimit changes the bound on finished records, in bytes.
func (m *Memory) SetLimit(limit int64) {
	m.lock()
	defer m.unlock()
	m.limit = bounded(limit)
	evict(m)
	setBallast(limit)
}

// Idle reports whether there is no record, running or finished.
func (m *Memory) Idle() bool {
	m.lock()
	defer m.unlock()
	return len(m.entries) == 0
}

// Close frees finished records. Running requests keep theirs until they end.
func (m *Memory) Close() {
	m.lock()
	defer m.unlock()
	for key, e := range m.entries {
		if e.record != "" {
			delete(m.entries, key)
		}
	}
	bucketFinished(m)
	m.bytes = 0
	m.keyOnlyBytes = 0
	for _, b := range []*buckets{m.answers, m.keyOnly} {
		b.bySecond = map[time.Duration][]*Lease{}
		b.first = Endless
	}
}

// Usage returns how many records there are, how many bytes the finished ones take, and how many answers and keys were
// evicted because the store was full.
func (m *Memory) Usage() (records int, bytes, evicted int64) {
	m.lock()
	defer m.unlock()
	return len(m.entries), int64(m.bytes), int64(m.evicted)
}

// runBounds are the upper bounds of the histogram of runs. The first is the longest time that a run can take between two ticks.
var runBounds = []time.Duration{longestTick, 500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second,
	10 * time.Second, 30 * time.Second, time.Minute, 5 * time.Minute}

// Running returns how many requests ran at the last tick, how many finished ones have a record, and how long the finished ones
// took, to the time between two ticks.
func (m *Memory) Running() (running, finished int, lasted *stats.Histogram) {
	m.lock()
	defer m.unlock()
	running = len(m.seen)
	finished = len(m.entries) - running
	if finished < 0 { // some were released since
		finished = 0
	}
	return running, finished, m.lasted.Copy()
}

// TakeClaims returns how many claims of requests were granted since it was last called.
func (m *Memory) TakeClaims() int64 {
	m.lock()
	defer m.unlock()
	granted := m.granted + len(m.fresh)
	news := granted - m.reported
	m.reported = granted
	return int64(news)
}

// CountIn reports whether a request runs whose end is counted in c.
func (m *Memory) CountIn(c *stats.Collector) bool {
	m.lock()
	defer m.unlock()
	for _, list := range [][]*Run{m.watched, m.fresh} {
		for _, r := range list {
			k, _ := r.keys.(*Keys)
			if k.Terms.Stats == c && r.record == "" && m.entries[r.Key] == r.Lease {
				return true
			}
		}
	}
	return false
}

// Claim gives the key to the lease for d and returns nil if the key is free, else what holds it. The plugin claims for Endless; that
// a lease can have an end is what package storetest asks of every store.
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

// extend makes the lease last d from now, unless it has ended.
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

// LookupOther returns what holds the key of l; nil if it is free, or l holds it.
func LookupOther(m *Memory, l *Lease) *Held {
	m.lock()
	e := m.entries[l.Key]
	m.unlock()
	if e == nil || e.Owner == l.Owner {
		return nil
	}
	return describe(m, l)
}

// StateOf returns Running until l ends, then the state of its record, and Free if l was released, never had the key, or its
// record has expired or was evicted.
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

// describe returns what holds the key of l; nil if it is free. It frees the key of an expired entry; a finished one stays in
// its bucket until it is swept.
func describe(m *Memory, l *Lease) *Held {
	held := &Held{Local: true, State: Running}
	now := m.since(m.epoch)
	m.lock()
	e := m.entries[l.Key]
	if e != nil && e.expires > 0 && now >= e.expires {
		freeKey(m, e)
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
	switch {
	case e.expires > 0:
		held.Left = e.expires - now
	case e.expires < 0:
		held.Left = -e.expires
	}
	if e.record != "" {
		held.OnlyCopy = !e.elsewhere
		held.State = State(e.record[len(magic)])
		held.Record = e.record
	}
	m.unlock()
	if held.Answer == nil && held.Record != "" {
		_ = Read(held) // it is a record, so there is no error
		cacheAnswer(m, e, held)
	}
	return held
}

// cacheAnswer keeps the answer that was read from the record of e, for further duplicates.
func cacheAnswer(m *Memory, e *Lease, held *Held) {
	if held.State != Done {
		return
	}
	size := cachedHeldBytes
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
	e.held = &Held{State: Done, Key: e.Key, Fingerprint: held.Fingerprint, Answer: held.Answer, Record: held.Record, Local: true, OnlyCopy: held.OnlyCopy}
	e.heldSize = size
	m.bytes += size
	evict(m)
}

// Finish replaces the lease by record, which is finished, for ttl. It returns false, and changes nothing, if the lease is
// lost. onlyCopy says that no other store has the record; see Memory for how such a record is evicted.
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
	e.finished = now
	e.expires = now + ttl
	keepFinished(m, e)
	return true
}

// Release makes the key free. It returns false, and changes nothing, if the lease is lost.
func Release(m *Memory, l *Lease) bool {
	now := m.since(m.epoch)
	m.lock()
	defer m.unlock()
	e := owned(m, l, now)
	if e == nil {
		return false
	}
	freeKey(m, e)
	return true
}

// Remember keeps a finished record of another store, which was found for the lease asked, until it expires there, unless the key
// has an entry already.
func Remember(m *Memory, asked *Lease, held *Held) {
	l := &Lease{Key: asked.Key, Fingerprint: held.Fingerprint, Wire: asked.Wire}
	if Claim(m, l, Endless) == nil {
		Finish(m, l, held.Record, held.Left, false)
	}
}

// Wait returns as soon as the request that runs under key ends, its lease ends, or ctx is over. It reports whether there was a
// running request; if not, it returns at once.
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

// owned returns the entry that l holds, or nil if its lease has ended. It frees the key of a lease that has ended by itself.
// The caller holds the lock.
func owned(m *Memory, l *Lease, now time.Duration) *Lease {
	e := m.entries[l.Key]
	if e == nil || e.record != "" || e.Owner != l.Owner {
		return nil
	}
	if e.expires > 0 && now >= e.expires {
		freeKey(m, e)
		return nil
	}
	return e
}

// keepFinished puts an entry that has just been finished into a bucket, as far as there is room for it, and wakes those who
// wait for it. The caller holds the lock.
func keepFinished(m *Memory, e *Lease) {
	size := sizeOf(e)
	answered := e.record[len(magic)] == byte(Done)
	switch {
	case !e.elsewhere && (size > m.limit || !answered):
		keepKeyOnly(m, e)
	case size <= m.limit:
		m.bytes += size
		addToBucket(m, m.answers, e)
	default:
		delete(m.entries, e.Key)
	}
	wake(e)
	evict(m)
}

// keepKeyOnly keeps e, which is in no bucket yet, without its answer. The caller holds the lock.
func keepKeyOnly(m *Memory, e *Lease) {
	if e.record[len(magic)] == byte(Done) {
		e.record = KeyOnly(e.record)
		m.evicted++
	}
	size := sizeOf(e)
	m.bytes += size
	m.keyOnlyBytes += size
	addToBucket(m, m.keyOnly, e)
}

// sizeOf returns how many bytes a finished entry counts, without its cached answer. The caller holds the lock.
func sizeOf(e *Lease) int {
	return entryBytes + len(e.Key) + len(e.Wire) + len(e.record)
}

// addToBucket puts a finished entry into its bucket of b, and starts the sweeping if need be. The caller holds the lock.
func addToBucket(m *Memory, b *buckets, e *Lease) {
	second := e.expires / time.Second
	b.bySecond[second] = append(b.bySecond[second], e)
	if second < b.first {
		b.first = second
		startSweeping(m)
	}
}

// startSweeping starts the sweeper, unless it runs. The caller holds the lock.
func startSweeping(m *Memory) {
	if !m.sweeping {
		m.sweeping = true
		m.sweeper.Reset(sweepPause)
	}
}

// firstSecond returns the second of the first bucket of b, which is not empty. Usually that is the same as before, or the next
// one; only after a gap are all buckets looked through. The caller holds the lock.
func firstSecond(b *buckets) time.Duration {
	if b.bySecond[b.first] == nil {
		b.first++
	}
	if b.bySecond[b.first] == nil {
		b.first = Endless
		for second := range b.bySecond {
			if second < b.first {
				b.first = second
			}
		}
	}
	return b.first
}

// wake wakes those who wait for the end of e. The caller holds the lock.
func wake(e *Lease) {
	if e.done != nil {
		close(e.done)
		e.done = nil
	}
}

// freeKey makes the key of a running or expired entry free. The caller holds the lock.
func freeKey(m *Memory, e *Lease) {
	delete(m.entries, e.Key)
	wake(e)
}

// evict drops the entries that expire first, or their answers, until the rest fits. If there are many records, it makes more
// room than is needed, so that most requests find some. The caller holds the lock.
func evict(m *Memory) {
	if m.bytes <= m.limit {
		return
	}
	bucketFinished(m)
	goal := m.limit
	if len(m.entries) > roomShares {
		goal -= m.limit / roomShares
	}
	for m.bytes > m.limit {
		from := m.answers
		if len(from.bySecond) == 0 || m.keyOnlyBytes > m.limit/2 {
			from = m.keyOnly
		}
		evictSome(m, from, goal)
	}
}

// evictSome drops entries of the first bucket of b, which is not empty, or their answers: as many as it takes to reach goal,
// but at most sweepChunk. The last entry of the bucket, which may be the newest of all, is dropped only if it does not fit.
// The caller holds the lock.
func evictSome(m *Memory, b *buckets, goal int) {
	second := firstSecond(b)
	list, done := b.bySecond[second], 0
	var stripped []*Lease
	for _, e := range list {
		if done == sweepChunk || (b == m.answers && m.keyOnlyBytes > m.limit/2) {
			break
		}
		if m.bytes <= m.limit && (m.bytes <= goal || done == len(list)-1) {
			break
		}
		list[done] = nil // the array lives on
		done++
		m.evicted++
		size := sizeOf(e)
		m.bytes -= size + e.heldSize
		e.held = nil
		e.heldSize = 0
		if !e.elsewhere && e.record[len(magic)] == byte(Done) {
			e.record = KeyOnly(e.record)
			size = sizeOf(e)
			m.bytes += size
			m.keyOnlyBytes += size
			stripped = append(stripped, e)
			continue
		}
		if b == m.keyOnly {
			m.keyOnlyBytes -= size
		}
		if m.entries[e.Key] == e { // else e had expired, and the key was claimed again
			delete(m.entries, e.Key)
		}
	}
	removeFirst(b, done)
	if len(stripped) > 0 {
		m.keyOnly.bySecond[second] = append(m.keyOnly.bySecond[second], stripped...)
		if second < m.keyOnly.first {
			m.keyOnly.first = second
		}
	}
}

// sweep frees what has expired, and runs again after a pause while there is anything left.
func (m *Memory) sweep() {
	defer m.rescheduleSweep()
	m.Sweep()
}

// rescheduleSweep ends a panic of sweep, and starts the next pause while there is anything to free.
func (m *Memory) rescheduleSweep() {
	if p := recover(); p != nil {
		log.Printf("level=error msg=\"sweep of the memory store failed\" cause=%q", p)
	}
	m.lock()
	defer m.unlock()
	releaseBallast(m.bytes)
	m.sweeping = len(m.answers.bySecond)+len(m.keyOnly.bySecond) > 0
	if m.sweeping {
		m.sweeper.Reset(sweepPause)
	}
}

// Sweep frees all finished records that have expired. It is called once a second while there are any.
func (m *Memory) Sweep() {
	now := m.since(m.epoch)
	lockAndBucket(m)
	for _, b := range []*buckets{m.answers, m.keyOnly} {
		more := true
		for more {
			more = sweepSome(m, b, now)
		}
	}
}

// lockAndBucket is bucketFinished under the lock, which it frees also after a panic.
func lockAndBucket(m *Memory) {
	m.lock()
	defer m.unlock()
	bucketFinished(m)
}

// sweepSome frees up to sweepChunk entries of b from a second that was over at now, and reports whether there may be more.
func sweepSome(m *Memory, b *buckets, now time.Duration) bool {
	m.lock()
	defer m.unlock()
	if len(b.bySecond) == 0 || firstSecond(b) >= now/time.Second {
		return false
	}
	list, size := b.bySecond[b.first], 0
	chunk := len(list)
	if chunk > sweepChunk {
		chunk = sweepChunk
	}
	for i, e := range list[:chunk] {
		list[i] = nil // the array lives on
		size += sizeOf(e)
		m.bytes -= e.heldSize
		if m.entries[e.Key] == e {
			delete(m.entries, e.Key)
		}
	}
	m.bytes -= size
	if b == m.keyOnly {
		m.keyOnlyBytes -= size
	}
	removeFirst(b, chunk)
	return true
}

// removeFirst takes the first n entries of the first bucket out of b. The caller holds the lock.
func removeFirst(b *buckets, n int) {
	list := b.bySecond[b.first]
	if n < len(list) {
		b.bySecond[b.first] = list[n:]
		return
	}
	delete(b.bySecond, b.first)
	if len(b.bySecond) == 0 {
		b.first = Endless
	}
}
