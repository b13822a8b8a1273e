package examples

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/example/traefik-idem/e2e/internal/decode"
	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/launch"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

const observability = "examples/observability/"

// TestExampleRules runs the unit tests of the alert rules.
func TestExampleRules(t *testing.T) {
	t.Parallel()
	promtool := rig.Tool(t, "promtool")
	dir := filepath.Join(hosts.Root(), observability)
	rig.Run(t, dir, promtool, "check", "config", "prometheus.yml")
	rig.Run(t, dir, promtool, "test", "rules", "rules_test.yml")
	tested := rig.ReadRoot(t, observability+"rules_test.yml")
	handbook := rig.ReadRoot(t, "docs/watching.md")
	_, scrape, _ := strings.Cut(handbook, "\n```yaml\n")
	scrape, _, _ = strings.Cut(scrape, "```")
	if !strings.HasSuffix(rig.ReadRoot(t, observability+"prometheus.yml"), "\n"+scrape) {
		t.Errorf("docs/watching.md does not show how prometheus.yml scrapes, but\n%s", scrape)
	}
	for _, alert := range rules(t) {
		if strings.Count(tested, "alertname: "+alert.Alert+"}") < 2 || !strings.Contains(tested, "alertname: "+alert.Alert+"\n") {
			t.Errorf("no test has %s fire and be silent", alert.Alert)
		}
		if !strings.Contains(handbook, "\n### "+alert.Alert+"\n") || !strings.HasSuffix(alert.Annotations["runbook_url"], "/docs/watching.md#"+strings.ToLower(alert.Alert)) {
			t.Errorf("docs/watching.md and %s do not lead to each other", alert.Alert)
		}
	}
}

type rule struct {
	Alert, Expr string
	Annotations map[string]string
}

func rules(t *testing.T) []rule {
	t.Helper()
	var file struct{ Groups []struct{ Rules []rule } }
	err := yaml.Unmarshal([]byte(rig.ReadRoot(t, observability+"rules.yml")), &file)
	if err != nil || len(file.Groups) != 1 || len(file.Groups[0].Rules) == 0 {
		t.Fatalf("%v in %+v", err, file)
	}
	return file.Groups[0].Rules
}

// dashboardQueries are those of the dashboard, as Grafana sends them.
func dashboardQueries(t *testing.T) []string {
	t.Helper()
	var dashboard struct {
		Panels []struct {
			Title, Description string
			Targets            []struct{ Expr string }
		}
	}
	err := json.Unmarshal([]byte(rig.ReadRoot(t, observability+"grafana/traefik-idem.json")), &dashboard)
	if err != nil {
		t.Fatal(err)
	}
	variables := strings.NewReplacer("$job", ".*", "$__rate_interval", "1m", "$__range", "6h")
	var queries []string
	for _, panel := range dashboard.Panels {
		if panel.Title == "" || panel.Description == "" || len(panel.Targets) == 0 {
			t.Errorf("panel %+v", panel)
		}
		for _, target := range panel.Targets {
			queries = append(queries, variables.Replace(target.Expr))
		}
	}
	if len(queries) == 0 {
		t.Fatal("the dashboard asks for nothing")
	}
	return queries
}

// exampleSettings are those that the labels in examples/docker/compose.yml give to the plugin, with another Redis.
func exampleSettings(t *testing.T, redis string) hosts.Settings {
	t.Helper()
	var file struct {
		Services map[string]struct{ Labels map[string]string }
	}
	err := yaml.Unmarshal([]byte(rig.ReadRoot(t, "examples/docker/compose.yml")), &file)
	if err != nil {
		t.Fatal(err)
	}
	var lines strings.Builder
	for name, value := range file.Services["payments"].Labels {
		plugin, found := strings.CutPrefix(name, "traefik.http.middlewares.idem.plugin.idem.")
		if found {
			fmt.Fprintf(&lines, "%s=%s\n", plugin, value)
		}
	}
	settings := hosts.Settings(decode.Labels(lines.String()))
	settings["lease"] = "1m" // a busy machine must not look like an outage
	settings["redis"] = map[string]any{"endpoints": redis, "dialTimeout": "20s", "readTimeout": "20s", "writeTimeout": "20s"}
	return settings
}

// prometheus is a running one.
type prometheus struct {
	t   *testing.T
	url string
}

