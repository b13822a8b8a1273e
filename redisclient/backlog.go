package redisclient

import (
	"container/list"
	"log"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/example/traefik-idem/store"
)

// What is kept for a server that is out of reach takes at most backlogBytes: each pending write counts pendingBytes plus its
// key and record. While the memory store has the record too, both share one string.
const (
	backlogBytes = 32 << 20
	pendingBytes = 512
)

// writeBackScript: ARGV = the running record, the finished one, its time to live in ms. 1 if it is kept, 0 if another owner
// has the key. A running record of this process is not in the way: it was claimed for this request, or for a duplicate of
// it, and the reply was lost. An owner's token is that of its process, a hyphen and a number.
var writeBackScript = newScript(':', 3, `
local v = redis.call('GET', KEYS[1])
local own = string.match(ARGV[1], '^.*%-')
if v and v ~= ARGV[2] and string.sub(v, 1, #own) ~= own then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1`)

// pendingWrite is a finished record, or the release of a lease, that Redis has not been told of yet.
type pendingWrite struct {
	keys    *Keys
	lease   *store.Lease
	record  string // empty: the key is free
	expires time.Time
	size    int64

	// Of the last try; set by writeOne, and read when all of its batch have ended.
	result writeResult
	server *Client // where it was postponed
}

// writeResult is what became of a pending write.
type writeResult int

const (
	dropped     writeResult = iota // given up: there was no room, or Redis has an error for this key alone
	written                        // Redis has been told
	heldByOther                    // another owner has the key
	postponed                      // Redis cannot be told now
)

// Backlog holds the writes that one Redis could not be given yet. When there is no room, the oldest is dropped first. All
// clients of that Redis and prefix share it: one with other settings may succeed where one has failed.
type Backlog struct {
	outages atomic.Int64 // number of outages that have begun, of any client

	mu      sync.Mutex // guards everything below
	clients *list.List // of *Client, in use
	pending *list.List // of *pendingWrite that are to be tried, oldest first
	waiting *list.List // of *pendingWrite that were postponed, until a server is found again; older than pending ones
	bytes   int64      // taken by pending and waiting
	writing bool       // a goroutine writes pending

	results  [postponed]int // number of records by result, since the backlog was last empty
	reported int64          // number of outages that had begun then

	hooks map[string]*hook // called when a client finds Redis again, and when a client joins
}

// hook is a function to be called, and how many want that.
type hook struct {
	call  func()
	users int
}

// NewBacklog returns an empty backlog.
func NewBacklog() *Backlog {
	return &Backlog{clients: list.New(), pending: list.New(), waiting: list.New(), hooks: map[string]*hook{}}
}

// Idle reports whether nothing is left to write and no client is in use.
func (b *Backlog) Idle() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.clients.Len() == 0 && !hasPending(b)
}

// Close does nothing: a backlog holds nothing but memory.
func (b *Backlog) Close() {}

// hasPending reports whether a pending write has not expired. The caller holds the lock.
func hasPending(b *Backlog) bool {
	now := time.Now()
	for _, l := range []*list.List{b.waiting, b.pending} {
		for element := l.Front(); element != nil; element = element.Next() {
			p, _ := element.Value.(*pendingWrite)
			if now.Before(p.expires) {
				return true
			}
		}
	}
	return false
}

// nothingLeft reports whether nothing is pending or waiting. The caller holds the lock.
func nothingLeft(b *Backlog) bool { return b.pending.Len()+b.waiting.Len() == 0 }

// attach adds a new client, which has not sent any command yet, and writes what others could not.
func attach(b *Backlog, c *Client) {
	c.backlog = b
	c.health.onOutage = func() { b.outages.Add(1) }
	c.health.onBack = func() { resume(b, c) }
	c.health.onClose = func() { detach(b, c) }
	c.health.needed = func() bool { return isOrphaned(b) }
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clients.PushBack(c)
	if b.clients.Len() > 1 {
		callHooks(b)
	}
	tryAgain(b, nil)
	if !b.writing && b.pending.Len() > 0 {
		go writePending(c)
	}
}

