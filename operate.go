package idem

import (
	"fmt"
	"math"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"sort"
	"strings"
	"time"

	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/stats"
	"github.com/example/traefik-idem/store"
)

// This file is what an operator does: look keys up, and settle them by hand. A step compares the record with what it has looked
// at, in Redis or in memory, so that it never undoes what a request or another operator has done meanwhile.

// keysAnswer is the answer to an operator. Status is 200, or Problem says why not.
type keysAnswer struct {
	Status  int
	Problem string // the end of its type
	Detail  string
	Key     *stats.Key   // nil: nothing is known
	Keys    []*stats.Key // of listKeys
	By      time.Time    // when every Traefik knows what was settled; zero: nothing was, or nobody can say
}

// mostListed is how many keys are listed of each kind, and together.
const mostListed = 200

// settleTime is the longest time until all Traefiks that reach Redis know what was settled.
const settleTime = 2 * time.Second

// silence is how long a Traefik must have been silent before a lease is taken from it. One that lives is heard of once a second.
const silence = 3 * time.Second

var stateNames = map[store.State]string{store.Free: "free", store.Running: "running", store.Done: "done", store.Unknown: "unknown", store.Unkept: "unkept"}

// stateOf is the state of a key that has seen, as it is shown.
func stateOf(seen *redisclient.Seen) string {
	if store.WasObserved(&seen.Held) {
		return "observed"
	}
	return stateNames[seen.State]
}

// keysRefusal is the answer to what cannot be done. problem is the end of its type.
func keysRefusal(status int, problem, detail string) *keysAnswer {
	return &keysAnswer{Status: status, Problem: problem, Detail: detail}
}

// unreachable is the answer when Redis could not be asked, for err.
func unreachable(detail string, err error) *keysAnswer {
	return keysRefusal(http.StatusServiceUnavailable, "store-unavailable", fmt.Sprintf("%s: %v", detail, err))
}

// noNotes is the answer when Redis did not give the notes about keys, for err.
func noNotes(err error) *keysAnswer {
	if redisclient.IsUnreachable(err) {
		return unreachable("Redis, which has the notes about keys, is out of reach", err)
	}
	return unreachable("Redis does not give the notes about keys", err)
}

// badQuery is the answer to a request that is not as it must be.
func badQuery(detail string) *keysAnswer {
	return keysRefusal(http.StatusBadRequest, "invalid-query", detail)
}

// stateConflict is the answer when what the key has now does not allow a step.
func stateConflict(h *handler, problem, detail string, note *keyNote, seen *redisclient.Seen) *keysAnswer {
	answer := keysRefusal(http.StatusConflict, problem, detail)
	answer.Key = describeKey(h, note, seen, map[string]string{})
	return answer
}

// lookKey says what is known of the key with this public id.
func lookKey(h *handler, id string) *keysAnswer {
	note, failed := findNote(h, id)
	if failed != nil {
		return failed
	}
	seen, err := lookAt(h, note)
	if err != nil {
		return unreachable("what holds this key is not known", err)
	}
	return &keysAnswer{Status: http.StatusOK, Key: describeKey(h, note, seen, map[string]string{})}
}

// findNote returns the note about the key with this public id, or the answer if there is none.
func findNote(h *handler, id string) (*keyNote, *keysAnswer) {
	err := exchange(h.notebook)
	if redisclient.IsUnreachable(err) { // one that only refuses to write can still be asked
		return nil, noNotes(err)
	}
	note, err := h.notebook.find(id)
	switch {
	case err != nil:
		return nil, noNotes(err)
	case note == nil:
		return nil, keysRefusal(http.StatusNotFound, "key-unknown", "no key of this id was noted lately; find it by its request")
	}
	return note, nil
}

// lookAt returns the record of the key that a note is about; nil if it has none.
func lookAt(h *handler, note *keyNote) (*redisclient.Seen, error) {
	all, errs := lookAtAll(h, []*keyNote{note})
	return all[0], errs[0]
}

