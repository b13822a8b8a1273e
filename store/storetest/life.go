package storetest

import (
	"fmt"
	"math/rand"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/store"
)

// World is a shared store, empty, and the processes that use it. Time passes in it when it is told to.
type World struct {
	Start func() Subject        // starts a process
	Pass  func(d time.Duration) // lets time pass, in whole milliseconds

	// Remembers says that each process has its own memory, in front of the shared store. Hears is how long it may take a process
	// to hear of what an operator has settled at another one.
	Remembers bool
	Hears     time.Duration
}

// Clock is a clock that a test sets forward.
type Clock struct {
	mu  sync.Mutex // guards now
	now time.Time
}

// NewClock returns a clock that does not move by itself.
func NewClock() *Clock { return &Clock{now: time.Now()} }

// Since returns the time since epoch.
func (c *Clock) Since(epoch time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now.Sub(epoch)
}

// Now is the time by the clock.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Pass lets so much time pass.
func (c *Clock) Pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// Size of a life: many requests in several processes meet at few keys, so that most steps are disputed.
const (
	steps     = 40
	processes = 3
	lifeKeys  = 2
)

// Life lets requests in several processes take random steps, one after the other, and compares what each step says with
// the rules of docs/dev/design.md. It does so many times, each time in a new world. A failure tells the seed of its steps: with that in LIFE_SEED
// these alone are taken.
func Life(t *testing.T, times int, newWorld func() World) {
	t.Helper()
	seed := time.Now().UnixNano()
	if fixed := os.Getenv("LIFE_SEED"); fixed != "" {
		var err error
		seed, err = strconv.ParseInt(fixed, 10, 64)
		if err != nil {
			t.Fatalf("LIFE_SEED: %v", err)
		}
		times = 1
	}
	granted, refused := 0, 0
	for ; times > 0; times-- {
		l := &life{world: newWorld(), random: rand.New(rand.NewSource(seed)), shared: map[string]*fact{}, settled: map[string]bool{}}
		for i := 0; i < processes; i++ {
			l.start(i)
		}
		for i := 0; i < steps && l.wrong == ""; i++ {
			l.step()
		}
		if l.wrong != "" {
			t.Fatalf("%s\n%s\nLIFE_SEED=%d repeats this", strings.Join(l.trace, "\n"), l.wrong, seed)
		}
		granted += l.granted
		refused += l.refused
		seed++
	}
	t.Logf("%d claims granted and %d refused", granted, refused)
}

// life is the model: what is true of each key, by the rules alone.
type life struct {
	world     World
	random    *rand.Rand
	now       time.Duration
	shared    map[string]*fact // by key
	settled   map[string]bool  // keys that an operator has settled, or tried to
	processes [processes]*process
	requests  []*request
	looks     []*looked
	bodies    int

	granted, refused int // claims

	trace []string
	wrong string // what broke a rule first
}

// fact is what is known about a key until some time.
type fact struct {
	holder *request   // whose lease it is, nil for a finished record
	rec    store.Held // what a claim is told of it; Free if the key was freed by hand
	record string     // of a finished one
	until  time.Duration

	heard time.Duration // when a process that knows it has heard, at the latest, that it was settled; 0: it was not
}

// looked is what an operator has seen of a key.
type looked struct {
	key  string
	seen *redisclient.Seen
	fact *fact // then
	left time.Duration
}

type process struct {
	Subject
	name  string
	runs  map[string]*request // that have not ended, by key
	known map[string]*fact    // finished records
}

// request is one that has claimed a key, or tried to.
type request struct {
	store.Lease
	process *process
}

func (l *life) start(i int) {
	l.processes[i] = &process{Subject: l.world.Start(), name: fmt.Sprintf("process %d", i), runs: map[string]*request{}, known: map[string]*fact{}}
}

func (l *life) step() {
	switch l.random.Intn(14) {
	case 0, 1, 2, 3:
		p := l.processes[l.random.Intn(processes)]
		r := &request{process: p, Lease: store.Lease{Key: "k" + strconv.Itoa(l.random.Intn(lifeKeys)), Owner: "owner" + strconv.Itoa(len(l.requests)), Fingerprint: fingerprint}}
		if l.random.Intn(4) == 0 {
			r.Fingerprint = another
		}
		l.requests = append(l.requests, r)
		l.claim(r)
	case 4, 5:
		d := time.Duration(l.random.Intn(6000)) * time.Millisecond
		l.tell("%s passes", d)
		l.now += d
		l.world.Pass(d)
	case 6:
		if l.random.Intn(3) == 0 {
			i := l.random.Intn(processes)
			l.tell("%s dies", l.processes[i].name)
			l.start(i)
		}
	case 7, 8:
		l.operate(l.processes[l.random.Intn(processes)])
	default:
		if len(l.requests) == 0 {
			return
		}
		// Any request, also one that was not granted its claim, has ended, or whose process is dead: a command may arrive late.
		r := l.requests[l.random.Intn(len(l.requests))]
		switch l.random.Intn(5) {
		case 0:
			l.renew(r)
		case 1:
			l.release(r)
		case 2:
			if r.process.runs[r.Key] == r && !l.world.Remembers {
				l.claim(r) // as if the answer was lost
			}
		default:
			l.finish(r)
		}
	}
}

