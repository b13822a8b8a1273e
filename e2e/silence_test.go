package e2e

import (
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
)

// TestSettingsThatHurtInSilenceAreRefused has what used to be taken, and then did something else than was meant.
func TestSettingsThatHurtInSilenceAreRefused(t *testing.T) {
	within := func(section, key string, value any) hosts.Settings {
		return hosts.Settings{section: map[string]any{key: value}}
	}
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		for _, c := range []struct {
			settings hosts.Settings
			parts    []string // of the error
		}{
			{hosts.Settings{"scope": ""}, []string{`scope: ""`, "none"}},
			{hosts.Settings{"scope": []any{}}, []string{`scope: ""`, "none"}},
			{hosts.Settings{"scope": " , "}, []string{`scope: " , "`, "none"}},
			{hosts.Settings{"scope": []any{"Host", "none"}}, []string{`scope: "Host,none"`, "none"}},
			{hosts.Settings{"methods": []any{" "}}, []string{`methods: " "`, "blanks"}},
			{hosts.Settings{"endpoints": ","}, []string{`endpoints: ","`, "blanks"}},
			{within("redis", "endpoints", []any{""}), []string{`redis.endpoints: ""`, "blanks"}},
			{within("stats", "users", " "), []string{`stats.users: " "`, "blanks"}},
			{hosts.Settings{"endpoints": "POST /api/caf%C3%A9/"}, []string{`endpoints: "POST /api/caf%C3%A9/"`, "decoded"}},
			{hosts.Settings{"replayHeader": "content-length"}, []string{`replayHeader: "content-length"`, "X-Request-ID"}},
			{hosts.Settings{"replayHeader": "Set-Cookie"}, []string{`replayHeader: "Set-Cookie"`, "X-Request-ID"}},
			{hosts.Settings{"statusHeader": "Transfer-Encoding"}, []string{`statusHeader: "Transfer-Encoding"`, "X-Request-ID"}},
			{hosts.Settings{"statusHeader": "keep-alive"}, []string{`statusHeader: "keep-alive"`, "X-Request-ID"}},
			{hosts.Settings{"statusHeader": "Location"}, []string{`statusHeader: "Location"`, "X-Request-ID"}},
			{hosts.Settings{"statusHeader": "idempotent-replayed"}, []string{`statusHeader: "idempotent-replayed"`, "another header than replayHeader"}},
			{hosts.Settings{"header": "Cookie"}, []string{`header: "Cookie"`, "X-Request-ID"}},
			{hosts.Settings{"header": "content-type"}, []string{`header: "content-type"`, "X-Request-ID"}},
		} {
			refusal := host.Refusal(t, c.settings)
			for _, part := range append(c.parts, "invalid configuration", "allowed") {
				if !strings.Contains(refusal, part) {
					t.Errorf("%v: no %q in the error %q", c.settings, part, refusal)
				}
			}
		}
	})
}

// TestScopeNone: whoever has the key gets its answer, if the configuration says so.
func TestScopeNone(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		s := e.serve(t, hosts.Settings{"scope": "none"}, created)
		first := s.do(post("/", "k", "Authorization", "Bearer alice"))
		s.want(first, 201, "first")
		s.wantReplay(first, s.do(post("/", "k", "Authorization", "Bearer bob", "Host", "other.test")))
		s.calls(1)
	})
}
