package redisclient

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/example/traefik-idem/store"
)

// slotsAt is the reply to CLUSTER SLOTS of a cluster whose only master is at address.
func slotsAt(address string) string {
	host, port, _ := net.SplitHostPort(address)
	return fmt.Sprintf("*1\r\n*3\r\n:0\r\n:%d\r\n*2\r\n%s:%s\r\n", slotCount-1, bulk(host), port)
}

// startNode starts a node that has all slots.
func startNode(t *testing.T) *fakeServer {
	t.Helper()
	var node *fakeServer
	node = startFake(t, func(args []string) string {
		if args[0] == "CLUSTER" {
			return slotsAt(node.address)
		}
		return granted(args)
	})
	return node
}

// overCluster is a store in the cluster of these nodes, and a lease.
func overCluster(t *testing.T, addresses ...string) (*Cluster, *Keys, *store.Lease) {
	t.Helper()
	opts := fast(strings.Join(addresses, ","))
	opts.Cluster = true
	front := New(opts, NewBacklog())
	t.Cleanup(front.Close)
	return front.cluster, NewKeys(front, "idem"), leaseOf("k")
}

// TestAClusterComesLater has nobody at its only address, and then a node without any slots, before there is a cluster.
func TestAClusterComesLater(t *testing.T) {
	node := startNode(t)
	node.kill()
	c, k, l := overCluster(t, node.address)
	_, err := Claim(k, l, time.Hour)
	if !errors.Is(err, ErrDown) || c.front.state() != down || k.Failing.Load() != 1 {
		t.Fatalf("nobody is there: %v, and %d servers are not fine", err, k.Failing.Load())
	}
	asked := make(chan struct{}, 100)
	whole := node.answerWith(func([]string) string {
		asked <- struct{}{}
		return "*0\r\n"
	})
	node.start(t)
	<-asked
	<-asked
	_, err = Claim(k, l, time.Hour)
	if !errors.Is(err, ErrDown) {
		t.Errorf("there are no slots: %v", err)
	}
	WriteLater(k, l, store.DoneHead+l.Fingerprint+store.StatusLines[201]+"\r\n", time.Hour)
	node.kill()
	node.answerWith(whole)
	node.start(t)
	awaitTrue(t, c.front.Idle)
	_, err = Claim(k, l, time.Hour)
	if err != nil || k.Failing.Load() != 0 {
		t.Errorf("it is there: %v, and %d servers are not fine", err, k.Failing.Load())
	}
}

