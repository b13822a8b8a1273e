package idem

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log"
	"math"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/stats"
	"github.com/example/traefik-idem/store"
)

// Kinds of notes. Those of unknown and running are listed; gone and traefik are about no key's record.
const (
	noteUnknown = "unknown" // nobody knows how it ended
	noteRunning = "running" // it has been running for longRun
	noteUnkept  = "unkept"  // its answer is not kept
	noteSettled = "settled" // it was settled by hand
	noteOther   = "other"   // somebody was told its id
	noteGone    = "gone"    // it is not any more what its text says
	noteTraefik = "traefik" // that a process lives
)

const (
	noteInterval = time.Second      // between two exchanges
	longRun      = time.Minute      // a request that runs for longer is shown
	renoteAfter  = 30 * time.Second // between two notes about one long run
	forgetTimes  = 5                // further times that a settled key is forgotten, one each noteInterval
	newsLife     = 2 * time.Second  // age of the last exchange from which on another one comes before a replay
	processLife  = 24 * time.Hour   // of the note that a process lives

	askPause = 10 * time.Millisecond // between two tries to ask what was settled
	mostAsks = 25                    // tries
)

// notebook has notes about keys that an operator may look up: those with an unknown outcome, those that run for long, and those
// whose id somebody was told. A public id cannot be turned back into a key, so only what was noted is found by it. Handlers
// with the same keys share one. A request does no more than to append a sighting, unless this process is behind: see hear. Once a
// second these become notes in Redis, where all Traefiks find them, and Redis tells what was settled since; without Redis the notes
// stay here.
type notebook struct {
	memory *store.Memory
	name   string // of this Traefik

	mu         sync.Mutex            // guards everything down to io
	sightings  map[string][]sighting // by kind, the newest last
	inRedis    *redisclient.Notebook // nil: there is no Redis
	hashOffset int                   // of a key's hash in its lease's Wire
	timer      *time.Timer
	closed     bool

	io       sync.Mutex            // held while Redis is asked; guards everything below
	notes    *notes                // to be sent to Redis, or all there are
	settled  []redisclient.Settled // still to be told to Redis
	known    *redisclient.News     // of the last exchange
	toForget []pendingForget       // settled keys to forget again
	forgot   time.Time             // last time that toForget was forgotten
	running  map[string]notedRun   // long runs that are noted, by their keys
	beats    int                   // heartbeats sent
	err      error                 // of the last exchange
}

// sighting is what a request tells of a key.
type sighting struct {
	identity, host string
	state          store.State // Free: not known
	at             time.Time
	life           time.Duration // how long the note is wanted
}

// notedRun is when it was noted that a request runs for long, and how long its record is kept when it has ended.
type notedRun struct {
	at  time.Time
	ttl time.Duration
}

// pendingForget is what was settled, and how many more times it is to be forgotten.
type pendingForget struct {
	settled []redisclient.Settled
	left    int
}

func newNotebook(memory *store.Memory) *notebook {
	host, _ := os.Hostname() // without it, the process is told by its number alone
	host = regexp.MustCompile(`[^0-9A-Za-z._-]`).ReplaceAllString(host, "?")
	n := &notebook{memory: memory, name: host + "/" + store.Token(memory)[:8], sightings: map[string][]sighting{}, notes: newNotes(), known: &redisclient.News{}, running: map[string]notedRun{}}
	store.Heard(memory, newsLife) // nothing is remembered yet
	n.mu.Lock()
	defer n.mu.Unlock()
	n.timer = time.AfterFunc(noteInterval, n.tick)
	return n
}

// Idle reports whether there is nothing in memory that could have to be forgotten, or be asked about.
func (n *notebook) Idle() bool { return n.memory.Idle() }

// Close ends the exchanges.
func (n *notebook) Close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	n.timer.Stop()
}

// use has notes sent to where keys are.
func (n *notebook) use(keys *redisclient.Keys, keyPrefix string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.inRedis = redisclient.NewNotebook(keys, keyPrefix)
	n.hashOffset = redisclient.HashOffset(keys)
}

func (n *notebook) redis() *redisclient.Notebook {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.inRedis
}

// longestNoted is how long the identity of a key may be that is noted: a few thousand are held here, and net/http takes headers of a
// megabyte.
const longestNoted = 16 << 10

// sight records that a request was told of this key of h. Of too many in a second, the oldest are left out.
func sight(h *handler, kind, identity, host string, state store.State) {
	n := h.notebook
	if len(identity) > longestNoted {
		return
	}
	seen := sighting{identity: identity, host: host, state: state, at: time.Now(), life: h.ttl}
	n.mu.Lock()
	defer n.mu.Unlock()
	all := n.sightings[kind]
	if len(all) >= 2*redisclient.MaxNotes {
		all = append([]sighting{}, all[redisclient.MaxNotes:]...)
	}
	n.sightings[kind] = append(all, seen)
}

