// Package idem is a Traefik middleware plugin that makes unsafe HTTP calls safe to retry. The first request with an
// idempotency key runs and its answer is kept, in Redis or in memory; every later request with the same key gets that
// answer and the backend is not called again.
//
// The plugin is interpreted by Yaegi inside Traefik. Constructs that Yaegi gets wrong, select statements above all,
// are not used; a test in e2e/ finds them. Yaegi also sets the style of what every request goes through: plain functions,
// since a method call costs four times as much as a function call, and short ones with rare cases set apart, since each
// call allocates every variable and temporary of the function, used or not. docs/yaegi.md has the figures.
package idem

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/stats"
	"github.com/example/traefik-idem/store"
)

// handler is one middleware on one router.
type handler struct {
	settings

	next  http.Handler
	name  string
	keys  *tiers
	stats *stats.Collector
	first *atomic.Int64 // its count of first runs
	log   *logger
	care  *care // of the requests that run

	runs  *sync.Map   // the executions under way by their owner's token. No map under a lock: that would be two calls more
	awake func() bool // of care. Yaegi finds a function in a field in half the time that a method takes

	observing atomic.Int64 // requests that are being observed
	outage    atomic.Int64 // of Redis, that was last told of
}

// New builds the middleware. Redis need not be up: it is connected to when the first key comes. What handlers share,
// such as connections, is given up some seconds after ctx is over. The error wraps ErrConfig.
func New(ctx context.Context, next http.Handler, config *Config, name string) (http.Handler, error) {
	set, warning, err := config.settings()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	h := &handler{settings: *set, next: next, name: name, runs: &sync.Map{}, log: newLogger(name, set.logLevel)}
	if warning != "" {
		h.log.print(levelWarn, warning, nil)
	}
	h.openShared(ctx)
	h.care = newCare(h)
	h.awake = h.care.awake.Load
	h.log.started(h.effective())
	return h, nil
}

// openShared sets what this handler shares with all others that use the same: this process's memory, Redis behind it if
// there is one, and the statistics.
func (h *handler) openShared(ctx context.Context) {
	place := fmt.Sprintf("%s %s", h.redis.Place(), h.keyPrefix) // of the keys
	statsID := fmt.Sprintf("stats %+v %s", h.redis, h.keyPrefix)
	if h.redis.Address == "" {
		place = "middleware " + h.name
		statsID = "stats " + h.name
	}
	limit := h.localCacheBytes
	if limit == 0 { // no cache, but what memory alone knows must be somewhere
		limit = defaultLocalBytes
	}
	newMemory := func() resource { return store.NewMemory(limit) }
	memory, _ := shared.get(ctx, "memory "+place, newMemory).(*store.Memory)
	if h.localCacheBytes > 0 || h.redis.Address == "" {
		memory.SetLimit(limit)
	}
	h.keys = &tiers{memory: memory, cache: h.localCacheBytes > 0, fallback: h.onStoreError == "degrade"}
	newCollector := func() resource { return stats.New(stats.NewProcess(memory), h.statsLimits) }
	if h.redis.Address != "" {
		newCollector = h.openRedis(ctx)
	}
	h.stats, _ = shared.get(ctx, statsID, newCollector).(*stats.Collector)
	h.first = h.stats.Counts[stats.First]
	h.stats.SetLimits(h.statsLimits)
	context.AfterFunc(ctx, h.stats.Retire)
}

// openRedis sets Redis as the store behind memory, and returns what builds its statistics. Clients with other settings than
// these share what Redis is still to be told.
func (h *handler) openRedis(ctx context.Context) func() resource {
	id := fmt.Sprintf("redis %+v", h.redis)
	longest := h.redis.ReadTimeout
	if h.redis.WriteTimeout > longest {
		longest = h.redis.WriteTimeout
	}
	h.keys.slow = h.lease/3 < h.redis.DialTimeout+2*longest
	newBacklog := func() resource { return redisclient.NewBacklog() }
	backlog, _ := shared.get(ctx, "backlog "+h.redis.Place(), newBacklog).(*redisclient.Backlog)
	if h.redis.Cluster {
		newCluster := func() resource { return redisclient.NewClusterSharing(h.redis, backlog) }
		cluster, _ := shared.get(ctx, id, newCluster).(*redisclient.Cluster)
		h.keys.redis = redisclient.NewClusterKeys(cluster, h.keyPrefix, h.lease, h.ttl)
		return func() resource { return stats.New(redisclient.NewClusterStats(cluster, h.keyPrefix), h.statsLimits) }
	}
	newClient := func() resource { return redisclient.NewSharing(h.redis, backlog) }
	client, _ := shared.get(ctx, id, newClient).(*redisclient.Client)
	h.keys.redis = redisclient.NewKeys(client, h.keyPrefix, h.lease, h.ttl)
	return func() resource { return stats.New(redisclient.NewStats(client, h.keyPrefix), h.statsLimits) }
}

