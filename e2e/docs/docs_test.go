package docs

import (
	"fmt"
	"go/ast"
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
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

var snippet = regexp.MustCompile("(?s)```([a-z]*)\n(.*?)```")

// TestREADMESnippets builds the middleware from every configuration in the README and the docs.
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
	pages := rig.ReadRoot(t, "README.md") + rig.ReadRoot(t, "docs/redis.md") + rig.ReadRoot(t, "docs/drf-idem.md") + rig.ReadRoot(t, "docs/production.md")
	for _, found := range snippet.FindAllStringSubmatch(withFiles(t, pages), -1) {
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
	if accepted != 11 {
		t.Errorf("%d dynamic configurations, want YAML, TOML and labels in the README, 6 in docs/redis.md and one each in docs/drf-idem.md and docs/production.md", accepted)
	}
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
	return strings.NewReplacer("/etc/traefik/idem-users", users, "/run/secrets/redis-password", password, "/run/secrets/sentinel-password", password,
		"/etc/traefik/redis-ca.pem", ca.CertFile, "/etc/traefik/redis-client.pem", cert, "/etc/traefik/redis-client-key.pem", key).Replace(text)
}

// TestREADMESettings compares the README's table of settings with the struct, in both languages.
func TestREADMESettings(t *testing.T) {
	for page, words := range map[string]struct{ heading, none string }{"README.md": {"Settings", "none"}, "README.ru.md": {"Настройки", "нет"}} {
		documented := map[string]string{}
		for _, s := range sections(t, page) {
			if s.heading != words.heading {
				continue
			}
			for _, cells := range settingRows(s.text) {
				documented[cells[0]] = cells[1]
				if cells[1] == words.none {
					documented[cells[0]] = "none"
				}
			}
		}
		wantDefaults(t, page, documented)
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
			text = strings.NewReplacer("(README.ru.md)", "(other)", "(README.md)", "(other)").Replace(fence.ReplaceAllString(text, ""))
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
	lists := listDefaults(t)
	describe(reflect.ValueOf(idem.CreateConfig()).Elem(), "", func(name, place string, field reflect.Value) {
		want := fmt.Sprint(field.Interface())
		if field.Kind() == reflect.Slice {
			want = lists[place]
		}
		if want == "" {
			want = "none"
		}
		if got, ok := documented[name]; !ok || got != want {
			t.Errorf("%s: %s says %q, the default is %q", name, page, got, want)
		}
		delete(documented, name)
	})
	for name := range documented {
		t.Errorf("%s has a setting %s that there is not", page, name)
	}
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
	for _, pattern := range []string{"docs/*.md", "examples/*.md", "examples/*/*.md"} {
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
			if strings.Contains(link[1], "://") {
				continue
			}
			followed++
			file, anchor, _ := strings.Cut(link[1], "#")
			target := filepath.Join(filepath.Dir(page), file)
			if file == "" {
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

// TestREADMEProblems finds every answer of the plugin's own in the README.
func TestREADMEProblems(t *testing.T) {
	readme := rig.ReadRoot(t, "README.md")
	found := regexp.MustCompile(`&refusal\{status: (http\.\w+), slug: "([a-z-]+)"`).FindAllStringSubmatch(rig.ReadRoot(t, "problem.go"), -1)
	if len(found) != 9 {
		t.Errorf("%d problems in problem.go, want 9", len(found))
	}
	for _, f := range found {
		if !strings.Contains(readme, "| `"+f[2]+"` |") {
			t.Errorf("no word of %s in the README", f[2])
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
