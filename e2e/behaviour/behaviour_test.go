package behaviour

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

func TestADuplicateIsReplayed(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, nil, rig.Created)
		first := s.Do(rig.Post("/pay", "k1"))
		s.Want(first, 201, "first")
		if first.Header.Get("Idempotent-Replayed") != "" {
			t.Error("the first answer is marked as a replay")
		}
		for range 3 {
			s.WantReplay(first, s.Do(rig.Post("/pay", "k1")))
		}
		s.Calls(1)
		s.Want(s.Do(rig.Post("/pay", "k2")), 201, "first")
		s.Want(s.Do(rig.Post("/other", "k1")), 201, "first")
		s.Want(s.Do(rig.Post("/pay", "k1").With(func(c *rig.Call) { c.Method = http.MethodPut })), 201, "first")
		s.Calls(4)
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
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		byName := map[string]http.HandlerFunc{}
		for _, c := range cases {
			byName[c.name] = c.handler
		}
		s := e.Serve(t, nil, func(w http.ResponseWriter, r *http.Request) { byName[r.Header.Get("Case")](w, r) })
		for i, c := range cases {
			key := fmt.Sprintf("exact-%d", i)
			first := s.Do(rig.Post("/", key, "Case", c.name))
			for range 2 {
				again := s.Do(rig.Post("/", key, "Case", c.name))
				if again.Header.Get("Idempotent-Replayed") != "true" || again.Header.Get("Decision") != "replayed" {
					t.Errorf("%s: not replayed: %d %v", c.name, again.Status, again.Header)
				}
				if again.Status != first.Status || !bytes.Equal(again.Body, first.Body) {
					t.Errorf("%s: replayed %d %.60q, want %d %.60q", c.name, again.Status, again.Body, first.Status, first.Body)
				}
				length := again.Header.Get("Content-Length")
				if again.Status != 204 && again.Status != 304 && length != fmt.Sprint(len(first.Body)) {
					t.Errorf("%s: replay with Content-Length %q and %d bytes", c.name, length, len(first.Body))
				}
				if want, got := comparable(first.Header), comparable(again.Header); !reflect.DeepEqual(want, got) {
					t.Errorf("%s: replayed header\n%v, want\n%v", c.name, got, want)
				}
			}
		}
		s.Calls(int64(len(cases)))
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
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		handler := func(w http.ResponseWriter, r *http.Request) {
			w.Header().Add("Set-Cookie", "a=1")
			w.Header().Add("X-Internal", "2")
			rig.Created(w, r)
		}
		s := e.Serve(t, nil, handler)
		first := s.Do(rig.Post("/", "k"))
		again := s.Do(rig.Post("/", "k"))
		if first.Header.Get("Set-Cookie") != "a=1" || again.Header.Get("Set-Cookie") != "" || again.Header.Get("X-Internal") != "2" {
			t.Errorf("first %v\nreplay %v", first.Header, again.Header)
		}
		s = e.Serve(t, hosts.Settings{"omitHeaders": "x-internal, date", "replayHeader": "X-Again"}, handler)
		s.Do(rig.Post("/", "k"))
		again = s.Do(rig.Post("/", "k"))
		if again.Header.Get("Set-Cookie") != "a=1" || again.Header.Get("X-Internal") != "" || again.Header.Get("X-Again") != "true" {
			t.Errorf("omitHeaders and replayHeader: %v", again.Header)
		}
	})
}

func TestKeys(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"maxKeyLength": 20, "required": true}, rig.Created)
		for _, bad := range []string{"a b", "ü", "a,b", `"abc`, `abc"`, `""`, `"a b"`, `"a\"b"`, "a;b", strings.Repeat("x", 21), `"` + strings.Repeat("x", 21) + `"`, strings.Repeat("x", 5000)} {
			a := s.Do(rig.Post("/", bad))
			s.WantProblem(a, 400, "invalid-key", "invalid")
			if !bytes.Contains(a.Body, []byte(`"detail":"invalid idempotency key"`)) {
				t.Errorf("key %q: %s", bad, a.Body)
			}
			if bytes.Contains(a.Body, []byte(bad)) {
				t.Errorf("key %q comes back in the answer: %s", bad, a.Body)
			}
		}
		s.WantProblem(s.Do(rig.Post("/", "one", "X-Request-ID", "two")), 400, "invalid-key", "invalid")
		s.WantProblem(s.Do(rig.Post("/", "same", "X-Request-ID", "same")), 400, "invalid-key", "invalid")
		s.WantProblem(s.Do(rig.Post("/", "")), 400, "missing-key", "missing")
		s.WantProblem(s.Do(rig.Post("/", "").With(func(c *rig.Call) { c.Header["X-Request-ID"] = []string{""} })), 400, "missing-key", "missing")
		s.Calls(0)
		for i, good := range []string{"a", "A-Za_z.0/9", strings.Repeat("x", 20), `"` + strings.Repeat("y", 20) + `"`} {
			s.Want(s.Do(rig.Post("/", good)), 201, "first")
			s.Calls(int64(i + 1))
		}
		first := s.Do(rig.Post("/", `"quoted"`))
		s.WantReplay(first, s.Do(rig.Post("/", "quoted")))
	})
}

