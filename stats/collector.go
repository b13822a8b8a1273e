// Package stats counts what the plugin does, and shows it.
//
// Requests only add to numbers in this process's memory. About once a second these are added to a Store, which all
// Traefiks with the same Redis share.
package stats

import (
	"errors"
	"log"
	"sync"
	"sync/atomic"
	"time"
)

// ErrForbidden is wrapped by the error of a Store that forbids what keys do not need. The store has logged it.
var ErrForbidden = errors.New("a command that only statistics and notes about keys need is forbidden")

const (
	interval   = time.Second      // between two flushes
	retryPause = time.Second      // after a failure, before the store is asked again
	memoryLife = 30 * time.Second // life of a measurement of memory
	unsentLife = 10 * time.Minute // how long a store that fails keeps a collector without users

	maxLost = 1000 // endpoints in Collector.lost
)

// Limits bound what a Store keeps.
type Limits struct {
	TTL          time.Duration // life of the statistics, and of an endpoint where nothing is counted
	MaxEndpoints int           // counted separately; the rest go under Other
}

// Store keeps the numbers of all processes that share it.
type Store interface {
	// Kind is "redis" or "memory".
	Kind() string

	// Add adds numbers. Adding again with the same process and sequence number changes nothing. now is the Unix time.
	Add(process string, sequence, now int64, numbers *Numbers, limits Limits) error

	// Load returns all numbers.
	Load() (*Numbers, error)

	// Trouble returns why requests cannot be decided with this store now, as far as is known; nil if they can.
	Trouble() error

	// Memory measures the plugin's records.
	Memory() (Memory, error)

	// SampleSteps has the time of the next steps of keys measured.
	SampleSteps()

	// Steps returns how long those steps took, by name; nil if the store does not measure.
	Steps() map[string]*Histogram
}

// Requests are the requests that run in this process.
type Requests interface {
	// TakeClaims returns how many have begun since its last call.
	TakeClaims() int64

	// Running returns how many run, how many finished ones are known, and how long the finished ones took.
	Running() (running, finished int, lasted *Histogram)

	// CountIn reports whether one of them is counted in c when it ends.
	CountIn(c *Collector) bool
}

// Collector counts for all handlers that share a Store.
type Collector struct {
	// Counts are the totals since the last gathering. Handlers add to them directly, because a method would cost several times
	// as much under Yaegi. Counters count what is counted by endpoint, too.
	Counts []*atomic.Int64

	// Coming is how many requests are on their way that Requests may not know of, and that may be counted.
	Coming atomic.Int64

	store    Store
	requests Requests
	process  string // its name in the store

	mu       sync.Mutex          // guards everything down to io
	counters map[string]*Counter // what is counted by endpoint, by the patterns of the handlers
	limits   Limits
	timer    *time.Timer
	closed   bool
	users    map[string]int       // middlewares that count here
	settings map[string][]Setting // of theirs, as they were last built

	io           sync.Mutex // held while the store is asked; guards everything below
	known        *Numbers   // numbers of the store when it was last asked
	loaded       bool       // the store has told its numbers once
	waiting      *Numbers   // gathered, to be sent
	lost         *Numbers   // numbers that the store has lost; added to the metrics, so that those never fall
	sending      *Numbers   // sent, but perhaps not arrived: it is sent again unchanged. Nil if there is none
	sequence     int64      // sequence number of sending
	err          error      // from the last time the store was asked
	onlyStats    bool       // err is about the statistics, and not about keys
	lastFailure  time.Time
	failingSince time.Time // first failure of the series that ends with err

	memory     Memory
	measured   time.Time
	unmeasured error // why memory could not be measured
}

