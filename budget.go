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

// charge is one request's part of heldBytes.
type charge struct {
	bytes int64
}

// pay takes n bytes more; false, and none is taken, if there are not so many left.
func pay(c *charge, n int) bool {
	if heldBytes.Load()+int64(n) > mostInFlight {
		return false
	}
	if heldBytes.Add(int64(n)) > mostInFlight { // others took it in between
		heldBytes.Add(-int64(n))
		return false
	}
	c.bytes += int64(n)
	return true
}

// refund gives all back.
func refund(c *charge) {
	heldBytes.Add(-c.bytes)
	c.bytes = 0
}
