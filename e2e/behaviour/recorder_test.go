package behaviour

// The two ways of an answer: whole, or streamed.

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

const wholeBytes = 64 << 10 // the longest answer that goes whole

// eachStore runs test on every host with keys in memory, in Redis, and in Redis alone.
func eachStore(t *testing.T, test func(t *testing.T, serve func(hosts.Settings, http.HandlerFunc) *rig.Site)) {
	t.Helper()
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		test(t, func(more hosts.Settings, backend http.HandlerFunc) *rig.Site { return e.Serve(t, more, backend) })
		if e.Redis == nil {
			return
		}
		t.Run("without a cache", func(t *testing.T) {
			test(t, func(more hosts.Settings, backend http.HandlerFunc) *rig.Site {
				all := hosts.Settings{"localCacheBytes": 0}
				for name, value := range more {
					all[name] = value
				}
				return e.Serve(t, all, backend)
			})
		})
	})
}

// asked is the number that stands last in the path.
func asked(r *http.Request) int {
	n, _ := strconv.Atoi(r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:])
	return n
}

func TestAWholeAnswerIsKeptBeforeItsFirstByte(t *testing.T) {
	eachStore(t, func(t *testing.T, serve func(hosts.Settings, http.HandlerFunc) *rig.Site) {
		proceed := make(chan struct{})
		s := serve(hosts.Settings{"inFlight": "reject"}, func(w http.ResponseWriter, r *http.Request) {
			n := asked(r)
			w.Header().Set("Content-Length", strconv.Itoa(n))
			w.WriteHeader(201)
			rig.WritePart(w, n-1)
			<-proceed
			rig.WritePart(w, 1)
		})
		for _, n := range []int{1, 2, 9_999, 10_000, wholeBytes - 1, wholeBytes} {
			c := rig.Post(fmt.Sprintf("/%d", n), "k")
			begun := make(chan *http.Response)
			go func() { begun <- s.Begin(c) }()
			select {
			case <-begun:
				t.Fatalf("%d bytes: the answer begins before its last byte has come", n)
			case <-time.After(20 * time.Millisecond): // enough to see it, if it is so
			}
			proceed <- struct{}{}
			response := <-begun
			first := rig.Answer{Status: response.StatusCode, Header: response.Header, Body: rig.ReadBytes(t, response, 1)}
			again := s.Other().Do(c)
			rest, err := io.ReadAll(response.Body)
			first.Body = append(first.Body, rest...)
			if err != nil || len(first.Body) != n || first.Header.Get("Content-Length") != strconv.Itoa(n) {
				t.Errorf("%d bytes: got %d, header %v, %v", n, len(first.Body), first.Header, err)
			}
			s.Want(first, 201, "first")
			s.WantReplay(first, again)
		}
	})
}

// TestALongerAnswerIsLive has parts of one byte, of answers that tell their length and that do not, that are kept and that are
// too large.
func TestALongerAnswerIsLive(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		const limit = 100 << 10
		proceed := make(chan struct{})
		s := e.Serve(t, hosts.Settings{"maxResponseBodyBytes": limit}, func(w http.ResponseWriter, r *http.Request) {
			n := asked(r)
			if strings.HasPrefix(r.URL.Path, "/declared") {
				w.Header().Set("Content-Length", strconv.Itoa(n))
			}
			w.WriteHeader(201)
			for _, part := range []int{1, 1, n - 4, 1} {
				rig.WritePart(w, part)
				select {
				case <-proceed:
				case <-r.Context().Done():
					return
				}
			}
			rig.WritePart(w, 1)
		})
		for path, decisions := range map[string][2]string{
			fmt.Sprintf("/declared/%d", wholeBytes+1): {"first", "replayed"},
			fmt.Sprintf("/declared/%d", limit+1):      {"unkept", "unkept"},
			"/open/5":                                 {"first", "replayed"},
			fmt.Sprintf("/open/%d", wholeBytes):       {"first", "replayed"},
			fmt.Sprintf("/open/%d", limit+4):          {"first", "unkept"},
		} {
			n, _ := strconv.Atoi(path[strings.LastIndex(path, "/")+1:])
			response := s.Begin(rig.Post(path, "k"))
			for _, part := range []int{1, 1, n - 4, 1} {
				rig.ReadBytes(t, response, part)
				proceed <- struct{}{}
			}
			rig.ReadBytes(t, response, 1)
			rest, err := io.ReadAll(response.Body)
			if err != nil || len(rest) != 0 || response.Header.Get("Decision") != decisions[0] {
				t.Errorf("%s: %q %d more bytes, %v", path, response.Header.Get("Decision"), len(rest), err)
			}
			again := s.Do(rig.Post(path, "k"))
			if again.Header.Get("Decision") != decisions[1] || (again.Status == 201 && len(again.Body) != n) {
				t.Errorf("%s again: %d %q, %d bytes", path, again.Status, again.Header.Get("Decision"), len(again.Body))
			}
		}
	})
}

