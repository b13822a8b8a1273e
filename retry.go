package idem

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"reflect"
	"strings"
	"sync"

	"github.com/example/traefik-idem/store"
)

// keptBodies has what was read of bodies whose request never reached a backend, by body. Traefik's retry middleware, if it is
// above the plugin, sends such a request again with the same body, which has been read already.
var keptBodies sync.Map

// keptBody is a value of keptBodies. It is deleted when its request ends. Tries of one request follow each other, so it needs no
// lock.
type keptBody struct {
	body        io.ReadCloser
	data        []byte // what was read of it
	lost        bool   // data could not be kept: mostInFlight was reached
	gone        bool   // more was read of it than data
	reservation reservation
}

// keepBody keeps taken, which was read of body, in case the request is sent again before its context ctx is over. If there is
// more, what is below may have read that too, as mirroring does, after all of taken.
func keepBody(ctx context.Context, body io.ReadCloser, taken *bytes.Reader, more bool) {
	if taken == nil || ctx.Done() == nil || !reflect.ValueOf(body).Comparable() {
		return
	}
	b := &keptBody{body: body, gone: more && taken.Len() == 0}
	if reserve(&b.reservation, int(taken.Size())) {
		b.data = make([]byte, taken.Size())
		_, _ = taken.ReadAt(b.data, 0) // a bytes.Reader has all of it
	} else {
		b.lost = true
	}
	value, known := keptBodies.LoadOrStore(body, b)
	if known { // kept by the try before
		unreserve(&b.reservation)
		before, _ := value.(*keptBody)
		before.gone = b.gone
		return
	}
	context.AfterFunc(ctx, b.forget)
}

func (b *keptBody) forget() {
	defer recovered("forgetting a body")
	keptBodies.Delete(b.body)
	unreserve(&b.reservation)
}

// readAgain returns a reader of the whole body: what an earlier try has read of it, then the rest. The error is errBusy if the
// first part is lost, and errGone if the rest is.
func readAgain(body io.ReadCloser) (io.Reader, error) {
	if !reflect.ValueOf(body).Comparable() {
		return body, nil
	}
	value, known := keptBodies.Load(body)
	if !known {
		return body, nil
	}
	b, _ := value.(*keptBody)
	if b.lost {
		return nil, errBusy
	}
	var rest io.Reader = body
	_, rewinds := body.(io.WriterTo)
	if rewinds {
		head := beginning(body, len(b.data))
		rest = io.MultiReader(bytes.NewReader(head), body)
		if len(head) > 0 && bytes.Equal(head, b.data[:cap(head)]) {
			return rest, nil
		}
	}
	if b.gone {
		return nil, errGone
	}
	return io.MultiReader(bytes.NewReader(b.data), rest), nil
}

// beginning reads up to most bytes of a body, no more than it takes to see whether it was rewound. Traefik's buffering rewinds its
// bodies for tries of its own; a retry below buffering does not. Buffering declares lengths: so a body that repeats itself, and is
// taken for rewound, ends too early and does not pass for whole.
func beginning(body io.Reader, most int) []byte {
	if most > firstRoom {
		most = firstRoom
	}
	head := make([]byte, most)
	n, _ := io.ReadFull(body, head) // the next read has the same error
	return head[:n]
}

// hideEmptyBody changes r, which has no body and whose header is a copy, and l so that no transport sends it twice by itself.
//
// Go's transport, and Traefik's fast proxy, resend a request without a body when a kept connection breaks, if its
// method is a safe one or if it has the header Idempotency-Key or X-Idempotency-Key (Request.isReplayable). They look
// that header up under its canonical name alone, and HTTP header names have no case, so the backend gets what it would have
// got. A request whose body they do not know to be empty is not resent either, unless a middleware below tells its length.
func hideEmptyBody(r *http.Request, l *store.Run) {
	for _, name := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
		values, ok := r.Header[name]
		if ok {
			delete(r.Header, name)
			r.Header[strings.ToLower(name)] = values
		}
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodDelete:
		r.ContentLength = -1 // for these the transport reads one byte first, and sends no body if there is none
		l.Body = io.NopCloser(strings.NewReader(""))
	}
}
