package docs

import (
	"fmt"
	"regexp"
	"strings"
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

// TestOwnVersion compares the version that the plugin tells with the newest one in CHANGELOG.md.
func TestOwnVersion(t *testing.T) {
	newest := "unreleased"
	found := regexp.MustCompile(`(?m)^## \[(\d\S*)\]`).FindStringSubmatch(rig.ReadRoot(t, "CHANGELOG.md"))
	if found != nil {
		newest = found[1]
	}
	if !strings.Contains(rig.ReadRoot(t, "idem.go"), fmt.Sprintf("\nconst version = %q\n", newest)) {
		t.Errorf("the newest version is %s, and that is not what the plugin tells", newest)
	}
}
