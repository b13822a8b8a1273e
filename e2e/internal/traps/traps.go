// Package traps finds Go constructs that compile and yet do something else under Yaegi v0.16.1.
// TestProbe of package e2e runs each of them, so that a newer Yaegi is noticed.
package traps

import (
	"fmt"
	"go/ast"
	"go/build"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"io/fs"
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// Rules names every rule and says why it stands.
var Rules = map[string]string{
	"select":              "all goroutines that run the same select share its cases: values get lost or go to the wrong one",
	"go-literal-in-loop":  "now and then it calls a nil function, which ends Traefik: start a named function",
	"return-receive":      "panics: receive into a variable and return that",
	"return-builtin":      "what a builtin function gives lands in the first result: put it into a variable and return that",
	"receive-into":        "the received value is lost: receive into a variable, then store that",
	"loop-variable":       "all rounds of the loop share one variable: copy it first, or pass it as an argument",
	"defer-in-loop":       "all deferred calls see the last round's values: defer in a function of its own",
	"range-of-channels":   "panics: range over structs that hold the channels",
	"defer-in-literal":    "a function literal does not run what it defers if that is declared further down: defer func() {…}(), or defer it in a declared function",
	"deferred-call":       "a deferred function literal that calls a literal of the same function waits for ever: defer a method",
	"unnamed-parameter":   "the argument lands in the first local variable: name every parameter, if only _",
	"errors-as":           "errors.As panics with an own type: use a sentinel and errors.Is, or a type assertion",
	"composite-compare":   "a comparison with a composite literal is wrong: compare variables",
	"elided-map-key":      "a map literal with elided key types is wrong: write the key's type",
	"named-assertion":     "true for every value of the underlying type: assert to a struct type",
	"interface-assertion": "an assertion to an interface that is not native fails or panics: assert to a native one or to the concrete type",
	"case-list":           "of several conditions in one case only the first is looked at: a case for each",
	"type-switch":         "a case of an own type, or error, does not match: use a type assertion",
	"not-in-yaegi":        "Yaegi does not know it",
	"repanic":             "after recover() a new panic reaches Traefik as a reflect.Value: use a deferred done flag and do not recover",
	"no-recover":          "a panic in a goroutine ends Traefik: its function must begin with a deferred recover",
	"late-receiver":       "the receiver is looked up when the method runs, and this variable may hold another value by then: start it from a function of its own",
	"late-defer":          "deferred arguments and receivers are looked up when the function returns, and this variable is assigned again",
	"late-closure":        "native code that keeps the closure sees the last round's variables: make it in a function of its own",
	"stale-result":        "a result that is not set holds what the last call left there: set it first, before any defer that recovers",
	"map-multi-assign":    "the map element is not set: assign to variables, then to the map",
	"call-among":          "a call's result assigned together with values that are no calls is lost, or they are: assign each by itself",
	"literal-among":       "a value declared together with a composite literal is lost: declare each by itself",
	"native-literal":      "the value does not get its methods and panics: assign it to the field, or to a variable of the interface first",
	"context-key":         "keys of one shape are equal whatever their type: use a pointer to a package variable",
	"import":              "a plugin must do without unsafe, syscall, cgo and embedded files",
}

// Finding is one place where a rule is broken.
type Finding struct {
	Pos  token.Position
	Rule string
	Text string
}

func (f Finding) String() string {
	return fmt.Sprintf("%s:%d: %s (%s): %s", f.Pos.Filename, f.Pos.Line, f.Rule, f.Text, Rules[f.Rule])
}

// Report is what Check read and found.
type Report struct {
	Files    []string // every source that the interpreter loads
	Vendored []string // the vendored functions that the plugin can reach
	Findings []Finding
}

// Check reads the packages of the module that its root package imports, as the interpreter would load them.
// Of a vendored package only functions that the plugin can reach count.
func Check(fsys fs.FS, module string) (*Report, error) {
	p := &program{
		fsys:   fsys,
		module: module,
		fset:   token.NewFileSet(),
		info: &types.Info{
			Types:      map[ast.Expr]types.TypeAndValue{},
			Defs:       map[*ast.Ident]types.Object{},
			Uses:       map[*ast.Ident]types.Object{},
			Selections: map[*ast.SelectorExpr]*types.Selection{},
			Implicits:  map[ast.Node]types.Object{},
		},
		pkgs:  map[string]*pkg{},
		decls: map[*types.Func]*ast.FuncDecl{},
		set:   map[types.Object]ast.Expr{},
	}
	if _, err := p.Import(module); err != nil {
		return nil, err
	}
	reached := p.reach()

	for _, k := range p.pkgs {
		for _, f := range k.files {
			p.report.Files = append(p.report.Files, p.fset.Position(f.Package).Filename)
			p.checkFile(f)
			for _, d := range f.Decls {
				if fd, ok := d.(*ast.FuncDecl); ok && k.vendored {
					fn := p.info.Defs[fd.Name].(*types.Func)
					if !reached[fn] {
						continue
					}
					p.report.Vendored = append(p.report.Vendored, fn.FullName())
				}
				p.checkDecl(d, k.vendored)
			}
		}
	}
	sort.Strings(p.report.Files)
	sort.Strings(p.report.Vendored)
	sort.Slice(p.report.Findings, func(i, j int) bool {
		a, b := p.report.Findings[i].Pos, p.report.Findings[j].Pos
		return a.Filename < b.Filename || a.Filename == b.Filename && a.Offset < b.Offset
	})
	return &p.report, nil
}

// Loading

type pkg struct {
	vendored bool
	files    []*ast.File
	types    *types.Package
}

type program struct {
	fsys   fs.FS
	module string
	fset   *token.FileSet
	info   *types.Info
	pkgs   map[string]*pkg
	decls  map[*types.Func]*ast.FuncDecl
	set    map[types.Object]ast.Expr // what functions init assign to variables
	report Report
}

// native imports the standard library; one for all checks, since it reads a lot.
var native = importer.Default()

// Import loads a package of the module, a vendored one, or one of the standard library.
func (p *program) Import(imp string) (*types.Package, error) {
	if k := p.pkgs[imp]; k != nil {
		return k.types, nil
	}
	dir, vendored := path.Join("vendor", imp), true
	if imp == p.module || strings.HasPrefix(imp, p.module+"/") {
		dir, vendored = path.Clean("."+strings.TrimPrefix(imp, p.module)), false
	} else if _, err := fs.Stat(p.fsys, dir); err != nil {
		return native.Import(imp)
	}

	k := &pkg{vendored: vendored}
	if err := p.parse(k, dir); err != nil {
		return nil, err
	}
	var hard error // an unused variable is no reason to stop
	conf := types.Config{Importer: p, FakeImportC: true, Error: func(err error) {
		if e, ok := err.(types.Error); !ok || !e.Soft { //nolint:errorlint // the type checker does not wrap its errors
			hard = err
		}
	}}
	k.types, _ = conf.Check(imp, p.fset, k.files, p.info)
	if hard != nil {
		return nil, hard
	}
	p.pkgs[imp] = k
	for _, f := range k.files {
		for _, d := range f.Decls {
			if fd, ok := d.(*ast.FuncDecl); ok {
				p.decls[p.info.Defs[fd.Name].(*types.Func)] = fd
				p.noteInit(fd)
			}
		}
	}
	return k.types, nil
}

func (p *program) noteInit(fd *ast.FuncDecl) {
	if fd.Name.Name != "init" || fd.Recv != nil {
		return
	}
	for _, s := range fd.Body.List {
		if a, ok := s.(*ast.AssignStmt); ok && len(a.Lhs) == len(a.Rhs) {
			for i := range a.Lhs {
				object := p.object(a.Lhs[i])
				if object != nil { // that of a variable
					p.set[object] = a.Rhs[i]
				}
			}
		}
	}
}

func (p *program) parse(k *pkg, dir string) error {
	entries, err := fs.ReadDir(p.fsys, dir)
	if err != nil {
		return err
	}
	ctx := build.Default
	ctx.JoinPath = path.Join
	ctx.OpenFile = func(name string) (io.ReadCloser, error) { return p.fsys.Open(name) }
	for _, e := range entries {
		if e.IsDir() || !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		if ok, err := ctx.MatchFile(dir, e.Name()); err != nil || !ok {
			if err != nil {
				return err
			}
			continue
		}
		name := path.Join(dir, e.Name())
		src, err := fs.ReadFile(p.fsys, name)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(p.fset, name, src, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		k.files = append(k.files, f)
	}
	if len(k.files) == 0 {
		return fmt.Errorf("no Go files in %s", dir)
	}
	return nil
}

// own says that a package is interpreted: the module's or a vendored one.
func (p *program) own(k *types.Package) bool {
	return k != nil && p.pkgs[k.Path()] != nil
}

// Reachability

// calledByNative are methods that the standard library calls on any value that has them.
var calledByNative = []string{"Close", "Error", "Is", "Read", "String", "Temporary", "Timeout", "Unwrap", "Write"}

// reach returns the vendored functions that the module's code can call. A call through an interface counts for
// every type that reached code mentions and that has a method of that name.
func (p *program) reach() map[*types.Func]bool {
	reached := map[*types.Func]bool{}
	live := map[*types.TypeName]bool{}
	called := map[string]bool{}
	for _, name := range calledByNative {
		called[name] = true
	}
	specs := map[types.Object]*ast.TypeSpec{}
	var todo []ast.Node

	for _, k := range p.pkgs {
		for _, f := range k.files {
			for _, d := range f.Decls {
				switch d := d.(type) {
				case *ast.FuncDecl:
					if !k.vendored || d.Recv == nil && d.Name.Name == "init" {
						todo = append(todo, d)
					}
				case *ast.GenDecl:
					for _, s := range d.Specs {
						switch s := s.(type) {
						case *ast.TypeSpec:
							specs[p.info.Defs[s.Name]] = s
						case *ast.ValueSpec:
							// var _ I = (*T)(nil) only asks the compiler.
							if len(s.Names) != 1 || s.Names[0].Name != "_" {
								todo = append(todo, s)
							}
						}
					}
				}
			}
		}
	}

	add := func(fn *types.Func) {
		if d := p.decls[fn]; d != nil && !reached[fn] {
			reached[fn] = true
			if d.Body != nil {
				todo = append(todo, d.Body)
			}
		}
	}
	for len(todo) > 0 {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		ast.Inspect(n, func(n ast.Node) bool {
			id, ok := n.(*ast.Ident)
			if !ok {
				return true
			}
			switch obj := p.info.Uses[id].(type) {
			case *types.Func:
				if r := obj.Signature().Recv(); r != nil && types.IsInterface(r.Type()) {
					called[obj.Name()] = true
				} else {
					add(obj.Origin())
				}
			case *types.TypeName:
				if s := specs[obj]; s != nil && !live[obj] {
					live[obj] = true
					todo = append(todo, s.Type)
				}
			}
			return true
		})
		if len(todo) == 0 {
			for fn := range p.decls {
				if called[fn.Name()] && live[receiver(fn)] {
					add(fn)
				}
			}
		}
	}
	return reached
}

func receiver(fn *types.Func) *types.TypeName {
	r := fn.Signature().Recv()
	if r == nil {
		return nil
	}
	t := types.Unalias(r.Type())
	if ptr, ok := t.(*types.Pointer); ok {
		t = types.Unalias(ptr.Elem())
	}
	if named, ok := t.(*types.Named); ok {
		return named.Origin().Obj()
	}
	return nil
}

// Rules

func (p *program) found(n ast.Node, rule, format string, args ...any) {
	if Rules[rule] == "" {
		panic("no rule " + rule)
	}
	p.report.Findings = append(p.report.Findings, Finding{p.fset.Position(n.Pos()), rule, fmt.Sprintf(format, args...)})
}

func (p *program) checkFile(f *ast.File) {
	for _, s := range f.Imports {
		if imp, _ := strconv.Unquote(s.Path.Value); slices.Contains([]string{"C", "unsafe", "syscall"}, imp) {
			p.found(s, "import", "%s", imp)
		}
	}
	for _, g := range f.Comments {
		for _, c := range g.List {
			if strings.HasPrefix(c.Text, "//go:embed") {
				p.found(c, "import", "go:embed")
			}
		}
	}
}

// checkDecl applies every rule to one top-level declaration.
func (p *program) checkDecl(d ast.Decl, vendored bool) {
	c := &checker{program: p, assigned: map[types.Object][]token.Pos{}}
	ast.Inspect(d, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			c.noteAssigned(n.Lhs...)
		case *ast.IncDecStmt:
			c.noteAssigned(n.X)
		case *ast.RangeStmt:
			c.noteAssigned(n.Key, n.Value)
		case *ast.CallExpr:
			c.recovers = c.recovers || p.builtin(n) == "recover"
		}
		return true
	})
	if fd, ok := d.(*ast.FuncDecl); ok {
		c.params(fd.Type)
		c.results(fd)
	}
	ast.PreorderStack(d, nil, func(n ast.Node, stack []ast.Node) bool {
		c.node(n, stack)
		if !vendored {
			c.goroutine(n)
		}
		return true
	})
}

