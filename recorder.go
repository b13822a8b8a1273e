package idem

import (
	"bytes"
	"context"
	"expvar"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
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
	tooLarge                  // it was answered, with its header longer than maxResponseBodyBytes, or than there is room for (see mostInFlight), or unreadable
)

// execution is one call of the backend under a lease. It is the ResponseWriter of that call: it streams to the client and
// keeps a bounded copy.
//
// Under Yaegi the reverse proxy sees only the three methods of http.ResponseWriter, so nobody above can flush. The
// execution flushes the writer below, which is Traefik's own, after each Write of an answer without a length: such
// answers are streams or might be.
type execution struct {
	http.ResponseWriter // the client's

	h       *handler
	lease   *store.Lease
	request *http.Request // as it came
	body    *takenBody
	head    bool // the request's method is HEAD

	client context.Context
	cancel context.CancelFunc // of the upstream call, with detach
	missed time.Time          // when care first saw that the client has gone

	renewal  atomic.Int32 // how the last renewal of the lease ended
	renewing atomic.Bool  // one is under way

	// What Traefik's transport reported, from its own goroutines. A locked one has happened; see run.
	sought          expvar.String // a connection to a backend was asked for
	soughtAgain     atomic.Bool   // and another one, for a request without a body; see seek
	wrote, answered sync.RWMutex  // a request header was written; a byte of an answer has come. Locked as often as it has

	header   http.Header // of ResponseWriter
	before   http.Header // what the middlewares above had set in it before the run, nil if nothing
	status   int         // 0 until the header is written
	outcome  outcome
	kept     bytes.Buffer    // the header of the answer as it is to be kept, in its wire format
	parts    strings.Builder // of the body so far, if it comes in more than one
	charge   charge          // for parts, and for kept with them
	length   int             // of the body so far
	declared int             // Content-Length, or -1
	whole    string          // the Content-Length of an ordinary answer, as long as it may come in one piece; else empty
	odd      bool            // its header is not an ordinary one, or is written
	stream   bool            // flush after each Write
	untyped  bool            // net/http is going to guess a Content-Type
	gone     bool            // the client does not take any more
	returned bool            // the backend did not panic
	settled  bool            // the key is
}

// WriteHeader implements http.ResponseWriter. What it knows then decides what happens to the key, except for answers
// that turn out too long or break off.
func (x *execution) WriteHeader(status int) {
	length := x.header["Content-Length"]
	switch { // Yaegi takes less for a switch than for ||
	case x.odd:
	case x.head:
	case !x.h.ordinary[status]:
	case len(length) != 1:
	case x.header["Content-Type"] == nil:
	case x.header["Connection"] != nil:
	default:
		x.odd = true
		x.status = status
		x.whole = length[0]
		_ = x.header.WriteSubset(&x.kept, x.h.omit) // a bytes.Buffer takes every write
		if x.h.statusHeader != "" {
			tell(x)
		}
		x.ResponseWriter.WriteHeader(status)
		return
	}
	writeOddHeader(x, status, length)
}

// writeOddHeader is WriteHeader for all but ordinary answers. An informational answer is not the final one; that the
// client may continue, it has been told when its body was read. A second final answer is ignored.
func writeOddHeader(x *execution, status int, length []string) {
	if status < 200 || x.status != 0 {
		if x.status == 0 && status != http.StatusContinue {
			x.ResponseWriter.WriteHeader(status)
		}
		return
	}
	x.odd = true
	x.status = status
	expect(x, x.header, length)
	switch {
	case x.h.judged[status]:
		judge(x, x.header)
	case status > 999: // HTTP has no such status, and no record has room for it
		x.outcome = unknown
	}
	if x.declared >= 0 && x.outcome == answered && !x.untyped {
		x.whole = length[0]
	}
	recordHeader(x, x.header)
	if x.h.statusHeader != "" {
		tell(x)
	}
	x.ResponseWriter.WriteHeader(status)
	if x.stream {
		flush(x)
	}
}

