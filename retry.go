package idem

import (
	"bytes"
	"context"
	"io"
	"reflect"
	"sync"
)

// readBodies has what was read of bodies whose request never reached a backend, by body. Traefik's retry middleware, if it is
// above the plugin, sends such a request again with the same body, which has been read already.
var readBodies sync.Map

// keptBody is a value of readBodies. It is deleted when its request ends.
type keptBody struct {
	body        io.ReadCloser
	data        []byte // what was read of it
	lost        bool   // data could not be kept: mostInFlight was reached
	reservation reservation
}

// keepBody keeps taken, which was read of body, in case the request is sent again before its context ctx is over.
func keepBody(ctx context.Context, body io.ReadCloser, taken *bytes.Reader) {
	if taken == nil || ctx.Done() == nil || !reflect.ValueOf(body).Comparable() {
		return
	}
	b := &keptBody{body: body}
	if reserve(&b.reservation, int(taken.Size())) {
		b.data = make([]byte, taken.Size())
		_, _ = taken.ReadAt(b.data, 0) // a bytes.Reader has all of it
	} else {
		b.lost = true
	}
	_, known := readBodies.LoadOrStore(body, b)
	if known { // kept by the try before
		unreserve(&b.reservation)
		return
	}
	context.AfterFunc(ctx, b.forget)
}

func (b *keptBody) forget() {
	defer recovered("forgetting a body")
	readBodies.Delete(b.body)
	unreserve(&b.reservation)
}

// readAgain returns a reader of the whole body: what an earlier try has read of it, then the rest. The error is errBusy if the
// first part is lost.
func readAgain(body io.ReadCloser) (io.Reader, error) {
	if !reflect.ValueOf(body).Comparable() {
		return body, nil
	}
	value, known := readBodies.Load(body)
	if !known {
		return body, nil
	}
	b, _ := value.(*keptBody)
	if b.lost {
		return nil, errBusy
	}
	return io.MultiReader(bytes.NewReader(b.data), body), nil
}
