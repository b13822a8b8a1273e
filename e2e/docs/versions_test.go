package docs

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
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

// TestTestsThatAreNamed looks for the tests in the last table of docs/redis.md among those that run with every Redis.
func TestTestsThatAreNamed(t *testing.T) {
	folders := regexp.MustCompile(`(?m)^EVERYWHERE := (.*)$`).FindStringSubmatch(rig.ReadRoot(t, "Makefile"))
	if folders == nil {
		t.Fatal("no EVERYWHERE in the Makefile")
	}
	var tests strings.Builder
	for _, folder := range strings.Fields(folders[1]) {
		files, err := filepath.Glob(filepath.Join(hosts.Root(), "e2e", folder, "*_test.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no tests in %s: %v", folder, err)
		}
		for _, file := range files {
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			tests.Write(source)
		}
	}
	_, table, _ := strings.Cut(rig.ReadRoot(t, "docs/redis.md"), "## What is tested")
	named := regexp.MustCompile("`(Test[A-Za-z]+)`").FindAllStringSubmatch(table, -1)
	if len(named) < 10 {
		t.Errorf("only %d tests are named", len(named))
	}
	for _, name := range named {
		if !strings.Contains(tests.String(), "\nfunc "+name[1]+"(t *testing.T)") {
			t.Errorf("there is no %s", name[1])
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
