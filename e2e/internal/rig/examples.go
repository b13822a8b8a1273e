package rig

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
)

// CopyExample puts the files of an example, without its folders and with each text in changes replaced, into a new folder. A text that stands
// in none of them fails the test: it would check something else than the example.
func CopyExample(t *testing.T, name string, changes map[string]string) string {
	t.Helper()
	from, to := filepath.Join(hosts.Root(), "examples", name), t.TempDir()
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	unused := maps.Clone(changes)
	for _, entry := range entries {
		if entry.IsDir() {
			continue
		}
		text := ReadRoot(t, filepath.Join("examples", name, entry.Name()))
		for old, changed := range changes {
			if strings.Contains(text, old) {
				delete(unused, old)
			}
			text = strings.ReplaceAll(text, old, changed)
		}
		err := os.WriteFile(filepath.Join(to, entry.Name()), []byte(text), 0o600)
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(unused) > 0 {
		t.Fatalf("examples/%s has no %q", name, slices.Collect(maps.Keys(unused)))
	}
	return to
}

// Release unpacks the archive that a release is into a new folder.
func Release(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	Run(t, hosts.Root(), "bash", "-o", "pipefail", "-c", `git archive HEAD | tar -x -C "$0"`, dir)
	return dir
}

// Pay is a payment as the examples protect it.
func Pay(key string, more ...string) Call {
	return Post("/api/payments/", "", append([]string{"Idempotency-Key", key}, more...)...)
}

// WantExample is want with the header that the examples use.
func (s *Site) WantExample(a Answer, status int, decision string) {
	s.T.Helper()
	if a.Status != status || a.Header.Get("Idempotency-Status") != decision {
		s.T.Fatalf("answer %d %q, want %d %q\n%s\n%s", a.Status, a.Header.Get("Idempotency-Status"), status, decision, a.Body, s.Logs())
	}
}

// StartExperimental starts a Traefik with experimental settings, a plain entry point and an HTTPS one, with HTTP/3, at the address secure,
// and a middleware with these settings in front of url.
func StartExperimental(t *testing.T, experimental, secure, url, settings string) *hosts.Site {
	t.Helper()
	web, dir := FreeAddress(t), t.TempDir()
	for file, text := range map[string]string{
		"traefik.yml": fmt.Sprintf(`
entryPoints: {web: {address: %q}, websecure: {address: %q, http: {tls: {}}, http3: {}}}
providers: {file: {filename: dynamic.yml}}
experimental: {%slocalPlugins: {idem: {moduleName: github.com/example/traefik-idem}}}
`, web, secure, experimental),
		"dynamic.yml": fmt.Sprintf(`
http:
  routers: {shop: {rule: Host("shop.test"), service: shop, middlewares: [idem]}}
  services: {shop: {loadBalancer: {servers: [{url: %q}]}}}
  middlewares: {idem: {plugin: {idem: {%s}}}}
`, url, settings),
	} {
		err := os.WriteFile(filepath.Join(dir, file), []byte(strings.ReplaceAll(text, `"shop.test"`, "`shop.test`")), 0o600)
		if err != nil {
			t.Fatal(err)
		}
	}
	return hosts.Run(t, dir, "traefik.yml", web, "shop.test")
}
