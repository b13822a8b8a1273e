package idem

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/stats"
	"github.com/example/traefik-idem/store"
)

// This file is the door to the stores: this process's memory, and Redis behind it if there is one. Memory is asked first. It
// answers for requests that this process runs and, with a local cache, for those whose end it knows; waiting duplicates of a
// request that runs here are woken at once. Functions that claim return what holds the key; nil if the run has it. The two most
// frequent steps are taken without this door, since a call costs: serve, serveLarge and serveKey call store.ClaimKey, and run calls
// store.KeepAnswer. What operators do is in operate.go and notebook.go.

// claimShared claims in Redis a key that memory does not know.
func claimShared(h *handler, l *store.Run) *store.Held {
	if h.lateReplies {
		return claimRenewing(h, l)
	}
	held, err := redisclient.Claim(h.shared, l.Lease, h.lease)
	switch {
	case held != nil:
	case err != nil:
	default:
		l.Degraded = false
		held = store.ClaimLocal(h.keys, l)
		if held == nil {
			return nil
		}
		return yieldToMemory(h, l, held)
	}
	return notGranted(h, l, held, err)
}

// giveBack frees a claim of l that Redis has, or may have, as soon as Redis can be told. l goes on with another token: the release
// must not end a claim that it makes later.
func giveBack(h *handler, l *store.Run) {
	releaseLater(h, l.Lease)
	store.Reissue(h.keys.Memory, l)
}

// releaseLater frees a claim that Redis has, or may have, as soon as Redis can be told.
func releaseLater(h *handler, l *store.Lease) {
	redisclient.WriteLater(h.shared, l, "", longestLease) // a claim may reach Redis long after it was sent
}

// notGranted remembers a finished record that Redis has told of, and deals with an error of Redis. It returns what holds the
// key.
func notGranted(h *handler, l *store.Run, held *store.Held, err error) *store.Held {
	if err != nil {
		return afterFailure(h, l, err)
	}
	if h.localCacheBytes > 0 && held.State != store.Running && held.Left > 0 {
		store.Remember(h.keys.Memory, l.Lease, held)
	}
	return held
}

// yieldToMemory is for a key that Redis has just given to l although memory has it: for a request that could not ask Redis then, or
// for a record that Redis has lost. It returns what holds the key; nil if l does.
func yieldToMemory(h *handler, l *store.Run, held *store.Held) *store.Held {
	if h.localCacheBytes == 0 && store.Displace(h.keys, l) {
		return nil
	}
	giveBack(h, l)
	return held
}

// afterFailure returns what memory knows of a key about which Redis failed with err. Without a cache of its own, what another
// middleware has kept is better than nothing.
func afterFailure(h *handler, l *store.Run, err error) *store.Held {
	held := store.LookupOther(h.keys.Memory, l.Lease)
	if held == nil || h.localCacheBytes > 0 {
		return &store.Held{Err: err}
	}
	if l.Doubtful {
		giveBack(h, l)
	}
	held.Degraded = true
	return held
}

// claimRenewing is claimShared where much of the lease may be over when the reply comes: then it is renewed before the request
// runs. If another request turns out to have taken the key, it claims again.
func claimRenewing(h *handler, l *store.Run) *store.Held {
	for {
		begin := time.Now()
		held, err := redisclient.Claim(h.shared, l.Lease, h.lease)
		if held != nil || err != nil {
			return notGranted(h, l, held, err)
		}
		kept := true
		if time.Since(begin) >= h.lease/3 {
			kept, err = redisclient.Renew(h.shared, l.Lease, h.lease)
		}
		if err != nil {
			l.Doubtful = true // it has been claimed, whatever became of the renewal
			return afterFailure(h, l, err)
		}
		if kept {
			l.Degraded = false
			held = store.ClaimLocal(h.keys, l)
			if held != nil {
				held = yieldToMemory(h, l, held)
			}
			return held
		}
	}
}