// detach takes c out of use. Other clients write what c has not.
func detach(b *Backlog, c *Client) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for element := b.clients.Front(); element != nil; element = element.Next() {
		other, _ := element.Value.(*Client)
		if other == c {
			b.clients.Remove(element)
			break
		}
	}
	tryAgain(b, nil)
	startWriting(b, c)
}

// resume goes on where c has found a server again.
func resume(b *Backlog, c *Client) {
	b.mu.Lock()
	defer b.mu.Unlock()
	callHooks(b)
	tryAgain(b, c.health)
	startWriting(b, c)
	if nothingLeft(b) && c.health.failing.Load() == 0 {
		reportOutage(b, c.opts.Address)
	}
}

// Idle reports whether nothing is left to write, or another client can write it.
func (c *Client) Idle() bool {
	b := c.backlog
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.clients.Len() > 1 || !hasPending(b)
}

// isOrphaned reports whether something is pending, and no client is in use that writes it.
func isOrphaned(b *Backlog) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.clients.Len() == 0 && hasPending(b)
}

// tryAgain makes waiting writes pending: all of them, but of those whose server has the health found only the ones whose server is
// fine. The caller holds the lock.
func tryAgain(b *Backlog, found *health) {
	again := list.New()
	var next *list.Element
	for element := b.waiting.Front(); element != nil; element = next {
		next = element.Next()
		p, _ := element.Value.(*pendingWrite)
		if p.server.health != found || p.server.state() == fine {
			again.PushBack(b.waiting.Remove(element))
		}
	}
	b.pending.PushFrontList(again)
}

// startWriting starts to write what is pending, if there is a healthy client. c is used if no client is in use, until all that is
// pending has expired: the server may never come back. The caller holds the lock.
func startWriting(b *Backlog, c *Client) {
	if b.clients.Len() == 0 && !hasPending(b) {
		return
	}
	writer := healthyClient(b, c)
	if !b.writing && b.pending.Len() > 0 && writer != nil {
		go writePending(writer)
	}
}

// healthyClient returns a client in use whose servers are fine, as far as is known, or else that of a cluster that is without a
// node. If no client is in use, it may be c. It returns nil if there is none. The caller holds the lock.
func healthyClient(b *Backlog, c *Client) *Client {
	var healthy *Client
	for element := b.clients.Front(); element != nil; element = element.Next() {
		other, _ := element.Value.(*Client)
		switch {
		case other.health.failing.Load() == 0:
			return other
		case healthy == nil && other.state() == fine:
			healthy = other
		}
	}
	if b.clients.Len() == 0 && c.state() == fine {
		return c
	}
	return healthy
}

// usableClient returns c, or a healthy client of the same Redis if c is closed or its servers are not fine.
func usableClient(c *Client) *Client {
	if c.health.failing.Load() == 0 && !c.health.closed.Load() {
		return c
	}
	b := c.backlog
	b.mu.Lock()
	defer b.mu.Unlock()
	other := healthyClient(b, c)
	if other == nil {
		return c
	}
	return other
}

// via returns k with its commands sent by c.
func via(k *Keys, c *Client) *Keys {
	if k.client == c {
		return k
	}
	other := *k
	setClient(&other, c)
	return &other
}

// WhenBack calls f in a new goroutine each time that Redis is found again or another client joins, until unhook is called. Of
// several functions under one name only the last is called, until all of them are unhooked.
func WhenBack(k *Keys, name string, f func()) (unhook func()) {
	b := k.client.backlog
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.hooks[name]
	if h == nil {
		h = &hook{}
		b.hooks[name] = h
	}
	h.call = f
	h.users++
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		h.users--
		if h.users == 0 {
			delete(b.hooks, name)
		}
	}
}

