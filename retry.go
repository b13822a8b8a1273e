package idem

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"reflect"
	"sync"
)

// readBodies are bodies that were read for a request that never reached a backend, by the body that was read. Traefik's
// retry middleware, where it stands above, sends such a request down again with the same body, of which nothing is left.
var readBodies sync.Map

// readBody is one of them. It is forgotten when its request ends.
type readBody struct {
	body   io.ReadCloser
	data   []byte // what was read of it
	lost   bool   // there was no room to keep it
	charge charge // for data
}

// keepBody keeps what was read of the body of a request for the case that it comes again before ctx, its own, is over.
func keepBody(ctx context.Context, t *takenBody) {
	if t.original == nil || ctx.Done() == nil || !reflect.ValueOf(t.original).Comparable() {
		return
	}
	b := &readBody{body: t.original, data: t.data}
	if !pay(&b.charge, len(t.data)) {
		b.data = nil
		b.lost = true
	}
	_, known := readBodies.LoadOrStore(b.body, b)
	if known { // from the try before
		refund(&b.charge)
		return
	}
	context.AfterFunc(ctx, b.forget)
}

func (b *readBody) forget() {
	defer recovered("forgetting a body")
	readBodies.Delete(b.body)
	refund(&b.charge)
}

// readAgain puts what was read of r's body before in front of what is left. The error is errBusy if that is lost.
func readAgain(r *http.Request) error {
	if !reflect.ValueOf(r.Body).Comparable() {
		return nil
	}
	value, known := readBodies.Load(r.Body)
	if !known {
		return nil
	}
	b, _ := value.(*readBody)
	if b.lost {
		return errBusy
	}
	r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(b.data), r.Body))
	return nil
}

// takeAgain fills data with r's body, of which nothing came but err. If it was read before, that is at its end.
func takeAgain(r *http.Request, data []byte, err error) error {
	if err != io.EOF { //nolint:errorlint // ReadFull returns io.EOF itself
		return errIncompleteBody
	}
	err = readAgain(r)
	if err != nil {
		return err
	}
	_, err = io.ReadFull(r.Body, data)
	if err != nil {
		return errIncompleteBody
	}
	return nil
}
