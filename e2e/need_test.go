package e2e

import (
	"testing"

	"github.com/example/traefik-idem/e2e/internal/redistest"
)

// needRedisServer returns where redis-server is; without one the test is skipped, and in CI it fails.
func needRedisServer(t testing.TB) string {
	t.Helper()
	return redistest.Path(t)
}
