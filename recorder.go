package idem

import (
	"bytes"
	"expvar"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/example/traefik-idem/store"
)

// recorder is the ResponseWriter of a run. At the header it takes one of three ways:
//
//   - collected: an answer with one Content-Length of at most wholeBytes is kept when it is whole, and only then sent. A client
//     that has one byte of it finds it kept. What must not be flushed, an error or what Traefik itself answers, is collected too,
//     whatever its length, as far as it can be kept.
//   - streamed: any other answer of the backend that is no error is sent while it comes, and recording runs ahead of a client
//     that reads slowly or not at all; see stream.
//   - passed: what is not kept goes straight to the client.
//
// Most answers are ordinary ones: no error of the server, and with one Content-Length of at most wholeBytes. They are collected in
// fewer steps.
//
// What Traefik itself answers, and an error of the backend, is not flushed: a retry or failover above may have taken its header
// away, and then the flush would begin a 200.
//
// Under Yaegi the reverse proxy sees only the three methods of http.ResponseWriter, so nobody below can flush.
type recorder struct {
	http.ResponseWriter // the client's, or lateHeader

	h      *handler
	r      *http.Request // as it came
	run    *store.Run
	header http.Header // the client's
	above  http.Header // what middlewares above had set before the run; nil if nothing

	// Set by the final header; declared and written of an ordinary answer only if it is not sent at once.
	status   int          // 0 until then
	declared int          // Content-Length of an answer that is not an ordinary one; -1 if there is none
	written  http.Header  // the header as it was then, if it is sent later, or the body while it comes
	kept     bytes.Buffer // the header as it is to be kept, in HTTP's wire format

	// Of an ordinary answer.
	length string // its Content-Length, then inParts or arrived; empty if the answer is any other
	text   string // its body, when all of it has come

	// Set by the header, and again when recording stops or the run ends.
	ordinaryStatuses map[int]bool // statuses of answers that may be ordinary ones; nil if none may
	outcome          outcome
	collected        bool    // the answer is sent when it is whole
	stream           *stream // the way that it goes; nil if it is not streamed
	flushes          bool    // after each part that is passed on

	// Set by each Write.
	body        strings.Builder // of a collected answer; of an ordinary one, the parts that have come
	taken       int             // bytes of any body but an ordinary one's
	room        int             // bytes of it that fit without makeRoom
	reservation reservation     // for these
	gone        bool            // the client takes no more

	returned  bool // the handler below has returned, without a panic
	concluded bool // the run was concluded when the last byte came
	done      bool // an ordinary answer was kept and sent

	// What Traefik's transport reports, from its own goroutines: a connection was asked for; a request header was written,
	// and a byte of an answer came, where these are locked. The hooks are methods of the standard library's own types; a
	// function of the plugin would be interpreted at each call.
	sought     expvar.String
	wrote, got sync.RWMutex
}

// wholeBytes is the longest answer that is sent when it is whole although it could be streamed. An answer whose length has at most
// ordinaryDigits digits is shorter; of those with one more, those up to longestWhole.
const (
	wholeBytes     = 64 << 10
	ordinaryDigits = 4
)

// longestWhole is wholeBytes as a Content-Length.
var longestWhole = strconv.Itoa(wholeBytes)

// Values of recorder.length once the body has begun to come.
const (
	inParts = "in parts"
	arrived = "arrived"
)

// WriteHeader implements http.ResponseWriter. Of an ordinary answer, as most are, it notes no more than status, length and
// header.
func (x *recorder) WriteHeader(status int) {
	header := x.header
	length := header["Content-Length"]
	switch { // Yaegi takes less for a switch than for ||
	case !x.ordinaryStatuses[status]:
	case len(length) != 1:
	case len(length[0]) > ordinaryDigits:
	case header["Content-Type"] == nil:
	case header["Trailer"] != nil: // what is set later must not be sent with the header
	default:
		x.ordinaryStatuses = nil // a second header is ignored: see writeHeaderSlow
		x.status = status
		x.length = length[0]
		_ = header.WriteSubset(&x.kept, x.h.omit) // a bytes.Buffer takes every write
		return
	}
	writeHeaderSlow(x, status)
}

