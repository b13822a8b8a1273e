package redis

// Redis that forbids some of the commands that keys need, to the user or to all.

import (
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

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
		"redis": patient(map[string]any{"endpoints": addr, "username": "shop", "password": "secret", "keyPrefix": "p"})}), b)
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
				rig.AwaitProbes(server, 2) // they try EVALSHA, too
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

// TestOnlyWhatNeedsACommandDoesWithoutIt has commands forbidden that keys do not need: one line says what is missing for it.
func TestOnlyWhatNeedsACommandDoesWithoutIt(t *testing.T) {
	const memory, statistics = "the memory of keys cannot be measured", "Redis forbids a command that only statistics and notes about keys need"
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for _, c := range []struct{ rules, line, command string }{
			{"-scan", memory, "scan"},
			{"-memory", memory, "memory"},
			{"-hget", statistics, ""}, // a script needs it, whose error need not name it
			{"-hgetall", statistics, ""},
			{"-hget -hset -hsetnx -hincrby -hdel -hgetall -expire", statistics, ""},
			{"-client -info -config -role -hello -command -wait -cluster -select -keys -flushall -script -multi -ping", "", ""},
		} {
			t.Run(c.rules, func(t *testing.T) {
				server := redistest.Start(t)
				s := asUser(t, host, server, server.Addr, rig.NewBackend(t, rig.Created), strings.Fields(c.rules)...)
				s.WantRun("k")
				f := s.Counted(func(f rig.Figures) bool {
					return f.Totals["duplicates"] > 0 && (f.Store.Unshared != "") == (c.line == statistics)
				})
				if healthy := s.Metric("traefik_idem_store_healthy").GetGauge().GetValue(); healthy != 1 || !f.Store.Healthy || f.Store.Error != "" {
					t.Errorf("healthy: %v, store %+v", healthy, f.Store)
				}
				page := string(s.Do(rig.Get("/_idem/")).Body)
				if strings.Contains(page, "Redis cannot be used") || strings.Contains(page, "statistics are not shared") != (c.line == statistics) {
					t.Errorf("the page\n%s", page)
				}
				if strings.HasPrefix(c.rules, "-hget ") {
					a := s.Do(rig.Get("/_idem/keys"))
					s.WantKeyProblem(a, 503, "store-unavailable")
					if said := string(a.Body); !strings.Contains(said, "Redis does not give the notes about keys: a command that only statistics and notes about keys need is forbidden") {
						t.Errorf("the list is %s", said)
					}
				}
				if measured := f.Memory.MeasuredAt != ""; measured != (c.line == "") {
					t.Errorf("memory: %+v", f.Memory)
				}
				s.WantRun("after")
				for range 3 {
					s.Stats()
				}
				time.Sleep(1200 * time.Millisecond)    // statistics and notes are sent again
				about := `redis="` + server.Addr + `"` // in one process, an earlier test's Redis may be missed at the same time
				for line, of := range map[string]string{memory: "", "Redis ": about} {
					want := 0
					if strings.HasPrefix(c.line, line) {
						want = 1
					}
					if n := s.Lines("msg=\""+line, of); n != want {
						t.Errorf("%d lines that begin with %q, want %d\n%s", n, line, want, s.Logs())
					}
				}
				if c.line == "" {
					if refused := server.Do("ACL", "LOG"); refused != "" {
						t.Errorf("what nobody needs was sent: %s", refused)
					}
					return
				}
				s.WantLine(c.line, c.command)
				server.Do("ACL", "SETUSER", "shop", "+@all")
				s.Counted(func(f rig.Figures) bool { return f.Store.Unshared == "" })
				s.Keys("")
			})
		}
	})
}

