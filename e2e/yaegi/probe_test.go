package yaegi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/traefik/yaegi/interp"
	"github.com/traefik/yaegi/stdlib"
)

type verdict string

const (
	works    verdict = "works"
	broken   verdict = "broken"
	unsteady verdict = "unsteady" // goes wrong too seldom to be told from right
)

// A construct is a file without its head: F is called by many goroutines and must always return true, as it does when compiled.
type construct struct {
	name  string
	want  verdict
	code  string
	calls int // by each goroutine; 0 = as many as its verdict needs
}

// constructs are what the interpreter gets wrong, which the checker of TestNoYaegiTraps looks for, and what the plugin leans on.
var constructs = []construct{
	// Traps. Those of one rule of the checker stand together.
	{name: "range over a slice of channels", want: broken, code: `
func F(x int) bool {
	l, n := []chan int{make(chan int, 1)}, 0
	for _, c := range l { c <- x; n++ }
	return n == 1
}`},
	{name: "range over structs with channels", want: works, code: `
type holder struct{ c chan int }
func F(x int) bool {
	l, n := []*holder{{make(chan int, 1)}}, 0
	for _, h := range l { h.c <- x; n++ }
	return n == 1
}`},
	{name: "go keeps the caller's variables", want: broken, calls: 1, code: `
func wait(c chan bool) { defer func() { recover() }(); <-c }
func start(c chan bool, end func(_ *[64]int)) {
	p := new([64]int)
	runtime.SetFinalizer(p, end)
	go wait(c)
}
func F(x int) bool {
	c, gone := make(chan bool), make(chan bool, 1)
	end := func(_ *[64]int) { gone <- true }
	start(c, end)
	for i := 0; i < 100 && len(gone) == 0; i++ { runtime.GC(); time.Sleep(time.Millisecond) }
	close(c)
	return len(gone) == 1
}`},
	{name: "go of a variable keeps nothing of its caller", want: works, calls: 1, code: `
func wait(c chan bool) { defer func() { recover() }(); <-c }
var waiter func(c chan bool)
func init() { waiter = wait }
func start(c chan bool, end func(_ *[64]int)) {
	p := new([64]int)
	runtime.SetFinalizer(p, end)
	go waiter(c)
}
func F(x int) bool {
	c, gone := make(chan bool), make(chan bool, 1)
	end := func(_ *[64]int) { gone <- true }
	start(c, end)
	for i := 0; i < 100 && len(gone) == 0; i++ { runtime.GC(); time.Sleep(time.Millisecond) }
	close(c)
	return len(gone) == 1
}`},
	// Not run if it is declared below the literal; here it stands above.
	{name: "recover in a declared function that a literal defers", want: unsteady, code: `
type thing struct{ n int }
func (t *thing) boom() { var l []int; t.n = l[5] }
func rescue(done chan bool) { done <- recover() != nil }
func (t *thing) start(done chan bool) { time.AfterFunc(0, func() { defer rescue(done); t.boom() }) }
func F(x int) bool {
	done := make(chan bool, 1)
	t := &thing{}
	t.start(done)
	v := <-done
	return v
}`, calls: 1},
	{name: "recover in a literal that a literal defers", want: works, code: `
type thing struct{ n int }
func (t *thing) boom() { var l []int; t.n = l[5] }
func (t *thing) start(done chan bool) { time.AfterFunc(0, func() { defer func() { done <- recover() != nil }(); t.boom() }) }
func F(x int) bool {
	done := make(chan bool, 1)
	t := &thing{}
	t.start(done)
	v := <-done
	return v
}`, calls: 20},
	{name: "deferred literal calls a literal of its function", want: broken, code: `
func F(x int) bool {
	n := x
	stop := func() { n++ }
	defer func() { stop() }()
	return n == x
}`, calls: 1},
	{name: "deferred method calls a function in a field", want: works, code: `
type ender struct{ stop func() }
func (e *ender) end() { e.stop() }
func run(e *ender) { defer e.end() }
func F(x int) bool {
	n := 0
	e := &ender{stop: func() { n = x }}
	run(e)
	return n == x
}`},
	{name: "select receive", want: broken, code: `
func F(x int) bool {
	a, b := make(chan int, 1), make(chan int, 1)
	if x%2 == 0 { a <- x } else { b <- x }
	select {
	case v := <-a: return v == x && x%2 == 0
	case v := <-b: return v == x && x%2 == 1
	}
}`},
	{name: "select default", want: broken, code: `
func F(x int) bool {
	a := make(chan int, 1)
	a <- x
	select {
	case v := <-a: return v == x
	default: return false
	}
}`},
	{name: "select send", want: broken, code: `
func F(x int) bool {
	a := make(chan int, 1)
	select {
	case a <- x:
	default: return false
	}
	v := <-a
	return v == x
}`},
	{name: "select done or answer", want: broken, code: `
func F(x int) bool {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	answer := make(chan int, 1)
	if x%2 == 0 { answer <- x } else { cancel() }
	select {
	case <-ctx.Done(): return x%2 == 1
	case v := <-answer: return v == x && x%2 == 0
	}
}`},

	{name: "go literal in a loop", want: unsteady, code: `
func F(x int) bool {
	c := make(chan int, 3)
	for i := 0; i < 3; i++ { go func(i int) { c <- i + x }(i) }
	s := 0
	for i := 0; i < 3; i++ { v := <-c; s += v }
	return s == 3*x+3
}`},
	{name: "go literal with defer in a loop", want: unsteady, code: `
func F(x int) bool {
	var wg sync.WaitGroup
	for i := 0; i < 3; i++ { wg.Add(1); go func(i int) { defer wg.Done() }(i) }
	wg.Wait()
	return true
}`},

	{name: "return receive", want: broken, code: `
func get(c chan int) int { return <-c }
func F(x int) bool { c := make(chan int, 1); c <- x; return get(c) == x }`},
	{name: "return receive and error", want: broken, code: `
func get(c chan int) (int, error) { return <-c, nil }
func F(x int) bool { c := make(chan int, 1); c <- x; v, err := get(c); return v == x && err == nil }`},
	{name: "receive into a field", want: broken, code: `
type T struct { a int }
func F(x int) bool { c := make(chan int, 1); c <- x; t := &T{}; t.a = <-c; return t.a == x }`},
	{name: "receive into a slice element", want: broken, code: `
func F(x int) bool { c := make(chan int, 1); c <- x; l := make([]int, 2); l[1] = <-c; return l[1] == x }`},

	{name: "closure over a for variable", want: broken, code: `
func F(x int) bool {
	var l []func() int
	for i := 0; i < 3; i++ { l = append(l, func() int { return i + x }) }
	return l[0]() == x && l[2]() == x+2
}`},
	{name: "closure over a range variable", want: broken, code: `
func F(x int) bool {
	var l []func() int
	for _, v := range []int{x, x + 1} { l = append(l, func() int { return v }) }
	return l[0]() == x && l[1]() == x+1
}`},
	{name: "address of a for variable", want: broken, code: `
func F(x int) bool {
	var l []*int
	for i := 0; i < 2; i++ { l = append(l, &i) }
	return *l[0] == 0 && *l[1] == 1
}`},
	{name: "address of a range variable", want: broken, code: `
func F(x int) bool {
	var l []*int
	for _, v := range []int{x, x + 1} { l = append(l, &v) }
	return *l[0] == x && *l[1] == x+1
}`},

	{name: "defer literal in a loop", want: broken, code: `
func F(x int) bool {
	n := 0
	func() { for i := 0; i < 3; i++ { defer func(k int) { n += k + x }(i) } }()
	return n == 3+3*x
}`},
	{name: "defer named in a loop", want: broken, code: `
func send(c chan int, x int) { c <- x }
func F(x int) bool {
	c := make(chan int, 2)
	func() { for i := 0; i < 2; i++ { defer send(c, i) } }()
	a := <-c
	b := <-c
	return a == 1 && b == 0
}`},
	{name: "defer argument assigned again", want: broken, code: `
func send(c chan int, x int) { c <- x }
func F(x int) bool {
	c := make(chan int, 1)
	func() { y := x; defer send(c, y); y = -1 }()
	v := <-c
	return v == x
}`},
	{name: "deferred call that panics before another one", want: broken, code: `
func boom() { panic("boom") }
func add(c chan int, x int) { c <- x }
func run(c chan int, x int) { defer add(c, x); defer boom() }
func F(x int) bool {
	c := make(chan int, 1)
	func() { defer func() { recover() }(); run(c, x) }()
	return len(c) == 1
}`},
	{name: "deferred call that panics, and another one in its caller", want: works, code: `
func boom() { panic("boom") }
func add(c chan int, x int) { c <- x }
func run(c chan int, x int) { defer add(c, x); end() }
func end() { defer boom() }
func F(x int) bool {
	c := make(chan int, 1)
	func() { defer func() { recover() }(); run(c, x) }()
	return len(c) == 1
}`},
	{name: "recover that a deferred function defers", want: works, code: `
func again(c chan int, x int) { if e := recover(); e != nil { c <- x } }
func first(c chan int, x int) {
	if e := recover(); e != nil { defer again(c, x); panic("again") }
}
func run(c chan int, x int) { defer first(c, x); panic("first") }
func F(x int) bool {
	c := make(chan int, 1)
	run(c, x)
	return len(c) == 1
}`},
	{name: "defer receiver assigned again", want: broken, code: `
type T struct { a int }
func (t *T) send(c chan int) { c <- t.a }
func F(x int) bool {
	c := make(chan int, 1)
	func() { t := &T{x}; defer t.send(c); t = &T{-1} }()
	v := <-c
	return v == x
}`},

	{name: "unnamed parameter", want: broken, code: `
func f(rune) bool { s := "a"; return s == "b" }
func F(x int) bool { return !f('a') }`},
	{name: "unnamed parameter called by native code", want: broken, code: `
func F(x int) bool {
	return len(strings.FieldsFunc("abc", func(rune) bool { yes := x < 0; return yes })) == 1
}`},

	{name: "conditions in one case", want: broken, code: `
func F(x int) bool { switch { case x < 0, x >= 0: return true }; return false }`},
	{name: "values in one case", want: works, code: `
func F(x int) bool { switch x % 2 { case 0, 1: return true }; return false }`},
	{name: "conditions in a case each", want: works, code: `
func F(x int) bool { switch { case x < 0: case x < -1: default: return true }; return false }`},

	{name: "errors.As", want: broken, code: `
type E struct { code int }
func (e *E) Error() string { return "E" }
func F(x int) bool {
	var err error = fmt.Errorf("w: %w", &E{code: x})
	var t *E
	return errors.As(err, &t) && t.code == x
}`},
	{name: "own error unwrapped", want: broken, code: `
type E struct { code int }
func (e *E) Error() string { return "E" }
func F(x int) bool { e, ok := errors.Unwrap(fmt.Errorf("w: %w", &E{x})).(*E); return ok && e.code == x }`},
	{name: "own error compared", want: broken, code: `
type E struct { code int }
func (e *E) Error() string { return "E" }
var err error = &E{1}
func F(x int) bool { e := err; return e == err }`},
	{name: "own error in errors.Is", want: broken, code: `
type E struct { code int }
func (e *E) Error() string { return "E" }
var err error = &E{1}
func F(x int) bool { return errors.Is(fmt.Errorf("w: %w", err), err) }`},
	{name: "own error given to native code as a pointer", want: broken, code: `
type E struct { code int }
func (e *E) Error() string { return "E" }
func get(x int) *E { return &E{x} }
func F(x int) bool { return fmt.Errorf("w: %w", get(x)).Error() == "w: E" }`},
	{name: "own error given to native code as an error", want: works, code: `
type E struct { code int }
func (e *E) Error() string { return "E" }
func get(x int) error { return &E{x} }
func F(x int) bool { err := get(x); return fmt.Errorf("w: %w", err).Error() == "w: E" }`},
	{name: "own error by value", want: broken, code: `
type E struct { code int }
func (e E) Error() string { return "E" }
func F(x int) bool { var err error = E{x}; return err.Error() == "E" }`},

	{name: "composite literals compared", want: broken, code: `
type T struct { a int }
func F(x int) bool { return T{a: x} == T{a: x} && T{a: x} != T{a: x + 1} }`},
	{name: "variable compared with a composite literal", want: unsteady, code: `
type T struct { a int }
func F(x int) bool { a := T{a: x + 1}; return a != (T{}) }`},
	{name: "map literal with elided keys", want: broken, code: `
type T struct { a int }
func F(x int) bool { m := map[T]int{{a: x}: 1}; return m[T{a: x}] == 1 && m[T{a: x + 1}] == 0 }`},

	{name: "assertion of a string to a named string", want: broken, code: `
type S string
func F(x int) bool { var i interface{} = "a"; _, ok := i.(S); return !ok }`},
	{name: "assertion of a named string to string", want: broken, code: `
type S string
func F(x int) bool { var i interface{} = S("a"); _, ok := i.(string); return !ok }`},
	{name: "assertion of an int to a named int", want: broken, code: `
type N int
func F(x int) bool { var i interface{} = x; _, ok := i.(N); return !ok }`},
	{name: "assertion to a struct of the same shape", want: broken, code: `
type A struct { v int }
type B struct { v int }
func F(x int) bool { var i interface{} = &A{x}; _, ok := i.(*B); return !ok }`},
	{name: "assertion to an own interface", want: broken, code: `
type I interface { get() int }
type T struct { a int }
func (t *T) get() int { return t.a }
func F(x int) bool { var i interface{} = &T{x}; v, ok := i.(I); return ok && v.get() == x }`},
	{name: "assertion of a native value to an own interface", want: broken, code: `
type flusher interface { Flush() }
func F(x int) bool { var w http.ResponseWriter = httptest.NewRecorder(); _, ok := w.(flusher); return ok }`},
	{name: "assertion to an interface literal", want: broken, code: `
func F(x int) bool { var w http.ResponseWriter = httptest.NewRecorder(); _, ok := w.(interface{ Flush() }); return ok }`},

	{name: "type switch on an own pointer", want: broken, code: `
type T struct { a int }
func (t *T) get() int { return t.a }
func F(x int) bool {
	var i interface{} = &T{x}
	switch v := i.(type) {
	case *T: return v.a == x
	}
	return false
}`},
	{name: "type switch on a named string", want: broken, code: `
type S string
func F(x int) bool {
	var i interface{} = S("a")
	switch i.(type) {
	case S: return true
	}
	return false
}`},
	{name: "type switch on error", want: broken, code: `
func F(x int) bool {
	var i interface{} = errors.New("a")
	switch v := i.(type) {
	case error: return v.Error() == "a"
	}
	return false
}`},
	{name: "type switch on an own error", want: broken, code: `
type E struct { code int }
func (e *E) Error() string { return "E" }
func F(x int) bool {
	var err error = &E{x}
	switch err.(type) {
	case *E: return true
	}
	return false
}`},

	{name: "clear", want: broken, code: `func F(x int) bool { m := map[int]int{1: x}; clear(m); return len(m) == 0 }`},
	{name: "min and max", want: broken, code: `func F(x int) bool { return min(x, x+1) == x && max(x, x+1) == x+1 }`},
	{name: "range over an integer", want: broken, code: `func F(x int) bool { s := 0; for i := range 4 { s += i }; return s == 6 }`},
	{name: "atomic.Pointer", want: broken, code: `
type T struct { a int }
func F(x int) bool { var p atomic.Pointer[T]; p.Store(&T{x}); return p.Load().a == x }`},

	// net/http is silent about http.ErrAbortHandler itself, and logs anything else.
	{name: "panic after recover", want: broken, calls: 20, code: `
func F(x int) bool {
	return aborts(func(w http.ResponseWriter, r *http.Request) {
		defer func() { if e := recover(); e != nil { panic(e) } }()
		panic(http.ErrAbortHandler)
	})
}` + aborts},

	{name: "go method in a loop", want: broken, code: `
type T struct { a int }
func (t *T) inc(wg *sync.WaitGroup) { t.a++; wg.Done() }
func F(x int) bool {
	var wg sync.WaitGroup
	l := []*T{{x}, {x}, {x}}
	for _, v := range l { t := v; wg.Add(1); go t.inc(&wg) }
	wg.Wait()
	return l[0].a == x+1 && l[1].a == x+1 && l[2].a == x+1
}`},
	{name: "go method, receiver assigned again", want: broken, code: `
type T struct { a int }
func (t *T) send(c chan int) { c <- t.a }
func F(x int) bool {
	c := make(chan int, 1)
	t := &T{x}
	go t.send(c)
	t = &T{-1}
	v := <-c
	return v == x
}`},
	{name: "method value, receiver assigned again", want: broken, code: `
type T struct { a int }
func (t *T) get() int { return t.a }
func F(x int) bool { t := &T{x}; f := t.get; t = &T{-1}; return f() == x }`},
	{name: "method values in a loop", want: broken, code: `
type T struct { a int }
func (t *T) get() int { return t.a }
func F(x int) bool {
	var l []func() int
	for i := 0; i < 2; i++ { t := &T{x + i}; l = append(l, t.get) }
	return l[0]() == x && l[1]() == x+1
}`},
	{name: "closure in a loop kept by native code", want: broken, code: `
func F(x int) bool {
	var l []http.Handler
	for i := 0; i < 2; i++ {
		j := i
		l = append(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(200 + j) }))
	}
	w := httptest.NewRecorder()
	l[0].ServeHTTP(w, nil)
	return w.Code == 200
}`},

	{name: "named result not set", want: broken, code: `
func f(x int) (r int) { if x > 0 { r = x }; return }
func F(x int) bool { s := 0; for i := 1; i >= 0; i-- { v := f(i); s += v }; return s == 1 }`},
	{name: "named results not set", want: broken, code: `
func find(l []int, x int) (k int, ok bool) { for i, v := range l { if v == x { k, ok = i, true } }; return }
func F(x int) bool { n := 0; for i := 0; i < 2; i++ { if _, ok := find([]int{x}, x+i); ok { n++ } }; return n == 1 }`},
	{name: "named result appended to", want: broken, code: `
func f(n int) (l []int) { for i := 0; i < n; i++ { l = append(l, i) }; return l }
func F(x int) bool { l := f(2); l = f(1); return len(l) == 1 }`},
	{name: "result of a recovered panic", want: broken, code: `
func f(x int) int { defer func() { recover() }(); if x > 0 { return 7 }; panic("x") }
func F(x int) bool { n := 0; for i := 1; i >= 0; i-- { v := f(i); n += v }; return n == 7 }`},

	{name: "builtin returned behind another value", want: broken, code: `
func f(n int) ([]int, int) { l := make([]int, n); return l, len(l) }
func F(x int) bool { l, n := f(x); return len(l) == n }`},
	{name: "builtin returned before another value", want: works, code: `
func f(n int) ([]int, int) { return make([]int, n), n }
func F(x int) bool { l, n := f(x); return len(l) == n }`},

	{name: "own type in a native struct literal", want: broken, code: `
type body struct { n int }
func (b *body) Read(p []byte) (int, error) { return 0, io.EOF }
func (b *body) Close() error { b.n++; return nil }
func F(x int) bool { b := &body{x}; r := &http.Request{Body: b}; return r.Body.Close() == nil && b.n == x+1 }`},
	{name: "own type assigned to a native struct", want: works, code: `
type body struct { n int }
func (b *body) Read(p []byte) (int, error) { return 0, io.EOF }
func (b *body) Close() error { b.n++; return nil }
func F(x int) bool { b := &body{x}; r := &http.Request{}; r.Body = b; return r.Body.Close() == nil && b.n == x+1 }`},
	{name: "own type in a native struct literal by way of an interface", want: works, code: `
type body struct { n int }
func (b *body) Read(p []byte) (int, error) { return 0, io.EOF }
func (b *body) Close() error { b.n++; return nil }
func F(x int) bool { b := &body{x}; var c io.ReadCloser = b; r := &http.Request{Body: c}; return r.Body.Close() == nil && b.n == x+1 }`},
	{name: "map element among several assigned", want: broken, code: `
func two(x int) (int, error) { return 2 * x, nil }
func F(x int) bool { m := map[string]int{}; var err error; m["a"], err = two(x); return err == nil && m["a"] == 2*x }`},
	{name: "call among several assigned", want: broken, code: `
func two(x int) int { return 2 * x }
func F(x int) bool { a, b := 0, 0; a, b = two(x), 7; return a == 2*x && b == 7 }`},
	{name: "calls alone among several assigned", want: works, code: `
func two(x int) int { return 2 * x }
func F(x int) bool { a, b := 0, 0; a, b = two(x), two(x+1); return a == 2*x && b == 2*x+2 }`},
	{name: "call among several declared", want: works, code: `
func two(x int) int { return 2 * x }
func F(x int) bool { a, b := two(x), 7; return a == 2*x && b == 7 }`},
	{name: "value declared together with a composite literal", want: broken, code: `
func F(x int) bool { a, s := x, []int{x}; return a == x && s[0] == x }`},
	{name: "context key of an own struct type", want: broken, code: `
type a struct{}
type b struct{}
func F(x int) bool { ctx := context.WithValue(context.Background(), a{}, x); return ctx.Value(b{}) == nil }`},

	// What stands in for the traps.
	{name: "reflect.Select on done or ctx", want: works, code: `
func wait(ctx context.Context, done chan struct{}) int {
	i, _, _ := reflect.Select([]reflect.SelectCase{
		{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(done)},
		{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(ctx.Done())},
	})
	return i
}
func F(x int) bool {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan struct{})
	if x%2 == 0 { close(done) } else { cancel() }
	return wait(ctx, done) == x%2
}`},
	{name: "close wakes all who wait", want: works, code: `
func wait(done chan struct{}, got chan int, x int) { defer func() { recover() }(); <-done; got <- x }
func F(x int) bool {
	done, got := make(chan struct{}), make(chan int, 3)
	for i := 0; i < 3; i++ { go wait(done, got, x) }
	close(done)
	s := 0
	for i := 0; i < 3; i++ { v := <-got; s += v }
	return s == 3*x
}`},
	{name: "context.AfterFunc with a method value", want: works, code: `
type T struct { a int; c chan int }
func (t *T) run() { defer func() { recover() }(); t.c <- t.a }
func F(x int) bool {
	ctx, cancel := context.WithCancel(context.Background())
	t := &T{x, make(chan int, 1)}
	stop := context.AfterFunc(ctx, t.run)
	cancel()
	v := <-t.c
	return v == x && !stop()
}`},
	{name: "context.AfterFunc stopped", want: works, code: `
func F(x int) bool {
	ctx, cancel := context.WithCancel(context.Background())
	stop := context.AfterFunc(ctx, func() { panic("ran") })
	ok := stop()
	cancel()
	return ok
}`},
	{name: "time.AfterFunc with a method value", want: works, code: `
type T struct { a int; c chan int }
func (t *T) run() { defer func() { recover() }(); t.c <- t.a }
func F(x int) bool {
	t := &T{x, make(chan int, 1)}
	timer := time.AfterFunc(time.Microsecond, t.run)
	v := <-t.c
	return v == x && !timer.Stop()
}`},
	{name: "time.AfterFunc armed again", want: works, calls: 200, code: `
type T struct { mu sync.Mutex; n int; timer *time.Timer; done chan struct{} }
func (t *T) tick() {
	defer func() { recover() }()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n++
	if t.n == 3 { close(t.done); return }
	t.timer.Reset(time.Microsecond)
}
func F(x int) bool {
	t := &T{done: make(chan struct{})}
	t.mu.Lock()
	t.timer = time.AfterFunc(time.Microsecond, t.tick)
	t.mu.Unlock()
	<-t.done
	return t.n == 3
}`},
	{name: "go named with recover", want: works, code: `
func f(c chan int, x int) { defer func() { if e := recover(); e != nil { c <- x } }(); panic("boom") }
func F(x int) bool { c := make(chan int, 1); go f(c, x); v := <-c; return v == x }`},
	{name: "go method with recover", want: works, code: `
type T struct { a int; c chan int }
func (t *T) run() { defer t.rescue(); var m map[int]int; m[1] = 1 }
func (t *T) rescue() { if e := recover(); e != nil { t.c <- t.a } }
func F(x int) bool { t := &T{x, make(chan int, 1)}; go t.run(); v := <-t.c; return v == x }`},
	{name: "go method in a function of its own", want: works, code: `
type T struct { a int }
func (t *T) inc(wg *sync.WaitGroup) { t.a++; wg.Done() }
func start(t *T, wg *sync.WaitGroup) { go t.inc(wg) }
func F(x int) bool {
	var wg sync.WaitGroup
	l := []*T{{x}, {x}, {x}}
	for _, v := range l { wg.Add(1); start(v, &wg) }
	wg.Wait()
	return l[0].a == x+1 && l[1].a == x+1 && l[2].a == x+1
}`},
	{name: "go named in a loop", want: works, code: `
func send(c chan int, x int) { defer func() { recover() }(); c <- x }
func F(x int) bool {
	c := make(chan int, 3)
	for i := 0; i < 3; i++ { go send(c, x+i) }
	s := 0
	for i := 0; i < 3; i++ { v := <-c; s += v }
	return s == 3*x+3
}`},
	{name: "done flag on return and on panic", want: works, code: `
func run(f func()) (state string) {
	state = "none"
	done := false
	defer func() {
		if !done { recover(); state = "broken" } else { state = "done" }
	}()
	f()
	done = true
	return state
}
func F(x int) bool {
	return run(func() {}) == "done" && run(func() { panic(http.ErrAbortHandler) }) == "broken"
}`},
	{name: "native abort passes with the done flag", want: works, calls: 20, code: `
var backend = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Length", "10")
	io.WriteString(w, "short")
}))
func F(x int) bool {
	to, err := url.Parse(backend.URL)
	if err != nil { return false }
	proxy := httputil.NewSingleHostReverseProxy(to)
	proxy.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(io.Discard, nil), slog.LevelError)
	seen := make(chan bool, 1)
	return aborts(func(w http.ResponseWriter, r *http.Request) {
		done := false
		defer func() { seen <- !done }()
		proxy.ServeHTTP(w, r)
		done = true
	}) && <-seen
}` + aborts},
	{name: "abort by a native function that panics with an error", want: works, calls: 20, code: `
func end() { template.Must(nil, http.ErrAbortHandler) }
func F(x int) bool {
	return aborts(func(w http.ResponseWriter, r *http.Request) { defer end(); io.WriteString(w, "half") })
}` + aborts},
	{name: "results set first", want: works, code: `
func f(x int) (r int) { r = 0; if x > 0 { r = x }; return }
func g(x int) (r int) { r = 0; defer func() { recover() }(); if x > 0 { return 7 }; panic("x") }
func F(x int) bool { s := 0; for i := 1; i >= 0; i-- { v := f(i); w := g(i); s += v + w }; return s == 8 }`},
	{name: "results of methods and closures", want: works, code: `
type T struct { a int }
func (t *T) f(x int) (r int) { if x > 0 { r = x }; return }
func (t *T) g(x int) int { defer func() { recover() }(); if x > 0 { return 7 }; panic("x") }
func F(x int) bool {
	t, s := &T{}, 0
	h := func(x int) (r int) { if x > 0 { r = x }; return }
	for i := 1; i >= 0; i-- { u := t.f(i); v := t.g(i); w := h(i); s += u + v + w }
	return s == 9
}`},
	{name: "result changed by defer", want: works, code: `
func f(x int) (r int, err error) { defer func() { r++ }(); r = x; err = nil; return r, err }
func F(x int) bool { v, err := f(x); return err == nil && v == x+1 }`},
	{name: "closure over a variable of the body", want: works, code: `
func F(x int) bool {
	var l []func() int
	for i := 0; i < 3; i++ { j := i; l = append(l, func() int { return j + x }) }
	return l[0]() == x && l[1]() == x+1 && l[2]() == x+2
}`},
	{name: "blank parameter", want: works, code: `
func F(x int) bool {
	return len(strings.FieldsFunc("abc", func(_ rune) bool { yes := x < 0; return yes })) == 1
}`},

	// Synchronisation and context.
	{name: "context cancelled, timed out, without cancel", want: works, calls: 200, code: `
func F(x int) bool {
	ctx, cancel := context.WithCancel(context.Background())
	free := context.WithoutCancel(ctx)
	cancel()
	short, stop := context.WithTimeout(free, time.Millisecond)
	defer stop()
	<-short.Done()
	return errors.Is(ctx.Err(), context.Canceled) && free.Err() == nil && errors.Is(short.Err(), context.DeadlineExceeded)
}`},
	{name: "pointer as context key", want: works, code: `
type key struct { name string }
var a, b = &key{"k"}, &key{"k"}
func F(x int) bool {
	ctx := context.WithValue(context.Background(), a, x)
	v, ok := ctx.Value(a).(int)
	return ok && v == x && ctx.Value(b) == nil
}`},
	{name: "atomic.Bool and atomic.Int64", want: works, code: `
type T struct { on atomic.Bool; n atomic.Int64 }
var total atomic.Int64
func F(x int) bool {
	t := &T{}
	t.n.Add(int64(x))
	total.Add(1)
	return t.on.CompareAndSwap(false, true) && !t.on.CompareAndSwap(false, true) && t.n.Load() == int64(x) && total.Load() > 0
}`},
	{name: "mutex and map", want: works, code: `
type T struct { mu sync.Mutex; m map[string]int }
var t = &T{m: map[string]int{}}
func (t *T) put(k string, v int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.m[k]; ok { return false }
	t.m[k] = v
	return true
}
func (t *T) take(k string) (int, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v, ok := t.m[k]
	delete(t.m, k)
	return v, ok
}
func F(x int) bool {
	k := strconv.Itoa(x)
	if !t.put(k, x) || t.put(k, -1) { return false }
	v, ok := t.take(k)
	_, again := t.take(k)
	return ok && v == x && !again
}`},
	{name: "list with eviction", want: works, code: `
type entry struct { key string; val int }
type cache struct { order *list.List; at map[string]*list.Element }
func (c *cache) add(k string, v int) {
	c.at[k] = c.order.PushBack(&entry{k, v})
	for c.order.Len() > 2 {
		e := c.order.Remove(c.order.Front()).(*entry)
		delete(c.at, e.key)
	}
}
func F(x int) bool {
	c := &cache{order: list.New(), at: map[string]*list.Element{}}
	for i := 0; i < 4; i++ { c.add(strconv.Itoa(i), x+i) }
	_, old := c.at["1"]
	e, ok := c.at["2"]
	return !old && ok && e.Value.(*entry).val == x+2 && len(c.at) == 2
}`},
	{name: "buffered channel as semaphore", want: works, code: `
var sem = make(chan struct{}, 4)
var held atomic.Int64
func F(x int) bool {
	sem <- struct{}{}
	ok := held.Add(1) <= 4
	held.Add(-1)
	<-sem
	return ok
}`},
	{name: "sync.Once, sync.Map, WaitGroup", want: works, code: `
var once sync.Once
var n int
var m sync.Map
type T struct { a int }
func F(x int) bool {
	once.Do(func() { n++ })
	m.Store(x, &T{x})
	v, ok := m.Load(x)
	t, is := v.(*T)
	return n == 1 && ok && is && t.a == x
}`},

	// HTTP.
	{name: "httptrace hooks called together", want: works, code: `
func F(x int) bool {
	var sought, wrote atomic.Bool
	var n atomic.Int64
	trace := &httptrace.ClientTrace{
		GetConn:              func(hostPort string) { sought.Store(hostPort == "h") },
		WroteHeaders:         func() { wrote.Store(true) },
		GotFirstResponseByte: func() { n.Add(1) },
	}
	ctx := httptrace.WithClientTrace(context.Background(), trace)
	hooks := httptrace.ContextClientTrace(ctx)
	var wg sync.WaitGroup
	wg.Add(2)
	go fire(hooks, &wg)
	go fire(hooks, &wg)
	wg.Wait()
	return sought.Load() && wrote.Load() && n.Load() == 2
}
func fire(t *httptrace.ClientTrace, wg *sync.WaitGroup) {
	defer wg.Done()
	t.GetConn("h")
	t.WroteHeaders()
	t.GotFirstResponseByte()
}`},
	{name: "httptrace hooks in a transport", want: works, calls: 20, code: `
var server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.URL.Path) }))
type seen struct { conn, wrote, first atomic.Bool }
func (s *seen) gotConn(info httptrace.GotConnInfo) { s.conn.Store(true) }
func F(x int) bool {
	s := &seen{}
	trace := &httptrace.ClientTrace{GotConn: s.gotConn, WroteHeaders: func() { s.wrote.Store(true) }, GotFirstResponseByte: func() { s.first.Store(true) }}
	r, err := http.NewRequestWithContext(httptrace.WithClientTrace(context.Background(), trace), "GET", server.URL+"/"+strconv.Itoa(x), nil)
	if err != nil { return false }
	resp, err := http.DefaultClient.Do(r)
	if err != nil { return false }
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return err == nil && string(b) == "/"+strconv.Itoa(x) && s.conn.Load() && s.wrote.Load() && s.first.Load()
}`},
	{name: "header cloned, written and read back", want: works, code: `
func F(x int) bool {
	h := http.Header{}
	h.Add("A-B", strconv.Itoa(x))
	h.Add("A-B", "two words")
	c := h.Clone()
	h.Set("A-B", "gone")
	var b bytes.Buffer
	if c.Write(&b) != nil { return false }
	b.WriteString("\r\nrest")
	r := bufio.NewReader(&b)
	m, err := textproto.NewReader(r).ReadMIMEHeader()
	if err != nil { return false }
	rest, err := io.ReadAll(r)
	l := http.Header(m)["A-B"]
	return err == nil && string(rest) == "rest" && len(l) == 2 && l[0] == strconv.Itoa(x) && l[1] == "two words"
}`},
	{name: "own ResponseWriter given to native code", want: works, code: `
type recorder struct { http.ResponseWriter; status int; body bytes.Buffer }
func (r *recorder) WriteHeader(code int) { r.status = code; r.ResponseWriter.WriteHeader(code) }
func (r *recorder) Write(p []byte) (int, error) { r.body.Write(p); return r.ResponseWriter.Write(p) }
func F(x int) bool {
	w := httptest.NewRecorder()
	r := &recorder{ResponseWriter: w}
	http.Error(r, strconv.Itoa(x), 418)
	return r.status == 418 && w.Code == 418 && strings.TrimSpace(r.body.String()) == strconv.Itoa(x) && w.Body.String() == r.body.String()
}`},
	{name: "own handler before a native one", want: works, code: `
type mark struct { next http.Handler; name string }
func (m *mark) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Mark", m.name)
	m.next.ServeHTTP(w, r)
}
func F(x int) bool {
	mux := http.NewServeMux()
	mux.Handle("/", http.NotFoundHandler())
	var h http.Handler = &mark{mux, strconv.Itoa(x)}
	w := httptest.NewRecorder()
	http.StripPrefix("/a", h).ServeHTTP(w, httptest.NewRequest("GET", "/a/b", nil))
	return w.Code == 404 && w.Header().Get("Mark") == strconv.Itoa(x)
}`},
	{name: "native Flusher asserted", want: works, code: `
func F(x int) bool {
	w := httptest.NewRecorder()
	var rw http.ResponseWriter = w
	f, ok := rw.(http.Flusher)
	if !ok { return false }
	f.Flush()
	_, hijacks := rw.(http.Hijacker)
	return w.Flushed && !hijacks
}`},
	{name: "own reader and writer given to io.Copy", want: works, code: `
type src struct { n int }
func (s *src) Read(p []byte) (int, error) {
	if s.n == 0 { return 0, io.EOF }
	s.n--
	return copy(p, "ab"), nil
}
type dst struct { b []byte }
func (d *dst) Write(p []byte) (int, error) { d.b = append(d.b, p...); return len(p), nil }
func F(x int) bool {
	d := &dst{}
	n, err := io.Copy(d, &src{3})
	return err == nil && n == 6 && string(d.b) == "ababab"
}`},
	{name: "own body over an embedded ReadCloser", want: works, code: `
type body struct { io.ReadCloser; n int; closed bool }
func (b *body) Read(p []byte) (int, error) { n, err := b.ReadCloser.Read(p); b.n += n; return n, err }
func (b *body) Close() error { b.closed = true; return b.ReadCloser.Close() }
func F(x int) bool {
	r := httptest.NewRequest("POST", "/", strings.NewReader(strconv.Itoa(x)+"tail"))
	b := &body{ReadCloser: r.Body}
	r.Body = b
	got, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if r.Body.Close() != nil { return false }
	return err == nil && string(got) == strconv.Itoa(x)+"tail" && b.n == len(got) && b.closed
}`},
	{name: "embedded ReadCloser with methods promoted", want: works, code: `
type body struct { io.ReadCloser }
func F(x int) bool {
	var r io.ReadCloser = &body{io.NopCloser(io.MultiReader(strings.NewReader("a"), strings.NewReader("b")))}
	b, err := io.ReadAll(r)
	return err == nil && string(b) == "ab" && r.Close() == nil
}`},

	// Data.
	{name: "replies told apart by type", want: works, code: `
func kind(v interface{}) string {
	switch v := v.(type) {
	case nil: return "nil"
	case []byte: return "b" + string(v)
	case string: return "s" + v
	case int64: return "i" + strconv.FormatInt(v, 10)
	case []interface{}: return "l" + kind(v[0])
	}
	return "?"
}
func F(x int) bool {
	n := strconv.Itoa(x)
	return kind(nil) == "nil" && kind([]byte(n)) == "b"+n && kind(n) == "s"+n && kind(int64(x)) == "i"+n &&
		kind([]interface{}{[]byte(n)}) == "lb"+n && kind(1.5) == "?"
}`},
	{name: "replies asserted", want: works, code: `
func F(x int) bool {
	var v interface{} = []interface{}{[]byte("a"), int64(x), nil}
	l, ok := v.([]interface{})
	if !ok || len(l) != 3 || l[2] != nil { return false }
	b, isBytes := l[0].([]byte)
	n, isInt := l[1].(int64)
	_, wrong := l[0].(string)
	return isBytes && isInt && !wrong && string(b) == "a" && n == int64(x)
}`},
	{name: "sentinels wrapped", want: works, code: `
var errA, errB = errors.New("a"), errors.New("b")
func get(x int) error { if x%2 == 0 { return fmt.Errorf("get %d: %w", x, errA) }; return errB }
func F(x int) bool {
	err := fmt.Errorf("f: %w", get(x))
	return errors.Is(err, errA) == (x%2 == 0) && errors.Is(err, errB) == (x%2 == 1) && !errors.Is(nil, errA) && get(1) == errB
}`},
	{name: "own error asserted", want: works, code: `
type E struct { code int }
func (e *E) Error() string { return "E" + strconv.Itoa(e.code) }
func get(x int) error { return &E{x} }
func F(x int) bool { err := get(x); e, ok := err.(*E); return ok && e.code == x && err.Error() == "E"+strconv.Itoa(x) }`},
	{name: "net.Error asserted", want: works, code: `
func F(x int) bool {
	var err error = &net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}
	e, ok := err.(net.Error)
	return ok && e.Timeout() && errors.Is(err, os.ErrDeadlineExceeded)
}`},
	{name: "sha256 and hex", want: works, code: `
func sum(parts ...string) string {
	h := sha256.New()
	for _, p := range parts { fmt.Fprintf(h, "%d:%s", len(p), p) }
	return hex.EncodeToString(h.Sum(nil))
}
func F(x int) bool {
	a := sha256.Sum256([]byte("1:a" + fmt.Sprintf("%d:%d", len(strconv.Itoa(x)), x)))
	return sum("a", strconv.Itoa(x)) == hex.EncodeToString(a[:]) && sum("a", "bc") != sum("ab", "c")
}`},
	{name: "regexp", want: works, code: `
var valid = regexp.MustCompile("^[A-Za-z0-9._/-]{1,20}$")
func F(x int) bool { return valid.MatchString("k-"+strconv.Itoa(x)) && !valid.MatchString("k "+strconv.Itoa(x)) && !valid.MatchString("") }`},
	{name: "strings.Cut", want: works, code: `
func F(x int) bool {
	a, b, ok := strings.Cut(strconv.Itoa(x)+" /p q", " ")
	_, _, no := strings.Cut(b, "=")
	return ok && !no && a == strconv.Itoa(x) && b == "/p q"
}`},
	{name: "slog with a text handler", want: works, code: `
func F(x int) bool {
	var b bytes.Buffer
	l := slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelWarn})).With("middleware", "m")
	l.Info("quiet")
	l.Warn("loud", "x", x, "err", errors.New("e"))
	return strings.Contains(b.String(), "msg=loud middleware=m x="+strconv.Itoa(x)+" err=e") && !strings.Contains(b.String(), "quiet")
}`},
	{name: "bytes.Buffer", want: works, code: `
type T struct { buf bytes.Buffer; max int }
func (t *T) Write(p []byte) (int, error) {
	if t.buf.Len()+len(p) <= t.max { t.buf.Write(p) }
	return len(p), nil
}
func F(x int) bool {
	t := &T{max: 6}
	fmt.Fprintf(t, "%s", "abc")
	io.WriteString(t, "toolong")
	io.WriteString(t, "def")
	return t.buf.String() == "abcdef" && bytes.Equal(t.buf.Bytes()[:1], []byte("a"))
}`},
	{name: "json of a flat struct", want: works, code: `
type rec struct { A int ` + "`json:\"a\"`" + `; B string ` + "`json:\"b,omitempty\"`" + `; L []string ` + "`json:\"l\"`" + ` }
func F(x int) bool {
	b, err := json.Marshal(rec{A: x, L: []string{"q"}})
	if err != nil || string(b) != fmt.Sprintf("{\"a\":%d,\"l\":[\"q\"]}", x) { return false }
	var r rec
	err = json.Unmarshal(b, &r)
	return err == nil && r.A == x && r.B == "" && len(r.L) == 1
}`},
	{name: "map of structs", want: works, code: `
type T struct { n int; s string }
func F(x int) bool {
	m := map[string]T{}
	m["a"] = T{x, "q"}
	v, ok := m["a"]
	v.n++
	w := m["a"]
	_, no := m["b"]
	return ok && !no && v.n == x+1 && w.n == x && w.s == "q"
}`},
	{name: "pointer method through an interface", want: works, code: `
type store interface { add(n int) error; total() int }
type memory struct { n int }
func (m *memory) add(n int) error { if n < 0 { return errors.New("negative") }; m.n += n; return nil }
func (m *memory) total() int { return m.n }
type tiered struct { near, far store }
func (t *tiered) add(n int) error { if err := t.near.add(n); err != nil { return err }; return t.far.add(n) }
func (t *tiered) total() int { return t.near.total() + t.far.total() }
func F(x int) bool {
	var s store = &tiered{&memory{}, &memory{}}
	for i := 0; i < 3; i++ { if s.add(x) != nil { return false } }
	return s.add(-1) != nil && s.total() == 6*x
}`},
	{name: "maps and slices", want: works, code: `
func F(x int) bool {
	m := map[string][]int{}
	for i := 0; i < 4; i++ { k := strconv.Itoa(i % 2); m[k] = append(m[k], x+i) }
	l := m["1"]
	l = append(l[:0:0], l...)
	l[0] = -1
	sort.Slice(l, func(i, j int) bool { return l[i] > l[j] })
	s := 0
	for k, v := range m { if k == "1" { delete(m, k) }; s += len(v) }
	a := [4]byte{1}
	b := a
	b[0] = 9
	return s == 4 && len(m) == 1 && l[0] == x+3 && l[1] == -1 && a[0] == 1
}`},
	{name: "structs copied", want: works, code: `
type T struct { n int; k [4]byte }
func F(x int) bool {
	l := []T{{n: x}, {n: x + 1}}
	for _, v := range l { v.n = -1 }
	u := l[0]
	u.n = -1
	p := &l[1]
	p.n++
	p.k[0] = 'a'
	w := *p
	w.k[0] = 'b'
	return l[0].n == x && l[1].n == x+2 && l[1].k[0] == 'a' && w.k[0] == 'b'
}`},
	{name: "variables of a loop's body begin at zero", want: works, code: `
type T struct { n int }
func F(x int) bool {
	n := 0
	for i := 0; i < 3; i++ {
		var k int
		var t T
		var l []int
		var err error
		var b bytes.Buffer
		if t.n != 0 || l != nil || err != nil || k != 0 { return false }
		k++
		t.n++
		l = append(l, i)
		err = errors.New("x")
		b.WriteByte('a')
		n += b.Len()
	}
	return n == 3
}`},
	{name: "fields holding functions", want: works, code: `
type T struct { now func() time.Time; log func(string, ...interface{}) string }
func F(x int) bool {
	t := &T{log: fmt.Sprintf}
	if t.now != nil { return false }
	t.now = func() time.Time { return time.Unix(int64(x), 0) }
	args := []interface{}{x, "a"}
	return t.now().Unix() == int64(x) && t.log("%d-%s", args...) == strconv.Itoa(x)+"-a"
}`},
}

