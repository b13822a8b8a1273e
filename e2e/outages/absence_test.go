package outages

// What a middleware knows when it comes back after a while, or after its settings have changed.

import (
	"strings"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// absence is longer than what is shared outlives its last user.
const absence = 12 * time.Second

// onEveryHostThatReloads runs test in parallel on every host, with a site before a backend that is slowFirst.
func onEveryHostThatReloads(t *testing.T, test func(t *testing.T, s *rig.Changeable, arrived chan struct{}, proceed chan struct{})) {
	t.Helper()
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		t.Parallel()
		arrived, proceed := make(chan struct{}, 1), make(chan struct{})
		test(t, rig.NewChangeable(t, host, slowFirst(arrived, proceed)), arrived, proceed)
	})
}

// TestAMiddlewareComesBack finds a finished key and one that runs, with keys in memory and with a Redis that is away.
func TestAMiddlewareComesBack(t *testing.T) {
	for _, kind := range []string{"memory", "a Redis that is away"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			onEveryHostThatReloads(t, func(t *testing.T, s *rig.Changeable, arrived, proceed chan struct{}) {
				degraded := ""
				settings := hosts.Settings{"statusHeader": "Decision", "inFlight": "reject"}
				if kind != "memory" {
					degraded = ";degraded"
					server := redistest.Start(t)
					server.Kill()
					settings["redis"] = map[string]any{"endpoints": server.Addr}
				}
				s.Put(settings)
				finished := s.Do(rig.Post("/", "finished"))
				s.Want(finished, 201, "first"+degraded)
				first := make(chan rig.Answer, 1)
				go func() { first <- s.Send(rig.Post("/", "k")) }()
				<-arrived
				s.Remove()
				time.Sleep(absence)
				s.Put(settings)
				s.Want(s.Do(rig.Post("/", "notice")), 201, "first"+degraded)
				s.WantReplayAs(finished, s.Do(rig.Post("/", "finished")), "replayed"+degraded)
				s.WantProblem(s.Do(rig.Post("/", "k")), 409, "in-flight", "conflict"+degraded)
				close(proceed)
				s.WantReplayAs(<-first, s.Do(rig.Post("/", "k")), "replayed"+degraded)
				s.Calls(3)
			})
		})
	}
}

// TestAReloadDuringAnOutage changes one setting: what was answered before and during the outage is answered the same, what
// runs is known, Redis is told of all when it can be, and what is replaced says nothing that is not so.
func TestAReloadDuringAnOutage(t *testing.T) {
	with := func(settings hosts.Settings, key string, value any) hosts.Settings {
		changed := hosts.Settings{}
		for k, v := range settings {
			changed[k] = v
		}
		redis := map[string]any{}
		for k, v := range settings["redis"].(map[string]any) {
			redis[k] = v
		}
		changed["redis"] = redis
		if key == "localCacheBytes" {
			changed[key] = value
		} else {
			redis[key] = value
		}
		return changed
	}
	changes := []struct {
		key         string
		wrong, then any  // the setting before and after
		mends       bool // the change ends the outage
	}{
		{"password", "wrong", "right", true},
		{"readTimeout", "900ms", "1100ms", false},
		{"localCacheBytes", 1 << 20, 0, false},
		{"poolSize", 3, 4, false},
	}
	for _, change := range changes {
		t.Run(change.key, func(t *testing.T) {
			t.Parallel()
			onEveryHostThatReloads(t, func(t *testing.T, s *rig.Changeable, arrived, proceed chan struct{}) {
				server := redistest.Start(t, "--requirepass", "right")
				server.Password = "right"
				settings := with(hosts.Settings{"statusHeader": "Decision", "inFlight": "reject",
					"redis": map[string]any{"endpoints": server.Addr, "password": "right", "readTimeout": "1s"}}, change.key, change.wrong)
				s.Put(settings)
				replays := func(key string, first rig.Answer) {
					t.Helper()
					again := s.Do(rig.Post("/", key))
					if again.Status != 201 || string(again.Body) != string(first.Body) {
						t.Errorf("%s is answered %d %q, want %q", key, again.Status, again.Body, first.Body)
					}
				}
				before := s.Do(rig.Post("/", "before"))
				if !change.mends {
					server.Pause()
				}
				during := s.Do(rig.Post("/", "during"))
				s.Want(during, 201, "first;degraded")
				first := make(chan rig.Answer, 1)
				go func() { first <- s.Send(rig.Post("/", "k")) }()
				<-arrived
				s.Put(with(settings, change.key, change.then))
				replays("before", before)
				replays("during", during)
				if a := s.Do(rig.Post("/", "k")); a.Status != 409 {
					t.Errorf("a duplicate of what runs got %d %q", a.Status, a.Header.Get("Decision"))
				}
				server.Resume()
				// Redis is told what was answered meanwhile, and that a request runs.
				rig.Until(t, "Redis has the answers", rig.Never, func() bool { return redisKeys(server, "idem1D") >= 2 })
				rig.Until(t, "Redis has the lease", rig.Never, func() bool { return redisKeys(server, "idem1R") == 1 })
				if change.mends {
					for s.Lines("answers of the outage were written to Redis", server.Addr) == 0 { // the last that is said of it
						time.Sleep(10 * time.Millisecond)
					}
					said := len(s.Logs())
					time.Sleep(absence) // what was replaced is closed by now
					for line := range strings.Lines(s.Logs()[said:]) {
						if strings.Contains(line, server.Addr) && strings.Contains(line, "redis=") {
							t.Errorf("when all is well, the log says %s", line)
						}
					}
				}
				close(proceed)
				a := <-first
				replays("before", before)
				replays("during", during)
				replays("k", a)
				if n := s.Backend.ByKey["before"] + s.Backend.ByKey["during"] + s.Backend.ByKey["k"]; n != 3 {
					t.Errorf("3 keys ran %d times", n)
				}
			})
		})
	}
}
