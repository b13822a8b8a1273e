package idem

import (
	"context"
	"log"
	"sync"
	"time"
)

// graceTime is how long something shared outlives its last user. Traefik ends the old handlers at a reload before it
// builds the new ones, which take over what the old ones used.
const graceTime = 10 * time.Second

// registry holds what must outlive a handler, under a name that says what makes it the same: stores in memory, and
// connections to Redis.
type registry struct {
	mu    sync.Mutex // guards items and the fields of every item
	items map[string]*item
}

type item struct {
	value closer
	users int
	end   *time.Timer // set while there are no users
}

type closer interface {
	Close()
}

// shared is the registry of all handlers in this process.
var shared = &registry{items: map[string]*item{}}

// get returns what is registered under name, or what build returns, and counts one user until ctx is over.
func (r *registry) get(ctx context.Context, name string, build func() closer) closer {
	r.mu.Lock()
	defer r.mu.Unlock()
	it := r.items[name]
	if it == nil {
		it = &item{value: build()}
		r.items[name] = it
	}
	if it.end != nil {
		it.end.Stop()
		it.end = nil
	}
	it.users++
	context.AfterFunc(ctx, func() {
		defer recovered("giving up a shared resource")
		r.release(name, it)
	})
	return it.value
}

// release ends one use, and begins the grace time after the last one.
func (r *registry) release(name string, it *item) {
	r.mu.Lock()
	defer r.mu.Unlock()
	it.users--
	if it.users == 0 {
		it.end = time.AfterFunc(graceTime, func() {
			defer recovered("freeing a shared resource")
			r.free(name, it)
		})
	}
}

func (r *registry) free(name string, it *item) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if it.users == 0 && r.items[name] == it {
		delete(r.items, name)
		it.value.Close()
	}
}

// recovered ends a panic in a goroutine of the plugin, which would end Traefik. It is deferred.
func recovered(doing string) {
	if p := recover(); p != nil {
		log.Printf("level=error msg=%q cause=%q", doing+" failed", p)
	}
}
