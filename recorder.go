package idem

import (
	"context"
	"expvar"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/example/traefik-idem/store"
)

// outcome is how a run ended.
type outcome int

const (
	answered   outcome = iota // the backend's own answer arrived whole
	askedAgain                // its status asks the client to come again
	neverSent                 // the backend never saw the request
	unknown                   // it was sent, and no whole answer came back
	tooLarge                  // it was answered, longer than maxResponseBodyBytes
)

// execution is one call of the backend under a lease. It is the ResponseWriter of that call: it streams to the client and
// keeps a bounded copy.
//
// Under Yaegi the reverse proxy sees only the three methods of http.ResponseWriter, so nobody above can flush. The
// execution flushes the writer below, which is Traefik's own, after each Write of an answer without a length: such
// answers are streams or might be.
type execution struct {
	http.ResponseWriter // the client's

	h     *handler
	lease *store.Lease
	rest  *streamedBody // what of the request body is still to come, or nil
	head  bool          // the request's method is HEAD

	client context.Context
	cancel context.CancelFunc // of the upstream call, with detach
	missed time.Time          // when care first saw that the client has gone

	// What Traefik's transport reported, from its own goroutines. A locked one has happened; see run.
	sought          expvar.String // a connection to a backend was asked for
	wrote, answered sync.RWMutex  // a request header was written; a byte of an answer has come

	before   http.Header // what the middlewares above had set before the run, nil if nothing
	header   http.Header // the answer's
	status   int         // 0 until the header is written
	outcome  outcome
	body     []byte // kept copy
	length   int    // of the body so far
	declared int    // Content-Length, or -1
	stream   bool   // flush after each Write
	gone     bool   // the client does not take any more
	returned bool   // the backend did not panic
	kept     bool   // the answer was whole, and is kept
}

// WriteHeader implements http.ResponseWriter. What it knows then decides what happens to the key, except for answers
// that turn out too long or break off.
func (x *execution) WriteHeader(status int) {
	if status < 200 || x.status != 0 {
		writeInformation(x, status)
		return
	}
	x.status = status
	x.header = x.ResponseWriter.Header().Clone()
	declare(x, x.header["Content-Length"])
	if status >= 499 || x.h.retryable[status] {
		x.outcome = judge(x)
	}
	if x.h.statusHeader != "" {
		decide(x.h, x.ResponseWriter, decisions[x.outcome], x.lease.Degraded)
	}
	x.ResponseWriter.WriteHeader(status)
	if x.stream {
		x.flush()
	}
}

// writeInformation passes on an informational answer, which is not the final one. The client has been told to continue
// when its body was read. It ignores a second final answer.
func writeInformation(x *execution, status int) {
	if x.status == 0 && status != http.StatusContinue {
		x.ResponseWriter.WriteHeader(status)
	}
}

// declare notes how long the answer says it is.
func declare(x *execution, length []string) {
	if len(length) != 1 || x.head {
		declareNothing(x, len(length) == 0)
		return
	}
	n, err := strconv.Atoi(length[0])
	if err != nil || n <= 0 || int64(n) > x.h.maxResponseBody {
		declareOdd(x, n, err)
		return
	}
	x.declared = n
	x.body = make([]byte, 0, n)
}

// declareNothing is for an answer that does not tell its length, and streams if that is because nobody knows it.
func declareNothing(x *execution, missing bool) {
	x.stream = missing && !bodiless(x)
}

// declareOdd is for lengths that need no room: none, too large ones, and what is no number.
func declareOdd(x *execution, n int, err error) {
	if err == nil && n >= 0 {
		x.declared = n
	}
	if int64(x.declared) > x.h.maxResponseBody {
		x.outcome = tooLarge
	}
}

// decisions are the values of the status header, by outcome.
var decisions = []string{"first", "released", "released", "unknown", "unkept"}

// Write implements http.ResponseWriter. With detach it takes everything, also when the client has gone, so that the
// answer is recorded whole.
func (x *execution) Write(p []byte) (int, error) {
	x.length += len(p)
	if len(p) != x.declared || x.length != x.declared || x.outcome != answered {
		return writeMore(x, p)
	}
	x.body = append(x.body, p...) // the whole answer in one piece
	if x.header["Content-Type"] == nil {
		noteType(x, p)
	}
	keepAnswer(x) // nobody has the whole answer before it is kept
	n, err := x.ResponseWriter.Write(p)
	if err != nil && x.h.detach {
		x.gone = true
		return len(p), nil
	}
	return n, err
}

