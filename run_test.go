package idem

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/example/traefik-idem/store"
)

// TestAPanicWhenARunIsConcluded has a run whose end cannot be written as a record, of an answer that goes whole and of one that
// is streamed: its key is looked after no more, and its duplicates are told that nobody knows.
func TestAPanicWhenARunIsConcluded(t *testing.T) {
	redis := miniredis.RunT(t).Addr()
	for i, endpoints := range [][]string{nil, nil, {redis}, {redis}} {
		calls, key := 0, ""
		next := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			calls++
			x, _ := w.(*recorder)
			key = x.run.Key
			length := i % 2 * (wholeBytes + 1)
			x.Header().Set("Date", "Thu, 26 Nov 2026 03:14:04 GMT") // the backend's answer
			x.Header().Set("Content-Length", fmt.Sprint(length))
			x.WriteHeader(http.StatusCreated)
			x.status = 1 << 20
			_, _ = x.Write(make([]byte, length))
		})
		config := CreateConfig()
		config.Redis.Endpoints = endpoints
		h := build(t, next, config)
		name := fmt.Sprint("k", time.Now().UnixNano()) // what was known before is still
		send := func() (w *httptest.ResponseRecorder) {
			w = httptest.NewRecorder()
			r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("{}"))
			r.Header.Set("X-Request-ID", name)
			defer func() { _ = recover() }() // net/http does not know such a status
			h.ServeHTTP(w, r)
			return w
		}
		send()
		again := send()
		if again.Code != http.StatusConflict || !strings.Contains(again.Body.String(), "outcome-unknown") || calls != 1 {
			t.Errorf("%s: a duplicate got %d %s; %d calls, want 1", endpoints, again.Code, again.Body, calls)
		}
		plugin, _ := h.(*handler)
		if held := store.Lookup(plugin.keys.Memory, key); held == nil || held.State != store.Unknown {
			t.Errorf("%s: the run is still looked after: %+v", endpoints, held)
		}
	}
}

// TestAPanicWhenARunIsConcludedAgain has what concludes a run with an unknown outcome panic too: the run is looked after no more,
// the answer is sent to its end, and nothing stays reserved for it.
func TestAPanicWhenARunIsConcludedAgain(t *testing.T) {
	for _, onUnknown := range []string{"hold", "release"} {
		for _, status := range []int{http.StatusCreated, http.StatusInternalServerError} { // streamed, and collected
			var x *recorder
			sending := make(chan *stream, 1)
			next := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				x, _ = w.(*recorder)
				x.Header().Set("Date", "Thu, 26 Nov 2026 03:14:04 GMT") // the backend's answer
				x.WriteHeader(status)
				_, _ = x.Write(make([]byte, 1000))
				sending <- x.stream
				x.status = 1 << 20
			})
			config := CreateConfig()
			config.OnUnknown = onUnknown
			h := build(t, next, config)
			plugin, _ := h.(*handler)
			counter := plugin.counter
			plugin.counter = nil // nothing can be counted
			before := reservedBytes.Load()
			r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("{}"))
			r.Header.Set("X-Request-ID", fmt.Sprint("k", time.Now().UnixNano()))
			w := httptest.NewRecorder()
			func() {
				defer func() { _ = recover() }() // net/http does not know such a status
				h.ServeHTTP(w, r)
			}()
			plugin.counter = counter
			if s := <-sending; s != nil && (w.Body.Len() != 1000 || !ended(s)) {
				t.Errorf("%s, %d: the answer is still being sent: %d bytes", onUnknown, status, w.Body.Len())
			}
			if got := reservedBytes.Load(); got != before {
				t.Errorf("%s, %d: %d bytes stay reserved", onUnknown, status, got-before)
			}
			held := store.Lookup(plugin.keys.Memory, x.run.Key)
			if (held == nil) != (onUnknown == "release") || (held != nil && held.State != store.Unknown) {
				t.Errorf("%s, %d: memory has %+v of the key", onUnknown, status, held)
			}
		}
	}
}

func ended(s *stream) bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// stalledWriter is the writer of a client that takes nothing until the backend is done. As Traefik's, it has no WriteString.
type stalledWriter struct {
	header  http.Header
	sent    chan struct{} // closed when the backend has sent all but the last byte
	longest int           // bytes written at once
	total   int
}

func (w *stalledWriter) Header() http.Header { return w.header }

func (w *stalledWriter) WriteHeader(int) {}

func (w *stalledWriter) Write(p []byte) (int, error) {
	<-w.sent
	w.longest = max(w.longest, len(p))
	w.total += len(p)
	return len(p), nil
}

// TestWhatAClientHasNotTakenIsInMemoryOnce, however long it is: written in small pieces, it is not copied whole.
func TestWhatAClientHasNotTakenIsInMemoryOnce(t *testing.T) {
	const size = 1 << 20
	for _, status := range []int{http.StatusCreated, http.StatusNotFound} { // streamed, and collected
		outer := &stalledWriter{header: http.Header{}, sent: make(chan struct{})}
		next := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", "Thu, 26 Nov 2026 03:14:04 GMT") // the backend's answer
			w.Header().Set("Content-Length", fmt.Sprint(size))
			w.WriteHeader(status)
			_, _ = w.Write(make([]byte, 1))
			_, _ = w.Write(make([]byte, size-2))
			close(outer.sent)
			_, _ = w.Write(make([]byte, 1))
		})
		config := CreateConfig()
		config.MaxResponseBodyBytes = 2 * size
		h := build(t, next, config)
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("{}"))
		r.Header.Set("X-Request-ID", fmt.Sprint("k", time.Now().UnixNano()))
		h.ServeHTTP(outer, r)
		if outer.longest > pieceBytes || outer.total != size {
			t.Errorf("%d: %d bytes were written at once, and %d in all", status, outer.longest, outer.total)
		}
	}
}

// lateWriter is a middleware above that changes the header when the first part of an answer is sent, as compress does.
type lateWriter struct {
	*httptest.ResponseRecorder
	trailersSet chan struct{} // closed when the backend has set its trailers
	seen        string        // the trailer, when the part was sent
}

func (w *lateWriter) Write(p []byte) (int, error) {
	<-w.trailersSet
	w.seen = w.Header().Get("X-Sum")
	w.Header().Set("Content-Encoding", "identity")
	return w.ResponseRecorder.Write(p)
}

// TestTrailersWhileThePartsAreSent has a backend set its trailers while a middleware above changes the header: each has a
// separate header, since Go ends a program that writes to one map in two goroutines.
func TestTrailersWhileThePartsAreSent(t *testing.T) {
	outer := &lateWriter{ResponseRecorder: httptest.NewRecorder(), trailersSet: make(chan struct{})}
	next := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", "Thu, 26 Nov 2026 03:14:04 GMT") // the backend's answer
		w.Header().Set("Trailer", "X-Sum")
		w.WriteHeader(http.StatusOK)
		_, _ = w.Write([]byte("hello"))
		w.Header().Set("X-Sum", "5")
		close(outer.trailersSet)
	})
	h := build(t, next, CreateConfig())
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("{}"))
	r.Header.Set("X-Request-ID", fmt.Sprint("k", time.Now().UnixNano()))
	h.ServeHTTP(outer, r)
	if outer.seen != "" || outer.Header().Get("X-Sum") != "5" || outer.Header().Get("Content-Encoding") != "identity" || outer.Body.String() != "hello" {
		t.Errorf("a part was sent with trailer %q, and in the end there are %v and %q", outer.seen, outer.Header(), outer.Body)
	}
}
