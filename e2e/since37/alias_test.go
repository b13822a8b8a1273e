package since37

import (
	"net/http"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// TestAliasHeadersStrategySince37 has Traefik's entry point look at aliases first, as docs/how-it-works.md shows it.
func TestAliasHeadersStrategySince37(t *testing.T) {
	documented := regexp.MustCompile("(?s)```yaml\n(entryPoints:\n.*?)```").FindStringSubmatch(rig.ReadRoot(t, "docs/how-it-works.md"))
	if documented == nil {
		t.Fatal("docs/how-it-works.md does not show the setting")
	}
	for strategy, want := range map[string]struct {
		status int
		arrive int64 // aliases at the backend
	}{"keep": {201, 1}, "delete": {201, 0}, "reject": {400, 0}} {
		t.Run(strategy, func(t *testing.T) {
			addr := rig.FreeAddress(t)
			var arrived atomic.Int64
			b := rig.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
				arrived.Add(int64(len(r.Header["X_request_id"])))
				rig.Created(w, r)
			})
			text := strings.NewReplacer("\":80\"", addr, "Strategy: delete", "Strategy: "+strategy).Replace(documented[1])
			var static map[string]any
			err := yaml.Unmarshal([]byte(text), &static)
			if err != nil {
				t.Fatal(err)
			}
			site, _ := runTraefik(t, static, hosts.Dynamic("shop.test", b.URL, hosts.Settings{"statusHeader": "Decision"}), addr, "shop.test")
			s := rig.SiteOf(t, site, b)
			s.Want(s.Do(rig.Post("/", "").Headers("X_Request_ID", "k")), want.status, "")
			if arrived.Load() != want.arrive {
				t.Errorf("%d aliases came to the backend, want %d", arrived.Load(), want.arrive)
			}
		})
	}
}
