package idem

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"time"

	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/stats"
	"github.com/example/traefik-idem/store"
)

// run calls the backend under lease and settles the key by the outcome, also when the call panics. Panics pass
// through: Traefik's own proxy breaks off an answer with one.
func run(ctx context.Context, h *handler, w http.ResponseWriter, r *http.Request, lease *store.Lease, body *takenBody) {
	header := w.Header()
	x := &execution{ResponseWriter: w, h: h, lease: lease, request: r, body: body, client: ctx, header: header, declared: -1, head: r.Method == http.MethodHead}
	_, typed := header["Content-Type"]
	if len(header) != 1 || !typed { // Traefik sets it to nothing, so that net/http does not guess one
		noteHeader(x)
	}
	if h.detach {
		ctx, x.cancel = context.WithCancel(context.WithoutCancel(ctx))
	} else if ctx.Err() != nil {
		free(x) // nobody waits for it, and the backend has not seen it
		return
	}
	// The hooks are methods of the standard library's own types, which cost nothing; a function of the plugin would be
	// interpreted at each call.
	trace := &httptrace.ClientTrace{GetConn: x.sought.Set, WroteHeaders: x.wrote.RLock, GotFirstResponseByte: x.answered.RLock}
	if r.ContentLength == 0 {
		trace.GetConn = x.seek
	}
	ctx = httptrace.WithClientTrace(ctx, trace)
	h.runs.Store(lease.Owner, x)
	if !h.awake() {
		wakeCare(h.care)
	}
	defer end(x)
	r = r.Clone(context.WithValue(ctx, insideKey, true))
	r.Header[runHeader] = append(r.Header[runHeader], lease.Owner)
	if r.ContentLength == 0 {
		hideEmptyBody(r)
	}
	if r.Header["Connection"] != nil {
		dropOffer(r)
	}
	h.next.ServeHTTP(x, r)
	if x.status == 0 { // net/http would answer so
		x.WriteHeader(http.StatusOK)
	}
	x.returned = true
}

// noteHeader notes what middlewares above have set.
func noteHeader(x *execution) {
	if len(x.header) > 0 {
		x.before = x.header.Clone()
		x.odd = true
	}
}

// end frees what the run held and settles the key.
func end(x *execution) {
	if !x.settled { // else it was settled when the answer was whole
		settle(x)
	}
	x.h.runs.Delete(x.lease.Owner) // so long the lease was renewed
	if x.cancel != nil {
		x.cancel()
	}
	if x.charge.bytes != 0 {
		refund(&x.charge)
	}
}

// settle does with the key what the outcome asks for.
func settle(x *execution) {
	defer settleAnyhow(x)
	switch ended(x) {
	case answered:
		keepAnswer(x, x.parts.String())
	case askedAgain:
		free(x)
	case neverSent:
		free(x)
		keepBody(x.client, x.body)
	case tooLarge:
		keepStatus(x)
	default:
		holdOrFree(x)
	}
}

// settleAnyhow takes the outcome for unknown if settling it ended with a panic. Nobody may renew such a lease for ever.
func settleAnyhow(x *execution) {
	if p := recover(); p != nil {
		x.h.runs.Delete(x.lease.Owner)
		log.Printf("level=error msg=\"settling a request failed\" cause=%q", p)
		holdOrFree(x)
	}
}

// ended is the outcome of a run, as its end shows it.
func ended(x *execution) outcome {
	noteParts(x)
	complete := x.returned && (x.declared < 0 || x.declared == x.length)
	switch {
	case complete && x.outcome != unknown:
		return x.outcome
	case x.body.rest != nil && x.body.rest.broken.Load():
		return neverSent // the client broke off: the backend never saw the request whole
	}
	return unknown
}