// tell adds to the trace.
func (l *life) tell(format string, args ...any) {
	l.trace = append(l.trace, fmt.Sprintf("%9s ", l.now)+fmt.Sprintf(format, args...))
}

// expect keeps what broke a rule.
func (l *life) expect(right bool, format string, args ...any) {
	if !right && l.wrong == "" {
		l.wrong = fmt.Sprintf(format, args...)
	}
}

// current is the fact about key that is still true.
func (l *life) current(facts map[string]*fact, key string) *fact {
	f := facts[key]
	if f == nil || l.now >= f.until {
		return nil
	}
	return f
}

// duration is how long a lease, or a record, is to last.
func (l *life) duration() time.Duration {
	return time.Duration(1+l.random.Intn(10000)) * time.Millisecond
}

func (l *life) claim(r *request) {
	d := l.duration()
	held, err := r.process.Claim(&r.Lease, d)
	if held == nil { // it is granted
		held = &store.Held{}
	}
	l.tell("%s: %s claims %s for %s: %q by %q", r.process.name, r.Owner, r.Key, d, held.State, held.Owner)
	l.expect(err == nil, "claim: %v", err)
	p := r.process
	if own := p.runs[r.Key]; l.world.Remembers && own != nil {
		l.expect(held.State == store.Running && held.Fingerprint == own.Fingerprint, "rule 2: %s still runs in this process", own.Owner)
		l.refused++
		return
	}
	f := l.current(p.known, r.Key)
	if f != nil && l.forgets(p, r.Key, held) {
		delete(p.known, r.Key)
		f = nil
	}
	if f == nil || !l.world.Remembers {
		f = l.current(l.shared, r.Key)
	}
	switch {
	case f == nil || f.freed():
		l.expect(held.State == store.Free, "rule 1: the key is free")
		l.shared[r.Key] = &fact{holder: r, rec: store.Held{State: store.Running, Fingerprint: r.Fingerprint}, until: l.now + d}
		p.runs[r.Key] = r
		l.granted++
	case f.holder == r:
		l.expect(held.State == store.Free, "rule 1: it holds the key itself")
		f.until = l.now + d
	default:
		l.expect(held.State == f.rec.State && held.Fingerprint == f.rec.Fingerprint, "rule 1: the key is held: state %q", f.rec.State)
		l.expect(held.Left == f.until-l.now, "it is held for %s, not %s", f.until-l.now, held.Left)
		l.refused++
		if f.holder == nil {
			l.sameAnswer(held, f)
			p.known[r.Key] = f
		}
	}
}

// forgets reports whether p, whose claim of key was told held, did not answer by what it knows, and may have heard that the key was
// settled. It forgets a record several times when it has heard, and also if nothing was changed.
func (l *life) forgets(p *process, key string, held *store.Held) bool {
	f := p.known[key]
	if f.heard > 0 && l.now >= f.heard {
		return true
	}
	return l.settled[key] && (held.Record != f.record || held.Left != f.until-l.now)
}

func (l *life) sameAnswer(held *store.Held, f *fact) {
	if l.wrong != "" || f.rec.Answer == nil {
		return
	}
	l.expect(held.Answer.Status == f.rec.Answer.Status, "rule 5: the status was %d, and not %d", f.rec.Answer.Status, held.Answer.Status)
	if f.rec.State == store.Done {
		l.expect(held.Answer.Body == f.rec.Answer.Body, "rule 5: the answer was %q, and not %q", f.rec.Answer.Body, held.Answer.Body)
	}
}

// holds reports whether r's lease is not over.
func (l *life) holds(r *request) bool {
	f := l.current(l.shared, r.Key)
	return f != nil && f.holder == r
}

// mayHold reports whether r may go on: since its lease is not over, or since nobody has taken the key from it in a store that
// may lose leases.
func (l *life) mayHold(r *request) bool {
	return l.holds(r) || (r.process.Renew != nil && l.current(l.shared, r.Key) == nil)
}

func (l *life) renew(r *request) {
	if r.process.Renew == nil {
		return
	}
	d := l.duration()
	goesOn := l.mayHold(r) && (!l.world.Remembers || r.process.runs[r.Key] == r)
	kept, err := r.process.Renew(&r.Lease, d)
	l.tell("%s: %s renews its lease on %s for %s: %t", r.process.name, r.Owner, r.Key, d, kept)
	l.expect(err == nil, "renew: %v", err)
	l.expect(kept == goesOn, "rule 3: it may go on: %t", goesOn)
	if kept {
		l.shared[r.Key] = &fact{holder: r, rec: store.Held{State: store.Running, Fingerprint: r.Fingerprint}, until: l.now + d}
	}
}

