package idem

import (
	"errors"
	"log"
	"net/http"
	"strings"
	"sync"
)

// stream sends an answer to a client while it comes, from a separate goroutine. What is taken is also what is recorded:
// so recording does not wait for the client, and the client gets each piece as soon as it can take it.
type stream struct {
	client http.ResponseWriter
	ended  chan struct{} // closed when client is not used any more

	mu    sync.Mutex      // guards everything below
	news  *sync.Cond      // of mu: something was taken, or the last of it
	taken strings.Builder // of the answer so far: written by the handler's goroutine alone, which reads it without the lock
	sent  int             // bytes of that
	ready int             // bytes of that which may be sent
	last  bool            // no more is to come
	err   error           // why the client takes no more; read without the lock when ended is closed
}

// lateHeader is the client's ResponseWriter for the handler below while its answer is streamed: a middleware above may change
// the client's header when the first part is sent, as compress does, and the handler may set trailers in the same moment.
type lateHeader struct {
	http.ResponseWriter
	header http.Header
}

// Header implements http.ResponseWriter.
func (l *lateHeader) Header() http.Header {
	return l.header
}

// startStream streams the answer of x, whose header has been written to the client.
func startStream(x *recorder) {
	client := x.ResponseWriter
	flush(client)
	x.written = x.header.Clone()
	x.ResponseWriter = &lateHeader{client, x.header.Clone()}
	x.stream = &stream{client: client, ended: make(chan struct{})}
	x.stream.news = sync.NewCond(&x.stream.mu)
	go sendStream(x.stream)
}

// drainStream waits until all of the answer of x has been sent, or the client takes no more; it returns why not. Trailers
// that the handler below has set until now are the client's from here on.
func drainStream(x *recorder) error {
	err := x.stream.drain()
	setTrailers(x.stream.client.Header(), changed(x.Header(), x.written))
	x.ResponseWriter = x.stream.client
	return err
}

// grow makes room for an answer of that many bytes, before the first is taken.
func (s *stream) grow(bytes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken.Grow(bytes)
}

// takePiece takes a piece of the answer, which is held back if it is the last one, until close is called. It returns why the
// client takes no more.
func takePiece(s *stream, piece []byte, last bool) error {
	s.mu.Lock()
	s.taken.Write(piece)
	if !last {
		s.ready = s.taken.Len()
		s.news.Signal()
	}
	err := s.err
	s.mu.Unlock()
	return err
}

// close says that no more is to come.
func (s *stream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = s.taken.Len()
	s.last = true
	s.news.Signal()
}

// drain waits until all has been sent, or the client takes no more; it returns why not.
func (s *stream) drain() error {
	s.close()
	<-s.ended
	return s.err
}

// sendStream sends s to its client.
func sendStream(s *stream) {
	defer afterSending(s)
	for {
		piece := nextPiece(s)
		if piece == "" {
			return
		}
		err := writeInPieces(s.client, piece)
		if err != nil {
			s.fail(err)
			return
		}
		flush(s.client)
	}
}

// nextPiece waits for something to send; nothing if no more is to come.
func nextPiece(s *stream) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.sent == s.ready && !s.last {
		s.news.Wait()
	}
	if s.sent == s.ready {
		return ""
	}
	piece := s.taken.String()[s.sent:s.ready]
	s.sent = s.ready
	return piece
}

func (s *stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// errSending is the error for a client that did not get the rest of an answer because sending it ended with a panic.
var errSending = errors.New("sending an answer failed")

// afterSending wakes the goroutine that waits for the end of s.
func afterSending(s *stream) {
	p := recover()
	if p != nil {
		log.Printf("level=error msg=%q cause=%q", errSending, p)
		s.fail(errSending)
	}
	close(s.ended)
}