func TestWithoutAKeyNothingHappens(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, nil, rig.Created)
		s.Want(s.Do(rig.Post("/", "")), 201, "")
		s.Want(s.Do(rig.Post("/", "")), 201, "")
		s.Want(s.Do(rig.Post("/", "k").With(func(c *rig.Call) { c.Method = http.MethodGet })), 201, "")
		s.Want(s.Do(rig.Post("/", "k").With(func(c *rig.Call) { c.Method = http.MethodGet })), 201, "")
		s.Calls(4)
	})
}

func TestAnotherRequestWithTheKeyIsRefused(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, nil, rig.Created)
		first := s.Do(rig.Post("/pay?a=1", "k"))
		s.WantProblem(s.Do(rig.Post("/pay?a=1", "k").With(func(c *rig.Call) { c.Body = "{}" })), 422, "key-reused", "mismatch")
		s.WantProblem(s.Do(rig.Post("/pay?a=2", "k")), 422, "key-reused", "mismatch")
		s.WantProblem(s.Do(rig.Post("/pay?a=1", "k").With(func(c *rig.Call) { c.Header.Set("Content-Type", "text/plain") })), 422, "key-reused", "mismatch")
		s.WantReplay(first, s.Do(rig.Post("/pay?a=1", "k")))
		s.Calls(1)

		s = e.Serve(t, hosts.Settings{"onMismatch": "replay"}, rig.Created)
		first = s.Do(rig.Post("/pay", "k"))
		s.WantReplay(first, s.Do(rig.Post("/pay", "k").With(func(c *rig.Call) { c.Body = "{}" })))
		s.Calls(1)
	})
}

func TestCallersAreApart(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"scope": []any{"Authorization", "X-Tenant"}}, rig.Created)
		alice := s.Do(rig.Post("/", "k", "Authorization", "Bearer alice"))
		s.Want(s.Do(rig.Post("/", "k", "Authorization", "Bearer bob")), 201, "first")
		s.Want(s.Do(rig.Post("/", "k")), 201, "first")
		s.Want(s.Do(rig.Post("/", "k", "Authorization", "Bearer alice", "X-Tenant", "t")), 201, "first")
		s.WantReplay(alice, s.Do(rig.Post("/", "k", "Authorization", "Bearer alice")))
		s.Calls(4)

		s = e.Serve(t, nil, rig.Created)
		s.Want(s.Do(rig.Post("/", "k", "Authorization", "Bearer alice")), 201, "first")
		s.Want(s.Do(rig.Post("/", "k", "Authorization", "Bearer bob")), 201, "first")
		s.Want(s.Do(rig.Post("/", "k", "X-Tenant", "t")), 201, "first")
		s.Want(s.Do(rig.Post("/", "k", "X-Tenant", "u")), 201, "replayed")
		s.Calls(3)
	})
}

func TestHostsAreApart(t *testing.T) {
	b := rig.NewBackend(t, rig.Created)
	for _, host := range []hosts.Host{hosts.Compiled, hosts.Yaegi} { // a Traefik site has one name
		site := rig.SiteOf(t, host.Serve(t, b.URL, hosts.Settings{"statusHeader": "Decision"}), b)
		site.Want(site.Do(rig.Post("/", "k", "Host", "a.test")), 201, "first")
		site.Want(site.Do(rig.Post("/", "k", "Host", "b.test")), 201, "first")
		site.Want(site.Do(rig.Post("/", "k", "Host", "A.test")), 201, "replayed")
	}
}

func TestEndpoints(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{
			"methods":   []any{"PATCH", "POST"},
			"endpoints": []any{"PUT /api/payments/", "/api/orders/", "* /api/critical/", "POST /api/v5/order/*/pay/", "post /a.c"},
		}, rig.Created)
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
			a := s.Do(rig.Call{Method: c.method, Path: c.path, Header: http.Header{"X-Request-Id": {fmt.Sprintf("e%d", n)}}})
			if a.Header.Get("Decision") != decision {
				t.Errorf("%s %s: decision %q, want %q", c.method, c.path, a.Header.Get("Decision"), decision)
			}
		}
		s.Calls(int64(n))
	})
}

