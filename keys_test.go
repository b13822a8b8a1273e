package idem

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	miniredisserver "github.com/alicebob/miniredis/v2/server"

	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/stats"
	"github.com/example/traefik-idem/store"
	"github.com/example/traefik-idem/store/storetest"
)

// newDoor returns a handler with no more than its stores.
func newDoor(t *testing.T, memory *store.Memory, address string) *handler {
	t.Helper()
	h := newTestHandler(t, func(c *Config) { c.Redis.Endpoints = []string{address} })
	client := redisclient.New(redisclient.Options{Address: address, DialTimeout: time.Minute, ReadTimeout: time.Minute, WriteTimeout: time.Minute})
	t.Cleanup(client.Close)
	h.shared = redisclient.NewKeys(client, "idem")
	h.stats = stats.New(stats.NewProcess(memory), h.statsLimits, memory)
	t.Cleanup(h.stats.Close)
	h.log = newLogger("idem", "error")
	h.notebook = newNotebook(memory)
	h.notebook.Close() // it exchanges nothing by itself
	h.notebook.use(h.shared, "idem")
	h.keys = store.NewKeys(memory, h.shared.Trouble, store.Terms{TTL: h.ttl, Lease: time.Hour, Remember: true})
	return h
}

// TestLifeBehindTheDoor has processes with a memory each, before one Redis.
func TestLifeBehindTheDoor(t *testing.T) {
	server := miniredis.RunT(t)
	clock := storetest.NewClock()
	storetest.Life(t, 400, func() storetest.World {
		server.FlushAll()
		var doors []*handler
		tellAll := func() {
			for _, h := range doors {
				err := exchange(h.notebook)
				if err != nil {
					t.Error(err)
				}
			}
		}
		return storetest.World{
			Start: func() storetest.Subject {
				memory := store.NewMemoryClock(1<<20, clock.Since)
				t.Cleanup(memory.Close)
				doors = append(doors, newDoor(t, memory, server.Addr()))
				return doorSubject(doors[len(doors)-1], tellAll)
			},
			Pass: func(d time.Duration) {
				clock.Pass(d)
				server.FastForward(d)
			},
			Remembers: true,
		}
	})
}

// doorSubject is h as a subject. tellAll has every process hear at once of what was settled.
func doorSubject(h *handler, tellAll func()) storetest.Subject {
	runs := map[*store.Lease]*store.Run{}
	run := func(l *store.Lease) *store.Run {
		if runs[l] == nil {
			runs[l] = &store.Run{Lease: l, Client: context.Background()}
		}
		return runs[l]
	}
	return storetest.Subject{
		Claim: func(l *store.Lease, d time.Duration) (*store.Held, error) {
			h.lease = d
			held := claim(h, run(l))
			if held == nil {
				return nil, nil
			}
			if held.Local && held.State == store.Done && held.Left == 0 { // it was told of before
				held = store.Lookup(h.keys.Memory, l)
			}
			return held, held.Err
		},
		Renew: func(l *store.Lease, d time.Duration) (bool, error) {
			h.lease = d
			return renewShared(h, l)
		},
		Finish: func(l *store.Lease, record string, ttl time.Duration) (bool, error) {
			h.ttl = ttl
			h.keys = store.NewKeys(h.keys.Memory, h.keys.Trouble, store.Terms{TTL: ttl, Lease: time.Hour, Remember: true})
			kept := finish(h, run(l), record)
			h.keys.Memory.Sweep() // begins its time to live
			return kept, nil
		},
		Release: func(l *store.Lease) (bool, error) { return release(h, run(l)), nil },
		Look: func(key string) (*redisclient.Seen, error) {
			return lookAt(h, newNote(noteOther, key, ""))
		},
		Settle: func(key string, seen *redisclient.Seen, record string, ttl time.Duration) (bool, error) {
			h.ttl = ttl
			answer := settleKey(h, "", newNote(noteOther, key, ""), seen, record, "settled")
			tellAll()
			if answer.Status != http.StatusOK && answer.Status != http.StatusConflict {
				return false, errors.New(answer.Detail)
			}
			return answer.Status == http.StatusOK, nil
		},
	}
}

// TestAClaimMadeWithoutRedisStands has one request claim in memory, for it could not reach Redis, just when another one
// with its key is granted its claim there.
func TestAClaimMadeWithoutRedisStands(t *testing.T) {
	server := miniredis.RunT(t)
	memory := store.NewMemory(1 << 20)
	t.Cleanup(memory.Close)
	h := newDoor(t, memory, server.Addr())
	var first *store.Held
	firstRun := &store.Run{Lease: &store.Lease{Key: "k", Owner: "first"}, Client: context.Background()}
	server.Server().SetPreHook(func(_ *miniredisserver.Peer, _ string, args ...string) bool {
		if strings.Contains(strings.Join(args, " "), ":req:") && !firstRun.Degraded { // no probe
			first = claimDegraded(h, firstRun, errors.New("cut off"))
		}
		return false
	})
	second := claim(h, &store.Run{Lease: &store.Lease{Key: "k"}, Client: context.Background()})
	if first != nil || second == nil || second.Err != nil || second.State != store.Running || second.Owner != "first" {
		t.Errorf("the first request is told %+v, and the second %+v; want one to run", first, second)
	}
}
