package docs

import (
	"fmt"
	"go/ast"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"
	"gopkg.in/yaml.v3"

	idem "github.com/example/traefik-idem"
	"github.com/example/traefik-idem/e2e/internal/decode"
	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/launch"
	"github.com/example/traefik-idem/e2e/internal/payments"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

var snippet = regexp.MustCompile("(?s)```([a-z]*)\n(.*?)```")

// TestREADMESnippets builds the middleware from every configuration in the README and the docs.
func TestREADMESnippets(t *testing.T) {
	for page, want := range map[string]int{ // configurations in it, static ones too
		"README.md":             1,
		"docs/configuration.md": 6,
		"docs/drf-idem.md":      1,
		"docs/install.md":       7,
		"docs/production.md":    1,
		"docs/recipes.md":       5,
		"docs/redis.md":         8,
	} {
		found := 0
		for _, s := range snippet.FindAllStringSubmatch(withFiles(t, rig.ReadRoot(t, page)), -1) {
			kind, text := s[1], s[2]
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
				t.Errorf("%s: %v in\n%s", page, err, text)
				continue
			}
			found++
			tryOut(t, page, text, config)
		}
		if found != want {
			t.Errorf("%s has %d configurations, want %d", page, found, want)
		}
	}
}

// tryOut builds the middleware from the configuration config, which is text in a page. Where it has no middleware, it
// compares config with what is known of it.
func tryOut(t *testing.T, page, text string, config map[string]any) {
	t.Helper()
	var settings hosts.Settings
	switch {
	case config["experimental"] != nil:
		var static struct {
			Experimental struct {
				AbortOnPluginFailure bool                         `yaml:"abortOnPluginFailure"`
				Plugins              map[string]map[string]string `yaml:"plugins"`
				LocalPlugins         map[string]map[string]string `yaml:"localPlugins"`
			}
		}
		err := yaml.Unmarshal([]byte(text), &static)
		e := static.Experimental
		loaded := e.Plugins["idem"]["moduleName"] + e.LocalPlugins["idem"]["moduleName"]
		if err != nil || !e.AbortOnPluginFailure || loaded != launch.Module || e.Plugins["idem"] != nil && e.Plugins["idem"]["version"] == "" {
			t.Errorf("%s: %v, static configuration\n%s", page, err, text)
		}
		return
	case config["filters"] != nil:
		indented := strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n      ")
		if !strings.Contains(rig.ReadRoot(t, "examples/kubernetes/gateway.yml"), indented) {
			t.Errorf("%s: examples/kubernetes/gateway.yml has no\n%s", page, indented)
		}
		return
	case config["image"] != nil || config["providers"] != nil:
		return // values of Traefik's chart, which nothing here can try out
	case config["services"] != nil:
		settings = settingsOf(labelsOf(config["services"].(map[string]any)["payments"]))
	default:
		settings = settingsOf(config)
	}
	if len(settings) == 0 {
		t.Errorf("%s: no settings of the plugin in\n%s", page, text)
	}
	for _, host := range []hosts.Host{hosts.Compiled, hosts.Yaegi} {
		if refusal := host.Refusal(t, settings); refusal != "" {
			t.Errorf("%s: %s refuses %v: %s", page, host, settings, refusal)
		}
	}
}

// settingsOf are the plugin's settings in a dynamic configuration.
func settingsOf(config map[string]any) hosts.Settings {
	for _, name := range []string{"http", "middlewares", "idem", "plugin", "idem"} {
		config, _ = config[name].(map[string]any)
	}
	return config
}

// labelsOf is the configuration that a service of a Compose file has in its labels.
func labelsOf(service any) map[string]any {
	var lines strings.Builder
	for name, value := range service.(map[string]any)["labels"].(map[string]any) {
		fmt.Fprintf(&lines, "%s=%v\n", name, value)
	}
	return decode.Labels(lines.String())
}