func TestAnAnswerExpires(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"ttl": 1}, rig.Created)
		begin := time.Now()
		s.Want(s.Do(rig.Post("/", "k")), 201, "first")
		for s.Do(rig.Post("/", "k")).Header.Get("Decision") == "replayed" {
			time.Sleep(20 * time.Millisecond) // an answer that never expires ends in the test's time-out
		}
		if time.Since(begin) < 500*time.Millisecond {
			t.Error("an answer with a ttl of 1 second was gone in half of one")
		}
		s.Calls(2)
	})
}

func TestDuplicatesOfARunningRequestWait(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		arrived, proceed := make(chan struct{}), make(chan struct{})
		s := e.Serve(t, nil, rig.Gated(arrived, proceed))
		answers := make([]rig.Answer, 20)
		var wg sync.WaitGroup
		send := func(i int) {
			defer wg.Done()
			answers[i] = s.Send(rig.Post("/", "k"))
		}
		wg.Add(len(answers))
		go send(0)
		<-arrived
		for i := 1; i < len(answers); i++ {
			go send(i)
		}
		mismatch := s.Do(rig.Post("/", "k").With(func(c *rig.Call) { c.Body = "{}" })) // at once, though the first still runs
		s.WantProblem(mismatch, 422, "key-reused", "mismatch")
		close(proceed)
		wg.Wait()
		s.Want(answers[0], 201, "first")
		for _, a := range answers[1:] {
			s.WantReplay(answers[0], a)
		}
		s.Calls(1)
	})
}

func TestOfThoseWhoWaitForAFreedKeyOneRuns(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		arrived, proceed := make(chan struct{}, 1), make(chan struct{})
		var first sync.Once
		s := e.Serve(t, nil, func(w http.ResponseWriter, r *http.Request) {
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
			rig.Created(w, r)
		})
		answers := make([]rig.Answer, 20)
		var wg sync.WaitGroup
		wg.Add(len(answers))
		send := func(i int) {
			defer wg.Done()
			answers[i] = s.Send(rig.Post("/", "k"))
		}
		go send(0)
		<-arrived
		for i := 1; i < len(answers); i++ {
			go send(i)
		}
		close(proceed)
		wg.Wait()
		s.Want(answers[0], 503, "released")
		ran := 0
		for _, a := range answers[1:] {
			switch a.Header.Get("Decision") {
			case "first":
				ran++
			default:
				s.Want(a, 201, "replayed")
			}
		}
		if ran != 1 {
			t.Errorf("%d of the waiting requests ran, want 1", ran)
		}
		s.Calls(2)
	})
}

func TestADuplicateIsRejectedOrWaitsNoLongerThanAsked(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		for _, settings := range []hosts.Settings{{"inFlight": "reject"}, {"inFlightTimeout": "300ms"}} {
			arrived, proceed := make(chan struct{}), make(chan struct{})
			s := e.Serve(t, settings, rig.Gated(arrived, proceed))
			first := make(chan rig.Answer)
			go func() { first <- s.Send(rig.Post("/", "k")) }()
			<-arrived
			conflict := s.Do(rig.Post("/", "k"))
			s.WantProblem(conflict, 409, "in-flight", "conflict")
			if conflict.Header.Get("Retry-After") != "1" {
				t.Errorf("Retry-After %q", conflict.Header.Get("Retry-After"))
			}
			close(proceed)
			s.Want(<-first, 201, "first")
			s.Want(s.Do(rig.Post("/", "k")), 201, "replayed")
			s.Calls(1)
		}
	})
}

func TestALeaseIsRenewedWhileTheRequestRuns(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		arrived, proceed := make(chan struct{}), make(chan struct{})
		s := rig.Serve(t, e.Host, rig.Gated(arrived, proceed), rig.WithTimeouts("2s", e.Settings(hosts.Settings{"lease": "3s", "inFlight": "reject", "localCacheBytes": 0})))
		first := make(chan rig.Answer)
		go func() { first <- s.Send(rig.Post("/", "k")) }()
		<-arrived
		for end := time.Now().Add(4 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			s.WantProblem(s.Do(rig.Post("/", "k")), 409, "in-flight", "conflict")
		}
		close(proceed)
		s.Want(<-first, 201, "first")
		s.Want(s.Do(rig.Post("/", "k")), 201, "replayed")
		s.Calls(1)
	})
}

