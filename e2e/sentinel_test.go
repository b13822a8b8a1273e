package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/store"
	"github.com/example/traefik-idem/store/storetest"
)

// behindSentinels are the settings for the group's master. One of the endpoints is of nobody.
func behindSentinels(g *redistest.Group) map[string]any {
	return map[string]any{
		"endpoints": append([]string{"127.0.0.1:1"}, g.Endpoints()...),
		"password":  redistest.GroupPassword,
		"sentinel":  map[string]any{"masterName": redistest.MasterName, "password": redistest.SentinelPassword},
	}
}

func TestStoreInARealRedisBehindSentinelsConforms(t *testing.T) {
	g := redistest.StartGroup(t, 1)
	storetest.Run(t, func(t *testing.T) storetest.Subject {
		g.Servers[0].Do("FLUSHDB")
		client := redisclient.New(redisclient.Options{
			Address: strings.Join(g.Endpoints(), ","), Password: redistest.GroupPassword, DialTimeout: hour, ReadTimeout: hour, WriteTimeout: hour,
			Sentinel: redisclient.Sentinel{MasterName: redistest.MasterName, Password: redistest.SentinelPassword}})
		t.Cleanup(client.Close)
		return storetest.Redis(redisclient.NewKeys(client, "idem"), g.Servers[0].Pass)
	})
}

// changes are the ways in which a group gets another master. The old one is gone, deaf for a while, or a replica.
var changes = map[string]func(g *redistest.Group, old *redistest.Server){
	"killed": func(_ *redistest.Group, old *redistest.Server) { old.Kill() },
	"paused": func(_ *redistest.Group, old *redistest.Server) { old.Pause() },
	"asked":  func(g *redistest.Group, _ *redistest.Server) { g.Failover() },
}

// TestAnotherMaster has every record at the replicas before another master is made: not one may be missed.
func TestAnotherMaster(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		for name, change := range changes {
			t.Run(name, func(t *testing.T) {
				g := redistest.StartGroup(t, 2)
				old := g.Servers[0]
				s := overRedis(t, host, behindSentinels(g))
				before := s.do(post("/", "before"))
				s.want(before, 201, "first")
				old.AwaitReplicas(2)
				change(g, old)
				master := g.Promoted(old)
				promoted := time.Now()
				for keysIn(master) < 2 { // until this one has a key that comes now
					s.do(post("/", unusedKey()))
				}
				t.Logf("followed %s after the promotion", time.Since(promoted).Round(time.Millisecond))
				s.wantReplay(before, s.do(post("/", "before")))
				s.wantRun("after")
				old.Resume()
				s.wantRun("later")
				s.awaitLog("another Redis is the master now")
				s.noneTwice()
			})
		}
	})
}

// TestADemotedMasterIsLeft has a server made a replica behind the back of the plugin's connections, and of the sentinels.
func TestADemotedMasterIsLeft(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		first, second := redistest.Start(t), redistest.Start(t)
		detour := newFront(t, first.Addr)
		s := overRedis(t, host, map[string]any{"endpoints": detour.addr})
		s.wantRun("before")
		ip, port, _ := strings.Cut(second.Addr, ":")
		first.Do("REPLICAOF", ip, port)
		detour.target.Store(second.Addr)
		s.wantRun("after") // not one request fails
		if n := second.Do("DBSIZE"); n != "1" {
			t.Errorf("%s keys at the new master, want 1", n)
		}
	})
}

// pair is a server with one replica, both of this test alone.
func pair(t *testing.T) (master, replica *redistest.Server) {
	t.Helper()
	return pairOf(t, redistest.Path(t))
}

// pairOf is pair with the redis-server at path.
func pairOf(t *testing.T, path string) (master, replica *redistest.Server) {
	t.Helper()
	master = redistest.StartBinary(t, path, "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
	host, port, _ := strings.Cut(master.Addr, ":")
	replica = redistest.StartBinary(t, path, "--replicaof", host, port)
	master.AwaitReplicas(1)
	return master, replica
}

func TestClaimsWaitForReplicas(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		master, replica := pair(t)
		on := func(onStoreError, dialTimeout string) *site {
			return serve(t, host, created, hosts.Settings{"statusHeader": "Decision", "onStoreError": onStoreError, "localCacheBytes": 0, "scope": []any{"Authorization"},
				"redis": map[string]any{"endpoints": master.Addr, "waitReplicas": "1", "dialTimeout": dialTimeout, "keyPrefix": onStoreError}})
		}
		reject, pass, degrade, another := on("reject", "9s"), on("pass", "9s"), on("degrade", "9s"), on("degrade", "8s")
		for _, s := range []*site{reject, pass, degrade} {
			s.wantRun("before")
			if n := keysIn(replica); n == 0 {
				t.Error("the replica has no key when the request has its answer")
			}
		}
		replica.Pause()
		reject.wantUnavailable("k", "too few replicas have it: 0 of 1")
		pass.want(pass.do(post("/", "k")), 201, "first;degraded")
		pass.want(pass.do(post("/", "k")), 201, "first;degraded")
		first := degrade.do(post("/", "k"))
		degrade.want(first, 201, "first")
		another.wantReplay(first, another.do(post("/", "k"))) // the master has it: this is not a Traefik on its own
		another.calls(0)
		replica.Resume()
		master.AwaitReplicas(1)
		reject.wantRun("k") // nothing was left behind
		degrade.wantRun("after")
		reject.noneTwice()
		degrade.noneTwice()
	})
}