// TestAPrefixThatIsForbidden to the user of two middlewares harms neither the other one, whichever is built first, nor Redis.
func TestAPrefixThatIsForbidden(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for _, prefixes := range [][]string{{"idem", "shop"}, {"shop", "idem"}} {
			server := redistest.Start(t)
			server.Do("ACL", "SETUSER", "shop", "on", ">secret", "~idem:*", "&*", "+@all")
			b := rig.NewBackend(t, rig.Created)
			sites := map[string]*rig.Site{}
			for _, prefix := range prefixes {
				sites[prefix] = rig.SiteOf(t, host.Serve(t, b.URL, hosts.Settings{"statusHeader": "Decision", "lease": "10m", "stats": rig.OpenStats["stats"],
					"redis": patient(map[string]any{"endpoints": server.Addr, "username": "shop", "password": "secret", "keyPrefix": prefix})}), b)
			}
			allowed, forbidden := sites["idem"], sites["shop"]
			first := forbidden.Do(rig.Post("/", "k"))
			forbidden.Want(first, 201, "first;degraded")
			forbidden.Counted(func(f rig.Figures) bool { return !f.Store.Healthy })
			forbidden.WantLine("Redis forbids a command that keys need", server.Addr)
			allowed.WantRun("k")
			if !allowed.Stats().Store.Healthy {
				t.Error("the prefix that is allowed is not well")
			}
			begin := time.Now()
			before, _ := strconv.Atoi(rig.InfoField(server, "stats", "total_commands_processed"))
			time.Sleep(time.Second)
			after, _ := strconv.Atoi(rig.InfoField(server, "stats", "total_commands_processed"))
			if most := 200 * (1 + int(time.Since(begin)/time.Second)); after-before > most {
				t.Errorf("%d commands in %s, with nothing to do", after-before, time.Since(begin))
			}
			server.Do("ACL", "SETUSER", "shop", "~shop:*")
			forbidden.Counted(func(f rig.Figures) bool { return f.Store.Healthy })
			forbidden.AwaitLog("answers of the outage were written")
			forbidden.WantReplay(first, forbidden.Do(rig.Post("/", "k")))
		}
	})
}

// TestWAITIsForbidden has claims wait for replicas, by a user who may not.
func TestWAITIsForbidden(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		master, _ := pair(t)
		master.Do("ACL", "SETUSER", "shop", "on", ">secret", "~*", "+@all", "-wait")
		on := func(onStoreError, dialTimeout string) *rig.Site {
			return rig.Serve(t, host, rig.Created, hosts.Settings{"statusHeader": "Decision", "onStoreError": onStoreError, "localCacheBytes": 0, "scope": []any{"Authorization"}, "lease": "10m",
				"redis": patient(map[string]any{"endpoints": master.Addr, "username": "shop", "password": "secret", "waitReplicas": "1", "dialTimeout": dialTimeout, "keyPrefix": onStoreError})})
		}
		reject, degrade, another := on("reject", "9s"), on("degrade", "9s"), on("degrade", "8s")
		wantUnavailable(reject, "k", "too few replicas have it: NOPERM")
		reject.WantProblem(reject.Do(rig.Post("/", "k")), 503, "store-unavailable", "unavailable;degraded")
		first := degrade.Do(rig.Post("/", "k"))
		degrade.Want(first, 201, "first")
		another.WantReplay(first, another.Do(rig.Post("/", "k"))) // the master has it
		another.Calls(0)
		if n := reject.Lines("the store failed", "'wait'"); n == 0 {
			t.Error("no line names WAIT")
		}
		master.Do("ACL", "SETUSER", "shop", "+wait")
		reject.WantRun("k") // nothing was left behind
		reject.Calls(1)
	})
}

// TestCLUSTERSLOTSIsForbidden has a user who may ask for the shards of a cluster, and then one who may ask for neither.
func TestCLUSTERSLOTSIsForbidden(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		c := redistest.StartCluster(t, 2)
		asUser := func(user string, rules ...string) *rig.Site {
			for _, node := range c.Nodes() {
				node.Do(append([]string{"ACL", "SETUSER", user, "on", ">secret", "~*", "+@all"}, rules...)...)
			}
			redis := inCluster(c)
			redis["username"], redis["password"] = user, "secret"
			return overRedis(t, host, redis)
		}
		s := asUser("shards", "-cluster|slots")
		for range 20 {
			s.WantRun(rig.UnusedKey())
		}
		wantSpread(t, c)
		s.WantLine("Redis forbids CLUSTER SLOTS")
		record := recordOf(t, c, "*")
		moveKeys, end := c.Migrate(record, c.Owner(record), other(c, c.Owner(record)))
		moveKeys()
		end()
		for range 20 {
			s.WantRun(rig.UnusedKey())
		}
		s.NoneTwice()

		neither := asUser("neither", "-cluster")
		wantUnavailable(neither, "k", "CLUSTER SLOTS of ")
		for _, node := range c.Nodes() {
			node.Do("ACL", "SETUSER", "neither", "+cluster|shards")
		}
		neither.AwaitStore()
		neither.WantRun("k")
	})
}

// other returns a master other than this one.
func other(c *redistest.Cluster, this *redistest.Server) *redistest.Server {
	for _, master := range c.Masters {
		if master != this {
			return master
		}
	}
	return nil
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
	s := rig.SiteOf(t, hosts.Compiled.Serve(t, b.URL, hosts.Settings{"statusHeader": "Decision", "localCacheBytes": 0, "lease": "10m", "stats": rig.OpenStats["stats"],
		"redis": patient(map[string]any{"endpoints": server.Addr, "username": "traefik", "password": "password"})}), b)
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