// aborts serves one request with the handler, and says whether the client saw it break off and the server kept quiet about it.
const aborts = `
func aborts(h http.HandlerFunc) bool {
	var said bytes.Buffer
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(&said, nil), slog.LevelError) // what log.New returns is the interpreter's own
	s.Start()
	resp, err := http.Get(s.URL)
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	s.Close()
	return err != nil && said.Len() == 0
}`

// probePackages are what the constructs may import.
var probePackages = []string{
	"bufio", "bytes", "container/list", "context", "crypto/sha256", "encoding/hex", "encoding/json", "errors", "fmt", "io",
	"log/slog", "net", "net/http", "net/http/httptest", "net/http/httptrace", "net/http/httputil", "net/textproto", "net/url",
	"os", "reflect", "regexp", "runtime", "sort", "strconv", "strings", "sync", "sync/atomic", "text/template", "time",
}

// source is the construct as a file of package p.
func (c construct) source() string {
	head := "package p\n"
	for _, p := range probePackages {
		if regexp.MustCompile(`\b` + filepath.Base(p) + `\.[A-Z]`).MatchString(c.code) {
			head += fmt.Sprintf("import %q\n", p)
		}
	}
	return head + c.code + "\n"
}

const (
	probeEnv     = "IDEM_PROBE_CONSTRUCT"
	probeThreads = 16
	probeRight   = "construct is right"
)

