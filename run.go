package idem

import (
	"context"
	"io"
	"net/http"
	"net/http/httptrace"
	"text/template"

	"github.com/example/traefik-idem/store"
)

// run calls the backend under the lease and does with the key what the outcome asks for, also when the call panics. Panics
// pass through: Traefik's own proxy breaks off an answer with one.
func run(h *handler, w http.ResponseWriter, r *http.Request, l *store.Run) {
	ctx, cancel := context.WithCancel(h.backendContext(l.Client))
	x := &recorder{ResponseWriter: w, h: h, r: r, run: l, header: w.Header(), ordinaryStatuses: h.ordinaryStatuses}
	if len(x.header) > 0 {
		noteHeader(x)
	}
	l.Cancel.Store(cancel)
	defer end(x, cancel)
	r = r.Clone(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GetConn: x.sought.Set, WroteHeaders: x.wrote.RLock, GotFirstResponseByte: x.got.RLock}))
	r.Response = insideMark
	r.Body = l.Body
	r.Header.Add(runHeader, l.Owner)
	h.next.ServeHTTP(x, r)
	if x.length != arrived { // not an ordinary answer, or not all of it: end sees to it
		x.returned = true
		return
	}
	body := x.text
	record := store.DoneHead + l.Fingerprint + store.StatusLines[x.status] + x.kept.String() + "\r\n" + body
	switch {
	case len(record) > h.longestRecord:
		x.returned = true
		return
	case h.remote:
		keepShared(h, l, record)
	default:
		store.KeepAnswer(h.keys, l.Lease, record)
	}
	x.done = true
	if h.announces {
		announceFirst(h, w, r, l)
	}
	w.WriteHeader(x.status)
	_, _ = io.WriteString(w, body) // a client that has gone needs no answer
}

// announceFirst announces an answer that was kept.
func announceFirst(h *handler, w http.ResponseWriter, r *http.Request, l *store.Run) {
	announce(h, w, r, "first", l.Degraded, h.ttl)
}

// noteHeader notes what middlewares above have set.
func noteHeader(x *recorder) {
	_, typed := x.header["Content-Type"]
	if len(x.header) == 1 && typed && x.header["Content-Type"] == nil { // as Traefik sets it, so that net/http guesses none
		return
	}
	x.above = x.header.Clone()
	x.ordinaryStatuses = nil
}

// end frees what the run held, and does with the key what the outcome asks for if that is not done.
func end(x *recorder, cancel context.CancelFunc) {
	cancel()
	if !x.done {
		endSlow(x)
	}
}

// endSlow is end for all but ordinary answers. It defers one call, as do the functions that it calls: under Yaegi, a deferred call
// that panics keeps any other from being run.
func endSlow(x *recorder) {
	defer unreserve(&x.reservation)
	concludeAndSend(x)
}

// concludeAndSend concludes the run, and sends what the client has not got, also if concluding panics.
func concludeAndSend(x *recorder) {
	defer sendRest(x)
	if x.length != "" {
		collectOrdinary(x)
	}
	if !x.concluded {
		conclude(x)
	}
}

// sendRest sends what the client has not got yet, even of an answer that broke off, so that the client sees the break. It breaks the
// answer off if a client that is still there, or a middleware above, does not take all of it.
func sendRest(x *recorder) {
	failed := x.gone
	switch {
	case x.stream != nil:
		failed = drainStream(x) != nil
	case x.collected:
		failed = sendCollected(x) != nil
	}
	if failed && x.returned && x.run.Client.Err() == nil {
		breakOff()
	}
}

// breakOff panics with http.ErrAbortHandler, as Traefik's own proxy does, to break off an answer. A panic of interpreted code
// would reach Traefik as another value, which it logs as a crash; that of a native function passes as it is.
func breakOff() {
	template.Must(nil, http.ErrAbortHandler)
}
