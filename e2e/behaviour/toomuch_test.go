package behaviour

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// TestMoreThanMayBeWritten has handlers below, as plugins that change a body and forget its length, write more than the header
// says: net/http takes no more from them, with a key or without, and duplicates get what it took.
func TestMoreThanMayBeWritten(t *testing.T) {
	for name, c := range map[string]struct {
		method   string
		status   int
		declared int
		parts    []int // bytes of each write
	}{
		"an ordinary answer":        {"POST", 201, 10, []int{10, 1}},
		"an ordinary one, in parts": {"POST", 201, 9_000, []int{4_000, 5_000, 9_000}},
		"a whole answer":            {"POST", 201, 20_000, []int{10_000, 10_000, 1}},
		"far more":                  {"POST", 201, 20_000, []int{20_000, 10_000, 10_000, 10_000}},
		"an error":                  {"POST", 500, 100, []int{100, 1}},
		"a long error":              {"POST", 500, 100_000, []int{100_000, 1}},
		"a stream":                  {"POST", 201, 100_000, []int{99_999, 1, 1}},
		"what is passed on":         {"POST", 201, 2 << 20, []int{1 << 20, 1 << 20, 1}},
		"a body that is not any":    {"POST", 204, -1, []int{0, 10}},
		"a body of a HEAD":          {"HEAD", 200, -1, []int{100, 100}},
		"a body of a HEAD, whole":   {"HEAD", 200, 10_000, []int{10_000}},
	} {
		t.Run(name, func(t *testing.T) {
			handlersWith(t, hosts.Settings{"endpoints": "* /"}, func(t *testing.T, build func(http.HandlerFunc) http.Handler) {
				did := make(chan string, 1) // what became of each write
				h := build(func(w http.ResponseWriter, r *http.Request) {
					_, _ = io.Copy(io.Discard, r.Body)
					results := ""
					defer func() { did <- results }()
					w.Header().Set("Date", "Thu, 26 Nov 2026 03:14:04 GMT")
					if c.declared >= 0 {
						w.Header().Set("Content-Length", fmt.Sprint(c.declared))
					}
					w.Header().Set("Content-Type", "text/plain")
					w.WriteHeader(c.status)
					for _, n := range c.parts {
						n, err := io.WriteString(w, strings.Repeat("x", n))
						results += fmt.Sprintln(n, errors.Is(err, http.ErrContentLength), errors.Is(err, http.ErrBodyNotAllowed), err == nil)
					}
				})
				server := httptest.NewServer(h)
				defer server.Close()
				send := func(key string) (a rig.Answer) {
					t.Helper()
					r, _ := http.NewRequest(c.method, server.URL+"/pay", strings.NewReader("body"))
					r.Close = true // net/http closes the connection, and does not say so before
					if key != "" {
						r.Header.Set("X-Request-ID", key)
					}
					response, err := server.Client().Do(r)
					if err != nil {
						t.Fatal(err)
					}
					defer response.Body.Close()
					body, err := io.ReadAll(response.Body)
					return rig.Answer{Status: response.StatusCode, Header: response.Header, Body: body, Err: err}
				}
				plain := send("")
				without := <-did
				keyed := send("k")
				if with := <-did; with != without {
					t.Errorf("with a key, the handler is told\n%s, and without\n%s", with, without)
				}
				if keyed.Status != plain.Status || len(keyed.Body) != len(plain.Body) || keyed.Err != nil || plain.Err != nil {
					t.Errorf("with a key %d, %d bytes, %v; without %d, %d bytes, %v", keyed.Status, len(keyed.Body), keyed.Err, plain.Status, len(plain.Body), plain.Err)
				}
				again := send("k")
				switch decision := again.Header.Get("Decision"); {
				case name == "what is passed on" && decision != "unkept":
					t.Errorf("again: %s", decision)
				case name != "what is passed on" && (decision != "replayed" || len(again.Body) != len(plain.Body)):
					t.Errorf("again: %s, %d bytes", decision, len(again.Body))
				}
			})
		})
	}
}