// recordsHere returns the records of keys that memory can tell of, by hash. Without Redis these are all; with it, they are those of
// requests that run here, and those that no other store has.
func recordsHere(h *handler, noted []*keyNote) map[string]*redisclient.Seen {
	here := map[string]*redisclient.Seen{}
	identities := map[string]string{}
	for _, note := range noted {
		identities[note.hash] = note.identity
	}
	if h.shared != nil { // a note that comes from Redis has no identity
		identities = store.OnlyHere(h.keys.Memory, identities, redisclient.HashOffset(h.shared))
	}
	for hash, identity := range identities {
		held := store.Lookup(h.keys.Memory, identity)
		if held != nil {
			here[hash] = inMemory(held)
		}
	}
	return here
}

// inMemory is what memory holds as what Redis holds.
func inMemory(held *store.Held) *redisclient.Seen {
	seen := &redisclient.Seen{Held: *held, Version: store.Version(held.Record)}
	if held.State == store.Running {
		seen.Version = store.Version(held.Owner)
	}
	if held.State == store.Done {
		seen.Body = len(held.Answer.Body)
	}
	return seen
}

// describeKey is what is shown of a key. names are those of Traefiks, by the beginning of their owner tokens, as far as they were
// asked for.
func describeKey(h *handler, note *keyNote, seen *redisclient.Seen, names map[string]string) *stats.Key {
	k := &stats.Key{ID: note.id, State: stateNames[store.Free]}
	k.SetWhere(note.where)
	if seen == nil {
		return k
	}
	k.State = stateOf(seen)
	k.Version = seen.Version
	k.Bytes = seen.Body
	if seen.Answer != nil {
		k.Status = seen.Answer.Status
	}
	if seen.Left > 0 {
		k.Until = time.Now().Add(seen.Left).UTC().Format(time.RFC3339)
	}
	if note.state == seen.State {
		k.Since = time.UnixMilli(note.since).UTC().Format(time.RFC3339)
		k.Traefik = note.traefik
	}
	if seen.State == store.Running {
		k.Traefik = traefikOf(h, seen.Owner, names)
	}
	return k
}

// traefikOf returns the name of the Traefik that has given out an owner token; empty if it is not known.
func traefikOf(h *handler, owner string, names map[string]string) string {
	token, _, _ := strings.Cut(owner, "-")
	if token == store.Token(h.keys.Memory) {
		return h.notebook.name
	}
	name, known := names[token]
	if !known && h.shared != nil {
		sign, _ := h.notebook.signOfLife(token) // without it the name is not known
		_, name, _ = strings.Cut(sign, " ")
		names[token] = name
	}
	return name
}

// listKeys lists keys of the state unknown or running, or both if state is empty, the newest first. Long runs take only the room
// that unknown outcomes leave, since these wait for an operator. Keys that are no longer what their note says are left out; the
// notes stay, since a record may still be on its way to Redis.
func listKeys(h *handler, state string) *keysAnswer {
	err := exchange(h.notebook)
	if redisclient.IsUnreachable(err) { // as in findNote
		return noNotes(err)
	}
	answer := &keysAnswer{Status: http.StatusOK, Keys: []*stats.Key{}}
	names := map[string]string{}
	for _, kind := range []string{noteUnknown, noteRunning} {
		if state != "" && state != kind {
			continue
		}
		err = listKind(h, answer, kind, names)
		if err != nil {
			return noNotes(err)
		}
	}
	sort.SliceStable(answer.Keys, func(i, j int) bool { return answer.Keys[i].Since > answer.Keys[j].Since })
	return answer
}

// listKind adds the newest keys of a kind to answer, as far as there is room.
func listKind(h *handler, answer *keysAnswer, kind string, names map[string]string) error {
	below := int64(math.MaxInt64)
	for len(answer.Keys) < mostListed {
		noted, err := h.notebook.below(kind, below)
		if err != nil || len(noted) == 0 {
			return err
		}
		all, errs := lookAtAll(h, noted)
		for i, note := range noted {
			below = note.number
			switch {
			case len(answer.Keys) == mostListed:
			case !h.redis.Cluster && redisclient.IsUnreachable(errs[i]):
				return errs[i]
			case errs[i] != nil: // of a cluster, one node may be away; or something else has written there
				k := describeKey(h, note, nil, names)
				k.State = "unreachable"
				answer.Keys = append(answer.Keys, k)
			case all[i] != nil && stateOf(all[i]) == kind:
				answer.Keys = append(answer.Keys, describeKey(h, note, all[i], names))
			}
		}
	}
	return nil
}

