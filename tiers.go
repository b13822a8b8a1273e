package idem

import (
	"context"
	"errors"
	"time"

	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/store"
)

// tiers is the store of a middleware: this process's memory, and Redis behind it if there is one. Memory answers for
// requests that this process runs and, with cache, for those whose end it knows, without asking Redis; waiting
// duplicates of a request that runs here are woken at once.
type tiers struct {
	memory *store.Memory
	redis  *redisclient.Keys // nil: keys live in memory alone

	cache    bool // keep finished records of Redis in memory, and answer by them
	fallback bool // claim in memory while Redis fails, instead of returning its error
	slow     bool // a claim may take a good part of its lease
}

// claimKey gives the key to the lease for d and returns nil if nobody holds it, and else tells who does. In memory the
// lease is endless: it cannot outlive its owner, since both are this process, and so no pause of the process, and no Redis
// that hangs, gives a running key to somebody else here.
func claimKey(t *tiers, l *store.Lease, d time.Duration) (*store.Held, error) {
	switch {
	case t.redis == nil:
	case t.slow:
		return claimSlowly(t, l, d)
	default:
		return claimShared(t, l, d)
	}
	return store.Claim(t.memory, l, store.Endless), nil
}

// claimSlowly is claimShared where much of the lease may be over when the reply comes: then it is renewed before the request
// runs. Who learns that somebody else has taken the key asks again.
func claimSlowly(t *tiers, l *store.Lease, d time.Duration) (*store.Held, error) {
	begin := time.Now()
	held, err := claimShared(t, l, d)
	if held != nil || err != nil || time.Since(begin) < d/3 {
		return held, err
	}
	kept, err := redisclient.Renew(t.redis, l, d)
	if err == nil && kept {
		return nil, nil
	}
	store.Release(t.memory, l)
	if err != nil {
		return nil, err
	}
	return claimShared(t, l, d)
}

// claimShared is claimKey where keys live in Redis.
func claimShared(t *tiers, l *store.Lease, d time.Duration) (*store.Held, error) {
	held := store.Lookup(t.memory, l)
	if held != nil && (t.cache || held.Sole || held.State == store.Running) {
		held.Degraded = t.redis.Trouble.Load() != 0
		return held, nil
	}
	held, err := redisclient.Claim(t.redis, l, d)
	if held != nil || err != nil {
		return heldElsewhere(t, l, held, err)
	}
	l.Degraded = false
	held = store.Claim(t.memory, l, store.Endless)
	if held != nil {
		return heldHere(t, l, held, d)
	}
	return nil, nil
}

// heldHere settles that memory has a key that Redis has just given to l: for a request that could not ask Redis at the same
// time, or for a record that Redis has lost, which counts for those with a cache.
func heldHere(t *tiers, l *store.Lease, held *store.Held, d time.Duration) (*store.Held, error) {
	if !t.cache && store.Displace(t.memory, l) {
		return nil, nil
	}
	redisclient.Later(t.redis, l, "", d)
	return held, nil
}

// heldElsewhere keeps in memory what Redis has told of the key of l. If it failed with err, what another middleware has kept
// there is better than nothing.
func heldElsewhere(t *tiers, l *store.Lease, held *store.Held, err error) (*store.Held, error) {
	if err != nil {
		held = store.Lookup(t.memory, l)
		if t.cache || held == nil {
			return nil, err
		}
		if !errors.Is(err, redisclient.ErrDown) {
			redisclient.Later(t.redis, l, "", longestLease)
		}
		held.Degraded = true
		return held, nil
	}
	if t.cache && held.State != store.Running && held.Left > 0 {
		store.Remember(t.memory, l.Key, held)
	}
	return held, nil
}

