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

	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/store"
)

// handler is one middleware on one router.
type handler struct {
	next  http.Handler
	set   *settings
	store store.Store
	log   *logger
}

// New builds the middleware. Redis need not be up: it is connected to when the first key comes. What handlers share,
// such as connections, is given up some seconds after ctx is over. The error wraps ErrConfig.
func New(ctx context.Context, next http.Handler, config *Config, name string) (http.Handler, error) {
	set, warning, err := config.settings()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	h := &handler{next: next, set: set, log: newLogger(name, set.logLevel)}
	if warning != "" {
		h.log.print(levelWarn, warning, nil)
	}
	h.store = h.openStore(ctx, name)
	return h, nil
}

// openStore returns this process's memory, or Redis with memory before it. Both are shared with all handlers that use
// the same ones.
func (h *handler) openStore(ctx context.Context, name string) store.Store {
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
		return memory
	}
	newClient := func() closer { return redisclient.New(h.set.redis) }
	client, _ := shared.get(ctx, fmt.Sprintf("redis %+v", h.set.redis), newClient).(*redisclient.Client)
	return &store.Tiered{
		Shared:   redisclient.NewKeys(client, h.set.keyPrefix),
		Local:    memory,
		Cache:    h.set.localCacheBytes > 0,
		Fallback: h.set.onStoreError == "degrade",
	}
}

// insideKey marks the context of a request that a handler above has taken. It is compared by its address: Yaegi's
// struct types are all one type to the runtime.
var insideKey = new(int)

// ServeHTTP is the way of a request.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	lines := r.Header[h.set.header]
	keyless := len(lines) == 0 || (len(lines) == 1 && lines[0] == "")
	if (keyless && (!h.set.required || h.set.observe)) || !h.protects(r) {
		h.next.ServeHTTP(w, r)
		return
	}
	if keyless {
		h.refuse(w, missingKey(h.set.header), false)
		return
	}
	key, valid := parseKey(lines, h.set.maxKeyLength)
	if !valid && h.set.observe {
		h.next.ServeHTTP(w, r)
		return
	}
	if !valid {
		h.refuse(w, invalidKey(), false)
		return
	}
	fingerprint, rest, err := h.takeFingerprint(r)
	if err != nil {
		h.refuse(w, incompleteBody(), false)
		return
	}
	lease := &store.Lease{Key: h.storeKey(r, key), Fingerprint: fingerprint, Owner: newOwner()}
	if h.set.observe {
		go h.observe(lease)
		h.decide(w, "observed", false)
		h.next.ServeHTTP(w, r) // not marked: a plugin further down may enforce
		return
	}

	held, err := h.claim(r.Context(), lease)
	if err != nil {
		h.withoutStore(w, r)
		return
	}
	switch {
	case held.State == store.Claimed:
		h.run(w, r, lease, rest)
	case h.mismatch(held, lease):
		h.refuse(w, keyReused(), held.Degraded)
	case held.State == store.Done:
		h.replay(w, held)
	case held.State == store.Unkept:
		h.refuse(w, responseNotKept(held.Answer.Status), held.Degraded)
	case held.State == store.Unknown:
		h.refuse(w, outcomeUnknown(held.Left), held.Degraded)
	default:
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
		h.log.seldom(levelError, "the store failed, onStoreError: "+h.set.onStoreError, err)
	}
	if held.Cause != nil {
		h.log.seldom(levelError, "the store failed, this Traefik's memory deduplicates", held.Cause)
	}
	return held, err
}

func (h *handler) mismatch(held store.Held, lease *store.Lease) bool {
	return h.set.rejectMismatch && held.Fingerprint != lease.Fingerprint
}

// withoutStore serves a request whose key could not be claimed.
func (h *handler) withoutStore(w http.ResponseWriter, r *http.Request) {
	if h.set.onStoreError == "reject" {
		h.refuse(w, storeUnavailable(), true)
		return
	}
	h.decide(w, "first", true)
	h.next.ServeHTTP(w, h.inside(r.Context(), r))
}

// observe notes the key for its time to live, and that it was there before. It runs beside the request.
func (h *handler) observe(lease *store.Lease) {
	defer recovered("observing a request")
	held, err := h.ask(lease)
	switch {
	case err != nil:
	case held.State != store.Claimed:
		h.log.print(levelDebug, "duplicate observed", nil)
	default:
		_, err = h.store.Finish(lease, store.Record{State: store.Unknown, Fingerprint: lease.Fingerprint}, h.set.ttl)
		if err != nil {
			h.log.seldom(levelError, "an observed key could not be kept", err)
		}
	}
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
