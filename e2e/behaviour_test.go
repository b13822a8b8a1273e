package e2e

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"log"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
)

var quiet = log.New(io.Discard, "", 0)

func TestADuplicateIsReplayed(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		s := e.serve(t, nil, created)
		first := s.do(post("/pay", "k1"))
		s.want(first, 201, "first")
		if first.header.Get("Idempotent-Replayed") != "" {
			t.Error("the first answer is marked as a replay")
		}
		for range 3 {
			s.wantReplay(first, s.do(post("/pay", "k1")))
		}
		s.calls(1)
		s.want(s.do(post("/pay", "k2")), 201, "first")
		s.want(s.do(post("/other", "k1")), 201, "first")
		s.want(s.do(post("/pay", "k1").with(func(c *call) { c.method = http.MethodPut })), 201, "first")
		s.calls(4)
	})
}

func TestReplaysAreExact(t *testing.T) {
	binary := make([]byte, 200_000)
	for i := range binary {
		binary[i] = byte(i * 31)
	}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, _ = z.Write(bytes.Repeat([]byte("zip me "), 1000))
	_ = z.Close()
	cases := []struct {
		name    string
		handler http.HandlerFunc
	}{
		{"many values", func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Link"] = []string{"<a>; rel=x", "<b>; rel=y"}
			w.Header()["Vary"] = []string{"Accept", "Origin"}
			w.Header().Set("X-Empty", "")
			w.Header().Set("X-Latin1", "caf\xe9")
			_, _ = io.WriteString(w, "ok")
		}},
		{"empty 200", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) }},
		{"204", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }},
		{"304", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Etag", `"x"`)
			w.WriteHeader(304)
		}},
		{"304 with the length of what is not sent", func(w http.ResponseWriter, _ *http.Request) {
			conn, buffered, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err)
			}
			defer conn.Close()
			_, _ = buffered.WriteString("HTTP/1.1 304 Not Modified\r\nConnection: close\r\nDate: Mon, 02 Jan 2023 15:04:05 GMT\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\n")
			_ = buffered.Flush()
		}},
		{"302", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(302)
		}},
		{"404", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no such account", 404) }},
		{"500 of the backend's own", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "we failed", 500) }},
		{"502 of the backend's own", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "their fault", 502) }},
		{"599", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(599) }},
		{"binary", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/octet-stream")
			_, _ = w.Write(binary)
		}},
		{"gzip", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(zipped.Bytes())
		}},
		{"in parts, with a length", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			w.Header().Set("Content-Length", "16")
			for range 4 {
				_, _ = io.WriteString(w, "part")
				w.(http.Flusher).Flush()
			}
		}},
		{"without a length", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			for i := range 5 {
				fmt.Fprintf(w, "chunk %d\n", i)
				w.(http.Flusher).Flush()
			}
		}},
		{"without a type", func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = nil
			_, _ = io.WriteString(w, "<html><body>guess</body></html>")
		}},
	}
	everywhere(t, func(t *testing.T, e *env) {
		byName := map[string]http.HandlerFunc{}
		for _, c := range cases {
			byName[c.name] = c.handler
		}
		s := e.serve(t, nil, func(w http.ResponseWriter, r *http.Request) { byName[r.Header.Get("Case")](w, r) })
		for i, c := range cases {
			key := fmt.Sprintf("exact-%d", i)
			first := s.do(post("/", key, "Case", c.name))
			for range 2 {
				again := s.do(post("/", key, "Case", c.name))
				if again.header.Get("Idempotent-Replayed") != "true" || again.header.Get("Decision") != "replayed" {
					t.Errorf("%s: not replayed: %d %v", c.name, again.status, again.header)
				}
				if again.status != first.status || !bytes.Equal(again.body, first.body) {
					t.Errorf("%s: replayed %d %.60q, want %d %.60q", c.name, again.status, again.body, first.status, first.body)
				}
				length := again.header.Get("Content-Length")
				if again.status != 204 && again.status != 304 && length != fmt.Sprint(len(first.body)) {
					t.Errorf("%s: replay with Content-Length %q and %d bytes", c.name, length, len(first.body))
				}
				if want, got := comparable(first.header), comparable(again.header); !reflect.DeepEqual(want, got) {
					t.Errorf("%s: replayed header\n%v, want\n%v", c.name, got, want)
				}
			}
		}
		s.calls(int64(len(cases)))
	})
}

