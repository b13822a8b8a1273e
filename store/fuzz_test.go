package store_test

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"reflect"
	"strings"
	"testing"

	"github.com/example/traefik-idem/store"
	"github.com/example/traefik-idem/store/storetest"
)

// FuzzDecode has any bytes for a stored value, as long as they are no record, and what is one is written back as it was read.
func FuzzDecode(f *testing.F) {
	answer := &store.Answer{Status: 201, Header: http.Header{"Link": {"a", "b"}, "Empty": {""}}, Body: "\x00body"}
	whole := storetest.Record(fingerprint, answer)
	f.Add(whole)
	f.Add(fmt.Sprintf(store.RunningFormat, fingerprint, "token-1"))
	f.Add(fmt.Sprintf(store.UnknownFormat, fingerprint, "o-1"))
	f.Add(fmt.Sprintf(store.UnkeptFormat, fingerprint, 201, "o-1"))
	for _, other := range []string{"", "hello", whole[:40], whole[:len(whole)-10], strings.Replace(whole, "201", "2019", 1), strings.Replace(whole, ": ", " :", 1)} {
		f.Add(other)
	}
	f.Fuzz(func(t *testing.T, record string) {
		held, err := store.Decode(record)
		if err != nil {
			if !errors.Is(err, store.ErrForeign) {
				t.Errorf("decode of %q: %v", record, err)
			}
			return
		}
		if len(held.Fingerprint) != store.FingerprintSize || (held.Answer != nil && (held.Answer.Status < 100 || held.Answer.Status > 999)) {
			t.Errorf("decode of %q: %+v", record, held)
		}
		switch held.State {
		case store.Running:
			if again := fmt.Sprintf(store.RunningFormat, held.Fingerprint, held.Owner); again != record {
				t.Errorf("%q is written back as %q", record, again)
			}
		case store.Done:
			if !strings.HasSuffix(record, held.Answer.Body) {
				t.Errorf("%q has the body %q", record, held.Answer.Body)
			}
			// Reading is lenient with headers that no answer has; what was written once does not change any more.
			once := storetest.Record(held.Fingerprint, held.Answer)
			held, err = store.Decode(once)
			if err != nil || storetest.Record(held.Fingerprint, held.Answer) != once {
				t.Errorf("%q is written back as %q, and that as %+v, %v", record, once, held, err)
			}
		}
	})
}

// FuzzRecord has any answer that net/http would take from a backend, and wants it back from the store.
func FuzzRecord(f *testing.F) {
	f.Add(200, "Content-Type: text/plain\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n", "body")
	f.Add(599, "X:\r\nY-y: caf\xe9\r\n z\r\n", "\r\n\r\n$5\r\n")
	f.Add(204, "", "")
	f.Fuzz(func(t *testing.T, status int, lines, body string) {
		header, err := textproto.NewReader(bufio.NewReader(strings.NewReader(lines + "\r\n"))).ReadMIMEHeader()
		for name := range header {
			if err != nil || strings.Contains(name, " ") { // net/http's transport refuses such an answer, or does not pass it on
				return
			}
		}
		for _, values := range header {
			for i := range values {
				values[i] = textproto.TrimString(values[i]) // as net/http sends it; a folded line may end in a space
			}
		}
		fingerprint := strings.Repeat("\x00\xff", store.FingerprintSize/2)
		want := &store.Answer{Status: 100 + int(uint(status)%900), Header: http.Header(header), Body: body}
		got, err := store.Decode(storetest.Record(fingerprint, want))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got.Answer, want) || got.Fingerprint != fingerprint {
			t.Errorf("%+v comes back as %+v", want, got.Answer)
		}
	})
}