func (n *notebook) tick() {
	defer n.reschedule()
	_ = exchange(n) // it is tried again
}

// reschedule ends a panic of tick, and starts the next interval.
func (n *notebook) reschedule() {
	if p := recover(); p != nil {
		log.Printf("level=error msg=\"exchanging notes about keys failed\" cause=%q", p)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.closed {
		n.timer.Reset(noteInterval)
	}
}

// hear has memory forget what was settled, if it is behind: this process may have slept, or been without Redis. Of many requests
// that ask, one goes to Redis.
func (n *notebook) hear() {
	for i := 0; !n.io.TryLock(); i++ {
		if i == mostAsks { // Redis does not answer
			return
		}
		time.Sleep(askPause)
	}
	defer n.io.Unlock()
	if store.Behind(n.memory) && exchangeNow(n) != nil {
		store.Heard(n.memory, noteInterval) // not so, but nobody else need wait for the same
	}
}

// exchange sends what was noted, and forgets what was settled. It asks nothing while there is nothing to be forgotten.
func exchange(n *notebook) error {
	n.io.Lock()
	defer n.io.Unlock()
	return exchangeNow(n)
}

// exchangeNow is exchange. The caller holds the lock io.
func exchangeNow(n *notebook) error {
	now := time.Now()
	takeRuns(n, now) // before what requests told since: how one ended counts more than that it ran
	takeSightings(n)
	redis := n.redis()
	if redis == nil {
		n.notes.prune(now.UnixMilli())
		return nil
	}
	if len(n.notes.byID) == 0 && len(n.notes.gone) == 0 && len(n.settled) == 0 && n.memory.Idle() {
		store.Heard(n.memory, newsLife)
		return nil
	}
	n.beats++
	lines := append(n.notes.lines(), redisclient.Note{Kind: noteTraefik, Name: store.Token(n.memory), Until: now.Add(processLife).UnixMilli(), Text: strconv.Itoa(n.beats) + " " + n.name})
	news, err := redis.Exchange(now.UnixMilli(), store.RandomHex(8), n.known, n.settled, lines)
	sayOnce(n, err)
	if errors.Is(err, stats.ErrForbidden) { // nobody can be heard
		store.Heard(n.memory, newsLife)
	}
	if err != nil {
		return err
	}
	n.notes = newNotes()
	n.settled = nil
	n.known = news
	forget(n, news, now)
	store.Heard(n.memory, newsLife-time.Since(now)) // as of when Redis was asked, or later
	return nil
}

// find returns the note about the key with this public id; nil if there is none.
func (n *notebook) find(id string) (*keyNote, error) {
	redis := n.redis()
	n.io.Lock()
	note := n.notes.byID[id] // all there are, or those that Redis has not taken yet
	n.io.Unlock()
	if note != nil || redis == nil {
		return note, nil
	}
	line, err := redis.Get(id)
	if err != nil {
		return nil, err
	}
	return noteFrom(line), nil
}

// below returns the newest notes of a kind that are older than the one with this number, at most mostListed, and the newest first.
// Those that Redis has not taken yet come before all others.
func (n *notebook) below(kind string, number int64) ([]*keyNote, error) {
	redis := n.redis()
	n.io.Lock()
	defer n.io.Unlock()
	var noted []*keyNote
	if redis == nil || number == math.MaxInt64 {
		noted = n.notes.newest(kind, number, mostListed)
	}
	if redis == nil {
		return noted, nil
	}
	lines, err := redis.List(kind, time.Now().UnixMilli(), number, mostListed)
	for _, line := range lines {
		note, newer := noteFrom(line), n.notes.byID[line.Name]
		if note != nil && (newer == nil || newer.kind != kind) {
			noted = append(noted, note)
		}
	}
	return noted, err
}

// signOfLife returns what the Traefik with this token has told last in Redis: a number, which differs each time, and its name. It
// is empty if the Traefik was never heard of.
func (n *notebook) signOfLife(token string) (string, error) {
	line, err := n.redis().Get(token)
	return line.Text, err
}

// tell has all Traefiks forget what they remember of a key, and notes that it was settled if note is not nil. What cannot be told
// now is told later.
func (n *notebook) tell(what redisclient.Settled, note *keyNote) error {
	redis := n.redis()
	n.io.Lock()
	if redis != nil {
		n.settled = append(n.settled, what)
	}
	if note != nil {
		n.notes.add(note)
	}
	n.io.Unlock()
	return exchange(n)
}

// sayOnce logs an error that was not there at the last exchange. Outages, and what is forbidden, are logged elsewhere.
// The caller holds the lock io.
func sayOnce(n *notebook, err error) {
	if err != nil && n.err == nil && !redisclient.IsUnreachable(err) && !errors.Is(err, stats.ErrForbidden) {
		log.Printf("level=warn msg=\"notes about keys could not be exchanged with Redis; that is tried again\" cause=%q", err)
	}
	n.err = err
}

// forget drops what memory has of keys that were settled. It does so again at exchanges of the next seconds, since a request may have
// read an old record before it was settled, and remember it after. What memory alone has is dropped once: the same may happen again.
// The caller holds the lock io.
func forget(n *notebook, news *redisclient.News, now time.Time) {
	n.mu.Lock()
	hashOffset := n.hashOffset
	n.mu.Unlock()
	if news.Missed {
		store.Forget(n.memory, nil, hashOffset, false)
	}
	if now.Sub(n.forgot) >= noteInterval { // an operator may cause many exchanges in a second
		n.forgot = now
		forgetOnceMore(n, hashOffset)
	}
	if len(news.Settled) == 0 {
		return
	}
	fresh := map[string]store.Settlement{}
	addSettled(fresh, news.Settled)
	store.Forget(n.memory, fresh, hashOffset, true)
	n.toForget = append(n.toForget, pendingForget{news.Settled, forgetTimes})
}

// forgetOnceMore is forget for what was settled before. The caller holds the lock io.
func forgetOnceMore(n *notebook, hashOffset int) {
	again := map[string]store.Settlement{}
	var left []pendingForget
	for _, s := range n.toForget {
		addSettled(again, s.settled)
		if s.left > 1 {
			left = append(left, pendingForget{s.settled, s.left - 1})
		}
	}
	if len(again) > 0 {
		store.Forget(n.memory, again, hashOffset, false)
	}
	n.toForget = left
}

// addSettled adds what was settled to all, by the hashes of its keys.
func addSettled(all map[string]store.Settlement, what []redisclient.Settled) {
	for _, one := range what {
		all[one.Hash] = store.Settlement{Version: one.Version, At: time.UnixMilli(one.At)}
	}
}

// takeSightings makes notes of what requests have told. The caller holds the lock io.
func takeSightings(n *notebook) {
	n.mu.Lock()
	all := n.sightings
	n.sightings = map[string][]sighting{}
	n.mu.Unlock()
	for _, kind := range []string{noteOther, noteUnkept, noteUnknown} {
		list := all[kind]
		if len(list) > redisclient.MaxNotes {
			list = list[len(list)-redisclient.MaxNotes:]
		}
		for i := range list {
			s := list[i]
			note := newNote(kind, s.identity, s.host)
			note.state = s.state
			note.until = s.at.Add(s.life).UnixMilli()
			if s.state != store.Free {
				note.since = s.at.UnixMilli()
				note.traefik = n.name
			}
			n.notes.add(note)
		}
	}
}

// takeRuns notes what runs for long, and what does not any more: its id may have been shown. The caller holds the lock io.
func takeRuns(n *notebook, now time.Time) {
	noted := map[string]notedRun{}
	for _, run := range store.LongRuns(n.memory) {
		if len(run.Key) > longestNoted {
			continue
		}
		at := n.running[run.Key].at
		if now.Sub(at) >= renoteAfter {
			at = now
			note := newNote(noteRunning, run.Key, "")
			note.state = store.Running
			note.since = now.Add(-run.Age).UnixMilli()
			note.until = now.Add(processLife).UnixMilli()
			note.traefik = n.name
			n.notes.add(note)
		}
		noted[run.Key] = notedRun{at: at, ttl: run.TTL}
	}
	for identity, run := range n.running {
		_, still := noted[identity]
		if !still {
			n.notes.end(publicID(identity), noteRunning)
			note := newNote(noteOther, identity, "")
			note.until = now.Add(run.ttl).UnixMilli()
			n.notes.add(note)
		}
	}
	n.running = noted
}

// keyNote is a note about a key.
type keyNote struct {
	kind, id, hash string
	identity       string // empty in a note that comes from Redis, where nothing leads back to the key
	number         int64  // among those of its kind; the newest has the highest
	state          store.State
	since          int64 // Unix time in ms when it came to be in state; 0: not known
	until          int64 // likewise, when the note is not wanted any more
	traefik        string
	where          string // method, host and path of its request
}

// newNote returns a note about the key with this identity. host is used if the identity has none.
func newNote(kind, identity, host string) *keyNote {
	sum := sha256.Sum256([]byte(identity))
	hash := hex.EncodeToString(sum[:])
	return &keyNote{kind: kind, id: hash[:idDigits], hash: hash, identity: identity, where: whereOf(identity, host)}
}

// whereOf reads method, host and path from an identity.
func whereOf(identity, host string) string {
	_, rest, _ := strings.Cut(identity, " ")
	var fields []string
	for len(fields) < 5 {
		quoted, err := strconv.QuotedPrefix(rest)
		if err != nil { // there is no host, which comes last
			break
		}
		field, _ := strconv.Unquote(quoted)
		fields = append(fields, field)
		rest = rest[len(quoted):]
	}
	if len(fields) < 4 {
		return ""
	}
	if len(fields) == 5 {
		host = fields[4]
	}
	target := url.URL{Path: fields[1], RawPath: fields[2]}
	return stats.Where(fields[0], host, target.EscapedPath())
}

// line is a note as Redis has it.
func (k *keyNote) line() redisclient.Note {
	return redisclient.Note{Kind: k.kind, Name: k.id, Until: k.until, Text: fmt.Sprintf("%s %d %d %s %s", k.hash, k.state, k.since, k.traefik, k.where)}
}

// noteFrom is the reverse of line; nil if it is none.
func noteFrom(line redisclient.Note) *keyNote {
	parts := strings.SplitN(line.Text, " ", 5)
	if len(parts) != 5 || len(parts[0]) != 2*sha256.Size {
		return nil
	}
	state, _ := strconv.Atoi(parts[1])
	since, _ := strconv.ParseInt(parts[2], 10, 64)
	return &keyNote{kind: line.Kind, id: line.Name, number: line.Number, hash: parts[0], state: store.State(state), since: since, until: line.Until, traefik: parts[3], where: parts[4]}
}

// notes are notes about keys, at most twice redisclient.MaxNotes of each kind: the same as redisclient.Notebook, in this
// process. The notebook's io guards them.
type notes struct {
	byID  map[string]*keyNote
	order map[string][]*keyNote // by kind, the newest last; a note that was replaced or dropped may still be there
	gone  map[string]string     // kinds of notes that have ended, by id
	added int64                 // how many were added
}

func newNotes() *notes {
	return &notes{byID: map[string]*keyNote{}, order: map[string][]*keyNote{}, gone: map[string]string{}}
}

// lines are all notes as they are sent to Redis. What has ended comes first, since it may have begun again.
func (n *notes) lines() []redisclient.Note {
	var lines []redisclient.Note
	for id, kind := range n.gone {
		lines = append(lines, redisclient.Note{Kind: noteGone, Name: id, Text: kind})
	}
	for _, order := range n.order {
		for _, note := range n.shorten(order) {
			lines = append(lines, note.line())
		}
	}
	return lines
}

// prune drops notes that are not wanted any more, and what orders have besides those that are.
func (n *notes) prune(now int64) {
	n.gone = map[string]string{}
	for id, note := range n.byID {
		if note.until <= now {
			delete(n.byID, id)
		}
	}
	ordered := 0
	for _, order := range n.order {
		ordered += len(order)
	}
	if ordered == len(n.byID) {
		return
	}
	for kind, order := range n.order {
		n.order[kind] = n.shorten(order)
	}
}

// add adds a note. One of kind noteOther does not replace one of another kind.
func (n *notes) add(note *keyNote) {
	old := n.byID[note.id]
	if note.kind == noteOther && old != nil && old.kind != noteOther {
		return
	}
	n.added++
	note.number = n.added
	n.byID[note.id] = note
	order := append(n.order[note.kind], note)
	for len(order) > 2*redisclient.MaxNotes {
		order = n.shorten(order)
	}
	n.order[note.kind] = order
}

// shorten returns the newest notes of order that are still there, at most redisclient.MaxNotes.
func (n *notes) shorten(order []*keyNote) []*keyNote {
	var kept []*keyNote
	for i := len(order) - 1; i >= 0; i-- {
		note := order[i]
		switch {
		case n.byID[note.id] != note:
		case len(kept) < redisclient.MaxNotes:
			kept = append(kept, note)
		default:
			delete(n.byID, note.id)
		}
	}
	for i := 0; i < len(kept)/2; i++ {
		kept[i], kept[len(kept)-1-i] = kept[len(kept)-1-i], kept[i]
	}
	return kept
}

// end drops the note of a key if it is of this kind. That Redis is not told of more than redisclient.MaxNotes does no harm: what is
// not any more as its note says is not listed.
func (n *notes) end(id, kind string) {
	if len(n.gone) < redisclient.MaxNotes {
		n.gone[id] = kind
	}
	note := n.byID[id]
	if note != nil && note.kind == kind {
		delete(n.byID, id)
	}
}

// newest returns the newest notes of a kind with numbers below this one, the newest first, and no more than most.
func (n *notes) newest(kind string, below int64, most int) []*keyNote {
	var all []*keyNote
	order := n.order[kind]
	for i := len(order) - 1; i >= 0 && len(all) < most; i-- {
		if order[i].number < below && n.byID[order[i].id] == order[i] {
			all = append(all, order[i])
		}
	}
	return all
}
