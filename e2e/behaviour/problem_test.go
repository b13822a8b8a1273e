package behaviour

import (
	"encoding/json"
	"strings"
	"testing"

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