// New returns a collector that flushes every second until it is closed. No other collector may ever have the same name: it would lose
// numbers.
func New(name string, store Store, limits Limits, requests Requests) *Collector {
	c := &Collector{
		store:    store,
		requests: requests,
		process:  name,
		Counts:   make([]*atomic.Int64, numTotals),
		counters: map[string]*Counter{},
		limits:   limits,
		known:    NewNumbers(),
		waiting:  NewNumbers(),
		lost:     NewNumbers(),
		users:    map[string]int{},
		settings: map[string][]Setting{},
	}
	for i := range c.Counts {
		c.Counts[i] = &atomic.Int64{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.timer = time.AfterFunc(interval, c.tick)
	return c
}

// SetLimits changes the limits.
func (c *Collector) SetLimits(limits Limits) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limits = limits
	for _, k := range c.counters {
		k.mu.Lock()
		k.maxNames = limits.MaxEndpoints
		k.mu.Unlock()
	}
}

// Join adds a middleware to those that count here, until the returned Member is closed.
func (c *Collector) Join(middleware string) *Member {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.users[middleware]++
	return &Member{collector: c, middleware: middleware}
}

// Member is a middleware that counts in a Collector.
type Member struct {
	collector  *Collector
	middleware string
}

// Show makes the page show these settings of the middleware.
func (m *Member) Show(settings []Setting) {
	m.collector.mu.Lock()
	defer m.collector.mu.Unlock()
	m.collector.settings[m.middleware] = settings
}

// Idle returns true: a member need not outlive its handlers.
func (m *Member) Idle() bool { return true }

// Close removes the middleware from those that count.
func (m *Member) Close() {
	m.collector.mu.Lock()
	defer m.collector.mu.Unlock()
	m.collector.users[m.middleware]--
	if m.collector.users[m.middleware] == 0 {
		delete(m.collector.users, m.middleware)
		delete(m.collector.settings, m.middleware)
	}
}

// Idle reports whether no request is on its way that is counted here when it ends, and the store has all numbers, or has failed
// for so long that they are given up.
func (c *Collector) Idle() bool {
	if c.Coming.Load() > 0 || c.requests.CountIn(c) || !c.io.TryLock() {
		return false
	}
	defer c.io.Unlock()
	told := c.sending == nil && c.waiting.Since == 0
	return told || (c.err != nil && time.Since(c.failingSince) >= unsentLife)
}

// Close flushes once more, without waiting for it, and ends the flushing.
func (c *Collector) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.timer.Stop()
	go c.Retire()
}