func TestABackendBreaksOffWithinAnAnswer(t *testing.T) {
	hosts.NotIn30(t)
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, nil, func(w http.ResponseWriter, r *http.Request) {
			n := asked(r)
			if strings.HasPrefix(r.URL.Path, "/declared") {
				w.Header().Set("Content-Length", strconv.Itoa(n+1))
			}
			w.Header().Set("Content-Type", "text/plain")
			w.WriteHeader(201)
			rig.WritePart(w, n)
			panic(http.ErrAbortHandler)
		})
		for _, path := range []string{"/declared/0", "/declared/9", "/declared/9998", "/declared/9999", fmt.Sprintf("/declared/%d", wholeBytes-1), "/open/9", fmt.Sprintf("/declared/%d", wholeBytes)} {
			first := s.Send(rig.Post(path, "k"))
			if first.Err == nil {
				t.Errorf("%s: the client does not see that the answer breaks off: %d", path, first.Status)
			}
			s.WantProblem(s.Do(rig.Post(path, "k")), 409, "outcome-unknown", "unknown")
		}
	})
}

func TestAnswersWithoutABody(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"endpoints": []any{"* /"}}, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", fmt.Sprintf(`"%d"`, rig.Unique.Add(1)))
			w.Header().Set("Content-Type", "text/plain")
			switch {
			case r.Method == http.MethodHead:
				w.Header().Set("Content-Length", strings.TrimPrefix(r.URL.Path, "/200/"))
			case strings.HasPrefix(r.URL.Path, "/201"):
				w.Header().Set("Content-Length", "0")
			}
			status, _ := strconv.Atoi(r.URL.Path[1:4])
			w.WriteHeader(status)
		})
		for _, what := range []string{"POST /204", "POST /304", "POST /201", "HEAD /200/0", "HEAD /200/10", "HEAD /200/10000", "HEAD /200/99999999"} {
			method, path, _ := strings.Cut(what, " ")
			c := rig.Post(path, "k").With(func(c *rig.Call) { c.Method = method })
			first, again := s.Do(c), s.Do(c)
			if first.Header.Get("Decision") != "first" || again.Header.Get("Decision") != "replayed" || again.Header.Get("ETag") != first.Header.Get("ETag") ||
				again.Status != first.Status || again.Header.Get("Content-Length") != first.Header.Get("Content-Length") {
				t.Errorf("%s: %d %v, then %d %v", what, first.Status, first.Header, again.Status, again.Header)
			}
		}
	})
}

