package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// TestCommonErrors compares what the plugin can say with the first columns of docs/common-errors.md: nothing may be missing
// there, and nothing may be there that is not said any more.
func TestCommonErrors(t *testing.T) {
	page, _, _ := strings.Cut(rig.ReadRoot(t, "docs/common-errors.md"), "\n## Said by Traefik\n")
	explained := map[string]bool{}
	for line := range strings.Lines(page) {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		cells := strings.Split(line, " | ")
		if len(cells) != 3 || len(cells[1]) < 10 || len(cells[2]) < 10 {
			t.Errorf("want message, cause and fix: %s", line)
		}
		for _, span := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[0], -1) {
			explained[span[1]] = true
		}
	}
	all := said(t)
	everything := map[string]bool{}
	for speaker, texts := range all {
		maps.Copy(everything, texts)
		if len(texts) == 0 {
			t.Errorf("%s says nothing: are the sources read as they should be?", speaker)
		}
		for text := range texts {
			if !explained[text] {
				t.Errorf("%s says %q: no word of it in docs/common-errors.md", speaker, text)
			}
		}
	}
	for text := range explained {
		if everything[text] {
			continue
		}
		t.Errorf("docs/common-errors.md explains %q, which nothing says", text)
	}
}

// speakers are the functions that say something to whoever runs the plugin or sends requests, and which of their
// arguments are texts.
var speakers = map[string][]int{
	"errors.New": {0}, "fmt.Errorf": {0}, "panic": {0}, "recovered": {0},
	"h.log.write": {1}, "settleKey": {5}, "h.log.printLimited": {1}, "x.h.log.printLimitedAbout": {1}, "h.storeFailed": {0},
	"h.respond": {2}, "askForLogin": {2}, "k.fail": {2},
	"keysRefusal": {1, 2}, "unreachable": {0}, "badQuery": {0}, "stateConflict": {1, 2},
}

var (
	logged  = regexp.MustCompile(`^level=\w+ msg=("([^"]*)")?.*`)
	wrapped = regexp.MustCompile(`^(%w: )+`)
	wrapper = regexp.MustCompile(`(: %w)+$`)
	verb    = regexp.MustCompile(`%[a-zA-Z]`)
	word    = regexp.MustCompile(`[a-zA-Z]{3}`)
)

// said are the texts in the plugin's sources by the function that says them, with … for what is known only at run time.
func said(t *testing.T) map[string]map[string]bool {
	t.Helper()
	files := sources(t)
	constants := map[string]ast.Expr{}
	for _, file := range files {
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if ok && len(spec.Values) == 1 {
				constants[spec.Names[0].Name] = spec.Values[0]
			}
			return true
		})
	}
	all := map[string]map[string]bool{"warning": {}, "log": {}, "refusal": {}}
	for speaker := range speakers {
		all[speaker] = map[string]bool{}
	}
	say := func(speaker string, e ast.Expr) {
		text := logged.ReplaceAllString(textOf(e, constants), "$2")
		if speaker == "recovered" {
			text += " failed"
		}
		text = wrapper.ReplaceAllString(wrapped.ReplaceAllString(text, ""), ": …") // the texts of other errors
		text = strings.TrimSpace(verb.ReplaceAllString(text, "…"))
		if word.MatchString(text) {
			all[speaker][text] = true
		}
	}
	for _, file := range files {
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				if nameOf(n.Lhs[0]) == "warning" {
					say("warning", n.Rhs[0])
				}
			case *ast.BasicLit:
				if logged.MatchString(textOf(n, nil)) {
					say("log", n)
				}
			case *ast.CompositeLit:
				if nameOf(n.Type) != "refusal" {
					break
				}
				for _, element := range n.Elts {
					field, _ := element.(*ast.KeyValueExpr)
					if name := nameOf(field.Key); name == "slug" || name == "detail" {
						say("refusal", field.Value)
					}
				}
			case *ast.CallExpr:
				for _, place := range speakers[nameOf(n.Fun)] {
					say(nameOf(n.Fun), n.Args[place])
				}
			}
			return true
		})
	}
	return all
}

// sources parses the plugin's own files, without tests.
func sources(t *testing.T) []*ast.File {
	t.Helper()
	var files []*ast.File
	for _, dir := range []string{".", "store", "redisclient", "stats"} {
		paths, _ := filepath.Glob(filepath.Join(hosts.Root(), dir, "*.go"))
		for _, path := range slices.DeleteFunc(paths, func(path string) bool { return strings.HasSuffix(path, "_test.go") }) {
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, file)
		}
	}
	return files
}

// textOf is what a string expression is known to be.
func textOf(e ast.Expr, constants map[string]ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		value, err := strconv.Unquote(e.Value)
		if err == nil {
			return value
		}
	case *ast.BinaryExpr:
		return textOf(e.X, constants) + textOf(e.Y, constants)
	case *ast.Ident:
		if value, ok := constants[e.Name]; ok {
			return textOf(value, constants)
		}
	case *ast.CallExpr:
		if nameOf(e.Fun) == "fmt.Sprintf" {
			return textOf(e.Args[0], constants)
		}
	}
	return "…"
}

// nameOf is a variable, function or method as it stands in the source; empty for any other expression.
func nameOf(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return nameOf(e.X) + "." + e.Sel.Name
	}
	return ""
}