// Counter returns what counts by endpoint for a handler with these patterns, until the handler calls Leave; all that ask for the
// same name have one.
func (c *Collector) Counter(name string, patterns []Pattern) *Counter {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.counters[name]
	if k == nil {
		k = &Counter{patterns: patterns, endpoints: noEndpoints(), maxNames: c.limits.MaxEndpoints}
		c.counters[name] = k
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.users++
	return k
}

// tick flushes, and runs again after interval.
func (c *Collector) tick() {
	defer c.reschedule()
	c.store.SampleSteps()
	c.flush(time.Now())
}

// reschedule ends a panic of tick, and starts the next interval.
func (c *Collector) reschedule() {
	if p := recover(); p != nil {
		log.Printf("level=error msg=\"flushing the statistics failed\" cause=%q", p)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.timer.Reset(interval)
	}
}

// Retire flushes what was counted by a handler that is not used any more. If many handlers retire while the store hangs, only one
// of them waits for it.
func (c *Collector) Retire() {
	defer recovered("flushing the statistics")
	c.io.Lock()
	defer c.io.Unlock()
	now := time.Now()
	if c.reachable(now) {
		c.flushNow(now)
	}
}

// recovered ends a panic in a goroutine of the plugin, which would end Traefik.
func recovered(doing string) {
	if p := recover(); p != nil {
		log.Printf("level=error msg=%q cause=%q", doing+" failed", p)
	}
}

func (c *Collector) flush(now time.Time) {
	c.io.Lock()
	defer c.io.Unlock()
	c.flushNow(now)
}

// flushNow adds what was counted to the store. If that fails, the same numbers are sent again later, so that each is added
// once, also when only the store's reply was lost. The caller holds the lock io.
func (c *Collector) flushNow(now time.Time) {
	limits := c.gather(now.Unix())
	c.waiting.Prune(now.Unix(), limits.TTL)
	if c.sending == nil {
		if c.waiting.Since == 0 {
			return
		}
		c.sending = c.waiting
		c.sequence++
		c.waiting = NewNumbers()
	}
	c.recordResult(c.store.Add(c.process, c.sequence, now.Unix(), c.sending, limits))
	if c.err == nil {
		c.known.Add(c.sending, limits.MaxEndpoints)
		c.known.Prune(now.Unix(), limits.TTL)
		c.sending = nil
	}
}

// addLost adds to lost what the store has lost, for instance because Redis was restarted without its data.
// The caller holds the lock io.
func (c *Collector) addLost(loaded *Numbers) {
	for i, count := range c.known.Totals {
		if loaded.Totals[i] < count {
			c.lost.Totals[i] += count - loaded.Totals[i]
		}
	}
	for name, e := range c.known.Endpoints {
		_, known := c.lost.Endpoints[name]
		e.Duplicates -= loaded.Endpoints[name].Duplicates
		e.Outcomes = nil // no metric has them
		if e.Duplicates > 0 && (known || len(c.lost.Endpoints) < maxLost) {
			c.lost.addEndpoint(name, e, maxLost)
		}
	}
}

// recordResult keeps the result of asking the store. It logs a failure of the statistics alone, since nothing else says that
// something is wrong then. The caller holds the lock io.
func (c *Collector) recordResult(err error) {
	before := c.onlyStats
	c.onlyStats = err != nil && c.store.Trouble() == nil
	if c.onlyStats && !before && !errors.Is(err, ErrForbidden) {
		log.Printf("level=error msg=\"Redis does not take the statistics; keys are not concerned\" cause=%q", err)
	}
	if err != nil {
		c.lastFailure = time.Now()
		if c.err == nil {
			c.failingSince = c.lastFailure
		}
	}
	c.err = err
}

// reachable reports whether the store should be asked: it answered the last time, or retryPause is over.
// The caller holds the lock io.
func (c *Collector) reachable(now time.Time) bool {
	return c.err == nil || now.Sub(c.lastFailure) >= retryPause
}

// gather moves what was counted since the last time into waiting, as if all of it had been counted now, which is exact to a
// second. The caller holds the lock io.
func (c *Collector) gather(now int64) Limits {
	n := NewNumbers()
	c.Counts[First].Add(c.requests.TakeClaims())
	for i, count := range c.Counts {
		n.Totals[i] = count.Swap(0)
		if n.Totals[i] != 0 {
			n.Since = now
		}
	}
	counted, limits := c.take()
	for i, total := range ByEndpoint {
		for name, count := range counted[total] {
			e := Endpoint{Seen: now, Outcomes: make([]int64, i+1)}
			e.Outcomes[i] = count
			if isDuplicate(total) {
				e.Duplicates, e.Last = count, now
				n.Minutes[now/60] += count
				n.Hours[now/3600] += count
			}
			n.addEndpoint(name, e, limits.MaxEndpoints)
			n.Totals[total] += count
			n.Since = now
		}
	}
	for i, total := range ProblemTotals {
		count := n.Totals[total]
		if count > 0 {
			n.Problems[i] = &Problem{Last: now, Minutes: map[int64]int64{now / 60: count}, Hours: map[int64]int64{now / 3600: count}}
		}
	}
	c.waiting.Add(n, limits.MaxEndpoints)
	return limits
}

// take returns what was counted by endpoint since the last time, by total and endpoint, and the limits.
func (c *Collector) take() ([]map[string]int64, Limits) {
	c.mu.Lock()
	defer c.mu.Unlock()
	counted := noEndpoints()
	for name, k := range c.counters {
		outlived := k.outlived()
		k.take(counted)
		if outlived {
			delete(c.counters, name)
		}
	}
	return counted, c.limits
}

// Snapshot is the content of the page, stats.json and the metrics.
type Snapshot struct {
	Now        time.Time
	Numbers    *Numbers
	Loaded     bool     // the store has told its numbers once; else Numbers are those of this process alone
	Lost       *Numbers // counted while this process runs, but lost by the store
	Kind       string   // kind of the store
	Err        error    // why keys cannot be decided with the store; then Numbers are the last known ones plus those of this process since
	Unshared   error    // why Numbers are this process's alone since the last flush, although keys work
	Memory     Memory
	Measured   time.Time // time of the measurement; zero: never
	Unmeasured error     // why memory could not be measured

	Middlewares map[string][]Setting // of this process that count here, and their settings
}

// Read flushes and returns the numbers as they are now.
func (c *Collector) Read() Snapshot {
	c.io.Lock()
	defer c.io.Unlock()
	now := time.Now()
	if c.reachable(now) {
		c.ask(now)
	}
	limits := c.gather(now.Unix())
	numbers := c.known.copy()
	if c.sending != nil {
		numbers.Add(c.sending, limits.MaxEndpoints)
	}
	numbers.Add(c.waiting, limits.MaxEndpoints)
	numbers.Prune(now.Unix(), limits.TTL)
	trouble := c.store.Trouble()
	var unshared error
	switch {
	case trouble != nil:
	case c.onlyStats:
		unshared = c.err
	default:
		trouble = c.err
	}
	return Snapshot{Now: now, Numbers: numbers, Loaded: c.loaded, Lost: c.lost.copy(), Kind: c.store.Kind(), Err: trouble, Unshared: unshared, Memory: c.memory, Measured: c.measured, Unmeasured: c.unmeasured, Middlewares: c.middlewares()}
}

// middlewares returns the settings of those that count here, by name.
func (c *Collector) middlewares() map[string][]Setting {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := map[string][]Setting{}
	for name, settings := range c.settings {
		all[name] = settings
	}
	return all
}

// ask flushes, loads all numbers, and measures the memory if the last measurement is old.
// The caller holds the lock io.
func (c *Collector) ask(now time.Time) {
	c.flushNow(now)
	if c.sending != nil {
		return
	}
	known, err := c.store.Load()
	c.recordResult(err)
	if err != nil {
		return
	}
	c.addLost(known)
	c.known = known
	c.loaded = true
	if now.Sub(c.measured) < memoryLife {
		return
	}
	before := c.unmeasured
	c.memory, c.unmeasured = c.store.Memory() // Redis may forbid only this
	c.measured = now
	if c.unmeasured != nil && before == nil {
		log.Printf("level=warn msg=\"the memory of keys cannot be measured; all else works\" cause=%q", c.unmeasured)
	}
}
