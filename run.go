package idem

import (
	"context"
	"net/http"
	"net/http/httptrace"
	"strconv"

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
	r = r.Clone(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GetConn: x.sought.Set, WroteHeaders: x.wrote.RLock, GotFirstResponseByte: x.answered.RLock}))
	r.Response = insideMark
	r.Body = l.Body
	r.Header.Add(runHeader, l.Owner)
	h.next.ServeHTTP(x, r)
	body := x.body.String()
	if strconv.Itoa(len(body)) != x.length { // not an ordinary answer, or not all of it: end sees to it
		x.returned = true
		return
	}
	record := store.DoneHead + l.Fingerprint + store.StatusLines[x.status] + x.kept.String() + "\r\n" + body
	if len(record) > h.longestRecord {
		x.returned = true
		return
	}
	if h.remote {
		keepShared(h, l, record)
	} else {
		store.KeepAnswer(h.keys, l.Lease, record)
	}
	x.done = true
	if h.announces {
		announceFirst(h, w, r, l)
	}
	w.WriteHeader(x.status)
	_, _ = x.body.WriteTo(w) // a client that has gone needs no answer
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

// endSlow is end for all but ordinary answers.
func endSlow(x *recorder) {
	if !x.concluded {
		conclude(x)
	}
	switch {
	case x.stream != nil:
		_ = drainStream(x)
	case x.whole || x.collected: // also if it broke off: the client is to see the break
		sendHeader(x)
		_, _ = x.body.WriteTo(x.ResponseWriter) // a client that has gone needs no answer
	}
	unreserve(&x.reservation)
}