// TestAMasterChangesUnderTraffic has clients try each key until it was answered, and then twice more, while the master is
// lost or replaced. Whatever happens, no key may run twice: claims wait for replicas.
func TestAMasterChangesUnderTraffic(t *testing.T) {
	for _, host := range []hosts.Host{hosts.Compiled, hosts.Traefik} {
		for _, c := range []struct {
			name     string
			replicas int // that claims wait for: one survives a crash, but may be the wrong one where the master is well
		}{{"killed", 1}, {"paused", 1}, {"asked", 2}} {
			t.Run(host.String()+"/"+c.name, func(t *testing.T) {
				g := redistest.StartGroup(t, 2)
				old := g.Servers[0]
				redis := behindSentinels(g)
				redis["waitReplicas"] = c.replicas
				redis["keyPrefix"] = "traffic"
				s := serve(t, host, created, hosts.Settings{"statusHeader": "Decision", "onStoreError": "reject", "localCacheBytes": 0, "lease": "2s", "redis": redis})
				l := startLedger(s, 6)
				l.await(100)
				changes[c.name](g, old)
				g.Promoted(old)
				l.await(l.runs.Load() + 200)
				old.Resume()
				l.await(l.runs.Load() + 200)
				l.end()
			})
		}
	}
}

// TestTheNewestConfigurationCounts has one sentinel that names a master of its own, of an older configuration. Then an
// administrator has all of them begin anew with that one.
func TestTheNewestConfigurationCounts(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		g := redistest.StartGroup(t, 1)
		g.Failover()
		second := g.Promoted(g.Servers[0])
		third := redistest.Start(t)
		third.Do("CONFIG", "SET", "requirepass", redistest.GroupPassword)
		third.Password = redistest.GroupPassword
		redis := behindSentinels(g)
		redis["endpoints"] = append(g.Endpoints(), redistest.StartSentinel(t, third).Addr)
		s := overRedis(t, host, redis)
		for keysIn(second) == 0 { // the sentinels come to know of it one by one
			s.do(post("/", unusedKey()))
		}
		strayed := keysIn(third)
		for range 20 {
			s.wantRun(unusedKey())
			time.Sleep(50 * time.Millisecond) // meanwhile all sentinels are asked some times
		}
		if n := keysIn(third); n != strayed {
			t.Errorf("a sentinel with an older configuration was followed: %d keys and then %d", strayed, n)
		}
		g.Rename(third)
		s.awaitLog(`master="` + third.Addr + `" before="` + second.Addr)
		s.wantRun("after")
		s.noneTwice()
	})
}

// TestNothingIsLeftOpen closes clients, and looks for their connections.
func TestNothingIsLeftOpen(t *testing.T) {
	g, c := redistest.StartGroup(t, 1), redistest.StartCluster(t, 1)
	before := map[*redistest.Server]int{}
	servers := append(append(append([]*redistest.Server{}, g.Servers...), g.Sentinels...), c.Nodes()...)
	for _, server := range servers {
		before[server] = unnamed(server)
	}
	options := redisclient.Options{Address: strings.Join(g.Endpoints(), ","), Password: redistest.GroupPassword, DialTimeout: hour, ReadTimeout: hour, WriteTimeout: hour,
		Sentinel: redisclient.Sentinel{MasterName: redistest.MasterName, Password: redistest.SentinelPassword}}
	client := redisclient.New(options)
	cluster := redisclient.NewCluster(redisclient.Options{Address: c.Masters[0].Addr, Cluster: true, DialTimeout: hour, ReadTimeout: hour, WriteTimeout: hour})
	claim := func(k *redisclient.Keys) {
		held, err := redisclient.Claim(k, &store.Lease{Key: "k", Fingerprint: strings.Repeat("f", store.FingerprintSize), Owner: "o"}, hour)
		if err != nil || held != nil {
			t.Fatalf("claim: %+v, %v", held, err)
		}
	}
	for range 2 { // and once more by those who outlive their configuration
		claim(redisclient.NewKeys(client, "idem"))
		claim(redisclient.NewClusterKeys(cluster, "idem"))
		client.Close()
		cluster.Close()
		for _, server := range servers {
			for unnamed(server) > before[server] { // a connection that is left ends in the test's time-out
				time.Sleep(10 * time.Millisecond)
			}
		}
	}
}

// unnamed counts the clients of server that have no name, as sentinels have, and are no replicas.
func unnamed(server *redistest.Server) int {
	return strings.Count(server.Do("CLIENT", "LIST", "TYPE", "NORMAL"), " name= ")
}