// checker looks at one top-level declaration.
type checker struct {
	*program
	assigned map[types.Object][]token.Pos // where a variable is assigned after its declaration
	recovers bool                         // recover() is called somewhere in it
}

func (c *checker) noteAssigned(exprs ...ast.Expr) {
	for _, e := range exprs {
		if id, ok := e.(*ast.Ident); ok && c.info.Uses[id] != nil {
			c.assigned[c.info.Uses[id]] = append(c.assigned[c.info.Uses[id]], id.Pos())
		}
	}
}

// node applies the rules that need no more than a node and what encloses it.
func (c *checker) node(n ast.Node, stack []ast.Node) {
	switch n := n.(type) {
	case *ast.SelectStmt:
		c.found(n, "select", "select")

	case *ast.GoStmt:
		if _, ok := ast.Unparen(n.Call.Fun).(*ast.FuncLit); ok && len(loops(n, stack, true)) > 0 {
			c.found(n, "go-literal-in-loop", "go func")
		}

	case *ast.DeferStmt:
		if len(loops(n, stack, false)) > 0 {
			c.found(n, "defer-in-loop", "defer")
		}
		c.lateDefer(n)
		c.deferred(n, stack)

	case *ast.ReturnStmt:
		for i, r := range n.Results {
			if receives(r) {
				c.found(r, "return-receive", "return <-")
			}
			if call, ok := ast.Unparen(r).(*ast.CallExpr); ok && i > 0 && c.info.Types[call.Fun].IsBuiltin() {
				c.found(r, "return-builtin", "return …, %s", types.ExprString(call.Fun))
			}
		}

	case *ast.AssignStmt:
		c.assign(n)

	case *ast.ValueSpec:
		c.declare(n, n.Values)

	case *ast.FuncLit:
		c.params(n.Type)
		c.capture(n, stack)

	case *ast.UnaryExpr:
		if n.Op != token.AND {
			break
		}
		x := ast.Unparen(n.X)
		for { // &v.field is inside v, unless v is a pointer
			sel, ok := x.(*ast.SelectorExpr)
			if !ok || isPointer(c.info.TypeOf(sel.X)) {
				break
			}
			x = ast.Unparen(sel.X)
		}
		if id, ok := x.(*ast.Ident); ok && c.loopVar(id, loops(n, stack, true)) {
			c.found(n, "loop-variable", "&%s", id.Name)
		}

	case *ast.SelectorExpr:
		if obj := c.info.Uses[n.Sel]; obj != nil && obj.Pkg() != nil && obj.Pkg().Path() == "sync/atomic" && obj.Name() == "Pointer" {
			c.found(n, "not-in-yaegi", "atomic.Pointer")
		}
		c.lateReceiver(n, stack)

	case *ast.CallExpr:
		c.call(n, stack)

	case *ast.BinaryExpr:
		if n.Op == token.EQL || n.Op == token.NEQ {
			if isComposite(n.X) || isComposite(n.Y) {
				c.found(n, "composite-compare", "%s", n.Op)
			}
		}

	case *ast.CompositeLit:
		switch t := c.underlying(n).(type) {
		case *types.Map:
			for _, e := range n.Elts {
				if key, ok := e.(*ast.KeyValueExpr).Key.(*ast.CompositeLit); ok && key.Type == nil {
					c.found(key, "elided-map-key", "map literal")
				}
			}
		case *types.Struct:
			c.nativeLiteral(n, t)
		}

	case *ast.TypeAssertExpr:
		if n.Type != nil {
			c.assertion(n)
		}

	case *ast.TypeSwitchStmt:
		c.typeSwitch(n)

	case *ast.SwitchStmt:
		for _, s := range n.Body.List {
			list := s.(*ast.CaseClause).List
			if n.Tag == nil && len(list) > 1 {
				c.found(list[1], "case-list", "case …, %s", types.ExprString(list[1]))
			}
		}

	case *ast.RangeStmt:
		if b, ok := c.underlying(n.X).(*types.Basic); ok && b.Info()&types.IsInteger != 0 {
			c.found(n, "not-in-yaegi", "range over an integer")
		}
		if s, ok := c.underlying(n.X).(*types.Slice); ok {
			if _, ok := s.Elem().Underlying().(*types.Chan); ok {
				c.found(n, "range-of-channels", "range over a slice of channels")
			}
		}
	}
}

