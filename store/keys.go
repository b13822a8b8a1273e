package store

import (
	"crypto/rand"
	"encoding/hex"
	"strconv"
	"sync/atomic"
	"time"
)

// Keys are the keys of one middleware in a Memory, which is all that there is, or what is known here of the keys in Redis.
type Keys struct {
	Memory  *Memory
	Trouble *atomic.Int32 // not 0 while Redis does not do what keys need; nil: keys live in Memory alone
	Terms   Terms

	ttl     time.Duration // of Terms
	unbegun time.Duration // -ttl: what an entry has for its end until its time to live begins
}

// Terms are how a middleware treats its keys.
type Terms struct {
	TTL           time.Duration // for how long it is known how a request ended
	Lease         time.Duration // how long a claim in Redis outlives its owner
	DetachTimeout time.Duration // for how long a call of the backend outlives its client; 0 = as long as it likes
	Remember      bool          // what Redis knows of finished requests is remembered, and answered by

	// Renew makes the lease last on in Redis; false if it has to be tried again. failed says that the last try has failed,
	// too. Nil: there is no Redis.
	Renew func(l *Lease, failed bool) bool
}

// Undecided is what ClaimKey returns for a key that only Redis can tell of.
var Undecided = &Held{}

// NewKeys returns the keys of a middleware with these terms.
func NewKeys(memory *Memory, trouble *atomic.Int32, terms Terms) *Keys {
	prepare(memory, trouble != nil, terms)
	return &Keys{Memory: memory, Trouble: trouble, Terms: terms, ttl: terms.TTL, unbegun: -terms.TTL}
}

// ClaimKey gives the key to r and returns nil if nobody holds it, and else tells who does, or that Redis has to be asked. In
// memory a lease has no end: it cannot outlive its owner, since both are this process, and so no pause of the process, and no
// Redis that hangs, gives a running key to somebody else here.
func ClaimKey(k *Keys, r *Run) *Held {
	m := k.Memory
	m.lock()
	if m.entries[r.Key] != nil {
		m.unlock()
		return known(k, r)
	}
	m.claims++
	r.Owner = m.token + strconv.Itoa(m.claims)
	if m.begun != nil {
		m.entries[r.Key] = r.Lease
		m.begun = append(m.begun, r)
		r.keys = k
		m.unlock()
		return nil
	}
	m.unlock()
	return undecided(k, r)
}

// ClaimAgain is ClaimKey for a run that may have asked before, and has its owner's token then.
func ClaimAgain(k *Keys, r *Run) *Held {
	setOwner(k.Memory, r)
	return known(k, r)
}

// setOwner gives r its token, unless it has one.
func setOwner(m *Memory, r *Run) {
	m.lock()
	defer m.unlock()
	if r.Owner == "" {
		m.claims++
		m.left++
		r.Owner = m.token + strconv.Itoa(m.claims)
	}
}

// undecided is ClaimKey where nobody has the key here, and there is a Redis or the watchdog sleeps.
func undecided(k *Keys, r *Run) *Held {
	if k.Trouble != nil {
		return Undecided
	}
	held := ClaimLocal(k, r)
	begin(k.Memory)
	return held
}

// known is ClaimKey where memory knows something of the key.
func known(k *Keys, r *Run) *Held {
	var held *Held
	var expires time.Duration
	m := k.Memory
	m.lock()
	e := m.entries[r.Key]
	if e != nil {
		held = e.held
		expires = e.expires
	}
	m.unlock()
	if expires <= 0 {
		expires = Endless
	}
	switch { // what a duplicate before was told serves again
	case held == nil:
	case expires <= m.since(m.epoch):
	case k.Trouble == nil:
		return held
	case k.Trouble.Load() != 0:
	case k.Terms.Remember:
		return held
	}
	return knownSlow(k, r)
}

// knownSlow is known where no duplicate was told before, or things have changed.
func knownSlow(k *Keys, r *Run) *Held {
	setOwner(k.Memory, r)
	held := Lookup(k.Memory, r.Lease)
	switch {
	case k.Trouble == nil && held == nil:
		return ClaimLocal(k, r)
	case k.Trouble == nil:
		return held
	case held == nil:
		return Undecided
	case held.State != Running && !held.OnlyCopy && !k.Terms.Remember:
		return Undecided
	}
	held.Degraded = k.Trouble.Load() != 0
	return held
}

// ClaimLocal is ClaimKey in memory alone, for a key that Redis has given to the lease or cannot be asked for.
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

// claimLocalSlow is ClaimLocal where somebody has the key, or had it.
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

// Displace gives the key to r, unless a request runs or a finished record has it that no other store has; false then.
func Displace(k *Keys, r *Run) bool {
	m := k.Memory
	m.lock()
	e := m.entries[r.Key]
	free := e == nil || (e.record != "" && e.elsewhere)
	if free {
		m.entries[r.Key] = r.Lease // e stays among those that expire until it is swept
	}
	m.unlock()
	if free {
		watchOver(k, r)
	}
	return free
}

// newToken returns what no other process, and no other memory in this one, has.
func newToken() string {
	random := make([]byte, 16)
	_, err := rand.Read(random)
	if err != nil { // without it two processes could take each other's leases
		panic("traefik-idem: no random numbers to be had: " + err.Error())
	}
	return hex.EncodeToString(random) + "-"
}

// KeepAnswer replaces the lease by the record of the backend's answer, where keys live in memory alone.
func KeepAnswer(k *Keys, l *Lease, record string) {
	m := k.Memory
	m.lock()
	size := m.bytes + entryBytes + len(l.Key) + len(record)
	switch { // an answer that nobody waits for, and that there is room for; else Finish does the same, and more
	case l.done != nil:
	case size > m.limit:
	default:
		l.record = record
		l.expires = k.unbegun
		m.bytes = size
		m.unlock()
		return
	}
	m.unlock()
	Finish(m, l, record, k.ttl, true)
}

// RememberAnswer is KeepAnswer for a record that Redis has.
func RememberAnswer(k *Keys, l *Lease, record string) {
	m := k.Memory
	m.lock()
	size := m.bytes + entryBytes + len(l.Key) + len(l.Wire) + len(record)
	switch {
	case l.done != nil:
	case size > m.limit:
	default:
		l.record = record
		l.expires = k.unbegun
		l.elsewhere = true
		m.bytes = size
		m.unlock()
		return
	}
	m.unlock()
	Finish(m, l, record, k.ttl, false)
}
