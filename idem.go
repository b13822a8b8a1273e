// Package idem is a Traefik middleware plugin that makes unsafe HTTP calls safe to retry. The first request with an
// idempotency key runs and its answer is kept, in Redis or in memory; every later request with the same key gets that
// answer and the backend is not called again.
//
// The plugin is interpreted by Yaegi inside Traefik. Constructs that Yaegi gets wrong, select statements above all,
// are not used; a test in e2e/ finds them.
package idem

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/stats"
	"github.com/example/traefik-idem/store"
)

// handler is one middleware on one router.
type handler struct {
	next   http.Handler
	set    *settings
	name   string
	client *redisclient.Client // nil for keys in memory
	store  store.Store
	stats  *stats.Collector
	log    *logger

	observing atomic.Int64 // requests that are being observed
}

// New builds the middleware. Redis need not be up: it is connected to when the first key comes. What handlers share,
// such as connections, is given up some seconds after ctx is over. The error wraps ErrConfig.
func New(ctx context.Context, next http.Handler, config *Config, name string) (http.Handler, error) {
	set, warning, err := config.settings()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	h := &handler{next: next, set: set, name: name, log: newLogger(name, set.logLevel)}
	if warning != "" {
		h.log.print(levelWarn, warning, nil)
	}
	memory := h.openStore(ctx, name)
	h.stats = h.openStats(ctx, name, memory)
	return h, nil
}

// openStore sets the store to this process's memory, which it returns, or to Redis with memory before it. Both are shared
// with all handlers that use the same ones.
func (h *handler) openStore(ctx context.Context, name string) *store.Memory {
	limit := h.set.localCacheBytes
	if limit == 0 { // no cache, but what memory alone knows must be somewhere
		limit = defaultLocalBytes
	}
	id := "memory " + name
	if h.set.redis.Address != "" {
		// A middleware without a cache must not find what another one has cached.
		id = fmt.Sprintf("memory %+v %s %t", h.set.redis, h.set.keyPrefix, h.set.localCacheBytes > 0)
	}
	newMemory := func() closer { return store.NewMemory(limit) }
	memory, _ := shared.get(ctx, id, newMemory).(*store.Memory)
	memory.SetLimit(limit)
	if h.set.redis.Address == "" {
		h.store = memory
		return memory
	}
	newClient := func() closer { return redisclient.New(h.set.redis) }
	h.client, _ = shared.get(ctx, fmt.Sprintf("redis %+v", h.set.redis), newClient).(*redisclient.Client)
	h.store = &store.Tiered{
		Shared:   redisclient.NewKeys(h.client, h.set.keyPrefix),
		Local:    memory,
		Cache:    h.set.localCacheBytes > 0,
		Fallback: h.set.onStoreError == "degrade",
	}
	return memory
}

// insideKey marks the context of a request that a handler above has taken. It is compared by its address: Yaegi's
// struct types are all one type to the runtime.
var insideKey = new(int)

// ServeHTTP is the way of a request.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.set.statsPath != "" && strings.HasPrefix(r.URL.Path, h.set.statsPath) && h.serveStats(w, r) {
		return
	}
	lines := r.Header[h.set.header]
	keyless := len(lines) == 0 || (len(lines) == 1 && lines[0] == "")
	if (keyless && (!h.set.required || h.set.observe)) || !h.protects(r) {
		h.next.ServeHTTP(w, r)
		return
	}
	if keyless {
		h.stats.Counts[stats.Invalid].Add(1)
		h.refuse(w, missingKey(h.set.header), false)
		return
	}
	key, valid := parseKey(lines, h.set.maxKeyLength)
	if !valid {
		h.stats.Counts[stats.Invalid].Add(1)
		if h.set.observe {
			h.next.ServeHTTP(w, r)
			return
		}
		h.refuse(w, invalidKey(), false)
		return
	}
	fingerprint, rest, err := h.takeFingerprint(r)
	if err != nil {
		h.stats.Counts[stats.Invalid].Add(1)
		if h.set.observe { // whoever reads on finds the body broken
			h.next.ServeHTTP(w, r)
			return
		}
		h.refuse(w, incompleteBody(), false)
		return
	}
	lease := &store.Lease{Key: h.storeKey(r, key), Fingerprint: fingerprint, Owner: newOwner()}
	if h.set.observe {
		h.beginObserving(r, lease)
		h.decide(w, "observed", false)
		h.next.ServeHTTP(w, r) // not marked: a plugin further down may enforce
		return
	}

	held, err := h.claim(r.Context(), lease)
	if err != nil {
		h.withoutStore(w, r)
		return
	}
	if held.Degraded {
		h.stats.Counts[stats.Degraded].Add(1)
	}
	switch {
	case held.State == store.Claimed:
		h.stats.Counts[stats.First].Add(1)
		h.run(w, r, lease, rest)
	case h.mismatch(held, lease):
		h.stats.Counts[stats.Mismatches].Add(1)
		h.refuse(w, keyReused(), held.Degraded)
	case held.State == store.Done:
		total := stats.ReplaysStore
		if held.Local {
			total = stats.ReplaysLocal
		}
		h.stats.Duplicate(total, r)
		h.replay(w, held)
	case held.State == store.Unkept:
		h.stats.Duplicate(stats.Unkept, r)
		h.refuse(w, responseNotKept(held.Answer.Status), held.Degraded)
	case held.State == store.Unknown:
		h.stats.Duplicate(stats.Unknown, r)
		h.refuse(w, outcomeUnknown(held.Left), held.Degraded)
	default:
		h.stats.Duplicate(stats.Conflicts, r)
		h.refuse(w, inFlight(), held.Degraded)
	}
}

