package docs

import (
	"go/ast"
	"go/token"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/rig"
	"github.com/example/traefik-idem/stats"
)

// TestGlossary compares each column of the first table in docs/dev/glossary.md with the names in the sources, and the names that
// a refusal has with those in its row.
func TestGlossary(t *testing.T) {
	named := map[string]map[string]bool{"state": {}, "outcome": {}, "slug": {}, "decision": {}, "total": {}, "metric": {}}
	name := func(column string, e ast.Expr) {
		named[column][textOf(e, nil)] = true
	}
	totals := map[string]string{} // by the name of their constants
	var refusals []map[string]string
	for _, file := range sources(t) {
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GenDecl:
				for i, spec := range n.Specs {
					value, ok := spec.(*ast.ValueSpec)
					if !ok || n.Tok != token.CONST {
						continue
					}
					first, _ := n.Specs[0].(*ast.ValueSpec)
					switch {
					case nameOf(value.Type) == "State":
						named["state"][value.Names[0].Name] = true
					case nameOf(first.Type) == "outcome":
						named["outcome"][value.Names[0].Name] = true
					case first.Names[0].Name == "First" && i < len(stats.Names):
						totals["stats."+value.Names[0].Name] = stats.Names[i]
					}
				}
			case *ast.ValueSpec:
				column := map[string]string{"decisions": "decision", "totalLabels": "metric"}[n.Names[0].Name]
				if column != "" {
					for _, element := range n.Values[0].(*ast.CompositeLit).Elts {
						name(column, element)
					}
				}
			case *ast.CallExpr:
				if nameOf(n.Fun) == "announce" && textOf(n.Args[3], nil) != "…" {
					name("decision", n.Args[3])
				}
			case *ast.CompositeLit:
				if nameOf(n.Type) != "refusal" {
					break
				}
				refusal := map[string]string{}
				for _, element := range n.Elts {
					field := element.(*ast.KeyValueExpr)
					refusal[nameOf(field.Key)] = textOf(field.Value, nil)
					if nameOf(field.Key) == "total" {
						refusal["total"] = nameOf(field.Value)
					}
				}
				named["slug"][refusal["slug"]] = true
				named["decision"][refusal["decision"]] = true
				refusals = append(refusals, refusal)
			}
			return true
		})
	}
	for _, total := range stats.Names {
		named["total"][total] = true
	}
	page, _, _ := strings.Cut(rig.ReadRoot(t, "docs/dev/glossary.md"), "\n## Words\n")
	columns := []string{"state", "outcome", "slug", "decision", "total", "metric"}
	explained := map[string]map[string]bool{"state": {}, "outcome": {}, "slug": {}, "decision": {}, "total": {"degraded": true, "storeErrors": true, "settled": true}, "metric": {}}
	rows := map[string][]string{} // cells by slug
	for line := range strings.Lines(page) {
		cells := strings.Split(strings.Trim(line, "|\n "), "|")
		if len(cells) != 7 || !strings.Contains(line, "`") {
			continue
		}
		for i, column := range columns {
			for _, span := range regexp.MustCompile("`(\\w[^` ]*)`").FindAllStringSubmatch(cells[i+1], -1) {
				if !strings.HasPrefix(span[1], "traefik_idem_") {
					explained[column][span[1]] = true
				}
			}
		}
		rows[strings.Trim(cells[3], "` ")] = cells
	}
	for _, column := range columns {
		got, want := slices.Sorted(maps.Keys(explained[column])), slices.Sorted(maps.Keys(named[column]))
		if !slices.Equal(got, want) {
			t.Errorf("%s: the table has %q, the sources %q", column, got, want)
		}
	}
	for _, refusal := range refusals {
		cells := rows[refusal["slug"]]
		if cells == nil || strings.Trim(cells[4], "` ") != refusal["decision"] || strings.Trim(cells[5], "` ") != totals[refusal["total"]] {
			t.Errorf("the row of %s is %q, want %s and %s", refusal["slug"], cells, refusal["decision"], totals[refusal["total"]])
		}
	}
}