// TestALengthWithLeadingZeros is as good as one without.
func TestALengthWithLeadingZeros(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		backend, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = backend.Close() })
		var calls atomic.Int64
		go func() {
			_ = http.Serve(backend, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { //nolint:gosec // ends with the test
				connection, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					return
				}
				defer func() { _ = connection.Close() }()
				if !hosts.IsProbe(r) {
					calls.Add(1)
				}
				_, _ = io.WriteString(connection, "HTTP/1.1 201 Created\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Type: text/plain\r\nContent-Length: 0004\r\nConnection: close\r\n\r\npaid")
			}))
		}()
		s := rig.SiteOf(t, e.Host.Serve(t, "http://"+backend.Addr().String(), e.Settings(nil)), nil)
		first := s.Do(rig.Post("/", "k"))
		s.Want(first, 201, "first")
		s.WantReplay(first, s.Do(rig.Post("/", "k")))
		if calls.Load() != 1 {
			t.Errorf("%d calls", calls.Load())
		}
	})
}

// TestAClientThatReadsNothingHoldsUpNobody has its duplicates answered meanwhile.
func TestAClientThatReadsNothingHoldsUpNobody(t *testing.T) {
	const size = 12 << 20 // more than all buffers of a connection
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"maxResponseBodyBytes": 16 << 20, "localCacheBytes": 64 << 20, "inFlightTimeout": "1m"}, func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, "/declared") {
				w.Header().Set("Content-Length", strconv.Itoa(size))
			}
			for range size / (256 << 10) {
				rig.WritePart(w, 256<<10)
			}
		})
		for name, stalled := range s.Stalls() {
			for _, path := range []string{"/declared", "/open"} {
				response := stalled.Begin(rig.Post(path, name))
				again := s.Do(rig.Post(path, name))
				s.Want(again, 200, "replayed")
				if len(again.Body) != size {
					t.Errorf("%s %s: a replay of %d bytes", name, path, len(again.Body))
				}
				n, err := io.Copy(io.Discard, response.Body)
				if n != size || err != nil {
					t.Errorf("%s %s: the first client gets %d bytes, %v", name, path, n, err)
				}
			}
		}
	})
}

// TestAnAnswerThatIsTooLargeGoesAtThePaceOfItsClient holds up its backend.
func TestAnAnswerThatIsTooLargeGoesAtThePaceOfItsClient(t *testing.T) {
	const size = 64 << 20 // more than all buffers on the way: where Traefik receives, Linux may make one of 32 MiB
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		var written atomic.Int64
		s := rig.Serve(t, host, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/declared" {
				w.Header().Set("Content-Length", strconv.Itoa(size))
			}
			for range size / (256 << 10) {
				rig.WritePart(w, 256<<10)
				written.Add(256 << 10)
			}
		}, hosts.Settings{"statusHeader": "Decision", "inFlight": "reject"})
		for name, stalled := range s.Stalls() {
			for _, path := range []string{"/declared", "/open"} {
				written.Store(0)
				response := stalled.Begin(rig.Post(path, name))
				for last := int64(0); written.Load() == 0 || written.Load() != last; time.Sleep(200 * time.Millisecond) {
					last = written.Load()
				}
				if n := written.Load(); n >= size {
					t.Errorf("%s %s: nothing holds the backend up", name, path)
				}
				a := s.Do(rig.Post(path, name))
				if a.Status != 409 {
					t.Errorf("%s %s: meanwhile %d %.100s", name, path, a.Status, a.Body)
				}
				n, err := io.Copy(io.Discard, response.Body)
				if n != size || err != nil {
					t.Errorf("%s %s: the client gets %d bytes, %v", name, path, n, err)
				}
				s.WantProblem(afterwards(s, rig.Post(path, name)), 409, "response-not-kept", "unkept")
			}
		}
	})
}

// afterwards sends c until the first request with its key has ended.
func afterwards(s *rig.Site, c rig.Call) rig.Answer {
	a := s.Do(c)
	for strings.Contains(string(a.Body), ":in-flight") {
		time.Sleep(time.Millisecond)
		a = s.Do(c)
	}
	return a
}