// lookAtAll is lookAt for many keys. Memory may have a record that Redis does not: it is still to be written there. While Redis
// does not do what keys need, memory decides.
func lookAtAll(h *handler, noted []*keyNote) ([]*redisclient.Seen, []error) {
	all := make([]*redisclient.Seen, len(noted))
	errs := make([]error, len(noted)) // memory gives none
	decides := h.shared == nil || h.shared.Failing.Load() != 0
	asked := decides
	if h.shared != nil {
		hashes := make([]string, len(noted))
		for i, note := range noted {
			hashes[i] = note.hash
		}
		all, errs = redisclient.LookAll(h.shared, hashes)
		for i := range all {
			asked = asked || (all[i] == nil && errs[i] == nil)
		}
	}
	if !asked {
		return all, errs
	}
	here := recordsHere(h, noted)
	for i, note := range noted {
		seen := here[note.hash]
		ended := seen != nil && seen.State != store.Running
		if seen != nil && (decides || (ended && all[i] == nil && errs[i] == nil)) {
			all[i] = seen
			errs[i] = nil
		}
	}
	return all, errs
}

// keyQuery is a request as its caller sent it, as far as that makes its key.
type keyQuery struct {
	Method  string            `json:"method"`
	URL     string            `json:"url"`
	Key     string            `json:"key"`     // may be left out if the rest has it
	Headers map[string]string `json:"headers"` // those that scope names, and those that tell of a path that was changed
	Body    string            `json:"body"`    // if a key or a caller is in it
	Address string            `json:"address"` // of the client, if that is the key or the caller
}

// findByRequest says what is known of the key of a request, and makes it known by its id. If no request came with the URL as it is, it
// is taken in its normal form, in which newer Traefiks pass it on.
func findByRequest(h *handler, q *keyQuery) *keysAnswer {
	answer := findByURL(h, q)
	normal := escapes.ReplaceAllStringFunc(q.URL, normalEscape)
	if normal == q.URL || answer.Key == nil || answer.Key.State != stateNames[store.Free] {
		return answer
	}
	other := *q
	other.URL = normal
	return findByURL(h, &other)
}

// escapes are those of a URL.
var escapes = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)

// normalEscape is an escape in its normal form (RFC 3986, section 6.2.2): that of a letter, digit, or one of -._~ is the
// character.
func normalEscape(escape string) string {
	text, err := url.PathUnescape(escape)
	if err != nil || !unreserved.MatchString(text) {
		return strings.ToUpper(escape)
	}
	return text
}

var unreserved = regexp.MustCompile(`^[0-9A-Za-z._~-]$`)

// findByURL is findByRequest for the URL as it is.
func findByURL(h *handler, q *keyQuery) *keysAnswer {
	target, err := url.Parse(q.URL)
	switch {
	case err != nil:
		return badQuery("url is not valid")
	case target.Host == "" || target.Path == "":
		return badQuery("url must be whole, as https://shop.example/api/pay")
	case q.Method == "":
		return badQuery("method is missing")
	case q.Method != strings.ToUpper(q.Method):
		return badQuery(fmt.Sprintf("method %s: methods are case-sensitive, and only %s is protected", q.Method, strings.ToUpper(q.Method)))
	}
	r := &http.Request{Method: q.Method, URL: target, Host: target.Host, Header: http.Header{}, RemoteAddr: q.Address, ContentLength: int64(len(q.Body))}
	for name, value := range q.Headers {
		if value != "" {
			r.Header.Set(name, value)
		}
	}
	first := h.keySources[0]
	isHeader := first.places[0].kind == kindHeader
	if q.Key != "" && isHeader {
		r.Header.Set(first.places[0].name, q.Key)
	}
	k := findKey(h, r, []byte(q.Body), present)
	if q.Key != "" && !isHeader {
		k = &keyed{key: q.Key, from: first, state: present}
	}
	if k.state != present {
		return badQuery("the request has no valid idempotency key")
	}
	l := newRun(h, r, k, []byte(q.Body))
	if l == nil {
		return badQuery("the request lacks a value that scope names")
	}
	sight(h, noteOther, l.Key, r.Host, store.Free)
	return lookKey(h, publicID(l.Key))
}

