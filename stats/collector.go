// Package stats counts what the plugin does, and shows it.
//
// Requests only add to numbers in this process's memory. About once a second these are added to a Store, which all
// Traefiks with the same Redis share.
package stats

import (
	"crypto/rand"
	"encoding/hex"
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
	patience   = time.Second      // pause after a failure before the store is asked again
	memoryLife = 30 * time.Second // life of a measurement of memory
	unsentLife = 10 * time.Minute // how long a store that fails keeps a collector without users

	lostEndpoints = 1000 // upper bound on endpoints in Collector.lost
)

// Limits bound what a Store keeps.
type Limits struct {
	TTL          time.Duration // life of the statistics, and of an endpoint where nothing is counted
	MaxEndpoints int           // counted apart; the rest go under Other
}

// Memory is how much the plugin's records take.
type Memory struct {
	Keys      int64   // keys measured
	Bytes     int64   // taken by those
	Exact     bool    // every key was measured
	Looked    float64 // share of the keyspace that was looked at; 1 = all
	Estimated bool    // memory of a process, estimated by the plugin
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

	// Measure has the time of the next steps of keys taken.
	Measure()

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
	process  string

	mu       sync.Mutex          // guards everything down to the blank line
	counters map[string]*Counter // what is counted by endpoint, by the patterns of the handlers
	limits   Limits
	timer    *time.Timer
	closed   bool
	users    map[string]int       // middlewares that count here
	settings map[string][]Setting // of theirs, as they were last built

	io       sync.Mutex // held while the store is asked; guards everything below
	known    *Numbers   // numbers of the store when it was last asked
	loaded   bool       // the store has told its numbers once
	waiting  *Numbers   // gathered, to be sent
	lost     *Numbers   // numbers that the store has lost; added to the metrics, so that those never fall
	sending  *Numbers   // sent, but perhaps not arrived: it is sent again unchanged. Nil if there is none
	sequence int64      // sequence number of sending
	err      error      // from the last time the store was asked
	apart    bool       // err is about the statistics, and not about keys
	failed   time.Time
	failing  time.Time // when the first of the failures came that end with err
	memory   Memory
	measured time.Time

	unmeasured error // why memory could not be measured
}

// New returns a collector that flushes every second until it is closed.
func New(store Store, limits Limits, requests Requests) *Collector {
	random := make([]byte, 8)
	_, err := rand.Read(random)
	if err != nil { // two processes with one name would lose each other's numbers
		panic("traefik-idem: no random numbers to be had: " + err.Error())
	}
	c := &Collector{
		store:    store,
		requests: requests,
		process:  hex.EncodeToString(random),
		Counts:   make([]*atomic.Int64, counters),
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
		k.most = limits.MaxEndpoints
		k.mu.Unlock()
	}
}

// Join adds a middleware to those that count here, until the returned User is closed.
func (c *Collector) Join(middleware string) *User {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.users[middleware]++
	return &User{collector: c, middleware: middleware}
}

// User is a middleware that counts in a Collector.
type User struct {
	collector  *Collector
	middleware string
}

// Show has the page show these settings of the middleware.
func (u *User) Show(settings []Setting) {
	u.collector.mu.Lock()
	defer u.collector.mu.Unlock()
	u.collector.settings[u.middleware] = settings
}

// Idle returns true: a user need not outlive its handlers.
func (u *User) Idle() bool { return true }

