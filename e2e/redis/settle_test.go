package redis

// Keys that are settled at one Traefik, and asked for at another one with a memory of its own.

import (
	"fmt"
	"io"
	"net/http"
	"strings"
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
			"redis": patient(map[string]any{"endpoints": addr, "keyPrefix": "p"})}
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
		a, b2 := one.Key(id), other.Key(id)
		b2.Until = a.Until // which is reckoned from the time that is left
		if a != b2 {
			t.Errorf("one says %+v, and the other %+v", a, b2)
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

// TestWhatNeverExpiresIsFreed has a record that somebody has made persistent.
func TestWhatNeverExpiresIsFreed(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		s, _ := two(t, host, server.Addr, server.Addr, rig.NewBackend(t, ends), nil)
		c := rig.Post("/unknown", rig.UnusedKey())
		s.Send(c)
		id := s.IDOf(s.Do(c))
		server.Do("PERSIST", server.Do("KEYS", "p:req:"+id+"*"))
		s.Settle("DELETE", id, "")
		s.Send(c)
		s.Calls(2)
	})
}

// TestNothingIsLostOrMadeUpWhileRedisIsAway has it killed between an unknown outcome and its settling, and another outcome that is
// unknown meanwhile.
func TestNothingIsLostOrMadeUpWhileRedisIsAway(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
		front := rig.NewFront(t, server.Addr)
		one, other := two(t, host, server.Addr, front.Addr, rig.NewBackend(t, ends), nil)
		before, meanwhile := rig.Post("/unknown", rig.UnusedKey()), rig.Post("/unknown", rig.UnusedKey())
		one.Send(before)
		id := one.IDOf(one.Do(before))
		one.WantProblem(other.Do(before), 409, "outcome-unknown", "unknown") // which it remembers
		version := one.Key(id).Version

		server.Kill()
		one.Send(meanwhile)
		later := one.IDOf(one.Do(meanwhile))
		for _, s := range []*rig.Site{one, other} {
			for _, c := range []rig.Call{rig.Get("/_idem/keys/" + id), rig.Get("/_idem/keys?state=unknown"), rig.AsBoss("PUT", id, `{"status":201}`), rig.AsBoss("DELETE", later, "")} {
				s.WantKeyProblem(s.Do(c), 503, "store-unavailable")
			}
			s.WantProblem(s.Do(before), 409, "outcome-unknown", "unknown;degraded")
		}
		server.Restart()

		for _, s := range []*rig.Site{one, other} {
			s.AwaitRedis()
			for len(s.Keys("unknown")) < 2 { // what is lost ends in the test's time-out
				time.Sleep(10 * time.Millisecond)
			}
			if k := s.Key(id); k.State != "unknown" || k.Version != version {
				t.Errorf("before the outage: %+v", k)
			}
			if k := s.Key(later); k.State != "unknown" {
				t.Errorf("during the outage: %+v", k)
			}
		}
		one.Settle("PUT", id, `{"status":201,"body":"paid before"}`)
		other.Settle("PUT", later, `{"status":201,"body":"paid meanwhile"}`) // which one has in its own memory
		for _, s := range []*rig.Site{one, other} {
			for c, want := range map[*rig.Call]string{&before: "paid before", &meanwhile: "paid meanwhile"} {
				a := s.Do(*c)
				for a.Status != 201 { // as above
					time.Sleep(10 * time.Millisecond)
					a = s.Do(*c)
				}
				if string(a.Body) != want || a.Header.Get("Decision") != "replayed" {
					t.Errorf("%d %v %q, want %q", a.Status, a.Header, a.Body, want)
				}
			}
		}
		one.NoneTwice()
	})
}

