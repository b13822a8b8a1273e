package yaegi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"

	"github.com/traefik/yaegi/interp"
	"github.com/traefik/yaegi/stdlib"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redigoprobe"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

const (
	redigo      = "github.com/gomodule/redigo"
	redigoPatch = "patches/redigo.patch" // in the repository
)

// /vendor is what `make vendor` makes: what Go fetches, plus the patch, and not an edit more.
func TestVendorIsUpstreamPlusPatch(t *testing.T) {
	root := hosts.Root()
	want := filepath.Join(t.TempDir(), "vendor")
	rig.Run(t, root, "go", "mod", "vendor", "-o", want)
	applyPatch(t, filepath.Join(want, redigo))

	got := filepath.Join(root, "vendor")
	wantFiles, gotFiles := readTree(t, want), readTree(t, got)
	names := map[string]bool{}
	for name := range wantFiles {
		names[name] = true
	}
	for name := range gotFiles {
		names[name] = true
	}
	var problems []string
	for name := range names {
		w, inWant := wantFiles[name]
		g, inGot := gotFiles[name]
		switch {
		case !inGot:
			problems = append(problems, "missing: vendor/"+name)
		case !inWant:
			problems = append(problems, "not from upstream: vendor/"+name)
		case !bytes.Equal(w, g):
			problems = append(problems, fmt.Sprintf("changed: vendor/%s\n%s", name,
				diff(filepath.Join(want, name), filepath.Join(got, name))))
		}
	}
	if len(problems) > 0 {
		sort.Strings(problems)
		t.Errorf("vendor/ is not upstream plus %s; `make vendor` makes it so:\n%s", redigoPatch, strings.Join(problems, "\n"))
	}
}

// redigo's own tests still pass with the patch, and with the files that the plugin does without.
func TestRedigoUpstreamTests(t *testing.T) {
	server := redistest.Path(t)
	dir := patchedRedigo(t)
	for attempt := 1; ; attempt++ {
		_, port, _ := net.SplitHostPort(rig.FreeAddress(t))
		out, err := rig.Command(t, dir, "go", "test", "-count=1", "-timeout=5m", "-tags=redigo_whole", "./redis/...",
			"-args", "-redis-server="+server, "-redis-port="+port).CombinedOutput()
		if err == nil {
			return
		}
		if attempt == 3 || !bytes.Contains(out, []byte("Address already in use")) {
			t.Fatalf("the tests of redigo with the patch: %v\n%s", err, out)
		}
	}
}

// The patched redigo does the same interpreted as the published one compiled, on many connections at once.
func TestRedigoUnderYaegi(t *testing.T) {
	server := redistest.Start(t)
	goPath := t.TempDir()
	source := filepath.Join(goPath, "src", redigo)
	copyTree(t, patchedRedigo(t), source)
	removeTests(t, source)
	copyTree(t, filepath.Join(hosts.Root(), "e2e", "internal", "redigoprobe"), filepath.Join(goPath, "src", "redigoprobe"))

	var stderr bytes.Buffer
	i := interp.New(interp.Options{GoPath: goPath, Stderr: &stderr})
	if err := i.Use(stdlib.Symbols); err != nil {
		t.Fatalf("Yaegi: %v", err)
	}
	if _, err := i.Eval(`import "redigoprobe"`); err != nil {
		t.Fatalf("Yaegi does not load redigo: %v", err)
	}
	loaded := i.Symbols(redigo + "/redis")[redigo+"/redis"]
	if !loaded["NewConn"].IsValid() || loaded["NewPool"].IsValid() {
		t.Errorf("Yaegi loads %d names of redigo, want NewConn and without NewPool: its files that nothing uses are not to be loaded", len(loaded))
	}
	value, err := i.Eval("redigoprobe.Run")
	if err != nil {
		t.Fatalf("Yaegi: %v", err)
	}
	interpreted := value.Interface().(func(string, string) []string)

	for name, probe := range map[string]func(addr, name string) []string{
		"compiled": redigoprobe.Run, "interpreted": interpreted,
	} {
		t.Run(name, func(t *testing.T) {
			var wg sync.WaitGroup
			for n := range 16 {
				wg.Go(func() {
					for round := range 10 {
						key := fmt.Sprintf("%s:%d:%d", name, n, round)
						for _, problem := range probe(server.Addr, key) {
							t.Error(problem)
						}
					}
				})
			}
			wg.Wait()
		})
	}
	if stderr.Len() > 0 {
		t.Errorf("Yaegi says: %s", stderr.String())
	}
}

// patchedRedigo returns a copy of redigo, at the version that the plugin requires, with the patch.
func patchedRedigo(t testing.TB) string {
	t.Helper()
	version := rig.Run(t, hosts.Root(), "go", "list", "-mod=readonly", "-m", "-f", "{{.Version}}", redigo)
	dir := t.TempDir()
	var module struct{ Dir string }
	out := rig.Run(t, dir, "go", "mod", "download", "-json", redigo+"@"+strings.TrimSpace(version))
	if err := json.Unmarshal([]byte(out), &module); err != nil {
		t.Fatalf("go mod download -json: %v", err)
	}
	copyTree(t, module.Dir, dir)
	applyPatch(t, dir)
	return dir
}

// applyPatch applies the patch to the copy of redigo in dir.
func applyPatch(t testing.TB, dir string) {
	t.Helper()
	cmd := rig.Command(t, dir, "git", "apply", filepath.Join(hosts.Root(), redigoPatch))
	// Inside another repository, git would look for the patched files at the root of that one.
	cmd.Env = append(cmd.Environ(), "GIT_CEILING_DIRECTORIES="+filepath.Dir(dir))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s does not apply to %s: %v\n%s", redigoPatch, redigo, err, out)
	}
}

func copyTree(t testing.TB, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatalf("copy %s: %v", from, err)
	}
}

// removeTests removes the files that an import of the package does not need.
func removeTests(t testing.TB, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(name, "_test.go") {
			err = os.Remove(name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// readTree returns the content of each file under dir, by its path in there.
func readTree(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	err := filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		files[filepath.ToSlash(rel)], err = os.ReadFile(name)
		return err
	})
	if err != nil {
		t.Fatalf("read %s: %v", dir, err)
	}
	return files
}

// diff shows how two files differ, for people.
func diff(want, got string) string {
	out, _ := exec.Command("git", "diff", "--no-index", "--no-ext-diff", "--no-color", "--", want, got).CombinedOutput()
	return string(out)
}