// comparable is the header without what has to differ between an answer and its replay.
func comparable(h http.Header) http.Header {
	h = h.Clone()
	h.Del("Decision")
	h.Del("Idempotent-Replayed")
	h.Del("Content-Length") // an answer that came in chunks has none, its replay has
	return h
}

func TestSetCookieIsForTheFirstCallerAlone(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		handler := func(w http.ResponseWriter, r *http.Request) {
			w.Header().Add("Set-Cookie", "a=1")
			w.Header().Add("X-Internal", "2")
			created(w, r)
		}
		s := e.serve(t, nil, handler)
		first := s.do(post("/", "k"))
		again := s.do(post("/", "k"))
		if first.header.Get("Set-Cookie") != "a=1" || again.header.Get("Set-Cookie") != "" || again.header.Get("X-Internal") != "2" {
			t.Errorf("first %v\nreplay %v", first.header, again.header)
		}
		s = e.serve(t, hosts.Settings{"omitHeaders": "x-internal, date", "replayHeader": "X-Again"}, handler)
		s.do(post("/", "k"))
		again = s.do(post("/", "k"))
		if again.header.Get("Set-Cookie") != "a=1" || again.header.Get("X-Internal") != "" || again.header.Get("X-Again") != "true" {
			t.Errorf("omitHeaders and replayHeader: %v", again.header)
		}
	})
}

func TestKeys(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		s := e.serve(t, hosts.Settings{"maxKeyLength": 20, "required": true}, created)
		for _, bad := range []string{"a b", "ü", "a,b", `"abc`, `abc"`, `""`, `"a b"`, `"a\"b"`, "a;b", strings.Repeat("x", 21), `"` + strings.Repeat("x", 21) + `"`, strings.Repeat("x", 5000)} {
			a := s.do(post("/", bad))
			s.wantProblem(a, 400, "invalid-key", "invalid")
			if !bytes.Contains(a.body, []byte(`"detail":"invalid idempotency key"`)) {
				t.Errorf("key %q: %s", bad, a.body)
			}
			if bytes.Contains(a.body, []byte(bad)) {
				t.Errorf("key %q comes back in the answer: %s", bad, a.body)
			}
		}
		s.wantProblem(s.do(post("/", "one", "X-Request-ID", "two")), 400, "invalid-key", "invalid")
		s.wantProblem(s.do(post("/", "same", "X-Request-ID", "same")), 400, "invalid-key", "invalid")
		s.wantProblem(s.do(post("/", "")), 400, "missing-key", "missing")
		s.wantProblem(s.do(post("/", "").with(func(c *call) { c.header["X-Request-ID"] = []string{""} })), 400, "missing-key", "missing")
		s.calls(0)
		for i, good := range []string{"a", "A-Za_z.0/9", strings.Repeat("x", 20), `"` + strings.Repeat("y", 20) + `"`} {
			s.want(s.do(post("/", good)), 201, "first")
			s.calls(int64(i + 1))
		}
		first := s.do(post("/", `"quoted"`))
		s.wantReplay(first, s.do(post("/", "quoted")))
	})
}

func TestWithoutAKeyNothingHappens(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		s := e.serve(t, nil, created)
		s.want(s.do(post("/", "")), 201, "")
		s.want(s.do(post("/", "")), 201, "")
		s.want(s.do(post("/", "k").with(func(c *call) { c.method = http.MethodGet })), 201, "")
		s.want(s.do(post("/", "k").with(func(c *call) { c.method = http.MethodGet })), 201, "")
		s.calls(4)
	})
}

