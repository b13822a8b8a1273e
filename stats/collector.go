// Package stats counts what the plugin does, and shows it.
//
// Requests only add to numbers in this process's memory. About once a second these are added to a Store, which all
// Traefiks with the same Redis share.
package stats

import (
	"crypto/rand"
	"encoding/hex"
	"log"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	interval   = time.Second      // between two flushes
	patience   = time.Second      // after a failure, how long the store is left alone
	memoryLife = 30 * time.Second // for how long a measurement of memory is shown

	lostEndpoints = 1000 // of which the metrics remember what the store has lost
)

// Limits bound what a Store keeps.
type Limits struct {
	TTL          time.Duration // life of the statistics, and of an endpoint without duplicates
	MaxEndpoints int           // counted apart; the rest go under Other
}

// Memory is how much the plugin's records take.
type Memory struct {
	Keys      int64   // keys measured
	Bytes     int64   // what those take
	Exact     bool    // all were measured, one by one
	Looked    float64 // share of the keyspace that was looked at; 1 = all
	Estimated bool    // memory of a process: by the plugin's own accounts
}

// Store keeps the numbers of all processes that share it.
type Store interface {
	// Kind is "redis" or "memory".
	Kind() string

	// Add adds numbers, once: what is added again with the same process and sequence number changes nothing. now is
	// the Unix time.
	Add(process string, sequence, now int64, numbers *Numbers, limits Limits) error

	// Load returns all numbers.
	Load() (*Numbers, error)

	// Trouble tells why requests cannot be decided with this store now, as far as is known; nil if they can.
	Trouble() error

	// Memory measures the plugin's records.
	Memory() (Memory, error)
}

// Collector counts for all handlers that share a Store.
type Collector struct {
	// Counts are the totals since the last gathering. Whoever decides about a request adds to them: a method to do it
	// would cost several times as much under Yaegi. Duplicates are added with Duplicate.
	Counts []*atomic.Int64

	store   Store
	claims  func() int64
	process string

	mu         sync.Mutex       // guards everything up to the blank line
	endpoints  map[string]int64 // duplicates since the last gathering, by raw name
	duplicates []int64          // the same, by total
	limits     Limits
	timer      *time.Timer
	closed     bool

	io       sync.Mutex // held while the store is asked; guards everything below
	known    *Numbers   // what the store had when it was last asked
	waiting  *Numbers   // gathered, to be sent
	lost     *Numbers   // what the store had once and has no more: the metrics do not fall
	sending  *Numbers   // sent, and perhaps not arrived: it is sent again as it is. Nil if there is none
	sequence int64      // of sending
	err      error      // of the last time the store was asked
	failed   time.Time
	memory   Memory
	measured time.Time

	unmeasured error // why memory could not be measured
}

// New returns a collector that flushes every second until it is closed.
// claims tells how many requests have run since it was last asked.
func New(store Store, limits Limits, claims func() int64) *Collector {
	random := make([]byte, 8)
	_, err := rand.Read(random)
	if err != nil { // two processes with one name would lose each other's numbers
		panic("traefik-idem: no random numbers to be had: " + err.Error())
	}
	c := &Collector{
		store:      store,
		claims:     claims,
		process:    hex.EncodeToString(random),
		Counts:     make([]*atomic.Int64, counters),
		endpoints:  map[string]int64{},
		duplicates: make([]int64, counters),
		limits:     limits,
		known:      NewNumbers(),
		waiting:    NewNumbers(),
		lost:       NewNumbers(),
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
}

// Idle tells that nobody needs a collector without users.
func (c *Collector) Idle() bool { return true }

// Close flushes once more, without waiting for it, and ends the flushing.
func (c *Collector) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.timer.Stop()
	go c.Retire()
}

// Duplicate adds one to a duplicate's total and to its endpoint. It is on the way of a request, and short since Yaegi makes
// room for every value of a function at each call: all that can wait is left to admit and gather.
func Duplicate(c *Collector, total int, r *http.Request) {
	name := r.Method + " " + r.Host + " " + r.URL.EscapedPath()
	c.mu.Lock()
	n := c.endpoints[name]
	if n == 0 {
		name = admit(c, name)
		n = c.endpoints[name]
	}
	c.endpoints[name] = n + 1
	c.duplicates[total]++
	c.mu.Unlock()
}

