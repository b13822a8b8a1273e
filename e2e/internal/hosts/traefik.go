package hosts

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/example/traefik-idem/e2e/internal/launch"
)

// Traefik is the plugin in a real Traefik: one process for all tests, to which sites are added while it runs.
var Traefik Host = &traefikHost{}

type traefikHost struct {
	once    sync.Once
	process *Process
}

func (h *traefikHost) String() string { return "traefik" }

func (h *traefikHost) shared(t testing.TB) *Process {
	t.Helper()
	need(t, h.String())
	h.once.Do(func() { h.process = StartTraefik(UntilExit{t}) })
	if h.process == nil {
		t.Fatal("Traefik did not start; see the first test that needed it")
	}
	return h.process
}

func (h *traefikHost) Serve(t testing.TB, backend string, chain ...Settings) *Site {
	t.Helper()
	return h.shared(t).Serve(t, backend, chain...)
}

func (h *traefikHost) Refusal(t testing.TB, settings Settings) string {
	t.Helper()
	p := h.shared(t)
	name := newName()
	p.Write(t, name, Dynamic(name, "http://127.0.0.1:1", settings))
	defer p.remove(name)
	return strings.Join(p.await(t, name).Error, "; ")
}

// UntilExit is a testing.TB for what outlives one test: it is cleaned up when the test binary ends.
type UntilExit struct{ testing.TB }

var atExit []func()

// Cleanup calls f when the test binary ends.
func (UntilExit) Cleanup(f func()) { atExit = append(atExit, f) }

