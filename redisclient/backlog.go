package redisclient

import (
	"container/list"
	"errors"
	"log"
	"sync"
	"sync/atomic"
	"time"

	"github.com/example/traefik-idem/store"
)

// What is kept for a server that is out of reach takes at most backlogBytes, each piece debtBytes beside its key and
// answer. Answers are shared with this process's memory store as long as they are there too.
const (
	backlogBytes = 32 << 20
	debtBytes    = 512
)

// writeBackScript: ARGV = the running record, the finished one, its time to live in ms. 1 if it is kept, 0 if somebody else
// has the key. A running record of this process is not in the way: it was claimed for this request, or for a duplicate of
// it, and the reply was lost. An owner's token is that of its process, a hyphen and a number.
var writeBackScript = newScript(':', 3, `
local v = redis.call('GET', KEYS[1])
local own = string.match(ARGV[1], '^.*%-')
if v and v ~= ARGV[2] and string.sub(v, 1, #own) ~= own then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1`)

// debt is what Redis is to be told about a key.
type debt struct {
	keys    *Keys
	lease   *store.Lease
	record  string // empty: the key is free
	expires time.Time
	size    int64

	fate fate // of the last try; of whoever settles
}

// fate is what became of a debt.
type fate int

const (
	dropped fate = iota // something is wrong with this key
	written             // Redis has been told
	held                // somebody else has the key
	owed                // Redis cannot be told now
)

// Backlog is what happened to keys of one Redis while it could not be told. When there is no room, the oldest goes first. All
// clients of that Redis share it: what one cannot say, another with other settings may.
type Backlog struct {
	outages atomic.Int64 // that have begun, of any client

	mu       sync.Mutex // guards everything below
	clients  *list.List // of *Client, in use
	debts    *list.List // of *debt, oldest first
	bytes    int64
	settling bool // a goroutine is at it

	fates    [owed]int // what became of records since that was last logged
	reported int64     // outages up to then

	hooks map[int64]func() // called when a client finds Redis again, and when there is another client
	hook  int64            // number of the last one
}

// NewBacklog returns an empty backlog.
func NewBacklog() *Backlog {
	return &Backlog{clients: list.New(), debts: list.New(), hooks: map[int64]func(){}}
}

// Idle tells that there is nothing left to tell Redis, and nobody to do so.
func (b *Backlog) Idle() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.clients.Len() == 0 && !owes(b)
}

// Close does nothing: nobody waits for a backlog.
func (b *Backlog) Close() {}

// owes tells whether there is anything to tell that still matters. The caller holds the lock.
func owes(b *Backlog) bool {
	now := time.Now()
	for place := b.debts.Front(); place != nil; place = place.Next() {
		d, _ := place.Value.(*debt)
		if now.Before(d.expires) {
			return true
		}
	}
	return false
}

// join has a client that is new tell what others could not.
func join(c *Client) {
	b := c.plight.backlog
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clients.PushBack(c)
	if b.clients.Len() > 1 {
		for _, f := range b.hooks {
			go callHook(f)
		}
	}
	if !b.settling && b.debts.Len() > 0 {
		go settle(c)
	}
}

// leave has others tell what c has not.
func leave(c *Client) {
	b := c.plight.backlog
	b.mu.Lock()
	defer b.mu.Unlock()
	for place := b.clients.Front(); place != nil; place = place.Next() {
		other, _ := place.Value.(*Client)
		if other == c {
			b.clients.Remove(place)
			break
		}
	}
	wakeSettling(b, c)
}

// wakeSettling has debts settled now, if there are any and Redis can be told. c is who else does it if no client is in use.
// The caller holds the lock.
func wakeSettling(b *Backlog, c *Client) {
	payer := well(b, c)
	if !b.settling && b.debts.Len() > 0 && payer != nil {
		go settle(payer)
	}
}

// well returns a client that Redis can be told by, as far as is known; of those in use, and only if there is none, c. Nil if
// that is nobody. The caller holds the lock.
func well(b *Backlog, c *Client) *Client {
	for place := b.clients.Front(); place != nil; place = place.Next() {
		other, _ := place.Value.(*Client)
		if other.plight.servers.Load() == 0 {
			return other
		}
	}
	if b.clients.Len() == 0 && c.plight.servers.Load() == 0 {
		return c
	}
	return nil
}

// standIn returns c, or another client of the same Redis if c cannot tell it anything: since it has not reached it, or since
// its settings are those of before.
func standIn(c *Client) *Client {
	if c.plight.servers.Load() == 0 && !c.plight.closed.Load() {
		return c
	}
	b := c.plight.backlog
	b.mu.Lock()
	defer b.mu.Unlock()
	other := well(b, c)
	if other == nil {
		return c
	}
	return other
}

// over returns the store of keys as c reaches it.
func over(k *Keys, c *Client) *Keys {
	if k.client == c {
		return k
	}
	return &Keys{Trouble: &c.plight.servers, client: c, cluster: c.cluster, plain: c.cluster == nil && c.opts.WaitReplicas == 0, prefix: k.prefix, format: k.format, times: k.times}
}

// WhenBack has f called, in a goroutine of its own, each time that Redis can be told something again, until unhook is called.
func WhenBack(k *Keys, f func()) (unhook func()) {
	b := k.client.plight.backlog
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hook++
	number := b.hook
	b.hooks[number] = f
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.hooks, number)
	}
}

