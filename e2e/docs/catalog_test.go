package docs

import (
	"bytes"
	"context"
	"fmt"
	"image"
	"image/png"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/traefik/yaegi/interp"
	"github.com/traefik/yaegi/stdlib"
	"gopkg.in/yaml.v3"

	"github.com/example/traefik-idem/e2e/internal/decode"
	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/launch"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// TestCatalog does what the Plugin Catalog's analyzer does, with the archive that a release is.
func TestCatalog(t *testing.T) {
	goPath := t.TempDir()
	source := filepath.Join(goPath, "src", filepath.FromSlash(launch.Module))
	err := os.MkdirAll(source, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	unpack := exec.Command("bash", "-o", "pipefail", "-c", `git archive HEAD | tar -x -C "$0"`, source)
	unpack.Dir = hosts.Root()
	out, err := unpack.CombinedOutput()
	if err != nil {
		t.Fatalf("git archive: %v\n%s", err, out)
	}
	for _, name := range []string{".dockerignore", "e2e", "docs", "examples", "patches", "Makefile", "store/storetest", "vendor/github.com/alicebob"} {
		_, err := os.Stat(filepath.Join(source, name))
		if err == nil {
			t.Errorf("the release has %s, which nobody needs at run time", name)
		}
	}
	module, err := os.ReadFile(filepath.Join(source, "go.mod"))
	if err != nil || !strings.HasPrefix(string(module), "module "+launch.Module+"\n") {
		t.Errorf("go.mod: %v\n%s", err, module)
	}
	for _, forbidden := range []string{"containous/yaegi", "containous/traefik", "containous/maesh", "traefik/yaegi", "traefik/traefik", "traefik/mesh"} {
		if strings.Contains(strings.ReplaceAll(string(module), launch.Module, ""), "github.com/"+forbidden) {
			t.Errorf("the Catalog refuses a module that requires %s", forbidden)
		}
	}
	_, err = os.Stat(filepath.Join(source, "README.md"))
	if err != nil {
		t.Error("the Catalog shows the README, and there is none")
	}
	var manifest struct {
		DisplayName string         `yaml:"displayName"`
		Type        string         `yaml:"type"`
		Import      string         `yaml:"import"`
		BasePkg     string         `yaml:"basePkg"`
		Summary     string         `yaml:"summary"`
		IconPath    string         `yaml:"iconPath"`
		BannerPath  string         `yaml:"bannerPath"`
		TestData    hosts.Settings `yaml:"testData"`
	}
	data, err := os.ReadFile(filepath.Join(source, ".traefik.yml"))
	if err == nil {
		err = yaml.Unmarshal(data, &manifest)
	}
	if err != nil || manifest.DisplayName == "" || manifest.Type != "middleware" || manifest.Import != launch.Module || manifest.BasePkg != "idem" || manifest.Summary == "" || len(manifest.TestData) == 0 {
		t.Fatalf("manifest: %v %+v", err, manifest)
	}

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second) // the analyzer's
	defer cancel()
	begin, cpu := time.Now(), cpuTime(t)
	i := interp.New(interp.Options{GoPath: goPath})
	err = i.Use(stdlib.Symbols)
	if err != nil {
		t.Fatal(err)
	}
	_, err = i.EvalWithContext(ctx, fmt.Sprintf("import %q", manifest.Import))
	if err != nil {
		t.Fatalf("import: %v", err)
	}
	config, err := i.EvalWithContext(ctx, manifest.BasePkg+".CreateConfig()")
	if err != nil {
		t.Fatalf("CreateConfig: %v", err)
	}
	err = decode.Settings(manifest.TestData, config.Interface())
	if err != nil {
		t.Fatalf("testData: %v", err)
	}
	fnNew, err := i.EvalWithContext(ctx, manifest.BasePkg+".New")
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	kind := fnNew.Type()
	for i, want := range []reflect.Type{reflect.TypeFor[context.Context](), reflect.TypeFor[http.Handler](), config.Type(), reflect.TypeFor[string]()} {
		if kind.NumIn() != 4 || kind.In(i) != want {
			t.Fatalf("New is a %v; argument %d should be a %v", kind, i, want)
		}
	}
	if kind.NumOut() != 2 || kind.Out(0) != reflect.TypeFor[http.Handler]() || kind.Out(1) != reflect.TypeFor[error]() {
		t.Fatalf("New is a %v", kind)
	}
	results := fnNew.Call([]reflect.Value{reflect.ValueOf(ctx), reflect.ValueOf(http.NotFoundHandler()), config, reflect.ValueOf("test")})
	if !results[1].IsNil() {
		t.Fatalf("New: %v", results[1])
	}
	_, ok := results[0].Interface().(http.Handler)
	if !ok {
		t.Errorf("New returns a %T", results[0].Interface())
	}
	// Other work on the machine must not look like a slow plugin.
	wall, cpu := time.Since(begin), cpuTime(t)-cpu
	t.Logf("loaded from the release in %s, with %s of CPU time", wall.Round(time.Millisecond), cpu.Round(time.Millisecond))
	if cpu > 4*time.Second {
		t.Errorf("loading took %s of CPU time, want less than 2 s, and a slow machine may take twice as long", cpu)
	}

	size := len(rig.Run(t, hosts.Root(), "git", "archive", "--format=zip", "HEAD"))
	t.Logf("the release has %d KiB", size>>10)
	if size > 512<<10 {
		t.Errorf("the release has %d bytes, want at most 512 KiB: each Traefik downloads it at its start", size)
	}
	for path, want := range map[string]image.Point{manifest.IconPath: {512, 512}, manifest.BannerPath: {1280, 640}} {
		picture, err := png.DecodeConfig(strings.NewReader(rig.Run(t, hosts.Root(), "git", "show", "HEAD:"+path)))
		if err != nil || picture.Width != want.X || picture.Height != want.Y {
			t.Errorf("%s: %v, %dx%d, want a PNG of %v", path, err, picture.Width, picture.Height, want)
		}
	}
	for _, tag := range strings.Fields(rig.Run(t, hosts.Root(), "git", "tag")) {
		if !semver.MatchString(tag) {
			t.Errorf("the tag %s is no semantic version: the Catalog refuses the whole repository", tag)
		}
	}
}

// semver is what the Catalog's analyzer asks of every tag.
var semver = regexp.MustCompile(`^v(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$`)

// cpuTime returns the CPU time that this process has taken.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var usage syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// TestCatalogSnippets pastes what the Catalog makes of testData: YAML, and TOML. It shows every value as a string.
func TestCatalogSnippets(t *testing.T) {
	var manifest struct {
		TestData map[string]any `yaml:"testData"`
	}
	err := yaml.Unmarshal([]byte(rig.ReadRoot(t, ".traefik.yml")), &manifest)
	if err != nil {
		t.Fatal(err)
	}
	text := map[string]any{}
	for name, value := range manifest.TestData {
		text[name] = value
		if _, isList := value.([]any); !isList {
			text[name] = fmt.Sprint(value)
		}
	}
	asYAML, err := yaml.Marshal(text)
	if err != nil {
		t.Fatal(err)
	}
	var asTOML bytes.Buffer
	err = toml.NewEncoder(&asTOML).Encode(text)
	if err != nil {
		t.Fatal(err)
	}
	var fromYAML, fromTOML hosts.Settings
	err = yaml.Unmarshal(asYAML, &fromYAML)
	if err != nil {
		t.Fatal(err)
	}
	_, err = toml.Decode(asTOML.String(), &fromTOML)
	if err != nil {
		t.Fatal(err)
	}
	for name, settings := range map[string]hosts.Settings{"as it is": manifest.TestData, "YAML": fromYAML, "TOML": fromTOML} {
		for _, host := range hosts.All() {
			s := rig.Serve(t, host, rig.Created, settings)
			first := s.Do(rig.Pay("k"))
			again := s.Do(rig.Pay("k"))
			if again.Header.Get("Idempotent-Replayed") != "true" || string(again.Body) != string(first.Body) {
				t.Errorf("%s on %s: the duplicate got %d %s", name, host, again.Status, again.Body)
			}
		}
	}
}

// TestTheModuleMoves runs `make module` on a clone, in which everything that names the module has to work as before.
func TestTheModuleMoves(t *testing.T) {
	const moved = "github.com/somebody-else/edge-idempotency"
	if launch.Module == moved {
		t.Skip("it has moved")
	}
	clone := filepath.Join(t.TempDir(), "clone")
	rig.Run(t, hosts.Root(), "git", "clone", "--quiet", ".", clone)
	rig.Run(t, clone, "make", "module", "NEW="+moved)
	out, _ := rig.Command(t, clone, "git", "grep", "-F", launch.Module).Output() // fails when it finds nothing
	if len(out) > 0 {
		t.Errorf("the old path is still in\n%s", out)
	}
	rig.Run(t, clone, "git", "-c", "user.name=test", "-c", "user.email=test@example.com", "commit", "--quiet", "--all", "--message", "Move")
	rig.Run(t, clone, "go", "vet", "./...")
	const some = "^(TestCatalog|TestREADME.*|TestADuplicateIsReplayed|TestExampleFile)$"
	for dir, args := range map[string][]string{".": {"."}, "e2e": {"-p", "1", "-run", some, "./docs", "./behaviour", "./examples"}} {
		cmd := rig.Command(t, filepath.Join(clone, dir), "go", append([]string{"test"}, args...)...)
		cmd.Env = append(cmd.Env, "TRAEFIK_BIN="+hosts.Binary(t))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s after the move: %v\n%s", dir, err, out)
		}
	}
}
