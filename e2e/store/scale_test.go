package store

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/store/storetest"
)

var stores atomic.Int64

// emptyStore returns the prefix of a store that has no keys, for a test that runs beside others with theirs: most of a test
// is waiting for Redis to let a key expire.
func emptyStore(t *testing.T) string {
	t.Parallel()
	return fmt.Sprintf("idem%d", stores.Add(1))
}

// TestStoreInARealRedisConforms runs the conformance suite of stores against redis-server.
func TestStoreInARealRedisConforms(t *testing.T) {
	server := redistest.Start(t)
	storetest.Run(t, func(t *testing.T) storetest.Subject {
		prefix := emptyStore(t)
		options := redisclient.Options{Address: server.Addr, DialTimeout: rig.Never, ReadTimeout: rig.Never, WriteTimeout: rig.Never}
		client := redisclient.New(options)
		t.Cleanup(client.Close)
		return storetest.Redis(redisclient.NewKeys(client, prefix), server.Pass)
	})
}