func TestAnotherRequestWithTheKeyIsRefused(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		s := e.serve(t, nil, created)
		first := s.do(post("/pay?a=1", "k"))
		s.wantProblem(s.do(post("/pay?a=1", "k").with(func(c *call) { c.body = "{}" })), 422, "key-reused", "mismatch")
		s.wantProblem(s.do(post("/pay?a=2", "k")), 422, "key-reused", "mismatch")
		s.wantProblem(s.do(post("/pay?a=1", "k").with(func(c *call) { c.header.Set("Content-Type", "text/plain") })), 422, "key-reused", "mismatch")
		s.wantReplay(first, s.do(post("/pay?a=1", "k")))
		s.calls(1)

		s = e.serve(t, hosts.Settings{"onMismatch": "replay"}, created)
		first = s.do(post("/pay", "k"))
		s.wantReplay(first, s.do(post("/pay", "k").with(func(c *call) { c.body = "{}" })))
		s.calls(1)
	})
}

func TestCallersAreApart(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		s := e.serve(t, hosts.Settings{"scope": []any{"Authorization", "X-Tenant"}}, created)
		alice := s.do(post("/", "k", "Authorization", "Bearer alice"))
		s.want(s.do(post("/", "k", "Authorization", "Bearer bob")), 201, "first")
		s.want(s.do(post("/", "k")), 201, "first")
		s.want(s.do(post("/", "k", "Authorization", "Bearer alice", "X-Tenant", "t")), 201, "first")
		s.wantReplay(alice, s.do(post("/", "k", "Authorization", "Bearer alice")))
		s.calls(4)

		s = e.serve(t, nil, created)
		s.want(s.do(post("/", "k", "Authorization", "Bearer alice")), 201, "first")
		s.want(s.do(post("/", "k", "Authorization", "Bearer bob")), 201, "first")
		s.want(s.do(post("/", "k", "X-Tenant", "t")), 201, "first")
		s.want(s.do(post("/", "k", "X-Tenant", "u")), 201, "replayed")
		s.calls(3)
	})
}

func TestHostsAreApart(t *testing.T) {
	b := newBackend(t, created)
	for _, host := range []hosts.Host{hosts.Compiled, hosts.Yaegi} { // a Traefik site has one name
		site := siteOf(t, host.Serve(t, b.URL, hosts.Settings{"statusHeader": "Decision"}), b)
		site.want(site.do(post("/", "k", "Host", "a.test")), 201, "first")
		site.want(site.do(post("/", "k", "Host", "b.test")), 201, "first")
		site.want(site.do(post("/", "k", "Host", "A.test")), 201, "replayed")
	}
}

func TestEndpoints(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		s := e.serve(t, hosts.Settings{
			"methods":   []any{"PATCH", "POST"},
			"endpoints": []any{"PUT /api/payments/", "/api/orders/", "* /api/critical/", "POST /api/v5/order/*/pay/", "post /a.c"},
		}, created)
		n := 0
		for _, c := range []struct {
			method, path string
			protected    bool
		}{
			{"PUT", "/api/payments/", true},
			{"PUT", "/api/payments/1/refund", true},
			{"PUT", "/api/payments", true},
			{"PUT", "/api/paymentsX", false},
			{"PUT", "/api/payments%0a", false},
			{"PUT", "/v1/api/payments", false},
			{"POST", "/api/payments/", false},
			{"POST", "/api/orders/7", true},
			{"PATCH", "/api/orders/7", true},
			{"PUT", "/api/orders/7", false},
			{"GET", "/api/critical/x", true},
			{"DELETE", "/api/critical/", true},
			{"PURGE", "/api/critical/", true},
			{"POST", "/api/v5/order/12/pay/", true},
			{"POST", "/api/v5/order/12/34/pay/now", true},
			{"POST", "/api/v5/order/12/pay", true},
			{"POST", "/api/v5/order/12/payment", false},
			{"POST", "/api/v5/order/pay", false},
			{"POST", "/api/orders", true},
			{"GET", "/api/critical", true},
			{"GET", "/api/criticalities", false},
			{"GET", "/", false},
			{"POST", "/x/api/orders/7", false},
			{"POST", "/a.c", true},
			{"POST", "/abc", false},
			{"POST", "/api/%6frders/7", true},
		} {
			n++
			decision := ""
			if c.protected {
				decision = "first"
			}
			a := s.do(call{method: c.method, path: c.path, header: http.Header{"X-Request-Id": {fmt.Sprintf("e%d", n)}}})
			if a.header.Get("Decision") != decision {
				t.Errorf("%s %s: decision %q, want %q", c.method, c.path, a.header.Get("Decision"), decision)
			}
		}
		s.calls(int64(n))
	})
}

