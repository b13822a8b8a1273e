package idem

import (
	"context"
	"testing"
	"time"

	"github.com/example/traefik-idem/store"
)

// TestAMemoryOutlivesItsUsers as long as it has a record, and no longer.
func TestAMemoryOutlivesItsUsers(t *testing.T) {
	r := &registry{grace: 10 * time.Millisecond, items: map[string]*item{}}
	build := func() resource { return store.NewMemory(1 << 20) }
	open := func() (*store.Memory, context.CancelFunc) {
		ctx, cancel := context.WithCancel(context.Background())
		m, _ := r.get(ctx, "memory", build).(*store.Memory)
		return m, cancel
	}
	first, cancel := open()
	running := &store.Lease{Key: "running", Owner: "o"}
	store.Claim(first, running, store.Endless)
	cancel()
	time.Sleep(10 * r.grace)
	again, cancel := open()
	if again != first {
		t.Fatal("a memory in which a request runs was freed")
	}
	cancel()
	store.Release(first, running)
	for { // a memory that is never freed ends in the test's time-out
		r.mu.Lock()
		left := len(r.items)
		r.mu.Unlock()
		if left == 0 {
			break
		}
		time.Sleep(r.grace)
	}
	next, cancel := open()
	defer cancel()
	if next == first {
		t.Error("a memory without a record was kept")
	}
}