// TestREADMEInstall compares the Compose file of the README with the one in examples/docker, which another test starts: all
// that the README shows is in there.
func TestREADMEInstall(t *testing.T) {
	shown := snippetsOf(t, "README.md", "yaml")
	if len(shown) != 1 {
		t.Fatalf("%d configurations in the README, want one", len(shown))
	}
	text := strings.NewReplacer("./traefik-idem:", "../..:", "your-service", "traefik-idem-payments", "8080:", "${PORT:-8080}:").Replace(shown[0])
	var readme, example map[string]any
	err := yaml.Unmarshal([]byte(text), &readme)
	if err != nil {
		t.Fatal(err)
	}
	err = yaml.Unmarshal([]byte(rig.ReadRoot(t, "examples/docker/compose.yml")), &example)
	if err != nil {
		t.Fatal(err)
	}
	var within func(name string, part, whole any)
	within = func(name string, part, whole any) {
		switch part := part.(type) {
		case map[string]any:
			whole, _ := whole.(map[string]any)
			for key, value := range part {
				within(name+" "+key, value, whole[key])
			}
		case []any:
			whole, _ := whole.([]any)
			for _, value := range part {
				if !slices.Contains(whole, value) {
					t.Errorf("%s: the example has no %v", name, value)
				}
			}
		default:
			isOneOf := strings.HasSuffix(name, ".endpoints") && strings.Contains(fmt.Sprint(whole), fmt.Sprint(part))
			if part != whole && !isOneOf {
				t.Errorf("%s: the README has %v, the example %v", name, part, whole)
			}
		}
	}
	within("compose.yml:", readme, example)
}

// TestREADMETry sends the README's requests with the README's labels to the sample service, and compares the answers.
func TestREADMETry(t *testing.T) {
	rig.NeedCurl(t)
	var compose map[string]any
	err := yaml.Unmarshal([]byte(snippetsOf(t, "README.md", "yaml")[0]), &compose)
	if err != nil {
		t.Fatal(err)
	}
	shown := snippetsOf(t, "README.md", "console")
	if len(shown) != 1 || strings.Count("\n"+shown[0], "\n$ curl ") != 2 {
		t.Fatalf("want two curl lines in the README, and what they print: %q", shown)
	}
	for _, host := range hosts.All() {
		settings := settingsOf(labelsOf(compose["services"].(map[string]any)["payments"]))
		settings["redis"] = hosts.Settings{"endpoints": redistest.Start(t).Addr, "dialTimeout": "10s", "readTimeout": "10s"}
		s := rig.Serve(t, host, payments.Handler().ServeHTTP, settings)
		var printed strings.Builder
		for line := range strings.Lines(shown[0]) {
			command, isCommand := strings.CutPrefix(line, "$ ")
			if !isCommand {
				continue
			}
			printed.WriteString(line)
			printed.WriteString(rig.Run(t, ".", "bash", "-c", strings.NewReplacer("curl ", "curl -sS ", "localhost:8080", s.Addr, "shop.example", s.Name).Replace(command)))
			printed.WriteString("\n")
		}
		got, want := dates.ReplaceAllString(strings.ReplaceAll(printed.String(), "\r", ""), "…"), dates.ReplaceAllString(shown[0], "…")
		if strings.TrimSpace(got) != strings.TrimSpace(want) {
			t.Errorf("%s prints\n%s\nthe README has\n%s", host, got, want)
		}
	}
}

// TestOperatingPage runs the curl lines of docs/operating.md one after the other, about a payment that broke off.
func TestOperatingPage(t *testing.T) {
	rig.NeedCurl(t)
	lines := strings.ReplaceAll(strings.Join(snippetsOf(t, "docs/operating.md", "sh"), ""), "\\\n", "")
	version := regexp.MustCompile(`"version":"([0-9a-f]+)"`)
	for _, host := range hosts.All() {
		s := rig.Serve(t, host, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
			hosts.Settings{"stats": map[string]any{"users": "ops:look", "admins": "boss:pass"}})
		payment := rig.Post("/api/payments/", "order-4711", "Authorization", "Bearer …")
		s.Send(payment)
		id := s.IDOf(s.Do(payment))
		states, seen := []string{"unknown", "unknown", "done", "free"}, ""
		for line := range strings.Lines(lines) {
			command := strings.NewReplacer("curl ", "curl -sS --connect-to ::"+s.Addr+" ", "-u ops", "-u ops:look", "-u boss", "-u boss:pass",
				"https://shop.example", "http://"+s.Name, "<id>", id, "<version>", seen).Replace(line)
			printed := rig.Run(t, ".", "bash", "-c", command)
			if len(states) == 0 || !strings.Contains(printed, `"id":"`+id+`","state":"`+states[0]+`"`) {
				t.Fatalf("%s: %s\nprints %s, want the key %s in the first state of %s", host, command, printed, id, states)
			}
			states = states[1:]
			if found := version.FindStringSubmatch(printed); found != nil {
				seen = found[1]
			}
		}
		if len(states) > 0 {
			t.Errorf("%s: the page has no curl line for %s", host, states)
		}
	}
}

