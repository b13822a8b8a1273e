package idem

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/store"
)

// TestAMemoryOutlivesItsUsers as long as it has a record, and no longer.
func TestAMemoryOutlivesItsUsers(t *testing.T) {
	r := &registry{grace: 10 * time.Millisecond, items: map[string]*item{}}
	build := func() resource { return store.NewMemory(1 << 20) }
	open := func() (*store.Memory, context.CancelFunc) {
		ctx, cancel := context.WithCancel(context.Background())
		m, _ := r.get(ctx, "memory", build).(*store.Memory)
		return m, cancel
	}
	first, cancel := open()
	running := &store.Lease{Key: "running", Owner: "o"}
	store.Claim(first, running, store.Endless)
	cancel()
	time.Sleep(10 * r.grace)
	again, cancel := open()
	if again != first {
		t.Fatal("a memory in which a request runs was freed")
	}
	cancel()
	store.Release(first, running)
	for { // a memory that is never freed ends in the test's time-out
		r.mu.Lock()
		left := len(r.items)
		r.mu.Unlock()
		if left == 0 {
			break
		}
		time.Sleep(r.grace)
	}
	next, cancel := open()
	defer cancel()
	if next == first {
		t.Error("a memory without a record was kept")
	}
}

// TestRunsAreRenewedOnceWhenRedisIsBack has many middlewares with the same keys: each run is renewed once, not by each of them.
func TestRunsAreRenewedOnceWhenRedisIsBack(t *testing.T) {
	config := CreateConfig()
	config.LogLevel = "error"
	config.Lease = "1h" // no renewal is due
	config.Redis.Endpoints = []string{miniredis.RunT(t).Addr()}
	running, end := make(chan bool), make(chan bool)
	next := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(running)
		<-end
	})
	open := func() (*handler, context.CancelFunc) {
		ctx, cancel := context.WithCancel(context.Background())
		built, err := New(ctx, next, config, t.Name())
		if err != nil {
			t.Fatal(err)
		}
		h, _ := built.(*handler)
		return h, cancel
	}
	first, cancelFirst := open()
	var renewals atomic.Int32
	first.keys.Terms.Renew = func(*store.Lease, bool) bool {
		renewals.Add(1)
		return true
	}
	ended := make(chan bool)
	go func() {
		defer close(ended)
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("{}"))
		r.Header.Set("X-Request-ID", "0123456789abcdef")
		first.ServeHTTP(httptest.NewRecorder(), r)
	}()
	<-running
	for i := 0; i < 50; i++ {
		_, cancel := open()
		defer cancel()
	}
	cancelFirst() // the others look after its run
	config.Redis.PoolSize = 1
	_, cancel := open() // a client with other settings has all told that Redis is back
	defer cancel()
	for deadline := time.Now().Add(10 * time.Second); renewals.Load() == 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(100 * time.Millisecond) // for more
	close(end)
	<-ended
	if got := renewals.Load(); got != 1 {
		t.Errorf("the run was renewed %d times", got)
	}
}

// TestNotesAndStatisticsAreOfTheMemory that a handler has, although the memory before was given up a moment earlier than they were.
func TestNotesAndStatisticsAreOfTheMemory(t *testing.T) {
	for _, endpoints := range [][]string{nil, {miniredis.RunT(t).Addr()}} {
		config := CreateConfig()
		config.LogLevel = "error"
		config.Redis.Endpoints = endpoints
		open := func() *handler {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			built, err := New(ctx, http.NotFoundHandler(), config, t.Name())
			if err != nil {
				t.Fatal(err)
			}
			h, _ := built.(*handler)
			return h
		}
		first := open()
		resources.mu.Lock()
		for name, it := range resources.items {
			if it.value == first.keys.Memory {
				delete(resources.items, name)
			}
		}
		resources.mu.Unlock()
		next := open()
		if next.keys.Memory == first.keys.Memory {
			t.Fatal("the memory was not given up")
		}
		if next.notebook.memory != next.keys.Memory || next.stats == first.stats {
			t.Errorf("%s: notes or statistics are of the memory before", endpoints)
		}
	}
}

// shortGrace has what handlers share given up soon after its last user.
func shortGrace(t *testing.T) {
	t.Helper()
	set := func(grace time.Duration) {
		resources.mu.Lock()
		defer resources.mu.Unlock()
		resources.grace = grace
	}
	set(10 * time.Millisecond)
	t.Cleanup(func() { set(graceTime) })
}

// awaitCollectors returns when no more than most are left for this Redis. What never ends, ends in the test's time-out.
func awaitCollectors(address string, most int) {
	collectors := func() int {
		resources.mu.Lock()
		defer resources.mu.Unlock()
		n := 0
		for name := range resources.items {
			if strings.HasPrefix(name, "stats ") && strings.Contains(name, address) {
				n++
			}
		}
		return n
	}
	for collectors() > most {
		time.Sleep(10 * time.Millisecond)
	}
}

