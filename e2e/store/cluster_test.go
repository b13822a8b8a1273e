package store

import (
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/store/storetest"
)

func TestStoreInARealRedisClusterConforms(t *testing.T) {
	c := redistest.StartCluster(t, 3)
	storetest.Run(t, func(t *testing.T) storetest.Subject {
		prefix := emptyStore(t)
		cluster := redisclient.New(redisclient.Options{Address: strings.Join(c.Endpoints(), ","), Cluster: true, DialTimeout: rig.Never, ReadTimeout: rig.Never, WriteTimeout: rig.Never}, redisclient.NewBacklog())
		t.Cleanup(cluster.Close)
		return storetest.Redis(redisclient.NewKeys(cluster, prefix), c.Masters[0].Pass) // they all have one clock
	})
}