// callHooks calls all hooks, each in a new goroutine. The caller holds the lock.
func callHooks(b *Backlog) {
	for _, h := range b.hooks {
		go callHook(h.call)
	}
}

func callHook(f func()) {
	defer recovered("telling that Redis is back")
	f()
}

// WriteLater writes the record with which the request of l has ended to Redis, in the background, and has it kept for ttl; an empty
// record releases the lease. It writes now, or as soon as Redis is back, and changes nothing if another owner has the key by then.
// A lease ends by itself: it is released only while releases and records take no more than half of the room.
func WriteLater(k *Keys, l *store.Lease, record string, ttl time.Duration) {
	p := &pendingWrite{keys: k, lease: l, record: record, expires: time.Now().Add(ttl), size: int64(pendingBytes + len(l.Key) + len(record))}
	b := k.client.backlog
	b.mu.Lock()
	defer b.mu.Unlock()
	if record == "" && b.bytes > backlogBytes/2 {
		return
	}
	b.pending.PushBack(p)
	b.bytes += p.size
	for _, l := range []*list.List{b.waiting, b.pending} {
		dropOldest(b, l)
	}
	startWriting(b, k.client)
}

// dropOldest drops from l what has expired, and then the oldest until there is room. The caller holds the lock.
func dropOldest(b *Backlog, l *list.List) {
	for element := l.Front(); element != nil; element = l.Front() {
		oldest, _ := element.Value.(*pendingWrite)
		expired := time.Now().After(oldest.expires)
		if !expired && b.bytes <= backlogBytes {
			break
		}
		remove(b, l, element)
		if !expired {
			count(b, oldest, dropped)
		}
	}
}

// remove takes a write off l, and reports whether it was still there. The caller holds the lock.
func remove(b *Backlog, l *list.List, element *list.Element) bool {
	before := l.Len()
	p, _ := l.Remove(element).(*pendingWrite)
	if l.Len() == before {
		return false
	}
	b.bytes -= p.size
	return true
}

// count adds p, which was removed, to what is logged of an outage. The caller holds the lock.
func count(b *Backlog, p *pendingWrite, result writeResult) {
	if p.record != "" {
		b.results[result]++
	}
}

// writePending writes what is pending, first by c, until nothing is left or no client is healthy.
func writePending(c *Client) {
	defer endWritePending(c.backlog)
	b := c.backlog
	b.mu.Lock()
	busy := b.writing
	b.writing = true
	b.mu.Unlock()
	if busy {
		return
	}
	writer := c
	for writer != nil {
		writer = writeOldest(writer)
	}
}

// endWritePending ends a panic, and lets another goroutine write what is left.
func endWritePending(b *Backlog) {
	if p := recover(); p != nil {
		log.Printf("level=error msg=\"telling Redis what happened without it failed\" cause=%q", p)
		b.mu.Lock()
		b.writing = false
		b.mu.Unlock()
	}
}

// Bounds on what is written at a time: many small records, or few large ones.
const (
	maxBatch      = 256
	maxBatchBytes = 1 << 20
)

// writeOldest writes the oldest pending writes together by c. It returns the client to go on with, or nil if writing has
// ended.
func writeOldest(c *Client) *Client {
	b := c.backlog
	var oldest []*list.Element
	var bytes int64
	b.mu.Lock()
	for element := b.pending.Front(); element != nil && len(oldest) < maxBatch && bytes < maxBatchBytes; element = element.Next() {
		p, _ := element.Value.(*pendingWrite)
		bytes += p.size
		oldest = append(oldest, element)
	}
	if len(oldest) == 0 {
		b.writing = false
		if nothingLeft(b) {
			reportOutage(b, c.opts.Address)
		}
	}
	b.mu.Unlock()
	if len(oldest) == 0 {
		return nil
	}
	var batch sync.WaitGroup
	for _, element := range oldest {
		p, _ := element.Value.(*pendingWrite)
		batch.Add(1)
		go writeOne(p, c, &batch)
	}
	batch.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	next := healthyClient(b, c)
	for _, element := range oldest {
		p, _ := element.Value.(*pendingWrite)
		if p.result == postponed && (next != c || p.server.state() == fine) {
			continue // another client may be able to write it, or c by now
		}
		if !remove(b, b.pending, element) { // WriteLater has dropped it meanwhile
			continue
		}
		if p.result == postponed {
			b.waiting.PushBack(p)
			b.bytes += p.size
		} else {
			count(b, p, p.result)
		}
	}
	b.writing = next != nil
	return next
}