func TestAnAnswerExpires(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		s := e.serve(t, hosts.Settings{"ttl": 1}, created)
		begin := time.Now()
		s.want(s.do(post("/", "k")), 201, "first")
		for s.do(post("/", "k")).header.Get("Decision") == "replayed" {
			time.Sleep(20 * time.Millisecond) // an answer that never expires ends in the test's time-out
		}
		if time.Since(begin) < 500*time.Millisecond {
			t.Error("an answer with a ttl of 1 second was gone in half of one")
		}
		s.calls(2)
	})
}

func TestDuplicatesOfARunningRequestWait(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		arrived, proceed := make(chan struct{}), make(chan struct{})
		s := e.serve(t, nil, gated(arrived, proceed))
		answers := make([]answer, 20)
		var wg sync.WaitGroup
		send := func(i int) {
			defer wg.Done()
			answers[i] = s.send(post("/", "k"))
		}
		wg.Add(len(answers))
		go send(0)
		<-arrived
		for i := 1; i < len(answers); i++ {
			go send(i)
		}
		mismatch := s.do(post("/", "k").with(func(c *call) { c.body = "{}" })) // at once, though the first still runs
		s.wantProblem(mismatch, 422, "key-reused", "mismatch")
		close(proceed)
		wg.Wait()
		s.want(answers[0], 201, "first")
		for _, a := range answers[1:] {
			s.wantReplay(answers[0], a)
		}
		s.calls(1)
	})
}

func TestOfThoseWhoWaitForAFreedKeyOneRuns(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		arrived, proceed := make(chan struct{}, 1), make(chan struct{})
		var first sync.Once
		s := e.serve(t, nil, func(w http.ResponseWriter, r *http.Request) {
			failed := false
			first.Do(func() {
				arrived <- struct{}{}
				<-proceed
				failed = true
			})
			if failed {
				http.Error(w, "come again", 503)
				return
			}
			created(w, r)
		})
		answers := make([]answer, 20)
		var wg sync.WaitGroup
		wg.Add(len(answers))
		send := func(i int) {
			defer wg.Done()
			answers[i] = s.send(post("/", "k"))
		}
		go send(0)
		<-arrived
		for i := 1; i < len(answers); i++ {
			go send(i)
		}
		close(proceed)
		wg.Wait()
		s.want(answers[0], 503, "released")
		ran := 0
		for _, a := range answers[1:] {
			switch a.header.Get("Decision") {
			case "first":
				ran++
			default:
				s.want(a, 201, "replayed")
			}
		}
		if ran != 1 {
			t.Errorf("%d of the waiting requests ran, want 1", ran)
		}
		s.calls(2)
	})
}

