package idem

import (
	"fmt"
	"log"
	"net/http"
	"strings"
	"sync"

	"github.com/example/traefik-idem/stats"
	"github.com/example/traefik-idem/store"
)

// outcome is how a run ended.
type outcome int

const (
	answered   outcome = iota // the backend's own answer arrived whole
	askedAgain                // its status asks the client to come again
	neverSent                 // the backend never saw the request
	unknown                   // it was sent, and no whole answer came back
	tooLarge                  // its answer, header included, is longer than maxResponseBodyBytes or than there is room for (see mostInFlight), or its header cannot be read back
)

// decisions are the values of the status header, by outcome.
var decisions = []string{"first", "released", "released", "unknown", "unkept"}

// statusClientClosed is what Traefik answers when a request was cancelled.
const statusClientClosed = 499

// classify sets the outcome that status and trace show, unless the answer is simply the backend's. Traefik answers for a backend
// that it could not reach or that broke off with 500, 502, 504 or 499 (the client has gone), and without any header. Its fast proxy
// reports nothing: then nobody knows what the backend saw.
//
// Middlewares below may end in any way when the call is cancelled: rateLimit with a 500 of its own, and retry without an answer.
//
// What a trace reports need not be about this request: a middleware below may have called another service, errors for a page
// to show instead of Traefik's own answer, or forwardAuth whether the client may pass.
func classify(x *recorder) {
	if x.status > 999 { // HTTP has no such status, and no record has room for it
		x.outcome = unknown
	}
	cancelled := x.run.Gone.Load() || (!x.h.detach && x.run.Client.Err() != nil)
	cutShort := cancelled && x.header["Date"] == nil
	if cutShort || x.h.classified[x.status] {
		classifyByTrace(x, cutShort)
	}
}

// classifyByTrace is classify for an answer that may not be the backend's, or was cut short.
func classifyByTrace(x *recorder, cutShort bool) {
	status := x.status
	sought, wrote, got := x.sought.Value() != "", times(&x.wrote), times(&x.got)
	soughtAgain := x.run.Sought != nil && x.run.Sought.Load() > 1
	gateway := status == http.StatusBadGateway || status == http.StatusServiceUnavailable || status == http.StatusGatewayTimeout
	failed := gateway || status == http.StatusInternalServerError || status == statusClientClosed
	own := unadorned(x.header) && status != http.StatusServiceUnavailable
	switch {
	case failed && sought && wrote == 0 && (gateway || own):
		x.outcome = neverSent
	case failed && wrote > 0 && unsent(x):
		x.outcome = neverSent
	case failed && wrote > 0 && (wrote > got || own):
		x.outcome = unknown
	case failed && wrote == 1 && soughtAgain: // the first connection failed, and the second may be for a page
		x.outcome = unknown
	case gateway && wrote > 1: // the request that Traefik's own page answers may have been sent
		x.outcome = unknown
	case failed && own && !sought && x.h.retryable[status]: // it may have been sent: its key must not be freed
		x.outcome = unknown
	case x.h.retryable[status]:
		x.outcome = askedAgain
	case cutShort && ((sought && wrote == 0) || unsent(x)):
		x.outcome = neverSent
	case cutShort || (gateway && !sought) || status == statusClientClosed:
		x.outcome = unknown
	}
}

// flows reports whether the answer may be sent while it comes: it is a backend's, and no error. fastProxy reports no
// connections.
func flows(x *recorder) bool {
	if x.status >= http.StatusBadRequest {
		return false
	}
	return times(&x.got) > 0 || (x.sought.Value() == "" && x.header["Date"] != nil)
}

// unsent reports whether nothing of the request's body was taken, so that no backend can have been sent the request whole. A
// client that expects to be asked for its body may have been refused by the backend itself.
func unsent(x *recorder) bool {
	taken := x.run.Taken
	return taken != nil && taken.Size() > 0 && int64(taken.Len()) == taken.Size() && x.r.Header["Expect"] == nil
}

// times returns how often the hook that locks m was called. m is as it was afterwards.
func times(m *sync.RWMutex) int {
	n := 0
	for !m.TryLock() {
		m.RUnlock()
		n++
	}
	m.Unlock()
	for i := 0; i < n; i++ {
		m.RLock()
	}
	return n
}