// insideKey marks the context of a request that a handler above has taken. It is compared by its address: Yaegi's
// struct types are all one type to the runtime.
var insideKey = new(int)

// ServeHTTP passes a request on untouched if the plugin has nothing to do with it.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, h.statsPath) && serveStats(h, w, r) {
		return
	}
	if (r.Header[h.header] != nil || h.required || (!h.spared[r.Method] && r.Header.WriteSubset(closed, h.harmless) != nil && hasAlias(h, r.Header))) && protects(h, r) {
		serve(h, w, r, nil)
		return
	}
	h.next.ServeHTTP(w, r)
}

// serveLarge is serve for a body that is, or may be, large enough to be counted.
func serveLarge(h *handler, w http.ResponseWriter, r *http.Request) {
	c := &charge{}
	defer refund(c)
	serve(h, w, r, c)
}

// protects tells whether r is one of those that the configuration names, and can be recorded and replayed at all. What
// cannot needs a key all the same where one is required.
func protects(h *handler, r *http.Request) bool {
	paths := h.protected[r.Method]
	if paths == nil {
		paths = otherMethods(h, r)
	}
	if paths != everyPath && !paths.MatchString(r.URL.Path) {
		return false
	}
	if r.Method == http.MethodOptions && r.Header["Access-Control-Request-Method"] != nil {
		return false // a browser's preflight, which has no key and changes nothing
	}
	if r.Header["Connection"] != nil && handsOver(r) {
		return h.required && parseKey(r.Header[h.header], h.maxKeyLength) == ""
	}
	return true
}

// otherMethods is what protects r if no rule names its method. TRACE is never protected: it may have no body, and so
// nothing can keep a transport from sending it twice (see hideEmptyBody).
func otherMethods(h *handler, r *http.Request) *regexp.Regexp {
	paths := h.protected["*"]
	if paths == nil || r.Method == http.MethodTrace {
		return noPath
	}
	return paths
}

// everyPath matches all, and noPath nothing.
var (
	everyPath = regexp.MustCompile(``)
	noPath    = regexp.MustCompile(`[^\x00-\x{10FFFF}]`)
)

// serve is the way of a protected request. What its body holds goes to the account c; nil as long as it has none.
func serve(h *handler, w http.ResponseWriter, r *http.Request, c *charge) {
	ctx := r.Context()
	if ctx.Value(insideKey) != nil { // a handler above has taken it
		h.next.ServeHTTP(w, r)
		return
	}
	key := parseKey(r.Header[h.header], h.maxKeyLength)
	types := r.Header["Content-Type"]
	if key == "" || (types != nil && strings.HasPrefix(types[0], "application/grpc")) || (r.Header.WriteSubset(closed, h.harmless) != nil && hasAlias(h, r.Header)) {
		withoutKey(h, w, r, key, types)
		return
	}
	if h.observe {
		observe(h, w, r, key, types)
		return
	}
	if c == nil && (r.ContentLength < 0 || r.ContentLength > h.smallRequest) {
		serveLarge(h, w, r)
		return
	}
	body, err := takeBody(h, r, c)
	if err != nil {
		withoutBody(h, w, err)
		return
	}
	lease := newLease(h, r, key, types, body.compared)
	held, err := claimKey(h.keys, lease, h.lease)
	if held == nil && err == nil {
		h.first.Add(1)
		run(ctx, h, w, r, lease, body)
		return
	}
	serveDuplicate(ctx, h, w, r, lease, body, held, err)
}

// runHeader carries the owner tokens of the runs that a request is on its way for to whom it is sent. A Traefik behind this
// one, on the same Redis and prefix, or this one again finds the key held by the very run that it serves, and lets the
// request through. Nobody can guess a token, and one whose run has ended means nothing.
const runHeader = "X-Idem-Run"

// servesRun tells whether r is on its way for the run that holds the key.
func servesRun(r *http.Request, held *store.Held) bool {
	if held == nil || held.State != store.Running {
		return false
	}
	for _, token := range r.Header[runHeader] {
		if token == held.Owner {
			return true
		}
	}
	return false
}

// serveDuplicate goes on where somebody else has the key, or the store failed.
func serveDuplicate(ctx context.Context, h *handler, w http.ResponseWriter, r *http.Request, lease *store.Lease, body *takenBody, held *store.Held, err error) {
	if servesRun(r, held) {
		h.next.ServeHTTP(w, r)
		return
	}
	if err != nil || held.State == store.Running {
		held, err = persist(ctx, h, lease, held, err)
	}
	if lease.Degraded || (held != nil && held.Degraded) {
		h.stats.Counts[stats.Degraded].Add(1)
	}
	switch {
	case err != nil:
		withoutStore(h, w, r, lease, err)
	case held == nil:
		h.first.Add(1)
		run(ctx, h, w, r, lease, body)
	case held.State == store.Done && held.Fingerprint == lease.Fingerprint:
		replay(h, w, r, held)
	default:
		refuseDuplicate(h, w, r, held, lease)
	}
}

