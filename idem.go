// Package idem is a Traefik middleware plugin that makes unsafe HTTP calls safe to retry. The first request with an
// idempotency key runs and its answer is kept, in Redis or in memory; every later request with the same key gets that
// answer and the backend is not called again.
//
// The walk of a request:
//
//  1. ServeHTTP answers for the statistics, and passes on what has no key or is not protected. searching.ServeHTTP does so where
//     a key is required, or may be elsewhere than in one header.
//  2. serve reads an ordinary request's body and makes its store.Run: identity and fingerprint. serveLarge does so for longer
//     bodies. serveSlow passes on, refuses and observes; serveKey makes the run of all others.
//  3. store.ClaimKey gives it the key in memory, or tells who holds it; claimShared asks Redis if memory does not know.
//  4. decide is the verdict: wait, run, replay, refuse, or go on without the store. proceed is its short way to run or replay.
//  5. run calls the next handler with a recorder, which collects the answer, streams it, or passes it on unrecorded.
//  6. The answer is kept (store.KeepAnswer, keepShared or finish): a collected one before it is sent, a streamed one before its end.
//  7. end comes also after a panic: conclude does with the key what the outcome asks for, unless that is done.
//  8. Meanwhile the watchdog of package store renews the lease, and cancels a call whose client has been gone for too long.
//
// The plugin is interpreted by Yaegi inside Traefik. Constructs that Yaegi gets wrong, select statements above all, are not
// used; a test in e2e/yaegi finds them. Yaegi also sets the style of what every request goes through: plain functions, since a
// method call costs four times as much as a function call, and short ones with rare cases set apart, since each call
// allocates every variable and temporary of the function, used or not. docs/dev/yaegi.md has the figures.
package idem

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"regexp"
	"strings"
	"sync/atomic"

	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/stats"
	"github.com/example/traefik-idem/store"
)

// version is the newest version in CHANGELOG.md.
const version = "unreleased"

// handler is one middleware on one router.
type handler struct {
	settings

	next           http.Handler
	name           string
	inForce        []stats.Setting   // for the page
	keys           *store.Keys       // in this process's memory
	shared         *redisclient.Keys // behind it, in Redis; nil: there is none
	stats          *stats.Collector
	counter        *stats.Counter // counts by endpoint
	notebook       *notebook
	log            *logger
	backendContext func(context.Context) context.Context // context of the backend call, made from that of its request

	contentHandler interface{} // *handler for keys from content; with that type handler would be recursive
	remote         bool        // shared is not nil; asked in fewer steps
	announces      bool        // there is a header to add to answers
	lateReplies    bool        // a claim in Redis may take a good part of its lease

	observing    atomic.Int64 // requests that are being observed
	loggedOutage atomic.Int64 // number of the last outage of Redis that was logged
}

// New builds the middleware. It does not wait for Redis, which need not be up. What handlers share, such as connections, is given
// up some seconds after ctx is over. The error wraps ErrConfig.
func New(ctx context.Context, next http.Handler, config *Config, name string) (http.Handler, error) {
	set, warning, err := config.settings()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	h := &handler{settings: *set, next: next, name: name, log: newLogger(name, set.logLevel), backendContext: sameContext}
	if h.detach {
		h.backendContext = context.WithoutCancel
	}
	if warning != "" {
		h.log.print(levelWarn, warning, nil)
	}
	h.announces = h.statusHeader != "" || h.expiresHeader != "" || h.exposed != nil
	h.inForce = inForce(h, config)
	h.openResources(ctx)
	h.log.started(h.effective())
	if h.contentTTL > 0 {
		h.contentHandler, err = h.newContentHandler(ctx, *config)
		if err != nil {
			return nil, err
		}
	}
	if h.required || len(h.keySources) > 1 || h.header == "" {
		return &searching{h}, nil
	}
	return h, nil
}

// newContentHandler returns the handler for requests with a key from content: the same, but with contentTTL for ttl.
func (h *handler) newContentHandler(ctx context.Context, config Config) (*handler, error) {
	config.TTL = h.contentTTL.String()
	set, _, err := config.settings()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", h.name, err)
	}
	b := &handler{settings: *set, next: h.next, name: h.name, inForce: h.inForce, log: h.log, backendContext: h.backendContext, announces: h.announces}
	b.openResources(ctx)
	return b, nil
}