func TestAClientGoesWithinAStream(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		for _, detach := range []bool{true, false} {
			for _, path := range []string{"/declared", "/open", "/large"} {
				cancelled, proceed := make(chan struct{}), make(chan struct{})
				n := 200 << 10
				if path == "/large" {
					n = 2 << 20
				}
				s := e.Serve(t, hosts.Settings{"detach": detach}, func(w http.ResponseWriter, r *http.Request) {
					if path == "/declared" {
						w.Header().Set("Content-Length", strconv.Itoa(n))
					}
					rig.WritePart(w, n/2)
					if !detach {
						<-r.Context().Done()
						close(cancelled)
						panic(http.ErrAbortHandler)
					}
					<-proceed
					for range 100 {
						rig.WritePart(w, n/200)
					}
				})
				response := s.Begin(rig.Post(path, "k"))
				rig.ReadBytes(t, response, n/4)
				_ = response.Body.Close()
				s.HTTP.CloseIdleConnections()
				if !detach {
					<-cancelled
					s.WantProblem(s.Do(rig.Post(path, "k")), 409, "outcome-unknown", "unknown")
					continue
				}
				close(proceed)
				again := s.Do(rig.Post(path, "k"))
				if path == "/large" {
					s.WantProblem(again, 409, "response-not-kept", "unkept")
					continue
				}
				s.Want(again, 200, "replayed")
				if len(again.Body) != n/2+100*(n/200) {
					t.Errorf("%s: a replay of %d bytes", path, len(again.Body))
				}
			}
		}
	})
}

// TestHandlersBelowThatErr are what a middleware below may do, and no backend can.
func TestHandlersBelowThatErr(t *testing.T) {
	write := func(w http.ResponseWriter, n int) { _, _ = io.WriteString(w, strings.Repeat("x", n)) }
	for name, below := range map[string]struct {
		length string
		handle func(w http.ResponseWriter)
		again  int // status of the duplicate
		body   int // bytes of it
	}{
		"nothing of a short answer":  {"10", func(http.ResponseWriter) {}, 409, -1},
		"nothing of a long answer":   {"100000", func(http.ResponseWriter) {}, 409, -1},
		"less of a short answer":     {"10", func(w http.ResponseWriter) { write(w, 9) }, 409, -1},
		"less of a whole answer":     {"10000", func(w http.ResponseWriter) { write(w, 9999) }, 409, -1},
		"less of a long answer":      {"100000", func(w http.ResponseWriter) { write(w, 99999) }, 409, -1},
		"more of a short answer":     {"10", func(w http.ResponseWriter) { write(w, 11) }, 409, -1},
		"more of a long answer":      {"100000", func(w http.ResponseWriter) { write(w, 100001) }, 409, -1},
		"more after a long answer":   {"100000", func(w http.ResponseWriter) { write(w, 100000); write(w, 1) }, 201, 100000},
		"two headers":                {"10", func(w http.ResponseWriter) { w.WriteHeader(500); write(w, 10); w.WriteHeader(503) }, 201, 10},
		"two headers, long":          {"100000", func(w http.ResponseWriter) { w.WriteHeader(500); write(w, 100000); w.WriteHeader(103) }, 201, 100000},
		"information after a header": {"10", func(w http.ResponseWriter) { w.WriteHeader(103); write(w, 10) }, 201, 10},
		"empty parts":                {"100000", func(w http.ResponseWriter) { write(w, 0); write(w, 100000); write(w, 0) }, 201, 100000},
		"a length that is none":      {"abc", func(w http.ResponseWriter) { write(w, 10) }, 201, 10},
		"a whole answer in ten parts": {"10", func(w http.ResponseWriter) {
			for range 10 {
				write(w, 1)
			}
		}, 201, 10},
	} {
		t.Run(name, func(t *testing.T) {
			handlers(t, func(t *testing.T, build func(http.HandlerFunc) http.Handler) {
				var calls atomic.Int64
				h := build(func(w http.ResponseWriter, _ *http.Request) {
					calls.Add(1)
					w.Header().Set("Date", "Thu, 01 Jan 2026 00:00:00 GMT")
					w.Header().Set("Content-Type", "text/plain")
					w.Header().Set("Content-Length", below.length)
					w.WriteHeader(201)
					below.handle(w)
				})
				server := httptest.NewServer(h)
				defer server.Close()
				send := func() rig.Answer {
					request, _ := http.NewRequest("POST", server.URL+"/pay", strings.NewReader("body"))
					request.Header.Set("X-Request-ID", "k")
					response, err := server.Client().Do(request)
					if err != nil {
						return rig.Answer{Err: err}
					}
					defer response.Body.Close()
					body, err := io.ReadAll(response.Body)
					return rig.Answer{Status: response.StatusCode, Header: response.Header, Body: body, Err: err}
				}
				send()
				again := send()
				if again.Status != below.again || (below.body >= 0 && len(again.Body) != below.body) || calls.Load() != 1 {
					t.Errorf("again: %d, %d bytes, %v, %d calls", again.Status, len(again.Body), again.Err, calls.Load())
				}
			})
		})
	}
}