// dates are what differs between two runs. A time with fewer digits makes a shorter answer.
var dates = regexp.MustCompile(`Date: .*|Content-Length: .*|"created":"[^"]*"`)

// snippetsOf are the snippets of one kind in a page.
func snippetsOf(t *testing.T, page, kind string) []string {
	t.Helper()
	var texts []string
	for _, found := range snippet.FindAllStringSubmatch(rig.ReadRoot(t, page), -1) {
		if found[1] == kind {
			texts = append(texts, found[2])
		}
	}
	return texts
}

// withFiles puts files of the test in the place of those that text names.
func withFiles(t *testing.T, text string) string {
	t.Helper()
	password := filepath.Join(t.TempDir(), "password")
	rig.WriteFile(t, password, "secret")
	users := filepath.Join(t.TempDir(), "users")
	rig.WriteFile(t, users, "ops:secret")
	ca := redistest.NewAuthority(t)
	cert, key := ca.Issue("client")
	return strings.NewReplacer("/etc/traefik/idem-users", users, "/etc/traefik/idem-admins", users, "/run/secrets/redis-password", password, "/run/secrets/sentinel-password", password,
		"/etc/traefik/redis-ca.pem", ca.CertFile, "/etc/traefik/redis-client.pem", cert, "/etc/traefik/redis-client-key.pem", key).Replace(text)
}

// TestREADMESettings compares the README's settings with the struct, in both languages.
func TestREADMESettings(t *testing.T) {
	defaults := defaultsOf(t)
	for page, none := range map[string]string{"README.md": "none", "README.ru.md": "нет"} {
		rows := 0
		for _, cells := range settingRows(rig.ReadRoot(t, page)) {
			if len(cells) != 3 { // of another table
				continue
			}
			rows++
			want, ok := defaults[cells[0]]
			if want == "none" {
				want = none
			}
			if !ok || cells[1] != want {
				t.Errorf("%s says that %s is %q by default, want %q", page, cells[0], cells[1], want)
			}
		}
		if rows != 12 {
			t.Errorf("%s has %d settings, want 12", page, rows)
		}
	}
}

// TestREADMESize keeps the README to what is read in one go.
func TestREADMESize(t *testing.T) {
	if size := len(rig.ReadRoot(t, "README.md")); size > 10<<10 {
		t.Errorf("README.md has %d bytes, want at most 10 KiB; the rest belongs into docs/", size)
	}
}

// section is the part of a page from one heading to the next.
type section struct {
	level   int
	heading string
	text    string
}

var fence = regexp.MustCompile("(?s)\n```.*?\n```")

// sections are those of a page after its title. A line of a snippet that begins with # is no heading.
func sections(t *testing.T, page string) []section {
	t.Helper()
	text := rig.ReadRoot(t, page)
	plain := fence.ReplaceAllStringFunc(text, func(s string) string { return strings.ReplaceAll(s, "\n#", "\n ") })
	headings := regexp.MustCompile("(?m)^(##+) (.*)$").FindAllStringSubmatchIndex(plain, -1)
	all := []section{{1, "", text[:headings[0][0]]}}
	for i, h := range headings {
		end := len(text)
		if i+1 < len(headings) {
			end = headings[i+1][0]
		}
		all = append(all, section{h[3] - h[2], text[h[4]:h[5]], text[h[1]:end]})
	}
	return all
}

