package behaviour

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// ends are what the backend does, by path.
func ends(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	switch r.URL.Path {
	case "/unknown":
		panic(http.ErrAbortHandler)
	case "/large":
		_, _ = w.Write(make([]byte, 101))
	default:
		rig.Created(w, r)
	}
}

// TestKeysAreLookedUp by the id that an answer has told.
func TestKeysAreLookedUp(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		begin := time.Now().Truncate(time.Second)
		s := e.Serve(t, hosts.Settings{"stats": rig.OpenStats["stats"], "maxResponseBodyBytes": 100, "inFlight": "reject"}, ends)
		other := func(c *rig.Call) { c.Body = "{}" }
		for _, c := range []struct {
			path, state string
			problem     int
			status      int
			bytes       bool
		}{
			{"/done", "done", 422, 201, true},
			{"/unknown", "unknown", 409, 0, false},
			{"/large", "unkept", 409, 200, false},
		} {
			key := "secret-" + rig.UnusedKey()
			first := s.Send(rig.Post(c.path+"?card=visa", key))
			again := s.Do(rig.Post(c.path+"?card=visa", key).With(func(call *rig.Call) {
				if c.problem == 422 {
					other(call)
				}
			}))
			id := s.IDOf(again)
			if page := string(patiently(s, rig.Get("/_idem/?id="+id)).Body); c.state == "unknown" && !strings.Contains(page, "Nobody may settle keys here.") {
				t.Errorf("without admins, the page does not say who may settle:\n%s", page)
			}
			a := s.Do(rig.Get("/_idem/keys/" + id))
			k := s.Key(id)
			if k.ID != id || k.State != c.state || k.Method != "POST" || k.Host != s.Name || k.Path != c.path || k.Status != c.status || (k.Bytes > 0) != c.bytes {
				t.Errorf("%s: %+v", c.path, k)
			}
			if c.bytes && k.Bytes != len(first.Body) {
				t.Errorf("%s: %d bytes, want %d", c.path, k.Bytes, len(first.Body))
			}
			until, err := time.Parse(time.RFC3339, k.Until)
			if err != nil || until.Before(time.Now()) || until.After(time.Now().Add(61*time.Second)) {
				t.Errorf("%s: until %q: %v", c.path, k.Until, err)
			}
			if c.state != "done" {
				since, err := time.Parse(time.RFC3339, k.Since)
				if err != nil || since.Before(begin) || since.After(time.Now()) || k.Traefik == "" {
					t.Errorf("%s: since %q at %q: %v", c.path, k.Since, k.Traefik, err)
				}
			}
			if text := string(a.Body); strings.Contains(text, "secret-") || strings.Contains(text, "visa") || strings.Contains(text, "payment") {
				t.Errorf("%s: it tells what it must not: %s", c.path, text)
			}
			if a.Header.Get("ETag") != `"`+k.Version+`"` || k.Version == "" || a.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s: header %v", c.path, a.Header)
			}
		}
		if list := s.Keys("unknown"); len(list) != 1 || list[0].Path != "/unknown" || list[0].State != "unknown" {
			t.Errorf("unknown are %+v", list)
		}
		if list := s.Keys("running"); len(list) != 0 {
			t.Errorf("running for long are %+v", list)
		}
		for path, want := range map[string]int{"/keys/0123456789abcdef": 404, "/keys/0123": 404, "/keys?state=done": 400, "/keys/find": 405} {
			a := s.Do(rig.Get("/_idem" + path))
			if a.Status != want || a.Header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("GET %s: %d %s, want %d", path, a.Status, a.Body, want)
			}
		}
		calls := s.Backend.Calls.Load()
		for _, method := range []string{"DELETE", "PUT"} {
			a := s.Do(rig.Get("/_idem/keys/0123456789abcdef").With(func(c *rig.Call) { c.Method = method; c.Header.Set("Content-Type", "application/json") }))
			if a.Status != 403 && a.Status != 401 {
				t.Errorf("%s without an admin: %d %s", method, a.Status, a.Body)
			}
		}
		s.Calls(calls)
	})
}

// TestAnObservedKeyIsLookedUp and has nothing to settle.
func TestAnObservedKeyIsLookedUp(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"mode": "observe", "stats": rig.AdminStats["stats"]}, rig.Created)
		c := rig.Post("/pay", rig.UnusedKey())
		s.Do(c)
		k := s.Find(c)
		for k.State != "observed" { // it is noted in the background; one that never is ends in the test's time-out
			time.Sleep(10 * time.Millisecond)
			k = s.Find(c)
		}
		page := &desk{s, basic("boss", "pass")}
		text := page.page("?do=settle&id=" + k.ID)
		page.wants(text, "Observed", "were let through")
		page.wantsNone(text, "get 409", "Settle this key", "do=settle")
		if now := s.WantKeyProblem(s.Do(rig.AsBoss("PUT", k.ID, `{"status":201}`)), 409, "key-changed"); now.State != "observed" {
			t.Errorf("it is not observed any more: %+v", now)
		}
		if freed := s.Settle("DELETE", k.ID, ""); freed.State != "free" {
			t.Errorf("freed: %+v", freed)
		}
	})
}