// withoutKey serves a request without a valid key, or with an alias of its header, or gRPC, which needs one where it is
// required, but is not recorded.
func withoutKey(h *handler, w http.ResponseWriter, r *http.Request, key string, types []string) {
	lines := r.Header[h.header]
	alias := hasAlias(h, r.Header)
	keyless := !alias && ((key == "" && h.ignoreInvalid) || len(lines) == 0 || (len(lines) == 1 && lines[0] == ""))
	grpc := len(types) > 0 && strings.HasPrefix(types[0], "application/grpc")
	if (grpc && ((key != "" && !alias) || !h.required)) || (keyless && (h.observe || !h.required)) {
		h.next.ServeHTTP(w, r)
		return
	}
	h.stats.Counts[stats.Invalid].Add(1)
	if alias {
		h.log.seldom(levelWarn, "a header that backends may take for that of the key, or for one in scope, is an invalid key", nil)
	}
	switch {
	case h.observe:
		h.next.ServeHTTP(w, r)
	case keyless:
		refuse(h, w, missingKey(h.header), false)
	default:
		refuse(h, w, invalidKey(), false)
	}
}

// withoutBody refuses a request whose body broke off, or found no room.
func withoutBody(h *handler, w http.ResponseWriter, err error) {
	if errors.Is(err, errBusy) {
		h.stats.Counts[stats.Unavailable].Add(1)
		h.log.seldom(levelWarn, "requests under way hold too much memory; further large ones get 503", nil)
		refuse(h, w, overloaded(), false)
		return
	}
	h.stats.Counts[stats.Invalid].Add(1)
	refuse(h, w, incompleteBody(), false)
}

// mostWaiting is how many duplicates wait in this process at the same time, each with its connection and its body. So a
// flood of duplicates of slow requests cannot exhaust Traefik.
const mostWaiting = 512

// waiting is how many do.
var waiting atomic.Int64

// persist goes on where a claim brought no decision. It claims in memory if Redis cannot be asked, and waits for a running
// request with the same key to end. Of many that wait, the one whose claim comes first after a release runs.
func persist(ctx context.Context, h *handler, lease *store.Lease, held *store.Held, err error) (*store.Held, error) {
	if err != nil {
		held, err = fallBack(h, lease, err)
	}
	if err != nil || held == nil || held.State != store.Running || !h.wait {
		return held, err
	}
	if waiting.Add(1) > mostWaiting {
		waiting.Add(-1)
		h.log.seldom(levelWarn, "too many duplicates wait for requests that run; further ones get 409", nil)
		return held, nil
	}
	defer waiting.Add(-1)
	ctx, cancel := context.WithTimeout(ctx, h.inFlightTimeout)
	defer cancel()
	lost := false // the reply to the last claim
	for attempt := 0; held != nil && held.State == store.Running && !mismatch(h, held, lease); attempt++ {
		waitForKey(ctx, h.keys, lease.Key, attempt)
		if ctx.Err() != nil { // waited long enough, or the client has gone: nothing may be claimed any more
			if lost {
				redisclient.Later(h.keys.redis, lease, "", h.lease)
			}
			return held, nil
		}
		again, err := claimKey(h.keys, lease, h.lease)
		if err != nil && (held.Local || redisclient.WasFree(err)) {
			again, err = fallBack(h, lease, err)
			if err != nil {
				return again, err
			}
		}
		lost = err != nil && (lost || !errors.Is(err, redisclient.ErrDown))
		if err == nil {
			held = again
		} // else Redis cannot tell how the request goes that runs at another Traefik: as far as is known, it runs
	}
	return held, nil
}

// fallBack claims in memory, if that is wanted, what Redis could not be asked for, which failed with err.
func fallBack(h *handler, lease *store.Lease, err error) (*store.Held, error) {
	storeFailed(h, "the store failed, onStoreError: "+h.onStoreError, err)
	return claimInMemory(h.keys, lease, err)
}

func mismatch(h *handler, held *store.Held, lease *store.Lease) bool {
	return h.rejectMismatch && held.Fingerprint != lease.Fingerprint
}

