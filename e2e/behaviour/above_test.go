package behaviour

// Middlewares above the plugin whose writers fail.

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/rig"
)

// failing is the writer of a middleware above that takes no more than some bytes of an answer.
type failing struct {
	http.ResponseWriter
	left   int
	panics bool
}

func (f *failing) Write(p []byte) (int, error) {
	if len(p) <= f.left {
		f.left -= len(p)
		return f.ResponseWriter.Write(p)
	}
	if f.panics {
		panic("out of order")
	}
	return 0, errors.New("out of order")
}

func (f *failing) Unwrap() http.ResponseWriter { return f.ResponseWriter }

// TestAWriterAboveFails: the client sees that its answer is not whole, as without the plugin, and duplicates get all of it.
func TestAWriterAboveFails(t *testing.T) {
	for name, status := range map[string]int{"streamed": 200, "collected": 500, "passed on": 200} {
		for _, panics := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " panics: ", panics), func(t *testing.T) {
				handlers(t, func(t *testing.T, build func(http.HandlerFunc) http.Handler) {
					size := 50_000
					if name == "passed on" {
						size = 2 << 20
					}
					h := build(func(w http.ResponseWriter, _ *http.Request) {
						w.Header().Set("Date", "Thu, 26 Nov 2026 03:14:04 GMT")
						w.Header().Set("Content-Type", "text/plain")
						w.WriteHeader(status)
						for range 10 {
							_, _ = io.WriteString(w, strings.Repeat("x", size/10))
						}
					})
					fails := true
					ends := make(chan any, 1) // what the plugin panics with
					server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if fails {
							w = &failing{w, size / 2, panics}
						}
						defer func() {
							p := recover()
							ends <- p
							if p != nil {
								panic(http.ErrAbortHandler)
							}
						}()
						h.ServeHTTP(w, r)
					}))
					server.Config.ErrorLog = rig.Quiet
					server.Start()
					defer server.Close()
					send := func() rig.Answer {
						r, _ := http.NewRequest("POST", server.URL+"/pay", strings.NewReader("body"))
						r.Header.Set("X-Request-ID", "k")
						response, err := server.Client().Do(r)
						if err != nil {
							return rig.Answer{Err: err}
						}
						defer response.Body.Close()
						body, err := io.ReadAll(response.Body)
						return rig.Answer{Status: response.StatusCode, Header: response.Header, Body: body, Err: err}
					}
					first := send()
					if first.Err == nil {
						t.Errorf("the client takes %d of %d bytes for the whole answer", len(first.Body), size)
					}
					if ended := <-ends; ended != http.ErrAbortHandler && (!panics || ended != "out of order") { //nolint:errorlint // as net/http
						t.Errorf("the plugin ends with %v", ended)
					}
					fails = false
					again := send()
					switch {
					case name == "passed on" && again.Status != 409:
						t.Errorf("again: %d, %d bytes", again.Status, len(again.Body))
					case name != "passed on" && (again.Status != status || len(again.Body) != size || again.Header.Get("Decision") != "replayed"):
						t.Errorf("again: %d %q, %d bytes, %v", again.Status, again.Header.Get("Decision"), len(again.Body), again.Err)
					}
				})
			})
		}
	}
}

// TestWritersAbovePanic has more of them than the answers' reservations have room for together.
func TestWritersAbovePanic(t *testing.T) {
	handlers(t, func(t *testing.T, build func(http.HandlerFunc) http.Handler) {
		body := bytes.Repeat([]byte("x"), 900<<10)
		h := build(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = w.Write(body)
		})
		for i := range 300 {
			func() {
				defer func() { _ = recover() }()
				h.ServeHTTP(&failing{httptest.NewRecorder(), 0, true}, rig.Keyed("POST", fmt.Sprintf("k%d", i)))
			}()
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, rig.Keyed("POST", "last"))
		again := httptest.NewRecorder()
		h.ServeHTTP(again, rig.Keyed("POST", "last"))
		if again.Header().Get("Decision") != "replayed" {
			t.Errorf("the last answer is not kept: %v", again.Header())
		}
	})
}