// TestREADMEInRussian has the same headings, snippets, code and links in both languages. The text in diagrams is translated.
func TestREADMEInRussian(t *testing.T) {
	english, russian := sections(t, "README.md"), sections(t, "README.ru.md")
	if len(english) != len(russian) {
		t.Fatalf("%d and %d sections", len(english), len(russian))
	}
	quoted, edge := regexp.MustCompile(`"[^"]*"`), regexp.MustCompile(`-- [^>\n]+ -->`)
	code := regexp.MustCompile("`[^`\n]+`|\\]\\([^)]+\\)")
	for i, e := range english {
		r := russian[i]
		if e.level != r.level {
			t.Errorf("%q has level %d, %q %d", e.heading, e.level, r.heading, r.level)
		}
		var snippets, spans [2][]string
		for language, text := range []string{e.text, r.text} {
			for _, s := range snippet.FindAllStringSubmatch(text, -1) {
				if s[1] == "mermaid" {
					s[0] = edge.ReplaceAllString(quoted.ReplaceAllString(s[0], `""`), "-->")
				}
				snippets[language] = append(snippets[language], s[0])
			}
			text = strings.NewReplacer("/README.ru.md)", "/other)", "/README.md)", "/other)").Replace(fence.ReplaceAllString(text, ""))
			spans[language] = code.FindAllString(text, -1)
			slices.Sort(spans[language])
		}
		if !slices.Equal(snippets[0], snippets[1]) {
			t.Errorf("snippets of %q:\n%s\nof %q:\n%s", e.heading, snippets[0], r.heading, snippets[1])
		}
		if !slices.Equal(spans[0], spans[1]) {
			t.Errorf("code and links of %q:\n%s\nof %q:\n%s", e.heading, spans[0], r.heading, spans[1])
		}
	}
}

// TestConfigurationPage compares docs/configuration.md with the struct, and with what the plugin allows: bounds are tried
// out, and so are values from a list and all examples.
func TestConfigurationPage(t *testing.T) {
	page := withFiles(t, rig.ReadRoot(t, "docs/configuration.md"))
	kinds := map[string]string{}
	describe(reflect.ValueOf(idem.CreateConfig()).Elem(), "", func(name, _ string, field reflect.Value) {
		kinds[name] = map[reflect.Kind]string{reflect.Bool: "boolean", reflect.Int: "integer", reflect.Int64: "integer", reflect.Slice: "list", reflect.String: "string"}[field.Kind()]
	})
	documented, examples := map[string]string{}, map[string]string{}
	rows := settingRows(page)
	for _, cells := range rows {
		if len(cells) != 6 {
			t.Fatalf("want setting, type, default, allowed, example, meaning: %q", cells)
		}
		documented[cells[0]] = cells[2]
		examples[cells[0]] = cells[4]
	}
	wantDefaults(t, "docs/configuration.md", documented)
	for _, cells := range rows {
		name, kind, allowed, example := cells[0], cells[1], cells[3], cells[4]
		refusal := func(value string) string {
			settings := map[string]string{"logLevel": "error"}
			settings[name] = value
			if companion, ok := companions[name]; ok {
				settings[companion] = examples[companion]
			}
			return hosts.Compiled.Refusal(t, nested(settings))
		}
		accepted := func(value string) {
			if r := refusal(value); r != "" {
				t.Errorf("%s: %q is refused: %s", name, value, r)
			}
		}
		accepted(example)
		said := refusal("-1") // which nearly nothing is
		if strings.Contains(said, "a duration such as") {
			kinds[name] = "duration"
		}
		if kind != kinds[name] {
			t.Errorf("%s: the page says %s, it is a %s", name, kind, kinds[name])
		}
		switch kind {
		case "duration", "integer":
			least, most, _ := strings.Cut(allowed, " to ")
			for bound, step := range map[string]int{least: -1, most: +1} {
				accepted(bound)
				if refusal(beyond(t, bound, step)) == "" {
					t.Errorf("%s: more is allowed than %s", name, allowed)
				}
			}
		case "string":
			_, want, _ := strings.Cut(said, "; allowed: ")
			got := strings.ReplaceAll(allowed, "`", "")
			if (enumeration.MatchString(want) || enumeration.MatchString(got)) && got != want {
				t.Errorf("%s: the page allows %s, the plugin: %s", name, got, want)
			}
		}
	}
}

var enumeration = regexp.MustCompile("^[a-z]+(, [a-z]+)+$")

// beyond is the number or duration that is one step further than bound.
func beyond(t *testing.T, bound string, step int) string {
	t.Helper()
	n, err := strconv.Atoi(bound)
	if err == nil {
		return strconv.Itoa(n + step)
	}
	d, err := time.ParseDuration(bound)
	if err != nil {
		t.Error(err)
	}
	return (d + time.Duration(step)).String()
}

// companions are what some settings cannot be without.
var companions = map[string]string{
	"redis.username": "redis.password", "redis.sentinel.username": "redis.sentinel.password",
	"redis.tls.cert": "redis.tls.key", "redis.tls.key": "redis.tls.cert",
}

