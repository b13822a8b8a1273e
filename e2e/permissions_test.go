package e2e

// Redis that forbids some of the commands that keys need, to the user or to all.

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
)

// asUser serves a site with a user of server who may do all but what rules forbid. Sites with different addresses share no
// memory, as two Traefiks do.
func asUser(t *testing.T, host hosts.Host, server *redistest.Server, addr string, b *backend, rules ...string) *site {
	t.Helper()
	server.Do(append([]string{"ACL", "SETUSER", "shop", "on", ">secret", "~*", "&*", "+@all"}, rules...)...)
	return siteOf(t, host.Serve(t, b.URL, hosts.Settings{"statusHeader": "Decision", "localCacheBytes": 0, "scope": []any{"Authorization"}, "lease": "10m", "stats": open["stats"],
		"redis": map[string]any{"endpoints": addr, "username": "shop", "password": "secret", "keyPrefix": "p", "dialTimeout": "20s", "readTimeout": "20s", "writeTimeout": "20s"}}), b)
}

// lines counts those of the log that have all these words.
func (s *site) lines(words ...string) int {
	n := 0
	for line := range strings.Lines(s.Logs()) {
		has := true
		for _, word := range words {
			has = has && strings.Contains(line, word)
		}
		if has {
			n++
		}
	}
	return n
}

// wantLine waits for a line of the log that has all these words, and checks that it is the only one.
func (s *site) wantLine(words ...string) {
	s.t.Helper()
	for s.lines(words...) == 0 { // one that never comes ends in the test's time-out
		time.Sleep(10 * time.Millisecond)
	}
	if n := s.lines(words...); n != 1 {
		s.t.Errorf("%d lines with %q, want one", n, words)
	}
}

func TestScriptsAreSentWholeWithoutEVALSHA(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		for name, start := range map[string]func(t *testing.T) (*redistest.Server, []string){
			"ACL": func(t *testing.T) (*redistest.Server, []string) { return redistest.Start(t), []string{"-evalsha"} },
			"renamed": func(t *testing.T) (*redistest.Server, []string) {
				return redistest.Start(t, "--rename-command", "EVALSHA", ""), nil
			},
		} {
			t.Run(name, func(t *testing.T) {
				server, rules := start(t)
				b := newBackend(t, created)
				front := newFront(t, server.Addr)
				one, other := asUser(t, host, server, server.Addr, b, rules...), asUser(t, host, server, front.addr, b, rules...)
				for range 20 {
					key := unusedKey()
					first := one.do(post("/", key))
					one.want(first, 201, "first")
					other.wantReplay(first, other.do(post("/", key)))
				}
				one.calls(20)
				if !one.counted(func(figures) bool { return true }).Store.Healthy {
					t.Error("Redis does what keys need, and the statistics do not say so")
				}
				for _, addr := range []string{server.Addr, front.addr} {
					one.wantLine("Redis forbids EVALSHA", addr)
				}
				refused := infoField(server, "errorstats", "errorstat_NOPERM") + infoField(server, "errorstats", "errorstat_ERR")
				one.want(one.do(post("/", unusedKey())), 201, "first")
				if again := infoField(server, "errorstats", "errorstat_NOPERM") + infoField(server, "errorstats", "errorstat_ERR"); again != refused {
					t.Errorf("what is forbidden is sent all the same: %s, and then %s", refused, again)
				}
			})
		}
	})
}

// TestForbiddenCommandsAreNamed has one command forbidden that keys need, which one request alone may not need.
func TestForbiddenCommandsAreNamed(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		for _, rules := range []string{"-eval", "-evalsha -eval", "-get", "-set", "-del", "-pttl", "-pexpire", "-@scripting"} {
			t.Run(rules, func(t *testing.T) {
				server := redistest.Start(t)
				s := asUser(t, host, server, server.Addr, newBackend(t, created), strings.Fields(rules)...)
				s.do(post("/", "k"))
				command := rules[strings.LastIndex(rules, "-")+1:]
				if command == "@scripting" {
					command = "eval"
				}
				f := s.counted(func(f figures) bool { return !f.Store.Healthy })
				if !strings.Contains(strings.ToLower(f.Store.Error), command) {
					t.Errorf("the statistics say %q, want %s named", f.Store.Error, command)
				}
				s.do(post("/", "another"))
				s.wantLine("Redis forbids a command", server.Addr)
				server.Do("ACL", "SETUSER", "shop", "+@all")
				s.counted(func(f figures) bool { return f.Store.Healthy })
				s.want(s.do(post("/", "after")), 201, "first")
			})
		}
		for _, command := range []string{"EVAL", "DEL", "PTTL"} {
			t.Run("renamed "+command, func(t *testing.T) {
				server := redistest.Start(t, "--rename-command", command, "")
				s := overRedis(t, host, map[string]any{"endpoints": server.Addr})
				s.send(post("/", "k"))
				for s.lines("Redis forbids a command", server.Addr, command) == 0 { // a line that never comes ends in the test's time-out
					s.send(post("/", "k"))
				}
			})
		}
	})
}

// TestTheDocumentedUserMayDoAllThatIsNeeded takes the rules for the user of docs/redis.md.
func TestTheDocumentedUserMayDoAllThatIsNeeded(t *testing.T) {
	_, rules, _ := strings.Cut(readRoot(t, "docs/redis.md"), "ACL SETUSER traefik on >password ")
	rules, _, _ = strings.Cut(rules, "\n")
	server := redistest.Start(t)
	server.Do(append([]string{"ACL", "SETUSER", "traefik", "on", ">password"}, strings.Fields(rules)...)...)
	b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/free" {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		created(w, r)
	})
	s := siteOf(t, hosts.Compiled.Serve(t, b.URL, hosts.Settings{"statusHeader": "Decision", "localCacheBytes": 0, "stats": open["stats"],
		"redis": map[string]any{"endpoints": server.Addr, "username": "traefik", "password": "password"}}), b)
	s.wantRun("k")
	s.want(s.do(post("/free", "free")), 503, "released")
	f := s.counted(func(f figures) bool { return f.Memory.Bytes > 0 })
	if !f.Store.Healthy {
		t.Errorf("the store is not well: %s", f.Store.Error)
	}
	if n := server.Do("ACL", "LOG"); n != "" {
		t.Errorf("a command was refused: %s", n)
	}
}