// TestCountsOutliveTheirHandlers has a request end long after its handler was given up, because a reload has changed how Redis is
// used, or removed the middleware: what becomes of it is counted, and then all that counts is given up.
func TestCountsOutliveTheirHandlers(t *testing.T) {
	shortGrace(t)
	arrived, proceed := make(chan bool, 1), make(chan bool)
	breaksOff := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		arrived <- true
		<-proceed
		panic(http.ErrAbortHandler)
	})
	serve := func(h *handler, r *http.Request) chan bool {
		ended := make(chan bool)
		go func() {
			defer close(ended)
			defer func() { _ = recover() }()
			h.ServeHTTP(httptest.NewRecorder(), r)
		}()
		return ended
	}
	post := func(ctx context.Context, body io.Reader) *http.Request {
		r := httptest.NewRequest(http.MethodPost, "/", body).WithContext(ctx)
		r.Header.Set("X-Request-ID", "0123456789abcdef")
		r.Header.Set("Content-Type", "application/json")
		return r
	}
	for name, c := range map[string]struct {
		total string
		start func(t *testing.T, h *handler) (end func())
	}{
		"runs": {"unknownOutcomes", func(_ *testing.T, h *handler) func() {
			ended := serve(h, post(context.Background(), strings.NewReader("{}")))
			<-arrived
			return func() {
				proceed <- true
				<-ended
			}
		}},
		"arrives": {"unknownOutcomes", func(t *testing.T, h *handler) func() {
			body, client := io.Pipe()
			r := post(context.Background(), body)
			r.ContentLength = smallBody + 1
			ended := serve(h, r)
			_, err := client.Write([]byte("{")) // returns when it is read
			if err != nil {
				t.Fatal(err)
			}
			return func() {
				_, _ = client.Write(make([]byte, smallBody))
				<-arrived
				proceed <- true
				<-ended
			}
		}},
		"waits": {"conflicts", func(t *testing.T, h *handler) func() {
			ctx, leave := context.WithCancel(context.Background())
			r := post(ctx, strings.NewReader("{}"))
			elsewhere := newRun(h, r, findKey(h, r, nil, unread), []byte("{}"))
			elsewhere.Owner = "elsewhere-1"
			held, err := redisclient.Claim(h.shared, elsewhere.Lease, time.Hour)
			if held != nil || err != nil {
				t.Fatal(held, err)
			}
			before := waiting.Load()
			ended := serve(h, r)
			for waiting.Load() == before {
				time.Sleep(time.Millisecond)
			}
			return func() {
				leave()
				<-ended
			}
		}},
	} {
		for _, removed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, removed: %t", name, removed), func(t *testing.T) {
				server := miniredis.RunT(t)
				config := CreateConfig()
				config.LogLevel = "error"
				config.InFlightTimeout = "1h"
				config.Redis.Endpoints = []string{server.Addr()}
				open := func() (*handler, context.CancelFunc) {
					ctx, cancel := context.WithCancel(context.Background())
					built, err := New(ctx, breaksOff, config, t.Name())
					if err != nil {
						t.Fatal(err)
					}
					h, _ := built.(*handler)
					return h, cancel
				}
				old, cancel := open()
				end := c.start(t, old)
				cancel()
				left := 0
				if !removed {
					config.Redis.PoolSize = 3
					_, cancel = open()
					left = 1
				}
				time.Sleep(20 * resources.grace) // what is not used is given up meanwhile
				end()
				counted := func() bool { return server.HGet("idem:stats", "t "+c.total) == "1" }
				for deadline := time.Now().Add(10 * time.Second); !counted(); time.Sleep(10 * time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatalf("it is not counted: %s", server.HGet("idem:stats", "t "+c.total))
					}
				}
				awaitCollectors(server.Addr(), left)
				cancel()
				awaitCollectors(server.Addr(), 0)
			})
		}
	}
}

// TestManyReloadsLeaveNothing has each of them change how Redis is used, while a request runs that came before the first: only what
// counts that one is left, and nothing when it has ended.
func TestManyReloadsLeaveNothing(t *testing.T) {
	shortGrace(t)
	server := miniredis.RunT(t)
	arrived, proceed, ended := make(chan bool), make(chan bool), make(chan bool)
	next := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(arrived)
		<-proceed
	})
	reload := func(i int) (http.Handler, context.CancelFunc) {
		config := CreateConfig()
		config.LogLevel = "error"
		config.TTL = "1s"
		config.Redis.Endpoints = []string{server.Addr()}
		config.Redis.PoolSize = i
		ctx, cancel := context.WithCancel(context.Background())
		h, err := New(ctx, next, config, t.Name())
		if err != nil {
			t.Fatal(err)
		}
		return h, cancel
	}
	await := func(left int) runtime.MemStats {
		awaitCollectors(server.Addr(), left)
		var now runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&now)
		return now
	}
	h, cancel := reload(0)
	go func() {
		defer close(ended)
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("{}"))
		r.Header.Set("X-Request-ID", "0123456789abcdef")
		h.ServeHTTP(httptest.NewRecorder(), r)
	}()
	<-arrived
	before, goroutines := await(1), runtime.NumGoroutine()
	for i := 1; i <= 1000; i++ {
		cancel()
		_, cancel = reload(i)
	}
	cancel()
	after := await(1)
	t.Logf("%d KiB before, %d KiB after", before.HeapAlloc>>10, after.HeapAlloc>>10)
	if after.HeapAlloc > before.HeapAlloc+4<<20 {
		t.Errorf("%d KiB grew to %d KiB", before.HeapAlloc>>10, after.HeapAlloc>>10)
	}
	close(proceed)
	<-ended
	await(0)
	for runtime.NumGoroutine() > goroutines {
		time.Sleep(10 * time.Millisecond)
	}
}
