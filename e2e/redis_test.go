package e2e

import (
	"os"
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