// writeHeaderSlow is WriteHeader for all but ordinary answers. An informational answer is not the final one; that the client may
// continue was said when its body was read. A second final answer is ignored.
func writeHeaderSlow(x *recorder, status int) {
	if status < 200 || x.status != 0 {
		if x.status == 0 && status != http.StatusContinue {
			x.ResponseWriter.WriteHeader(status)
		}
		return
	}
	x.status = status
	if isOrdinary(x) {
		x.ordinaryStatuses = nil
		x.length = x.header["Content-Length"][0]
		recordHeader(x)
		return
	}
	_, typed := x.header["Content-Type"]
	if !typed {
		x.header["Content-Type"] = nil // net/http guesses none then, as in Traefik
	}
	x.declared = declaredLength(x)
	classify(x)
	recordHeader(x)
	if x.outcome == answered && x.declared > x.h.maxResponseBody-x.kept.Len() {
		x.outcome = tooLarge
	}
	switch {
	case x.outcome != answered:
		x.flushes = x.outcome == tooLarge && flows(x)
		sendHeader(x)
	case flows(x) && (x.declared < 0 || x.declared > wholeBytes):
		sendHeader(x)
		startStream(x)
	default:
		x.collected = true
		x.written = x.header.Clone()
	}
}

// isOrdinary reports whether the answer is an ordinary one that WriteHeader leaves to writeHeaderSlow, for the digits of its length.
func isOrdinary(x *recorder) bool {
	length := x.header["Content-Length"]
	if !x.ordinaryStatuses[x.status] || len(length) != 1 || x.header["Content-Type"] == nil || x.header["Trailer"] != nil {
		return false
	}
	return len(length[0]) == ordinaryDigits+1 && length[0] <= longestWhole
}

// sendHeader writes the header of the answer, with the decision that is known by now.
func sendHeader(x *recorder) {
	left := time.Duration(0)
	if x.outcome == answered {
		left = x.h.ttl
	}
	announce(x.h, x.ResponseWriter, x.r, decisions[x.outcome], x.run.Degraded, left)
	x.ResponseWriter.WriteHeader(x.status)
}

// sendCollected sends a collected answer with the header as it was when it was written. It returns why the client does not take
// it.
func sendCollected(x *recorder) error {
	since := changed(x.header, x.written)
	for name := range since {
		delete(x.header, name)
	}
	for name, values := range x.written {
		x.header[name] = values
	}
	sendHeader(x)
	err := writeInPieces(x.ResponseWriter, x.body.String())
	x.body.Reset()
	setTrailers(x.Header(), since) // a retry above has changed from its own header to the client's
	return err
}

// changed returns what the handler below has set in header since it was as before: trailers.
func changed(header, before http.Header) http.Header {
	since := http.Header{}
	for name, values := range header {
		if !reflect.DeepEqual(values, before[name]) {
			since[name] = values
		}
	}
	return since
}

// setTrailers sets the trailers of an answer whose header was sent with header.
func setTrailers(header, trailers http.Header) {
	for name, values := range trailers {
		header[name] = values
	}
}

// declaredLength returns the length of the body by its header; -1 if there is none.
func declaredLength(x *recorder) int {
	if x.r.Method == http.MethodHead || bodiless(x.status) {
		return 0
	}
	length := x.header["Content-Length"]
	if len(length) != 1 {
		return -1
	}
	n, err := strconv.Atoi(length[0])
	if err != nil || n < 0 {
		return -1
	}
	return n
}

// bodiless reports whether an answer of this status has no body (RFC 9110, section 6.4.1).
func bodiless(status int) bool {
	return status == http.StatusNoContent || status == http.StatusNotModified
}

// recordHeader keeps the header, but for what middlewares above have set, which they set again when it is replayed, and
// what Connection names, which belongs to this connection.
func recordHeader(x *recorder) {
	if x.above == nil && x.header["Connection"] == nil {
		_ = x.header.WriteSubset(&x.kept, x.h.omit)
		return
	}
	omit := map[string]bool{}
	for name := range x.h.omit {
		omit[name] = true
	}
	for name, values := range x.above {
		if reflect.DeepEqual(x.header[name], values) {
			omit[name] = true
		}
	}
	for _, name := range strings.Split(strings.Join(x.header["Connection"], ","), ",") {
		omit[http.CanonicalHeaderKey(strings.TrimSpace(name))] = true
	}
	_ = x.header.WriteSubset(&x.kept, omit)
}