// TestAPanicWithinAStream passes when all before it is sent.
func TestAPanicWithinAStream(t *testing.T) {
	handlers(t, func(t *testing.T, build func(http.HandlerFunc) http.Handler) {
		h := build(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", "Thu, 01 Jan 2026 00:00:00 GMT")
			_, _ = io.WriteString(w, "half")
			panic("boom")
		})
		w := httptest.NewRecorder()
		func() {
			defer func() {
				if got := recover(); got != "boom" {
					t.Errorf("the panic comes out as %v", got)
				}
			}()
			h.ServeHTTP(w, rig.Keyed("POST", "k"))
		}()
		if w.Body.String() != "half" {
			t.Errorf("the client got %q", w.Body)
		}
		again := httptest.NewRecorder()
		h.ServeHTTP(again, rig.Keyed("POST", "k"))
		if again.Code != 409 || !strings.Contains(again.Body.String(), "outcome-unknown") {
			t.Errorf("again: %d %s", again.Code, again.Body)
		}
	})
}

// TestStreamsEnd has more of them than their reservations have room for together.
func TestStreamsEnd(t *testing.T) {
	handlers(t, func(t *testing.T, build func(http.HandlerFunc) http.Handler) {
		part := bytes.Repeat([]byte("x"), 80<<10)
		h := build(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", "Thu, 01 Jan 2026 00:00:00 GMT")
			_, _ = w.Write(part)
			_, _ = w.Write(part)
		})
		stream := func(i int) {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, rig.Keyed("POST", fmt.Sprintf("k%d", i)))
			if w.Body.Len() != 2*len(part) || w.Header().Get("Decision") != "first" {
				t.Fatalf("%d bytes, %v", w.Body.Len(), w.Header())
			}
		}
		stream(0)
		before := runtime.NumGoroutine()
		for i := 1; i <= 2000; i++ {
			stream(i)
		}
		again := httptest.NewRecorder()
		h.ServeHTTP(again, rig.Keyed("POST", "k2000"))
		if again.Header().Get("Decision") != "replayed" {
			t.Errorf("the last is not kept: %v", again.Header())
		}
		for runtime.NumGoroutine() > before+5 { // what never ends, ends in the test's time-out
			time.Sleep(10 * time.Millisecond)
		}
	})
}

// broken is a middleware above that cannot take an answer.
type broken struct{ http.ResponseWriter }

func (broken) Write([]byte) (int, error) { panic("broken") }

