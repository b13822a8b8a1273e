package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
	"gopkg.in/yaml.v3"

	idem "github.com/example/traefik-idem"
	"github.com/example/traefik-idem/e2e/internal/decode"
	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
)

func readRoot(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(hosts.Root(), name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

var snippet = regexp.MustCompile("(?s)```([a-z]*)\n(.*?)```")

// TestREADMESnippets builds the middleware from every configuration in the README.
func TestREADMESnippets(t *testing.T) {
	accepted := 0
	accept := func(settings hosts.Settings) {
		t.Helper()
		accepted++
		for _, host := range []hosts.Host{hosts.Compiled, hosts.Yaegi} {
			if refusal := host.Refusal(t, settings); refusal != "" {
				t.Errorf("%s refuses %v: %s", host, settings, refusal)
			}
		}
	}
	for _, found := range snippet.FindAllStringSubmatch(readRoot(t, "README.md")+withFiles(t, readRoot(t, "docs/redis.md")), -1) {
		kind, text := found[1], found[2]
		var config map[string]any
		var err error
		switch kind {
		case "yaml":
			err = yaml.Unmarshal([]byte(text), &config)
		case "toml":
			err = toml.Unmarshal([]byte(text), &config)
		case "":
			config = decode.Labels(text)
		default:
			continue
		}
		if err != nil {
			t.Errorf("%v in\n%s", err, text)
			continue
		}
		if static, ok := config["experimental"]; ok {
			if !strings.Contains(fmt.Sprint(static), "idem:map[moduleName:github.com/example/traefik-idem") {
				t.Errorf("static configuration %v", static)
			}
			continue
		}
		settings := config["http"].(map[string]any)["middlewares"].(map[string]any)["idem"].(map[string]any)["plugin"].(map[string]any)["idem"].(map[string]any)
		accept(settings)
	}
	if accepted != 9 {
		t.Errorf("%d dynamic configurations, want YAML, TOML and labels in the README and 6 in docs/redis.md", accepted)
	}
}

// withFiles puts files of the test in the place of those that text names.
func withFiles(t *testing.T, text string) string {
	t.Helper()
	password := filepath.Join(t.TempDir(), "password")
	writeFile(t, password, "secret")
	ca := redistest.NewAuthority(t)
	cert, key := ca.Issue("client")
	return strings.NewReplacer("/run/secrets/redis-password", password, "/run/secrets/sentinel-password", password,
		"/etc/traefik/redis-ca.pem", ca.CertFile, "/etc/traefik/redis-client.pem", cert, "/etc/traefik/redis-client-key.pem", key).Replace(text)
}

// TestTheACLInTheDocsIsEnough lets the plugin do all it does as the user that docs/redis.md makes.
func TestTheACLInTheDocsIsEnough(t *testing.T) {
	rule := regexp.MustCompile("ACL SETUSER traefik .*").FindString(readRoot(t, "docs/redis.md"))
	server := redistest.Start(t)
	server.Do(strings.Fields(rule)...)
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		s := serve(t, host, created, hosts.Settings{"statusHeader": "Decision", "onStoreError": "reject", "localCacheBytes": 0, "retryableStatuses": "500",
			"stats": map[string]any{"insecure": true}, "redis": map[string]any{"endpoints": server.Addr, "username": "traefik", "password": "password", "readTimeout": "20s"}})
		server.Do("SCRIPT", "FLUSH")
		s.wantRun(unusedKey())
		f := s.counted(func(f figures) bool { return fmt.Sprint(f.Totals["duplicates"]) != "0" })
		if !f.Store.Healthy || !f.Memory.Exact {
			t.Errorf("store %+v, memory %+v", f.Store, f.Memory)
		}
	})
}

var row = regexp.MustCompile("(?m)^\\| `([A-Za-z.]+)` \\| ([^|]+) \\|")

// TestREADMESettings compares the table of settings with the struct.
func TestREADMESettings(t *testing.T) {
	_, table, _ := strings.Cut(readRoot(t, "README.md"), "\n## Settings\n")
	table, _, _ = strings.Cut(table, "\n## ")
	documented := map[string]string{}
	for _, found := range row.FindAllStringSubmatch(table, -1) {
		documented[found[1]] = strings.Trim(found[2], "`")
	}
	lists := map[string]string{"methods": "POST, PUT, PATCH, DELETE", "endpoints": "all paths", "scope": "Host, Authorization",
		"retryableStatuses": "429, 503", "omitHeaders": "Set-Cookie", "redis.endpoints": "none", "stats.users": "none"}
	var compare func(prefix string, config reflect.Value)
	compare = func(prefix string, config reflect.Value) {
		for i := range config.NumField() {
			name, _, _ := strings.Cut(config.Type().Field(i).Tag.Get("json"), ",")
			name = prefix + name
			field := config.Field(i)
			if field.Kind() == reflect.Struct {
				compare(name+".", field)
				continue
			}
			want := fmt.Sprint(field.Interface())
			if field.Kind() == reflect.Slice {
				want = lists[name]
			} else if want == "" {
				want = "none"
			}
			if got, ok := documented[name]; !ok || got != want {
				t.Errorf("%s: the README says %q, the default is %q", name, got, want)
			}
			delete(documented, name)
		}
	}
	compare("", reflect.ValueOf(idem.CreateConfig()).Elem())
	for name := range documented {
		t.Errorf("the README has a setting %s that there is not", name)
	}
}

// TestREADMEProblems finds every answer of the plugin's own in the README.
func TestREADMEProblems(t *testing.T) {
	readme := readRoot(t, "README.md")
	found := regexp.MustCompile(`newRefusal\((http\.\w+), "([a-z-]+)"`).FindAllStringSubmatch(readRoot(t, "problem.go"), -1)
	if len(found) != 9 {
		t.Errorf("%d problems in problem.go, want 9", len(found))
	}
	for _, f := range found {
		if !strings.Contains(readme, "| `"+f[2]+"` |") {
			t.Errorf("no word of %s in the README", f[2])
		}
	}
}