// freeKey frees a key by hand for user: the next request with it runs. version is that of the record that the user has seen; empty: of
// any. force frees also a key whose request runs, if its Traefik does not renew the lease.
func freeKey(h *handler, user, id, version string, force bool) *keysAnswer {
	note, seen, failed := toSettle(h, id, version)
	if failed != nil {
		return failed
	}
	if seen == nil {
		return stateConflict(h, "key-changed", "the key is free already; nothing was changed", note, nil)
	}
	if seen.State == store.Running {
		failed = takeable(h, note, seen, force)
		if failed != nil {
			return failed
		}
	}
	return settleKey(h, user, note, seen, "", "a key was freed by hand")
}

// handAnswer is an answer that an operator gives for the backend.
type handAnswer struct {
	Status      int
	Body        string
	ContentType string // empty: none
}

// answerKey settles an unknown outcome by hand for user: duplicates get the answer a. version is as in freeKey.
func answerKey(h *handler, user, id, version string, a *handAnswer) *keysAnswer {
	note, seen, failed := toSettle(h, id, version)
	wrong := wrongIn(h, a)
	switch {
	case failed != nil:
		return failed
	case wrong != nil:
		return wrong
	case seen == nil || stateOf(seen) != stateNames[store.Unknown]:
		return stateConflict(h, "key-changed", "only a key whose outcome is unknown can be answered by hand; nothing was changed", note, seen)
	}
	header := ""
	if a.ContentType != "" {
		header = "Content-Type: " + a.ContentType + "\r\n"
	}
	record := store.DoneHead + seen.Fingerprint + store.StatusLines[a.Status] + header + "\r\n" + a.Body
	return settleKey(h, user, note, seen, record, "a key was answered by hand")
}

// wrongIn returns a refusal if something is wrong with an answer.
func wrongIn(h *handler, a *handAnswer) *keysAnswer {
	_, _, err := mime.ParseMediaType(a.ContentType)
	switch {
	case a.Status < 200 || a.Status > 599:
		return badQuery(fmt.Sprintf("status %d: want 200 to 599", a.Status))
	case a.Body != "" && bodiless(a.Status):
		return badQuery(fmt.Sprintf("status %d has no body", a.Status))
	case len(a.Body) > h.maxResponseBody:
		return badQuery(fmt.Sprintf("body is longer than maxResponseBodyBytes: %d, allowed are %d", len(a.Body), h.maxResponseBody))
	case a.ContentType == "":
	case err != nil || strings.ContainsAny(a.ContentType, store.Unreadable+"\r\n"):
		return badQuery(fmt.Sprintf("contentType %q: want a media type, as application/json", a.ContentType))
	}
	return nil
}

// toSettle returns the note about a key that is to be settled, and what the key has; or the answer if it is not what the user has
// seen.
func toSettle(h *handler, id, version string) (*keyNote, *redisclient.Seen, *keysAnswer) {
	note, failed := findNote(h, id)
	if failed != nil {
		return nil, nil, failed
	}
	seen, err := lookAt(h, note)
	if err != nil {
		return nil, nil, unreachable("what holds this key is not known, and nothing was changed", err)
	}
	if version != "" && (seen == nil || seen.Version != version) {
		return nil, nil, stateConflict(h, "key-changed", "the key has changed since you looked; nothing was changed", note, seen)
	}
	return note, seen, nil
}

