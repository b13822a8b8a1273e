package e2e

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
)

var commonRedis struct {
	once   sync.Once
	server *redistest.Server
}

// sharedRedis is a Redis for all tests that do it no harm; each uses its own key prefix.
func sharedRedis(t testing.TB) *redistest.Server {
	t.Helper()
	commonRedis.once.Do(func() { commonRedis.server = redistest.Start(hosts.UntilExit{TB: t}) })
	if commonRedis.server == nil {
		t.Fatal("redis-server did not start; see the first test that needed it")
	}
	return commonRedis.server
}

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	err := os.WriteFile(path, []byte(text), 0o600)
	if err != nil {
		t.Fatal(err)
	}
}

// unusedKey returns an idempotency key that no other call gets.
func unusedKey() string { return fmt.Sprintf("key-%d", unique.Add(1)) }

// keysIn counts the keys of requests that server has.
func keysIn(server *redistest.Server) int {
	return len(strings.Fields(server.Do("KEYS", "*:req:*")))
}

// noneTwice checks that the backend was called once at the most for each key.
func (s *site) noneTwice() {
	s.t.Helper()
	s.backend.mu.Lock()
	defer s.backend.mu.Unlock()
	for key, calls := range s.backend.byKey {
		if calls > 1 {
			s.t.Errorf("the backend was called %d times for key %s", calls, key)
		}
	}
}

// ledger is traffic whose every key is known: clients that try each key until it has its answer, and check that they get
// the same once more.
type ledger struct {
	site *site
	stop chan struct{}
	wg   sync.WaitGroup

	runs, refused atomic.Int64 // keys answered, and tries that were not
}

func startLedger(s *site, clients int) *ledger {
	l := &ledger{site: s, stop: make(chan struct{})}
	for range clients {
		l.wg.Add(1)
		go l.client()
	}
	return l
}

func (l *ledger) client() {
	defer l.wg.Done()
	for {
		select {
		case <-l.stop:
			return
		default:
		}
		key := unusedKey()
		first := l.answered(key)
		for range 2 {
			again := l.answered(key)
			if again.status != first.status || !bytes.Equal(again.body, first.body) {
				l.site.t.Errorf("key %s: %d %q, and then %d %q", key, first.status, first.body, again.status, again.body)
			}
		}
		l.runs.Add(1)
	}
}

// answered sends key until the backend's answer comes.
func (l *ledger) answered(key string) answer {
	for {
		a := l.site.send(post("/", key))
		switch {
		case a.err != nil:
			l.site.t.Errorf("key %s: %v", key, a.err)
			return a
		case a.status == 503 || a.status == 409:
			l.refused.Add(1)
			time.Sleep(20 * time.Millisecond)
		default:
			return a
		}
	}
}

// await returns when so many keys were answered. Traffic that does not come back ends in the test's time-out.
func (l *ledger) await(runs int64) {
	for l.runs.Load() < runs {
		time.Sleep(10 * time.Millisecond)
	}
}

// end stops the traffic and reads the backend's side of the ledger.
func (l *ledger) end() {
	l.site.t.Helper()
	close(l.stop)
	l.wg.Wait()
	l.site.noneTwice()
	l.site.t.Logf("%d keys, %d calls of the backend, %d tries refused", l.runs.Load(), l.site.backend.calls.Load(), l.refused.Load())
}