// claimDegraded claims a key in memory, if onStoreError is degrade, when Redis could not be asked about it. A claim that Redis has,
// but too few replicas, stays there as well.
func claimDegraded(h *handler, l *store.Run, err error) *store.Held {
	h.storeFailed("the store failed, onStoreError: "+h.onStoreError, err)
	if h.onStoreError != "degrade" {
		return &store.Held{Err: err}
	}
	l.Degraded = !errors.Is(err, redisclient.ErrReplicas)
	held := store.ClaimLocal(h.keys, l)
	if held == nil {
		return nil
	}
	held.Degraded = true
	if l.Doubtful {
		giveBack(h, l)
	}
	return held
}

// mostWaiting is how many duplicates wait in this process at the same time, each with its connection and its body. So a
// flood of duplicates of slow requests cannot exhaust Traefik.
const mostWaiting = 512

// waiting is how many do.
var waiting atomic.Int64

// awaitHolder waits for the running request that holds the key to end, and claims again. Of all that wait, the first whose claim
// comes after a release runs.
func awaitHolder(h *handler, l *store.Run, held *store.Held) *store.Held {
	if waiting.Add(1) > mostWaiting {
		waiting.Add(-1)
		h.log.printLimited(levelWarn, "too many duplicates wait for requests that run; further ones get 409", nil)
		return held
	}
	defer waiting.Add(-1)
	ctx, cancel := context.WithTimeout(l.Client, h.inFlightTimeout)
	defer cancel()
	for attempt := 0; held != nil && held.State == store.Running && !mismatch(h, l, held); attempt++ {
		if !store.Wait(ctx, h.keys.Memory, l.Key) && h.shared != nil { // it does not run here
			store.Poll(ctx, attempt)
		}
		if ctx.Err() != nil { // waited long enough, or the client has gone: nothing may be claimed any more
			break
		}
		now := claim(h, l)
		if now != nil && now.Err != nil {
			if !held.Local && !redisclient.WasFree(now.Err) {
				continue // Redis cannot tell how the request at another Traefik goes: as far as is known, it runs
			}
			now = claimDegraded(h, l, now.Err)
		}
		held = now
	}
	if held != nil && l.Doubtful {
		giveBack(h, l)
	}
	return held
}

// claim asks memory, and then Redis if need be.
func claim(h *handler, l *store.Run) *store.Held {
	held := store.ClaimAgain(h.keys, l)
	if held == store.Undecided {
		return claimShared(h, l)
	}
	return held
}

// renewLease is store.Terms.Renew: it renews a lease in Redis. A lease that began without Redis may find an earlier claim there
// that is still to be given back. It reports whether the renewal need not be tried again.
func (h *handler) renewLease(l *store.Lease, failed bool) bool {
	kept, err := renewShared(h, l)
	said := failed || (l.Degraded && errors.Is(err, redisclient.ErrDown))
	if err != nil && !said {
		h.storeFailed("a lease could not be renewed", err)
	}
	return err == nil && (kept || !l.Degraded)
}

// renewShared renews the lease in Redis. It returns false if it has ended or another owner has the key. A key that Redis does not
// have is claimed there: one that was claimed in memory while Redis was away, or that Redis lost.
func renewShared(h *handler, l *store.Lease) (bool, error) {
	if store.StateOf(h.keys.Memory, l) != store.Running {
		return false, nil
	}
	kept, err := redisclient.Renew(h.shared, l, h.lease)
	if store.StateOf(h.keys.Memory, l) == store.Free { // it was released meanwhile, and perhaps before it was renewed
		releaseLater(h, l)
	}
	return kept, err
}

// keepShared replaces the lease by the record of the backend's answer, where keys live in Redis. It is finish in fewer steps.
func keepShared(h *handler, l *store.Run, record string) {
	if l.Degraded {
		finishDegraded(h, l, record)
		return
	}
	kept, err := redisclient.Finish(h.shared, l.Lease, record, h.ttl)
	switch {
	case !kept:
	case h.localCacheBytes == 0:
	default:
		store.RememberAnswer(h.keys, l.Lease, record)
		return
	}
	finishLocal(h, l, record, kept, err)
}