// refuseDuplicate answers a duplicate that gets no replay, and one whose fingerprint differs.
func refuseDuplicate(h *handler, w http.ResponseWriter, r *http.Request, held *store.Held, lease *store.Lease) {
	switch {
	case mismatch(h, held, lease):
		h.stats.Counts[stats.Mismatches].Add(1)
		refuse(h, w, keyReused(), held.Degraded)
	case held.State == store.Done:
		replay(h, w, r, held)
	case held.State == store.Unkept:
		stats.Duplicate(h.stats, stats.Unkept, r)
		refuse(h, w, responseNotKept(held.Answer.Status), held.Degraded)
	case held.State == store.Unknown:
		stats.Duplicate(h.stats, stats.Unknown, r)
		refuse(h, w, outcomeUnknown(held.Left), held.Degraded)
	default:
		stats.Duplicate(h.stats, stats.Conflicts, r)
		refuse(h, w, inFlight(), held.Degraded)
	}
}

// withoutStore serves a request whose key could not be claimed, for err. A claim of which only the reply was lost is given
// back.
func withoutStore(h *handler, w http.ResponseWriter, r *http.Request, lease *store.Lease, err error) {
	if !errors.Is(err, redisclient.ErrDown) {
		redisclient.Later(h.keys.redis, lease, "", h.lease)
	}
	if h.onStoreError == "reject" {
		h.stats.Counts[stats.Unavailable].Add(1)
		refuse(h, w, storeUnavailable(), true)
		return
	}
	h.stats.Counts[stats.Passed].Add(1)
	decide(h, w, "first", true)
	r = r.Clone(context.WithValue(r.Context(), insideKey, true))
	if r.ContentLength == 0 {
		hideEmptyBody(r)
	}
	if r.Header["Connection"] != nil {
		dropOffer(r)
	}
	h.next.ServeHTTP(w, r)
}

// storeFailed counts and logs a step that the store did not take. Of an outage each handler tells once.
func storeFailed(h *handler, msg string, cause error) {
	h.stats.Counts[stats.StoreErrors].Add(1)
	outage := h.keys.redis.Outage()
	switch {
	case outage == 0:
		h.log.seldom(levelError, msg, cause)
	case h.outage.Swap(outage) != outage:
		h.log.print(levelError, msg, cause)
	}
}

// replay answers with what the first request was answered.
func replay(h *handler, w http.ResponseWriter, r *http.Request, held *store.Held) {
	total := stats.ReplaysStore
	if held.Local {
		total = stats.ReplaysLocal
	}
	stats.Duplicate(h.stats, total, r)
	header, answer := w.Header(), held.Answer
	if answer.Header["Content-Type"] == nil && header["Content-Type"] == nil {
		header["Content-Type"] = nil // the answer had none, and net/http must not guess one
	}
	if answer.Header["Content-Length"] == nil && r.Method != http.MethodHead && !bodiless(answer.Status) {
		header["Content-Length"] = []string{strconv.Itoa(len(answer.Body))}
	}
	for name, values := range answer.Header.Clone() { // the slices are shared by all replays
		if !h.omit[name] { // another middleware on the same Redis may have kept it
			header[name] = values
		}
	}
	if h.replayHeader != "" {
		header[h.replayHeader] = []string{"true"}
	}
	if h.statusHeader != "" {
		decide(h, w, "replayed", held.Degraded)
	}
	w.WriteHeader(answer.Status)
	if len(answer.Body) > pieceBytes {
		writeInPieces(w, answer.Body)
		return
	}
	_, _ = io.WriteString(w, answer.Body) // a client that has gone needs no answer
}

// pieceBytes is how much of a long answer is written at once.
const pieceBytes = 32 << 10

// pieces are writers of such pieces. Traefik's takes bytes alone, and else the whole of an answer would be copied for each
// replay.
var pieces = sync.Pool{New: func() interface{} { return bufio.NewWriterSize(io.Discard, pieceBytes) }}

// writeInPieces writes body to w.
func writeInPieces(w io.Writer, body string) {
	p, _ := pieces.Get().(*bufio.Writer)
	p.Reset(w)
	_, _ = p.WriteString(body)
	_ = p.Flush() // a client that has gone needs no answer
	p.Reset(io.Discard)
	pieces.Put(p)
}

// hideEmptyBody changes r, which has no body and a header of its own, so that no transport sends it twice on its own.
//
// Go's transport, and Traefik's fast proxy, resend a request without a body when a kept connection breaks, if its
// method is a safe one or if it has the header Idempotency-Key or X-Idempotency-Key (Request.isReplayable). They look
// that header up under its canonical name alone, and a request whose body they do not know to be empty is not resent.
// HTTP header names have no case, so the backend gets what it would have got.
func hideEmptyBody(r *http.Request) {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodDelete:
		r.ContentLength = -1 // for these the transport looks whether there is a byte, and sends no body if not
		r.Body = io.NopCloser(strings.NewReader(""))
	default:
		for _, name := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
			values, ok := r.Header[name]
			if ok {
				delete(r.Header, name)
				r.Header[strings.ToLower(name)] = values
			}
		}
	}
}