// deferred finds a declared function that recovers, deferred by a literal, which does not run it if it is declared further down; and a deferred
// literal that calls another literal of the same function, which never returns: the frame's lock is held while deferred functions run.
func (c *checker) deferred(n *ast.DeferStmt, stack []ast.Node) {
	lit, ok := ast.Unparen(n.Call.Fun).(*ast.FuncLit)
	if !ok {
		fn, isFunc := c.object(n.Call.Fun).(*types.Func)
		if isFunc && inLiteral(stack) && c.bodyRecovers(n.Call.Fun) {
			c.found(n, "defer-in-literal", "defer %s", fn.Name())
		}
		return
	}
	ast.Inspect(lit.Body, func(inner ast.Node) bool {
		call, ok := inner.(*ast.CallExpr)
		if !ok {
			return true
		}
		local, ok := c.object(call.Fun).(*types.Var)
		if ok && !local.IsField() && local.Parent() != local.Pkg().Scope() && (local.Pos() < lit.Pos() || local.Pos() >= lit.End()) {
			c.found(call, "deferred-call", "%s", local.Name())
		}
		return true
	})
}

// inLiteral says that the innermost function around a node is a literal.
func inLiteral(stack []ast.Node) bool {
	for i := len(stack) - 1; i >= 0; i-- {
		switch stack[i].(type) {
		case *ast.FuncLit:
			return true
		case *ast.FuncDecl:
			return false
		}
	}
	return false
}

