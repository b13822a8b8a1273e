package idem

import (
	"context"
	"fmt"
	"log"
	"sync"
	"sync/atomic"
	"time"

	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/stats"
	"github.com/example/traefik-idem/store"
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

// openResources sets what this handler shares with all others that use the same: this process's memory, Redis behind it if
// there is one, and the statistics.
func (h *handler) openResources(ctx context.Context) {
	storeID := fmt.Sprintf("%s %s", h.redis.Dataset(), h.keyPrefix)
	statsID := fmt.Sprintf("stats %+v %s", h.redis, h.keyPrefix)
	if h.redis.Address == "" {
		storeID = "middleware " + h.name
		statsID = "stats " + h.name
	}
	limit := h.localCacheBytes
	if limit == 0 { // no cache, but what memory alone knows must be somewhere
		limit = defaultLocalBytes
	}
	newMemory := func() resource { return store.NewMemory(limit) }
	memory, _ := resources.get(ctx, "memory "+storeID, newMemory).(*store.Memory)
	if h.localCacheBytes > 0 || h.redis.Address == "" {
		memory.SetLimit(limit)
	}
	terms := store.Terms{TTL: h.ttl, Lease: h.lease, Remember: h.localCacheBytes > 0, Long: longRun}
	if h.detach {
		terms.DetachTimeout = h.detachTimeout
	}
	// Notebook and collector are found by their memory: theirs may not be given up yet when the memory before was.
	token := store.Token(memory)
	openNotebook := func() resource { return newNotebook(memory) }
	h.notebook, _ = resources.get(ctx, "notebook "+token, openNotebook).(*notebook)
	statsID += " " + token
	newCollector := func() resource {
		return stats.New(store.RandomHex(8), stats.NewProcessStore(memory), h.statsLimits, memory)
	}
	var failing *atomic.Int32
	if h.redis.Address != "" {
		newCollector = h.openRedis(ctx, memory)
		terms.Renew = h.renewLease
		terms.Hear = h.notebook.hear
		terms.LateReplies = h.lateReplies
		failing = h.shared.Failing
		h.remote = true
	}
	h.stats, _ = resources.get(ctx, statsID, newCollector).(*stats.Collector)
	terms.Stats = h.stats
	h.keys = store.NewKeys(memory, failing, terms)
	join := func() resource { return h.stats.Join(h.name) }
	member, _ := resources.get(ctx, "middleware "+h.name+" in "+statsID, join).(*stats.Member)
	member.Show(h.inForce)
	h.stats.SetLimits(h.statsLimits)
	h.counter = h.stats.Counter(fmt.Sprintf("%q %q", h.methods, h.endpoints), h.patterns)
	context.AfterFunc(ctx, h.counter.Leave)
	context.AfterFunc(ctx, h.stats.Retire)
}

// openRedis sets Redis as the store behind memory, and returns what builds its statistics. Clients with other settings than
// these share what Redis is still to be told. Each prefix has a client of its own: a user may be allowed the keys of one alone.
func (h *handler) openRedis(ctx context.Context, memory *store.Memory) func() resource {
	id := fmt.Sprintf("redis %+v %s", h.redis, h.keyPrefix)
	h.lateReplies = h.lease/3 < h.redis.DialTimeout+2*longer(h.redis.ReadTimeout, h.redis.WriteTimeout)
	newBacklog := func() resource { return redisclient.NewBacklog() }
	backlog, _ := resources.get(ctx, "backlog "+h.redis.Dataset()+" "+h.keyPrefix, newBacklog).(*redisclient.Backlog)
	newClient := func() resource { return redisclient.New(h.redis, backlog) }
	client, _ := resources.get(ctx, id, newClient).(*redisclient.Client)
	h.shared = redisclient.NewKeys(client, h.keyPrefix, h.lease, h.ttl)
	h.notebook.use(h.shared, h.keyPrefix)
	unhook := &hook{remove: redisclient.WhenBack(h.shared, store.Token(memory), memory.RenewAll)}
	context.AfterFunc(ctx, unhook.end)
	return func() resource {
		return stats.New(store.RandomHex(8), redisclient.NewStats(client, h.keyPrefix), h.statsLimits, memory)
	}
}

// recovered ends a panic in a goroutine of the plugin, which would end Traefik. It is deferred, and only by declared
// functions and methods: Yaegi does not run what a function literal defers if that is declared further down.
func recovered(doing string) {
	if p := recover(); p != nil {
		log.Printf("level=error msg=%q cause=%q", doing+" failed", p)
	}
}
