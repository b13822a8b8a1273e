package examples

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/example/traefik-idem/e2e/internal/decode"
	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/launch"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// TestExampleImageFiles lays out the files of a release as examples/image/Dockerfile says, in a folder that is the image's
// root, and starts a real Traefik there with the flags and labels of the example. So the image is tested where there is no Docker, too.
func TestExampleImageFiles(t *testing.T) {
	root, workDir := t.TempDir(), ""
	release := rig.Release(t)
	for line := range strings.Lines(rig.ReadRoot(t, "examples/image/Dockerfile")) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0 || words[0] == "#" || words[0] == "FROM":
		case words[0] == "WORKDIR":
			workDir = filepath.Join(root, words[1])
		case words[0] == "RUN" && words[1] == "chmod":
			rig.Run(t, root, "chmod", append(words[2:len(words)-1], filepath.Join(root, words[len(words)-1]))...)
		case words[0] == "COPY" && strings.HasPrefix(words[1], "--from="): // all stages have one root here
			if words[2] != words[3] {
				t.Fatalf("%q puts the files elsewhere", line)
			}
		case words[0] == "COPY":
			copyAsDocker(t, release, root, words[1:len(words)-1], words[len(words)-1])
		default:
			t.Fatalf("what does %q do?", line)
		}
	}
	err := filepath.WalkDir(filepath.Join(root, "plugins-local"), func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err == nil && info.Mode()&0o004 == 0 {
			t.Errorf("a Traefik that is not root cannot read %s: %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var compose struct {
		Services map[string]struct {
			Command []string
			Labels  map[string]string
		}
	}
	err = yaml.Unmarshal([]byte(rig.ReadRoot(t, "examples/image/compose.yml")), &compose)
	if err != nil {
		t.Fatal(err)
	}
	labels := compose.Services["payments"].Labels
	var lines strings.Builder
	for name, value := range labels {
		fmt.Fprintf(&lines, "%s=%s\n", name, value)
	}
	const router = "traefik.http.routers.payments."
	dynamic := map[string]any{"http": map[string]any{
		"routers":     map[string]any{"payments": map[string]any{"rule": labels[router+"rule"], "middlewares": []string{labels[router+"middlewares"]}, "service": "payments"}},
		"services":    map[string]any{"payments": map[string]any{"loadBalancer": map[string]any{"servers": []any{map[string]any{"url": paymentsServer(t).URL}}}}},
		"middlewares": decode.Labels(lines.String())["http"].(map[string]any)["middlewares"],
	}}
	data, err := yaml.Marshal(dynamic)
	if err != nil {
		t.Fatal(err)
	}
	rig.WriteFile(t, filepath.Join(root, "dynamic.yml"), string(data))
	addr := rig.FreeAddress(t)
	flags := []string{"--providers.file.filename=" + filepath.Join(root, "dynamic.yml"), "--entryPoints.web.address=" + addr}
	for _, flag := range compose.Services["traefik"].Command {
		if strings.HasPrefix(flag, "--experimental.") {
			flags = append(flags, flag)
		}
	}
	if len(flags) != 4 {
		t.Fatalf("flags %q, want localPlugins and abortOnPluginFailure", flags)
	}
	paysOnce(rig.SiteOf(t, hosts.RunIn(t, workDir, addr, "shop.example", flags...), nil))
}

// copyAsDocker copies files and the contents of folders, as COPY does.
func copyAsDocker(t *testing.T, from, to string, sources []string, target string) {
	t.Helper()
	isFolder := strings.HasSuffix(target, "/")
	target = filepath.Join(to, target)
	for _, source := range sources {
		paths, _ := filepath.Glob(filepath.Join(from, source))
		if len(paths) == 0 {
			t.Fatalf("COPY %s: there is no such file in a release", source)
		}
		for _, path := range paths {
			info, err := os.Stat(path)
			if err == nil && info.IsDir() {
				err = os.CopyFS(target, os.DirFS(path))
			} else if err == nil {
				if !isFolder {
					t.Fatalf("COPY %s: several files, and the target is no folder", source)
				}
				err = os.MkdirAll(target, 0o755)
				if err == nil {
					rig.WriteFile(t, filepath.Join(target, filepath.Base(path)), rig.ReadFile(t, path))
				}
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestAPluginThatDoesNotLoad does what docs/install.md says of a Traefik that cannot load the plugin.
func TestAPluginThatDoesNotLoad(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "http://"+rig.FreeAddress(t)) // the registry is out of reach
	for name, plugins := range map[string]string{
		"a local plugin that is not there": "localPlugins: {idem: {moduleName: github.com/example/traefik-idem}}",
		"a registry that is down":          "plugins: {idem: {moduleName: github.com/example/traefik-idem, version: v0.1.0}}",
	} {
		t.Run(name, func(t *testing.T) {
			addr, dir := rig.FreeAddress(t), t.TempDir()
			url := paymentsServer(t).URL
			rig.WriteFile(t, filepath.Join(dir, "dynamic.yml"), strings.ReplaceAll(fmt.Sprintf(`
http:
  routers:
    shop: {rule: Host('shop.example'), service: payments, middlewares: [idem]}
    other: {rule: Host('other.example'), service: payments}
  services: {payments: {loadBalancer: {servers: [{url: %q}]}}}
  middlewares: {idem: {plugin: {idem: {header: Idempotency-Key}}}}
`, url), "'", "`"))
			static := "entryPoints: {web: {address: %q}}\nproviders: {file: {filename: dynamic.yml}}\nexperimental: {%s}\n"
			rig.WriteFile(t, filepath.Join(dir, "traefik.yml"), fmt.Sprintf(static, addr, plugins))
			archive := filepath.Join(dir, "plugins-storage", "archives", filepath.FromSlash(launch.Module), "v0.1.0.zip")
			err := os.MkdirAll(filepath.Dir(archive), 0o755)
			if err != nil {
				t.Fatal(err)
			}
			rig.WriteFile(t, archive, "downloaded before")

			other := hosts.RunIn(t, dir, addr, "other.example", "--configFile=traefik.yml")
			shop := hosts.At(addr, "shop.example", other.Logs)
			s := rig.SiteOf(t, shop, nil)
			s.Want(s.Do(rig.Post("/api/payments/", "")), http.StatusNotFound, "")
			s.Want(rig.SiteOf(t, other, nil).Do(rig.Call{Method: http.MethodGet, Path: "/"}), http.StatusOK, "")
			if !strings.Contains(other.Logs(), "Plugins are disabled because an error has occurred") {
				t.Errorf("Traefik's log:\n%s", other.Logs())
			}
			_, err = os.Stat(archive)
			if kept := err == nil; kept != strings.HasPrefix(plugins, "localPlugins") {
				t.Errorf("the archive that was downloaded before is kept: %v", kept)
			}

			rig.WriteFile(t, filepath.Join(dir, "aborted.yml"), fmt.Sprintf(static, rig.FreeAddress(t), plugins+", abortOnPluginFailure: true"))
			process, err := launch.Start(t.Context(), dir, "aborted", hosts.Binary(t), "--configFile=aborted.yml")
			if err != nil {
				t.Fatal(err)
			}
			select {
			case <-process.Ended:
			case <-time.After(time.Minute):
				t.Fatal("Traefik goes on without its plugin")
			}
			if log := rig.ReadFile(t, process.Log); !strings.Contains(log, "plugin: failed to create plugin builder") {
				t.Errorf("Traefik's log:\n%s", log)
			}
		})
	}
}