func (c *checker) call(n *ast.CallExpr, stack []ast.Node) {
	switch name := c.builtin(n); {
	case name == "clear" || name == "min" || name == "max":
		c.found(n, "not-in-yaegi", "%s", name)
	case name == "panic" && c.recovers:
		c.found(n, "repanic", "panic beside recover")
	}
	switch c.callee(n) {
	case "errors.As":
		c.found(n, "errors-as", "errors.As")
	case "context.WithValue":
		if len(n.Args) == 3 && !isPointer(c.info.TypeOf(n.Args[1])) {
			c.found(n.Args[1], "context-key", "%s", types.ExprString(n.Args[1]))
		}
	}
	in := loops(n, stack, false)
	if len(in) == 0 || !c.keeps(n) {
		return
	}
	for _, a := range n.Args {
		switch x := ast.Unparen(a).(type) {
		case *ast.FuncLit:
			if name := c.refers(x, in, c.inside); name != "" {
				c.found(x, "late-closure", "%s", name)
			}
		case *ast.Ident: // f := func…; AfterFunc(d, f)
			if _, ok := c.underlying(x).(*types.Signature); ok && c.inside(x, in) {
				c.found(x, "late-closure", "%s", x.Name)
			}
		}
	}
}

// keeps says that a native function, or a native type converted to, may call a function that it is given after it has returned.
func (c *checker) keeps(n *ast.CallExpr) bool {
	name := c.callee(n)
	if name == "" {
		return false
	}
	for _, prefix := range []string{"bytes.", "slices.", "sort.", "strings.", "(*sync.Once).Do"} {
		if strings.HasPrefix(name, prefix) {
			return false
		}
	}
	return true
}