func TestAStatusThatAsksToComeAgainFreesTheKey(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
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
			s := e.Serve(t, c.settings, status)
			for _, code := range c.released {
				s.Do(rig.Post("/", "s"+code, "Status", code))
				a := s.Do(rig.Post("/", "s"+code, "Status", code))
				if a.Header.Get("Decision") != "released" || fmt.Sprint(a.Status) != code {
					t.Errorf("%s: %d %q, want it released", code, a.Status, a.Header.Get("Decision"))
				}
			}
			for _, code := range c.kept {
				s.Do(rig.Post("/", "s"+code, "Status", code))
				a := s.Do(rig.Post("/", "s"+code, "Status", code))
				if a.Header.Get("Decision") != "replayed" || fmt.Sprint(a.Status) != code {
					t.Errorf("%s: %d %q, want it replayed", code, a.Status, a.Header.Get("Decision"))
				}
			}
			s.Calls(int64(2*len(c.released) + len(c.kept)))
		}
	})
}

func TestAnAnswerTooLargeToKeepIsDeliveredWhole(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		big := strings.Repeat("0123456789", 2000)
		s := e.Serve(t, hosts.Settings{"maxResponseBodyBytes": 10_000}, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Chunked") == "" {
				w.Header().Set("Content-Length", fmt.Sprint(len(big)))
			}
			w.WriteHeader(202)
			for i := 0; i < len(big); i += 1000 {
				_, _ = io.WriteString(w, big[i:i+1000])
				w.(http.Flusher).Flush()
			}
		})
		first := s.Do(rig.Post("/", "known"))
		s.Want(first, 202, "unkept")
		chunked := s.Do(rig.Post("/", "chunked", "Chunked", "yes"))
		s.Want(chunked, 202, "first") // its length is not known when its header is sent
		for _, a := range []rig.Answer{first, chunked} {
			if string(a.Body) != big {
				t.Errorf("%d bytes delivered, want %d", len(a.Body), len(big))
			}
		}
		for _, key := range []string{"known", "chunked"} {
			a := s.Do(rig.Post("/", key))
			s.WantProblem(a, 409, "response-not-kept", "unkept")
			if !bytes.Contains(a.Body, []byte(`"originalStatus":202`)) {
				t.Errorf("no originalStatus: %s", a.Body)
			}
		}
		s.Calls(2)
	})
}

func TestRequestBodies(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"maxRequestBodyBytes": 1000}, func(w http.ResponseWriter, r *http.Request) {
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
			request := rig.Post("/", fmt.Sprintf("b%d", i)).With(func(r *rig.Call) {
				r.Body = c.body
			})
			chunk := func() rig.Call {
				if c.chunked {
					request.Reader = struct{ io.Reader }{strings.NewReader(c.body)}
				}
				return request
			}
			first := s.Do(chunk())
			if string(first.Body) != c.want {
				t.Errorf("body %d: the backend saw %q, want %q", i, first.Body, c.want)
			}
			s.WantReplay(first, s.Do(chunk()))
		}
		s.Calls(7)
		// What is read is compared, and the declared length.
		first := s.Do(rig.Post("/", "long").With(func(c *rig.Call) { c.Body = body }))
		s.WantReplay(first, s.Do(rig.Post("/", "long").With(func(c *rig.Call) { c.Body = body[:2000] + "y" + body[2001:] })))
		s.WantProblem(s.Do(rig.Post("/", "long").With(func(c *rig.Call) { c.Body = body + "x" })), 422, "key-reused", "mismatch")
		s.WantProblem(s.Do(rig.Post("/", "long").With(func(c *rig.Call) { c.Body = "y" + body[1:] })), 422, "key-reused", "mismatch")
	})
}

// TestLargeBodiesAtTheSameTime sends bodies back, many at a time, so that some go to Redis together with others.
func TestLargeBodiesAtTheSameTime(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		room := hosts.Settings{"maxResponseBodyBytes": 1<<20 + 1<<10} // the header counts as well
		s := e.Serve(t, room, func(w http.ResponseWriter, r *http.Request) {
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
					request := func(body string) rig.Call {
						c := rig.Post("/", fmt.Sprint(size, "-", streamed), "Streamed", streamed)
						c.Body = body
						if streamed != "" {
							c.Reader = struct{ io.Reader }{strings.NewReader(body)}
						}
						return c
					}
					first := s.Do(request(body))
					s.Want(first, 201, "first")
					if string(first.Body) != body {
						t.Errorf("%d bytes, streamed %q: %d bytes came back", size, streamed, len(first.Body))
					}
					s.WantReplay(first, s.Do(request(body)))
					other := request(body) // sent the other way
					other.Reader = nil
					if streamed == "" {
						other.Reader = struct{ io.Reader }{strings.NewReader(body)}
					}
					s.WantReplay(first, s.Do(other))
					s.WantProblem(s.Do(request("y"+body[1:])), 422, "key-reused", "mismatch")
					s.WantProblem(s.Do(request(body[:size-1]+"y")), 422, "key-reused", "mismatch")
				})
			}
		}
		all.Wait()
		s.Calls(18)
	})
}