// takeable returns a refusal unless the lease of a running request may be taken: with force, and if nothing is heard of its Traefik. It
// waits for that silence.
func takeable(h *handler, note *keyNote, seen *redisclient.Seen, force bool) *keysAnswer {
	token, _, _ := strings.Cut(seen.Owner, "-")
	switch {
	case !force:
		return stateConflict(h, "key-running", "its request runs; nothing was changed", note, seen)
	case h.shared == nil || token == store.Token(h.keys.Memory):
		return stateConflict(h, "key-running", "its request runs in this Traefik; nothing was changed", note, seen)
	}
	before, err := h.notebook.signOfLife(token)
	after := before
	if err == nil && before != "" {
		time.Sleep(silence)
		after, err = h.notebook.signOfLife(token)
	}
	switch {
	case err != nil:
		return unreachable("whether its Traefik lives is not known, and nothing was changed", err)
	case before == "":
		return stateConflict(h, "key-running", "its request runs in a Traefik that was never heard of; if it is dead, the key is free when the lease ends; nothing was changed", note, seen)
	case before != after:
		return stateConflict(h, "key-running", "its request runs in a Traefik that lives; nothing was changed", note, seen)
	}
	seen.Left -= silence / 2 // a lease that was renewed has more left
	return nil
}

// settleKey replaces the record that seen was read from by another one, or frees its key if record is empty. Other Traefiks are told
// before and after: a Traefik that remembers the old record between the two forgets it.
func settleKey(h *handler, user string, note *keyNote, seen *redisclient.Seen, record, msg string) *keysAnswer {
	if h.shared != nil && seen.OnlyCopy {
		return keysRefusal(http.StatusServiceUnavailable, "store-unavailable", "Redis has not taken the record of this key yet, which is in the memory of this Traefik; nothing was changed")
	}
	what := redisclient.Settled{Hash: note.hash, Version: seen.Version, At: time.Now().UnixMilli()}
	err := h.notebook.tell(what, nil)
	if err != nil {
		return unreachable("nothing was changed", err)
	}
	done := false
	switch {
	case h.shared == nil:
		done = store.Settle(h.keys.Memory, note.identity, seen.Version, record, longer(h.ttl, seen.Left))
	case record == "":
		done, err = redisclient.Free(h.shared, note.hash, seen, store.RandomHex(16))
	default:
		done, err = redisclient.Answer(h.shared, note.hash, seen, record, h.ttl)
	}
	about := fmt.Sprintf(" user=%q state=%s key=%s", user, stateOf(seen), note.id)
	if err != nil {
		h.log.write(levelWarn, "a key may have been settled by hand; that is not known", about+fmt.Sprintf(" cause=%q", err))
		return unreachable("whether the key was settled is not known; look at it again when Redis is back", err)
	}
	settled := *note
	settled.kind = noteSettled
	settled.state = store.Free
	if record != "" {
		settled.state = store.Done
	}
	settled.since = time.Now().UnixMilli()
	settled.until = time.Now().Add(longer(h.ttl, seen.Left)).UnixMilli()
	settled.traefik = h.notebook.name
	if done {
		h.stats.Counts[stats.Settled].Add(1)
		h.log.write(levelInfo, msg, about)
		err = h.notebook.tell(what, &settled)
	}
	now, failed := lookAt(h, note)
	switch {
	case !done && failed != nil:
		return unreachable("the key was changed meanwhile, and what it has now is not known; nothing was changed", failed)
	case !done:
		return stateConflict(h, "key-changed", "the key was changed meanwhile; nothing was changed by this", note, now)
	case err != nil || failed != nil:
		if failed != nil && record != "" { // it has what was just written
			held, _ := store.Decode(record) // it is a record, so there is no error
			held.Left = longer(h.ttl, seen.Left)
			now = inMemory(held)
		}
		answer := keysRefusal(http.StatusOK, "", "the key is settled in Redis; Traefiks that remember it otherwise are told as soon as Redis is back")
		answer.Key = describeKey(h, &settled, now, map[string]string{})
		return answer
	}
	return &keysAnswer{Status: http.StatusOK, Key: describeKey(h, &settled, now, map[string]string{}), By: time.Now().Add(settleTime)}
}