// TestAPanicAboveLeavesRoom has more errors whose sending panics than there is room for together.
func TestAPanicAboveLeavesRoom(t *testing.T) {
	handlers(t, func(t *testing.T, build func(http.HandlerFunc) http.Handler) {
		h := build(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000000")
			w.WriteHeader(404)
			_, _ = w.Write(make([]byte, 1_000_000))
		})
		for i := range 270 {
			func() {
				defer func() { _ = recover() }()
				h.ServeHTTP(broken{httptest.NewRecorder()}, rig.Keyed("POST", fmt.Sprintf("k%d", i)))
			}()
		}
		h.ServeHTTP(httptest.NewRecorder(), rig.Keyed("POST", "k"))
		again := httptest.NewRecorder()
		h.ServeHTTP(again, rig.Keyed("POST", "k"))
		if again.Code != 404 || again.Header().Get("Decision") != "replayed" {
			t.Errorf("there is no room afterwards: %d %v", again.Code, again.Header())
		}
	})
}

// TestAnErrorIsNotFlushed: a retry or failover above takes the header of an error away, and a flush would make it a 200.
func TestAnErrorIsNotFlushed(t *testing.T) {
	handlers(t, func(t *testing.T, build func(http.HandlerFunc) http.Handler) {
		for _, status := range []int{201, 404, 500, 503} {
			for _, from := range []string{"the backend", "a middleware"} {
				for _, size := range []int{wholeBytes + 1, 2 << 20} { // more than is kept
					for _, declared := range []bool{true, false} {
						h := build(func(w http.ResponseWriter, _ *http.Request) {
							if from == "the backend" {
								w.Header().Set("Date", "Thu, 01 Jan 2026 00:00:00 GMT")
							}
							if declared {
								w.Header().Set("Content-Length", strconv.Itoa(size))
							}
							w.WriteHeader(status)
							_, _ = w.Write(make([]byte, size/2))
							_, _ = w.Write(make([]byte, size-size/2))
						})
						w := httptest.NewRecorder()
						h.ServeHTTP(w, rig.Keyed("POST", "k"))
						if live := status == 201 && from == "the backend"; w.Code != status || w.Body.Len() != size || w.Flushed != live {
							t.Errorf("%d of %s, %d bytes, declared: %t: got %d, %d bytes, flushed: %t", status, from, size, declared, w.Code, w.Body.Len(), w.Flushed)
						}
					}
				}
			}
		}
	})
}

// halves answers with the status that r asks for, in two halves, or breaks off after the first.
func halves(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/declared") {
		w.Header().Set("Content-Length", strconv.Itoa(100_000))
	}
	w.WriteHeader(asked(r))
	rig.WritePart(w, 50_000)
	if strings.HasSuffix(path.Dir(r.URL.Path), "/broken") {
		panic(http.ErrAbortHandler)
	}
	rig.WritePart(w, 50_000)
}

func TestAnErrorGoesWhole(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, nil, halves)
		for _, where := range []string{"/declared/whole/400", "/declared/whole/500", "/open/whole/400", "/open/whole/500"} {
			first := s.Do(rig.Post(where, "k"))
			s.Want(first, first.Status, "first")
			if len(first.Body) != 100_000 || !strings.HasSuffix(where, fmt.Sprint(first.Status)) {
				t.Errorf("%s: %d, %d bytes", where, first.Status, len(first.Body))
			}
			s.WantReplay(first, s.Do(rig.Post(where, "k")))
		}
	})
}

// TestAnErrorThatBreaksOff says so in its header, since it is sent when it has ended.
func TestAnErrorThatBreaksOff(t *testing.T) {
	hosts.NotIn30(t)
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, nil, halves)
		for _, where := range []string{"/declared/broken/400", "/declared/broken/500", "/open/broken/400", "/open/broken/500"} {
			broken := s.Send(rig.Post(where, "k"))
			if broken.Err == nil || broken.Header.Get("Decision") != "unknown" || !strings.HasSuffix(where, fmt.Sprint(broken.Status)) {
				t.Errorf("%s: %d %q, %v", where, broken.Status, broken.Header.Get("Decision"), broken.Err)
			}
			s.WantProblem(s.Do(rig.Post(where, "k")), 409, "outcome-unknown", "unknown")
		}
	})
}