// admit returns the name under which an endpoint that has none yet is counted: bounded, or Other if there are too many.
func admit(c *Collector, name string) string {
	if len(name) > longestPath {
		method, host, path := parts(name)
		name = clip(method, longestMethod) + " " + clip(host, longestHost) + " " + clip(path, longestPath)
	}
	_, known := c.endpoints[name]
	if !known && len(c.endpoints) >= c.limits.MaxEndpoints {
		return Other
	}
	return name
}

// tick flushes and comes again.
func (c *Collector) tick() {
	defer c.again()
	c.flush(time.Now())
}

// again starts the next interval, whatever became of the last.
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

// Retire flushes what a handler that is given up has counted. Of many that are given up at once while the store hangs,
// one waits for it.
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

// flushLocked adds what was counted to the store. What fails is kept and sent again, so that a number is added once,
// also when only the store's reply was lost.
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

// noteLoss adds to lost what the store has no more, for instance since Redis was restarted without its data.
func (c *Collector) noteLoss(loaded *Numbers) {
	for i, count := range c.known.Totals {
		if loaded.Totals[i] < count {
			c.lost.Totals[i] += count - loaded.Totals[i]
		}
	}
	for name, e := range c.known.Endpoints {
		_, noted := c.lost.Endpoints[name]
		e.Duplicates -= loaded.Endpoints[name].Duplicates
		if e.Duplicates > 0 && (noted || len(c.lost.Endpoints) < lostEndpoints) {
			c.lost.addEndpoint(name, e, lostEndpoints)
		}
	}
}

// note remembers how it went with the store.
func (c *Collector) note(err error) {
	c.err = err
	if err != nil {
		c.failed = time.Now()
	}
}

// reachable tells whether it is worth while to ask the store.
func (c *Collector) reachable(now time.Time) bool {
	return c.err == nil || now.Sub(c.failed) >= patience
}

// gather moves what was counted since the last time into waiting. All of it counts as counted now, which is true to a
// second.
func (c *Collector) gather(now int64) Limits {
	n := NewNumbers()
	c.Counts[First].Add(c.claims())
	for i, count := range c.Counts {
		n.Totals[i] = count.Swap(0)
		if n.Totals[i] != 0 {
			n.Since = now
		}
	}
	c.mu.Lock()
	counted := c.endpoints
	c.endpoints = map[string]int64{}
	for i, count := range c.duplicates {
		n.Totals[i] += count
		c.duplicates[i] = 0
	}
	limits := c.limits
	c.mu.Unlock()
	for name, duplicates := range counted {
		if name != Other {
			method, host, path := parts(name)
			name = endpoint(method, host, path)
		}
		n.addEndpoint(name, Endpoint{Duplicates: duplicates, Last: now}, limits.MaxEndpoints)
		n.Minutes[now/60] += duplicates
		n.Hours[now/3600] += duplicates
		n.Since = now
	}
	c.waiting.Add(n, limits.MaxEndpoints)
	return limits
}

// Snapshot is what a page shows.
type Snapshot struct {
	Now        time.Time
	Numbers    *Numbers
	Lost       *Numbers // counted in this process's time, and lost by the store since
	Kind       string   // of the store
	Err        error    // the store cannot be asked: these are the numbers as last known, and this process's since
	Memory     Memory
	Measured   time.Time // when that was measured; zero: never
	Unmeasured error     // why it could not be
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
	trouble := c.err
	if trouble == nil {
		trouble = c.store.Trouble()
	}
	return Snapshot{Now: now, Numbers: numbers, Lost: c.lost.copy(), Kind: c.store.Kind(), Err: trouble, Memory: c.memory, Measured: c.measured, Unmeasured: c.unmeasured}
}

// ask flushes, loads all numbers, and measures the memory if the last measurement is old.
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
	if now.Sub(c.measured) < memoryLife {
		return
	}
	c.memory, c.unmeasured = c.store.Memory() // Redis may forbid it, and be well
	c.measured = now
}
