package redisclient

import (
	"container/list"
	"log"
	"sync"
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

// backlog is what happened to keys while the server could not be told. When there is no room, the oldest goes first.
type backlog struct {
	mu       sync.Mutex // guards everything below
	debts    *list.List // of *debt, oldest first
	bytes    int64
	settling bool // a goroutine is at it

	fates    [owed]int // what became of records since that was last logged
	reported int64     // outages up to then
}

// Later has Redis told that the request of l ended with record, which is good for ttl, or without anything to keep if it
// is empty: now, in the background, or as soon as Redis is back. Nothing changes there if somebody else has the key by then.
func Later(k *Keys, l *store.Lease, record string, ttl time.Duration) {
	d := &debt{keys: k, lease: l, record: record, expires: time.Now().Add(ttl), size: int64(debtBytes + len(l.Key) + len(record))}
	b := &k.client.plight.backlog
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
	if !b.settling && k.client.plight.servers.Load() == 0 {
		go settle(k.client)
	}
}

// strike takes a debt off the list, if it is still there. The caller holds the lock.
func strike(b *backlog, place *list.Element) {
	before := b.debts.Len()
	d, _ := b.debts.Remove(place).(*debt)
	if b.debts.Len() < before {
		b.bytes -= d.size
	}
}

// settle tells Redis what it is to be told until nothing is left, or Redis fails again.
func settle(c *Client) {
	defer endSettle(&c.plight.backlog)
	b := &c.plight.backlog
	b.mu.Lock()
	busy := b.settling
	b.settling = true
	b.mu.Unlock()
	if busy {
		return
	}
	for settleOldest(c) {
	}
}

// endSettle lets others try what ended with a panic.
func endSettle(b *backlog) {
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

// settleOldest settles the oldest debts together, and tells whether to go on. If not, settling has ended.
func settleOldest(c *Client) bool {
	b := &c.plight.backlog
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
		return false
	}
	var paying sync.WaitGroup
	for _, place := range places {
		d, _ := place.Value.(*debt)
		paying.Add(1)
		go pay(d, &paying)
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
	switch {
	case !failed:
		return true
	case c.plight.closed.Load(): // nobody probes for those who have gone
		b.debts.Init()
		b.bytes = 0
		b.settling = false
	default: // the watch goes on with it, or found us at it if Redis is fine already
		b.settling = c.plight.servers.Load() == 0
	}
	return b.settling
}

// report logs once after each outage what became of the records since the last. The caller holds the lock.
func report(c *Client) {
	b := &c.plight.backlog
	outages := c.plight.outages.Load()
	if b.reported == outages {
		return
	}
	log.Printf("level=warn msg=\"answers of the outage were written to Redis\" redis=%q written=%d held=%d dropped=%d", c.opts.Address, b.fates[written], b.fates[held], b.fates[dropped])
	b.reported = outages
	b.fates = [owed]int{}
}

// pay tells Redis what d says.
func pay(d *debt, paying *sync.WaitGroup) {
	defer endPay(paying)
	d.fate = dropped
	kept, err := true, error(nil)
	left := time.Until(d.expires)
	if d.record == "" || left < time.Millisecond {
		_, err = Release(d.keys, d.lease)
	} else {
		kept, err = writeBack(d.keys, d.lease, d.record, left)
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
