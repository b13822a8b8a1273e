package store

import (
	"context"
	"log"
	"time"
)

// The watchdog of a Memory looks after the running requests: it renews their leases in Redis, and cancels those whose client
// has been gone for too long. One timer serves all, because most requests end long before either is due. The watchdog also puts
// the records that KeepAnswer and RememberAnswer have kept since the last tick into their buckets, and begins their time to
// live.

// longestTick is the longest time between two ticks. A renewal is due after a third of the lease. The absence of a client is
// noticed at the next tick; a renewal that failed is tried again as often as ticks for its lease alone would come.
const longestTick = 250 * time.Millisecond

// detachTick is the shortest time between two ticks that a detachTimeout leads to, however short that is: the ticks are for all
// middlewares with this Memory.
const detachTick = 25 * time.Millisecond

// How the last renewal of a lease ended.
const (
	notRenewed int32 = iota // there was none
	renewed
	renewalFailed
)

// adopt makes the watchdog tick often enough for these terms.
func adopt(m *Memory, t Terms) {
	m.lock()
	defer m.unlock()
	detach := t.DetachTimeout / 8
	if detach > 0 && detach < detachTick {
		detach = detachTick
	}
	for _, tick := range []time.Duration{tickFor(t.Lease), detach} {
		if tick > 0 && tick < m.tick {
			m.tick = tick
		}
	}
}

// letClaimKeyGrant lets ClaimKey grant claims itself until nothing runs. It is called after ClaimKey has left a claim to
// ClaimLocal.
func letClaimKeyGrant(m *Memory) {
	m.lock()
	defer m.unlock()
	if m.fresh == nil && m.armed {
		m.fresh = []*Run{}
	}
}

// arm makes the watchdog tick until nothing runs. The caller holds the lock.
func arm(m *Memory) {
	if !m.armed {
		m.armed = true
		m.watchdog.Reset(m.tick)
	}
}

// watch is one tick of the watchdog.
func (m *Memory) watch() {
	defer m.rescheduleWatch()
	now := time.Now()
	since := m.since(m.epoch)
	var long []LongRun
	for i, r := range stillRunning(m) {
		k, _ := r.keys.(*Keys)
		watchClient(k, r, now)
		watchLease(k, r, now)
		age := since - m.seen[i] // which ticks alone change
		if age >= k.Terms.Long && len(long) < MostLong {
			long = append(long, LongRun{Key: r.Key, Age: age, TTL: k.Terms.TTL})
		}
	}
	m.lock()
	defer m.unlock()
	m.long = long
}

// rescheduleWatch ends a panic of watch, and makes the watchdog tick again while anything runs.
func (m *Memory) rescheduleWatch() {
	p := recover()
	if p != nil {
		log.Printf("level=error msg=\"looking after running requests failed\" cause=%q", p)
	}
	m.lock()
	defer m.unlock()
	if len(m.fresh)+len(m.watched) == 0 {
		m.fresh = nil
		m.armed = false
		return
	}
	m.watchdog.Reset(m.tick)
}

// stillRunning returns the running requests, and puts finished ones into their buckets.
func stillRunning(m *Memory) []*Run {
	m.lock()
	all := append(m.watched, m.fresh...)
	m.watched = all
	if m.fresh != nil {
		m.granted += len(m.fresh)
		m.fresh = make([]*Run, 0, len(m.fresh))
	}
	m.unlock()
	var running []*Run
	for i := 0; i < len(all); i += sweepChunk {
		running = appendRunning(m, running, all, i)
	}
	m.lock()
	defer m.unlock()
	m.watched = append(running, m.watched[len(all):]...) // some may have been added meanwhile
	measure(m, all, running)
	return running
}

// measure notes how long the runs took that have ended since the last tick: all without running, which has the same order. A
// run that no tick has seen took less than the time between two. The caller holds the lock.
func measure(m *Memory, all, running []*Run) {
	now := m.since(m.epoch)
	seen := make([]time.Duration, 0, len(running))
	for i, first := range m.seen {
		if len(seen) < len(running) && running[len(seen)] == all[i] {
			seen = append(seen, first)
		} else {
			m.lasted.Observe(now-first, 1)
		}
	}
	ended := len(m.seen) - len(seen)
	m.lasted.Observe(0, int64(len(all)-len(running)-ended))
	for len(seen) < len(running) {
		seen = append(seen, now)
	}
	m.seen = seen
}

