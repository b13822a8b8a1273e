package store

import (
	"context"
	"time"
)

// Tiered is a shared store with this process's memory before it. Memory answers for requests that this process runs
// and, with Cache, for those whose end it knows, without asking the shared store; waiting duplicates of a request
// that runs here are woken at once.
type Tiered struct {
	Shared Store
	Local  *Memory

	Cache    bool // keep finished records in Local
	Fallback bool // claim in Local while Shared fails, instead of returning its error
}

// Claim implements Store.
func (t *Tiered) Claim(l *Lease, d time.Duration) (Held, error) {
	held, ok := t.Local.Lookup(l)
	if ok {
		return held, nil
	}
	held, err := t.Shared.Claim(l, d)
	if err != nil {
		if !t.Fallback {
			return held, err
		}
		held, _ = t.Local.Claim(l, d) // memory never fails
		l.Degraded = true
		held.Degraded = true
		held.Cause = err
		return held, nil
	}
	switch held.State {
	case Claimed:
		_, _ = t.Local.Claim(l, d) // memory never fails
	case Running:
	default:
		if t.Cache && held.Left > 0 {
			t.Local.Remember(l.Key, held.Record, held.Left)
		}
	}
	return held, nil
}

// Renew implements Store.
func (t *Tiered) Renew(l *Lease, d time.Duration) (bool, error) {
	kept, err := t.Local.Renew(l, d)
	if l.Degraded {
		return kept, err
	}
	return t.Shared.Renew(l, d)
}

// Finish implements Store. What the shared store could not take is kept here, so that this process at least answers
// its duplicates right.
func (t *Tiered) Finish(l *Lease, rec Record, ttl time.Duration) (bool, error) {
	if l.Degraded {
		return t.Local.Finish(l, rec, ttl)
	}
	kept, err := t.Shared.Finish(l, rec, ttl)
	if err != nil || (kept && t.Cache) {
		_, _ = t.Local.Finish(l, rec, ttl) // memory never fails
	} else {
		_, _ = t.Local.Release(l)
	}
	return kept, err
}

// Release implements Store.
func (t *Tiered) Release(l *Lease) (bool, error) {
	if l.Degraded {
		return t.Local.Release(l)
	}
	free, err := t.Shared.Release(l)
	_, _ = t.Local.Release(l) // memory never fails
	return free, err
}

// Wait implements Store.
func (t *Tiered) Wait(ctx context.Context, key string, attempt int) {
	if !t.Local.wait(ctx, key) {
		Poll(ctx, attempt)
	}
}
