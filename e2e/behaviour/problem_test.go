package behaviour

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// instance is what the problem a says of its key.
func instance(a rig.Answer) string {
	var problem struct{ Instance string }
	_ = json.Unmarshal(a.Body, &problem)
	return problem.Instance
}

// TestAProblemNamesItsKey checks that the problems of one key have one name for it, which leads to the key in Redis.
func TestAProblemNamesItsKey(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		settings := e.Settings(hosts.Settings{"inFlight": "reject"})
		arrived, proceed := make(chan struct{}, 1), make(chan struct{})
		s := rig.Serve(t, e.Host, rig.Gated(arrived, proceed), settings)
		ended := make(chan rig.Answer)
		go func() { ended <- s.Send(rig.Post("/", "k")) }()
		<-arrived
		running := s.Do(rig.Post("/", "k"))
		s.WantProblem(running, 409, "in-flight", "conflict")
		close(proceed)
		s.Want(<-ended, 201, "first")
		other := s.Do(rig.Post("/", "k").With(func(c *rig.Call) { c.Body = "{}" }))
		s.WantProblem(other, 422, "key-reused", "mismatch")
		if instance(running) != instance(other) {
			t.Errorf("one key is called %s and %s", instance(running), instance(other))
		}
		s.Want(s.Do(rig.Post("/", "k2")), 201, "first")
		second := s.Do(rig.Post("/", "k2").With(func(c *rig.Call) { c.Body = "{}" }))
		if instance(second) == instance(other) {
			t.Errorf("two keys are called %s", instance(second))
		}
		if e.Redis == nil {
			return
		}
		prefix := settings["redis"].(map[string]any)["keyPrefix"].(string) + ":req:"
		for _, a := range []rig.Answer{other, second} {
			public := strings.TrimPrefix(instance(a), "urn:traefik-idem:key:")
			if keys := strings.Fields(e.Redis.Do("KEYS", prefix+public+"*")); len(keys) != 1 {
				t.Errorf("%s leads to the keys %q in Redis", public, keys)
			}
		}
	})
}

func TestProblemsLeadToTheirDocumentation(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		s := rig.Serve(t, host, rig.Created, hosts.Settings{"required": true, "problemBase": "https://example.com/docs/errors?v=1"})
		for call, want := range map[string]rig.Call{
			"missing-key": rig.Post("/", ""),
			"invalid-key": rig.Post("/", "a b"),
		} {
			var problem struct{ Type string }
			_ = json.Unmarshal(s.Do(want).Body, &problem)
			if problem.Type != "https://example.com/docs/errors?v=1#"+call {
				t.Errorf("%s has the type %q", call, problem.Type)
			}
		}
	})
}

// TestWhenAKeptAnswerEnds checks what expiresHeader says on first answers, whole and streamed, and on replays from wherever
// they come.
func TestWhenAKeptAnswerEnds(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		for _, cache := range []int{0, 1 << 20} {
			s := e.Serve(t, hosts.Settings{"ttl": "50s", "expiresHeader": "Idempotency-Expires", "localCacheBytes": cache, "maxResponseBodyBytes": 100_000},
				func(w http.ResponseWriter, r *http.Request) {
					switch r.URL.Path {
					case "/stream":
						w.(http.Flusher).Flush()
					case "/again":
						w.WriteHeader(503)
					case "/large":
						w.Header().Set("Content-Length", "200000")
						_, _ = w.Write(make([]byte, 200_000))
					}
					_, _ = io.WriteString(w, "answer")
				})
			for _, path := range []string{"/", "/stream"} {
				begin := time.Now().Truncate(time.Second)
				first := s.Do(rig.Post(path, "k"))
				for i := range 4 {
					a := first
					if i > 0 {
						a = s.Do(rig.Post(path, "k"))
					}
					earliest, latest := begin.Add(50*time.Second), time.Now().Add(52*time.Second)
					ends, err := http.ParseTime(a.Header.Get("Idempotency-Expires"))
					if err != nil || a.Status != 200 || ends.Before(earliest) || ends.After(latest) {
						t.Errorf("answer %d to %s ends %q (%v), want %s to %s", i, path, a.Header.Get("Idempotency-Expires"), err, earliest, latest)
					}
				}
			}
			for _, a := range []rig.Answer{
				s.Do(rig.Post("/again", "k")), s.Do(rig.Post("/large", "k")), s.Do(rig.Post("/large", "k")), s.Do(rig.Post("/", "a b")),
				s.Do(rig.Post("/", "k").With(func(c *rig.Call) { c.Body = "other" })),
			} {
				if a.Header["Idempotency-Expires"] != nil {
					t.Errorf("%d %q has an end: %v", a.Status, a.Header.Get("Decision"), a.Header)
				}
			}
		}
	})
}

