package behaviour

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// TestErrorsOfTraefikItself come before the plugin is asked. docs/common-errors.md has them, word by word.
func TestErrorsOfTraefikItself(t *testing.T) {
	_, page, _ := strings.Cut(rig.ReadRoot(t, "docs/common-errors.md"), "\n## Said by Traefik\n")
	p := hosts.StartTraefik(t)
	for text, middleware := range map[string]string{
		"failed to decode configuration: ":                                      "{plugin: {idem: {required: perhaps}}}",
		"cannot parse 'Required' as bool: ":                                     "{plugin: {idem: {required: perhaps}}}",
		"cannot parse 'MaxKeyLength' as int: ":                                  "{plugin: {idem: {maxKeyLength: many}}}",
		"'Redis' expected a map, got 'string'":                                  "{plugin: {idem: {redis: 'redis:6379'}}}",
		"'Header' expected type 'string', got unconvertible type ":              "{plugin: {idem: {header: {name: X-Key}}}}",
		"invalid configuration: no configuration or too many plugin definition": "{plugin: {idem: {ttl: 9s}, other: {ttl: 9s}}}",
		"invalid middleware type or middleware does not exist":                  "{}",
		"unknown plugin type: ":                                                 "{plugin: {iden: {ttl: 9s}}}",
	} {
		if !strings.Contains(page, "| `"+text) && !strings.Contains(page, ", `"+text) {
			t.Errorf("no word of %q in docs/common-errors.md", text)
		}
		name := fmt.Sprintf("own%d", rig.Unique.Add(1))
		p.WriteFile(t, name+".yml", fmt.Appendf(nil, `
http:
  routers: {%[1]s: {rule: "Host(`+"`%[1]s.test`"+`)", service: %[1]s, middlewares: [%[1]s]}}
  services: {%[1]s: {loadBalancer: {servers: [{url: "http://127.0.0.1:1"}]}}}
  middlewares: {%[1]s: %[2]s}
`, name, middleware))
		rig.Until(t, "Traefik says "+text, time.Minute, func() bool { return strings.Contains(p.Logs(), text) })
	}
}
