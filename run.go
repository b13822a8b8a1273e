package idem

import (
	"context"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"time"

	"github.com/example/traefik-idem/store"
)

// run is one call of the backend under a lease.
//
// What ends it is a method, not a function literal: Yaegi holds a lock while it runs deferred functions, on which a
// literal of the same function would wait for ever.
type run struct {
	h        *handler
	lease    *store.Lease
	rec      *recorder
	rest     *streamedBody // what of the request body is still to come, or nil
	keeper   *keeper
	detached *detached // nil without detach
	returned bool      // the backend did not panic
}

// run calls the backend under lease and settles the key by the outcome, also when the call panics. Panics pass
// through: Traefik's own proxy breaks off an answer with one.
func (h *handler) run(w http.ResponseWriter, r *http.Request, lease *store.Lease, rest *streamedBody) {
	rec := &recorder{h: h, w: w, trace: &trace{}, head: r.Method == http.MethodHead, degraded: lease.Degraded, before: w.Header().Clone()}
	x := &run{h: h, lease: lease, rec: rec, rest: rest}
	ctx := httptrace.WithClientTrace(r.Context(), rec.trace.hooks())
	if h.set.detach {
		x.detached = detach(ctx, h.set.detachTimeout)
		ctx = x.detached.ctx
	}
	x.keeper = h.keep(lease)
	defer x.end()
	h.next.ServeHTTP(rec, h.inside(ctx, r))
	if rec.status == 0 { // net/http would answer so
		rec.WriteHeader(http.StatusOK)
	}
	x.returned = true
}

// end frees what the run held and settles the key.
func (x *run) end() {
	x.keeper.stop()
	if x.detached != nil {
		x.detached.end()
	}
	result := x.rec.outcome
	if !x.returned || !x.rec.whole() {
		result = unknown
	}
	if result == unknown && x.rest != nil && x.rest.broken.Load() {
		result = neverSent // the client broke off: the backend never saw the request whole
	}
	x.h.settle(x.lease, x.rec, result)
}

// settle does with the key what the outcome asks for. The lease is fenced: if it is lost, nothing changes.
func (h *handler) settle(lease *store.Lease, rec *recorder, result outcome) {
	record := store.Record{State: store.Unknown, Fingerprint: lease.Fingerprint}
	release := result == askedAgain || result == neverSent || (result == unknown && !h.set.holdUnknown)
	switch result {
	case answered:
		record.State = store.Done
		body, header := rec.answer()
		record.Answer = &store.Answer{Status: rec.status, Header: header, Body: body}
	case tooLarge:
		record.State = store.Unkept
		record.Answer = &store.Answer{Status: rec.status}
	}
	var kept bool
	var err error
	if release {
		kept, err = h.store.Release(lease)
	} else {
		kept, err = h.store.Finish(lease, record, h.set.ttl)
	}
	if err != nil {
		h.storeFailed("the end of a request could not be stored", err)
	} else if !kept {
		h.log.seldom(levelWarn, "a lease was lost before its request ended; raise lease if Redis was reachable", nil)
	}
}

// hooks returns what Traefik's transport is to call.
func (t *trace) hooks() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		GetConn: func(_ string) {
			t.sought.Store(true)
			t.answered.Store(false)
		},
		WroteHeaders:         func() { t.wrote.Store(true) },
		GotFirstResponseByte: func() { t.answered.Store(true) },
	}
}

// keeper renews a lease until it is stopped or the lease is lost.
type keeper struct {
	h     *handler
	lease *store.Lease

	mu      sync.Mutex // guards timer and stopped
	timer   *time.Timer
	stopped bool
}

func (h *handler) keep(lease *store.Lease) *keeper {
	k := &keeper{h: h, lease: lease}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.timer = time.AfterFunc(h.set.lease/3, k.renew)
	return k
}

// renew makes the lease last and comes again. A renewal that overtakes the end of the run does no harm: it is fenced.
func (k *keeper) renew() {
	defer recovered("renewing a lease")
	kept, err := k.h.store.Renew(k.lease, k.h.set.lease)
	if err != nil {
		k.h.storeFailed("a lease could not be renewed", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.stopped && (kept || err != nil) {
		k.timer.Reset(k.h.set.lease / 3)
	}
}

func (k *keeper) stop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stopped = true
	k.timer.Stop()
}

// detached is a context that does not end with the client's, but at the latest grace after it.
type detached struct {
	ctx    context.Context
	cancel context.CancelFunc
	grace  time.Duration
	stop   func() bool // ends the watch on the client

	mu    sync.Mutex // guards timer and ended
	timer *time.Timer
	ended bool
}

func detach(client context.Context, grace time.Duration) *detached {
	d := &detached{grace: grace}
	d.ctx, d.cancel = context.WithCancel(context.WithoutCancel(client))
	d.stop = context.AfterFunc(client, d.clientGone)
	return d
}

// clientGone begins the grace time.
func (d *detached) clientGone() {
	defer recovered("detaching a request")
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.ended {
		d.timer = time.AfterFunc(d.grace, d.cancel)
	}
}

// end frees the context and what watches the client.
func (d *detached) end() {
	d.stop()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ended = true
	if d.timer != nil {
		d.timer.Stop()
	}
	d.cancel()
}

// newEmptyBody returns a body that is empty and does not say so.
func newEmptyBody() io.ReadCloser {
	return io.NopCloser(strings.NewReader(""))
}
