package idem

import (
	"context"
	"log"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"sync"
	"time"

	"github.com/example/traefik-idem/store"
)

// run calls the backend under lease and settles the key by the outcome, also when the call panics. Panics pass
// through: Traefik's own proxy breaks off an answer with one.
func run(h *handler, w http.ResponseWriter, r *http.Request, lease *store.Lease, rest *streamedBody) {
	x := &execution{ResponseWriter: w, h: h, lease: lease, rest: rest, head: r.Method == http.MethodHead, client: r.Context(), declared: -1}
	header := w.Header()
	_, typed := header["Content-Type"] // Traefik sets it to nothing, so that net/http does not guess
	if len(header) > 1 || (len(header) == 1 && !typed) {
		x.before = header.Clone()
	}
	ctx := x.client
	if !h.detach && ctx.Err() != nil {
		free(x) // nobody waits for it, and the backend has not seen it
		return
	}
	if h.detach {
		ctx, x.cancel = context.WithCancel(context.WithoutCancel(ctx))
	}
	// The hooks are methods of the standard library's own types, which cost nothing; a function of the plugin would be
	// interpreted at each call.
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GetConn: x.sought.Set, WroteHeaders: x.wrote.RLock, GotFirstResponseByte: x.answered.RLock})
	begin(h.care, x)
	defer end(x)
	h.next.ServeHTTP(x, inside(ctx, r))
	if x.status == 0 { // net/http would answer so
		x.WriteHeader(http.StatusOK)
	}
	x.returned = true
}

// end frees what the run held and settles the key.
func end(x *execution) {
	if !x.kept { // else it was settled when the answer was whole
		settle(x)
	}
	done(x.h.care, x) // so long the lease was renewed
	if x.cancel != nil {
		x.cancel()
	}
}

// settle does with the key what the outcome asks for.
func settle(x *execution) {
	switch ended(x) {
	case answered:
		keepAnswer(x)
	case askedAgain, neverSent:
		free(x)
	case tooLarge:
		finish(x, &store.Record{State: store.Unkept, Fingerprint: x.lease.Fingerprint, Answer: &store.Answer{Status: x.status}})
	default:
		holdOrFree(x)
	}
}

// keepAnswer keeps an answer that arrived whole.
func keepAnswer(x *execution) {
	if x.declared < 0 && !bodiless(x) { // an answer whose length was not declared gets one
		x.header["Content-Length"] = []string{strconv.Itoa(x.length)}
	}
	size := strip(x)
	answer := &store.Answer{Status: x.status, Header: x.header, HeaderSize: size, Body: x.body}
	finish(x, &store.Record{State: store.Done, Fingerprint: x.lease.Fingerprint, Answer: answer})
	x.kept = true
}

// ended is the outcome of a run, as its end shows it.
func ended(x *execution) outcome {
	whole := x.returned && (x.declared < 0 || x.declared == x.length)
	switch {
	case whole && x.outcome != unknown:
		return x.outcome
	case x.rest != nil && x.rest.broken.Load():
		return neverSent // the client broke off: the backend never saw the request whole
	}
	return unknown
}

// holdOrFree settles the key of a run that nobody knows the end of.
func holdOrFree(x *execution) {
	if x.h.holdUnknown {
		finish(x, &store.Record{State: store.Unknown, Fingerprint: x.lease.Fingerprint})
	} else {
		free(x)
	}
}

// free makes the key free.
func free(x *execution) {
	kept, err := releaseKey(x.h.keys, x.lease)
	if err != nil || !kept {
		logEnd(x.h, err)
	}
}

// finish keeps how the run ended. The lease is fenced: if it is lost, nothing changes.
func finish(x *execution, rec *store.Record) {
	kept, err := finishKey(x.h.keys, x.lease, rec, x.h.ttl)
	if err != nil || !kept {
		logEnd(x.h, err)
	}
}

func logEnd(h *handler, err error) {
	if err != nil {
		storeFailed(h, "the end of a request could not be stored", err)
	} else {
		h.log.seldom(levelWarn, "a lease was lost before its request ended; raise lease if Redis was reachable", nil)
	}
}

// care looks after the requests that run: it renews their leases, and cancels those whose client has been gone for
// longer than detachTimeout. One timer serves all requests of a handler, since most end long before either is due.
type care struct {
	h      *handler
	period time.Duration

	mu    sync.Mutex // guards runs and timer
	runs  map[*execution]bool
	timer *time.Timer // nil while nothing runs

	// renewed is when leases were last renewed. look uses it without the lock, as it does execution.missed: the next look
	// begins when one has ended.
	renewed time.Time
}

// newCare returns the care of h. Leases are renewed three times in their life. A client's absence is noticed within an
// eighth of detachTimeout, at most a quarter of a second.
func newCare(h *handler) *care {
	c := &care{h: h, period: h.lease / 3, runs: map[*execution]bool{}}
	if h.detach {
		for _, period := range []time.Duration{h.detachTimeout / 8, time.Second / 4} {
			if period < c.period {
				c.period = period
			}
		}
	}
	return c
}

// begin takes x into care.
func begin(c *care, x *execution) {
	c.mu.Lock()
	c.runs[x] = true
	if c.timer == nil {
		startCare(c)
	}
	c.mu.Unlock()
}

// done takes x out of care.
func done(c *care, x *execution) {
	c.mu.Lock()
	delete(c.runs, x)
	c.mu.Unlock()
}

func startCare(c *care) {
	c.renewed = time.Now()
	c.timer = time.AfterFunc(c.period, c.look)
}

// look does what is due.
func (c *care) look() {
	defer c.again()
	c.mu.Lock()
	runs := make([]*execution, 0, len(c.runs))
	for x := range c.runs {
		runs = append(runs, x)
	}
	c.mu.Unlock()
	now := time.Now()
	due := now.Sub(c.renewed) >= c.h.lease/3
	if due {
		c.renewed = now
	}
	for _, x := range runs {
		if due {
			go renew(x)
		}
		if x.cancel != nil {
			watchClient(x, now)
		}
	}
}

// again has care look once more while anything runs, whatever became of the last look.
func (c *care) again() {
	if p := recover(); p != nil {
		log.Printf("level=error msg=\"looking after running requests failed\" cause=%q", p)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.runs) > 0 {
		c.timer.Reset(c.period)
	} else {
		c.timer = nil
	}
}

// renew makes the lease of x last. A renewal that overtakes the end of the run does no harm: it is fenced.
func renew(x *execution) {
	defer recovered("renewing a lease")
	_, err := renewKey(x.h.keys, x.lease, x.h.lease)
	if err != nil {
		storeFailed(x.h, "a lease could not be renewed", err)
	}
}

// watchClient cancels the upstream call when its client has been gone for detachTimeout.
func watchClient(x *execution, now time.Time) {
	switch {
	case x.client.Err() == nil:
	case x.missed.IsZero():
		x.missed = now
	case now.Sub(x.missed) >= x.h.detachTimeout:
		x.cancel()
	}
}
