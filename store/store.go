// Package store keeps what is known about every idempotency key: who runs its request, how that ended, and the
// answer to give to duplicates.
//
// A key's life is one record. It begins as Running, held by one owner under a lease, and ends as Done, Unknown or
// Unkept for its time to live, or is released. The owner's token is the fencing token: an owner whose lease is over
// changes nothing any more.
//
// A store is a set of functions over a type: Claim, Renew, Finish and Release, each one atomic step that many goroutines
// may take at once. They are not methods because Yaegi, which runs all this in Traefik, takes four times as long to call
// a method as to call a function. Package storetest is the suite that every store has to pass.
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

// State says where a key stands.
type State byte

// The states of a key.
const (
	Free    State = 0   // nobody holds the key
	Running State = 'R' // a lease has it
	Done    State = 'D' // the answer is kept
	Unknown State = 'U' // the request was sent, and nobody knows how it ended
	Unkept  State = 'K' // it was answered, but the answer was too large to keep
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
	Key         string // as many bytes as it takes: in Redis it stands in hex
	Fingerprint string // FingerprintSize bytes
	Owner       string // fencing token, unique to this claim

	Degraded bool // the shared store could not be reached, and the lease is held in this process's memory
	Doubtful bool // with Degraded: the shared store may have taken the claim all the same; its reply was lost

	// Wire is the key and the running record as they are sent to Redis, once that has been done.
	Wire string

	// What follows is guarded by the Memory's lock.
	record    string        // finished: how it ended; empty while it runs
	expires   time.Duration // on the Memory's clock; 0 = never; less: how long, from the watchdog's next tick on
	done      chan struct{} // running: closed at its end; nil while nobody waits for it
	elsewhere bool          // finished: another store has it, too
	held      *Held         // finished: what a duplicate was told of an answer; never changed
	read      int           // bytes that held counts
}

// Run is a request that runs under a lease, or wants to. The lease outlives it, as the entry of its key.
type Run struct {
	*Lease

	Client context.Context // of the request: over when the client has gone
	Cancel atomic.Value    // context.CancelFunc of the call of the backend, once it has begun
	Body   io.ReadCloser   // of the request, as the backend gets it
	Taken  *bytes.Reader   // of Body, what was read in advance; nil if nothing
	Sought *atomic.Int32   // connections asked for, for a request without a body; nil if it has one
	Broken *atomic.Bool    // the client broke its request off; nil if it has arrived whole

	keys     interface{}  // *Keys; as that, the types would be recursive, which Yaegi does not take
	renewed  time.Time    // when a renewal last was due, or the watchdog first saw the lease
	missed   time.Time    // when the watchdog first saw that the client had gone
	renewing atomic.Bool  // a renewal waits for its reply
	renewal  atomic.Int32 // how the last one ended
}

// Held tells who has a key that could not be claimed.
type Held struct {
	State       State
	Fingerprint string        // of the request that claimed the key, FingerprintSize bytes
	Owner       string        // Running: the token of the lease
	Answer      *Answer       // Done and Unkept
	Left        time.Duration // until the record expires; 0 for a running one, and for an answer that was told of before
	Record      string        // of a shared store: what Answer was read from
	Local       bool          // known without asking the shared store
	OnlyCopy    bool          // of a finished record: no other store has it, as far as is known
	Err         error         // Redis could not be asked, and nothing else is known
	Degraded    bool          // the shared store could not be asked: this is what the process's memory says
}

// ShortestPoll and LongestPoll bound the pause between two looks at a key that another process runs: duplicates of short
// requests wait little, duplicates of long ones ask seldom, and none learns the end more than LongestPoll late.
const (
	ShortestPoll = 2 * time.Millisecond
	LongestPoll  = 50 * time.Millisecond
)

// Poll pauses before look number attempt, counted from 0, at a key that another process runs.
func Poll(ctx context.Context, attempt int) {
	pause := LongestPoll
	if attempt < 5 {
		pause = ShortestPoll << uint(attempt)
	}
	sleep(ctx, pause, nil)
}

// sleep returns after d, at the end of ctx, or when done is closed; done may be nil. A select statement would share its
// cases between goroutines under Yaegi; reflect.Select on a slice made here does not.
func sleep(ctx context.Context, d time.Duration, done chan struct{}) {
	timer := time.NewTimer(d)
	reflect.Select([]reflect.SelectCase{
		{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(timer.C)},
		{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(ctx.Done())},
		{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(done)},
	})
	timer.Stop()
}
