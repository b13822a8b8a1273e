package idem

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

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
		shared.mu.Lock()
		for name, it := range shared.items {
			if it.value == first.keys.Memory {
				delete(shared.items, name)
			}
		}
		shared.mu.Unlock()
		next := open()
		if next.keys.Memory == first.keys.Memory {
			t.Fatal("the memory was not given up")
		}
		if next.notebook.memory != next.keys.Memory || next.stats == first.stats {
			t.Errorf("%s: notes or statistics are of the memory before", endpoints)
		}
	}
}