// callee names the native function that is called, or the native type that is converted to.
func (c *checker) callee(n *ast.CallExpr) string {
	switch obj := c.object(n.Fun).(type) {
	case *types.Func:
		if obj.Pkg() != nil && !c.own(obj.Pkg()) {
			return obj.FullName()
		}
	case *types.TypeName:
		if obj.Pkg() != nil && !c.own(obj.Pkg()) {
			return obj.Pkg().Path() + "." + obj.Name()
		}
	}
	return ""
}

// object is what a plain or selected name stands for.
func (p *program) object(e ast.Expr) types.Object {
	switch e := ast.Unparen(e).(type) {
	case *ast.Ident:
		return p.info.Uses[e]
	case *ast.SelectorExpr:
		return p.info.Uses[e.Sel]
	}
	return nil
}

func (p *program) builtin(n *ast.CallExpr) string {
	if b, ok := p.object(n.Fun).(*types.Builtin); ok {
		return b.Name()
	}
	return ""
}

func (c *checker) underlying(e ast.Expr) types.Type {
	if t := c.info.TypeOf(e); t != nil {
		return t.Underlying()
	}
	return nil
}

func (c *checker) params(t *ast.FuncType) {
	for _, f := range t.Params.List {
		if len(f.Names) == 0 {
			c.found(f, "unnamed-parameter", "%s", types.ExprString(f.Type))
		}
	}
}

// declare finds composite literals among other values.
func (c *checker) declare(n ast.Node, values []ast.Expr) {
	literals := 0
	for _, v := range values {
		if _, ok := ast.Unparen(v).(*ast.CompositeLit); ok {
			literals++
		}
	}
	if literals > 0 && literals < len(values) {
		c.found(n, "literal-among", "%d of %d", literals, len(values))
	}
}

