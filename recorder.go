package idem

import (
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"sync/atomic"
)

// trace is what Traefik's transport reported of a run. Its hooks are called from the transport's goroutines.
type trace struct {
	sought   atomic.Bool // a connection to a backend was asked for
	wrote    atomic.Bool // a request header was written, by any attempt
	answered atomic.Bool // the last attempt got a byte of an answer
}

// outcome is how a run ended.
type outcome int

const (
	answered   outcome = iota // the backend's own answer arrived whole
	askedAgain                // its status asks the client to come again
	neverSent                 // the backend never saw the request
	unknown                   // it was sent, and no whole answer came back
	tooLarge                  // it was answered, longer than maxResponseBodyBytes
)

// recorder is the ResponseWriter of a run: it streams to the client and keeps a bounded copy.
//
// Under Yaegi the reverse proxy sees only the three methods of http.ResponseWriter, so nobody above can flush. The
// recorder flushes the writer below, which is Traefik's own, after each Write of an answer without a length: such
// answers are streams or might be.
type recorder struct {
	h        *handler
	w        http.ResponseWriter // the client's
	trace    *trace
	head     bool        // the request's method is HEAD
	degraded bool        // of the lease
	before   http.Header // what the middlewares above had set before the run

	status   int // 0 until the header is written
	outcome  outcome
	header   http.Header // kept copy
	body     []byte      // kept copy
	length   int64       // of the body so far
	declared int64       // Content-Length, or -1
	stream   bool        // flush after each Write
	gone     bool        // the client does not take any more
}

// Header implements http.ResponseWriter.
func (rec *recorder) Header() http.Header {
	return rec.w.Header()
}

// WriteHeader implements http.ResponseWriter. What it knows then decides what happens to the key, except for answers
// that turn out too long or break off.
func (rec *recorder) WriteHeader(status int) {
	if rec.status != 0 {
		return
	}
	if status >= 100 && status < 200 && status != http.StatusSwitchingProtocols {
		// An informational answer, not the final one. The client has been told to continue when its body was read.
		if status != http.StatusContinue {
			rec.w.WriteHeader(status)
		}
		return
	}
	rec.status = status
	header := rec.Header()
	rec.header = rec.kept(header)
	rec.declared = -1
	length := header.Get("Content-Length")
	n, err := strconv.ParseInt(length, 10, 64)
	if err == nil && !rec.bodiless() {
		rec.declared = n
	}
	rec.outcome = rec.judge(len(rec.header) == 0)
	if rec.outcome == answered && rec.declared > rec.h.set.maxResponseBody {
		rec.outcome = tooLarge
	}
	if rec.outcome == answered && rec.declared > 0 {
		rec.body = make([]byte, 0, rec.declared)
	}
	rec.stream = length == "" && !rec.bodiless()
	rec.h.decide(rec.w, decisions[rec.outcome], rec.degraded)
	rec.w.WriteHeader(status)
	if rec.stream {
		rec.flush()
	}
}

// decisions are the values of the status header, by outcome.
var decisions = []string{"first", "released", "released", "unknown", "unkept"}

// Write implements http.ResponseWriter. With detach it takes everything, also when the client has gone, so that the
// answer is recorded whole.
func (rec *recorder) Write(p []byte) (int, error) {
	if rec.status == 0 {
		rec.WriteHeader(http.StatusOK)
	}
	if rec.length == 0 && rec.stream {
		rec.noteType(p)
	}
	rec.length += int64(len(p))
	switch {
	case rec.outcome == answered && rec.length > rec.h.set.maxResponseBody:
		rec.outcome = tooLarge
		rec.body = nil
	case rec.outcome == answered:
		rec.body = append(rec.body, p...)
	}
	if rec.gone {
		return len(p), nil
	}
	n, err := rec.w.Write(p)
	if err != nil && rec.h.set.detach {
		rec.gone = true
		return len(p), nil
	}
	if err == nil && rec.stream {
		rec.flush()
	}
	return n, err
}

// Unwrap lets http.ResponseController reach the writer below, where the recorder is compiled.
func (rec *recorder) Unwrap() http.ResponseWriter {
	return rec.w
}

func (rec *recorder) flush() {
	_ = http.NewResponseController(rec.w).Flush() // a writer that cannot flush is not a stream
}

// noteType keeps the type that net/http is going to guess from the first chunk, since a replay is one chunk.
func (rec *recorder) noteType(p []byte) {
	_, typed := rec.Header()["Content-Type"]
	if !typed && rec.Header().Get("Content-Encoding") == "" && len(p) > 0 {
		rec.header["Content-Type"] = []string{http.DetectContentType(p)}
	}
}

// judge tells from the status and the trace what kind of answer this is. bare: the answer has no header of its own.
// Traefik answers for a backend that it could not reach or that broke off with such statuses and without any header.
func (rec *recorder) judge(bare bool) outcome {
	sought, wrote, got := rec.trace.sought.Load(), rec.trace.wrote.Load(), rec.trace.answered.Load()
	gateway := rec.status == http.StatusBadGateway || rec.status == http.StatusServiceUnavailable || rec.status == http.StatusGatewayTimeout
	failure := gateway || rec.status == http.StatusInternalServerError || rec.status == statusClientClosed
	switch {
	case gateway && sought && !wrote:
		return neverSent
	case failure && wrote && (!got || bare):
		return unknown
	case rec.h.set.retryable[rec.status]:
		return askedAgain
	case gateway && !sought:
		return unknown
	}
	return answered
}

// statusClientClosed is what Traefik answers when a request was cancelled.
const statusClientClosed = 499

// bodiless tells whether an answer of this status has no body, whatever its Content-Length says (RFC 9110, section 6.4.1).
func (rec *recorder) bodiless() bool {
	return rec.head || rec.status == http.StatusNoContent || rec.status == http.StatusNotModified
}

// whole tells whether as much was written as was declared.
func (rec *recorder) whole() bool {
	return rec.status != 0 && (rec.declared < 0 || rec.declared == rec.length)
}

// answer is what is kept for duplicates. An answer whose length was not declared gets one.
func (rec *recorder) answer() ([]byte, http.Header) {
	if rec.length > 0 || !rec.bodiless() {
		rec.header["Content-Length"] = []string{strconv.FormatInt(rec.length, 10)}
	}
	return rec.body, rec.header
}

// hopByHop headers belong to one connection and are not replayed (RFC 9110, section 7.6.1).
var hopByHop = []string{"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

// kept copies the headers that a replay has: not those that the middlewares above had set before, which they set again.
func (rec *recorder) kept(header http.Header) http.Header {
	kept := header.Clone()
	for name, values := range rec.before {
		if reflect.DeepEqual(kept[name], values) {
			delete(kept, name)
		}
	}
	for _, name := range strings.Split(header.Get("Connection"), ",") {
		kept.Del(strings.TrimSpace(name))
	}
	for _, name := range hopByHop {
		delete(kept, name)
	}
	for name := range rec.h.set.omit {
		delete(kept, name)
	}
	return kept
}
