package redis

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/store"
)

// inCluster are the settings for c. One of the endpoints is of nobody.
func inCluster(c *redistest.Cluster) map[string]any {
	return map[string]any{"endpoints": append([]string{"127.0.0.1:1"}, c.Endpoints()...), "cluster": "true"}
}

// recordOf waits for the only Redis key of s, which ran one request, and returns its name.
func recordOf(t *testing.T, c *redistest.Cluster, prefix string) string {
	t.Helper()
	for _, s := range c.Masters {
		for _, name := range strings.Fields(s.Do("KEYS", prefix+":req:*")) {
			return name
		}
	}
	t.Fatal("no record")
	return ""
}

// wantSpread wants keys at every master, and none sent where it does not belong.
func wantSpread(t *testing.T, c *redistest.Cluster) {
	t.Helper()
	for _, master := range c.Masters {
		if rig.KeysIn(master) == 0 {
			t.Errorf("no key at %s", master.Addr)
		}
		if n := rig.InfoField(master, "errorstats", "errorstat_MOVED"); n != "" {
			t.Errorf("%s was sent what is not its own: %s", master.Addr, n)
		}
	}
}

// TestAClusterHasAllKeys spreads keys over the masters, and finds their memory in the statistics.
func TestAClusterHasAllKeys(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		c := redistest.StartCluster(t, 3) // with so few keys that one step measures them
		redis := inCluster(c)
		s := overRedis(t, host, redis)
		for range 60 {
			s.WantRun(rig.UnusedKey())
		}
		wantSpread(t, c)
		s.NoneTwice()

		prefix := redis["keyPrefix"].(string)
		stats := rig.Serve(t, host, rig.Created, hosts.Settings{"redis": redis, "lease": "10m", "statusHeader": "Decision", "stats": map[string]any{"insecure": true}})
		f := stats.Counted(func(f rig.Figures) bool { return fmt.Sprint(f.Totals["duplicates"]) == "60" })
		var want int64
		for _, master := range c.Masters {
			for _, name := range strings.Fields(master.Do("KEYS", prefix+":*")) {
				bytes, _ := strconv.ParseInt(master.Do("MEMORY", "USAGE", name, "SAMPLES", "0"), 10, 64)
				want += bytes
			}
		}
		stats.AwaitSteps()
		if !f.Memory.Exact || f.Memory.Bytes < want/2 || f.Memory.Bytes > want*2 { // the hash of statistics grows meanwhile
			t.Errorf("memory %+v, want about %d", f.Memory, want)
		}
	})
}

// TestASlotMoves takes the slot of a record to another node, step by step, and asks for the record at each. The answer is so
// long that it goes to Redis over a separate connection.
func TestASlotMoves(t *testing.T) {
	long := strings.Repeat("x", 40<<10)
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		c := redistest.StartCluster(t, 3)
		redis := patient(inCluster(c))
		redis["keyPrefix"] = fmt.Sprintf("t%d", rig.PrefixCount.Add(1))
		s := rig.Serve(t, host, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusCreated)
			_, _ = io.WriteString(w, long)
		}, hosts.Settings{"statusHeader": "Decision", "onStoreError": "reject", "localCacheBytes": 0, "lease": "10m", "redis": redis})
		first := s.Do(rig.Post("/", "k"))
		s.Want(first, 201, "first")
		name := recordOf(t, c, redis["keyPrefix"].(string))
		from := c.Owner(name)
		to := c.Masters[0]
		if to == from {
			to = c.Masters[1]
		}
		moveKeys, end := c.Migrate(name, from, to)
		s.WantReplay(first, s.Do(rig.Post("/", "k"))) // it is still there
		moveKeys()
		s.WantReplay(first, s.Do(rig.Post("/", "k"))) // ASK
		if rig.InfoField(from, "errorstats", "errorstat_ASK") == "" {
			t.Error("nobody was told to ASK")
		}
		to.Do("SCRIPT", "FLUSH")
		s.WantReplay(first, s.Do(rig.Post("/", "k"))) // ASK, and a script that is not known
		end()
		s.WantReplay(first, s.Do(rig.Post("/", "k"))) // MOVED
		if rig.InfoField(from, "errorstats", "errorstat_MOVED") == "" {
			t.Error("nobody was told that the slot has MOVED")
		}
		from.Do("CONFIG", "RESETSTAT")
		s.WantReplay(first, s.Do(rig.Post("/", "k")))
		if n := rig.InfoField(from, "errorstats", "errorstat_MOVED"); n != "" {
			t.Errorf("the slot is still looked for where it was: %s", n)
		}
		// A key that is claimed while its slot moves lives where the slot goes.
		moveBack, end := c.Migrate(name, to, from)
		to.Do("DEL", name)
		s.Want(s.Do(rig.Post("/", "k")), 201, "first")
		if n := s.Lines("the end of a request could not be stored"); n != 0 {
			t.Error("an answer whose slot moves is not kept")
		}
		moveBack()
		end()
		s.Want(s.Do(rig.Post("/", "k")), 201, "replayed")
		s.Calls(2)
	})
}