// protects tells whether r is one of those that the configuration names, and can be recorded and replayed at all.
// TRACE is never: it may have no body, and so nothing can keep a transport from sending it twice (see inside).
func (h *handler) protects(r *http.Request) bool {
	paths := h.set.protected[r.Method]
	if paths == nil {
		paths = h.set.protected["*"]
	}
	return paths != nil && paths.MatchString(r.URL.Path) &&
		r.Method != http.MethodTrace && !isUpgrade(r) && !strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") &&
		r.Context().Value(insideKey) == nil
}

// isUpgrade tells whether r asks for another protocol, such as WebSocket.
func isUpgrade(r *http.Request) bool {
	for _, line := range r.Header["Connection"] {
		if strings.Contains(strings.ToLower(line), "upgrade") {
			return true
		}
	}
	return false
}

// claim asks the store for the key, and waits for a running request with the same key to end. Of many that wait,
// the one whose claim comes first after a release runs.
func (h *handler) claim(ctx context.Context, lease *store.Lease) (store.Held, error) {
	held, err := h.ask(lease)
	if err != nil || held.State != store.Running || !h.set.wait {
		return held, err
	}
	ctx, cancel := context.WithTimeout(ctx, h.set.inFlightTimeout)
	defer cancel()
	for attempt := 0; err == nil && held.State == store.Running && !h.mismatch(held, lease); attempt++ {
		h.store.Wait(ctx, lease.Key, attempt)
		if ctx.Err() != nil { // waited long enough, or the client has gone: nothing may be claimed any more
			return held, nil
		}
		held, err = h.ask(lease)
	}
	return held, err
}

// ask claims the key once and logs an outage.
func (h *handler) ask(lease *store.Lease) (store.Held, error) {
	held, err := h.store.Claim(lease, h.set.lease)
	if err != nil {
		h.storeFailed("the store failed, onStoreError: "+h.set.onStoreError, err)
	}
	if held.Cause != nil {
		h.storeFailed("the store failed, this Traefik's memory deduplicates", held.Cause)
	}
	return held, err
}

func (h *handler) mismatch(held store.Held, lease *store.Lease) bool {
	return h.set.rejectMismatch && held.Fingerprint != lease.Fingerprint
}

// withoutStore serves a request whose key could not be claimed.
func (h *handler) withoutStore(w http.ResponseWriter, r *http.Request) {
	if h.set.onStoreError == "reject" {
		h.stats.Counts[stats.Unavailable].Add(1)
		h.refuse(w, storeUnavailable(), true)
		return
	}
	h.stats.Counts[stats.Passed].Add(1)
	h.decide(w, "first", true)
	h.next.ServeHTTP(w, h.inside(r.Context(), r))
}

// replay answers with what the first request was answered.
func (h *handler) replay(w http.ResponseWriter, held store.Held) {
	header := w.Header()
	for name, values := range held.Answer.Header.Clone() { // the slices are shared by all replays
		header[name] = values
	}
	if h.set.replayHeader != "" {
		header.Set(h.set.replayHeader, "true")
	}
	h.decide(w, "replayed", held.Degraded)
	w.WriteHeader(held.Answer.Status)
	_, _ = w.Write(held.Answer.Body) // a client that has gone needs no answer
}

// inside returns r as a handler below is to see it: marked, so that the plugin further down lets it through, and such
// that no transport sends it twice on its own.
//
// Go's transport, and Traefik's fast proxy, resend a request without a body when a kept connection breaks, if its
// method is a safe one or if it has the header Idempotency-Key or X-Idempotency-Key (Request.isReplayable). They look
// that header up under its canonical name alone, and a request whose body they do not know to be empty is not resent.
// HTTP header names have no case, so the backend gets what it would have got.
func (h *handler) inside(ctx context.Context, r *http.Request) *http.Request {
	r = r.WithContext(context.WithValue(ctx, insideKey, true))
	if r.ContentLength != 0 {
		return r
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodDelete:
		r.ContentLength = -1 // for these the transport looks whether there is a byte, and sends no body if not
		r.Body = newEmptyBody()
	default:
		r.Header = r.Header.Clone()
		for _, name := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
			values, ok := r.Header[name]
			if ok {
				delete(r.Header, name)
				r.Header[strings.ToLower(name)] = values
			}
		}
	}
	return r
}
