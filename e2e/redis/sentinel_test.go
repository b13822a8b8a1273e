package redis

import (
	"strings"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/store"
)

// behindSentinels are the settings for the group's master. One of the endpoints is of nobody.
func behindSentinels(g *redistest.Group) map[string]any {
	return map[string]any{
		"endpoints": append([]string{"127.0.0.1:1"}, g.Endpoints()...),
		"password":  redistest.GroupPassword,
		"sentinel":  map[string]any{"masterName": redistest.MasterName, "password": redistest.SentinelPassword},
	}
}

// changes are the ways in which a group gets another master. The old one is gone, deaf for a while, or a replica.
var changes = map[string]func(g *redistest.Group, old *redistest.Server){
	"killed": func(g *redistest.Group, old *redistest.Server) { g.ReplaceLost(); old.Kill() },
	"paused": func(g *redistest.Group, old *redistest.Server) { g.ReplaceLost(); old.Pause() },
	"asked":  func(g *redistest.Group, _ *redistest.Server) { g.Failover() },
}

// TestAnotherMaster has every record at the replicas before another master is made: not one may be missed.
func TestAnotherMaster(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for name, change := range changes {
			t.Run(name, func(t *testing.T) {
				g := redistest.StartGroup(t, 2)
				anotherMaster(t, host, g, behindSentinels(g), change)
			})
		}
		t.Run("killed, over TLS", func(t *testing.T) {
			ca := redistest.NewAuthority(t)
			g := redistest.StartGroupTLS(t, 2, ca)
			anotherMaster(t, host, g, overTLS(ca, behindSentinels(g)), changes["killed"])
		})
	})
}

// overTLS adds to settings what a client of servers with certificates of ca needs.
func overTLS(ca *redistest.Authority, redis map[string]any) map[string]any {
	cert, key := ca.Issue("client")
	redis["tls"] = map[string]any{"ca": ca.CertFile, "cert": cert, "key": key}
	return redis
}

func anotherMaster(t *testing.T, host hosts.Host, g *redistest.Group, redis map[string]any, change func(g *redistest.Group, old *redistest.Server)) {
	t.Helper()
	old := g.Servers[0]
	s := overRedis(t, host, redis)
	before := s.Do(rig.Post("/", "before"))
	s.Want(before, 201, "first")
	old.AwaitReplicas(2)
	change(g, old)
	master := g.Promoted(old)
	promoted := time.Now()
	for rig.KeysIn(master) < 2 { // until this one has a key that comes now
		s.Do(rig.Post("/", rig.UnusedKey()))
	}
	t.Logf("followed %s after the promotion", time.Since(promoted).Round(time.Millisecond))
	s.WantReplay(before, s.Do(rig.Post("/", "before")))
	s.WantRun("after")
	old.Resume()
	s.WantRun("later")
	s.AwaitLog("another Redis is the master now")
	s.NoneTwice()
}

// TestADemotedMasterIsLeft has a server made a replica behind the back of the plugin's connections, and of the sentinels.
func TestADemotedMasterIsLeft(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		first, second := redistest.Start(t), redistest.Start(t)
		detour := rig.NewFront(t, first.Addr)
		s := overRedis(t, host, map[string]any{"endpoints": detour.Addr})
		s.WantRun("before")
		rig.AwaitProbes(first, 1) // a probe that comes later is refused
		ip, port, _ := strings.Cut(second.Addr, ":")
		first.Do("REPLICAOF", ip, port)
		detour.Target.Store(second.Addr)
		s.WantRun("after") // not one request fails
		if n := rig.KeysIn(second); n != 1 {
			t.Errorf("%d keys at the new master, want 1", n)
		}
	})
}

// pair is a server with one replica, both of this test alone.
func pair(t *testing.T) (master, replica *redistest.Server) {
	t.Helper()
	master = redistest.Start(t, "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
	host, port, _ := strings.Cut(master.Addr, ":")
	replica = redistest.Start(t, "--replicaof", host, port)
	master.AwaitReplicas(1)
	return master, replica
}

func TestClaimsWaitForReplicas(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		t.Parallel() // it waits for a replica that is stopped
		master, replica := pair(t)
		on := func(onStoreError, dialTimeout string) *rig.Site {
			return rig.Serve(t, host, rig.Created, hosts.Settings{"statusHeader": "Decision", "onStoreError": onStoreError, "localCacheBytes": 0, "scope": []any{"Authorization"}, "lease": "10m",
				"redis": patient(map[string]any{"endpoints": master.Addr, "waitReplicas": "1", "dialTimeout": dialTimeout, "readTimeout": "6s", "keyPrefix": onStoreError})})
		}
		reject, pass, degrade, another := on("reject", "9s"), on("pass", "9s"), on("degrade", "9s"), on("degrade", "8s")
		for _, s := range []*rig.Site{reject, pass, degrade} {
			s.WantRun("before")
			if n := rig.KeysIn(replica); n == 0 {
				t.Error("the replica has no key when the request has its answer")
			}
		}
		replica.Pause()
		wantUnavailable(reject, "k", "too few replicas have it: 0 of 1")
		pass.Want(pass.Do(rig.Post("/", "k")), 201, "first;degraded")
		pass.Want(pass.Do(rig.Post("/", "k")), 201, "first;degraded")
		first := degrade.Do(rig.Post("/", "k"))
		degrade.Want(first, 201, "first")
		another.WantReplay(first, another.Do(rig.Post("/", "k"))) // the master has it: this is not a Traefik on its own
		another.Calls(0)
		replica.Resume()
		master.AwaitReplicas(1)
		reject.WantRun("k") // nothing was left behind
		degrade.WantRun("after")
		reject.NoneTwice()
		degrade.NoneTwice()
	})
}

