package idem

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
)

// errIncompleteBody is the error for a body that the client broke off, or that is malformed.
var errIncompleteBody = errors.New("the request body did not arrive whole")

// errGone is the error for a body of which an earlier try has read more than could be kept.
var errGone = errors.New("the request body was read before")

// takenBody is a request body of which the part to be compared was read. The request's Body is replaced only if there is no memory
// to read it.
type takenBody struct {
	compared []byte        // what the fingerprint covers of it
	taken    *bytes.Reader // the part that was read
	onward   io.ReadCloser // the body as the backend gets it
	streamed *streamedBody // onward, if more of it is still to be read; else nil
}

// readBody reads the part of r's body that is compared. It reserves the memory for that, unless the declared length is at most
// settings.smallRequest. Of a body longer than maxRequestBodyBytes, the declared length is compared instead of the rest, which
// streams. If the error is errBusy, r.Body still delivers the whole body, unless an earlier try could not keep its part of it.
func readBody(h *handler, r *http.Request, reserved *reservation) (*takenBody, error) {
	if r.ContentLength == 0 {
		return &takenBody{onward: r.Body}, nil
	}
	body, err := readAgain(r.Body)
	if err != nil {
		return nil, err
	}
	data, err := readSome(r, body, h.maxRequestBody+1, h.smallRequest, reserved)
	taken := bytes.NewReader(data)
	t := &takenBody{compared: data, taken: taken, onward: io.NopCloser(taken)}
	switch {
	case errors.Is(err, errBusy):
		r.Body = &streamedBody{reader: io.MultiReader(taken, body), body: r.Body}
		return nil, errBusy
	case err != nil:
		return nil, errIncompleteBody
	case int64(len(data)) > h.maxRequestBody:
		t.streamed = &streamedBody{reader: io.MultiReader(taken, body), body: r.Body}
		t.onward = t.streamed
		t.compared = comparedPart(h, data, r.ContentLength)
	}
	return t, nil
}

// comparedPart returns what is compared of a body of this declared length that is longer than maxRequestBodyBytes. The byte over
// the bound is left out, so that the fingerprint does not depend on how the read went.
func comparedPart(h *handler, data []byte, length int64) []byte {
	return strconv.AppendInt(bytes.Clone(data[:h.maxRequestBody]), length, 10)
}

// firstRoom is the first size, in bytes, of the buffer for a body without a declared length, or with one that is not trusted.
const firstRoom = 4 << 10

// readSome reads up to most bytes of body, which is r's. It reserves and allocates the declared length at once if half of
// mostInFlight stays free. Else it begins with firstRoom and doubles that as data arrives, so that clients that are slow, or
// lie about lengths, cannot take the memory that others need. A declared length of at most small bytes needs no reservation.
// The error is errBusy if there is no memory for more than what is returned.
func readSome(r *http.Request, body io.Reader, most, small int64, reserved *reservation) ([]byte, error) {
	if r.ContentLength > 0 && r.ContentLength <= small {
		data := make([]byte, r.ContentLength)
		_, err := io.ReadFull(body, data)
		return data, err
	}
	room := int64(firstRoom)
	if r.ContentLength >= 0 {
		if r.ContentLength < most {
			most = r.ContentLength
		}
		if leavesHalf(most) {
			room = most
		}
	}
	data := new(bytes.Buffer)
	for ; int64(data.Len()) < most; room *= 2 {
		if room > most {
			room = most
		}
		step := room - int64(data.Len())
		if !reserve(reserved, int(step)) {
			return data.Bytes(), errBusy
		}
		larger := bytes.NewBuffer(make([]byte, 0, room+bytes.MinRead)) // a Buffer grows unless MinRead bytes are free
		larger.Write(data.Bytes())
		data = larger
		_, err := io.CopyN(data, body, step)
		if err == io.EOF && r.ContentLength < 0 { //nolint:errorlint // CopyN returns io.EOF itself
			break
		}
		if err != nil {
			return nil, err
		}
	}
	return data.Bytes(), nil
}

// readReserved reads a body of at most most bytes whose length is declared, into memory that it reserves. It returns nil, and
// reserves nothing, if the body is longer, if it does not leave half of mostInFlight free, or if it does not come whole.
func readReserved(r *http.Request, most int64, reserved *reservation) []byte {
	size := r.ContentLength
	if size > most || !leavesHalf(size) || !reserve(reserved, int(size)) {
		return nil
	}
	body := make([]byte, size)
	_, err := io.ReadFull(r.Body, body)
	if err != nil {
		unreserve(reserved)
		return nil
	}
	return body
}

// untouchedBody is a request body that remembers whether anything was read of it.
type untouchedBody struct {
	io.ReadCloser
	touched atomic.Bool
}

// Read implements io.Reader.
func (u *untouchedBody) Read(p []byte) (int, error) {
	u.touched.Store(true)
	return u.ReadCloser.Read(p)
}

// streamedBody is a request body that is too long to be read in advance. It remembers whether the client broke it off.
type streamedBody struct {
	reader io.Reader
	body   io.Closer
	broken atomic.Bool
}

// Read implements io.Reader.
func (s *streamedBody) Read(p []byte) (int, error) {
	n, err := s.reader.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // a reader returns io.EOF itself
		s.broken.Store(true)
	}
	return n, err
}

// Close implements io.Closer.
func (s *streamedBody) Close() error {
	return s.body.Close()
}