// reportOutage logs, once after each outage, what became of the records that were pending, if there were any, when nothing is.
// The caller holds the lock.
func reportOutage(b *Backlog, address string) {
	outages := b.outages.Load()
	if b.reported != outages && b.results[written]+b.results[heldByOther]+b.results[dropped] > 0 {
		log.Printf("level=warn msg=\"answers of the outage were written to Redis\" redis=%q written=%d held=%d dropped=%d", address, b.results[written], b.results[heldByOther], b.results[dropped])
	}
	b.reported = outages
	b.results = [postponed]int{}
}

// writeOne writes p by c, and sets its result. What a healthy server refuses is tried once more, an answer without its header and
// body: it, or something on the way to it, may have no room for them, and others know at least that the request has run.
func writeOne(p *pendingWrite, c *Client, batch *sync.WaitGroup) {
	defer endWriteOne(batch)
	p.result = dropped
	keys := via(p.keys, c)
	record := p.record
	cmd := tell(keys, p, record)
	refusal := cmd.err
	if refusal != nil && record != "" && !mayTakeLater(cmd, c) {
		if strings.HasPrefix(record, store.DoneHead) {
			record = store.KeyOnly(record)
		}
		cmd = tell(keys, p, record)
	}
	switch {
	case cmd.err == nil && cmd.line != oneLine:
		p.result = heldByOther
	case cmd.err == nil:
		p.result = written
		if record != p.record {
			log.Printf("level=error msg=\"an answer could not be written to Redis and is given up; other Traefiks answer its duplicates with 409\" redis=%q bytes=%d cause=%q", c.opts.Address, len(p.record), refusal)
		}
	case mayTakeLater(cmd, c):
		p.result = postponed
		p.server = serverOf(cmd, c)
	case record != "":
		log.Printf("level=error msg=\"how a request ended could not be written to Redis and is given up; other Traefiks may run it again\" redis=%q cause=%q", c.opts.Address, cmd.err)
	}
}

// tell sends p to Redis, with record in place of its own. When that has expired, its lease is released: Redis may have the claim.
func tell(k *Keys, p *pendingWrite, record string) *command {
	cmd := &command{}
	left := time.Until(p.expires)
	if record == "" || left < time.Millisecond {
		runScript(k, releaseScript, p.lease, cmd, "")
	} else {
		runScript(k, writeBackScript, p.lease, cmd, bulk(record)+argument(k, left))
	}
	return cmd
}

// mayTakeLater reports whether what failed by c can succeed when its server is well again. After an error that is not known, or says
// that a command is forbidden, retry has probed the server.
func mayTakeLater(cmd *command, c *Client) bool {
	return isServerError(cmd.err) || serverOf(cmd, c).state() != fine
}

// serverOf returns the client of the server that cmd failed at: of a cluster's a node, or its front c.
func serverOf(cmd *command, c *Client) *Client {
	switch {
	case cmd.from == nil:
		return c
	case cmd.from.main != nil: // a side has no health of its own
		return cmd.from.main
	}
	return cmd.from
}

func endWriteOne(batch *sync.WaitGroup) {
	if p := recover(); p != nil {
		log.Printf("level=error msg=\"telling Redis what happened without it failed\" cause=%q", p)
	}
	batch.Done()
}
