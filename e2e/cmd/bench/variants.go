package main

import (
	"fmt"
	"maps"
	"time"
)

// variant is one thing that is measured: a configuration, and the load that it gets.
type variant struct {
	name string
	base string // name of the variant that it is a share of; empty: it is itself one

	// What stands between Traefik's routers and the backend.
	kind     string   // plugin, idem or noop; rateLimit; empty: nothing
	settings settings // of that
	source   string   // folder of the plugin at an earlier revision; empty: the one that is measured
	redis    bool     // it talks to a Redis
	cluster  bool     // which is a Redis Cluster
	routers  int      // 1 unless set
	traefiks int      // 1 unless set; each has a wrk of its own
	delay    time.Duration

	// The load.
	rate        int  // requests per second; 0: as many as are answered, over a fixed number of connections
	connections int  // to all Traefiks together; 32 unless set
	each        int  // so many requests have the same key: 1 makes first requests, sameKey duplicates alone
	body        int  // bytes of the request's body; 80 unless set
	reply       int  // bytes of the answer's body; 240 unless set
	paths       int  // are gone through in turn; 1 unless set
	keys        int  // made before the measurement begins
	evicts      bool // there is no room for so many

	once   bool   // is measured in the first round alone, since it takes long
	noop   string // name of the variant that it is also compared with; empty: none
	growth string // what it counts, in the table of growth; empty: it stands in the main table
	count  int    // and how much of it
	keysIn string // and where keys are
}

type settings = map[string]any

// sameKey is a variant's each: every request has the same key, and the backend saw the first of them before.
const sameKey = 0

// smallBody and smallReply are what a call that creates something has, more or less.
const smallBody, smallReply = 80, 240

// brief keeps answers of first requests so briefly that nothing is evicted: some ten thousand keys at a time.
var brief = settings{"ttl": "10s", "localCacheBytes": 256 << 20}

// kept keeps answers for longer than a variant runs.
var kept = settings{"ttl": "1h", "maxTTL": "1h"}

const (
	memory      = "memory" // where keys are
	plain       = "no middleware"
	noop        = "no-op plugin"
	plainSlow   = "no middleware, backend takes 20 ms"
	plainTwo    = "no middleware, two Traefiks"
	plainHalf   = "no middleware, 16 connections"
	growKeys    = "distinct keys"
	growPattern = "endpoint patterns"
	growRouters = "routers"
	growPaths   = "paths"
	roomy       = 2 << 20 // bytes of the longest answer, with its header
)

// variants are all that is measured, in the order in which a round goes through them.
func variants() []variant {
	list := []variant{
		{name: plain, each: 1},
		{name: noop, base: plain, kind: "noop", each: 1},
		{name: "Traefik's rateLimit, Redis", base: plain, kind: "rateLimit", redis: true, each: 1,
			settings: settings{"average": 1000000, "burst": 1000000, "period": "1s"}},
		{name: "no key", base: plain, kind: "idem", each: 1, noop: noop,
			settings: settings{"header": "Idempotency-Key"}}, // the load has X-Request-ID
		{name: "not protected", base: plain, kind: "idem", each: 1, noop: noop,
			settings: settings{"endpoints": []string{"POST /elsewhere/"}}},
		{name: "first, memory", base: plain, kind: "idem", each: 1, settings: brief},
		{name: "first, Redis", base: plain, kind: "idem", redis: true, each: 1, settings: brief},
		{name: "duplicate, local cache", base: plain, kind: "idem", redis: true, each: sameKey, settings: kept},
		{name: "duplicate, Redis", base: plain, kind: "idem", redis: true, each: sameKey,
			settings: with(kept, "localCacheBytes", 0)},
		{name: "first, Redis Cluster", base: plain, kind: "idem", redis: true, cluster: true, each: 1, settings: brief},
		{name: "duplicate, Redis Cluster", base: plain, kind: "idem", redis: true, cluster: true, each: sameKey,
			settings: with(kept, "localCacheBytes", 0)},
		{name: plainSlow, each: 1, delay: 20 * time.Millisecond},
		{name: "duplicate, waiting", base: plainSlow, kind: "idem", redis: true, each: 16, delay: 20 * time.Millisecond, settings: brief},
	}
	for _, size := range []struct {
		name  string
		bytes int
		ttl   string // with more, Redis would hold gigabytes
	}{{"1 KB", 1 << 10, "10s"}, {"64 KB", 64 << 10, "10s"}, {"1 MB", 1 << 20, "2s"}} {
		base := plain + ", " + size.name
		list = append(list,
			variant{name: base, each: 1, body: size.bytes, reply: size.bytes},
			variant{name: "first, Redis, " + size.name, base: base, kind: "idem", redis: true, each: 1, body: size.bytes, reply: size.bytes,
				settings: settings{"ttl": size.ttl, "maxResponseBodyBytes": roomy}},
			variant{name: "duplicate, local cache, " + size.name, base: base, kind: "idem", redis: true, each: sameKey,
				body: size.bytes, reply: size.bytes, settings: with(kept, "maxResponseBodyBytes", roomy)})
	}
	list = append(list,
		variant{name: plainHalf, each: 1, connections: connections / 2},
		variant{name: "first, Redis, 16 connections", base: plainHalf, kind: "idem", redis: true, each: 1, connections: connections / 2, settings: brief},
		variant{name: plainTwo, each: 1, traefiks: 2},
		variant{name: "first, Redis, two Traefiks", base: plainTwo, kind: "idem", redis: true, each: 1, traefiks: 2, settings: brief})
	return append(append(list, steady(list)...), growth()...)
}