// TestARunningKeyIsLookedUp while its request runs.
func TestARunningKeyIsLookedUp(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		arrived, proceed := make(chan struct{}), make(chan struct{})
		s := e.Serve(t, hosts.Settings{"stats": rig.OpenStats["stats"], "inFlight": "reject"}, rig.Gated(arrived, proceed))
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			s.Send(rig.Post("/slow", "k"))
		}()
		<-arrived
		k := s.Key(s.IDOf(s.Do(rig.Post("/slow", "k"))))
		if k.State != "running" || k.Traefik == "" || k.Path != "/slow" || k.Status != 0 || (e.Redis != nil && k.Until == "") {
			t.Errorf("%+v", k)
		}
		close(proceed)
		<-ended
		if again := s.Key(k.ID); again.State != "done" || again.Status != 201 || again.Version == k.Version {
			t.Errorf("when it has ended: %+v", again)
		}
	})
}

// TestAKeyIsFoundByItsRequest that nobody was told the id of.
func TestAKeyIsFoundByItsRequest(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, rig.AdminStats, rig.Created)
		for _, more := range [][]string{nil, {"Authorization", "Bearer secret"}} {
			c := rig.Post("/api/p%61y/4711?a=b", rig.UnusedKey(), more...)
			if k := s.Find(c); k.State != "free" {
				t.Errorf("before it ran: %+v", k)
			}
			s.Do(c)
			k := s.Find(c)
			if k.State != "done" || k.Status != 201 || k.Path != "/api/pay/4711" || k.Host != s.Name {
				t.Errorf("when it had run: %+v", k)
			}
			if again := s.Key(k.ID); again.State != "done" || again.Version != k.Version {
				t.Errorf("by its id: %+v", again)
			}
			refused := s.Do(c.With(func(c *rig.Call) { c.Body = "{}" }))
			if id := s.IDOf(refused); id != k.ID {
				t.Errorf("found as %s, and refused as %s", k.ID, id)
			}
		}
		for _, body := range []string{"", "{}", "[]", `{"method":"POST","key":"k","url":"/pay"}`, `{"method":"POST","key":"a b","url":"http://a/pay"}`, `{"key":"k","url":"http://a/pay"}`, `{"method":"POST","key":"k","url":"http://a:b/pay"}`} {
			s.WantKeyProblem(s.Do(rig.AsBoss("POST", "find", body)), 400, "invalid-query")
		}
		for body, want := range map[string]string{
			`{"method":"post","key":"k","url":"http://a/pay"}`:                  "method post: methods are case-sensitive, and only POST is protected",
			`{"method":"POST","key":"k","url":"http://a/pay","body":{"key":1}}`: "body must be a string: the body of the request as it was sent",
		} {
			a := s.Do(rig.AsBoss("POST", "find", body))
			s.WantKeyProblem(a, 400, "invalid-query")
			if !strings.Contains(string(a.Body), want) {
				t.Errorf("%s: %s, want %s", body, a.Body, want)
			}
		}
	})
}

