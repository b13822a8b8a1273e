package idem

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
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
	client := redisclient.New(redisclient.Options{Address: address, DialTimeout: time.Minute, ReadTimeout: time.Minute, WriteTimeout: time.Minute}, redisclient.NewBacklog())
	t.Cleanup(client.Close)
	h.shared = redisclient.NewKeys(client, "idem")
	h.stats = stats.New("this process", stats.NewProcessStore(memory), h.statsLimits, memory)
	t.Cleanup(h.stats.Close)
	h.log = newLogger("idem", "error")
	h.notebook = newNotebook(memory)
	h.notebook.Close() // it exchanges nothing by itself
	h.notebook.use(h.shared, "idem")
	h.keys = store.NewKeys(memory, h.shared.Failing, store.Terms{TTL: h.ttl, Lease: time.Hour, Remember: true, Hear: h.notebook.hear})
	return h
}

// startDoor returns a door with an empty memory, before a new Redis.
func startDoor(t *testing.T) (*handler, *miniredis.Miniredis) {
	t.Helper()
	server := miniredis.RunT(t)
	memory := store.NewMemory(1 << 20)
	t.Cleanup(memory.Close)
	return newDoor(t, memory, server.Addr()), server
}

// TestLifeBehindTheDoor has processes with a memory each, before one Redis.
func TestLifeBehindTheDoor(t *testing.T) {
	server := miniredis.RunT(t)
	clock := storetest.NewClock()
	storetest.Life(t, 400, func() storetest.World {
		server.FlushAll()
		return storetest.World{
			Start: func() storetest.Subject {
				memory := store.NewMemoryClock(1<<20, clock.Since)
				t.Cleanup(memory.Close)
				return doorSubject(newDoor(t, memory, server.Addr()))
			},
			Pass: func(d time.Duration) {
				clock.Pass(d)
				server.FastForward(d)
			},
			Remembers: true,
			Hears:     newsLife,
		}
	})
}