// steady are variants of list at constant rates.
func steady(list []variant) []variant {
	var all []variant
	for _, rate := range rates {
		at := func(name string) string { return fmt.Sprintf("%s, %d/s", name, rate) }
		for _, v := range list {
			switch v.name {
			case plain, noop, "no key", "first, memory", "first, Redis", "duplicate, local cache", "duplicate, Redis":
				if v.base != "" {
					v.base = at(v.base)
				}
				v.name, v.noop, v.rate = at(v.name), "", rate
				all = append(all, v)
			}
		}
	}
	return all
}

// growth are the variants that show what the cost of a request does not depend on.
func growth() []variant {
	var list []variant
	for _, n := range []int{1, 10, 50, 200} {
		patterns := make([]string, n)
		for i := range patterns {
			patterns[i] = fmt.Sprintf("POST /api/v1/things-%d/*/pay/", i)
		}
		patterns[n-1] = "POST /p0/" // the last one matches
		list = append(list, variant{growth: growPattern, count: n, base: plain, kind: "idem", each: sameKey, settings: with(kept, "endpoints", patterns)})
	}
	for _, n := range []int{1, 10, 100} {
		// Traefik looks for the router in all of them, so plain proxying depends on their number as well.
		base := fmt.Sprintf("%s, %d routers", plain, n)
		list = append(list,
			variant{name: base, growth: growRouters, count: n, keysIn: plain, each: 1, paths: n, routers: n},
			variant{growth: growRouters, count: n, base: base, kind: "idem", each: sameKey, paths: n, routers: n, settings: kept})
	}
	// Each path is one endpoint of the statistics, as soon as there are any: settings for them belong here.
	for _, n := range []int{1, 10, 100, 1000} {
		list = append(list, variant{growth: growPaths, count: n, base: plain, kind: "idem", each: sameKey, paths: n, settings: kept})
	}
	for _, in := range []struct {
		keysIn string
		redis  bool
		cache  int // localCacheBytes
		most   int // keys that there is room for
	}{
		{memory, false, 2 << 30, 1500000},
		{"memory, default bound", false, 32 << 20, 20000},
		{"Redis", true, 32 << 20, 1500000},
	} {
		for _, n := range []int{1000, 10000, 100000, 1000000} {
			list = append(list, variant{growth: growKeys, count: n, keysIn: in.keysIn, base: plain, kind: "idem", redis: in.redis, each: 1, keys: n,
				evicts: n > in.most, once: true, settings: with(kept, "localCacheBytes", in.cache)})
		}
	}
	for i := range list {
		v := &list[i]
		if v.keysIn == "" {
			v.keysIn = memory
		}
		if v.name == "" {
			v.name = fmt.Sprintf("%s, %s: %d", v.keysIn, v.growth, v.count)
		}
	}
	return list
}

// earlier is the name of a variant with the plugin of a revision.
func (v variant) earlier(revision string) string { return v.name + ", " + revision }

// withEarlier adds to each variant with the plugin the same one with the plugin of a revision, whose folder is source.
func withEarlier(variants []variant, revision, source string) []variant {
	var list []variant
	for _, v := range variants {
		list = append(list, v)
		if v.kind == "idem" {
			v.name, v.source = v.earlier(revision), source
			list = append(list, v)
		}
	}
	return list
}

// with returns s with one value more.
func with(s settings, key string, value any) settings {
	s = maps.Clone(s)
	s[key] = value
	return s
}

// or returns n, or what stands for it if it was not set.
func or(n, unset int) int {
	if n == 0 {
		return unset
	}
	return n
}