// callHooks calls all who want to know that Redis is back.
func callHooks(b *Backlog) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range b.hooks {
		go callHook(f)
	}
}

func callHook(f func()) {
	defer recovered("telling that Redis is back")
	f()
}

// Later has Redis told that the request of l ended with record, which is good for ttl, or without anything to keep if it
// is empty: now, in the background, or as soon as Redis is back. Nothing changes there if somebody else has the key by then.
func Later(k *Keys, l *store.Lease, record string, ttl time.Duration) {
	d := &debt{keys: k, lease: l, record: record, expires: time.Now().Add(ttl), size: int64(debtBytes + len(l.Key) + len(record))}
	b := k.client.plight.backlog
	b.mu.Lock()
	defer b.mu.Unlock()
	b.debts.PushBack(d)
	b.bytes += d.size
	for oldest := b.debts.Front(); oldest != nil; oldest = b.debts.Front() {
		first, _ := oldest.Value.(*debt)
		expired := time.Now().After(first.expires)
		if !expired && b.bytes <= backlogBytes {
			break
		}
		if !expired && first.record != "" {
			b.fates[dropped]++
		}
		strike(b, oldest)
	}
	wakeSettling(b, k.client)
}

// strike takes a debt off the list, if it is still there. The caller holds the lock.
func strike(b *Backlog, place *list.Element) {
	before := b.debts.Len()
	d, _ := b.debts.Remove(place).(*debt)
	if b.debts.Len() < before {
		b.bytes -= d.size
	}
}

// settle tells Redis by c what it is to be told until nothing is left, or nobody reaches Redis.
func settle(c *Client) {
	defer endSettle(c.plight.backlog)
	b := c.plight.backlog
	b.mu.Lock()
	busy := b.settling
	b.settling = true
	b.mu.Unlock()
	if busy {
		return
	}
	payer := c
	for payer != nil {
		payer = settleOldest(payer)
	}
}

// endSettle lets others try what ended with a panic.
func endSettle(b *Backlog) {
	if p := recover(); p != nil {
		log.Printf("level=error msg=\"telling Redis what happened without it failed\" cause=%q", p)
		b.mu.Lock()
		b.settling = false
		b.mu.Unlock()
	}
}

// What is settled at a time: many small things, few large ones.
const (
	mostSettled      = 256
	mostSettledBytes = 1 << 20
)

// settleOldest settles the oldest debts together, and returns who is to go on. Nil: settling has ended.
func settleOldest(c *Client) *Client {
	b := c.plight.backlog
	var places []*list.Element
	var bytes int64
	b.mu.Lock()
	for place := b.debts.Front(); place != nil && len(places) < mostSettled && bytes < mostSettledBytes; place = place.Next() {
		d, _ := place.Value.(*debt)
		bytes += d.size
		places = append(places, place)
	}
	if len(places) == 0 {
		b.settling = false
		report(c)
	}
	b.mu.Unlock()
	if len(places) == 0 {
		return nil
	}
	var paying sync.WaitGroup
	for _, place := range places {
		d, _ := place.Value.(*debt)
		paying.Add(1)
		go pay(d, c, &paying)
	}
	paying.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	failed := false
	for _, place := range places {
		d, _ := place.Value.(*debt)
		if d.fate == owed {
			failed = true
			continue
		}
		if d.record != "" {
			b.fates[d.fate]++
		}
		strike(b, place)
	}
	if failed { // the watch of c goes on with it. Others may reach Redis, or c again already
		c = well(b, c)
		b.settling = c != nil
	}
	return c
}

// report logs once after each outage what became of the records since the last. The caller holds the lock.
func report(c *Client) {
	b := c.plight.backlog
	outages := b.outages.Load()
	if b.reported == outages {
		return
	}
	log.Printf("level=warn msg=\"answers of the outage were written to Redis\" redis=%q written=%d held=%d dropped=%d", c.opts.Address, b.fates[written], b.fates[held], b.fates[dropped])
	b.reported = outages
	b.fates = [owed]int{}
}

// pay tells Redis by c what d says.
func pay(d *debt, c *Client, paying *sync.WaitGroup) {
	defer endPay(paying)
	d.fate = dropped
	keys := over(d.keys, c)
	kept, err := true, error(nil)
	left := time.Until(d.expires)
	if d.record == "" || left < time.Millisecond {
		_, err = Release(keys, d.lease)
	} else {
		kept, err = writeBack(keys, d.lease, d.record, left)
	}
	if errors.Is(err, ErrTooLarge) {
		log.Printf("level=error msg=\"an answer could not be written to Redis and is given up; other Traefiks answer its duplicates with 409\" redis=%q bytes=%d cause=%q", d.keys.client.opts.Address, len(d.record), err)
		kept, err = writeBack(d.keys, d.lease, store.Bare(d.record), left)
	}
	switch {
	case err != nil && ofServer(err):
		d.fate = owed
	case err != nil:
	case kept:
		d.fate = written
	default:
		d.fate = held
	}
}

// writeBack keeps record for ttl; false if somebody else has the key.
func writeBack(k *Keys, l *store.Lease, record string, ttl time.Duration) (bool, error) {
	cmd := &command{}
	step(k, writeBackScript, l, cmd, bulk(record)+argument(k, ttl))
	return cmd.line == oneLine, cmd.err
}

func endPay(paying *sync.WaitGroup) {
	if p := recover(); p != nil {
		log.Printf("level=error msg=\"telling Redis what happened without it failed\" cause=%q", p)
	}
	paying.Done()
}
