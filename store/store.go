// Package store keeps what is known about every idempotency key: who runs its request, how that ended, and the
// answer to give to duplicates.
//
// A key's life is one record. It begins as Running, held by one owner under a lease, and ends as Done, Unknown or
// Unkept for its time to live, or is released. The owner's token is the fencing token: an owner that has lost the key to
// another changes nothing any more.
//
// A store is a set of functions over a type: Claim, Finish and Release, and Renew where a lease can end before its owner. Each is
// one atomic step, and safe for concurrent use. They are not methods because Yaegi, which runs the plugin in Traefik, takes four
// times as long to call a method as to call a function. Package storetest is the suite that every store has to pass.
package store

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"reflect"
	"sync/atomic"
	"time"
)

// State is the state of a key.
type State byte

// The states of a key.
const (
	Free    State = 0   // nobody holds the key
	Running State = 'R' // a lease holds the key: its request runs
	Done    State = 'D' // the answer is kept
	Unknown State = 'U' // the request was sent, and nobody knows how it ended
	Unkept  State = 'K' // the request was answered, but its answer is not kept
)

// Answer is a backend's answer as it is replayed. For an Unkept record only Status is set. It is shared by all who replay
// it and never changed.
type Answer struct {
	Status int
	Header http.Header
	Body   string
}

// Lease is the claim of one request on one key. In a Memory it is also the key's entry.
type Lease struct {
	Key         string // any bytes: Redis has only its hash
	Fingerprint string // FingerprintSize bytes
	Owner       string // fencing token, unique to this claim

	// Set before a Memory has the entry, and not changed afterwards.
	Degraded bool // the shared store could not be reached, and the lease is held in this process's memory
	Doubtful bool // a claim in the shared store failed, and it may have the claim: its reply was lost

	// Wire is the key and the running record in Redis' protocol; empty without Redis. The claim in Redis sets it before a
	// Memory has the entry, and nothing changes it afterwards: so reading it needs no lock.
	Wire string

	// The Memory's lock guards the fields below.
	record    string        // finished: the record; empty while the request runs
	expires   time.Duration // on the Memory's clock; 0 = never; negative: minus the time to live, which begins at the watchdog's next tick
	done      chan struct{} // running: closed at the end; nil while nobody waits for it
	elsewhere bool          // finished: another store has the record too. The reverse of Held.OnlyCopy, so that KeepAnswer need not set it
	finished  time.Duration // when its request ended, on the Memory's clock; 0 if KeepAnswer or RememberAnswer did it
	held      *Held         // finished: the answer as duplicates get it, once it was read; never changed
	heldSize  int           // bytes that held takes
}

// Run is a request that runs under a lease, or claims one. The lease outlives it, as the entry of its key.
type Run struct {
	*Lease

	// Set before the claim.
	Client context.Context // of the request: over when the client has gone
	Body   io.ReadCloser   // request body as the backend gets it
	Taken  *bytes.Reader   // part of Body that was read in advance; nil if none
	Sought *atomic.Int32   // number of connections asked for; nil if they are not counted
	Broken *atomic.Bool    // the client broke off its request; nil if the request has arrived whole

	keys interface{} // set by the claim: *Keys; with that type the types would be recursive, which Yaegi does not support

	Cancel atomic.Value // set when the backend call begins: its context.CancelFunc
	Gone   atomic.Bool  // set by the watchdog when it has cancelled the call, because the client had been gone for too long

	// Used by ticks of the watchdog alone.
	lastRenewal time.Time // when a renewal was last due, or the watchdog first saw the lease
	retried     time.Time // when a renewal was last tried again
	goneSince   time.Time // when the watchdog first saw that the client had gone

	// Set by renewals.
	renewing atomic.Int32 // number of renewals under way
	renewal  atomic.Int32 // result of the last renewal
}

// Held is what holds a key that could not be claimed: a running request, or a finished record.
type Held struct {
	State       State
	Fingerprint string        // of the request that claimed the key, FingerprintSize bytes
	Owner       string        // Running: the token of the lease
	Answer      *Answer       // Done and Unkept
	Left        time.Duration // until the record, or the lease of a running request, expires; 0 for a lease without an end, and for an answer that memory has cached
	Key         string        // of an answer that memory has cached, so that Left can be asked for
	Record      string        // the record as it is stored; empty for a request that runs in this process
	Local       bool          // known without asking the shared store
	OnlyCopy    bool          // finished: no other store has the record, as far as is known
	Err         error         // why Redis could not be asked, if nothing else is known
	Degraded    bool          // the shared store could not be asked: this is from the process's memory
}

// ShortestPoll and LongestPoll bound the pause between two polls of a key whose request runs in another process. Duplicates of
// short requests wait little, duplicates of long ones ask rarely, and none notices the end more than LongestPoll late.
const (
	ShortestPoll = 2 * time.Millisecond
	LongestPoll  = 50 * time.Millisecond
)

// Poll pauses before poll number attempt, counted from 0, or until ctx is over.
func Poll(ctx context.Context, attempt int) {
	pause := LongestPoll
	if attempt < 5 {
		pause = ShortestPoll << uint(attempt)
	}
	sleep(ctx, pause, nil)
}

// sleep returns after d, when ctx is over, or when done is closed; done may be nil. It uses reflect.Select because, under
// Yaegi, the cases of a select statement are shared between the goroutines that run it.
func sleep(ctx context.Context, d time.Duration, done chan struct{}) {
	timer := time.NewTimer(d)
	reflect.Select([]reflect.SelectCase{
		{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(timer.C)},
		{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(ctx.Done())},
		{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(done)},
	})
	timer.Stop()
}
