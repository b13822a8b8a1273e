package redis

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// TestTheACLInTheDocsIsEnough lets the plugin do all it does as the user that docs/redis.md makes.
func TestTheACLInTheDocsIsEnough(t *testing.T) {
	rule := regexp.MustCompile("ACL SETUSER traefik .*").FindString(rig.ReadRoot(t, "docs/redis.md"))
	server := redistest.Start(t)
	server.Do(strings.Fields(rule)...)
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		s := rig.Serve(t, host, rig.Created, hosts.Settings{"statusHeader": "Decision", "onStoreError": "reject", "localCacheBytes": 0, "retryableStatuses": "500", "lease": "10m",
			"stats": map[string]any{"insecure": true}, "redis": patient(map[string]any{"endpoints": server.Addr, "username": "traefik", "password": "password"})})
		server.Do("SCRIPT", "FLUSH")
		s.WantRun(rig.UnusedKey())
		f := s.Counted(func(f rig.Figures) bool { return fmt.Sprint(f.Totals["duplicates"]) != "0" })
		if !f.Store.Healthy || !f.Memory.Exact {
			t.Errorf("store %+v, memory %+v", f.Store, f.Memory)
		}
	})
}
