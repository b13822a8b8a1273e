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

// registry holds what must outlive a handler, such as stores in memory and connections to Redis. Handlers that ask for the same
// name share one.
type registry struct {
	grace time.Duration

	mu    sync.Mutex // guards items and the fields of every item
	items map[string]*item
}

type item struct {
	value resource
	users int
	end   *time.Timer // set while there are no users
}

// resource is what handlers share.
type resource interface {
	Idle() bool // reports whether it holds nothing that has to outlive its users
	Close()
}

// resources is the registry of all handlers in this process.
var resources = &registry{grace: graceTime, items: map[string]*item{}}

// get returns what is registered under name, or what build returns, and counts one user until ctx is over.
func (r *registry) get(ctx context.Context, name string, build func() resource) resource {
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
	u := &use{registry: r, name: name, item: it}
	context.AfterFunc(ctx, u.end)
	return it.value
}

// use is one user's hold on an item.
type use struct {
	registry *registry
	name     string
	item     *item
}

// end gives the item up, and begins the grace time if this was the last use.
func (u *use) end() {
	defer recovered("giving up a shared resource")
	u.registry.mu.Lock()
	defer u.registry.mu.Unlock()
	u.item.users--
	if u.item.users == 0 {
		u.item.end = time.AfterFunc(u.registry.grace, u.free)
	}
}

// free closes an item that was not used again within the grace time. If the item still holds what a later user needs, free
// tries again after another grace time.
func (u *use) free() {
	defer recovered("freeing a shared resource")
	if u.remove() {
		u.item.value.Close()
	}
}

// remove takes the item out of the registry if it can be closed, and reports whether it has. Closing may take time, and New must not
// wait for it.
func (u *use) remove() bool {
	u.registry.mu.Lock()
	defer u.registry.mu.Unlock()
	switch {
	case u.item.users > 0 || u.registry.items[u.name] != u.item:
		return false
	case !u.item.value.Idle():
		u.item.end.Reset(u.registry.grace)
		return false
	}
	delete(u.registry.items, u.name)
	return true
}

// hook takes back what a handler has hooked into something shared, when its context is over.
type hook struct{ remove func() }

// end removes the hook.
func (k *hook) end() {
	defer recovered("giving up a shared resource")
	k.remove()
}

// recovered ends a panic in a goroutine of the plugin, which would end Traefik. It is deferred, and only by declared
// functions and methods: Yaegi does not run what a function literal defers if that is declared further down.
func recovered(doing string) {
	if p := recover(); p != nil {
		log.Printf("level=error msg=%q cause=%q", doing+" failed", p)
	}
}