func (c *checker) assign(n *ast.AssignStmt) {
	if n.Tok == token.DEFINE {
		c.declare(n, n.Rhs)
	}
	if len(n.Rhs) != 1 {
		c.callAmong(n)
		return
	}
	if _, plain := n.Lhs[0].(*ast.Ident); !plain && receives(n.Rhs[0]) {
		c.found(n, "receive-into", "%s", types.ExprString(n.Lhs[0]))
	}
	if len(n.Lhs) == 1 {
		return
	}
	for _, l := range n.Lhs {
		if ix, ok := ast.Unparen(l).(*ast.IndexExpr); ok {
			if _, ok := c.underlying(ix.X).(*types.Map); ok {
				c.found(l, "map-multi-assign", "%s", types.ExprString(l))
			}
		}
	}
}

// callAmong finds calls among several values that are assigned together, to variables that there are already.
func (c *checker) callAmong(n *ast.AssignStmt) {
	calls := 0
	for _, value := range n.Rhs {
		if call, ok := ast.Unparen(value).(*ast.CallExpr); ok && !c.info.Types[call.Fun].IsType() {
			calls++
		}
	}
	if n.Tok == token.ASSIGN && calls > 0 && calls < len(n.Rhs) {
		c.found(n, "call-among", "%d of %d", calls, len(n.Rhs))
	}
}

// capture finds a closure over a variable that a loop's head declares.
func (c *checker) capture(n *ast.FuncLit, stack []ast.Node) {
	if name := c.refers(n, loops(n, stack, true), c.loopVar); name != "" {
		c.found(n, "loop-variable", "closure over %s", name)
	}
}

// refers names the first identifier in e for which is holds, of those that e does not declare itself.
func (c *checker) refers(e ast.Expr, in []ast.Stmt, is func(*ast.Ident, []ast.Stmt) bool) (name string) {
	ast.Inspect(e, func(n ast.Node) bool {
		if id, ok := n.(*ast.Ident); ok && name == "" {
			obj := c.info.Uses[id]
			if obj != nil && (obj.Pos() < e.Pos() || obj.Pos() >= e.End()) && is(id, in) {
				name = id.Name
			}
		}
		return name == ""
	})
	return name
}

// inside says that an identifier is a variable declared by one of these loops, in its head or its body.
func (c *checker) inside(id *ast.Ident, in []ast.Stmt) bool {
	obj, ok := c.info.Uses[id].(*types.Var)
	if !ok || obj.IsField() {
		return false
	}
	for _, l := range in {
		if l.Pos() <= obj.Pos() && obj.Pos() < l.End() {
			return true
		}
	}
	return false
}

// loopVar says that an identifier is a variable that the head of one of these loops declares.
func (c *checker) loopVar(id *ast.Ident, in []ast.Stmt) bool {
	if !c.inside(id, in) {
		return false
	}
	pos := c.info.Uses[id].Pos()
	for _, l := range in {
		if l.Pos() <= pos && pos < loopBody(l).Pos() {
			return true
		}
	}
	return false
}

// lateReceiver finds a method value, or a method started by go, whose receiver may be another one when the method runs.
// What defer calls is lateDefer's.
func (c *checker) lateReceiver(n *ast.SelectorExpr, stack []ast.Node) {
	if s := c.info.Selections[n]; s == nil || s.Kind() != types.MethodVal {
		return
	}
	if call, ok := stack[len(stack)-1].(*ast.CallExpr); ok && call.Fun == n {
		if _, ok := stack[len(stack)-2].(*ast.GoStmt); !ok {
			return
		}
	}
	in := loops(n, stack, false)
	late := func(id *ast.Ident, in []ast.Stmt) bool {
		if c.inside(id, in) {
			return true
		}
		for _, pos := range c.assigned[c.info.Uses[id]] {
			if pos > n.Pos() {
				return true
			}
			for _, l := range in {
				if l.Pos() <= pos && pos < l.End() {
					return true
				}
			}
		}
		return false
	}
	if name := c.refers(n.X, in, late); name != "" {
		c.found(n, "late-receiver", "%s of %s", name, types.ExprString(n))
	}
}

func (c *checker) lateDefer(n *ast.DeferStmt) {
	late := func(id *ast.Ident, _ []ast.Stmt) bool {
		return slices.ContainsFunc(c.assigned[c.info.Uses[id]], func(pos token.Pos) bool { return pos > n.End() })
	}
	for _, e := range append([]ast.Expr{n.Call.Fun}, n.Call.Args...) {
		if _, ok := ast.Unparen(e).(*ast.FuncLit); ok {
			continue
		}
		if name := c.refers(e, nil, late); name != "" {
			c.found(n, "late-defer", "%s", name)
		}
	}
}

