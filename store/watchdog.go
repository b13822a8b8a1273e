package store

import (
	"context"
	"log"
	"time"
)

// The watchdog of a Memory looks after the requests that run: it has their leases in Redis renewed, and cancels those whose
// client has been gone for too long. One timer serves all, since most requests end long before either is due. It also begins
// the time to live of what KeepAnswer has kept since the last tick, and gives it its place among what expires.

// longestTick is how long there is between two ticks at the most. Leases are renewed three times in their life; a renewal
// that failed is tried again, and a client's absence noticed, at the next tick.
const longestTick = 250 * time.Millisecond

// How the last renewal of a lease ended.
const (
	notRenewed int32 = iota // there was none
	renewed
	renewalFailed
)

// prepare has the watchdog tick often enough for these terms.
func prepare(m *Memory, shared bool, t Terms) {
	m.lock()
	defer m.unlock()
	m.shared = shared
	for _, tick := range []time.Duration{t.Lease / 12, t.DetachTimeout / 8} {
		if tick > 0 && tick < m.tick {
			m.tick = tick
		}
	}
}

// begin has ClaimKey grant claims on its own until nothing runs, after it has left one to ClaimLocal.
func begin(m *Memory) {
	m.lock()
	defer m.unlock()
	m.left++
	if m.begun == nil && m.armed {
		m.begun = []*Run{}
	}
}

// arm has the watchdog tick until nothing runs. The caller holds the lock.
func arm(m *Memory) {
	if !m.armed {
		m.armed = true
		m.watchdog.Reset(m.tick)
	}
}

// watch is one tick.
func (m *Memory) watch() {
	defer m.rest()
	now := time.Now()
	for _, r := range stillRunning(m) {
		k, _ := r.keys.(*Keys)
		watchClient(k, r, now)
		watchTerm(k, r, now)
	}
}

// rest has the watchdog tick again while anything runs, whatever became of the last tick.
func (m *Memory) rest() {
	p := recover()
	if p != nil {
		log.Printf("level=error msg=\"looking after running requests failed\" cause=%q", p)
	}
	m.lock()
	defer m.unlock()
	if len(m.begun)+len(m.watched) == 0 {
		m.begun = nil
		m.armed = false
		return
	}
	m.watchdog.Reset(m.tick)
}

// stillRunning returns the requests that run. Those that are finished get their place among those that expire.
func stillRunning(m *Memory) []*Run {
	m.lock()
	all := append(m.watched, m.begun...)
	m.watched = all
	if m.begun != nil {
		m.begun = make([]*Run, 0, len(m.begun))
	}
	m.unlock()
	var running []*Run
	for i := 0; i < len(all); i += sweepChunk {
		running = appendRunning(m, running, all, i)
	}
	m.lock()
	defer m.unlock()
	m.watched = append(running, m.watched[len(all):]...) // some may have come meanwhile
	return running
}

// appendRunning appends those that run, of the chunk of all that begins at first, and queues those that are finished. All
// calls are spared, since every request comes by.
func appendRunning(m *Memory, running, all []*Run, first int) []*Run {
	end := first + sweepChunk
	if end > len(all) {
		end = len(all)
	}
	var kept []*Lease // that expire with the first of them
	now := m.since(m.epoch)
	expires := time.Duration(0)
	m.lock()
	defer m.unlock()
	for _, r := range all[first:end] {
		l := r.Lease
		switch {
		case l.record == "":
			if m.entries[l.Key] == l {
				running = append(running, r)
			}
		case l.expires > 0:
		default:
			l.expires = now - l.expires
			if expires == 0 {
				expires = l.expires
			}
			if l.expires != expires {
				push(m, m.full, l)
				continue
			}
			kept = append(kept, l)
		}
	}
	if len(kept) > 0 {
		second := expires / time.Second
		m.full.due[second] = append(m.full.due[second], kept...)
		if second < m.full.first {
			m.full.first = second
			startSweeping(m)
		}
	}
	return running
}

// queueFinished gives all finished entries their place among those that expire. The caller holds the lock.
func queueFinished(m *Memory) {
	for _, r := range m.watched {
		queueOne(m, r)
	}
	for _, r := range m.begun {
		queueOne(m, r)
	}
}

// queueOne gives the entry of r its place among those that expire, if it is finished and has none. The caller holds the lock.
func queueOne(m *Memory, r *Run) {
	l := r.Lease
	if l.record != "" && l.expires <= 0 {
		l.expires = m.since(m.epoch) - l.expires
		push(m, m.full, l)
	}
}

// watchClient cancels the call of the backend when its client has been gone for too long.
func watchClient(k *Keys, r *Run, now time.Time) {
	switch {
	case k.Terms.DetachTimeout == 0 || r.Client.Err() == nil:
	case r.missed.IsZero():
		r.missed = now
	case now.Sub(r.missed) >= k.Terms.DetachTimeout:
		cancel, begun := r.Cancel.Load().(context.CancelFunc)
		if begun {
			cancel()
		}
	}
}

// watchTerm has the lease renewed in Redis if that is due, or if Redis may not have it, or not for long.
func watchTerm(k *Keys, r *Run, now time.Time) {
	if r.renewed.IsZero() {
		r.renewed = now.Add(-longestTick) // it was claimed since the last tick
	}
	due := now.Sub(r.renewed) >= k.Terms.Lease/3
	if due {
		r.renewed = now
	}
	if k.Terms.Renew != nil && (due || overdue(r)) {
		go renew(k, r)
	}
}

// overdue reports whether Redis may not have the lease of r, or not for long.
func overdue(r *Run) bool {
	state := r.renewal.Load()
	return state == renewalFailed || (state == notRenewed && r.Degraded)
}

// RenewAll has all leases renewed now: Redis is back, and may have lost them.
func (m *Memory) RenewAll() {
	m.lock()
	defer m.unlock()
	for _, r := range m.watched {
		k, _ := r.keys.(*Keys)
		go renew(k, r)
	}
}

// renew renews the lease, unless its last renewal still waits for a reply.
func renew(k *Keys, r *Run) {
	defer recovered("renewing a lease")
	if k.Terms.Renew == nil || !r.renewing.CompareAndSwap(false, true) {
		return
	}
	defer r.renewing.Store(false)
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
