package idem

import (
	"errors"
	"sync/atomic"
)

// mostInFlight bounds what all requests under way hold in this process, in bytes: bodies that were read to be compared,
// and answers that are being recorded. Bodies that tell that they are at most settings.smallRequest long, and answers that
// come in one piece, are not counted. One request can have all of it: a body of mostBody, and the byte that shows that it is longer.
const (
	mostInFlight = mostBody + 1
	mostBody     = 256 << 20
	smallBody    = 16 << 10
)

// heldBytes is how much that is.
var heldBytes atomic.Int64

// errBusy says that mostInFlight is reached.
var errBusy = errors.New("requests under way hold too much memory")

// reservation is one request's part of heldBytes.
type reservation struct {
	bytes int64
}

// reserve takes n bytes more; false, and none is taken, if there are not so many left.
func reserve(r *reservation, n int) bool {
	if heldBytes.Load()+int64(n) > mostInFlight {
		return false
	}
	if heldBytes.Add(int64(n)) > mostInFlight { // others took it in between
		heldBytes.Add(-int64(n))
		return false
	}
	r.bytes += int64(n)
	return true
}

// unreserve gives all back.
func unreserve(r *reservation) {
	heldBytes.Add(-r.bytes)
	r.bytes = 0
}
