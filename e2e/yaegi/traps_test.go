package yaegi

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/traps"
)

const pluginModule = "github.com/example/traefik-idem"

// harmless are findings in vendored code that the plugin cannot run into, and why.
var harmless = map[string]string{
	"vendor/github.com/gomodule/redigo/redis/conn.go: type-switch (case Argument)": "the plugin passes strings, bytes and numbers, whose cases stand before it",
}

// TestNoYaegiTraps reads what Traefik's interpreter loads and fails on constructs that it gets wrong.
func TestNoYaegiTraps(t *testing.T) {
	report, err := traps.Check(os.DirFS(hosts.Root()), pluginModule)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d files:\n%s", len(report.Files), strings.Join(report.Files, "\n"))
	t.Logf("%d vendored functions:\n%s", len(report.Vendored), strings.Join(report.Vendored, "\n"))
	if len(report.Vendored) == 0 {
		t.Error("no vendored function is reached: the Redis client calls some")
	}

	seen := map[string]bool{}
	for _, f := range report.Findings {
		key := fmt.Sprintf("%s: %s (%s)", f.Pos.Filename, f.Rule, f.Text)
		seen[key] = true
		if harmless[key] == "" {
			t.Error(f)
		}
	}
	for key := range harmless {
		if !seen[key] {
			t.Errorf("no longer found, take it off the list: %s", key)
		}
	}
}

