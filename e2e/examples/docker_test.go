package examples

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/launch"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

const dockerSocket = "unix:///var/run/docker.sock" // the one that the examples give to Traefik

// docker runs a Docker command.
func docker(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+dockerSocket)
	return cmd.CombinedOutput()
}

func mustDocker(t *testing.T, args ...string) string {
	t.Helper()
	out, err := docker(context.Background(), args...)
	if err != nil {
		t.Fatalf("docker %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// engine makes sure that a Docker engine runs until the test ends, and reports whether the test started it. Where none
// can run the test is skipped, except in CI.
func engine(t *testing.T) (own bool) {
	t.Helper()
	rig.Tool(t, "docker")
	_, err := docker(t.Context(), "info")
	if err == nil {
		return false
	}
	if os.Getuid() != 0 && os.Getenv("CI") == "" {
		t.Skip("this test needs a running Docker engine, which only root can start")
	}
	dir := t.TempDir()
	process, err := launch.Start(context.Background(), dir, "dockerd", rig.Tool(t, "dockerd"), "--host", dockerSocket,
		"--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"), "--pidfile", filepath.Join(dir, "pid"), "--bridge", "none")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(process.Stop)
	err = process.Await(t.Context(), func(ctx context.Context) error {
		_, err := docker(ctx, "info")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return true
}

// dockerImage makes an image of one program of this machine, which is called as in there, of what RUN chmod needs, and of the
// libraries that these load. An image of that name that is there already stays and is used.
func dockerImage(t *testing.T, name, program, as string, changes ...string) {
	t.Helper()
	_, err := docker(t.Context(), "image", "inspect", name)
	if err == nil {
		return
	}
	root := t.TempDir()
	install := func(from, to string) {
		t.Helper()
		to = filepath.Join(root, to)
		data, err := os.ReadFile(from)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(to), 0o755)
		}
		if err == nil {
			err = os.WriteFile(to, data, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for from, to := range map[string]string{program: as, rig.Tool(t, "sh"): "sh", rig.Tool(t, "chmod"): "chmod"} {
		install(from, filepath.Join("/bin", to))
		libraries, _ := exec.Command("ldd", from).Output() // fails for a program that needs none
		for _, path := range regexp.MustCompile(`/\S+`).FindAllString(string(libraries), -1) {
			install(path, path)
		}
	}
	err = os.MkdirAll(filepath.Join(root, "tmp"), 0o777)
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "image.tar")
	rig.Run(t, root, "tar", "-cf", archive, ".")
	args := []string{"import"}
	for _, change := range changes {
		args = append(args, "--change", change)
	}
	mustDocker(t, append(args, archive, name)...)
	t.Cleanup(func() { mustDocker(t, "image", "rm", name) })
}

// exampleImages makes the images that the examples name.
func exampleImages(t *testing.T) {
	t.Helper()
	sample := filepath.Join(t.TempDir(), "payments")
	rig.Run(t, ".", "env", "CGO_ENABLED=0", "go", "build", "-o", sample, "../cmd/payments")
	dockerImage(t, "traefik:v3.7", hosts.Binary(t), "traefik", `ENTRYPOINT ["traefik"]`)
	dockerImage(t, "redis:8", redistest.Path(t), "redis-server")
	dockerImage(t, "traefik-idem-payments", sample, "payments", `ENTRYPOINT ["payments"]`)
}

// override writes a file that is laid over an example's, and adds labels to its service payments: for Compose, or under
// deploy, as Swarm has them. A busy machine must not look like an outage.
func override(t *testing.T, swarm bool, labels map[string]string) string {
	t.Helper()
	all := map[string]string{}
	for name, value := range labels {
		all["traefik.http.middlewares.idem.plugin.idem."+name] = value
	}
	all["traefik.http.middlewares.idem.plugin.idem.lease"] = "1m"
	for _, name := range []string{"dialTimeout", "readTimeout", "writeTimeout"} {
		all["traefik.http.middlewares.idem.plugin.idem.redis."+name] = "20s"
	}
	service := map[string]any{"labels": all}
	if swarm {
		service = map[string]any{"deploy": service}
	}
	data, err := yaml.Marshal(map[string]any{"services": map[string]any{"payments": service}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "override.yml")
	err = os.WriteFile(file, data, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// composed starts the very file of an example, with others laid over it, and returns its site and a way to give Compose more
// commands.
func composed(t *testing.T, example string, more ...string) (s *rig.Site, compose func(args ...string)) {
	t.Helper()
	file := filepath.Join(hosts.Root(), "examples", example, "compose.yml")
	addr := rig.FreeAddress(t)
	_, port, _ := strings.Cut(addr, ":")
	name := "idem-test-" + port // a project of its own
	compose = func(args ...string) {
		t.Helper()
		cmd := exec.Command("docker", append([]string{"compose", "--project-name", name, "--file", file}, args...)...)
		if exec.Command("docker", "compose", "version").Run() != nil {
			cmd = exec.Command(rig.Tool(t, "docker-compose"), cmd.Args[2:]...)
		}
		cmd.Env = append(os.Environ(), "DOCKER_HOST="+dockerSocket, "PORT="+port)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
		}
	}
	logs := func() string {
		out, _ := docker(context.Background(), "logs", name+"_traefik_1")
		return string(out)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("Traefik's log:\n%s", logs())
		}
		compose("down", "--volumes", "--timeout", "1")
	})
	compose(append(more, "up", "--detach", "--no-build")...)
	site := hosts.At(addr, "shop.example", logs)
	rig.Until(t, "the shop is served", time.Minute, site.Served)
	return rig.SiteOf(t, site, nil), compose
}

// TestExampleDocker starts the example, and changes labels while the rest runs on.
func TestExampleDocker(t *testing.T) {
	engine(t)
	exampleImages(t)
	s, compose := composed(t, "docker", "--file", override(t, false, nil))
	paysOnce(s)
	s.Want(s.Do(rig.Call{Method: http.MethodGet, Path: "/_idem/stats.json"}), 401, "")
	ops := http.Header{"Authorization": {"Basic b3BzOnN0YXRpc3RpY3M="}} // ops:statistics
	report := func() string {
		return string(s.Do(rig.Call{Method: http.MethodGet, Path: "/_idem/stats.json", Header: ops}).Body)
	}
	for _, part := range []string{`"kind":"redis"`, `"healthy":true`, `"duplicates":1`} {
		rig.Until(t, part+" in the statistics", time.Minute, func() bool { return strings.Contains(report(), part) })
	}
	local := rig.SiteOf(t, hosts.At(s.Addr, "localhost", s.Logs), nil) // as the README says
	local.Want(local.Do(rig.Call{Method: http.MethodGet, Path: "/_idem/", Header: ops}), 200, "")

	changed := override(t, false, map[string]string{"header": "X-Payment", "endpoints": "PUT /nowhere/, POST /api/payments/"})
	compose("--file", changed, "up", "--detach", "--no-build", "payments")
	rig.Until(t, "the other header is in use", time.Minute, func() bool {
		return s.Send(rig.Pay("order-4713", "X-Payment", "bad key!")).Status == 400
	})
	// The service is a new one, and what Redis knows is still known.
	again := s.Do(rig.Pay("not looked at", "X-Payment", "order-4711"))
	s.WantExample(again, 201, "replayed")
	first := s.Do(rig.Pay("not looked at", "X-Payment", "order-4714"))
	s.WantExample(first, 201, "first")
	wantPaid(s, 1)
}

// TestExampleImage builds the image with the plugin in it from what a release has, on top of a Traefik of this machine.
func TestExampleImage(t *testing.T) {
	engine(t)
	exampleImages(t)
	build := exec.Command("docker", "build", "--network", "none", "--tag", "traefik-idem", "--file", filepath.Join(hosts.Root(), "examples", "image", "Dockerfile"), rig.Release(t))
	build.Env = append(os.Environ(), "DOCKER_HOST="+dockerSocket, "DOCKER_BUILDKIT=0") // what it builds on is here, and in no registry
	out, err := build.CombinedOutput()
	if err != nil {
		t.Fatalf("docker build: %v\n%s", err, out)
	}
	t.Cleanup(func() { mustDocker(t, "image", "rm", "traefik-idem") })
	s, _ := composed(t, "image")
	paysOnce(s)
}

// TestExampleSwarm makes the engine a swarm of one node.
func TestExampleSwarm(t *testing.T) {
	if !engine(t) {
		t.Skip("this test makes a swarm of its engine, and the one that runs is not its own")
	}
	exampleImages(t)
	mustDocker(t, "swarm", "init", "--advertise-addr", "127.0.0.1")
	addr := rig.FreeAddress(t)
	_, port, _ := strings.Cut(addr, ":")
	t.Setenv("PORT", port)
	t.Setenv("PLUGIN", hosts.Root())
	mustDocker(t, "stack", "deploy", "--resolve-image", "never", "--compose-file", filepath.Join(hosts.Root(), "examples", "swarm", "stack.yml"),
		"--compose-file", override(t, true, nil), "shop")
	t.Cleanup(func() {
		mustDocker(t, "stack", "rm", "shop")
		rig.Until(t, "all containers are gone", time.Minute, func() bool { return mustDocker(t, "ps", "--all", "--quiet") == "" })
		mustDocker(t, "swarm", "leave", "--force")
		mustDocker(t, "network", "rm", "docker_gwbridge")
	})
	site := hosts.At(addr, "shop.example", func() string { return mustDocker(t, "service", "logs", "--raw", "shop_traefik") })
	rig.Until(t, "the shop is served", time.Minute, site.Served)
	s := rig.SiteOf(t, site, nil)
	first := s.Do(rig.Pay("order-4711"))
	s.WantExample(first, 201, "first")
	for range 4 { // the service has two replicas
		again := s.Do(rig.Pay("order-4711"))
		s.WantExample(again, 201, "replayed")
		if string(again.Body) != string(first.Body) {
			t.Errorf("the duplicate got %s, want %s", again.Body, first.Body)
		}
	}
	calls := func() string { return mustDocker(t, "service", "logs", "--raw", "shop_payments") }
	rig.Until(t, "the call is in the service's log", time.Minute, func() bool { return strings.Contains(calls(), "backend: call") })
	if n := strings.Count(calls(), "backend: call"); n != 1 {
		t.Errorf("%d calls of the backend, want 1", n)
	}
}