// TestProbe runs every construct under the interpreter, each in a process of its own since a broken one may end or stop it.
func TestProbe(t *testing.T) {
	two := make(chan struct{}, 2)
	var wg sync.WaitGroup
	for _, c := range constructs {
		wg.Add(1)
		two <- struct{}{}
		go func() {
			defer wg.Done()
			defer func() { <-two }()
			judge(t, c)
		}()
	}
	wg.Wait()
}

// judge holds what happens against the table. Before it calls a broken construct mended, it tries several times.
func judge(t *testing.T, c construct) {
	tries := 1
	if c.want == broken {
		tries = 10
	}
	wrong := ""
	for ; tries > 0 && wrong == ""; tries-- {
		wrong = probe(c)
	}
	switch {
	case c.want == unsteady && wrong == "":
		t.Logf("unsteady: %s: right this time", c.name)
	case c.want == unsteady:
		t.Logf("unsteady: %s: %s", c.name, wrong)
	case c.want == works && wrong != "":
		t.Errorf("%s: %s", c.name, wrong)
	case c.want == broken && wrong == "":
		t.Errorf("yaegi mended: %s; update docs", c.name)
	case c.want == broken:
		t.Logf("broken: %s: %s", c.name, wrong)
	}
}

// probe runs one construct in a child and returns what went wrong. A child that hangs is as wrong as one that fails:
// the time allowed only has to be far more than a right one needs.
func probe(c construct) string {
	limit := 5 * time.Minute
	if c.want != works {
		limit = 30 * time.Second
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestProbeChild$")
	cmd.Env = append(os.Environ(), probeEnv+"="+c.name)
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil && bytes.Contains(out, []byte(probeRight)):
		return ""
	case ctx.Err() != nil:
		return "hangs"
	}
	// Of all that a dying interpreter prints, the line that tells the cause.
	for _, l := range strings.Split(string(out), "\n") {
		if regexp.MustCompile(`panic: [a-z]|^(fatal error|wrong|does not load): `).MatchString(l) && !strings.Contains(l, "panic: p.") {
			return strings.TrimSpace(l)
		}
	}
	return fmt.Sprintf("%v: %.300s", err, out)
}