// TestKeysAreSettledInACluster where each key may be at another node than the notes.
func TestKeysAreSettledInACluster(t *testing.T) {
	cluster := redistest.StartMasters(t, 3)
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		s := rig.Serve(t, host, ends, hosts.Settings{"statusHeader": "Decision", "scope": "Authorization", "lease": "10m", "stats": rig.AdminStats["stats"],
			"redis": patient(map[string]any{"cluster": true, "endpoints": cluster.Endpoints(), "keyPrefix": "c-" + host.String()})})
		ids := map[string]rig.Call{}
		for range 20 {
			c := rig.Post("/unknown", rig.UnusedKey())
			s.Send(c)
			ids[s.IDOf(s.Do(c))] = c
		}
		settle := func(method, id, body, state string) {
			a := s.Do(rig.AsBoss(method, id, body))
			for a.Status == 503 { // on a busy machine, nodes lose each other
				time.Sleep(10 * time.Millisecond)
				a = s.Do(rig.AsBoss(method, id, body))
			}
			if k := s.Key(id); k.State != state {
				t.Errorf("%s: %d %s, and then it is %+v", method, a.Status, a.Body, k)
			}
		}
		list := s.Keys("unknown")
		for len(list) < len(ids) { // what is lost ends in the test's time-out
			time.Sleep(10 * time.Millisecond)
			list = s.Keys("unknown")
		}
		for i, k := range list {
			c, known := ids[k.ID]
			if !known || k.State != "unknown" {
				t.Errorf("listed: %+v", k)
			}
			if i%2 == 0 {
				settle("DELETE", k.ID, "", "free")
				continue
			}
			settle("PUT", k.ID, `{"status":201,"body":"paid"}`, "done")
			if a := s.Do(c); a.Status != 201 || string(a.Body) != "paid" {
				t.Errorf("a duplicate got %d %s", a.Status, a.Body)
			}
		}
		for len(s.Keys("")) > 0 {
			time.Sleep(10 * time.Millisecond)
		}
		s.Calls(20)
	})
}

// TestKeysAreLookedUpWhileRedisRefusesToWrite because it is full.
func TestKeysAreLookedUpWhileRedisRefusesToWrite(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		one, other := two(t, host, server.Addr, rig.NewFront(t, server.Addr).Addr, rig.NewBackend(t, ends), nil)
		c := rig.Post("/unknown", rig.UnusedKey())
		one.Send(c)
		id := one.IDOf(one.Do(c))
		version := one.Key(id).Version // now Redis has the note
		server.Do("CONFIG", "SET", "maxmemory", "1")
		for _, s := range []*rig.Site{one, other} {
			if k := s.Key(id); k.State != "unknown" || k.Version != version {
				t.Errorf("it is %+v", k)
			}
			if list := s.Keys(""); len(list) != 1 || list[0].ID != id {
				t.Errorf("listed are %+v", list)
			}
			s.WantKeyProblem(s.Do(rig.AsBoss("PUT", id, `{"status":201}`)), 503, "store-unavailable")
			if k := s.Find(c); k.State != "unknown" {
				t.Errorf("found is %+v", k)
			}
		}
		server.Do("CONFIG", "SET", "maxmemory", "0")
		one.AwaitRedis()
		one.Settle("DELETE", id, "")
	})
}

// TestALostNodeHidesOnlyItsKeys from a list.
func TestALostNodeHidesOnlyItsKeys(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		cluster := redistest.StartMasters(t, 3)
		for _, node := range cluster.Masters {
			node.Do("CONFIG", "SET", "cluster-require-full-coverage", "no")
		}
		s := rig.Serve(t, host, ends, hosts.Settings{"statusHeader": "Decision", "lease": "10m", "stats": rig.AdminStats["stats"],
			"redis": patient(map[string]any{"cluster": true, "endpoints": cluster.Endpoints(), "keyPrefix": "p"})})
		const all = 60 // so many that each node has some
		for range all {
			s.Send(rig.Post("/unknown", rig.UnusedKey()))
		}
		for len(s.Keys("unknown")) < all { // what is lost ends in the test's time-out, as below
			time.Sleep(10 * time.Millisecond)
		}
		lost := cluster.Masters[0]
		if cluster.Owner("p:keys") == lost { // which has the notes
			lost = cluster.Masters[1]
		}
		lost.Kill()
		states := map[string]int{}
		for states["unreachable"] == 0 {
			time.Sleep(10 * time.Millisecond)
			states = map[string]int{}
			for _, k := range s.Keys("unknown") {
				states[k.State]++
				if k.Path != "/unknown" || (k.State == "unreachable" && k.Version+k.Since+k.Until != "") {
					t.Errorf("listed is %+v", k)
				}
			}
		}
		if states["unknown"] == 0 || states["unknown"]+states["unreachable"] != all {
			t.Errorf("listed are %v", states)
		}
	})
}