// TestAClusterHangsAtTheStart has a Traefik start with a cluster of which no node answers.
func TestAClusterHangsAtTheStart(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		t.Parallel() // it waits for time-outs
		c := redistest.StartMasters(t, 3)
		for _, node := range c.Masters {
			node.Pause()
		}
		redis := inCluster(c)
		redis["readTimeout"], redis["dialTimeout"], redis["writeTimeout"] = "5s", "5s", "5s"
		s := rig.Serve(t, host, rig.Created, hosts.Settings{"statusHeader": "Decision", "stats": rig.OpenStats["stats"], "redis": redis})
		s.Want(s.Do(rig.Post("/", "first")), 201, "first;degraded")
		begin := time.Now()
		s.Want(s.Do(rig.Post("/", "second")), 201, "first;degraded")
		if took := time.Since(begin); took > 4*time.Second { // it has waited for a time-out
			t.Errorf("the second request took %s", took)
		}
		lines := s.Lines("Redis is out of reach", c.Masters[0].Addr) // that of an earlier test may be, too
		if s.Metric("traefik_idem_store_healthy").GetGauge().GetValue() != 0 || lines != 1 {
			t.Errorf("while the cluster hangs: %+v, %d lines", s.Stats().Store, lines)
		}
		for _, node := range c.Masters {
			node.Resume()
		}
		s.AwaitRedis()
		s.AwaitLog("answers of the outage were written")
		kept := 0
		for _, node := range c.Masters {
			for _, name := range strings.Fields(node.Do("KEYS", "*:req:*")) {
				if strings.HasPrefix(node.Do("GET", name), store.DoneHead) {
					kept++
				}
			}
		}
		if kept < 2 { // more if Redis came back while AwaitRedis asked
			t.Errorf("%d answers were written", kept)
		}
	})
}

// TestANodeIsLost kills a master. The keys of others go on, and its own when its replica has taken over.
func TestANodeIsLost(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for name, lose := range map[string]func(*redistest.Server){"killed": (*redistest.Server).Kill, "paused": (*redistest.Server).Pause} {
			t.Run(name, func(t *testing.T) {
				c := redistest.StartCluster(t, 3)
				loseANode(t, host, c, inCluster(c), lose)
			})
		}
		t.Run("killed, over TLS", func(t *testing.T) {
			ca := redistest.NewAuthority(t)
			c := redistest.StartClusterTLS(t, 3, ca)
			overRedis(t, host, overTLS(ca, inCluster(c))).WantRun("k")
			for _, node := range c.Nodes() { // now the map comes from CLUSTER SHARDS
				node.Do("ACL", "SETUSER", "shop", "on", ">secret", "~*", "+@all", "-cluster|slots")
			}
			redis := overTLS(ca, inCluster(c))
			redis["username"], redis["password"] = "shop", "secret"
			loseANode(t, host, c, redis, (*redistest.Server).Kill)
		})
	})
}

// answersInAnOutage has a site answer so many requests, each with another key, some of them without Redis.
func answersInAnOutage(s *rig.Site, n int) map[string]rig.Answer {
	answers := map[string]rig.Answer{}
	for range n {
		key := rig.UnusedKey()
		answers[key] = s.Do(rig.Post("/", key))
		if answers[key].Status != 201 {
			s.T.Fatalf("%d %s", answers[key].Status, answers[key].Body)
		}
	}
	return answers
}