func TestADuplicateIsRejectedOrWaitsNoLongerThanAsked(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		for _, settings := range []hosts.Settings{{"inFlight": "reject"}, {"inFlightTimeout": "300ms"}} {
			arrived, proceed := make(chan struct{}), make(chan struct{})
			s := e.serve(t, settings, gated(arrived, proceed))
			first := make(chan answer)
			go func() { first <- s.send(post("/", "k")) }()
			<-arrived
			conflict := s.do(post("/", "k"))
			s.wantProblem(conflict, 409, "in-flight", "conflict")
			if conflict.header.Get("Retry-After") != "1" {
				t.Errorf("Retry-After %q", conflict.header.Get("Retry-After"))
			}
			close(proceed)
			s.want(<-first, 201, "first")
			s.want(s.do(post("/", "k")), 201, "replayed")
			s.calls(1)
		}
	})
}

func TestALeaseIsRenewedWhileTheRequestRuns(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		arrived, proceed := make(chan struct{}), make(chan struct{})
		s := serve(t, e.host, gated(arrived, proceed), withTimeouts("2s", e.settings(hosts.Settings{"lease": "3s", "inFlight": "reject", "localCacheBytes": 0})))
		first := make(chan answer)
		go func() { first <- s.send(post("/", "k")) }()
		<-arrived
		for end := time.Now().Add(4 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			s.wantProblem(s.do(post("/", "k")), 409, "in-flight", "conflict")
		}
		close(proceed)
		s.want(<-first, 201, "first")
		s.want(s.do(post("/", "k")), 201, "replayed")
		s.calls(1)
	})
}

func TestAStatusThatAsksToComeAgainFreesTheKey(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		status := func(w http.ResponseWriter, r *http.Request) {
			var code int
			_, _ = fmt.Sscan(r.Header.Get("Status"), &code)
			http.Error(w, "as asked", code)
		}
		for _, c := range []struct {
			settings hosts.Settings
			released []string
			kept     []string
		}{
			{nil, []string{"408", "421", "425", "429", "503"}, []string{"500", "502", "504", "409", "423", "424", "400", "200"}},
			{hosts.Settings{"retryableStatuses": "409, 500-504"}, []string{"409", "500", "502", "503", "504"}, []string{"408", "429", "505"}},
			{hosts.Settings{"retryableStatuses": []any{}}, nil, []string{"408", "421", "425", "429", "503"}},
		} {
			s := e.serve(t, c.settings, status)
			for _, code := range c.released {
				s.do(post("/", "s"+code, "Status", code))
				a := s.do(post("/", "s"+code, "Status", code))
				if a.header.Get("Decision") != "released" || fmt.Sprint(a.status) != code {
					t.Errorf("%s: %d %q, want it released", code, a.status, a.header.Get("Decision"))
				}
			}
			for _, code := range c.kept {
				s.do(post("/", "s"+code, "Status", code))
				a := s.do(post("/", "s"+code, "Status", code))
				if a.header.Get("Decision") != "replayed" || fmt.Sprint(a.status) != code {
					t.Errorf("%s: %d %q, want it replayed", code, a.status, a.header.Get("Decision"))
				}
			}
			s.calls(int64(2*len(c.released) + len(c.kept)))
		}
	})
}

func TestAnAnswerTooLargeToKeepIsDeliveredWhole(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		big := strings.Repeat("0123456789", 2000)
		s := e.serve(t, hosts.Settings{"maxResponseBodyBytes": 10_000}, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Chunked") == "" {
				w.Header().Set("Content-Length", fmt.Sprint(len(big)))
			}
			w.WriteHeader(202)
			for i := 0; i < len(big); i += 1000 {
				_, _ = io.WriteString(w, big[i:i+1000])
				w.(http.Flusher).Flush()
			}
		})
		first := s.do(post("/", "known"))
		s.want(first, 202, "unkept")
		chunked := s.do(post("/", "chunked", "Chunked", "yes"))
		s.want(chunked, 202, "first") // its length is not known when its header is sent
		for _, a := range []answer{first, chunked} {
			if string(a.body) != big {
				t.Errorf("%d bytes delivered, want %d", len(a.body), len(big))
			}
		}
		for _, key := range []string{"known", "chunked"} {
			a := s.do(post("/", key))
			s.wantProblem(a, 409, "response-not-kept", "unkept")
			if !bytes.Contains(a.body, []byte(`"originalStatus":202`)) {
				t.Errorf("no originalStatus: %s", a.body)
			}
		}
		s.calls(2)
	})
}