// doorSubject is h as a subject.
func doorSubject(h *handler) storetest.Subject {
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
				held = store.LookupOther(h.keys.Memory, l)
			}
			return held, held.Err
		},
		Renew: func(l *store.Lease, d time.Duration) (bool, error) {
			h.lease = d
			return renewShared(h, l)
		},
		Finish: func(l *store.Lease, record string, ttl time.Duration) (bool, error) {
			h.ttl = ttl
			terms := h.keys.Terms
			terms.TTL = ttl
			h.keys = store.NewKeys(h.keys.Memory, h.keys.Failing, terms)
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
	h, server := startDoor(t)
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

// TestAClaimWhoseReplyWasLostIsGivenBack has Redis grant a claim, and the reply lost. Then memory tells how another request with
// that key ended.
func TestAClaimWhoseReplyWasLostIsGivenBack(t *testing.T) {
	h, server := startDoor(t)
	fingerprint := strings.Repeat("f", store.FingerprintSize)
	other := &store.Lease{Key: "k", Fingerprint: fingerprint, Owner: "other"}
	lost := false
	server.Server().SetPreHook(func(peer *miniredisserver.Peer, _ string, args ...string) bool {
		if lost || !strings.Contains(strings.Join(args, " "), ":req:") {
			return false
		}
		lost = true
		_ = server.Set(args[2], args[3])
		store.Claim(h.keys.Memory, other, store.Endless)
		store.Finish(h.keys.Memory, other, fmt.Sprintf(store.UnknownFormat, fingerprint, "other"), time.Hour, true)
		peer.WriteError("ERR nobody knows")
		return true
	})
	l := &store.Run{Lease: &store.Lease{Key: "k", Fingerprint: fingerprint}, Client: context.Background()}
	held := awaitHolder(h, l, &store.Held{State: store.Running, Fingerprint: fingerprint})
	if !lost || held == nil || held.State != store.Unknown {
		t.Fatalf("the duplicate is told %+v, want that nobody knows", held)
	}
	for server.Exists("idem:req:" + storetest.Hash("k")) { // a claim that is never given back ends in the test's time-out
		time.Sleep(time.Millisecond)
	}
}

// TestAReleaseThatIsLateEndsNoOtherClaim has a duplicate that Redis may have given its key wait for a request that began without
// Redis, and run after it. Redis is told of its first claim's end when it has the second.
func TestAReleaseThatIsLateEndsNoOtherClaim(t *testing.T) {
	h, server := startDoor(t)
	run := func() *store.Run {
		return &store.Run{Lease: &store.Lease{Key: "k", Fingerprint: strings.Repeat("f", store.FingerprintSize)}, Client: context.Background()}
	}
	first, l := run(), run()
	server.SetError("LOADING by and by")
	err := claim(h, l).Err
	claim(h, first)
	if claimDegraded(h, first, err) != nil || claimDegraded(h, l, err) == nil {
		t.Fatal("the first request does not run alone")
	}
	release(h, first)
	if claimDegraded(h, l, err) != nil {
		t.Fatal("the duplicate does not run after it")
	}
	server.SetError("")
	for !h.renewLease(l.Lease, true) {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(time.Second) // what is pending is written by now; if it is not, the test sees less
	held, err := redisclient.Claim(h.shared, run().Lease, time.Minute)
	if held == nil || held.Owner != l.Owner || err != nil {
		t.Errorf("Redis says that %+v runs, %v; want %s", held, err, l.Owner)
	}
}

// TestAKeyIsReleasedInASecondOutage: its request began in the first one, and its lease was claimed in Redis between the two.
func TestAKeyIsReleasedInASecondOutage(t *testing.T) {
	h, server := startDoor(t)
	h.keys.Terms.Renew = h.renewLease
	run := func(key string) *store.Run {
		return &store.Run{Lease: &store.Lease{Key: key, Fingerprint: strings.Repeat("f", store.FingerprintSize)}, Client: context.Background()}
	}
	l := run("k")
	server.SetError("LOADING by and by")
	held := claimDegraded(h, l, claim(h, l).Err)
	if held != nil {
		t.Fatalf("the request does not run: %+v", held)
	}
	server.SetError("")
	inRedis := func() bool { return server.Exists("idem:req:" + storetest.Hash("k")) }
	for !inRedis() || h.shared.Failing.Load() > 0 {
		time.Sleep(time.Millisecond)
	}
	server.SetError("LOADING once more")
	claim(h, run("another"))
	release(h, l)
	server.SetError("")
	for inRedis() { // a claim that is never released ends in the test's time-out
		time.Sleep(time.Millisecond)
	}
}

// TestAGiveBackOutlastsTheLease: a claim may lie in Redis' socket for longer than its lease, and be granted then.
func TestAGiveBackOutlastsTheLease(t *testing.T) {
	h, server := startDoor(t)
	h.lease = time.Millisecond
	h.onStoreError = "pass"
	h.next = http.NotFoundHandler()
	l := &store.Run{Lease: &store.Lease{Key: "k", Fingerprint: strings.Repeat("f", store.FingerprintSize), Owner: "o-1"}, Client: context.Background()}
	held, err := redisclient.Claim(h.shared, l.Lease, time.Hour)
	if held != nil || err != nil {
		t.Fatalf("the key is not granted: %+v, %v", held, err)
	}
	server.Close()
	decide(h, httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/", nil), l, claim(h, l))
	time.Sleep(5 * time.Millisecond)
	redisclient.WriteLater(h.shared, &store.Lease{Key: "another"}, "", time.Hour) // it drops what has expired
	err = server.Restart()
	if err != nil {
		t.Fatal(err)
	}
	for server.Exists("idem:req:" + storetest.Hash("k")) { // a claim that is never given back ends in the test's time-out
		time.Sleep(time.Millisecond)
	}
}

// TestAClaimThatCouldNotBeRenewed has Redis grant a claim slowly, and be out of reach when it is to be renewed.
func TestAClaimThatCouldNotBeRenewed(t *testing.T) {
	h, server := startDoor(t)
	h.lateReplies = true
	h.lease = 3 * time.Millisecond
	claimed := false
	server.Server().SetPreHook(func(peer *miniredisserver.Peer, _ string, args ...string) bool {
		switch {
		case !strings.Contains(strings.Join(args, " "), ":req:"): // a probe
			peer.WriteError("NOAUTH no more")
		case claimed:
			peer.WriteError("NOAUTH no more")
		default:
			claimed = true
			time.Sleep(h.lease)
			_, _ = redisclient.Claim(h.shared, &store.Lease{Key: "another"}, time.Minute)
			peer.WriteNull()
		}
		return true
	})
	l := &store.Run{Lease: &store.Lease{Key: "k"}, Client: context.Background()}
	held := claim(h, l)
	if held == nil || !errors.Is(held.Err, redisclient.ErrDown) || !l.Doubtful {
		t.Errorf("the claim ends with %+v; Redis may have it: %t", held, l.Doubtful)
	}
}