func (l *life) release(r *request) {
	may := l.mayHold(r)
	kept, err := r.process.Release(&r.Lease)
	l.tell("%s: %s releases %s: %t", r.process.name, r.Owner, r.Key, kept)
	l.expect(err == nil, "release: %v", err)
	l.expect(kept == may, "rule 3: it may hold the key: %t", may)
	if kept {
		delete(l.shared, r.Key)
	}
	if r.process.runs[r.Key] == r {
		delete(r.process.runs, r.Key)
	}
}

func (l *life) finish(r *request) {
	l.bodies++
	ttl := l.duration()
	record := []string{
		Record(r.Fingerprint, &store.Answer{Status: 200, Body: fmt.Sprintf("answer %d", l.bodies)}),
		fmt.Sprintf(store.UnknownFormat, r.Fingerprint, r.Owner),
		fmt.Sprintf(store.UnkeptFormat, r.Fingerprint, 200+l.bodies, r.Owner),
	}[l.random.Intn(3)]
	rec, err := store.Decode(record)
	l.expect(err == nil, "decode: %v", err)
	may := l.mayHold(r)
	kept, err := r.process.Finish(&r.Lease, record, ttl)
	l.tell("%s: %s finishes %s for %s with %q %+v: %t", r.process.name, r.Owner, r.Key, ttl, rec.State, rec.Answer, kept)
	l.expect(err == nil, "finish: %v", err)
	// A record has no owner: of two requests with the same end, each finds its own.
	f := l.current(l.shared, r.Key)
	same := f != nil && f.holder == nil && rec.State == store.Unknown && f.rec.State == rec.State && f.rec.Fingerprint == rec.Fingerprint
	l.expect(kept == may || same, "rule 3: it may hold the key: %t", may)
	known := &fact{rec: *rec, record: record, until: l.now + ttl}
	if may || kept {
		l.shared[r.Key] = known
	}
	if r.process.runs[r.Key] == r {
		delete(r.process.runs, r.Key)
		if kept {
			r.process.known[r.Key] = known
		}
	}
}

// freed reports whether the key was freed by hand, and had by nobody since.
func (f *fact) freed() bool { return f.holder == nil && f.rec.State == store.Free }

// operate is what an operator does at p: to look at a key, or to settle one that was looked at, perhaps long ago.
func (l *life) operate(p *process) {
	if len(l.looks) == 0 || l.random.Intn(2) == 0 {
		key := "k" + strconv.Itoa(l.random.Intn(lifeKeys))
		seen, err := p.Look(key)
		l.expect(err == nil, "look: %v", err)
		f := l.current(l.shared, key)
		if f == nil || f.freed() {
			l.expect(seen == nil, "rule 9: the key is free")
			return
		}
		l.tell("%s: an operator looks at %s: %+v", p.name, key, seen)
		l.expect(seen != nil && seen.State == f.rec.State && seen.Fingerprint == f.rec.Fingerprint, "rule 9: the key has %q", f.rec.State)
		l.looks = append(l.looks, &looked{key: key, seen: seen, fact: f, left: f.until - l.now})
		return
	}
	saw := l.looks[l.random.Intn(len(l.looks))]
	f := l.current(l.shared, saw.key)
	same := f != nil && f.holder == saw.fact.holder && f.record == saw.fact.record && f.rec.State == saw.fact.rec.State && l.wrong == ""
	if same && f.holder != nil { // what runs keeps its key, unless its lease is not renewed
		same = p.Renew != nil && f.until-l.now <= saw.left
	}
	if f == nil && saw.fact.holder != nil { // a lease that has ended is free, as was wanted
		same = p.Renew != nil
	}
	record, ttl := "", l.duration()
	answer := &store.Answer{Status: 200, Body: fmt.Sprintf("by hand %d", len(l.trace))}
	if saw.fact.rec.State == store.Unknown && l.random.Intn(2) == 0 {
		record = Record(saw.fact.rec.Fingerprint, answer)
	}
	settled, err := p.Settle(saw.key, saw.seen, record, ttl)
	l.tell("%s: an operator settles %s that was %q, with %q for %s: %t", p.name, saw.key, saw.fact.rec.State, record, ttl, settled)
	l.expect(err == nil, "settle: %v", err)
	l.expect(settled == same, "rule 9: it has what was seen: %t", same)
	l.settled[saw.key] = true
	if !settled || f == nil {
		return
	}
	delete(p.known, saw.key)
	for _, other := range l.processes {
		known := other.known[saw.key]
		if known != nil && known.heard == 0 {
			old := *known // each process hears of it for itself
			old.heard = l.now + l.world.Hears
			other.known[saw.key] = &old
		}
	}
	switch {
	case record != "":
		until := l.now + ttl
		if p.Renew != nil && f.until > until {
			until = f.until
		}
		l.shared[saw.key] = &fact{rec: store.Held{State: store.Done, Fingerprint: f.rec.Fingerprint, Answer: answer}, record: record, until: until}
	case f.holder != nil || p.Renew == nil:
		delete(l.shared, saw.key)
	default:
		l.shared[saw.key] = &fact{record: fmt.Sprint("freed ", len(l.trace)), until: f.until}
	}
}