// nested is flat, whose names have dots, as Traefik has it.
func nested(flat map[string]string) hosts.Settings {
	root := map[string]any{}
	for name, value := range flat {
		node := root
		path := strings.Split(name, ".")
		for _, part := range path[:len(path)-1] {
			if node[part] == nil {
				node[part] = map[string]any{}
			}
			node = node[part].(map[string]any)
		}
		node[path[len(path)-1]] = value
	}
	return root
}

// settingRows are the cells of all table rows that begin with a setting, without the marks of code around a whole cell.
func settingRows(text string) [][]string {
	var rows [][]string
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "| \n"), "|")
		for i, cell := range cells {
			cell = strings.TrimSpace(cell)
			if strings.Count(cell, "`") == 2 {
				cell = strings.Trim(cell, "`")
			}
			cells[i] = cell
		}
		rows = append(rows, cells)
	}
	return rows
}

// wantDefaults compares documented, which has the default of each setting as a page shows it, with the code.
func wantDefaults(t *testing.T, page string, documented map[string]string) {
	t.Helper()
	for name, want := range defaultsOf(t) {
		if got, ok := documented[name]; !ok || got != want {
			t.Errorf("%s: %s says %q, the default is %q", name, page, got, want)
		}
		delete(documented, name)
	}
	for name := range documented {
		t.Errorf("%s has a setting %s that there is not", page, name)
	}
}

// defaultsOf are the defaults of all settings, as pages show them.
func defaultsOf(t *testing.T) map[string]string {
	t.Helper()
	defaults, lists := map[string]string{}, listDefaults(t)
	describe(reflect.ValueOf(idem.CreateConfig()).Elem(), "", func(name, place string, field reflect.Value) {
		defaults[name] = fmt.Sprint(field.Interface())
		if field.Kind() == reflect.Slice {
			defaults[name] = lists[place]
		}
		if defaults[name] == "" {
			defaults[name] = "none"
		}
	})
	return defaults
}

// describe calls do for each setting of config, with its name, and with the type and name of its field.
func describe(config reflect.Value, prefix string, do func(name, place string, field reflect.Value)) {
	for i := range config.NumField() {
		field := config.Type().Field(i)
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if name == "" { // what is left over when a configuration is decoded
			continue
		}
		if field.Type.Kind() == reflect.Struct {
			describe(config.Field(i), prefix+name+".", do)
		} else {
			do(prefix+name, config.Type().Name()+"."+field.Name, config.Field(i))
		}
	}
}

// listDefaults are the defaults of lists, which settings() has: in its methods' calls of list, by type and name of the field.
func listDefaults(t *testing.T) map[string]string {
	t.Helper()
	defaults := map[string]string{}
	for _, file := range sources(t) {
		for _, declaration := range file.Decls {
			f, ok := declaration.(*ast.FuncDecl)
			if !ok || f.Recv == nil {
				continue
			}
			ast.Inspect(f, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok || nameOf(call.Fun) != "list" {
					return true
				}
				var values []string
				for _, value := range call.Args[1:] {
					values = append(values, textOf(value, nil))
				}
				receiver := f.Recv.List[0].Type.(*ast.StarExpr).X
				defaults[nameOf(receiver)+strings.TrimPrefix(nameOf(call.Args[0]), "c")] = strings.Join(values, ", ")
				return true
			})
		}
	}
	return defaults
}

// TestREADMELinks follows every link from a page of the repository to a file in it, and to a heading.
func TestREADMELinks(t *testing.T) {
	pages, _ := filepath.Glob(filepath.Join(hosts.Root(), "*.md"))
	for _, pattern := range []string{"docs/*.md", "docs/dev/*.md", "examples/*.md", "examples/*/*.md"} {
		more, _ := filepath.Glob(filepath.Join(hosts.Root(), pattern))
		pages = append(pages, more...)
	}
	followed := 0
	for _, page := range pages {
		data, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, link := range regexp.MustCompile(`(?:\]\(|src="|srcset=")([^)"\s]+)`).FindAllStringSubmatch(fence.ReplaceAllString(string(data), ""), -1) {
			// The Plugin Catalog shows the README alone, so that its links are absolute.
			own, isOwn := strings.CutPrefix(link[1], "https://"+launch.Module+"/")
			if strings.Contains(link[1], "://") && !isOwn {
				continue
			}
			followed++
			file, anchor, _ := strings.Cut(link[1], "#")
			target := filepath.Join(filepath.Dir(page), file)
			switch {
			case isOwn:
				own, _, _ = strings.Cut(own, "#")
				target = filepath.Join(hosts.Root(), strings.TrimPrefix(strings.TrimPrefix(own, "raw/main/"), "blob/main/"))
			case strings.HasPrefix(filepath.Base(page), "README.") && filepath.Dir(page) == hosts.Root():
				t.Errorf("%s: the link %s does not work in the Plugin Catalog", page, link[1])
			case file == "":
				target = page
			}
			_, err := os.Stat(target)
			if err != nil {
				t.Errorf("%s: %v", page, err)
				continue
			}
			if anchor != "" && !slices.Contains(anchors(t, target), anchor) {
				t.Errorf("%s: no heading %q in %s", page, anchor, target)
			}
		}
	}
	if followed < 50 {
		t.Errorf("%d links", followed)
	}
}