// TestAMasterChangesUnderTraffic has clients try each key until it was answered, and then twice more, while the master is
// lost or replaced. Whatever happens, no key may run twice: claims wait for replicas.
func TestAMasterChangesUnderTraffic(t *testing.T) {
	for _, host := range []hosts.Host{hosts.Compiled, hosts.Traefik} {
		for _, c := range []struct {
			name     string
			replicas int // that claims wait for: one survives a crash, but may be the wrong one where the master is well
			ca       *redistest.Authority
		}{{"killed", 1, nil}, {"paused", 1, nil}, {"asked", 2, redistest.NewAuthority(t)}} {
			t.Run(host.String()+"/"+c.name, func(t *testing.T) {
				g := redistest.StartGroupTLS(t, 2, c.ca)
				redis := behindSentinels(g)
				if c.ca != nil {
					redis = overTLS(c.ca, redis)
				}
				old := g.Servers[0]
				redis["waitReplicas"] = c.replicas
				redis["keyPrefix"] = "traffic"
				s := rig.Serve(t, host, rig.Created, hosts.Settings{"statusHeader": "Decision", "onStoreError": "reject", "localCacheBytes": 0, "lease": "2s", "redis": redis})
				l := rig.StartLedger(s, 6)
				l.Await(100)
				changes[c.name](g, old)
				g.Promoted(old)
				l.Await(l.Runs.Load() + 200)
				old.Resume()
				l.Await(l.Runs.Load() + 200)
				l.End()
			})
		}
	}
}

// TestTheNewestConfigurationCounts has one sentinel that names a master of its own, of an older configuration. Then an
// administrator has all of them begin anew with that one.
func TestTheNewestConfigurationCounts(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		g := redistest.StartGroup(t, 1)
		g.Failover()
		second := g.Promoted(g.Servers[0])
		third := redistest.Start(t)
		third.Do("CONFIG", "SET", "requirepass", redistest.GroupPassword)
		third.Password = redistest.GroupPassword
		redis := behindSentinels(g)
		redis["endpoints"] = append(g.Endpoints(), redistest.StartSentinel(t, third).Addr)
		s := overRedis(t, host, redis)
		for rig.KeysIn(second) == 0 { // the sentinels come to know of it one by one
			s.Do(rig.Post("/", rig.UnusedKey()))
		}
		strayed := rig.KeysIn(third)
		for range 20 {
			s.WantRun(rig.UnusedKey())
			time.Sleep(50 * time.Millisecond) // meanwhile all sentinels are asked some times
		}
		if n := rig.KeysIn(third); n != strayed {
			t.Errorf("a sentinel with an older configuration was followed: %d keys and then %d", strayed, n)
		}
		g.Rename(third)
		s.AwaitLog(`master="` + third.Addr + `" before="` + second.Addr)
		s.WantRun("after")
		s.NoneTwice()
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
	options := redisclient.Options{Address: strings.Join(g.Endpoints(), ","), Password: redistest.GroupPassword, DialTimeout: rig.Never, ReadTimeout: rig.Never, WriteTimeout: rig.Never,
		Sentinel: redisclient.Sentinel{MasterName: redistest.MasterName, Password: redistest.SentinelPassword}}
	client := redisclient.New(options, redisclient.NewBacklog())
	cluster := redisclient.New(redisclient.Options{Address: c.Masters[0].Addr, Cluster: true, DialTimeout: rig.Never, ReadTimeout: rig.Never, WriteTimeout: rig.Never}, redisclient.NewBacklog())
	claim := func(k *redisclient.Keys) {
		held, err := redisclient.Claim(k, &store.Lease{Key: "k", Fingerprint: strings.Repeat("f", store.FingerprintSize), Owner: "o"}, rig.Never)
		if err != nil || held != nil {
			t.Fatalf("claim: %+v, %v", held, err)
		}
	}
	for range 2 { // and once more by those who outlive their configuration
		claim(redisclient.NewKeys(client, "idem"))
		claim(redisclient.NewKeys(cluster, "idem"))
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