func TestObserveBlocksNothing(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"mode": "observe", "required": true, "logLevel": "debug"}, rig.Created)
		for range 2 {
			s.Want(s.Do(rig.Post("/", "k")), 201, "observed")
			s.Want(s.Do(rig.Post("/", "")), 201, "")
			s.Want(s.Do(rig.Post("/", "not valid")), 201, "")
		}
		s.Want(s.Do(rig.Post("/", "k").With(func(c *rig.Call) { c.Body = "{}" })), 201, "observed")
		s.Calls(7)
		s.AwaitLog("duplicate observed")
		below := rig.Serve(t, e.Host, rig.Created, e.Settings(hosts.Settings{"mode": "observe", "statusHeader": ""}), e.Settings(nil))
		first := below.Do(rig.Post("/", "k"))
		below.WantReplay(first, below.Do(rig.Post("/", "k"))) // one that observes does not switch off one that enforces
	})
}

func TestTwiceInOneChain(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		settings := e.Settings(nil)
		s := rig.Serve(t, e.Host, rig.Created, settings, settings)
		first := s.Do(rig.Post("/", "k"))
		s.Want(first, 201, "first")
		s.WantReplay(first, s.Do(rig.Post("/", "k")))
		s.Calls(1)
	})
}

func TestTwoRoutersDiffer(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		strict := e.Serve(t, hosts.Settings{"required": true, "header": "Idempotency-Key"}, rig.Created)
		loose := e.Serve(t, nil, rig.Created)
		strict.WantProblem(strict.Do(rig.Post("/", "k")), 400, "missing-key", "missing")
		loose.Want(loose.Do(rig.Post("/", "")), 201, "")
		strict.Want(strict.Do(rig.Post("/", "", "Idempotency-Key", "k")), 201, "first")
		loose.Want(loose.Do(rig.Post("/", "", "Idempotency-Key", "k")), 201, "")
	})
}

// TestAStartIsLogged wants one line with the settings as they are in force.
func TestAStartIsLogged(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"logLevel": "info", "ttl": "17s", "methods": "POST,put", "stats": map[string]any{"users": "ann:private"}}, rig.Created)
		want := `mode="enforce" ttl="17s" methods="POST, PUT" endpoints="all paths"`
		s.AwaitLog(want)
		for line := range strings.Lines(s.Logs()) {
			if strings.Contains(line, want) && (!strings.Contains(line, `level=info msg="ready" middleware="`) || strings.Contains(line, "private")) {
				t.Errorf("start: %s", line)
			}
		}
	})
}

func TestNoKeyTokenOrBodyInTheLogs(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"logLevel": "debug"}, rig.Created)
		secret := rig.Post("/", "hush-key", "Authorization", "Bearer hush-token").With(func(c *rig.Call) { c.Body = "hush-body" })
		s.Do(secret)
		s.Do(secret)
		s.Do(rig.Post("/", "hush-bad key"))
		if i := strings.Index(s.Logs(), "hush-"); i >= 0 {
			t.Errorf("in the log: %.100s", s.Logs()[i:])
		}
	})
}

// TestACacheIsForThoseWhoHaveOne has two middlewares on the same keys, one without a local cache: it asks Redis.
func TestACacheIsForThoseWhoHaveOne(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		e := &rig.Env{Host: host, Redis: rig.SharedRedis(t)}
		settings := e.Settings(hosts.Settings{"scope": []any{"Authorization"}})
		without := hosts.Settings{"localCacheBytes": 0}
		for key, value := range settings {
			without[key] = value
		}
		b := rig.NewBackend(t, rig.Created)
		cached := rig.SiteOf(t, host.Serve(t, b.URL, settings), b)
		plain := rig.SiteOf(t, host.Serve(t, b.URL, without), b)
		first := cached.Do(rig.Post("/", "k"))
		plain.WantReplay(first, plain.Do(rig.Post("/", "k")))
		for _, key := range strings.Fields(e.Redis.Do("KEYS", settings["redis"].(map[string]any)["keyPrefix"].(string)+":req:*")) {
			e.Redis.Do("DEL", key)
		}
		cached.WantReplay(first, cached.Do(rig.Post("/", "k")))
		plain.Want(plain.Do(rig.Post("/", "k")), 201, "first")
		plain.Calls(2)
	})
}