// tell writes the status header of a run.
func tell(x *execution) {
	if x.whole != "" { // it may be too long
		declare(x, x.whole)
	}
	header := x.kept.String()
	if x.outcome == answered && (len(header)+x.declared > x.h.maxResponseBody || strings.ContainsAny(header, unreadable)) {
		x.outcome = tooLarge
	}
	decide(x.h, x.ResponseWriter, decisions[x.outcome], x.lease.Degraded)
}

// expect tells from the header how the answer is going to come.
func expect(x *execution, header http.Header, length []string) {
	bodiless := x.head || bodiless(x.status)
	// It streams if nobody knows its length. A flush would make one of Traefik's own final for a retry middleware above,
	// which waits for another. fastProxy reports no connections.
	x.stream = len(length) == 0 && !bodiless && (!failure(x.status) || !bare(header)) &&
		(happened(&x.answered) || (x.sought.Value() == "" && header["Date"] != nil))
	// net/http does not guess where the header is there without a value, as in Traefik 3, nor for a stream, whose header
	// is flushed before.
	_, typed := header["Content-Type"]
	x.untyped = !typed && !x.stream && header["Content-Encoding"] == nil
	if len(length) == 1 && !bodiless {
		declare(x, length[0])
	}
}

// declare notes how long the answer says it is.
func declare(x *execution, length string) {
	n, err := strconv.Atoi(length)
	if err == nil && n >= 0 {
		x.declared = n
	}
	if n > x.h.maxResponseBody {
		x.outcome = tooLarge
	}
}

// noteParts notes that an ordinary answer comes in parts, or not at all.
func noteParts(x *execution) {
	if x.whole != "" {
		declare(x, x.whole)
		x.whole = ""
	}
}

// recordHeader keeps the header, but for what middlewares above have set, which they set again when it is replayed, and
// what Connection names, which belongs to this connection.
func recordHeader(x *execution, header http.Header) {
	omit := map[string]bool{}
	for name := range x.h.omit {
		omit[name] = true
	}
	for name, values := range x.before {
		if reflect.DeepEqual(header[name], values) {
			omit[name] = true
		}
	}
	for _, name := range strings.Split(strings.Join(header["Connection"], ","), ",") {
		omit[http.CanonicalHeaderKey(strings.TrimSpace(name))] = true
	}
	_ = header.WriteSubset(&x.kept, omit)
}

// decisions are the values of the status header, by outcome.
var decisions = []string{"first", "released", "released", "unknown", "unkept"}

// Write implements http.ResponseWriter. With detach it takes everything, also when the client has gone, so that the
// answer is recorded whole. Nobody has the whole of an answer with a length before it is kept.
func (x *execution) Write(p []byte) (int, error) {
	if strconv.Itoa(len(p)) != x.whole || len(p) > x.h.maxResponseBody {
		return writePart(x, p)
	}
	x.whole = ""
	keepAnswer(x, string(p))
	n, err := x.ResponseWriter.Write(p)
	if err != nil {
		return detached(x, len(p), n, err)
	}
	return n, nil
}

// detached is what Write returns for a Write of want bytes to a client that has gone: with detach, that it went well.
func detached(x *execution, want, n int, err error) (int, error) {
	if !x.h.detach {
		return n, err
	}
	x.gone = true
	return want, nil
}

// writePart is Write for a part of an answer, or for one that is not to be kept.
func writePart(x *execution, p []byte) (int, error) {
	if x.status == 0 {
		x.WriteHeader(http.StatusOK)
	}
	if x.untyped && len(p) > 0 { // net/http guesses by the first bytes
		x.kept.WriteString("Content-Type: " + http.DetectContentType(p) + "\r\n")
		x.untyped = false
	}
	noteParts(x)
	x.length += len(p)
	if x.outcome == answered && !x.settled {
		record(x, p)
	}
	if x.length == x.declared && x.outcome == answered && !x.settled {
		keepAnswer(x, x.parts.String())
	}
	if x.gone {
		return len(p), nil
	}
	n, err := x.ResponseWriter.Write(p)
	if err != nil {
		return detached(x, len(p), n, err)
	}
	if x.stream {
		flush(x)
	}
	return n, nil
}