// TestALostNodeHoldsBackNoOther that is back already: it is told what was answered without it.
func TestALostNodeHoldsBackNoOther(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		c := redistest.StartMasters(t, 3)
		for _, node := range c.Masters {
			node.Do("CONFIG", "SET", "cluster-require-full-coverage", "no")
		}
		redis, again := inCluster(c), inCluster(c)
		again["endpoints"] = append([]string{"127.0.0.1:2"}, c.Endpoints()...) // another Traefik, as it were
		for _, of := range []map[string]any{redis, again} {
			of["keyPrefix"], of["readTimeout"], of["dialTimeout"], of["writeTimeout"] = "p", "3s", "3s", "3s"
		}
		b := rig.NewBackend(t, rig.Created)
		on := func(redis map[string]any) *rig.Site {
			return rig.SiteOf(t, host.Serve(t, b.URL, hosts.Settings{"statusHeader": "Decision", "scope": []any{"Authorization"}, "ttl": "1h", "maxTTL": "1h", "redis": redis}), b)
		}
		s, other := on(redis), on(again)
		s.WantRun("warm")
		for _, node := range c.Masters {
			node.Pause()
		}
		answers := answersInAnOutage(s, 60) // so many that each node has some
		lost := c.Masters[2]
		for _, node := range c.Masters[:2] {
			node.Resume()
		}
		c.AwaitOK(lost)
		kept := func(node *redistest.Server) int {
			n := 0
			for _, name := range strings.Fields(node.Do("KEYS", "p:req:*")) {
				if strings.HasPrefix(node.Do("GET", name), store.DoneHead) {
					n++
				}
			}
			return n
		}
		for _, node := range c.Masters[:2] { // a node that is never told ends in the test's time-out
			for kept(node) < 3 {
				time.Sleep(10 * time.Millisecond)
			}
		}
		lost.Resume()
		s.AwaitLog("answers of the outage were written to Redis")
		c.AwaitOK()
		for key, first := range answers {
			other.WantReplay(first, other.Do(rig.Post("/", key)))
		}
		s.NoneTwice()
	})
}

// TestTheSuccessorOfALostNodeIsTold what was answered without that, although nobody asks for its keys.
func TestTheSuccessorOfALostNodeIsTold(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		c := redistest.StartCluster(t, 3)
		redis := patient(inCluster(c))
		redis["keyPrefix"] = "p"
		s := rig.Serve(t, host, rig.Created, hosts.Settings{"statusHeader": "Decision", "lease": "10m", "ttl": "1h", "maxTTL": "1h", "redis": redis})
		s.WantRun("warm")
		lost := c.Masters[0]
		c.ReplaceLost()
		lost.Kill()
		answersInAnOutage(s, 30)
		c.AwaitMaster(c.Replicas[0])
		s.AwaitLog("answers of the outage were written to Redis")
		if rig.KeysIn(c.Replicas[0]) == 0 {
			t.Error("it was told nothing")
		}
	})
}

func loseANode(t *testing.T, host hosts.Host, c *redistest.Cluster, redis map[string]any, lose func(*redistest.Server)) {
	t.Helper()
	redis["readTimeout"] = "5s" // which requests wait for a node that is paused
	s := overRedis(t, host, redis)
	first := s.Do(rig.Post("/", "k"))
	record := recordOf(t, c, redis["keyPrefix"].(string))
	lost := c.Owner(record)
	for range 30 {
		s.WantRun(rig.UnusedKey())
	}
	lost.AwaitReplicas(1)
	c.ReplaceLost()
	lose(lost)
	for i, master := range c.Masters {
		if master == lost {
			c.AwaitMaster(c.Replicas[i])
		}
	}
	promoted := time.Now()
	again := s.Do(rig.Post("/", "k"))
	for again.Status == 503 {
		again = s.Do(rig.Post("/", "k"))
	}
	t.Logf("followed %s after the promotion", time.Since(promoted).Round(time.Millisecond))
	s.WantReplay(first, again)
	c.AwaitOK(lost) // the other masters refuse everything until they know the new one
	for range 30 {
		s.WantRun(rig.UnusedKey())
	}
	s.NoneTwice()
}

// TestSlots compares the slot of keys with what Redis says.
func TestSlots(t *testing.T) {
	server := redistest.Start(t, "--cluster-enabled", "yes")
	for _, key := range []string{"", "a", "123456789", "idem:req:0f", "{user}.x", "{}x", "a{b}c", "a{b", "a}b{c}", "{a}{b}", "{{a}}", "\xff\x00\x80\r\n", strings.Repeat("long", 100)} {
		if got, want := fmt.Sprint(redisclient.Slot(key)), server.Do("CLUSTER", "KEYSLOT", key); got != want {
			t.Errorf("slot of %q is %s, Redis says %s", key, got, want)
		}
	}
}

// TestANodeIsLostUnderTraffic kills a master, whose slots are refused until its replica has it for a replica of its own.
func TestANodeIsLostUnderTraffic(t *testing.T) {
	for _, host := range []hosts.Host{hosts.Compiled, hosts.Traefik} {
		t.Run(host.String(), func(t *testing.T) {
			c := redistest.StartCluster(t, 3)
			redis := inCluster(c)
			redis["waitReplicas"] = 1
			s := rig.Serve(t, host, rig.Created, hosts.Settings{"statusHeader": "Decision", "onStoreError": "reject", "localCacheBytes": 0, "lease": "2s", "redis": redis})
			l := rig.StartLedger(s, 6)
			l.Await(100)
			c.ReplaceLost()
			c.Masters[1].Kill()
			c.AwaitMaster(c.Replicas[1])
			c.Masters[1].Restart() // as a replica
			l.Await(l.Runs.Load() + 300)
			l.End()
		})
	}
}
