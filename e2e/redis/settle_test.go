package redis

// Keys that are settled at one Traefik, and asked for at another one with a memory of its own.

import (
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// ends are what the backend does, by path.
func ends(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	if r.URL.Path == "/unknown" {
		panic(http.ErrAbortHandler)
	}
	rig.Created(w, r)
}

// two are sites in two Traefiks, as far as they share no memory, before b. The second reaches server at another address.
func two(t *testing.T, host hosts.Host, server, second string, b *rig.Backend, more hosts.Settings) (*rig.Site, *rig.Site) {
	t.Helper()
	at := func(addr string) *rig.Site {
		settings := hosts.Settings{"statusHeader": "Decision", "scope": "Authorization", "lease": "10m", "stats": rig.AdminStats["stats"],
			"redis": map[string]any{"endpoints": addr, "keyPrefix": "p", "dialTimeout": "20s", "readTimeout": "20s", "writeTimeout": "20s"}}
		for name, value := range more {
			settings[name] = value
		}
		return rig.SiteOf(t, host.Serve(t, b.URL, settings), b)
	}
	return at(server), at(second)
}

// TestEveryTraefikKnowsWhatWasSettled has two that have answered a key from their memories.
func TestEveryTraefikKnowsWhatWasSettled(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		front := rig.NewFront(t, server.Addr)
		b := rig.NewBackend(t, ends)
		one, other := two(t, host, server.Addr, front.Addr, b, nil)

		freed := rig.Post("/done", rig.UnusedKey())
		first := one.Do(freed)
		one.Want(first, 201, "first")
		one.WantReplay(first, other.Do(freed)) // and remembers it
		answered := rig.Post("/unknown", rig.UnusedKey())
		other.Send(answered)
		refused := one.Do(answered)
		one.WantProblem(refused, 409, "outcome-unknown", "unknown")
		other.WantProblem(other.Do(answered), 409, "outcome-unknown", "unknown")
		id := one.IDOf(refused)
		for _, s := range []*rig.Site{one, other} {
			for len(s.Keys("unknown")) == 0 { // its Traefik tells it within a second
				time.Sleep(10 * time.Millisecond)
			}
			if list := s.Keys("unknown"); len(list) != 1 || list[0].ID != id || list[0].Path != "/unknown" {
				t.Errorf("unknown are %+v", list)
			}
		}
		if a, b := one.Key(id), other.Key(id); a != b {
			t.Errorf("one says %+v, and the other %+v", a, b)
		}

		begin := time.Now()
		other.Settle("PUT", id, `{"status":201,"body":"paid"}`)
		one.Settle("DELETE", one.Find(freed).ID, "")
		for one.Do(answered).Status != 201 { // one that never knows ends in the test's time-out, as below
			time.Sleep(10 * time.Millisecond)
		}
		again := other.Do(freed)
		for again.Header.Get("Decision") == "replayed" && string(again.Body) == string(first.Body) {
			time.Sleep(10 * time.Millisecond)
			again = other.Do(freed)
		}
		t.Logf("both know after %s", time.Since(begin))
		other.Want(again, 201, "first")
		for _, s := range []*rig.Site{one, other} {
			s.WantReplay(again, s.Do(freed))
			a := s.Do(answered)
			s.Want(a, 201, "replayed")
			if string(a.Body) != "paid" {
				t.Errorf("a duplicate got %q", a.Body)
			}
			if list := s.Keys(""); len(list) != 0 {
				t.Errorf("still to be looked at: %+v", list)
			}
		}
		one.Calls(3)
	})
}

// TestOfTwoOperatorsOneSettles has them race, each at a Traefik.
func TestOfTwoOperatorsOneSettles(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		front := rig.NewFront(t, server.Addr)
		one, other := two(t, host, server.Addr, front.Addr, rig.NewBackend(t, ends), nil)
		for range 10 {
			c := rig.Post("/unknown", rig.UnusedKey())
			one.Send(c)
			id := one.IDOf(one.Do(c))
			one.Key(id) // now the other knows it, too
			calls := one.Backend.Calls.Load()
			answers := make(chan rig.Answer, 2)
			go func() { answers <- one.Send(rig.AsBoss("PUT", id, `{"status":201,"body":"paid"}`)) }()
			go func() { answers <- other.Send(rig.AsBoss("DELETE", id, "")) }()
			done := 0
			for range 2 {
				a := <-answers
				if a.Status == 200 {
					done++
				} else {
					one.WantKeyProblem(a, 409, "key-changed")
				}
			}
			if k := one.Key(id); done == 0 || (done == 2 && k.State != "free") { // freed after it was answered
				t.Errorf("%d operators have settled it, and it is %+v", done, k)
			}
			one.Calls(calls)
		}
	})
}