// TestProbeChild is the child that TestProbe starts; alone it does nothing.
func TestProbeChild(t *testing.T) {
	name := os.Getenv(probeEnv)
	if name == "" {
		return
	}
	i := slices.IndexFunc(constructs, func(c construct) bool { return c.name == name })
	if i < 0 {
		t.Fatalf("no construct %q", name)
	}
	if err := runConstruct(constructs[i]); err != nil {
		fmt.Fprintln(os.Stderr, err) // not stdout: other tests of this binary read it through a pipe
		os.Exit(1)
	}
	fmt.Fprintln(os.Stderr, probeRight)
}

// runConstruct calls the construct from many goroutines until it is wrong or was right often enough.
func runConstruct(c construct) error {
	i := interp.New(interp.Options{})
	if err := i.Use(stdlib.Symbols); err != nil {
		return err
	}
	if _, err := i.Eval(c.source()); err != nil {
		return fmt.Errorf("does not load: %w", err)
	}
	v, err := i.Eval("p.F")
	if err != nil {
		return fmt.Errorf("does not load: %w", err)
	}
	f, ok := v.Interface().(func(int) bool)
	if !ok {
		return fmt.Errorf("F is a %s", v.Type())
	}
	for x := range 3 {
		if !f(x) {
			return errors.New("wrong: with one goroutine")
		}
	}

	calls := c.calls
	if calls == 0 {
		calls = map[verdict]int{works: 1000, broken: 50000, unsteady: 1000}[c.want]
	}
	var wg sync.WaitGroup
	for g := range probeThreads {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for n := range calls {
				if !f(g*calls + n) {
					fmt.Fprintf(os.Stderr, "wrong: with %d goroutines, after %d calls of one\n", probeThreads, n)
					os.Exit(1) // the others may be stuck
				}
			}
		}()
	}
	wg.Wait()
	return nil
}

// TestProbeCompiled shows that every construct is right Go, so that what the interpreter does with it is the interpreter's.
func TestProbeCompiled(t *testing.T) {
	dir := t.TempDir()
	imports, calls := "", ""
	for i, c := range constructs {
		if slices.ContainsFunc(constructs[:i], func(d construct) bool { return d.name == c.name }) {
			t.Errorf("two constructs are named %q", c.name)
		}
		imports += fmt.Sprintf("import p%d \"probe/p%d\"\n", i, i)
		calls += fmt.Sprintf("for x := 0; x < 3; x++ { if !p%d.F(x) { fmt.Println(%q) } }\n", i, c.name)
		writeSource(t, filepath.Join(dir, fmt.Sprintf("p%d", i), "p.go"), c.source())
	}
	writeSource(t, filepath.Join(dir, "go.mod"), "module probe\ngo 1.25\n")
	writeSource(t, filepath.Join(dir, "main.go"), "package main\nimport \"fmt\"\n"+imports+"func main() {\n"+calls+"}\n")
	cmd := exec.Command("go", "run", "-trimpath", ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod")
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("not right when compiled: %v\n%s", err, out)
	}
}

func writeSource(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