// TestANodeIsConnectedToInAdvance as a node of its cluster, and not as a server of its own.
func TestANodeIsConnectedToInAdvance(t *testing.T) {
	probed := make(chan string, 100)
	var node *fakeServer
	node = startFake(t, func(args []string) string {
		switch {
		case args[0] == "CLUSTER":
			return slotsAt(node.address)
		case len(args) > 3 && args[1] == probeScript.sha1:
			probed <- args[3]
		}
		return granted(args)
	})
	opts := fast(node.address)
	opts.Cluster = true
	opts.MinIdleConns = 1
	c := New(opts, NewBacklog())
	defer c.Close()
	k := NewKeys(c, "idem")
	_, err := Claim(k, leaseOf("k"), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if key := <-probed; !strings.HasPrefix(key, "idem:probe") {
		t.Errorf("the key of the probe is %q", key)
	}
}

// TestANodeWithoutSlotsHidesNoOther has a node that was reset, or knows nobody yet, beside those that have the slots.
func TestANodeWithoutSlotsHidesNoOther(t *testing.T) {
	none := func([]string) string { return "*0\r\n" }
	stray := startFake(t, none)
	node := startNode(t)
	c, k, l := overCluster(t, stray.address, node.address)
	_, err := Claim(k, l, time.Hour)
	if err != nil {
		t.Fatalf("the first map: %v", err)
	}
	node.answerWith(none)
	time.Sleep(2 * refreshPause)
	err = c.refresh(node.address, "")
	if !errors.Is(err, errUncovered) || c.known(0) == nil {
		t.Errorf("no node has slots: %v, and slot 0 is at %v", err, c.known(0))
	}
}

// slowConn is a connection that takes its time to be closed.
type slowConn struct {
	redis.Conn
	closing, proceed chan struct{}
}

func (c *slowConn) Close() error {
	close(c.closing)
	<-c.proceed
	return nil
}

// TestAClusterIsProbedWhileItIsClosed since what has a connection, for which Close may wait, needs to know the slots.
func TestAClusterIsProbedWhileItIsClosed(t *testing.T) {
	node := startNode(t)
	c, k, l := overCluster(t, node.address)
	_, err := Claim(k, l, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	client := c.masters()[0]
	conn := &slowConn{closing: make(chan struct{}), proceed: make(chan struct{})}
	pc := <-client.conns
	disconnect(pc)
	pc.conn = conn
	client.conns <- pc
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		c.front.Close()
	}()
	<-conn.closing
	probed := make(chan struct{})
	go func() {
		defer close(probed)
		probeKey(client)
	}()
	select {
	case <-probed:
	case <-time.After(5 * time.Second):
		t.Error("a probe waits for Close, which may wait for it")
	}
	close(conn.proceed)
	<-closed
}

// TestTheFirstRequestOfAnOutageWaitsForOneTimeOut has no node of a cluster answer any more.
func TestTheFirstRequestOfAnOutageWaitsForOneTimeOut(t *testing.T) {
	nodes := []*fakeServer{startNode(t), startNode(t), startNode(t)}
	opts := fast(strings.Join([]string{nodes[0].address, nodes[1].address, nodes[2].address}, ","))
	opts.Cluster = true
	opts.ReadTimeout = 3 * time.Second // two of them take longer than one on a busy machine
	front := New(opts, NewBacklog())
	defer front.Close()
	k, l := NewKeys(front, "idem"), leaseOf("k")
	_, err := Claim(k, l, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	never := make(chan struct{})
	defer close(never)
	for _, node := range nodes {
		node.answerWith(func([]string) string {
			<-never
			return ""
		})
	}
	time.Sleep(2 * refreshPause)
	begin := time.Now()
	_, err = Claim(k, l, time.Hour)
	if took := time.Since(begin); !errors.Is(err, errUnreachable) || took >= 2*opts.ReadTimeout {
		t.Errorf("after %s: %v", took, err)
	}
}

// TestTheTroubleOfANodeThatIsBack is not told any more, though another is still away.
func TestTheTroubleOfANodeThatIsBack(t *testing.T) {
	away, back := stuckProbes(t, granted), startFake(t, granted)
	c, _, _ := overCluster(t, away.address)
	trip(c.nodeAt(away.address), down, errors.New("the first is away"))
	trip(c.nodeAt(back.address), refusing, errors.New("the second is away"))
	awaitTrue(t, func() bool { return isFine(c.nodeAt(back.address)) })
	if cause := c.front.Trouble(); cause == nil || cause.Error() != "the first is away" {
		t.Errorf("it is told that %v", cause)
	}
}

// TestAnErrorHasTheAddressOfItsNode, also when nothing is sent to that any more.
func TestAnErrorHasTheAddressOfItsNode(t *testing.T) {
	var node *fakeServer
	node = stuckProbes(t, func(args []string) string {
		if args[0] == "CLUSTER" {
			return slotsAt(node.address)
		}
		return granted(args)
	})
	c, k, l := overCluster(t, node.address, startNode(t).address)
	trip(c.masters()[0], down, errors.New("it is away"))
	_, err := Claim(k, l, time.Hour)
	if !errors.Is(err, ErrDown) || !strings.HasPrefix(err.Error(), "redis "+node.address+": ") {
		t.Errorf("the error for a node at %s is %v", node.address, err)
	}
}

// TestAClusterIsAnotherPlace than a server of its own at the same address.
func TestAClusterIsAnotherPlace(t *testing.T) {
	alone, cluster := Options{Address: "a:1,b:2"}, Options{Address: "b:2,a:1", Cluster: true}
	if alone.Dataset() == cluster.Dataset() {
		t.Errorf("both are %q", alone.Dataset())
	}
	alone.Cluster = true
	if alone.Dataset() != cluster.Dataset() {
		t.Errorf("the same nodes are %q and %q", alone.Dataset(), cluster.Dataset())
	}
}

// TestANodeThatRefusesHoldsBackNoOther, and is not asked again and again itself.
func TestANodeThatRefusesHoldsBackNoOther(t *testing.T) {
	var well, ill *fakeServer
	var writes atomic.Int64
	var cured atomic.Bool
	halves := func() string {
		slots := "*2\r\n"
		for i, node := range []*fakeServer{well, ill} {
			host, port, _ := net.SplitHostPort(node.address)
			slots += fmt.Sprintf("*3\r\n:%d\r\n:%d\r\n*2\r\n%s:%s\r\n", i*slotCount/2, (i+1)*slotCount/2-1, bulk(host), port)
		}
		return slots
	}
	well = startFake(t, func(args []string) string {
		if args[0] == "CLUSTER" {
			return halves()
		}
		return granted(args)
	})
	ill = startFake(t, func(args []string) string {
		switch {
		case args[0] == "CLUSTER":
			return halves()
		case args[1] == writeBackScript.sha1:
			writes.Add(1)
		}
		if cured.Load() {
			return granted(args)
		}
		return "-OOM command not allowed when used memory > 'maxmemory'.\r\n"
	})
	c, k, _ := overCluster(t, well.address, ill.address)
	b := c.front.backlog
	left := func() int {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.pending.Len() + b.waiting.Len()
	}
	toIll := 0
	for i := 0; i < 100; i++ {
		l := leaseOf(fmt.Sprint("k", i))
		if Slot(wire(k, l)[k.start:k.end]) >= slotCount/2 {
			toIll++
		}
		WriteLater(k, l, answerOf(""), time.Hour)
	}
	awaitTrue(t, func() bool { return left() == toIll })
	time.Sleep(2 * probePause) // for more writes
	if n := writes.Load(); n != int64(toIll) {
		t.Errorf("%d writes of %d to a node that refuses them", n, toIll)
	}
	cured.Store(true)
	awaitTrue(t, func() bool { return left() == 0 })
}
