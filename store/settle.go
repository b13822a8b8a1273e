package store

import (
	"crypto/sha1" //nolint:gosec // as Redis' scripts do: it tells records apart, and guards nothing
	"encoding/hex"
	"time"
)

// This file is what an operator does with a key by hand, in this process's memory.

// FreedHead begins the record, in Redis, of a key that was freed by hand. The key counts as Free, but its former owner finds
// the record of another, and changes nothing any more. What follows makes the record the only one of its kind.
const FreedHead = magic + "F"

// MostLong is how many long runs are returned.
const MostLong = 2000

// LongRun is a request that has been running for long.
type LongRun struct {
	Key string
	Age time.Duration
	TTL time.Duration // of its record, when it has ended
}

// LongRuns returns the requests that run for longer than Terms.Long as of the watchdog's last tick, at most MostLong, the
// oldest first.
func LongRuns(m *Memory) []LongRun {
	m.lock()
	defer m.unlock()
	return m.long
}

// Version tells one record from another.
func Version(record string) string {
	sum := sha1.Sum([]byte(record)) //nolint:gosec // see above
	return hex.EncodeToString(sum[:])
}

// Lookup returns what holds key; nil if it is free.
func Lookup(m *Memory, key string) *Held {
	return describe(m, &Lease{Key: key})
}

// Settle replaces the finished record of key by another one for ttl, or frees the key if record is empty. It returns false, and
// changes nothing, if the key does not have the record of this version any more.
func Settle(m *Memory, key, version, record string, ttl time.Duration) bool {
	now := m.since(m.epoch)
	m.lock()
	defer m.unlock()
	e := m.entries[key]
	if e == nil || e.record == "" || (e.expires > 0 && now >= e.expires) || Version(e.record) != version {
		return false
	}
	delete(m.entries, key) // e stays in its bucket until it is swept
	if record != "" {
		l := &Lease{Key: key, Fingerprint: e.Fingerprint, record: record, expires: now + ttl}
		m.entries[key] = l
		keepFinished(m, l)
	}
	return true
}

// Heard says that everything settled by hand in Redis is known here, and may count as known for d.
func Heard(m *Memory, d time.Duration) {
	m.lock()
	defer m.unlock()
	m.newsUntil = m.since(m.epoch) + d
}

// Behind reports whether something may have been settled by hand in Redis that is not known here.
func Behind(m *Memory) bool {
	m.lock()
	defer m.unlock()
	return m.newsUntil <= m.since(m.epoch)
}

// clocksDiffer is by how much the clocks of two Traefiks may differ.
const clocksDiffer = time.Second

// Settlement is what was settled by hand of a key in Redis.
type Settlement struct {
	Version string    // of the record that the key had
	At      time.Time // by the clock of the Traefik that settled it
}

// Forget drops the finished records of keys that were settled in Redis, so that Redis is asked again. settled is by the key's
// SHA-256 in hex, which begins at hashOffset in a lease's Wire. A record that no other store has is dropped only if copies is set,
// and if it is the one that was settled, or is older: Redis has had another one then. With a nil map all that Redis has too are
// dropped.
func Forget(m *Memory, settled map[string]Settlement, hashOffset int, copies bool) {
	for _, list := range finishedLists(m) {
		for first := 0; first < len(list); first += sweepChunk {
			forgetSome(m, list, first, settled, hashOffset, copies)
		}
	}
}

// finishedLists returns all finished entries, bucket by bucket.
func finishedLists(m *Memory) [][]*Lease {
	m.lock()
	defer m.unlock()
	bucketFinished(m)
	var lists [][]*Lease
	for _, b := range []*buckets{m.answers, m.keyOnly} {
		for _, list := range b.bySecond {
			lists = append(lists, list)
		}
	}
	return lists
}

// hashDigits is the length of a SHA-256 in hex.
const hashDigits = 64

// forgetSome is Forget for the chunk of list that begins at first.
func forgetSome(m *Memory, list []*Lease, first int, settled map[string]Settlement, hashOffset int, copies bool) {
	end := first + sweepChunk
	if end > len(list) {
		end = len(list)
	}
	m.lock()
	defer m.unlock()
	for _, e := range list[first:end] {
		if e == nil || m.entries[e.Key] != e {
			continue
		}
		drop := settled == nil && e.elsewhere
		if settled != nil && len(e.Wire) >= hashOffset+hashDigits {
			s, is := settled[e.Wire[hashOffset:hashOffset+hashDigits]]
			drop = is && (e.elsewhere || (copies && (isVersion(e.record, s.Version) || e.finished < m.since(m.epoch)-m.since(s.At)-clocksDiffer)))
		}
		if drop {
			delete(m.entries, e.Key) // e stays in its bucket until it is swept
		}
	}
}

// OnlyHere returns the keys that m alone can tell of: their requests run here, or no other store has their records. It looks for
// those whose SHA-256 in hex is in wanted, and returns them by it. The SHA-256 begins at hashOffset in a lease's Wire.
func OnlyHere(m *Memory, wanted map[string]string, hashOffset int) map[string]string {
	m.lock()
	running := make([]*Lease, len(m.watched))
	for i, r := range m.watched {
		running[i] = r.Lease
	}
	m.unlock()
	found := map[string]string{}
	for _, list := range append(finishedLists(m), running) {
		for first := 0; first < len(list); first += sweepChunk {
			onlyHereSome(m, list, first, wanted, hashOffset, found)
		}
	}
	return found
}

// onlyHereSome is OnlyHere for the chunk of list that begins at first.
func onlyHereSome(m *Memory, list []*Lease, first int, wanted map[string]string, hashOffset int, found map[string]string) {
	end := first + sweepChunk
	if end > len(list) {
		end = len(list)
	}
	m.lock()
	defer m.unlock()
	for _, e := range list[first:end] {
		if e == nil || m.entries[e.Key] != e || e.elsewhere || len(e.Wire) < hashOffset+hashDigits {
			continue
		}
		hash := e.Wire[hashOffset : hashOffset+hashDigits]
		_, is := wanted[hash]
		if is {
			found[hash] = e.Key
		}
	}
}

// isVersion reports whether a record has this version, or what is left of it without its answer has.
func isVersion(record, version string) bool {
	return Version(record) == version || (record[len(magic)] == byte(Done) && Version(KeyOnly(record)) == version)
}