// appendRunning looks at the chunk of all that begins at first: it appends running requests to running, and puts finished ones
// into their buckets. It makes as few calls as it can, because every request comes through here.
func appendRunning(m *Memory, running, all []*Run, first int) []*Run {
	end := first + sweepChunk
	if end > len(all) {
		end = len(all)
	}
	var kept []*Lease // finished ones with the time to live of the first
	now := m.since(m.epoch)
	m.lock()
	defer m.unlock()
	k, _ := all[first].keys.(*Keys)
	pending := k.pendingTTL
	expires := now - pending
	for _, r := range all[first:end] {
		l := r.Lease
		switch {
		case l.expires == pending: // as most
			l.expires = expires
			kept = append(kept, l)
		case l.record == "":
			if m.entries[l.Key] == l {
				running = append(running, r)
			}
		default:
			bucketOne(m, r)
		}
	}
	if len(kept) > 0 {
		second := expires / time.Second
		m.answers.bySecond[second] = append(m.answers.bySecond[second], kept...)
		if second < m.answers.first {
			m.answers.first = second
			startSweeping(m)
		}
	}
	return running
}

// bucketFinished puts all finished entries that have no bucket yet into theirs. The caller holds the lock.
func bucketFinished(m *Memory) {
	for _, runs := range [][]*Run{m.watched, m.fresh} {
		for _, r := range runs {
			if r.expires < 0 { // most run, or have one, and bucketOne is a call
				bucketOne(m, r)
			}
		}
	}
}

// bucketOne puts the entry of r into its bucket, if it is finished and has none yet. The caller holds the lock.
func bucketOne(m *Memory, r *Run) {
	l := r.Lease
	if l.expires < 0 {
		l.expires = m.since(m.epoch) - l.expires
		addToBucket(m, m.answers, l)
	}
}

// watchClient cancels the backend call when its client has been gone for too long.
func watchClient(k *Keys, r *Run, now time.Time) {
	switch {
	case k.Terms.DetachTimeout == 0 || r.Client.Err() == nil:
	case r.goneSince.IsZero():
		r.goneSince = now
	case now.Sub(r.goneSince) >= k.Terms.DetachTimeout:
		cancel, called := r.Cancel.Load().(context.CancelFunc)
		if called {
			r.Gone.Store(true) // before what the backend call makes of it
			cancel()
		}
	}
}

// watchLease renews the lease in Redis if that is due, or must be done at once.
func watchLease(k *Keys, r *Run, now time.Time) {
	first := r.lastRenewal.IsZero()
	if first {
		r.lastRenewal = now.Add(-longestTick) // it was claimed since the last tick
	}
	due := now.Sub(r.lastRenewal) >= k.Terms.Lease/3 || (first && k.Terms.LateReplies)
	if due {
		r.lastRenewal = now
	}
	switch {
	case k.Terms.Renew == nil:
	case due: // also while the last renewal waits for its reply: the lease may be over before that comes
		go renew(k, r, 2)
	case mustRenew(r) && now.Sub(r.retried) >= tickFor(k.Terms.Lease):
		r.retried = now
		go renew(k, r, 1)
	}
}

// tickFor is the time between two ticks that a lease needs.
func tickFor(lease time.Duration) time.Duration {
	if lease < 12*longestTick {
		return lease / 12
	}
	return longestTick
}

// mustRenew reports whether the lease of r must be renewed at once: the last renewal failed, or Redis may not have the claim.
func mustRenew(r *Run) bool {
	state := r.renewal.Load()
	return state == renewalFailed || (state == notRenewed && r.Degraded)
}

// RenewalTried reports whether a renewal of r has been tried: Redis may have its claim then, also if it was granted without Redis.
func RenewalTried(r *Run) bool {
	return r.renewal.Load() != notRenewed
}

// RenewAll renews all leases now. It is called when Redis is back, because Redis may have lost them.
func (m *Memory) RenewAll() {
	m.lock()
	defer m.unlock()
	for _, r := range m.watched {
		k, _ := r.keys.(*Keys)
		go renew(k, r, 1)
	}
}

// renew renews the lease, unless most of them already wait for their replies.
func renew(k *Keys, r *Run, most int32) {
	defer recovered("renewing a lease")
	defer r.renewing.Add(-1)
	if r.renewing.Add(1) > most || k.Terms.Renew == nil {
		return
	}
	if k.Terms.Renew(r.Lease, r.renewal.Load() == renewalFailed) {
		r.renewal.Store(renewed)
	} else {
		r.renewal.Store(renewalFailed)
	}
}

// recovered ends a panic in a goroutine of the plugin, which would end Traefik.
func recovered(doing string) {
	if p := recover(); p != nil {
		log.Printf("level=error msg=%q cause=%q", doing+" failed", p)
	}
}
