package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
)

// unusable are ids that others put into the header of the key, and other values that are no key.
func unusable() map[string]call {
	twice := post("/", "one")
	twice.header.Add("X-Request-ID", "two")
	return map[string]call{
		"HAProxy":         post("/", "C0A80101:C3F2_0A000001:0050_65A1B2C3_0001:1F90"),
		"Apache":          post("/", "ZaGyw38AAQEAAB@kXk4AAAAB"),
		"Base64":          post("/", "AAAB+cd/efgh=="),
		"spaces":          post("/", "a b"),
		"too long":        post("/", strings.Repeat("k", 129)),
		"two lines":       twice,
		"an open quote":   post("/", `"abc`),
		"an empty string": post("/", `""`),
		"not ASCII":       post("/", "clé"),
	}
}

// TestAnUnusableKeyIsRefused is the default.
func TestAnUnusableKeyIsRefused(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		s := e.serve(t, hosts.Settings{"onInvalidKey": "reject"}, created)
		for name, request := range unusable() {
			t.Log(name)
			s.wantProblem(s.do(request), 400, "invalid-key", "invalid")
		}
		s.calls(0)
	})
}

// TestAnUnusableKeyIsIgnored: the request passes as one without a key does, again and again, and is not counted.
func TestAnUnusableKeyIsIgnored(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		for _, mode := range []string{"enforce", "observe"} {
			s := e.serve(t, hosts.Settings{"onInvalidKey": "ignore", "mode": mode, "stats": map[string]any{"insecure": true}}, created)
			before := s.stats()
			for name, request := range unusable() {
				t.Log(name)
				s.want(s.do(request), 201, "")
				s.want(s.do(request), 201, "")
			}
			s.calls(int64(2 * len(unusable())))
			if mode == "observe" {
				continue
			}
			first := s.do(post("/", "usable"))
			s.want(first, 201, "first")
			s.wantReplay(first, s.do(post("/", "usable")))
			after := s.counted(func(f figures) bool { return fmt.Sprint(f.Totals["replays"]) != fmt.Sprint(before.Totals["replays"]) })
			if fmt.Sprint(after.Totals["invalid"]) != fmt.Sprint(before.Totals["invalid"]) {
				t.Errorf("%v requests with an unusable key were counted as invalid", after.Totals["invalid"])
			}
		}
	})
}

// TestAnIgnoredKeyIsMissing where one is required.
func TestAnIgnoredKeyIsMissing(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		s := e.serve(t, hosts.Settings{"onInvalidKey": "ignore", "required": true}, created)
		for name, request := range unusable() {
			t.Log(name)
			s.wantProblem(s.do(request), 400, "missing-key", "missing")
		}
		s.wantProblem(s.do(post("/", "a b", "Content-Type", "application/grpc")), 400, "missing-key", "missing")
		s.calls(0)
		s.want(s.do(post("/", "usable")), 201, "first")
	})
}