// sameContext is handler.backendContext without detach.
func sameContext(ctx context.Context) context.Context { return ctx }

// insideMark is what Response points to in a request that a handler above has taken. Servers leave that field alone, and
// copies of a request carry it along.
var insideMark = &http.Response{}

// ServeHTTP passes a request on untouched if the plugin has nothing to do with it.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	switch { // strings.HasPrefix would cost a native call
	case path > h.statsEnd:
	case path < h.statsPath:
	case serveStats(h, w, r):
		return
	}
	switch {
	case r.Header[h.header] == nil:
	case protects(h, r):
		serve(h, w, r)
		return
	}
	h.next.ServeHTTP(w, r)
}

// searching is a handler that also looks at protected requests without the header of the key, because a key is required, or may
// be elsewhere.
type searching struct{ h *handler }

// ServeHTTP implements http.Handler.
func (s *searching) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := s.h
	switch {
	case r.Header[h.header] != nil:
		h.ServeHTTP(w, r)
	case serveStats(h, w, r):
	case protects(h, r):
		serveSlow(h, w, r)
	default:
		h.next.ServeHTTP(w, r)
	}
}

// protects reports whether the configuration names r.
func protects(h *handler, r *http.Request) bool {
	paths := h.protected[r.Method]
	if paths == everyPath {
		return true
	}
	if paths == nil {
		paths = otherMethods(h, r)
	}
	return paths.MatchString(r.URL.Path)
}

// otherMethods returns the paths that are protected for a method that no rule names. TRACE is never protected: it may have no body,
// and so nothing can keep a transport from sending it twice (see hideEmptyBody).
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

// serve is the way of a protected request with a key. For an ordinary one, with a short body and nothing unusual about it, the run
// is made here; it is the same that newRun would make.
func serve(h *handler, w http.ResponseWriter, r *http.Request) {
	header := r.Header
	keys := header[h.header]
	types := header["Content-Type"]
	size := r.ContentLength
	switch { // Yaegi takes less for a switch than for ||
	case r.Response == insideMark:
	case len(keys) != 1:
	case !h.ordinaryLengths[len(keys[0])]:
	case strings.Trim(keys[0], keyCharacters) != "":
	case len(types) != 1:
	case !ordinaryTypes[types[0]]:
	case size <= 0:
	case header["Connection"] != nil:
	case header["Expect"] != nil:
	case r.ProtoMajor > 2:
	case size > h.smallRequest:
		serveLarge(h, w, r, keys[0])
		return
	default:
		body := make([]byte, size)
		_, err := io.ReadFull(r.Body, body)
		if err != nil { // the client broke off, or a retry above sends again what was read before
			break
		}
		target := r.URL
		identity := fmt.Sprintf(h.identityFormat, r.Method, target.Path, target.RawPath, keys[0], strings.ToLower(r.Host), header[h.scopeFirst], header["X-Forwarded-Prefix"], header["X-Replaced-Path"])
		sum := sha256.Sum256(fmt.Appendf(nil, sameFormat, identity, target.RawQuery, types, header["If-Match"], header["If-None-Match"], header["If-Modified-Since"], header["If-Unmodified-Since"], header["If-Range"], header["Range"], body))
		taken := bytes.NewReader(body)
		l := &store.Run{Lease: &store.Lease{Key: identity, Fingerprint: string(sum[:])}, Client: r.Context(), Taken: taken, Body: io.NopCloser(taken)}
		held := store.ClaimKey(h.keys, l)
		if held == nil {
			run(h, w, r, l)
			return
		}
		proceed(h, w, r, l, held)
		return
	}
	serveSlow(h, w, r)
}

// serveLarge is serve for a request that is ordinary but for the length of its body.
func serveLarge(h *handler, w http.ResponseWriter, r *http.Request, key string) {
	h.stats.Coming.Add(1) // its body may take long to arrive
	defer h.stats.Coming.Add(-1)
	reserved := &reservation{}
	defer unreserve(reserved)
	body := readReserved(r, h.maxRequestBody, reserved)
	if body == nil {
		serveSlow(h, w, r)
		return
	}
	identity := identityOf(h, r, key, "")
	taken := bytes.NewReader(body)
	l := &store.Run{Lease: &store.Lease{Key: identity, Fingerprint: fingerprint(h, r, identity, body)}, Client: r.Context(), Taken: taken, Body: io.NopCloser(taken)}
	proceed(h, w, r, l, store.ClaimKey(h.keys, l))
}