func TestRequestBodies(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		s := e.serve(t, hosts.Settings{"maxRequestBodyBytes": 1000}, func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%d %v %d %v", len(body), err, r.ContentLength, r.TransferEncoding)
		})
		body := strings.Repeat("x", 5000)
		for i, c := range []struct {
			body    string
			chunked bool
			want    string
		}{
			{"", false, "0 <nil> 0 []"},
			{body[:999], false, "999 <nil> 999 []"},
			{body[:1000], false, "1000 <nil> 1000 []"},
			{body[:1001], false, "1001 <nil> 1001 []"},
			{body, false, "5000 <nil> 5000 []"},
			{body[:10], true, "10 <nil> -1 [chunked]"},
			{body, true, "5000 <nil> -1 [chunked]"},
		} {
			request := post("/", fmt.Sprintf("b%d", i)).with(func(r *call) {
				r.body = c.body
			})
			chunk := func() call {
				if c.chunked {
					request.reader = struct{ io.Reader }{strings.NewReader(c.body)}
				}
				return request
			}
			first := s.do(chunk())
			if string(first.body) != c.want {
				t.Errorf("body %d: the backend saw %q, want %q", i, first.body, c.want)
			}
			s.wantReplay(first, s.do(chunk()))
		}
		s.calls(7)
		// What is read is compared, and the declared length.
		first := s.do(post("/", "long").with(func(c *call) { c.body = body }))
		s.wantReplay(first, s.do(post("/", "long").with(func(c *call) { c.body = body[:2000] + "y" + body[2001:] })))
		s.wantProblem(s.do(post("/", "long").with(func(c *call) { c.body = body + "x" })), 422, "key-reused", "mismatch")
		s.wantProblem(s.do(post("/", "long").with(func(c *call) { c.body = "y" + body[1:] })), 422, "key-reused", "mismatch")
	})
}

// TestLargeBodiesAtTheSameTime sends bodies back, many at a time, so that some go to Redis together with others.
func TestLargeBodiesAtTheSameTime(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		room := hosts.Settings{"maxResponseBodyBytes": 1<<20 + 1<<10} // the header counts as well
		s := e.serve(t, room, func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				w.WriteHeader(400)
				return
			}
			if r.Header.Get("Streamed") == "" {
				w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			}
			w.WriteHeader(201)
			for len(body) > 0 {
				part := body[:min(len(body), 30_000)]
				_, _ = w.Write(part)
				body = body[len(part):]
			}
		})
		text := strings.Repeat("0123456789abcde ", 1<<16) // as much as is compared
		var all sync.WaitGroup
		for i, size := range []int{100, 16 << 10, 16<<10 + 1, 32 << 10, 33 << 10, 64 << 10, 100_000, 500_000, 1 << 20} {
			for _, streamed := range []string{"", "yes"} {
				all.Go(func() {
					body := text[i:size] + strings.Repeat("x", i)
					request := func(body string) call {
						c := post("/", fmt.Sprint(size, "-", streamed), "Streamed", streamed)
						c.body = body
						if streamed != "" {
							c.reader = struct{ io.Reader }{strings.NewReader(body)}
						}
						return c
					}
					first := s.do(request(body))
					s.want(first, 201, "first")
					if string(first.body) != body {
						t.Errorf("%d bytes, streamed %q: %d bytes came back", size, streamed, len(first.body))
					}
					s.wantReplay(first, s.do(request(body)))
					s.wantProblem(s.do(request("y"+body[1:])), 422, "key-reused", "mismatch")
					s.wantProblem(s.do(request(body[:size-1]+"y")), 422, "key-reused", "mismatch")
				})
			}
		}
		all.Wait()
		s.calls(18)
	})
}