// TempDir returns a folder that is removed when the test binary ends.
func (u UntilExit) TempDir() string {
	dir, err := os.MkdirTemp("", "idem-e2e")
	if err != nil {
		u.Fatal(err)
	}
	u.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// Main runs the tests and stops what they shared. TestMain calls it.
func Main(m *testing.M) {
	code := m.Run()
	for i := len(atExit) - 1; i >= 0; i-- {
		atExit[i]()
	}
	os.Exit(code)
}

// Process is a running Traefik.
type Process struct {
	Addr string // of the entry point web
	API  string // base URL of the API
	Cmd  *exec.Cmd

	dir  string
	logs *Buffer
}

// Binary returns the path of a Traefik 3.x: TRAEFIK_BIN, or the one that `make traefik` built.
func Binary(t testing.TB) string {
	t.Helper()
	need(t, Traefik.String())
	path := os.Getenv("TRAEFIK_BIN")
	if path == "" {
		path = filepath.Join(Root(), ".build", "traefik-"+launch.TraefikVersion)
	}
	info, err := os.Stat(path)
	if err != nil || info.IsDir() {
		t.Fatalf("no Traefik to test with at %s: run `make traefik`, or set TRAEFIK_BIN to the path of one", path)
	}
	return path
}

// NotIn30 skips a test of what Traefik 3.0 lacks, or does in its own way (docs/guarantees.md, limits), if that is to be tested on.
func NotIn30(t testing.TB) {
	t.Helper()
	if !chosen(Traefik.String()) {
		return
	}
	version, err := exec.Command(Binary(t), "version").Output()
	if err != nil {
		t.Fatal(err)
	}
	if oldest.Match(version) {
		t.Skip("Traefik 3.0 cannot do this: docs/guarantees.md, limits")
	}
}

var oldest = regexp.MustCompile(`(?m)^Version:\s+3\.0\.`)

// StartTraefik starts a Traefik with the plugin from this repository and stops it when the test ends.
func StartTraefik(t testing.TB) *Process {
	t.Helper()
	var err error
	for range 3 { // a port that was free may be taken by somebody else before Traefik has it
		var p *Process
		p, err = startTraefik(t)
		if err == nil {
			return p
		}
	}
	t.Fatal(err)
	return nil
}

func startTraefik(t testing.TB) (*Process, error) {
	dir := t.TempDir()
	web, api := FreeAddress(t), FreeAddress(t)
	static := map[string]any{
		"global":      map[string]any{"checkNewVersion": false, "sendAnonymousUsage": false},
		"log":         map[string]any{"level": "DEBUG", "noColor": true},
		"api":         map[string]any{"insecure": true, "debug": true, "dashboard": false}, // debug: pprof and expvar
		"entryPoints": map[string]any{"web": map[string]any{"address": web}, "traefik": map[string]any{"address": api}},
		"providers": map[string]any{
			"providersThrottleDuration": "20ms",
			"file":                      map[string]any{"directory": "dynamic", "watch": true},
		},
		"serversTransport": map[string]any{"forwardingTimeouts": map[string]any{"responseHeaderTimeout": upstreamTimeout.String()}},
		"experimental":     map[string]any{"localPlugins": map[string]any{"idem": map[string]any{"moduleName": "github.com/example/traefik-idem"}}},
	}
	data, err := yaml.Marshal(static)
	if err != nil {
		return nil, err
	}
	err = os.WriteFile(filepath.Join(dir, "traefik.yml"), data, 0o600)
	if err != nil {
		return nil, err
	}
	err = os.MkdirAll(filepath.Join(dir, "dynamic"), 0o755)
	if err != nil {
		return nil, err
	}
	// What Traefik reads at its start may count after what is written meanwhile. When it knows this middleware, it has read it.
	err = os.WriteFile(filepath.Join(dir, "dynamic", "read.yml"), []byte(`http: {middlewares: {read: {stripPrefix: {prefixes: [/]}}}}`), 0o600)
	if err != nil {
		return nil, err
	}
	err = LinkPlugin(filepath.Join(dir, "plugins-local", "src"))
	if err != nil {
		return nil, err
	}
	p := &Process{Addr: web, API: "http://" + api, dir: dir, logs: &Buffer{}}
	p.Cmd = exec.Command(Binary(t), "--configFile=traefik.yml")
	p.Cmd.Dir = dir
	p.Cmd.Stdout = p.logs
	p.Cmd.Stderr = p.logs
	err = p.Cmd.Start()
	if err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		_ = p.Cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = p.Cmd.Process.Kill()
		<-ended
	})
	for {
		select {
		case <-ended:
			return nil, fmt.Errorf("traefik ended at its start:\n%s", p.logs.String())
		case <-time.After(20 * time.Millisecond):
		}
		response, err := http.Get(p.API + "/api/http/middlewares/read@file")
		if err != nil {
			continue
		}
		_ = response.Body.Close()
		if response.StatusCode != http.StatusOK {
			continue
		}
		if strings.Contains(p.Logs(), "Plugins are disabled") {
			t.Fatalf("the plugin does not load in Traefik:\n%s", p.Logs())
		}
		return p, nil
	}
}

// Logs returns what the process has logged so far.
func (p *Process) Logs() string { return p.logs.String() }

// Serve adds a site to the running process.
func (p *Process) Serve(t testing.TB, backend string, chain ...Settings) *Site {
	t.Helper()
	name, logs := newName(), p.logs.fromHere()
	p.Write(t, name, Dynamic(name, backend, chain...))
	t.Cleanup(func() { p.remove(name) })
	site := p.Site(t, name)
	site.logs = logs
	return site
}

// ServeAs adds a site to the Traefik of all tests. The dynamic configuration is the caller's own: YAML, in which NAME stands
// for the site's name and ROUTER for that of the router that has to be there.
func ServeAs(t testing.TB, dynamic string) *Site {
	t.Helper()
	host, _ := Traefik.(*traefikHost)
	p, name := host.shared(t), newName()
	logs := p.logs.fromHere()
	text := strings.NewReplacer("NAME", name, "ROUTER", routerOf(name)).Replace(dynamic)
	p.WriteFile(t, name+".yml", []byte(text))
	t.Cleanup(func() { p.remove(name) })
	site := p.Site(t, name)
	site.logs = logs
	return site
}