// nativeLiteral finds values of own types in the interface fields of a native struct's literal.
func (c *checker) nativeLiteral(n *ast.CompositeLit, t *types.Struct) {
	if !c.native(c.info.TypeOf(n)) {
		return
	}
	for i, e := range n.Elts {
		var field types.Type
		if kv, ok := e.(*ast.KeyValueExpr); ok {
			e, field = kv.Value, c.info.TypeOf(kv.Key)
		} else {
			field = t.Field(i).Type()
		}
		val := c.info.TypeOf(e)
		if isPointer(val) {
			val = val.Underlying().(*types.Pointer).Elem()
		}
		if types.IsInterface(field) && !types.IsInterface(val) && c.ownNamed(val) {
			c.found(e, "native-literal", "%s", types.ExprString(e))
		}
	}
}

func (c *checker) assertion(n *ast.TypeAssertExpr) {
	t := c.info.TypeOf(n.Type)
	switch t.Underlying().(type) {
	case *types.Struct, *types.Pointer:
	case *types.Interface:
		if u := t.Underlying().(*types.Interface); !u.Empty() && !c.native(t) && !c.ownInterface(n.X) {
			c.found(n, "interface-assertion", "%s", types.ExprString(n.Type))
		}
	default:
		if c.ownNamed(t) {
			c.found(n, "named-assertion", "%s", types.ExprString(n.Type))
		}
	}
}

func (c *checker) typeSwitch(n *ast.TypeSwitchStmt) {
	var subject ast.Expr
	switch s := n.Assign.(type) {
	case *ast.ExprStmt:
		subject = s.X.(*ast.TypeAssertExpr).X
	case *ast.AssignStmt:
		subject = s.Rhs[0].(*ast.TypeAssertExpr).X
	}
	if c.ownInterface(subject) {
		return
	}
	for _, s := range n.Body.List {
		for _, e := range s.(*ast.CaseClause).List {
			t := c.info.TypeOf(e)
			if isPointer(t) {
				t = t.Underlying().(*types.Pointer).Elem()
			}
			if c.ownNamed(t) || types.Identical(t, types.Universe.Lookup("error").Type()) {
				c.found(e, "type-switch", "case %s", types.ExprString(e))
			}
		}
	}
}

// ownInterface says that the static type of an expression is an interface that interpreted code declares.
func (c *checker) ownInterface(e ast.Expr) bool {
	t := c.info.TypeOf(e)
	return types.IsInterface(t) && c.ownNamed(t)
}

func (c *checker) ownNamed(t types.Type) bool {
	named, ok := types.Unalias(t).(*types.Named)
	return ok && c.own(named.Obj().Pkg())
}

// native says that a type has a name and the name is not from interpreted code.
func (c *checker) native(t types.Type) bool {
	named, ok := types.Unalias(t).(*types.Named)
	return ok && !c.own(named.Obj().Pkg())
}

// results finds results that are read, or returned unseen, before they are set. Only plain functions find the last
// call's values in their results; methods and closures begin with zero values.
func (c *checker) results(d *ast.FuncDecl) {
	if d.Recv != nil || d.Type.Results == nil || d.Body == nil {
		return
	}
	recovery := token.NoPos // a panic that is recovered from here on returns the results as they are
	for _, s := range d.Body.List {
		if def, ok := s.(*ast.DeferStmt); ok && recovery == token.NoPos && c.bodyRecovers(def.Call.Fun) {
			recovery = def.Pos()
		}
	}
	for _, f := range d.Type.Results.List {
		if len(f.Names) == 0 && recovery != token.NoPos {
			c.found(f, "stale-result", "unnamed result of a function that recovers")
		}
		for _, name := range f.Names {
			set := c.firstSet(d.Body, c.info.Defs[name])
			if recovery != token.NoPos && (set == nil || set.End() > recovery) {
				c.found(name, "stale-result", "%s, in a function that recovers", name.Name)
			} else if pos := c.firstRead(d.Body, c.info.Defs[name], set); pos != nil {
				c.found(pos, "stale-result", "%s", name.Name)
			}
		}
	}
}

// firstSet returns the first assignment that every path through the body meets.
func (c *checker) firstSet(body *ast.BlockStmt, obj types.Object) *ast.AssignStmt {
	for _, s := range body.List {
		switch outer := s.(type) {
		case *ast.IfStmt:
			s = outer.Init
		case *ast.SwitchStmt:
			s = outer.Init
		case *ast.ForStmt:
			s = outer.Init
		}
		if a, ok := s.(*ast.AssignStmt); ok && a.Tok == token.ASSIGN {
			for _, l := range a.Lhs {
				if id, ok := l.(*ast.Ident); ok && c.info.Uses[id] == obj {
					return a
				}
			}
		}
	}
	return nil
}