// finish replaces the lease by the record of how its request ended. It returns false if the lease is lost, or Redis did not take
// the record.
func finish(h *handler, l *store.Run, record string) bool {
	switch {
	case h.shared == nil:
		return store.Finish(h.keys.Memory, l.Lease, record, h.ttl, true)
	case l.Degraded:
		return finishDegraded(h, l, record)
	}
	kept, err := redisclient.FinishLong(h.shared, l.Lease, record, h.ttl)
	finishLocal(h, l, record, kept, err)
	return kept
}

// finishLocal tells memory how Redis took the record of an ended request. What Redis failed with err to take is kept here, so that
// this process at least answers its duplicates right, and written to Redis when that is back; of an answer that is too large for
// Redis, others learn no more than that it was given.
func finishLocal(h *handler, l *store.Run, record string, kept bool, err error) {
	switch {
	case err != nil:
		store.Finish(h.keys.Memory, l.Lease, record, h.ttl, true)
		if errors.Is(err, redisclient.ErrTooLarge) {
			record = store.KeyOnly(record)
		}
		redisclient.WriteLater(h.shared, l.Lease, record, h.ttl)
		h.storeFailed("the end of a request could not be stored", err)
	case kept && h.localCacheBytes > 0:
		store.Finish(h.keys.Memory, l.Lease, record, h.ttl, false)
	default:
		store.Release(h.keys.Memory, l.Lease)
		if !kept {
			leaseLost(h, l)
		}
	}
}

// finishDegraded keeps in memory how a request ended that ran without Redis, and has it written to Redis when that is back.
func finishDegraded(h *handler, l *store.Run, record string) bool {
	redisclient.WriteLater(h.shared, l.Lease, record, h.ttl)
	return store.Finish(h.keys.Memory, l.Lease, record, h.ttl, true)
}

// release makes the key free. Memory is told first, so that renewShared can tell a renewal that Redis gets after the release. It
// returns false if the lease is lost, or Redis did not say.
func release(h *handler, l *store.Run) bool {
	free := store.Release(h.keys.Memory, l.Lease)
	switch {
	case h.shared == nil:
		return free
	case l.Degraded:
		if l.Doubtful || store.RenewalTried(l) || h.shared.Failing.Load() == 0 { // Redis may have it: only its reply was lost, or it was renewed there
			releaseLater(h, l.Lease)
		}
		return free
	}
	free, err := redisclient.Release(h.shared, l.Lease)
	switch {
	case err != nil:
		releaseLater(h, l.Lease)
		h.storeFailed("the end of a request could not be stored", err)
	case !free:
		leaseLost(h, l)
	}
	return free
}

// endHere ends a run in memory alone, where finish or release has panicked. In Redis its lease ends by itself.
func endHere(h *handler, l *store.Run) {
	if h.holdUnknown {
		store.Finish(h.keys.Memory, l.Lease, unknownRecord(l), h.ttl, true)
	} else {
		store.Release(h.keys.Memory, l.Lease)
	}
}

// timeLeft is how long memory still has the record of a key; 0 if it has none.
func timeLeft(h *handler, key string) time.Duration {
	held := store.Lookup(h.keys.Memory, key)
	if held == nil {
		return 0
	}
	return held.Left
}

// leaseLost logs that another owner has taken a key whose request ran.
func leaseLost(h *handler, l *store.Run) {
	if h.log.due(lostLease) {
		sight(h, noteOther, l.Key, "", store.Free)
		h.log.write(levelWarn, lostLease, keyName(l.Key))
	}
}

const lostLease = "a lease was lost before its request ended; raise lease if Redis was reachable"

// storeFailed counts and logs a step that the store did not take. An outage is logged once by each handler.
func (h *handler) storeFailed(step string, cause error) {
	h.stats.Counts[stats.StoreErrors].Add(1)
	outage := h.shared.Outage()
	switch {
	case outage == 0:
		h.log.printLimited(levelError, step, cause)
	case h.loggedOutage.Swap(outage) != outage:
		h.log.print(levelError, step, cause)
	}
}
