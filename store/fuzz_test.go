package store_test

import (
	"bufio"
	"bytes"
	"errors"
	"net/http"
	"net/textproto"
	"reflect"
	"strings"
	"testing"

	"github.com/example/traefik-idem/store"
)

// FuzzDecode has any bytes for a stored value, as long as they are no record, and what is one is written back as it was read.
func FuzzDecode(f *testing.F) {
	fingerprint := strings.Repeat("f", store.FingerprintSize)
	answer := &store.Answer{Status: 201, Header: http.Header{"Link": {"a", "b"}, "Empty": {""}}, Body: []byte("\x00body")}
	f.Add([]byte(store.RunningHead(&store.Lease{Fingerprint: fingerprint, Owner: "token-1"})))
	f.Add([]byte(store.Head(&store.Record{State: store.Unknown, Fingerprint: fingerprint})))
	f.Add([]byte(store.Head(&store.Record{State: store.Unkept, Fingerprint: fingerprint, Answer: answer})))
	whole := store.Head(&store.Record{State: store.Done, Fingerprint: fingerprint, Answer: answer}) + string(answer.Body)
	f.Add([]byte(whole))
	for _, other := range []string{"", "hello", whole[:40], whole[:len(whole)-10], strings.Replace(whole, "20129 ", "2019999999999999999999 ", 1), strings.Replace(whole, ": ", " :", 1)} {
		f.Add([]byte(other))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		rec, err := store.Decode(data)
		if err != nil {
			if !errors.Is(err, store.ErrForeign) {
				t.Errorf("decode of %q: %v", data, err)
			}
			return
		}
		if len(rec.Fingerprint) != store.FingerprintSize || (rec.Answer != nil && (rec.Answer.Status < 100 || rec.Answer.Status > 999)) {
			t.Errorf("decode of %q: %+v", data, rec)
		}
		if rec.State == store.Running {
			if again := store.RunningHead(&store.Lease{Fingerprint: rec.Fingerprint, Owner: rec.Owner}); again != string(data) {
				t.Errorf("%q is written back as %q", data, again)
			}
			return
		}
		if rec.State == store.Done {
			if size := wireSize(rec.Answer.Header); rec.Answer.HeaderSize < size {
				t.Errorf("a header of %d bytes counts as %d", size, rec.Answer.HeaderSize)
			}
			if !bytes.HasSuffix(data, rec.Answer.Body) {
				t.Errorf("%q has the body %q", data, rec.Answer.Body)
			}
		}
		// Reading is lenient with headers that no answer has; what was written once does not change any more.
		once := encode(&rec)
		rec, err = store.Decode(once)
		if err != nil || !bytes.Equal(encode(&rec), once) {
			t.Errorf("%q is written back as %q, and then as %q, %v", data, once, encode(&rec), err)
		}
	})
}

// FuzzRecord has any answer that net/http would take from a backend, and wants it back from the store.
func FuzzRecord(f *testing.F) {
	f.Add(200, "Content-Type: text/plain\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n", []byte("body"))
	f.Add(599, "X:\r\nY-y: caf\xe9\r\n z\r\n", []byte("\r\n\r\n$5\r\n"))
	f.Add(204, "", []byte{})
	f.Fuzz(func(t *testing.T, status int, lines string, body []byte) {
		header, err := textproto.NewReader(bufio.NewReader(strings.NewReader(lines + "\r\n"))).ReadMIMEHeader()
		for name := range header {
			if err != nil || strings.Contains(name, " ") { // net/http's transport refuses such an answer, or does not pass it on
				return
			}
		}
		status = 100 + int(uint(status)%900)
		want := store.Record{State: store.Done, Fingerprint: strings.Repeat("\x00\xff", store.FingerprintSize/2), Answer: &store.Answer{Status: status, Header: http.Header(header), Body: body}}
		got, err := store.Decode(encode(&want))
		if err != nil {
			t.Fatal(err)
		}
		got.Answer.HeaderSize = 0 // an account, not a part of the answer
		if !bytes.Equal(got.Answer.Body, body) || !reflect.DeepEqual(got.Answer.Header, want.Answer.Header) || got.Answer.Status != status || got.Fingerprint != want.Fingerprint {
			t.Errorf("%+v of %+v comes back as %+v of %+v", want.Answer, want, got.Answer, got)
		}
	})
}

func encode(rec *store.Record) []byte {
	data := []byte(store.Head(rec))
	if rec.State == store.Done {
		data = append(data, rec.Answer.Body...)
	}
	return data
}

// wireSize is how many bytes of names and values a header has.
func wireSize(header http.Header) int {
	size := 0
	for name, values := range header {
		for _, value := range values {
			size += len(name) + len(value)
		}
	}
	return size
}