// snippets hold, for each rule, code that must be found and a twin that must not.
var snippets = []struct{ rule, bad, good string }{
	{"select",
		`func f(c, d chan int) { select { case <-c: case <-d: } }`,
		`func f(c chan int) { <-c }`},
	{"select",
		`func f(c chan int) { select { case c <- 1: default: } }`,
		`import "reflect"
		func f(c chan int) { reflect.Select([]reflect.SelectCase{{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(c)}}) }`},

	{"go-literal-in-loop",
		`func f(n int) { for i := 0; i < n; i++ { go func(k int) { defer func() { recover() }(); print(k) }(i) } }`,
		`func f(n int) { for i := 0; i < n; i++ { go g(i) } }
		func g(k int) { defer func() { recover() }(); print(k) }`},
	{"go-literal-in-loop",
		`func f(l []int) { for range l { func() { go func() { defer func() { recover() }() }() }() } }`,
		`func f(l []int) { go func() { defer func() { recover() }(); for range l { print(1) } }() }`},

	{"return-receive",
		`func f(c chan int) int { return <-c }`,
		`func f(c chan int) int { v := <-c; return v }`},
	{"return-receive",
		`func f(c chan int) (int, error) { return (<-c), nil }`,
		`func f(c chan int) bool { return <-c == 1 }`},

	{"receive-into",
		`type t struct{ n int }
		func f(v *t, c chan int) { v.n = <-c }`,
		`type t struct{ n int }
		func f(v *t, c chan int) { n := <-c; v.n = n }`},
	{"receive-into",
		`func f(l []int, c chan int) { var ok bool; l[0], ok = <-c; print(ok) }`,
		`func f(l []int, c chan int) { n, ok := <-c; l[0] = n; print(ok) }`},

	{"loop-variable",
		`func f() []func() int { var l []func() int; for i := 0; i < 3; i++ { l = append(l, func() int { return i }) }; return l }`,
		`func f() []func() int { var l []func() int; for i := 0; i < 3; i++ { j := i; l = append(l, func() int { return j }) }; return l }`},
	{"loop-variable",
		`func f(m map[string]int) { for _, v := range m { g(func() int { return v }) } }
		func g(h func() int) { h() }`,
		`func f(m map[string]int) { for _, v := range m { g(func(v int) int { return v }, v) } }
		func g(h func(int) int, v int) { h(v) }`},
	{"loop-variable",
		`func f(l []int) { for _, v := range l { g(&v) } }
		func g(p *int) {}`,
		`func f(l []int) { for i := range l { g(&l[i]) } }
		func g(p *int) {}`},
	{"loop-variable",
		`type t struct{ n int }
		func f(l []t) { for _, v := range l { g(&v.n) } }
		func g(p *int) {}`,
		`type t struct{ n int }
		func f(l []*t) { for _, v := range l { g(&v.n) } }
		func g(p *int) {}`},

	{"range-of-channels",
		`func f(l []chan int) { for _, c := range l { close(c) } }`,
		`type t struct{ c chan int }
		func f(l []t) { for _, v := range l { close(v.c) } }`},

	{"defer-in-literal",
		`func f(h func(func())) { h(func() { defer g("x") }) }
		func g(s string) { recover() }`,
		`func f(h func(func())) { h(func() { defer func() { recover() }(); defer g("x") }) }
		func g(s string) {}`},

	{"deferred-call",
		`func f() { stop := func() {}; defer func() { stop() }() }`,
		`type t struct{ stop func() }
		func f(v *t) { defer v.end() }
		func (v *t) end() { v.stop() }`},

	{"defer-in-loop",
		`func f(l []int) { for i := range l { defer func(k int) { print(k) }(i) } }`,
		`func f(l []int) { for i := range l { g(i) } }
		func g(i int) { defer func(k int) { print(k) }(i) }`},
	{"defer-in-loop",
		`import "sync"
		func f(mu *sync.Mutex) { for { mu.Lock(); defer mu.Unlock() } }`,
		`import "sync"
		func f(mu *sync.Mutex) { for { func() { mu.Lock(); defer mu.Unlock() }() } }`},

	{"unnamed-parameter",
		`var f = func(string) bool { ok := true; return ok }`,
		`var f = func(_ string) bool { ok := true; return ok }`},
	{"unnamed-parameter",
		`func f(string, int) {}`,
		`type f func(string, int)
		type g interface { h(string, int) }`},

	{"errors-as",
		`import "errors"
		type e struct{}
		func (*e) Error() string { return "" }
		func f(err error) bool { var t *e; return errors.As(err, &t) }`,
		`import ("errors"; "io")
		func f(err error) bool { return errors.Is(err, io.EOF) }`},

	{"composite-compare",
		`type t struct{ a int }
		func f(x int) bool { return t{x} == t{1} }`,
		`type t struct{ a int }
		func f(x int) bool { a, b := t{x}, t{1}; return a == b }`},
	{"composite-compare",
		`type t struct{ a int }
		func f(v t) bool { return v != (t{}) }`,
		`type t struct{ a int }
		func f(v *t) bool { return v != &t{} }`},

	{"elided-map-key",
		`type t struct{ a int }
		var m = map[t]int{{1}: 1}`,
		`type t struct{ a int }
		var m = map[t]int{t{1}: 1}; var l = []t{{1}}; var n = map[int]t{1: {1}}`},

	{"named-assertion",
		`type s string
		func f(i interface{}) bool { _, ok := i.(s); return ok }`,
		`func f(i interface{}) bool { _, ok := i.(string); return ok }`},
	{"named-assertion",
		`type n int
		func f(i interface{}) int { return int(i.(n)) }`,
		`type n struct{ v int }
		func f(i interface{}) int { return i.(*n).v }`},

	{"interface-assertion",
		`import "net/http"
		type own interface{ Flush() }
		func f(w http.ResponseWriter) bool { _, ok := w.(own); return ok }`,
		`import "net/http"
		func f(w http.ResponseWriter) bool { _, ok := w.(http.Flusher); return ok }`},
	{"interface-assertion",
		`func f(v interface{}) bool { _, ok := v.(interface{ Flush() }); return ok }`,
		`type a interface{ A() }
		type b interface{ B() }
		func f(v a) bool { _, ok := v.(b); return ok }`},

	{"case-list",
		`func f(a, b int) bool { switch { case a > 0, b > 0: return true }; return false }`,
		`func f(a, b int) bool { switch { case a > 0: case b > 0: default: switch a { case 0, -1: return false } }; return true }`},
	{"type-switch",
		`type t struct{ a int }
		func f(i interface{}) bool { switch i.(type) { case *t: return true }; return false }`,
		`type t struct{ a int }
		func f(i interface{}) bool { switch i.(type) { case nil, string, []byte, int64, []interface{}: return true }; return false }`},
	{"type-switch",
		`func f(i interface{}) bool { switch v := i.(type) { case error: return v != nil }; return false }`,
		`type own interface{ A() }
		type t struct{ a int }
		func (v *t) A() {}
		func f(i own) bool { switch v := i.(type) { case *t: return v.a == 1 }; return false }`},

	{"not-in-yaegi",
		`func f(m map[int]int) { clear(m) }`,
		`func f(m map[int]int) { for k := range m { delete(m, k) } }`},
	{"not-in-yaegi",
		`func f(a, b int) int { return max(a, b) }`,
		`func max(a, b int) int { if a > b { return a }; return b }
		func f(a, b int) int { return max(a, b) }`},
	{"not-in-yaegi",
		`func f(n int) { for i := range n { print(i) } }`,
		`func f(l []int) { for i := range l { print(i) } }`},
	{"not-in-yaegi",
		`func f() { for range 4 { print(1) } }`,
		`func f(c chan int) { for range c { print(1) } }`},
	{"not-in-yaegi",
		`import "sync/atomic"
		type t struct{ p atomic.Pointer[int] }`,
		`import "sync/atomic"
		type t struct{ p atomic.Value; n atomic.Int64; b atomic.Bool }`},

	{"repanic",
		`func f() { defer func() { if e := recover(); e != nil { panic(e) } }() }`,
		`func f() { done := false; defer func() { if !done { print(1) } }(); g(); done = true }
		func g() { panic("x") }`},
	{"repanic",
		`func f() { defer g(); panic("x") }
		func g() { if e := recover(); e != nil { func() { panic(e) }() } }`,
		`func f() { defer g() }
		func g() { if e := recover(); e != nil { print(1) } }`},

	{"no-recover",
		`func f() { go g() }
		func g() { print(1); defer func() { recover() }() }`,
		`func f() { go g() }
		func g() { defer func() { recover() }(); print(1) }`},
	{"no-recover",
		`type t struct{}
		func (v *t) run() { defer recover() }
		func f(v *t) { go v.run() }`,
		`type t struct{}
		func (v *t) run() { defer v.rescue(); print(1) }
		func (v *t) rescue() { if e := recover(); e != nil { print(1) } }
		func f(v *t) { go v.run() }`},
	{"no-recover",
		`func f() { go func() { defer func() { func() { recover() }() }() }() }`,
		`func f() { go func() { defer func() { recover() }(); print(1) }() }`},
	{"no-recover",
		`func f(g func()) { go g() }`,
		`func f(g func()) { go h(g) }
		func h(g func()) { defer func() { recover() }(); g() }`},
	{"no-recover",
		`var start func(int)
		func init() { start = g }
		func g(_ int) { print(1) }
		func f() { go start(1) }`,
		`var start func(int)
		func init() { start = g }
		func g(_ int) { defer func() { recover() }(); print(1) }
		func f() { go start(1) }`},
	{"no-recover",
		`import "time"
		func f(c chan int) { time.AfterFunc(1, func() { close(c) }) }`,
		`import "time"
		func f(c chan int) { time.AfterFunc(1, func() { defer func() { recover() }(); close(c) }) }`},
	{"no-recover",
		`import "context"
		type t struct{}
		func (v *t) run() {}
		func f(ctx context.Context, v *t) { context.AfterFunc(ctx, v.run) }`,
		`import ("context"; "time")
		type t struct{}
		func (v *t) run() { defer func() { recover() }() }
		func f(ctx context.Context, v *t, cancel context.CancelFunc) { context.AfterFunc(ctx, v.run); time.AfterFunc(1, cancel) }`},

	{"late-receiver",
		`type t struct{}
		func (v *t) run() { defer func() { recover() }() }
		func f(l []*t) { for _, v := range l { go v.run() } }`,
		`type t struct{}
		func (v *t) run() { defer func() { recover() }() }
		func f(l []*t) { for _, v := range l { start(v) } }
		func start(v *t) { go v.run() }`},
	{"late-receiver",
		`type t struct{}
		func (v *t) run() { defer func() { recover() }() }
		func f(l []*t) { for i := range l { v := l[i]; go v.run() } }`,
		`type t struct{}
		func (v *t) run() { defer func() { recover() }() }
		func f(v *t) { for i := 0; i < 3; i++ { go v.run() } }`},
	{"late-receiver",
		`type t struct{}
		func (v *t) run() {}
		func f(v, w *t) { g := v.run; v = w; g() }`,
		`type t struct{}
		func (v *t) run() {}
		func f(v, w *t) { v = w; g := v.run; g() }`},

	{"late-defer",
		`import "sync"
		func f(a, b *sync.Mutex) { m := a; m.Lock(); defer m.Unlock(); m = b }`,
		`import "sync"
		func f(a, b *sync.Mutex) { m := a; m = b; m.Lock(); defer m.Unlock() }`},
	{"late-defer",
		`func f(c chan int) { defer close(c); c = nil }`,
		`func f(c chan int) { defer func() { close(c) }(); c = make(chan int) }`},

	{"late-closure",
		`import "net/http"
		func f(l []int) { for i := range l { j := i; http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(j) }) } }`,
		`import "net/http"
		func f(l []int) { for i := range l { add(i) } }
		func add(j int) { http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(j) }) }`},
	{"late-closure",
		`import "net/http"
		func f(l []int) { for i := range l { j := i; print(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(j) })) } }`,
		`import "sort"
		func f(l [][]int) { for i := range l { s := l[i]; sort.Slice(s, func(i, j int) bool { return s[i] < s[j] }) } }`},
	{"late-closure",
		`import "net/http"
		func f(l []int) { for range l { h := func(w http.ResponseWriter, r *http.Request) {}; http.HandleFunc("/", h) } }`,
		`import "net/http"
		func f(l []int) { h := func(w http.ResponseWriter, r *http.Request) {}; for range l { http.HandleFunc("/", h) } }`},

	{"stale-result",
		`func f(x int) (r int) { if x > 0 { r = x }; return }`,
		`func f(x int) (r int) { r = 0; if x > 0 { r = x }; return }`},
	{"stale-result",
		`func f(n int) (l []int) { for i := 0; i < n; i++ { l = append(l, i) }; return l }`,
		`func f(n int) []int { var l []int; for i := 0; i < n; i++ { l = append(l, i) }; return l }`},
	{"stale-result",
		`type t struct{ n int }
		func f() (v t) { v.n = 1; return v }`,
		`type t struct{ n int }
		func (v *t) f(x int) (r int) { if x > 0 { r = x }; return }`},
	{"stale-result",
		`func f() int { defer func() { recover() }(); panic2(); return 1 }
		func panic2() {}`,
		`func f() (n int, err error) { n, err = 0, nil; defer func() { recover() }(); panic2(); return 1, nil }
		func panic2() {}`},
	{"stale-result",
		`func f() (n int, err error) { defer func() { recover() }(); n, err = 1, nil; return }`,
		`func f() (n int, err error) { if n, err = g(); err != nil { return 0, err }; return }
		func g() (n int, err error) { return 1, nil }`},

	{"return-builtin",
		`func f(n int) ([]int, []error) { a := make([]int, n); return a, make([]error, n) }`,
		`func f(n int) ([]int, []error) { a := make([]error, n); return make([]int, n), a }`},
	{"return-builtin",
		`func f(n []int) ([]int, int) { return n, len(n) }`,
		`func f(n []int) ([]int, string) { return append(n, 1), string(rune(n[0])) }`},

	{"map-multi-assign",
		`func f(m map[string]int) error { var err error; m["a"], err = g(); return err }
		func g() (int, error) { return 1, nil }`,
		`func f(m map[string]int) error { v, err := g(); m["a"] = v; return err }
		func g() (int, error) { return 1, nil }`},
	{"map-multi-assign",
		`func f(m, n map[string]int) { var ok bool; m["a"], ok = n["a"]; print(ok) }`,
		`func f(m []int, n map[string]int) { var ok bool; m[0], ok = n["a"]; m[0], m[1] = m[1], m[0]; print(ok) }`},

	{"call-among",
		`func f() int { a, b := 0, 0; a, b = g(), 7; return a + b }
		func g() int { return 1 }`,
		`type t struct { n int }
		func f() int { a, b := g(), 7; a, b = g(), g(); a, b = b, a; v := &t{}; v.n, b = a, b+1; var m int64; m, b = int64(a), b; return a + b + v.n + int(m) }
		func g() int { return 1 }`},

	{"literal-among",
		`func f() int { a, m := g(), map[string]int{}; return a + m["x"] }
		func g() int { return 1 }`,
		`func f() int { a, b := g(), g(); m, n := map[string]int{}, []int{1}; return a + b + m["x"] + n[0] }
		func g() int { return 1 }`},
	{"literal-among",
		`func f() int { var a, s = 1, []int{2}; return a + s[0] }`,
		`type t struct { n int }
		func f() int { a, p := 1, &t{2}; var n int; var s []int; n, s = a, []int{2}; return n + p.n + s[0] }`},

	{"native-literal",
		`import "net/http"
		type h struct{}
		func (*h) ServeHTTP(w http.ResponseWriter, r *http.Request) {}
		var s = &http.Server{Addr: ":0", Handler: &h{}}`,
		`import "net/http"
		type h struct{}
		func (*h) ServeHTTP(w http.ResponseWriter, r *http.Request) {}
		type own struct{ h http.Handler }
		func f(n http.Handler) *http.Server { s := &http.Server{Handler: n}; s.Handler = &h{}; print(own{&h{}}.h); return s }`},

	{"context-key",
		`import "context"
		type key struct{}
		func f(ctx context.Context) context.Context { return context.WithValue(ctx, key{}, 1) }`,
		`import "context"
		var key = new(int)
		func f(ctx context.Context) context.Context { return context.WithValue(ctx, key, 1) }`},

	{"import", `import _ "unsafe"`, `import _ "embed"`},
	{"import", `import "syscall"; var _ = syscall.EINTR`, `import "os"; var _ = os.ErrExist`},
	{"import", `import "C"`, `import _ "context"`},
	{"import",
		"import _ \"embed\"\n//go:embed p.go\nvar s string",
		"import _ \"embed\"\n// a go:embed line\nvar s string"},
}

