package redis

// Redis that forbids some of the commands that keys need, to the user or to all.

import (
	"net/http"
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// asUser serves a site with a user of server who may do all but what rules forbid. Sites with different addresses share no
// memory, as two Traefiks do.
func asUser(t *testing.T, host hosts.Host, server *redistest.Server, addr string, b *rig.Backend, rules ...string) *rig.Site {
	t.Helper()
	server.Do(append([]string{"ACL", "SETUSER", "shop", "on", ">secret", "~*", "&*", "+@all"}, rules...)...)
	return rig.SiteOf(t, host.Serve(t, b.URL, hosts.Settings{"statusHeader": "Decision", "localCacheBytes": 0, "scope": []any{"Authorization"}, "lease": "10m", "stats": rig.OpenStats["stats"],
		"redis": map[string]any{"endpoints": addr, "username": "shop", "password": "secret", "keyPrefix": "p", "dialTimeout": "20s", "readTimeout": "20s", "writeTimeout": "20s"}}), b)
}

func TestScriptsAreSentWholeWithoutEVALSHA(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for name, start := range map[string]func(t *testing.T) (*redistest.Server, []string){
			"ACL": func(t *testing.T) (*redistest.Server, []string) { return redistest.Start(t), []string{"-evalsha"} },
			"renamed": func(t *testing.T) (*redistest.Server, []string) {
				return redistest.Start(t, "--rename-command", "EVALSHA", ""), nil
			},
		} {
			t.Run(name, func(t *testing.T) {
				server, rules := start(t)
				b := rig.NewBackend(t, rig.Created)
				front := rig.NewFront(t, server.Addr)
				one, other := asUser(t, host, server, server.Addr, b, rules...), asUser(t, host, server, front.Addr, b, rules...)
				for range 20 {
					key := rig.UnusedKey()
					first := one.Do(rig.Post("/", key))
					one.Want(first, 201, "first")
					other.WantReplay(first, other.Do(rig.Post("/", key)))
				}
				one.Calls(20)
				if !one.Counted(func(rig.Figures) bool { return true }).Store.Healthy {
					t.Error("Redis does what keys need, and the statistics do not say so")
				}
				for _, addr := range []string{server.Addr, front.Addr} {
					one.WantLine("Redis forbids EVALSHA", addr)
				}
				refused := rig.InfoField(server, "errorstats", "errorstat_NOPERM") + rig.InfoField(server, "errorstats", "errorstat_ERR")
				one.Want(one.Do(rig.Post("/", rig.UnusedKey())), 201, "first")
				if again := rig.InfoField(server, "errorstats", "errorstat_NOPERM") + rig.InfoField(server, "errorstats", "errorstat_ERR"); again != refused {
					t.Errorf("what is forbidden is sent all the same: %s, and then %s", refused, again)
				}
			})
		}
	})
}

// TestForbiddenCommandsAreNamed has one command forbidden that keys need, which one request alone may not need.
func TestForbiddenCommandsAreNamed(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for _, rules := range []string{"-eval", "-evalsha -eval", "-get", "-set", "-del", "-pttl", "-pexpire", "-@scripting"} {
			t.Run(rules, func(t *testing.T) {
				server := redistest.Start(t)
				s := asUser(t, host, server, server.Addr, rig.NewBackend(t, rig.Created), strings.Fields(rules)...)
				s.Do(rig.Post("/", "k"))
				command := rules[strings.LastIndex(rules, "-")+1:]
				if command == "@scripting" {
					command = "eval"
				}
				f := s.Counted(func(f rig.Figures) bool { return !f.Store.Healthy })
				if !strings.Contains(strings.ToLower(f.Store.Error), command) {
					t.Errorf("the statistics say %q, want %s named", f.Store.Error, command)
				}
				s.Do(rig.Post("/", "another"))
				s.WantLine("Redis forbids a command", server.Addr)
				server.Do("ACL", "SETUSER", "shop", "+@all")
				s.Counted(func(f rig.Figures) bool { return f.Store.Healthy })
				s.Want(s.Do(rig.Post("/", "after")), 201, "first")
			})
		}
		for _, command := range []string{"EVAL", "DEL", "PTTL"} {
			t.Run("renamed "+command, func(t *testing.T) {
				server := redistest.Start(t, "--rename-command", command, "")
				s := overRedis(t, host, map[string]any{"endpoints": server.Addr})
				s.Send(rig.Post("/", "k"))
				for s.Lines("Redis forbids a command", server.Addr, command) == 0 { // a line that never comes ends in the test's time-out
					s.Send(rig.Post("/", "k"))
				}
			})
		}
	})
}

// TestTheDocumentedUserMayDoAllThatIsNeeded takes the rules for the user of docs/redis.md.
func TestTheDocumentedUserMayDoAllThatIsNeeded(t *testing.T) {
	_, rules, _ := strings.Cut(rig.ReadRoot(t, "docs/redis.md"), "ACL SETUSER traefik on >password ")
	rules, _, _ = strings.Cut(rules, "\n")
	server := redistest.Start(t)
	server.Do(append([]string{"ACL", "SETUSER", "traefik", "on", ">password"}, strings.Fields(rules)...)...)
	b := rig.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/free" {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		rig.Created(w, r)
	})
	s := rig.SiteOf(t, hosts.Compiled.Serve(t, b.URL, hosts.Settings{"statusHeader": "Decision", "localCacheBytes": 0, "stats": rig.OpenStats["stats"],
		"redis": map[string]any{"endpoints": server.Addr, "username": "traefik", "password": "password"}}), b)
	s.WantRun("k")
	s.Want(s.Do(rig.Post("/free", "free")), 503, "released")
	f := s.Counted(func(f rig.Figures) bool { return f.Memory.Bytes > 0 })
	if !f.Store.Healthy {
		t.Errorf("the store is not well: %s", f.Store.Error)
	}
	if n := server.Do("ACL", "LOG"); n != "" {
		t.Errorf("a command was refused: %s", n)
	}
}