// claimInMemory claims a key that Redis could not be asked for, if that is wanted. err is what Redis failed with. A claim
// that too few replicas have goes on in Redis as well.
func claimInMemory(t *tiers, l *store.Lease, err error) (*store.Held, error) {
	if !t.fallback {
		return nil, err
	}
	sent := !errors.Is(err, redisclient.ErrDown)
	l.Degraded = !errors.Is(err, redisclient.ErrReplicas)
	l.Doubtful = l.Degraded && sent
	held := store.Claim(t.memory, l, store.Endless)
	if held == nil {
		return nil, nil
	}
	held.Degraded = true
	if sent {
		redisclient.Later(t.redis, l, "", longestLease)
	}
	return held, nil
}

// renewKey makes the lease last d from now; false if somebody else has the key. A key that Redis does not have is claimed
// there: one that was claimed in memory while Redis was away, or that Redis lost.
func renewKey(t *tiers, l *store.Lease, d time.Duration) (bool, error) {
	if t.redis == nil {
		return true, nil
	}
	if store.StateOf(t.memory, l) != store.Running { // it has ended
		return false, nil
	}
	kept, err := redisclient.Renew(t.redis, l, d)
	if store.StateOf(t.memory, l) == store.Free { // it was released meanwhile, and perhaps before it was renewed
		redisclient.Later(t.redis, l, "", longestLease)
	}
	return kept, err
}

// finishKey replaces the lease by a finished record for ttl; false if the lease is lost.
func finishKey(t *tiers, l *store.Lease, record string, ttl time.Duration) (bool, error) {
	if t.redis != nil {
		return finishShared(t, l, record, ttl)
	}
	return store.Finish(t.memory, l, record, ttl, true), nil
}

// finishShared is finishKey where keys live in Redis.
func finishShared(t *tiers, l *store.Lease, record string, ttl time.Duration) (bool, error) {
	if l.Degraded {
		redisclient.Later(t.redis, l, record, ttl)
		return store.Finish(t.memory, l, record, ttl, true), nil
	}
	kept, err := redisclient.Finish(t.redis, l, record, ttl)
	switch {
	case err != nil:
		finishAlone(t, l, record, ttl, err)
	case kept && t.cache:
		store.Finish(t.memory, l, record, ttl, false)
	default:
		store.Release(t.memory, l)
	}
	return kept, err
}

// finishAlone keeps in memory what Redis failed to take, so that this process at least answers its duplicates right, and has
// it written to Redis when that is back. Of an answer that is too large for Redis, others learn no more than that it was given.
func finishAlone(t *tiers, l *store.Lease, record string, ttl time.Duration, err error) {
	store.Finish(t.memory, l, record, ttl, true)
	if errors.Is(err, redisclient.ErrTooLarge) {
		record = store.Bare(record)
	}
	redisclient.Later(t.redis, l, record, ttl)
}

// releaseKey makes the key free; false if the lease is lost. Memory is told first, so that a renewal that Redis gets after
// the release is known for that: see renewKey.
func releaseKey(t *tiers, l *store.Lease) (bool, error) {
	free := store.Release(t.memory, l)
	if t.redis == nil {
		return free, nil
	}
	if l.Degraded {
		releaseDegraded(t, l)
		return free, nil
	}
	free, err := redisclient.Release(t.redis, l)
	if err != nil {
		redisclient.Later(t.redis, l, "", longestLease)
	}
	return free, err
}

// releaseDegraded has Redis told, if need be, of the end of a lease that was taken in memory while Redis was away. Redis may
// have it all the same: since only the reply was lost, or since it was renewed there.
func releaseDegraded(t *tiers, l *store.Lease) {
	if l.Doubtful || t.redis.Trouble.Load() == 0 {
		redisclient.Later(t.redis, l, "", longestLease)
	}
}

// waitForKey returns when it is worth while to claim a running key again, or when ctx is over. attempt counts the calls
// for one claim from 0.
func waitForKey(ctx context.Context, t *tiers, key string, attempt int) {
	if !store.Wait(ctx, t.memory, key) && t.redis != nil {
		store.Poll(ctx, attempt)
	}
}
