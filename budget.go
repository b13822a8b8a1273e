package idem

import (
	"errors"
	"sync/atomic"
)

// mostInFlight bounds what all requests under way hold in this process, in bytes: bodies that were read to be compared, and answers
// that are being recorded. Bodies with a declared length of at most settings.smallRequest, and answers with one of at most
// wholeBytes, are not counted. There is room for at least one body of mostBody, and the byte that shows that it is longer.
const (
	mostInFlight = mostBody + 1
	mostBody     = 256 << 20
	smallBody    = 16 << 10
)

// reservedBytes is how much is reserved for them now.
var reservedBytes atomic.Int64

// errBusy is the error for a request that would exceed mostInFlight.
var errBusy = errors.New("requests under way hold too much memory")

// reservation is one request's part of reservedBytes.
type reservation struct {
	bytes int64
}

// reserve adds n bytes to the reservation. It returns false, and adds nothing, if fewer are left.
func reserve(r *reservation, n int) bool {
	if reservedBytes.Load()+int64(n) > mostInFlight {
		return false
	}
	if reservedBytes.Add(int64(n)) > mostInFlight { // others reserved in between
		reservedBytes.Add(-int64(n))
		return false
	}
	r.bytes += int64(n)
	return true
}

// leavesHalf reports whether half of mostInFlight is free after n more bytes have been reserved.
func leavesHalf(n int64) bool {
	return reservedBytes.Load()+n < mostInFlight/2
}

// unreserve gives back the whole reservation.
func unreserve(r *reservation) {
	reservedBytes.Add(-r.bytes)
	r.bytes = 0
}