// Write implements http.ResponseWriter. With detach it takes everything, also when the client has gone, so that the answer
// is recorded whole.
func (x *recorder) Write(p []byte) (int, error) {
	if strconv.Itoa(len(p)) == x.length {
		x.text = string(p)
		x.length = arrived
		return len(p), nil
	}
	if x.length != "" {
		return writeOrdinary(x, p)
	}
	return writePart(x, p)
}

// writePart is Write for all but ordinary answers.
func writePart(x *recorder, p []byte) (int, error) {
	switch {
	case x.status == 0:
		x.WriteHeader(http.StatusOK)
		return x.Write(p)
	case x.declared >= 0 && x.taken+len(p) > x.declared:
		return excess(x, p)
	}
	x.taken += len(p)
	if x.stream == nil && !x.collected {
		return pass(x, p)
	}
	if x.taken > x.room && !makeRoom(x, len(p)) {
		x.outcome = tooLarge
		stopRecording(x)
		return pass(x, p)
	}
	if x.collected {
		return x.body.Write(p)
	}
	last := x.taken == x.declared
	err := takePiece(x.stream, p, last)
	if last { // the client gets the last byte when the answer is kept
		keepRecorded(x)
		x.concluded = true
		x.stream.close()
	}
	if err != nil && !x.h.detach {
		return 0, err
	}
	return len(p), nil
}

// writeOrdinary is Write for an ordinary answer that comes in parts.
func writeOrdinary(x *recorder, p []byte) (int, error) {
	if x.length != inParts && x.length != arrived { // the first of them
		x.declared = declaredLength(x)
		x.length = inParts
		if x.declared > 0 {
			x.body.Grow(x.declared)
		}
	}
	total := len(x.text) + x.body.Len() + len(p)
	switch {
	case x.declared < 0: // what stands there is no number
		collectOrdinary(x)
		return writePart(x, p)
	case x.length == arrived:
		return excess(x, p)
	case total > x.declared:
		return excess(x, p)
	}
	x.body.Write(p)
	if total == x.declared {
		x.text = x.body.String()
		x.body.Reset()
		x.length = arrived
	}
	return len(p), nil
}

// excess returns what net/http returns for a part of a body that has no room in what the header says.
func excess(x *recorder, p []byte) (int, error) {
	switch {
	case len(p) == 0 || x.r.Method == http.MethodHead:
		return len(p), nil
	case bodiless(x.status):
		return 0, http.ErrBodyNotAllowed
	}
	return 0, http.ErrContentLength
}

// collectOrdinary makes an ordinary answer that was not sent a collected one.
func collectOrdinary(x *recorder) {
	x.body.WriteString(x.text)
	x.length = ""
	x.collected = true
	x.written = x.header
	x.declared = declaredLength(x)
	x.taken = x.body.Len()
}

// makeRoom reserves memory for n more bytes of the answer and its header, or for all of it at once if its length is declared, and
// none if that is at most wholeBytes. It returns false if the answer is too long to be kept, or requests under way hold too much.
func makeRoom(x *recorder, n int) bool {
	header := x.kept.Len()
	switch {
	case header+x.taken > x.h.maxResponseBody:
		return false
	case x.declared < 0 && x.reservation.bytes == 0:
		return reserve(&x.reservation, header+n)
	case x.declared < 0:
		return reserve(&x.reservation, n)
	case x.declared <= wholeBytes:
	case !reserve(&x.reservation, header+x.declared):
		return false
	case x.collected:
		x.body.Grow(x.declared)
	default:
		x.stream.grow(x.declared)
	}
	x.room = x.declared
	return true
}

// stopRecording sends what was recorded, and records no more: from here on the backend waits for the client.
func stopRecording(x *recorder) {
	if x.collected {
		x.collected = false
		x.gone = sendCollected(x) != nil && x.h.detach
	} else {
		x.gone = drainStream(x) != nil && x.h.detach
		x.flushes = true
		x.stream = nil
	}
	unreserve(&x.reservation)
}

// pass sends p on to the client.
func pass(x *recorder, p []byte) (int, error) {
	if x.gone {
		return len(p), nil
	}
	n, err := x.ResponseWriter.Write(p)
	switch {
	case err != nil && x.h.detach:
		x.gone = true
		return len(p), nil
	case x.flushes:
		flush(x.ResponseWriter)
	}
	return n, err
}

// flush sends what has been written to w. A writer that cannot has nothing to send.
func flush(w http.ResponseWriter) {
	_ = http.NewResponseController(w).Flush()
}