// writeMore is Write for any other piece of an answer; x.length is behind it.
func writeMore(x *execution, p []byte) (int, error) {
	if x.status == 0 {
		x.WriteHeader(http.StatusOK)
	}
	if x.length == len(p) && x.header["Content-Type"] == nil {
		noteType(x, p)
	}
	if x.outcome == answered && int64(x.length) > x.h.maxResponseBody {
		x.outcome = tooLarge
		x.body = nil
	}
	if x.outcome == answered {
		x.body = append(x.body, p...)
	}
	if x.length == x.declared && x.outcome == answered && !x.kept {
		keepAnswer(x)
	}
	if x.gone {
		return len(p), nil
	}
	n, err := x.ResponseWriter.Write(p)
	switch {
	case err != nil && x.h.detach:
		x.gone = true
		return len(p), nil
	case err == nil && x.stream:
		x.flush()
	}
	return n, err
}

// Unwrap lets http.ResponseController reach the writer below, where the execution is compiled.
func (x *execution) Unwrap() http.ResponseWriter {
	return x.ResponseWriter
}

func (x *execution) flush() {
	_ = http.NewResponseController(x.ResponseWriter).Flush() // a writer that cannot flush is not a stream
}

// noteType keeps the type that net/http is going to guess from the first bytes of an answer without one. It does not
// guess for a stream, whose header is flushed before, nor where the header is there without a value, as in Traefik 3.
func noteType(x *execution, p []byte) {
	_, typed := x.header["Content-Type"]
	if !typed && !x.stream && len(p) > 0 && x.header["Content-Encoding"] == nil {
		x.header["Content-Type"] = []string{http.DetectContentType(p)}
	}
}

// judge tells from the status and the trace what kind of answer this is. Traefik answers for a backend that it could not
// reach or that broke off with 500, 502, 504 or 499 (the client has gone), and without any header.
func judge(x *execution) outcome {
	sought, wrote, got := x.sought.Value() != "", happened(&x.wrote), happened(&x.answered)
	gateway := x.status == http.StatusBadGateway || x.status == http.StatusServiceUnavailable || x.status == http.StatusGatewayTimeout
	own := bare(x) && x.status != http.StatusServiceUnavailable
	failure := gateway || x.status == http.StatusInternalServerError || x.status == statusClientClosed
	switch {
	case failure && sought && !wrote && (gateway || own):
		return neverSent
	case failure && wrote && (!got || own):
		return unknown
	case x.h.retryable[x.status]:
		return askedAgain
	case (gateway && !sought) || x.status == statusClientClosed:
		return unknown
	}
	return x.outcome
}

// happened tells whether the hook that locks m was called.
func happened(m *sync.RWMutex) bool {
	if m.TryLock() {
		m.Unlock()
		return false
	}
	return true
}

// bare tells whether the answer has none of the headers that come with a backend's answer. Middlewares below may have
// added others to one of Traefik's own.
func bare(x *execution) bool {
	return x.header["Date"] == nil && x.header["Content-Length"] == nil && x.header["Content-Type"] == nil
}

// statusClientClosed is what Traefik answers when a request was cancelled.
const statusClientClosed = 499

// bodiless tells whether an answer of this status has no body, whatever its Content-Length says (RFC 9110, section 6.4.1).
func bodiless(x *execution) bool {
	return x.head || x.status == http.StatusNoContent || x.status == http.StatusNotModified
}

// hopByHop headers belong to one connection and are not replayed (RFC 9110, section 7.6.1).
var hopByHop = []string{"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

// strip takes out of the answer's header what a replay does not have: hop-by-hop headers, omitHeaders, and what the
// middlewares above had set before, which they set again. It returns what is left in bytes.
func strip(x *execution) int {
	if x.before != nil || x.header["Connection"] != nil {
		stripMore(x)
	}
	size := 0
	for name, values := range x.header {
		if x.h.omit[name] {
			delete(x.header, name)
		} else if len(values) == 1 {
			size += store.HeaderBytes + len(name) + len(values[0])
		} else {
			size += manyBytes(name, values)
		}
	}
	return size
}

// manyBytes is what a header with many values, or none, takes.
func manyBytes(name string, values []string) int {
	size := store.HeaderBytes
	for _, value := range values {
		size += store.HeaderBytes + len(name) + len(value)
	}
	return size
}

func stripMore(x *execution) {
	for name, values := range x.before {
		if reflect.DeepEqual(x.header[name], values) {
			delete(x.header, name)
		}
	}
	for _, name := range strings.Split(x.header.Get("Connection"), ",") {
		x.header.Del(strings.TrimSpace(name))
	}
}
