package behaviour

import (
	"fmt"
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// unusable are ids that others put into the header of the key, and other values that are no key.
func unusable() map[string]rig.Call {
	twice := rig.Post("/", "one")
	twice.Header.Add("X-Request-ID", "two")
	return map[string]rig.Call{
		"HAProxy":         rig.Post("/", "C0A80101:C3F2_0A000001:0050_65A1B2C3_0001:1F90"),
		"Apache":          rig.Post("/", "ZaGyw38AAQEAAB@kXk4AAAAB"),
		"Base64":          rig.Post("/", "AAAB+cd/efgh=="),
		"spaces":          rig.Post("/", "a b"),
		"too long":        rig.Post("/", strings.Repeat("k", 129)),
		"two lines":       twice,
		"an open quote":   rig.Post("/", `"abc`),
		"an empty string": rig.Post("/", `""`),
		"not ASCII":       rig.Post("/", "clé"),
	}
}

// TestAnUnusableKeyIsRefused is the default.
func TestAnUnusableKeyIsRefused(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"onInvalidKey": "reject"}, rig.Created)
		for name, request := range unusable() {
			t.Log(name)
			s.WantProblem(s.Do(request), 400, "invalid-key", "invalid")
		}
		s.Calls(0)
	})
}

// TestAnUnusableKeyIsIgnored: the request passes as one without a key does, again and again, and is not counted.
func TestAnUnusableKeyIsIgnored(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		for _, mode := range []string{"enforce", "observe"} {
			s := e.Serve(t, hosts.Settings{"onInvalidKey": "ignore", "mode": mode, "stats": map[string]any{"insecure": true}}, rig.Created)
			before := s.Stats()
			for name, request := range unusable() {
				t.Log(name)
				s.Want(s.Do(request), 201, "")
				s.Want(s.Do(request), 201, "")
			}
			s.Calls(int64(2 * len(unusable())))
			if mode == "observe" {
				continue
			}
			first := s.Do(rig.Post("/", "usable"))
			s.Want(first, 201, "first")
			s.WantReplay(first, s.Do(rig.Post("/", "usable")))
			after := s.Counted(func(f rig.Figures) bool {
				return fmt.Sprint(f.Totals["replays"]) != fmt.Sprint(before.Totals["replays"])
			})
			if fmt.Sprint(after.Totals["invalid"]) != fmt.Sprint(before.Totals["invalid"]) {
				t.Errorf("%v requests with an unusable key were counted as invalid", after.Totals["invalid"])
			}
		}
	})
}

// TestAnIgnoredKeyIsMissing where one is required.
func TestAnIgnoredKeyIsMissing(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"onInvalidKey": "ignore", "required": true}, rig.Created)
		for name, request := range unusable() {
			t.Log(name)
			s.WantProblem(s.Do(request), 400, "missing-key", "missing")
		}
		s.WantProblem(s.Do(rig.Post("/", "a b", "Content-Type", "application/grpc")), 400, "missing-key", "missing")
		s.Calls(0)
		s.Want(s.Do(rig.Post("/", "usable")), 201, "first")
	})
}
