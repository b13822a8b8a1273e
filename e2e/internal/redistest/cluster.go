package redistest

import (
	"net"
	"slices"
	"strconv"
	"strings"
)

const slotCount = 16384

// Cluster is a Redis Cluster.
type Cluster struct {
	Masters  []*Server // at the start
	Replicas []*Server // Replicas[i] is that of Masters[i]; or there are none

	t T
}

// StartCluster starts a cluster with a replica for each master and returns when all its nodes say that it is well. No
// master is replaced before ReplaceLost.
func StartCluster(t T, masters int) *Cluster {
	t.Helper()
	return startCluster(t, masters, masters, nil)
}

// StartClusterTLS is StartCluster for nodes that speak nothing but TLS, with certificates of ca.
func StartClusterTLS(t T, masters int, ca *Authority) *Cluster {
	t.Helper()
	return startCluster(t, masters, masters, ca)
}

// StartMasters is StartCluster without replicas.
func StartMasters(t T, masters int) *Cluster {
	t.Helper()
	return startCluster(t, masters, 0, nil)
}

func startCluster(t T, masters, replicas int, ca *Authority) *Cluster {
	t.Helper()
	c := &Cluster{t: t}
	node := func() *Server { // one that a busy machine holds up is not lost
		s := startWith(t, ca, "--cluster-enabled", "yes", "--cluster-node-timeout", "600000", "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
		s.Do("CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(len(c.Nodes())+1))
		return s
	}
	for i := range masters {
		s := node()
		s.Do("CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(i*slotCount/masters), strconv.Itoa((i+1)*slotCount/masters-1))
		c.Masters = append(c.Masters, s)
	}
	for range replicas {
		c.Replicas = append(c.Replicas, node())
	}
	for _, s := range c.Nodes()[1:] {
		host, port, _ := net.SplitHostPort(s.Addr)
		c.Masters[0].Do("CLUSTER", "MEET", host, port)
	}
	for _, s := range c.Nodes() {
		await(t, "the nodes do not find each other", func() bool {
			return strings.Contains(s.Do("CLUSTER", "INFO"), "cluster_known_nodes:"+strconv.Itoa(masters+replicas)+"\r\n") && !strings.Contains(s.Do("CLUSTER", "NODES"), "handshake")
		})
	}
	for i, s := range c.Replicas {
		s.Do("CLUSTER", "REPLICATE", c.Masters[i].Do("CLUSTER", "MYID"))
	}
	c.AwaitOK()
	for _, s := range c.Masters[:replicas] {
		s.AwaitReplicas(1)
	}
	return c
}

// ReplaceLost has masters replaced from now on that are gone for a second.
func (c *Cluster) ReplaceLost() {
	c.t.Helper()
	for _, s := range c.Nodes() {
		s.Do("CONFIG", "SET", "cluster-node-timeout", "1000")
	}
}

// Nodes are all nodes, masters first.
func (c *Cluster) Nodes() []*Server { return append(append([]*Server{}, c.Masters...), c.Replicas...) }

// Endpoints are the addresses of all nodes.
func (c *Cluster) Endpoints() []string { return addrs(c.Nodes()) }

// AwaitOK returns when each node but those lost says that all slots are served.
func (c *Cluster) AwaitOK(lost ...*Server) {
	c.t.Helper()
	for _, s := range c.Nodes() {
		if slices.Contains(lost, s) {
			continue
		}
		await(c.t, "the cluster is not well", func() bool {
			reply, err := s.do("CLUSTER", "INFO")
			return err == nil && strings.Contains(text(reply), "cluster_state:ok")
		})
	}
}

// AwaitMaster returns when s takes writes as a master.
func (c *Cluster) AwaitMaster(s *Server) {
	c.t.Helper()
	await(c.t, "the replica is not promoted", func() bool {
		reply, _ := s.do("ROLE")
		return strings.HasPrefix(text(reply), "master\n")
	})
}

// Owner returns which of the first masters has the slot of key.
func (c *Cluster) Owner(key string) *Server {
	c.t.Helper()
	for _, s := range c.Masters {
		_, err := s.do("TYPE", key)
		if err == nil {
			return s
		}
	}
	c.t.Fatalf("no master has the slot of %s", key)
	return nil
}

// Migrate begins to move the slot of key from one master to another. With the first call of the function that it returns
// the keys go over, and at the second all nodes know the new owner.
func (c *Cluster) Migrate(key string, from, to *Server) (moveKeys, end func()) {
	c.t.Helper()
	slot := from.Do("CLUSTER", "KEYSLOT", key)
	fromID, toID := from.Do("CLUSTER", "MYID"), to.Do("CLUSTER", "MYID")
	to.Do("CLUSTER", "SETSLOT", slot, "IMPORTING", fromID)
	from.Do("CLUSTER", "SETSLOT", slot, "MIGRATING", toID)
	moveKeys = func() {
		c.t.Helper()
		host, port, _ := net.SplitHostPort(to.Addr)
		for _, name := range strings.Fields(from.Do("CLUSTER", "GETKEYSINSLOT", slot, "1000")) {
			from.Do("MIGRATE", host, port, name, "0", "5000")
		}
	}
	end = func() {
		c.t.Helper()
		to.Do("CLUSTER", "SETSLOT", slot, "NODE", toID)
		from.Do("CLUSTER", "SETSLOT", slot, "NODE", toID)
	}
	return moveKeys, end
}
