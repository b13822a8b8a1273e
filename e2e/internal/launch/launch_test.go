package launch

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// program puts a shell script called name on the PATH, before all others.
func program(t *testing.T, name, text string) {
	t.Helper()
	dir := t.TempDir()
	err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text), 0o755)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
}

func build(t *testing.T, version string) (string, error) {
	t.Helper()
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	var screen bytes.Buffer
	err = BuildTraefik(context.Background(), root, version, "/tmp/none", &screen)
	return screen.String(), err
}

func TestTheBuildTellsHowFarItIs(t *testing.T) {
	program(t, "go", `case $1 in
list) printf 'errors\nexample.com/a/b.v1\n' ;;
build) printf 'go: downloading example.com/a v1.0.0\nerrors\nexample.com/a/b.v1\n' >&2 ;;
esac
`)
	screen, err := build(t, TraefikVersion)
	want := "building Traefik " + TraefikVersion + " from its module: about 8 minutes the first time\n1 of 2 packages built, about a minute left\n\n"
	if err != nil || screen != want {
		t.Errorf("%v, and the screen has %q, want %q", err, screen, want)
	}
}

// TestABuildThatFailsSaysWhy has failures of each step, as Go tells of them.
func TestABuildThatFailsSaysWhy(t *testing.T) {
	for _, c := range []struct{ version, script, want string }{
		{TraefikVersion, `[ $1 = list ] && { echo 'go: downloading example.com/a v1.0.0' >&2; echo 'go: example.com/a@v1.0.0: dial tcp: lookup proxy.golang.org: no such host' >&2; exit 1; }`, "no such host"},
		{TraefikVersion, `[ $1 = build ] && { printf 'errors\n# example.com/a\nwrite /tmp/go-build1/b001/_pkg_.a: no space left on device\n' >&2; exit 1; }`, "# example.com/a\nwrite /tmp/go-build1/b001/_pkg_.a: no space left on device"},
		{"9.9.9", `[ $1 = mod ] && { echo '{"Path": "github.com/traefik/traefik/v3", "Error": "unknown revision v9.9.9"}'; exit 1; }`, "unknown revision v9.9.9"},
		{"9.9.9", `[ $1 = mod ] && { echo 'go: no network' >&2; exit 1; }`, "go: no network"},
	} {
		t.Run(c.want, func(t *testing.T) {
			program(t, "go", c.script+"\nexit 0\n")
			screen, err := build(t, c.version)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("the error is %v, want %q in it; the screen has %q", err, c.want, screen)
			}
			if err != nil && (strings.Contains(err.Error(), "downloading") || strings.Contains(err.Error(), "\nerrors\n")) {
				t.Errorf("the error has what is none: %v", err)
			}
		})
	}
}

func TestWhichTraefikIsTaken(t *testing.T) {
	program(t, "traefik", "echo 'Version:      dev'\n")
	path, err := Traefik(t.Context(), "")
	if err != nil || !strings.HasSuffix(path, "/traefik") {
		t.Errorf("one that was built without a version is not taken: %q %v", path, err)
	}
	program(t, "other", "echo 'Version:      3.7.1'\n")
	other, _, _ := strings.Cut(os.Getenv("PATH"), string(os.PathListSeparator))
	other += "/other"
	t.Setenv("TRAEFIK", other)
	path, err = Traefik(t.Context(), "")
	if err != nil || path != other {
		t.Errorf("TRAEFIK is %q and %q is taken: %v", other, path, err)
	}
	for _, wrong := range []string{"/does/not/exist", "/bin/sh"} {
		t.Setenv("TRAEFIK", wrong)
		path, err = Traefik(t.Context(), "")
		if err == nil || !strings.Contains(err.Error(), "TRAEFIK="+wrong) {
			t.Errorf("TRAEFIK is %q, and %q is taken: %v", wrong, path, err)
		}
	}
	program(t, "old", "echo 'Version:      2.11.0'; echo 'Codename:     mimolette'\n")
	old, _, _ := strings.Cut(os.Getenv("PATH"), string(os.PathListSeparator))
	old += "/old"
	t.Setenv("TRAEFIK", old)
	stdout := os.Stdout
	said, err := os.Create(filepath.Join(t.TempDir(), "stdout"))
	if err != nil {
		t.Fatal(err)
	}
	os.Stdout = said
	_, err = Traefik(t.Context(), "")
	os.Stdout = stdout
	text, _ := os.ReadFile(said.Name())
	if err == nil || err.Error() != "TRAEFIK="+old+" is not a Traefik 3: it says Version:      2.11.0" || len(text) > 0 {
		t.Errorf("of an old Traefik it says %q, and then %v", text, err)
	}
}
