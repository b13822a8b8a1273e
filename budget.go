package idem

import (
	"errors"
	"io"
	"sync/atomic"
)

// mostInFlight bounds what all requests under way hold in this process, in bytes: bodies that were read to be compared,
// and answers that are being recorded. Bodies of at most smallBody, and answers that come in one piece, are not counted.
const (
	mostInFlight = 256 << 20
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
	if heldBytes.Add(int64(n)) > mostInFlight {
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

// countedBody is a request body of which the first bytes are kept, and counted.
type countedBody struct {
	io.ReadCloser
	charge *charge
	left   int64 // bytes that are still to be counted
}

// Read implements io.Reader. Its error is errBusy if there is no room for what it read, which is then in p all the same.
func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left <= 0 {
		return n, err
	}
	b.left -= int64(n)
	if !pay(b.charge, n) {
		b.left = 0
		return n, errBusy
	}
	return n, err
}
