package store

import (
	"crypto/rand"
	"encoding/hex"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/example/traefik-idem/stats"
)

// Keys are the keys of one middleware in a Memory. If there is a Redis behind it, Memory has only the keys known to this process.
type Keys struct {
	Memory  *Memory
	Failing *atomic.Int32 // number of servers of Redis that do not do what keys need; nil: there is no Redis
	Terms   Terms

	ttl        time.Duration // of Terms
	pendingTTL time.Duration // -ttl: Lease.expires until the time to live begins
}

// Terms are how a middleware treats its keys.
type Terms struct {
	TTL           time.Duration // how long a finished record is kept
	Lease         time.Duration // how long a claim in Redis outlives its owner
	DetachTimeout time.Duration // how long a backend call may outlive its client; 0 = without bound
	Remember      bool          // finished records of Redis are also kept here, and answered from here
	Long          time.Duration // a request that runs for longer is one of LongRuns

	// Hear asks Redis what was settled by hand since this process last heard of it. Nil: there is no Redis.
	Hear func()

	// Stats count how requests end, and are not given up before.
	Stats *stats.Collector

	LateReplies bool // a reply of Redis may take a good part of the lease

	// Renew renews the lease in Redis. It returns false if that has to be tried again; failed says that the last try failed
	// too. Nil: there is no Redis.
	Renew func(l *Lease, failed bool) bool
}

// Undecided is what ClaimKey returns if Redis has to decide.
var Undecided = &Held{}

// NewKeys returns the keys of a middleware with these terms.
func NewKeys(memory *Memory, failing *atomic.Int32, terms Terms) *Keys {
	adopt(memory, terms)
	return &Keys{Memory: memory, Failing: failing, Terms: terms, ttl: terms.TTL, pendingTTL: -terms.TTL}
}

// ClaimKey gives the key to r and returns nil if the key is free, else what holds it, or Undecided if Redis has to be asked. In
// memory a lease has no end: it cannot outlive its owner, because both are this process. So neither a pause of the process nor
// a Redis that hangs gives a running key to another request here.
func ClaimKey(k *Keys, r *Run) *Held {
	m := k.Memory
	m.lock()
	if m.entries[r.Key] != nil {
		m.unlock()
		return claimKnown(k, r)
	}
	m.claims++
	r.Owner = m.token + strconv.Itoa(m.claims)
	if m.fresh != nil {
		m.entries[r.Key] = r.Lease
		m.fresh = append(m.fresh, r)
		r.keys = k
		m.unlock()
		return nil
	}
	m.unlock()
	return claimUnknown(k, r)
}

// ClaimAgain is ClaimKey for a run that may have asked before, and then has its owner's token.
func ClaimAgain(k *Keys, r *Run) *Held {
	setOwner(k.Memory, r)
	return claimKnown(k, r)
}

// setOwner gives r its token, unless it has one.
func setOwner(m *Memory, r *Run) {
	m.lock()
	defer m.unlock()
	if r.Owner == "" {
		m.claims++
		r.Owner = m.token + strconv.Itoa(m.claims)
	}
}

// Reissue has r go on with a new lease, which has another token.
func Reissue(m *Memory, r *Run) {
	r.Lease = &Lease{Key: r.Key, Fingerprint: r.Fingerprint}
	setOwner(m, r)
}

// claimUnknown is ClaimKey for a key that memory does not have, if there is a Redis, or ClaimKey leaves claims to ClaimLocal (see
// Memory.fresh).
func claimUnknown(k *Keys, r *Run) *Held {
	if k.Failing != nil {
		return Undecided
	}
	held := ClaimLocal(k, r)
	letClaimKeyGrant(k.Memory)
	return held
}

// claimKnown is ClaimKey for a key that memory may have.
func claimKnown(k *Keys, r *Run) *Held {
	var held *Held
	var expires time.Duration
	m := k.Memory
	m.lock()
	e := m.entries[r.Key]
	if e != nil {
		held = e.held
		expires = e.expires
	}
	newsUntil := m.newsUntil
	m.unlock()
	if expires <= 0 {
		expires = Endless
	}
	now := m.since(m.epoch)
	switch { // an earlier duplicate has read the answer already
	case held == nil:
	case expires <= now:
	case k.Failing == nil:
		return held
	case k.Failing.Load() != 0:
	case newsUntil <= now:
	case k.Terms.Remember:
		return held
	}
	return claimKnownSlow(k, r)
}