// TestAnUnknownOutcomeIsAnsweredByHand and is a finished one from then on.
func TestAnUnknownOutcomeIsAnsweredByHand(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, rig.AdminStats, ends)
		for i, c := range []struct{ given, body, contentType string }{
			{`{"status":201,"body":{"paid":[1, 2]}}`, `{"paid":[1, 2]}`, "application/json"},
			{`{"status":202,"body":"pay\nment 1"}`, "pay\nment 1", "text/plain; charset=utf-8"},
			{`{"status":200,"body":"<a/>","contentType":"application/xml"}`, "<a/>", "application/xml"},
			{`{"status":204}`, "", ""},
			{`{"status":200,"body":null}`, "", ""},
		} {
			key := rig.UnusedKey()
			s.Send(rig.Post("/unknown", key))
			refused := s.Do(rig.Post("/unknown", key))
			s.WantProblem(refused, 409, "outcome-unknown", "unknown")
			id := s.IDOf(refused)
			seen := s.Key(id)
			for _, wrong := range []string{"", "{}", "[]", `{"status":"200"}`, `{"status":200,"headers":{}}`, `{"status":99}`, `{"status":600}`, `{"status":204,"body":"x"}`, `{"status":200,"body":"x","contentType":"no type"}`, `{"status":200,"contentType":"text/plain\r\nA: b"}`} {
				s.WantKeyProblem(s.Do(rig.AsBoss("PUT", id, wrong)), 400, "invalid-query")
			}
			for _, none := range []string{"", `""`, ` W/"" `} {
				s.WantKeyProblem(s.Do(rig.AsBoss("PUT", id, c.given, "If-Match", none)), 400, "invalid-query")
			}
			if named := s.Key("URN:traefik-idem:key:" + strings.ToUpper(id)); named != seen {
				t.Errorf("by its whole name: %+v, want %+v", named, seen)
			}
			if now := s.WantKeyProblem(s.Do(rig.AsBoss("PUT", id, c.given, "If-Match", `"0123"`)), 409, "key-changed"); now.State != "unknown" || now.Version != seen.Version {
				t.Errorf("who has seen something else is told %+v", now)
			}
			k := s.Settle("PUT", id, c.given, "If-Match", `"`+seen.Version+`"`)
			if k.State != "done" || k.ID != id || k.Bytes != len(c.body) {
				t.Errorf("settled: %+v", k)
			}
			if now := s.WantKeyProblem(s.Do(rig.AsBoss("PUT", id, c.given)), 409, "key-changed"); now.State != "done" || now.Version != k.Version {
				t.Errorf("who comes second is told %+v", now)
			}
			for range 2 {
				a := s.Do(rig.Post("/unknown", key))
				s.Want(a, k.Status, "replayed")
				if string(a.Body) != c.body || a.Header.Get("Content-Type") != c.contentType || a.Header.Get("Idempotent-Replayed") != "true" {
					t.Errorf("a duplicate got %v %q", a.Header, a.Body)
				}
			}
			s.WantProblem(s.Do(rig.Post("/unknown", key).With(func(c *rig.Call) { c.Body = "{}" })), 422, "key-reused", "mismatch")
			s.WantLine("a key was answered by hand", "level=info", `user="boss"`, "state=unknown", "key="+id)
			total(s.Counted(func(f rig.Figures) bool { return f.Totals["settled"] > int64(i) }), t, "settled", int64(i)+1)
			s.Calls(int64(i) + 1)
		}
		if list := s.Keys("unknown"); len(list) != 0 {
			t.Errorf("still to be looked at: %+v", list)
		}
		if metrics := string(s.Do(rig.Get("/_idem/metrics")).Body); !strings.Contains(metrics, "\ntraefik_idem_settled_total 5\n") {
			t.Errorf("the metrics say\n%s", metrics)
		}
	})
}

// TestAKeyIsFreedByHand whatever its end was, but not while its request runs.
func TestAKeyIsFreedByHand(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		arrived, proceed := make(chan struct{}), make(chan struct{})
		slow := rig.Gated(arrived, proceed)
		s := e.Serve(t, hosts.Settings{"stats": rig.AdminStats["stats"], "maxResponseBodyBytes": 100, "inFlight": "reject"}, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				slow(w, r)
				return
			}
			ends(w, r)
		})
		for i, path := range []string{"/done", "/unknown", "/large"} {
			c := rig.Post(path, rig.UnusedKey())
			s.Send(c)
			held := s.Find(c)
			if k := s.Settle("DELETE", held.ID, "", "If-Match", `"`+held.Version+`"`); k.State != "free" || k.ID != held.ID {
				t.Errorf("%s: freed: %+v", path, k)
			}
			if k := s.Key(held.ID); k.State != "free" || k.Version != "" {
				t.Errorf("%s: later: %+v", path, k)
			}
			s.WantKeyProblem(s.Do(rig.AsBoss("DELETE", held.ID, "")), 409, "key-changed")
			s.WantKeyProblem(s.Do(rig.AsBoss("DELETE", held.ID, "", "If-Match", `"`+held.Version+`"`)), 409, "key-changed")
			s.WantLine("a key was freed by hand", "level=info", `user="boss"`, "state="+held.State, "key="+held.ID)
			s.Send(c)
			s.Calls(2 * int64(i+1))
			if k := s.Key(held.ID); k.State != held.State {
				t.Errorf("%s: run again, it is %+v, want %s", path, k, held.State)
			}
			s.WantKeyProblem(s.Do(rig.AsBoss("DELETE", held.ID, "", "If-Match", `"`+held.Version+`"`)), 409, "key-changed") // it ended likewise, but is another end
			s.Send(c)
			s.Calls(2 * int64(i+1))
		}
		c := rig.Post("/slow", rig.UnusedKey())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			s.Want(s.Do(c), 201, "first")
		}()
		<-arrived
		id := s.Find(c).ID
		for _, query := range []string{"", "?force=true"} {
			if k := s.WantKeyProblem(s.Do(rig.AsBoss("DELETE", id+query, "")), 409, "key-running"); k.State != "running" {
				t.Errorf("it runs, and is %+v", k)
			}
		}
		s.WantKeyProblem(s.Do(rig.AsBoss("PUT", id, `{"status":200}`)), 409, "key-changed")
		close(proceed)
		<-ended
		s.Want(s.Do(c), 201, "replayed")
	})
}
