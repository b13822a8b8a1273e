package rig

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
)

// Ledger is traffic whose every key is known: clients that try each key until it has its answer, and check that they get
// the same once more.
type Ledger struct {
	site *Site
	stop chan struct{}
	wg   sync.WaitGroup

	Runs, refused atomic.Int64 // keys answered, and tries that were not
}

// StartLedger starts the traffic of so many clients.
func StartLedger(s *Site, clients int) *Ledger {
	l := &Ledger{site: s, stop: make(chan struct{})}
	for range clients {
		l.wg.Add(1)
		go l.client()
	}
	return l
}

func (l *Ledger) client() {
	defer l.wg.Done()
	for {
		select {
		case <-l.stop:
			return
		default:
		}
		key := UnusedKey()
		first := l.answered(key)
		for range 2 {
			again := l.answered(key)
			if again.Status != first.Status || !bytes.Equal(again.Body, first.Body) {
				l.site.T.Errorf("key %s: %d %q, and then %d %q", key, first.Status, first.Body, again.Status, again.Body)
			}
		}
		l.Runs.Add(1)
	}
}

// answered sends key until the backend's answer comes.
func (l *Ledger) answered(key string) Answer {
	for {
		a := l.site.Send(Post("/", key))
		switch {
		case a.Err != nil:
			l.site.T.Errorf("key %s: %v", key, a.Err)
			return a
		case a.Status == 503 || a.Status == 409:
			l.refused.Add(1)
			time.Sleep(20 * time.Millisecond)
		default:
			return a
		}
	}
}

// Await returns when so many keys were answered. Traffic that does not come back ends in the test's time-out.
func (l *Ledger) Await(runs int64) {
	for l.Runs.Load() < runs {
		time.Sleep(10 * time.Millisecond)
	}
}

// End stops the traffic and reads the backend's side of the ledger.
func (l *Ledger) End() {
	l.site.T.Helper()
	close(l.stop)
	l.wg.Wait()
	l.site.NoneTwice()
	l.site.T.Logf("%d keys, %d calls of the backend, %d tries refused", l.Runs.Load(), l.site.Backend.Calls.Load(), l.refused.Load())
}

// Usage is what a process with the plugin holds.
type Usage struct {
	Goroutines, Connections, Files int // connections: to Redis; files: open descriptors
	Heap, Rss                      int64
}

// Measure returns what a Traefik uses now, or this process if p is nil, and the connections to server, if there is one.
func Measure(t *testing.T, p *hosts.Process, server *redistest.Server) Usage {
	t.Helper()
	var u Usage
	pid := os.Getpid()
	if p == nil {
		runtime.GC()
		var memory runtime.MemStats
		runtime.ReadMemStats(&memory)
		u.Heap = int64(memory.HeapAlloc)
		u.Goroutines = runtime.NumGoroutine()
	} else {
		pid = p.Cmd.Process.Pid
		u.Heap = int64(figure(t, p.API+"/debug/pprof/heap?gc=1&debug=1", `# HeapAlloc = (\d+)`))
		u.Goroutines = figure(t, p.API+"/debug/pprof/goroutine?debug=1", `goroutine profile: total (\d+)`)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err == nil {
		found := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindStringSubmatch(string(status))
		u.Rss, _ = strconv.ParseInt(found[1], 10, 64)
		u.Rss <<= 10
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err == nil {
		u.Files = len(files)
	}
	if server != nil {
		u.Connections = Connections(t, server)
	}
	return u
}

// figure is the number that pattern finds in what url serves.
func figure(t *testing.T, url, pattern string) int {
	t.Helper()
	found := regexp.MustCompile(pattern).FindStringSubmatch(get(t, url))
	if found == nil {
		t.Fatalf("%s has no %s", url, pattern)
	}
	n, _ := strconv.Atoi(found[1])
	return n
}
