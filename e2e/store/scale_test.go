package store

import (
	"testing"

	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/store/storetest"
)

// TestStoreInARealRedisConforms runs the conformance suite of stores against redis-server.
func TestStoreInARealRedisConforms(t *testing.T) {
	server := redistest.Start(t)
	storetest.Run(t, func(t *testing.T) storetest.Subject {
		server.Do("FLUSHDB")
		options := redisclient.Options{Address: server.Addr, DialTimeout: rig.Never, ReadTimeout: rig.Never, WriteTimeout: rig.Never}
		client := redisclient.New(options)
		t.Cleanup(client.Close)
		return storetest.Redis(redisclient.NewKeys(client, "idem"), server.Pass)
	})
}