// TestWhenABriefAnswerEnds checks that expiresHeader knows of contentTTL.
func TestWhenABriefAnswerEnds(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"key": "content", "contentTTL": "20s", "expiresHeader": "Idempotency-Expires"}, rig.Created)
		for range 3 {
			a := s.Do(rig.Post("/", ""))
			ends, err := http.ParseTime(a.Header.Get("Idempotency-Expires"))
			if left := time.Until(ends); err != nil || a.Status != 201 || left < 0 || left > 21*time.Second {
				t.Errorf("%d %q is kept for %s (%v)", a.Status, a.Header.Get("Decision"), left, err)
			}
		}
		s.Calls(1)
	})
}

// TestScriptsOfOtherOriginsMayReadWhatThePluginSays checks exposeHeaders where a backend allows other origins, and where a
// middleware above is going to allow the one that asks, as Traefik's headers does.
func TestScriptsOfOtherOriginsMayReadWhatThePluginSays(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		s := rig.Serve(t, host, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/closed" {
				w.Header().Set("Access-Control-Allow-Origin", "https://shop.test")
			}
			if r.URL.Path == "/stream" {
				w.Header().Set("Access-Control-Expose-Headers", "X-Total")
				w.(http.Flusher).Flush()
			}
			_, _ = io.WriteString(w, "answer")
		}, hosts.Settings{"statusHeader": "Decision", "expiresHeader": "Idempotency-Expires", "exposeHeaders": true})
		for path, want := range map[string][]string{
			"/open":   {"Idempotent-Replayed, Decision, Idempotency-Expires"},
			"/stream": {"X-Total, Idempotent-Replayed, Decision, Idempotency-Expires"},
			"/closed": nil,
		} {
			for _, decision := range []string{"first", "replayed", "replayed"} {
				a := s.Do(rig.Post(path, "k"))
				s.Want(a, 200, decision)
				if got := a.Header["Access-Control-Expose-Headers"]; !slices.Equal(got, want) {
					t.Errorf("%s %s exposes %q, want %q", decision, path, got, want)
				}
			}
		}
		arrived, proceed := make(chan struct{}, 1), make(chan struct{})
		s = rig.Serve(t, host, rig.Gated(arrived, proceed), hosts.Settings{"inFlight": "reject", "replayHeader": "", "exposeHeaders": true})
		ended := make(chan rig.Answer)
		go func() { ended <- s.Send(rig.Post("/", "k")) }()
		<-arrived
		running := s.Do(rig.Post("/", "k", "Origin", "https://shop.test"))
		if got := running.Header["Access-Control-Expose-Headers"]; running.Status != 409 || !slices.Equal(got, []string{"Retry-After"}) {
			t.Errorf("%d exposes %q, want Retry-After", running.Status, got)
		}
		close(proceed)
		if first := <-ended; first.Header["Access-Control-Expose-Headers"] != nil {
			t.Errorf("nobody asks from another origin, and %q are exposed", first.Header["Access-Control-Expose-Headers"])
		}
	})
}