// TestALeaseIsTakenFromATraefikThatIsNotHeardOf cuts one off from Redis while it runs a request. What it sends late, and the end of its
// request, change nothing for the next owner.
func TestALeaseIsTakenFromATraefikThatIsNotHeardOf(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		t.Parallel() // it waits twice for a Traefik to be heard of
		server := redistest.Start(t)
		front := rig.NewFront(t, server.Addr)
		arrived, proceed := make(chan struct{}), make(chan struct{})
		b := rig.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(http.StatusCreated)
			_ = http.NewResponseController(w).Flush() // no time-out of Traefik's ends it from here on
			arrived <- struct{}{}
			<-proceed
			_, _ = fmt.Fprintf(w, "payment %d", rig.Unique.Add(1))
		})
		one, other := two(t, host, server.Addr, front.Addr, b, hosts.Settings{"inFlight": "reject"})
		c := rig.Post("/slow", rig.UnusedKey())
		lost, next := make(chan rig.Answer, 1), make(chan rig.Answer, 1)
		go func() { lost <- other.Send(c) }()
		<-arrived
		id := one.IDOf(one.Do(c))
		for one.Key(id).Traefik == "" { // until it has been heard of
			time.Sleep(10 * time.Millisecond)
		}
		if k := one.WantKeyProblem(one.Do(rig.AsBoss("DELETE", id+"?force=true", "")), 409, "key-running"); k.State != "running" || k.Traefik == "" {
			t.Errorf("it runs, and is %+v", k)
		}
		front.Gate.Lock()
		one.WantKeyProblem(one.Do(rig.AsBoss("DELETE", id, "")), 409, "key-running")
		if k := one.Settle("DELETE", id+"?force=true", ""); k.State != "free" {
			t.Errorf("it was taken, and is %+v", k)
		}
		go func() { next <- one.Send(c) }()
		<-arrived
		front.Gate.Unlock()
		proceed <- struct{}{}
		proceed <- struct{}{}
		first, second := <-next, <-lost
		one.Want(first, 201, "first")
		other.Want(second, 201, "first")
		for _, s := range []*rig.Site{one, other} {
			s.WantReplay(first, s.Do(c))
		}
		other.WantLine("a lease was lost", "key="+id)
		one.Calls(2)
	})
}

// TestWhatOneTraefikAloneKnowsIsShown while Redis takes no records: of a request that runs, of an unknown outcome, and of an answer.
func TestWhatOneTraefikAloneKnowsIsShown(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for name, commands := range map[string][2]string{
			"full":            {"CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"},
			"SET not allowed": {"ACL SETUSER default -set", "ACL SETUSER default +set"},
		} {
			t.Run(name, func(t *testing.T) {
				server := redistest.Start(t)
				arrived, proceed := make(chan struct{}), make(chan struct{})
				b := rig.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/slow" {
						arrived <- struct{}{}
						<-proceed
					}
					ends(w, r)
				})
				s, _ := two(t, host, server.Addr, server.Addr, b, hosts.Settings{"inFlight": "reject"})
				slow, unknown, done := rig.Post("/slow", rig.UnusedKey()), rig.Post("/unknown", rig.UnusedKey()), rig.Post("/done", rig.UnusedKey())
				server.Do(strings.Fields(commands[0])...)
				answered := make(chan rig.Answer, 1)
				go func() { answered <- s.Send(slow) }()
				<-arrived
				s.Send(unknown)
				s.Want(s.Do(done), 201, "first;degraded")
				id := s.IDOf(s.Do(unknown))
				if s.IDOf(s.Do(slow)) != s.Find(slow).ID {
					t.Error("a running key is found under another id")
				}
				for state, c := range map[string]rig.Call{"running": slow, "unknown": unknown, "done": done} {
					found := s.Find(c)
					if k := s.Key(found.ID); found.State != state || k.State != state {
						t.Errorf("%s is found as %+v, and by its id as %+v", state, found, k)
					}
					if state == "running" {
						s.WantKeyProblem(s.Do(rig.AsBoss("DELETE", found.ID+"?force=true", "")), 409, "key-running")
						continue
					}
					s.WantKeyProblem(s.Do(rig.AsBoss("DELETE", found.ID, "")), 503, "store-unavailable")
				}
				s.WantKeyProblem(s.Do(rig.AsBoss("PUT", id, `{"status":201}`)), 503, "store-unavailable")
				if list := s.Keys("unknown"); len(list) != 1 || list[0].ID != id {
					t.Errorf("unknown are %+v", list)
				}
				proceed <- struct{}{}
				s.Want(<-answered, 201, "first;degraded")
				if k := s.Find(slow); k.State != "done" {
					t.Errorf("after its end it is %+v", k)
				}
				server.Do(strings.Fields(commands[1])...)
				s.AwaitRedis()
				a := s.Do(rig.AsBoss("DELETE", id, ""))
				for a.Status == 503 { // what never reaches Redis ends in the test's time-out
					time.Sleep(10 * time.Millisecond)
					a = s.Do(rig.AsBoss("DELETE", id, ""))
				}
				if k := s.Key(id); a.Status != 200 || k.State != "free" {
					t.Errorf("%d %s, and then it is %+v", a.Status, a.Body, k)
				}
			})
		}
	})
}