// startPrometheus starts one with the example's configuration, with this Traefik as its target.
func startPrometheus(t *testing.T, traefik string) *prometheus {
	t.Helper()
	binary := rig.Tool(t, "prometheus")
	dir := rig.CopyExample(t, "observability", map[string]string{"15s": "200ms", "shop.example:80": traefik})
	addr := rig.FreeAddress(t)
	process, err := launch.Start(t.Context(), dir, "prometheus", binary, "--config.file=prometheus.yml", "--web.listen-address="+addr, "--storage.tsdb.path="+filepath.Join(dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(process.Stop)
	p := &prometheus{t: t, url: "http://" + addr}
	err = process.Await(t.Context(), func(ctx context.Context) error { return launch.OK(ctx, p.url+"/-/ready") })
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// ask puts the data of an answer of Prometheus' API into data.
func (p *prometheus) ask(path string, query url.Values, data any) {
	p.t.Helper()
	response, err := http.Get(p.url + "/api/v1/" + path + "?" + query.Encode())
	if err != nil {
		p.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil {
		err = json.Unmarshal(text, &struct{ Data any }{data})
	}
	if err != nil || response.StatusCode != 200 {
		p.t.Fatalf("%s %v: %d %v %s", path, query, response.StatusCode, err, text)
	}
}

// count is how many series answer query.
func (p *prometheus) count(query string) int {
	p.t.Helper()
	var data struct{ Result []any }
	p.ask("query", url.Values{"query": {query}}, &data)
	return len(data.Result)
}

var (
	selector = regexp.MustCompile(`(traefik_idem_\w+)(?:\{([^}]*)\})?`)
	grouping = regexp.MustCompile(`by \(([^)]*)\)`)
	matcher  = regexp.MustCompile(`(\w+)=~?"([^"]*)"`)
)

// TestExampleObservability has a real Prometheus scrape a real Traefik, and asks it all that the rules and the dashboard ask.
func TestExampleObservability(t *testing.T) {
	t.Parallel()
	const host = "127.0.0.1" // for which Prometheus asks
	redis, addr := redistest.Start(t), rig.FreeAddress(t)
	backend := rig.NewBackend(t, rig.Created)
	dir := t.TempDir()
	for file, content := range map[string]any{
		"traefik.yml": map[string]any{
			"entryPoints":  map[string]any{"web": map[string]any{"address": addr}},
			"providers":    map[string]any{"file": map[string]any{"filename": "dynamic.yml"}},
			"experimental": map[string]any{"localPlugins": map[string]any{"idem": map[string]any{"moduleName": launch.Module}}},
		},
		"dynamic.yml": hosts.Dynamic(host, backend.URL, exampleSettings(t, redis.Addr)),
	} {
		data, err := yaml.Marshal(content)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, file), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	s := rig.SiteOf(t, hosts.Run(t, dir, "traefik.yml", addr, host), backend)
	p := startPrometheus(t, addr)
	trade := func() { // a claim, a finish and a duplicate
		key := rig.UnusedKey()
		s.WantExample(s.Do(rig.Pay(key)), 201, "first")
		s.WantExample(s.Do(rig.Pay(key)), 201, "replayed")
		time.Sleep(50 * time.Millisecond)
	}
	queries := dashboardQueries(t)
	for _, query := range queries {
		for p.count(query) == 0 { // what never has a result ends in the test's time-out
			trade()
		}
	}
	for _, rule := range rules(t) {
		queries = append(queries, rule.Expr)
	}
	for _, query := range queries {
		var labels []string
		for _, by := range grouping.FindAllStringSubmatch(query, -1) {
			labels = append(labels, strings.Split(by[1], ", ")...)
		}
		for _, found := range selector.FindAllStringSubmatch(query, -1) {
			for _, label := range labels {
				if p.count(fmt.Sprintf(`%s{%s!=""}`, found[1], label)) == 0 {
					t.Errorf("%s has no label %s, by which it is grouped in %s", found[1], label, query)
				}
			}
			for _, m := range matcher.FindAllStringSubmatch(found[2], -1) {
				for value := range strings.SplitSeq(m[2], "|") {
					if p.count(fmt.Sprintf(`%s{%s=~%q}`, found[1], m[1], value)) == 0 {
						t.Errorf("%s has no %s %q, as in %s", found[1], m[1], value, query)
					}
				}
			}
		}
	}
	var data struct {
		Groups []struct {
			Rules []struct{ Name, Health, LastError, State string }
		}
	}
	evaluated := func() bool {
		p.ask("rules", nil, &data)
		return len(data.Groups) == 1 && !slices.ContainsFunc(data.Groups[0].Rules, func(r struct{ Name, Health, LastError, State string }) bool { return r.Health == "unknown" })
	}
	for !evaluated() {
		time.Sleep(50 * time.Millisecond)
	}
	for _, rule := range data.Groups[0].Rules {
		if rule.Health != "ok" {
			t.Errorf("%s: %s", rule.Name, rule.LastError)
		}
		if rule.State != "inactive" && rule.Name != "IdemRedisSlow" { // a busy machine may be that
			t.Errorf("%s is %s while all is well", rule.Name, rule.State)
		}
	}
}

// TestExampleObservabilityCompose looks for each file that Compose would mount, and for the host that Prometheus asks for.
func TestExampleObservabilityCompose(t *testing.T) {
	t.Parallel()
	command := []string{"docker", "compose"}
	if exec.Command("docker", "compose", "version").Run() != nil {
		command = []string{rig.Tool(t, "docker-compose")}
	}
	dir := filepath.Join(hosts.Root(), observability)
	config := rig.Run(t, dir, command[0], append(command[1:], "--file", "../docker/compose.yml", "--file", "compose.yml", "config")...)
	mounted := regexp.MustCompile(`(\S*/examples/observability/\S+?)(:|\n)`).FindAllStringSubmatch(config, -1)
	if len(mounted) != 5 {
		t.Errorf("%d files are mounted, want 5:\n%s", len(mounted), config)
	}
	for _, file := range mounted {
		_, err := os.Stat(file[1])
		if err != nil {
			t.Error(err)
		}
	}
	if !strings.Contains(config, "aliases:\n        - shop.example\n") && !strings.Contains(config, "aliases:\n          - shop.example\n") {
		t.Errorf("Traefik is not found as shop.example:\n%s", config)
	}
}