// record keeps p behind what has come before, unless the answer is too long or there is no room for it now. For an answer
// that tells its length, room is made, and paid for, at the first part. So is the room that the header takes.
func record(x *execution, p []byte) {
	room, header := len(p), x.kept.Len()
	most := x.h.maxResponseBody - header
	if x.charge.bytes != 0 {
		header = 0
	}
	switch {
	case x.declared < 0:
	case x.charge.bytes == 0:
		room = x.declared
	default:
		room = 0
	}
	if x.length > most || !pay(&x.charge, room+header) {
		x.outcome = tooLarge
		x.parts.Reset()
		refund(&x.charge)
		return
	}
	x.parts.Grow(room)
	x.parts.Write(p)
}

// Unwrap lets http.ResponseController reach the writer below, where the execution is compiled.
func (x *execution) Unwrap() http.ResponseWriter {
	return x.ResponseWriter
}

func flush(x *execution) {
	_ = http.NewResponseController(x.ResponseWriter).Flush() // a writer that cannot flush is not a stream
}

// judge tells from the status and the trace what kind of answer this is, if it is not simply the backend's. Traefik
// answers for a backend that it could not reach or that broke off with 500, 502, 504 or 499 (the client has gone), and
// without any header. Its fast proxy reports nothing: then nobody knows what the backend saw.
//
// What a trace reports need not be about this request: a middleware below may have asked somebody else, errors for a page
// to show instead of Traefik's own answer, or forwardAuth whether the client may pass.
func judge(x *execution, header http.Header) {
	sought, wrote, got := x.sought.Value() != "", times(&x.wrote), times(&x.answered)
	gateway := x.status == http.StatusBadGateway || x.status == http.StatusServiceUnavailable || x.status == http.StatusGatewayTimeout
	failed := failure(x.status) || gateway
	own := bare(header) && x.status != http.StatusServiceUnavailable
	switch {
	case failed && sought && wrote == 0 && (gateway || own):
		x.outcome = neverSent
	case failed && wrote > 0 && unsent(x):
		x.outcome = neverSent
	case failed && wrote > 0 && (wrote > got || own):
		x.outcome = unknown
	case failed && wrote == 1 && x.soughtAgain.Load(): // the first connection failed, and the second may be for a page
		x.outcome = unknown
	case gateway && wrote > 1: // one that Traefik's own page stands for may have been sent
		x.outcome = unknown
	case failed && own && !sought && x.h.retryable[x.status]: // it may have been sent: its key must not be freed
		x.outcome = unknown
	case x.h.retryable[x.status]:
		x.outcome = askedAgain
	case (gateway && !sought) || x.status == statusClientClosed:
		x.outcome = unknown
	}
}

// failure tells whether Traefik answers with status for a backend.
func failure(status int) bool {
	switch status {
	case http.StatusInternalServerError, http.StatusBadGateway, http.StatusGatewayTimeout, statusClientClosed:
		return true
	}
	return false
}

// unsent tells whether nothing of the request's body was taken, so that no backend can have been sent the request whole. A
// client that expects to be asked for its body may have been refused by the backend itself.
func unsent(x *execution) bool {
	size := len(x.body.data)
	return size > 0 && x.body.unread.N == int64(size) && x.request.Header["Expect"] == nil
}

// seek notes that a connection is asked for, where it matters how often: there is no body whose sending could be seen.
func (x *execution) seek(hostPort string) {
	if x.sought.Value() != "" {
		x.soughtAgain.Store(true)
	}
	x.sought.Set(hostPort)
}

// times tells how often the hook that locks m was called. It is not locked any more afterwards.
func times(m *sync.RWMutex) int {
	n := 0
	for happened(m) {
		m.RUnlock()
		n++
	}
	return n
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
func bare(header http.Header) bool {
	return header["Date"] == nil && header["Content-Length"] == nil && header["Content-Type"] == nil
}

// statusClientClosed is what Traefik answers when a request was cancelled.
const statusClientClosed = 499

// bodiless tells whether an answer of this status has no body (RFC 9110, section 6.4.1).
func bodiless(status int) bool {
	return status == http.StatusNoContent || status == http.StatusNotModified
}

// hopByHop headers belong to one connection and are not replayed (RFC 9110, section 7.6.1).
var hopByHop = []string{"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}
