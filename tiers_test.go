package idem

import (
	"errors"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	miniredisserver "github.com/alicebob/miniredis/v2/server"

	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/store"
	"github.com/example/traefik-idem/store/storetest"
)

// TestLifeInTiers has processes with a memory each, before one Redis.
func TestLifeInTiers(t *testing.T) {
	server := miniredis.RunT(t)
	client := redisclient.New(redisclient.Options{Address: server.Addr(), DialTimeout: time.Minute, ReadTimeout: time.Minute, WriteTimeout: time.Minute})
	t.Cleanup(client.Close)
	clock := storetest.NewClock()
	storetest.Life(t, 400, func() storetest.World {
		server.FlushAll()
		return storetest.World{
			Start: func() storetest.Subject {
				memory := store.NewMemoryClock(1<<20, clock.Since)
				t.Cleanup(memory.Close)
				return tiersSubject(&tiers{memory: memory, redis: redisclient.NewKeys(client, "idem"), cache: true})
			},
			Pass: func(d time.Duration) {
				clock.Pass(d)
				server.FastForward(d)
			},
			Remembers: true,
		}
	})
}

func tiersSubject(k *tiers) storetest.Subject {
	return storetest.Subject{
		Claim: func(l *store.Lease, d time.Duration) (*store.Held, error) { return claimKey(k, l, d) },
		Renew: func(l *store.Lease, d time.Duration) (bool, error) { return renewKey(k, l, d) },
		Finish: func(l *store.Lease, record string, ttl time.Duration) (bool, error) {
			return finishKey(k, l, record, ttl)
		},
		Release: func(l *store.Lease) (bool, error) { return releaseKey(k, l) },
	}
}

// TestAClaimMadeWithoutRedisStands has one request claim in memory, for it could not reach Redis, just when another one
// with its key is granted its claim there.
func TestAClaimMadeWithoutRedisStands(t *testing.T) {
	server := miniredis.RunT(t)
	client := redisclient.New(redisclient.Options{Address: server.Addr(), DialTimeout: time.Minute, ReadTimeout: time.Minute, WriteTimeout: time.Minute})
	t.Cleanup(client.Close)
	memory := store.NewMemory(1 << 20)
	t.Cleanup(memory.Close)
	k := &tiers{memory: memory, redis: redisclient.NewKeys(client, "idem"), cache: true, fallback: true}
	var first *store.Held
	firstLease := &store.Lease{Key: "k", Owner: "first"}
	server.Server().SetPreHook(func(*miniredisserver.Peer, string, ...string) bool {
		if !firstLease.Degraded {
			first, _ = claimInMemory(k, firstLease, errors.New("cut off"))
		}
		return false
	})
	second, err := claimKey(k, &store.Lease{Key: "k", Owner: "second"}, time.Minute)
	if err != nil || first != nil || second == nil || second.State != store.Running || second.Owner != "first" {
		t.Errorf("the first request is told %+v, and the second %+v, %v; want one to run", first, second, err)
	}
}