// holdOrFree settles the key of a run that nobody knows the end of.
func holdOrFree(x *execution) {
	x.h.stats.Counts[stats.UnknownOutcomes].Add(1)
	x.h.log.seldomAbout(levelWarn, "nobody knows how a request ended: it was sent, and no whole answer came back; find out at the backend what it did", x.request)
	if x.h.holdUnknown {
		finish(x, fmt.Sprintf(store.UnknownFormat, x.lease.Fingerprint))
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

// keepAnswer keeps the answer with this body, if with its header it is not too long.
func keepAnswer(x *execution, body string) {
	header := x.kept.String()
	if len(header)+len(body) > x.h.maxResponseBody {
		keepStatus(x)
		return
	}
	if strings.ContainsAny(header, unreadable) {
		keepStatus(x)
		return
	}
	record := store.DoneHead + x.lease.Fingerprint + store.StatusLines[x.status] + header + "\r\n" + body
	if x.h.keys.redis != nil {
		finish(x, record)
		return
	}
	x.settled = true
	if !store.Finish(x.h.keys.memory, x.lease, record, x.h.ttl, true) {
		logEnd(x.h, nil)
	}
}

// unreadable are the characters that no header can be read back with, should a middleware below have set them.
const unreadable = "\x00\x01\x02\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x0f\x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f\x7f"

// keepStatus keeps no more of an answer than that there was one.
func keepStatus(x *execution) {
	finish(x, fmt.Sprintf(store.UnkeptFormat, x.lease.Fingerprint, x.status))
}

// finish keeps how the run ended. The lease is fenced: if it is lost, nothing changes.
func finish(x *execution, record string) {
	kept, err := finishKey(x.h.keys, x.lease, record, x.h.ttl)
	x.settled = true
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
	timer  *time.Timer // of the next look

	awake atomic.Bool // a look is to come. Who adds to runs reads it afterwards; who clears it reads runs afterwards

	// What follows look and again use without a lock, as they do execution.missed: the next look begins when one has ended.
	renewed time.Time // leases were last renewed then
	unhook  func()    // ends what has leases renewed when Redis is back; nil if nothing does
}

// States of execution.renewal.
const (
	notRenewed int32 = iota // yet
	renewedLast
	notRenewedLast
)

// newCare returns the care of h. Leases are renewed three times in their life. A renewal that failed is tried again, and a
// client's absence noticed, at the next look.
func newCare(h *handler) *care {
	c := &care{h: h, period: h.lease / 12}
	if c.period > time.Second/4 {
		c.period = time.Second / 4
	}
	if h.detach && h.detachTimeout/8 < c.period {
		c.period = h.detachTimeout / 8
	}
	// A timer made anew at each look would have, under Yaegi, the variables of the last look as its own, and so those of
	// all looks before.
	c.timer = time.AfterFunc(c.period, c.look)
	c.timer.Stop()
	return c
}

// wakeCare begins to look, unless another goroutine has done so.
func wakeCare(c *care) {
	if c.awake.CompareAndSwap(false, true) {
		c.renewed = time.Now()
		c.timer.Reset(c.period)
	}
}

// running returns the executions under way.
func running(c *care) []*execution {
	var all []*execution
	c.h.runs.Range(func(_, value interface{}) bool {
		x, _ := value.(*execution)
		all = append(all, x)
		return true
	})
	return all
}

// look does what is due.
func (c *care) look() {
	defer c.again()
	now := time.Now()
	due := now.Sub(c.renewed) >= c.h.lease/3
	if due {
		c.renewed = now
	}
	if c.unhook == nil && c.h.keys.redis != nil {
		c.unhook = redisclient.WhenBack(c.h.keys.redis, c.renewAll)
	}
	for _, x := range running(c) {
		if due || overdue(x) {
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
	if len(running(c)) == 0 {
		if c.unhook != nil {
			c.unhook()
			c.unhook = nil
		}
		c.awake.Store(false)
		if len(running(c)) > 0 { // one came in between, and may have seen it still awake
			wakeCare(c)
		}
		return
	}
	c.timer.Reset(c.period)
}

// overdue tells whether Redis may not have the lease of x, or not for long.
func overdue(x *execution) bool {
	state := x.renewal.Load()
	return state == notRenewedLast || (state == notRenewed && x.lease.Degraded)
}

// renewAll renews all leases as soon as Redis is back. It may have lost them.
func (c *care) renewAll() {
	for _, x := range running(c) {
		go renew(x)
	}
}

// renew makes the lease of x last, unless the last renewal still waits for its reply.
func renew(x *execution) {
	defer recovered("renewing a lease")
	if !x.renewing.CompareAndSwap(false, true) {
		return
	}
	defer x.renewing.Store(false)
	_, err := renewKey(x.h.keys, x.lease, x.h.lease)
	if err == nil {
		x.renewal.Store(renewedLast)
		return
	}
	known := x.renewal.Swap(notRenewedLast) == notRenewedLast
	if !known && (!x.lease.Degraded || !errors.Is(err, redisclient.ErrDown)) { // else it was said before
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