// claimKnownSlow is claimKnown where no answer is cached, or where the cached one cannot be used.
func claimKnownSlow(k *Keys, r *Run) *Held {
	setOwner(k.Memory, r)
	held := LookupOther(k.Memory, r.Lease)
	if held != nil && held.State != Running && k.Terms.Hear != nil && k.Failing.Load() == 0 && Behind(k.Memory) {
		k.Terms.Hear()
		held = LookupOther(k.Memory, r.Lease)
	}
	switch {
	case k.Failing == nil && held == nil:
		return ClaimLocal(k, r)
	case k.Failing == nil:
		return held
	case held == nil:
		return Undecided
	case held.State != Running && !held.OnlyCopy && !k.Terms.Remember:
		return Undecided
	}
	held.Degraded = k.Failing.Load() != 0
	return held
}

// ClaimLocal is ClaimKey in memory only, for a key that Redis has given to the lease or cannot be asked about.
func ClaimLocal(k *Keys, r *Run) *Held {
	m := k.Memory
	m.lock()
	if m.entries[r.Key] != nil {
		m.unlock()
		return claimLocalSlow(k, r)
	}
	m.entries[r.Key] = r.Lease
	m.granted++
	r.keys = k
	m.watched = append(m.watched, r)
	if !m.armed {
		arm(m)
	}
	m.unlock()
	return nil
}

// claimLocalSlow is ClaimLocal for a key that has an entry, which may have expired.
func claimLocalSlow(k *Keys, r *Run) *Held {
	held := Claim(k.Memory, r.Lease, Endless)
	if held == nil {
		watchOver(k, r)
	}
	return held
}

// watchOver has the watchdog look after r, which has its key.
func watchOver(k *Keys, r *Run) {
	m := k.Memory
	m.lock()
	m.granted++
	r.keys = k
	m.watched = append(m.watched, r)
	arm(m)
	m.unlock()
}

// Displace gives the key to r. It returns false, and changes nothing, if a request runs under the key or memory has the only
// copy of a finished record.
func Displace(k *Keys, r *Run) bool {
	m := k.Memory
	m.lock()
	e := m.entries[r.Key]
	free := e == nil || (e.record != "" && e.elsewhere)
	if free {
		m.entries[r.Key] = r.Lease // e stays in its bucket until it is swept
	}
	m.unlock()
	if free {
		watchOver(k, r)
	}
	return free
}

// RandomHex returns that many random bytes in hex.
func RandomHex(bytes int) string {
	random := make([]byte, bytes)
	_, err := rand.Read(random)
	if err != nil { // two that must differ, such as the tokens of two processes, could be the same
		panic("traefik-idem: no random numbers to be had: " + err.Error())
	}
	return hex.EncodeToString(random)
}

// KeepAnswer replaces the lease by the record of the backend's answer, if there is no Redis.
func KeepAnswer(k *Keys, l *Lease, record string) {
	m := k.Memory
	m.lock()
	size := m.bytes + entryBytes + len(l.Key) + len(record)
	switch { // the short way if nobody waits for the answer and there is room for it; Finish does the rest
	case l.done != nil:
	case size > m.limit:
	default:
		l.record = record
		l.expires = k.pendingTTL
		m.bytes = size
		m.unlock()
		return
	}
	m.unlock()
	Finish(m, l, record, k.ttl, true)
}

// RememberAnswer is KeepAnswer for a record that Redis has too.
func RememberAnswer(k *Keys, l *Lease, record string) {
	m := k.Memory
	m.lock()
	size := m.bytes + entryBytes + len(l.Key) + len(l.Wire) + len(record)
	switch {
	case l.done != nil:
	case size > m.limit:
	default:
		l.record = record
		l.expires = k.pendingTTL
		l.elsewhere = true
		m.bytes = size
		m.unlock()
		return
	}
	m.unlock()
	Finish(m, l, record, k.ttl, false)
}
