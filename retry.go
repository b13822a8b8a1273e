package idem

import (
	"bytes"
	"context"
	"io"
	"reflect"
	"sync"
)

// readBodies are bodies that were read for a request that never reached a backend, by the body that was read. Traefik's
// retry middleware, where it stands above, sends such a request down again with the same body, of which nothing is left.
var readBodies sync.Map

// keptBody is one of them. It is forgotten when its request ends.
type keptBody struct {
	body        io.ReadCloser
	data        []byte // what was read of it
	lost        bool   // there was no room to keep it
	reservation reservation
}

// keepBody keeps taken, which was read of body, for the case that the request comes again before ctx, its own, is over.
func keepBody(ctx context.Context, body io.ReadCloser, taken *bytes.Reader) {
	if taken == nil || ctx.Done() == nil || !reflect.ValueOf(body).Comparable() {
		return
	}
	b := &keptBody{body: body}
	if reserve(&b.reservation, int(taken.Size())) {
		b.data = make([]byte, taken.Size())
		_, _ = taken.ReadAt(b.data, 0) // which is all there
	} else {
		b.lost = true
	}
	_, known := readBodies.LoadOrStore(body, b)
	if known { // from the try before
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

// readAgain returns body behind what was read of it for an earlier try. The error is errBusy if that is lost.
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