// Close takes the middleware from those that count.
func (u *User) Close() {
	u.collector.mu.Lock()
	defer u.collector.mu.Unlock()
	u.collector.users[u.middleware]--
	if u.collector.users[u.middleware] == 0 {
		delete(u.collector.users, u.middleware)
		delete(u.collector.settings, u.middleware)
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
	return told || (c.err != nil && time.Since(c.failing) >= unsentLife)
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
		k = &Counter{patterns: patterns, endpoints: noEndpoints(), most: c.limits.MaxEndpoints}
		c.counters[name] = k
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.users++
	return k
}

// tick flushes, and runs again after interval.
func (c *Collector) tick() {
	defer c.again()
	c.store.Measure()
	c.flush(time.Now())
}

// again ends a panic of tick, and starts the next interval.
func (c *Collector) again() {
	if p := recover(); p != nil {
		log.Printf("level=error msg=\"flushing the statistics failed\" cause=%q", p)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.timer.Reset(interval)
	}
}

// Retire flushes what a handler has counted that is not used any more. If many handlers retire while the store hangs, only one
// of them waits for it.
func (c *Collector) Retire() {
	defer func() {
		if p := recover(); p != nil {
			log.Printf("level=error msg=\"flushing the statistics failed\" cause=%q", p)
		}
	}()
	c.io.Lock()
	defer c.io.Unlock()
	now := time.Now()
	if c.reachable(now) {
		c.flushLocked(now)
	}
}

func (c *Collector) flush(now time.Time) {
	c.io.Lock()
	defer c.io.Unlock()
	c.flushLocked(now)
}

// flushLocked adds what was counted to the store. If that fails, the same numbers are sent again later, so that each is added
// once, also when only the store's reply was lost. The caller holds io.
func (c *Collector) flushLocked(now time.Time) {
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
	c.note(c.store.Add(c.process, c.sequence, now.Unix(), c.sending, limits))
	if c.err == nil {
		c.known.Add(c.sending, limits.MaxEndpoints)
		c.known.Prune(now.Unix(), limits.TTL)
		c.sending = nil
	}
}

// noteLoss adds to lost what the store has lost, for instance because Redis was restarted without its data. The caller holds
// io.
func (c *Collector) noteLoss(loaded *Numbers) {
	for i, count := range c.known.Totals {
		if loaded.Totals[i] < count {
			c.lost.Totals[i] += count - loaded.Totals[i]
		}
	}
	for name, e := range c.known.Endpoints {
		_, noted := c.lost.Endpoints[name]
		e.Duplicates -= loaded.Endpoints[name].Duplicates
		e.Outcomes = nil // no metric has them
		if e.Duplicates > 0 && (noted || len(c.lost.Endpoints) < lostEndpoints) {
			c.lost.addEndpoint(name, e, lostEndpoints)
		}
	}
}

// note keeps the result of asking the store. It is logged where requests can be decided with the store, so that nothing else
// says that something is wrong. The caller holds io.
func (c *Collector) note(err error) {
	before := c.apart
	c.apart = err != nil && c.store.Trouble() == nil
	if c.apart && !before && !errors.Is(err, ErrForbidden) {
		log.Printf("level=error msg=\"Redis does not take the statistics; keys are not concerned\" cause=%q", err)
	}
	if err != nil {
		c.failed = time.Now()
		if c.err == nil {
			c.failing = c.failed
		}
	}
	c.err = err
}

// reachable reports whether the store should be asked: it answered the last time, or patience is over. The caller holds io.
func (c *Collector) reachable(now time.Time) bool {
	return c.err == nil || now.Sub(c.failed) >= patience
}

// gather moves what was counted since the last time into waiting, as if all of it had been counted now, which is exact to a
// second. The caller holds io.
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
	for place, total := range Apart {
		for name, count := range counted[total] {
			e := Endpoint{Seen: now, Outcomes: make([]int64, place+1)}
			e.Outcomes[place] = count
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
	for i, total := range Problems {
		count := n.Totals[total]
		if count > 0 {
			n.Troubles[i] = &Trouble{Last: now, Minutes: map[int64]int64{now / 60: count}, Hours: map[int64]int64{now / 3600: count}}
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
	Unshared   error    // why the same is so of Numbers, although keys can be decided with the store
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
	case c.apart:
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

// ask flushes, loads all numbers, and measures the memory if the last measurement is old. The caller holds io.
func (c *Collector) ask(now time.Time) {
	c.flushLocked(now)
	if c.sending != nil {
		return
	}
	known, err := c.store.Load()
	c.note(err)
	if err != nil {
		return
	}
	c.noteLoss(known)
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
