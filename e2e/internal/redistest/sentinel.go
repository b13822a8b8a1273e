package redistest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// MasterName is what the sentinels of a Group call its master.
const MasterName = "shop"

// Passwords of a Group.
const (
	GroupPassword    = "secret-group"    // of its servers
	SentinelPassword = "secret-sentinel" // of its sentinels
)

// Group is a master with replicas, and sentinels that watch them. All ask for a password.
type Group struct {
	Servers   []*Server // the first was the master at the start
	Sentinels []*Server

	t T
}

// StartGroup starts a master with replicas and three sentinels, and returns when all know each other. No master is
// replaced before ReplaceLost, unless Failover asks for it.
func StartGroup(t T, replicas int) *Group {
	t.Helper()
	return StartGroupTLS(t, replicas, nil)
}

// StartGroupTLS is StartGroup for servers and sentinels that speak nothing but TLS, with certificates of ca; without TLS if that
// is nil.
func StartGroupTLS(t T, replicas int, ca *Authority) *Group {
	t.Helper()
	g := &Group{t: t}
	for range replicas + 1 {
		args := []string{"--requirepass", GroupPassword, "--masterauth", GroupPassword, "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"}
		if len(g.Servers) > 0 {
			host, port, _ := net.SplitHostPort(g.Servers[0].Addr)
			args = append(args, "--replicaof", host, port)
		}
		s := startWith(t, ca, args...)
		s.Password = GroupPassword
		g.Servers = append(g.Servers, s)
	}
	for range 3 {
		g.Sentinels = append(g.Sentinels, StartSentinel(t, g.Servers[0]))
	}
	for _, s := range g.Sentinels {
		await(g.t, "the sentinels and replicas do not find each other", func() bool {
			reply, _ := s.do("SENTINEL", "MASTER", MasterName)
			state := text(reply)
			return strings.Contains(state, "\nnum-other-sentinels\n2\n") && strings.Contains(state, fmt.Sprintf("\nnum-slaves\n%d\n", replicas)) && strings.Contains(state, "\nflags\nmaster\n")
		})
	}
	g.Servers[0].AwaitReplicas(replicas)
	return g
}

// ReplaceLost has a master replaced from now on that is gone for half a second.
func (g *Group) ReplaceLost() {
	g.t.Helper()
	for _, s := range g.Sentinels {
		s.Do("SENTINEL", "SET", MasterName, "down-after-milliseconds", "500")
	}
}

// StartSentinel starts a sentinel that watches master, for a quorum of two.
func StartSentinel(t T, master *Server) *Server {
	t.Helper()
	s := newServer(t, master.ca)
	s.args = []string{"--sentinel"}
	s.config = filepath.Join(s.dir, "sentinel.conf")
	host, port, _ := net.SplitHostPort(master.Addr)
	lines := []string{
		"requirepass " + SentinelPassword,
		"sentinel sentinel-pass " + SentinelPassword,
		"sentinel monitor " + MasterName + " " + host + " " + port + " 2",
		"sentinel auth-pass " + MasterName + " " + GroupPassword,
		"sentinel down-after-milliseconds " + MasterName + " 600000", // one that a busy machine holds up is not lost
		"sentinel failover-timeout " + MasterName + " 2000",
		"sentinel parallel-syncs " + MasterName + " 2",
	}
	err := os.WriteFile(s.config, []byte(strings.Join(lines, "\n")+"\n"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	s.Password = SentinelPassword
	s.start(func() { s.Addr = freeAddr(t) })
	return s
}

// Endpoints are the addresses of the sentinels.
func (g *Group) Endpoints() []string { return addrs(g.Sentinels) }

func addrs(servers []*Server) []string {
	var all []string
	for _, s := range servers {
		all = append(all, s.Addr)
	}
	return all
}

// AwaitReplicas returns when n replicas of s have all that it has.
func (s *Server) AwaitReplicas(n int) {
	s.t.Helper()
	await(s.t, "the replicas of "+s.Addr+" are not in line", func() bool {
		reply, _ := s.do("INFO", "replication")
		state := text(reply)
		_, offset, _ := strings.Cut(state, "master_repl_offset:")
		offset, _, _ = strings.Cut(offset, "\r")
		return strings.Count(state, "state=online,offset="+offset+",") == n && offset != "0"
	})
}

// Promoted returns when a server other than old takes writes as the master, which that is.
func (g *Group) Promoted(old *Server) *Server {
	g.t.Helper()
	var master *Server
	await(g.t, "no other master", func() bool {
		for _, s := range g.Servers {
			if s == old {
				continue
			}
			reply, _ := s.do("ROLE")
			if strings.HasPrefix(text(reply), "master\n") {
				master = s
			}
		}
		return master != nil
	})
	return master
}

// Failover asks a sentinel to put another server in the place of the master, which is well.
func (g *Group) Failover() {
	g.t.Helper()
	await(g.t, "no sentinel takes the order", func() bool {
		reply, _ := g.Sentinels[0].do("SENTINEL", "FAILOVER", MasterName)
		return text(reply) == "OK"
	})
}

// Rename has all sentinels forget their master and what they know of it, and watch another one instead.
func (g *Group) Rename(master *Server) {
	g.t.Helper()
	host, port, _ := net.SplitHostPort(master.Addr)
	for _, sentinel := range g.Sentinels { // one that still knows would tell the others
		sentinel.Do("SENTINEL", "REMOVE", MasterName)
	}
	for _, sentinel := range g.Sentinels {
		sentinel.Do("SENTINEL", "MONITOR", MasterName, host, port, "2")
		sentinel.Do("SENTINEL", "SET", MasterName, "auth-pass", GroupPassword)
	}
}

// await waits for what servers do among themselves. Sentinels that a busy machine holds up for two seconds do nothing for half a
// minute.
func await(t T, failure string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Minute); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(failure)
		}
	}
}
