package store

import (
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/store/storetest"
)

func TestStoreInARealRedisBehindSentinelsConforms(t *testing.T) {
	g := redistest.StartGroup(t, 1)
	storetest.Run(t, func(t *testing.T) storetest.Subject {
		prefix := emptyStore(t)
		client := redisclient.New(redisclient.Options{
			Address: strings.Join(g.Endpoints(), ","), Password: redistest.GroupPassword, DialTimeout: rig.Never, ReadTimeout: rig.Never, WriteTimeout: rig.Never,
			Sentinel: redisclient.Sentinel{MasterName: redistest.MasterName, Password: redistest.SentinelPassword}}, redisclient.NewBacklog())
		t.Cleanup(client.Close)
		return storetest.Redis(redisclient.NewKeys(client, prefix), g.Servers[0].Pass)
	})
}