// serveSlow is the way of all other requests that are protected.
func serveSlow(h *handler, w http.ResponseWriter, r *http.Request) {
	if r.Response == insideMark || isPreflight(r) {
		h.next.ServeHTTP(w, r)
		return
	}
	converses := handsOver(r) || isGRPC(r)
	bodyIs := unread
	if converses { // nobody but the backend reads its body
		bodyIs = absent
	}
	k := findKey(h, r, nil, bodyIs)
	objection := keyRefusal(h, k, converses)
	switch {
	case objection != nil && h.observe:
		h.stats.Counts[objection.total].Add(1)
		h.next.ServeHTTP(w, r)
	case objection != nil:
		refuse(h, w, r, objection, "", nil)
	case k.state == absent || converses:
		h.next.ServeHTTP(w, r)
	case h.observe:
		observe(h, w, r, k)
	default:
		serveKey(h, w, r, k)
	}
}

// keyRefusal returns the refusal of a request whose key is missing or not valid; nil if there is none.
func keyRefusal(h *handler, k *keyed, converses bool) *refusal {
	switch {
	case k.state == absent && h.required && !h.observe:
		return missingKey
	case k.state == unusable && (h.required || !converses):
		return invalidKey
	}
	return nil
}

// serveKey claims the key of r, and does what the claim says. It looks for the key in the body first, if it has to.
func serveKey(h *handler, w http.ResponseWriter, r *http.Request, k *keyed) {
	if r.ContentLength < 0 || r.ContentLength > h.smallRequest { // it may take long to arrive
		coming := &h.stats.Coming
		coming.Add(1)
		defer coming.Add(-1)
	}
	reserved := &reservation{}
	defer unreserve(reserved)
	body, err := readBody(h, r, reserved)
	switch {
	case errors.Is(err, errBusy):
		h.log.printLimited(levelWarn, "requests under way hold too much memory; further large ones get 503", nil)
		refuse(h, w, r, overloaded, identityBefore(h, r, k), nil)
		return
	case errors.Is(err, errGone): // an earlier try has read more than was kept: this try ends as that one did
		announce(h, w, r, "released", false, 0)
		w.WriteHeader(http.StatusBadGateway)
		_, _ = io.WriteString(w, http.StatusText(http.StatusBadGateway)) // a client that has gone needs no answer
		return
	case err != nil:
		refuse(h, w, r, incompleteBody, identityBefore(h, r, k), nil)
		return
	}
	if k.state == unread {
		k = findKey(h, r, body.compared, present)
		objection := keyRefusal(h, k, false)
		if objection != nil {
			refuse(h, w, r, objection, "", nil)
			return
		}
		if k.state == absent {
			passRead(h, w, r, body)
			return
		}
	}
	l := newRun(h, r, k, body.compared)
	if l == nil {
		refuse(h, w, r, missingCaller, "", nil)
		return
	}
	if k.from.content {
		h, _ = h.contentHandler.(*handler)
	}
	l.Body = body.onward
	l.Taken = body.taken
	if body.streamed != nil {
		l.Broken = &body.streamed.broken
	}
	r = recordable(r, l)
	held := store.ClaimKey(h.keys, l)
	if held == store.Undecided {
		held = claimShared(h, l)
	}
	if held == nil && !h.detach && l.Client.Err() != nil { // nobody waits for it, and the backend has not seen it
		release(h, l)
		return
	}
	proceed(h, w, r, l, held)
}

// passRead passes on a request that was read in search of a key, and has none. A retry above may send it again.
func passRead(h *handler, w http.ResponseWriter, r *http.Request, body *takenBody) {
	if body.taken == nil {
		h.next.ServeHTTP(w, r)
		return
	}
	passed := r.WithContext(r.Context()) // a copy: the middlewares above keep their body
	passedBody := &untouchedBody{ReadCloser: body.onward}
	passed.Body = passedBody
	h.next.ServeHTTP(w, passed)
	if !passedBody.touched.Load() {
		keepBody(r.Context(), r.Body, body.taken, false) // nothing was read
	}
}