// firstRead returns the first use of the result before it is set. A deferred closure runs after return has set it.
func (c *checker) firstRead(body *ast.BlockStmt, obj types.Object, set *ast.AssignStmt) (first ast.Node) {
	written := map[*ast.Ident]bool{}
	ast.PreorderStack(body, nil, func(n ast.Node, stack []ast.Node) bool {
		if first != nil || set != nil && n.Pos() >= set.End() {
			return false
		}
		switch n := n.(type) {
		case *ast.DeferStmt:
			return false
		case *ast.AssignStmt:
			if n.Tok == token.ASSIGN {
				for _, l := range n.Lhs {
					if id, ok := l.(*ast.Ident); ok {
						written[id] = true
					}
				}
			}
		case *ast.ReturnStmt:
			inLit := slices.ContainsFunc(stack, func(n ast.Node) bool { _, ok := n.(*ast.FuncLit); return ok })
			if n.Results == nil && !inLit {
				first = n
			}
		case *ast.Ident:
			if c.info.Uses[n] == obj && !written[n] {
				first = n
			}
		}
		return true
	})
	return first
}

// goroutine finds functions that run on a goroutine of their own without a deferred recover.
func (c *checker) goroutine(n ast.Node) {
	switch n := n.(type) {
	case *ast.GoStmt:
		c.mustRecover(n.Call.Fun, "go")
	case *ast.CallExpr:
		if name := c.callee(n); (name == "time.AfterFunc" || name == "context.AfterFunc") && len(n.Args) == 2 {
			c.mustRecover(n.Args[1], name)
		}
	}
}

func (c *checker) mustRecover(fun ast.Expr, what string) {
	// A native cancel function does not panic.
	if named, ok := types.Unalias(c.info.TypeOf(fun)).(*types.Named); ok && named.String() == "context.CancelFunc" {
		return
	}
	body := c.body(fun)
	if body == nil {
		c.found(fun, "no-recover", "%s: cannot see what it runs", what)
		return
	}
	if len(body.List) > 0 {
		if d, ok := body.List[0].(*ast.DeferStmt); ok && c.bodyRecovers(d.Call.Fun) {
			return
		}
	}
	c.found(fun, "no-recover", "%s", what)
}

// body returns the body of a function literal, of a named function or method of interpreted code, or of what init assigns to a
// variable.
func (c *checker) body(fun ast.Expr) *ast.BlockStmt {
	if set := c.set[c.object(fun)]; set != nil {
		fun = set
	}
	if lit, ok := ast.Unparen(fun).(*ast.FuncLit); ok {
		return lit.Body
	}
	if fn, ok := c.object(fun).(*types.Func); ok {
		if d := c.decls[fn.Origin()]; d != nil {
			return d.Body
		}
	}
	return nil
}

// bodyRecovers says that a function calls recover itself: in a closure within it, recover returns nil.
func (c *checker) bodyRecovers(fun ast.Expr) (found bool) {
	body := c.body(fun)
	if body == nil {
		return false
	}
	ast.Inspect(body, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok && c.builtin(call) == "recover" {
			found = true
		}
		_, lit := n.(*ast.FuncLit)
		return !lit
	})
	return found
}

// loops returns the loops that run n again and again; those around an enclosing function literal too if asked for.
func loops(n ast.Node, stack []ast.Node, across bool) (in []ast.Stmt) {
	child := n
	for i := len(stack) - 1; i >= 0; i-- {
		switch s := stack[i].(type) {
		case *ast.FuncLit:
			if !across {
				return in
			}
		case *ast.ForStmt:
			if child != s.Init {
				in = append(in, s)
			}
		case *ast.RangeStmt:
			if child != s.X {
				in = append(in, s)
			}
		}
		child = stack[i]
	}
	return in
}

func loopBody(l ast.Stmt) *ast.BlockStmt {
	if f, ok := l.(*ast.ForStmt); ok {
		return f.Body
	}
	return l.(*ast.RangeStmt).Body
}

func receives(e ast.Expr) bool {
	u, ok := ast.Unparen(e).(*ast.UnaryExpr)
	return ok && u.Op == token.ARROW
}

func isComposite(e ast.Expr) bool {
	_, ok := ast.Unparen(e).(*ast.CompositeLit)
	return ok
}

func isPointer(t types.Type) bool {
	if t == nil {
		return false
	}
	_, ok := t.Underlying().(*types.Pointer)
	return ok
}