// Site waits until the site called name, whose configuration was written, is served.
func (p *Process) Site(t testing.TB, name string) *Site {
	t.Helper()
	state := p.await(t, name)
	if len(state.Error) > 0 {
		t.Fatalf("Traefik refuses the site: %s", strings.Join(state.Error, "; "))
	}
	site := &Site{Addr: p.Addr, Name: name, logs: p.logs.String}
	for !site.Served() { // a router is listed before it is served
		time.Sleep(10 * time.Millisecond)
	}
	return site
}

// Dynamic returns a dynamic configuration with one site.
func Dynamic(name, backend string, chain ...Settings) map[string]any {
	id := routerOf(name)
	middlewares, names := map[string]any{}, []string{}
	for i, settings := range chain {
		middleware := id + "-" + strconv.Itoa(i)
		names = append(names, middleware)
		middlewares[middleware] = map[string]any{"plugin": map[string]any{"idem": map[string]any(settings)}}
	}
	return map[string]any{"http": map[string]any{
		"routers": map[string]any{id: map[string]any{
			"rule": "Host(`" + name + "`)", "entryPoints": []string{"web"}, "service": id, "middlewares": names}},
		"services": map[string]any{id: map[string]any{"loadBalancer": map[string]any{
			"servers": []any{map[string]any{"url": backend}}}}},
		"middlewares": middlewares,
	}}
}

func routerOf(name string) string { return strings.TrimSuffix(name, ".test") }

// Write writes the dynamic configuration of a site in one step, so that Traefik never reads half of one.
func (p *Process) Write(t testing.TB, name string, content any) {
	t.Helper()
	data, err := yaml.Marshal(content)
	if err != nil {
		t.Fatal(err)
	}
	p.WriteFile(t, name+".yml", data)
}

// WriteFile writes a file of dynamic configuration in one step.
func (p *Process) WriteFile(t testing.TB, file string, data []byte) {
	t.Helper()
	temporary := filepath.Join(p.dir, file)
	err := os.WriteFile(temporary, data, 0o600)
	if err == nil {
		err = os.Rename(temporary, filepath.Join(p.dir, "dynamic", file))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (p *Process) remove(name string) { _ = os.Remove(filepath.Join(p.dir, "dynamic", name+".yml")) }

type routerState struct {
	Error []string `json:"error"`
}

// await waits until Traefik knows the router of a site.
func (p *Process) await(t testing.TB, name string) routerState {
	t.Helper()
	for {
		response, err := http.Get(p.API + "/api/http/routers/" + routerOf(name) + "@file")
		if err != nil {
			t.Fatalf("Traefik is gone: %v\n%s", err, p.Logs())
		}
		var state routerState
		err = json.NewDecoder(response.Body).Decode(&state)
		_ = response.Body.Close()
		if err == nil && response.StatusCode == http.StatusOK {
			return state
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Run starts a Traefik in dir with the plugin and the static configuration that is called file there. It returns the
// site called name at the entry point addr as soon as that is served, and stops Traefik when the test ends.
func Run(t testing.TB, dir, file, addr, name string) *Site {
	t.Helper()
	err := LinkPlugin(filepath.Join(dir, "plugins-local", "src"))
	if err != nil {
		t.Fatal(err)
	}
	return RunIn(t, dir, addr, name, "--configFile="+file)
}

// RunIn starts a Traefik in dir, where the plugin is already, with flags. It returns the site as Run does.
func RunIn(t testing.TB, dir, addr, name string, flags ...string) *Site {
	t.Helper()
	process, err := launch.Start(context.Background(), dir, "traefik", Binary(t), flags...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(process.Stop)
	site := At(addr, name, func() string {
		text, _ := os.ReadFile(process.Log) // Start made it
		return string(text)
	})
	err = process.Await(context.Background(), func(context.Context) error {
		if !site.Served() {
			return fmt.Errorf("%s is not served", name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return site
}

// FreeAddress returns an address where nobody listens.
func FreeAddress(t testing.TB) string {
	t.Helper()
	addr, err := launch.FreeAddress("")
	if err != nil {
		t.Fatal(err)
	}
	return addr
}