// recordable returns r, or a copy of it that can be recorded and reaches the backend only once. It prepares l for that, too.
func recordable(r *http.Request, l *store.Run) *http.Request {
	if r.ProtoMajor > 2 { // a ReverseProxy shows that an answer broke off only if the context has a server of net/http
		l.Client = context.WithValue(l.Client, http.ServerContextKey, new(http.Server))
	}
	empty := r.ContentLength == 0 || (l.Taken != nil && l.Taken.Size() == 0) // chunks may have nothing in them
	if empty || r.Header["Expect"] != nil {                                  // its body does not tell whether it was sent
		l.Sought = &atomic.Int32{}
		l.Client = httptrace.WithClientTrace(l.Client, &httptrace.ClientTrace{GetConn: func(_ string) { l.Sought.Add(1) }})
	}
	if !empty && r.Header["Connection"] == nil {
		return r
	}
	r = r.Clone(r.Context())
	if r.Header["Connection"] != nil {
		dropOffer(r)
	}
	if empty {
		hideEmptyBody(r, l)
	}
	return r
}

// proceed does what the claim says. It is decide in fewer steps for the two usual verdicts.
func proceed(h *handler, w http.ResponseWriter, r *http.Request, l *store.Run, held *store.Held) {
	if held == store.Undecided {
		held = claimShared(h, l)
	}
	switch {
	case held == nil:
		run(h, w, r, l)
		return
	case held.State != store.Done:
	case held.Fingerprint != l.Fingerprint:
	case held.Degraded:
	default:
		replay(h, w, r, held)
		return
	}
	decide(h, w, r, l, held)
}

// decide is the verdict on a claim that was not granted. held is what holds the key, or has the error of the store.
func decide(h *handler, w http.ResponseWriter, r *http.Request, l *store.Run, held *store.Held) {
	if servesRun(r, held) {
		r = r.WithContext(r.Context())
		r.Body = l.Body
		h.next.ServeHTTP(w, r)
		return
	}
	if held.Err != nil {
		held = claimDegraded(h, l, held.Err)
	}
	if held != nil && held.State == store.Running && h.wait {
		h.stats.Coming.Add(1)
		defer h.stats.Coming.Add(-1)
		held = awaitHolder(h, l, held)
	}
	countDegraded(h, l, held)
	switch {
	case held == nil:
		run(h, w, r, l)
	case held.Err != nil:
		serveUnclaimed(h, w, r, l)
	case mismatch(h, l, held):
		refuse(h, w, r, keyReused, l.Key, held)
	case held.State == store.Done:
		replay(h, w, r, held)
	default:
		refuse(h, w, r, refusalByState[held.State], l.Key, held)
	}
}

// countDegraded counts a request on which memory has decided because Redis could not be asked.
func countDegraded(h *handler, l *store.Run, held *store.Held) {
	if l.Degraded || (held != nil && held.Degraded) {
		h.stats.Counts[stats.Degraded].Add(1)
	}
}

// mismatch reports whether l is to be refused because another request has its key.
func mismatch(h *handler, l *store.Run, held *store.Held) bool {
	return h.rejectMismatch && held.Fingerprint != l.Fingerprint
}

// runHeader tells the next hop the owner tokens of the runs that a request belongs to. If that is a Traefik on the same Redis and
// prefix, or this one again, it finds the key held by the very run that it serves, and lets the request through. A client that has
// seen no token cannot guess one, and a token means nothing once its run has ended.
const runHeader = "X-Idem-Run"

// servesRun reports whether r is on its way for the run that holds the key.
func servesRun(r *http.Request, held *store.Held) bool {
	for _, token := range r.Header[runHeader] {
		if held.State == store.Running && hmac.Equal([]byte(token), []byte(held.Owner)) {
			return true
		}
	}
	return false
}

// serveUnclaimed serves a request whose key could not be claimed, as onStoreError says.
func serveUnclaimed(h *handler, w http.ResponseWriter, r *http.Request, l *store.Run) {
	if l.Doubtful {
		giveBack(h, l)
	}
	if h.onStoreError == "reject" {
		refuse(h, w, r, storeUnavailable, l.Key, &store.Held{Degraded: true})
		return
	}
	h.stats.Counts[stats.Passed].Add(1)
	announce(h, w, r, "first", true, 0)
	r = r.Clone(r.Context())
	r.Response = insideMark
	r.Body = l.Body
	h.next.ServeHTTP(w, r)
}