// TestDocsIndex finds every page of docs/ in its index.
func TestDocsIndex(t *testing.T) {
	index := rig.ReadRoot(t, "docs/README.md")
	pages, _ := filepath.Glob(filepath.Join(hosts.Root(), "docs", "*.md"))
	more, _ := filepath.Glob(filepath.Join(hosts.Root(), "docs", "dev", "*.md"))
	for _, page := range append(pages, more...) {
		name, _ := filepath.Rel(filepath.Join(hosts.Root(), "docs"), page)
		if name != "README.md" && !strings.Contains(index, "]("+filepath.ToSlash(name)+"):") {
			t.Errorf("docs/README.md does not name %s and say what is in it", name)
		}
	}
	if len(pages) < 8 || len(more) < 4 {
		t.Errorf("%d and %d pages", len(pages), len(more))
	}
}

// anchors are the names that GitHub gives to the headings of a page.
func anchors(t *testing.T, page string) []string {
	t.Helper()
	name, err := filepath.Rel(hosts.Root(), page)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range sections(t, name) {
		plain := regexp.MustCompile(`[^\pL\pN _-]`).ReplaceAllString(strings.ToLower(s.heading), "")
		names = append(names, strings.ReplaceAll(plain, " ", "-"))
	}
	return names
}

// TestProblems finds every answer of the plugin's own in docs/common-errors.md, with its status.
func TestProblems(t *testing.T) {
	page := rig.ReadRoot(t, "docs/common-errors.md")
	found := regexp.MustCompile(`&refusal\{status: http\.(\w+), slug: "([a-z-]+)"`).FindAllStringSubmatch(rig.ReadRoot(t, "problem.go"), -1)
	if len(found) != 10 {
		t.Errorf("%d problems in problem.go, want 10", len(found))
	}
	statuses := map[string]int{"StatusBadRequest": 400, "StatusConflict": 409, "StatusUnprocessableEntity": 422, "StatusServiceUnavailable": 503}
	for _, f := range found {
		if !strings.Contains(page, fmt.Sprintf("\n| `%s`, %d: ", f[2], statuses[f[1]])) {
			t.Errorf("docs/common-errors.md has no row of %s with its status %d", f[2], statuses[f[1]])
		}
	}
}

// TestWorkflows finds the targets that GitHub runs in the Makefile, and nothing else run there.
func TestWorkflows(t *testing.T) {
	makefile := rig.ReadRoot(t, "Makefile")
	files, _ := filepath.Glob(filepath.Join(hosts.Root(), ".github", "workflows", "*.yml"))
	commands := 0
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var workflow struct {
			Jobs map[string]struct {
				Strategy struct{ Matrix struct{ Target []string } }
				Steps    []struct{ Run string }
			}
		}
		err = yaml.Unmarshal(data, &workflow)
		if err != nil {
			t.Errorf("%s: %v", file, err)
		}
		for _, job := range workflow.Jobs {
			targets := job.Strategy.Matrix.Target
			for _, step := range job.Steps {
				switch {
				case step.Run == ".ci/run":
					commands++
				case step.Run == "make ${{ matrix.target }}" && len(targets) > 0:
					commands++
				case step.Run != "" && !strings.HasPrefix(step.Run, "git config "):
					t.Errorf("%s runs %q, which is no target", file, step.Run)
				}
			}
			for _, target := range targets {
				name, _, _ := strings.Cut(target, " ")
				if !strings.Contains(makefile, "\n"+name+":") {
					t.Errorf("%s: no target %s in the Makefile", file, name)
				}
			}
		}
	}
	if commands < 2 {
		t.Errorf("%d commands in %q", commands, files)
	}
}
