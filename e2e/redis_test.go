package e2e

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

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