func TestObserveBlocksNothing(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		s := e.serve(t, hosts.Settings{"mode": "observe", "required": true, "logLevel": "debug"}, created)
		for range 2 {
			s.want(s.do(post("/", "k")), 201, "observed")
			s.want(s.do(post("/", "")), 201, "")
			s.want(s.do(post("/", "not valid")), 201, "")
		}
		s.want(s.do(post("/", "k").with(func(c *call) { c.body = "{}" })), 201, "observed")
		s.calls(7)
		s.awaitLog("duplicate observed")
		below := serve(t, e.host, created, e.settings(hosts.Settings{"mode": "observe", "statusHeader": ""}), e.settings(nil))
		first := below.do(post("/", "k"))
		below.wantReplay(first, below.do(post("/", "k"))) // one that observes does not switch off one that enforces
	})
}

func TestTwiceInOneChain(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		settings := e.settings(nil)
		s := serve(t, e.host, created, settings, settings)
		first := s.do(post("/", "k"))
		s.want(first, 201, "first")
		s.wantReplay(first, s.do(post("/", "k")))
		s.calls(1)
	})
}

func TestTwoRoutersDiffer(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		strict := e.serve(t, hosts.Settings{"required": true, "header": "Idempotency-Key"}, created)
		loose := e.serve(t, nil, created)
		strict.wantProblem(strict.do(post("/", "k")), 400, "missing-key", "missing")
		loose.want(loose.do(post("/", "")), 201, "")
		strict.want(strict.do(post("/", "", "Idempotency-Key", "k")), 201, "first")
		loose.want(loose.do(post("/", "", "Idempotency-Key", "k")), 201, "")
	})
}

// TestAStartIsLogged wants one line with the settings as they are in force.
func TestAStartIsLogged(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		s := e.serve(t, hosts.Settings{"logLevel": "info", "ttl": "17s", "methods": "POST,put", "stats": map[string]any{"users": "ann:private"}}, created)
		want := `mode="enforce" ttl="17s" methods="POST, PUT" endpoints="all paths"`
		s.awaitLog(want)
		for line := range strings.Lines(s.Logs()) {
			if strings.Contains(line, want) && (!strings.Contains(line, `level=info msg="ready" middleware="`) || strings.Contains(line, "private")) {
				t.Errorf("start: %s", line)
			}
		}
	})
}

func TestNoKeyTokenOrBodyInTheLogs(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		s := e.serve(t, hosts.Settings{"logLevel": "debug"}, created)
		secret := post("/", "hush-key", "Authorization", "Bearer hush-token").with(func(c *call) { c.body = "hush-body" })
		s.do(secret)
		s.do(secret)
		s.do(post("/", "hush-bad key"))
		if i := strings.Index(s.Logs(), "hush-"); i >= 0 {
			t.Errorf("in the log: %.100s", s.Logs()[i:])
		}
	})
}

// TestACacheIsForThoseWhoHaveOne has two middlewares on the same keys, one without a local cache: it asks Redis.
func TestACacheIsForThoseWhoHaveOne(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		e := &env{host: host, redis: sharedRedis(t)}
		settings := e.settings(hosts.Settings{"scope": []any{"Authorization"}})
		without := hosts.Settings{"localCacheBytes": 0}
		for key, value := range settings {
			without[key] = value
		}
		b := newBackend(t, created)
		cached := siteOf(t, host.Serve(t, b.URL, settings), b)
		plain := siteOf(t, host.Serve(t, b.URL, without), b)
		first := cached.do(post("/", "k"))
		plain.wantReplay(first, plain.do(post("/", "k")))
		for _, key := range strings.Fields(e.redis.Do("KEYS", settings["redis"].(map[string]any)["keyPrefix"].(string)+":req:*")) {
			e.redis.Do("DEL", key)
		}
		cached.wantReplay(first, cached.do(post("/", "k")))
		plain.want(plain.do(post("/", "k")), 201, "first")
		plain.calls(2)
	})
}
