package docs

import (
	"regexp"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/launch"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// TestTraefikVersions holds together all places that name the Traefik everything is proven with.
func TestTraefikVersions(t *testing.T) {
	for file, version := range map[string]string{
		"Makefile":           `(?m)^TRAEFIK_VERSION \?= (.*)$`,
		"e2e/traefik/go.mod": `traefik/traefik/v3 v(\S*)\s`,
		"README.md":          `(?m)^\| Traefik \| (\S*): everything`,
		"README.ru.md":       `(?m)^\| Traefik \| (\S*): всё`,
	} {
		found := regexp.MustCompile(version).FindStringSubmatch(rig.ReadRoot(t, file))
		if found == nil || found[1] != launch.TraefikVersion {
			t.Errorf("%s has %q, want %s", file, found, launch.TraefikVersion)
		}
	}
}