// TestTrapsAreFound shows that the checker finds what it must, and nothing in its right twin.
func TestTrapsAreFound(t *testing.T) {
	tested := map[string]bool{}
	for i, s := range snippets {
		tested[s.rule] = true
		t.Run(fmt.Sprintf("%s/%d", s.rule, i), func(t *testing.T) {
			bad := checkTree(t, fstest.MapFS{"p.go": sourceFile("p", s.bad)}).Findings
			if len(bad) == 0 {
				t.Errorf("not found in:\n%s", s.bad)
			}
			for _, f := range bad {
				if f.Rule != s.rule {
					t.Errorf("in the bad one: %s", f)
				}
				if f.Pos.Filename != "p.go" || f.Pos.Line < 2 {
					t.Errorf("wrong place: %s", f)
				}
			}
			for _, f := range checkTree(t, fstest.MapFS{"p.go": sourceFile("p", s.good)}).Findings {
				t.Errorf("in the good one: %s", f)
			}
		})
	}
	for rule := range traps.Rules {
		if !tested[rule] {
			t.Errorf("no snippet for rule %s", rule)
		}
	}
}

// TestTrapsReach shows which files and functions count.
func TestTrapsReach(t *testing.T) {
	const trap = "func trap(c chan int) int { return <-c }\n"
	tree := fstest.MapFS{
		"p.go":            sourceFile("p", `import ("example.com/p/sub"; "example.com/v"); func f() { sub.F(); v.New().Do() }`),
		"p_test.go":       sourceFile("p", trap),
		"sub/sub.go":      sourceFile("sub", trap+`func F() {}`),
		"sub/sub_test.go": sourceFile("sub", trap),
		"unused/u.go":     sourceFile("unused", trap),
		"vendor/example.com/v/v.go": sourceFile("v", `
			type Conn interface { Do() }
			type conn struct{}
			type pool struct{}
			var _ Conn = (*pool)(nil)
			var table = start(nil)
			func start(c chan int) int { return <-c }
			func New() Conn { return &conn{} }
			func NewPool() Conn { return &pool{} }
			func (c *conn) Do() { c.write(nil); go helper() }
			func (c *conn) DoContext(ch chan int) int { return <-ch }
			func (c *conn) write(ch chan int) int { return <-ch }
			func (p *pool) Do() { select {} }
			func helper() {}
			func unused() { select {} }`),
	}
	report := checkTree(t, tree)
	const found = `sub/sub.go:2: return-receive
vendor/example.com/v/v.go:8: return-receive
vendor/example.com/v/v.go:13: return-receive`
	var got []string
	for _, f := range report.Findings {
		got = append(got, fmt.Sprintf("%s:%d: %s", f.Pos.Filename, f.Pos.Line, f.Rule))
	}
	if s := strings.Join(got, "\n"); s != found {
		t.Errorf("found:\n%s\nwant:\n%s", s, found)
	}
	const reached = "(*example.com/v.conn).Do (*example.com/v.conn).write example.com/v.New example.com/v.helper example.com/v.start"
	if s := strings.Join(report.Vendored, " "); s != reached {
		t.Errorf("reached %s, want %s", s, reached)
	}
}

func checkTree(t *testing.T, tree fstest.MapFS) *traps.Report {
	t.Helper()
	report, err := traps.Check(tree, "example.com/p")
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func sourceFile(name, text string) *fstest.MapFile {
	return &fstest.MapFile{Data: []byte("package " + name + "\n" + text + "\n")}
}
