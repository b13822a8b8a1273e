package store

import "sync"

// ballastBytes is the upper bound on the ballast.
const ballastBytes = 64 << 20

// ballast is memory that is allocated but never used. It takes next to no physical memory, but makes the heap larger, so that
// the garbage collector runs less often. Each collection goes through all of Traefik and the syntax tree of the plugin: without
// ballast that is a tenth of what a request costs, and the slowest requests are those that a collection delays. It is no more than
// half of what a store may hold: once the store holds more than the ballast, its content has the same effect.
var ballast struct {
	mu    sync.Mutex // guards everything below
	bytes []byte
	peak  int // the most bytes that a store has held: a smaller ballast is not needed any more
}

// setBallast makes the ballast at least half of limit, up to ballastBytes.
func setBallast(limit int64) {
	size := limit / 2
	if size > ballastBytes {
		size = ballastBytes
	}
	ballast.mu.Lock()
	defer ballast.mu.Unlock()
	if size > int64(len(ballast.bytes)) && size > int64(ballast.peak) {
		ballast.bytes = make([]byte, size)
	}
}

// releaseBallast frees the ballast if a store holds more.
func releaseBallast(held int) {
	ballast.mu.Lock()
	defer ballast.mu.Unlock()
	if held > ballast.peak {
		ballast.peak = held
	}
	if held > len(ballast.bytes) {
		ballast.bytes = nil
	}
}
