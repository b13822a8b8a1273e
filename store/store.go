// Package store keeps what is known about every idempotency key: who runs its request, how that ended, and the
// answer to give to duplicates.
//
// A key's life is one record. It begins as Running, held by one owner under a lease, and ends as Done, Unknown or
// Unkept for its time to live, or is released. The owner's token is the fencing token: an owner whose lease is over
// changes nothing any more.
package store

import (
	"context"
	"net/http"
	"reflect"
	"time"
)

// State says where a key stands.
type State byte

// The states of a key. Claimed is only ever a result of Store.Claim, the others are stored.
const (
	Claimed State = 'C' // the key was free, and the lease that asked has it now
	Running State = 'R' // another lease has it
	Done    State = 'D' // the answer is kept
	Unknown State = 'U' // the request was sent, and nobody knows how it ended
	Unkept  State = 'K' // it was answered, but the answer was too large to keep
)

// Answer is a backend's answer as it is replayed. For an Unkept record only Status is set.
// An Answer is shared by all who replay it and never changed.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// Record is what a store holds for a key.
type Record struct {
	State       State
	Fingerprint string // of the request that claimed the key, FingerprintSize bytes
	Owner       string // Running: the token of the lease
	Answer      *Answer
}

// Lease is the claim of one request on one key.
type Lease struct {
	Key         string
	Fingerprint string // FingerprintSize bytes
	Owner       string // fencing token, unique to this claim

	// Degraded is set by Claim when the shared store could not be reached and the lease is held in this process's
	// memory alone.
	Degraded bool
}

// Held is the result of a claim.
type Held struct {
	Record
	Left     time.Duration // until the record expires
	Local    bool          // known without asking the shared store
	Degraded bool          // the shared store could not be asked: this is what the process's memory says
	Cause    error         // of Degraded
}

// Store is the memory of keys. All methods may be called by many goroutines at once, and each is one atomic step.
// An error means that the step may or may not have happened; taking it again with the same lease does no harm.
type Store interface {
	// Claim gives the key to the lease for d if nobody holds it, and else tells who does.
	Claim(l *Lease, d time.Duration) (Held, error)

	// Renew makes the lease last d from now; false if it is lost.
	Renew(l *Lease, d time.Duration) (bool, error)

	// Finish replaces the lease by rec for ttl; false, and nothing is changed, if the lease is lost.
	Finish(l *Lease, rec Record, ttl time.Duration) (bool, error)

	// Release makes the key free; false, and nothing is changed, if the lease is lost.
	Release(l *Lease) (bool, error)

	// Wait returns when it is worth while to claim a running key again, or when ctx is over. attempt counts the
	// calls for one claim from 0.
	Wait(ctx context.Context, key string, attempt int)
}

// ShortestPoll and LongestPoll bound the pause between two looks at a key that another process runs: duplicates of short
// requests wait little, duplicates of long ones ask seldom, and none learns the end more than LongestPoll late.
const (
	ShortestPoll = 2 * time.Millisecond
	LongestPoll  = 50 * time.Millisecond
)

// Poll pauses before look number attempt at a key that another process runs.
func Poll(ctx context.Context, attempt int) {
	pause := LongestPoll
	if attempt < 5 {
		pause = ShortestPoll << uint(attempt)
	}
	timer := time.NewTimer(pause)
	first(ctx, reflect.ValueOf(timer.C))
	timer.Stop()
}

// first waits for ch or for the end of ctx. A select statement would share its cases between goroutines under Yaegi;
// reflect.Select on a slice made here does not.
func first(ctx context.Context, ch reflect.Value) {
	reflect.Select([]reflect.SelectCase{
		{Dir: reflect.SelectRecv, Chan: ch},
		{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(ctx.Done())},
	})
}