// unadorned reports whether the answer has none of the headers that come with a backend's answer. Middlewares below may
// have added others to one of Traefik's own.
func unadorned(header http.Header) bool {
	return header["Date"] == nil && header["Content-Length"] == nil && header["Content-Type"] == nil
}

// conclude does with the key what the outcome of the run asks for.
func conclude(x *recorder) {
	defer concludeAnyhow(x)
	if x.returned && x.status == 0 { // net/http answers so
		x.WriteHeader(http.StatusOK)
	}
	x.outcome = finalOutcome(x)
	switch x.outcome {
	case answered:
		keepRecorded(x)
	case askedAgain:
		release(x.h, x.run)
	case neverSent:
		release(x.h, x.run)
		keepBody(x.run.Client, x.r.Body, x.run.Taken, x.run.Broken != nil)
	case tooLarge:
		keepStatus(x)
	default:
		concludeUnknown(x)
	}
}

// concludeAnyhow takes the outcome for unknown if concluding it ended with a panic. Nobody may renew such a lease for ever.
func concludeAnyhow(x *recorder) {
	if p := recover(); p != nil {
		log.Printf("level=error msg=\"concluding a request failed\" cause=%q", p)
		defer concludeHere(x)
		concludeUnknown(x)
	}
}

// concludeHere ends a run in memory alone if that panicked as well.
func concludeHere(x *recorder) {
	p := recover()
	if p != nil {
		endHere(x.h, x.run)
	}
}

// finalOutcome is the outcome of a run as its end shows it.
func finalOutcome(x *recorder) outcome {
	broken := x.run.Broken != nil && x.run.Broken.Load() // by the client: no backend can have got the request whole
	switch {
	case broken && x.stream == nil && x.header["Date"] == nil: // the answer, if there is one, is not the backend's
		return neverSent
	case x.returned && x.outcome != unknown && complete(x):
		return x.outcome
	case broken:
		return neverSent
	}
	return unknown
}

// complete reports whether the body is as long as the header says.
func complete(x *recorder) bool {
	return noBody(x) || x.declared < 0 || x.declared == x.taken
}

// noBody reports whether the answer has none, whatever its Content-Length.
func noBody(x *recorder) bool {
	return x.r.Method == http.MethodHead || bodiless(x.status)
}

// keepRecorded keeps the answer, unless that would be too much, or could not be read back.
func keepRecorded(x *recorder) {
	body := ""
	switch {
	case noBody(x):
	case x.stream != nil:
		body = x.stream.taken.String()
	default:
		body = x.body.String()
	}
	header := x.kept.String()
	if len(header)+len(body) > x.h.maxResponseBody || strings.ContainsAny(header, store.Unreadable) {
		x.outcome = tooLarge
		keepStatus(x)
		return
	}
	finish(x.h, x.run, store.DoneHead+x.run.Fingerprint+store.StatusLines[x.status]+header+"\r\n"+body)
}

// keepStatus keeps no more of an answer than that there was one.
func keepStatus(x *recorder) {
	sight(x.h, noteUnkept, x.run.Key, x.r.Host, store.Unkept)
	finish(x.h, x.run, fmt.Sprintf(store.UnkeptFormat, x.run.Fingerprint, x.status, x.run.Owner))
}

// concludeUnknown does with the key what onUnknown says, and says what has happened.
func concludeUnknown(x *recorder) {
	x.outcome = unknown
	stats.Count(x.h.counter, stats.UnknownOutcomes, x.r)
	x.h.log.printLimitedAbout(levelWarn, "nobody knows how a request ended: it was sent, and no whole answer came back; find out at the backend what it did", x.r, x.run.Key)
	if x.h.holdUnknown {
		sight(x.h, noteUnknown, x.run.Key, x.r.Host, store.Unknown)
		finish(x.h, x.run, unknownRecord(x.run))
	} else {
		release(x.h, x.run)
	}
}

// unknownRecord is the record of a run with unknown outcome.
func unknownRecord(l *store.Run) string {
	return fmt.Sprintf(store.UnknownFormat, l.Fingerprint, l.Owner)
}
