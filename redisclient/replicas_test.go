package redisclient

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"
)

// stuckProbes is a server whose probes get no reply until the test ends, so that a breaker that has tripped stays so.
func stuckProbes(t *testing.T, handle func(args []string) string) *fakeServer {
	t.Helper()
	end := make(chan struct{})
	server := startFake(t, func(args []string) string {
		if len(args) > 1 && args[1] == probeScript.sha1 {
			<-end
			return ""
		}
		return handle(args)
	})
	t.Cleanup(func() { close(end) })
	return server
}

// TestAClaimThatMayBeGrantedCountsAsSent, though the breaker trips before it is sent once more: somebody has to give it back.
func TestAClaimThatMayBeGrantedCountsAsSent(t *testing.T) {
	t.Run("before replicas have it", func(t *testing.T) {
		var c *Client
		server := stuckProbes(t, func(args []string) string {
			if args[1] == claimScript.sha1 {
				trip(c, down, errors.New("another command failed"))
			}
			return granted(args)
		})
		opts := fast(server.address)
		opts.WaitReplicas = 1
		c = New(opts, NewBacklog())
		defer c.Close()
		expectSent(t, NewKeys(c, "idem"))
	})
	t.Run("before replicas have it, after the script was lost", func(t *testing.T) {
		var c *Client
		var claims atomic.Int64
		server := stuckProbes(t, func(args []string) string {
			if args[1] == claimScript.sha1 && claims.Add(1) == 2 {
				trip(c, down, errors.New("another command failed"))
				return "-NOSCRIPT No matching script.\r\n"
			}
			return granted(args)
		})
		opts := fast(server.address)
		opts.WaitReplicas = 1
		c = New(opts, NewBacklog())
		defer c.Close()
		expectSent(t, NewKeys(c, "idem"))
	})
	t.Run("before the next master has it", func(t *testing.T) {
		heir := stuckProbes(t, func(args []string) string { return granted(args) })
		node := startNode(t)
		c, k, _ := overCluster(t, node.address)
		_, err := Claim(k, leaseOf("warm"), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		trip(c.nodeAt(heir.address), down, errors.New("another command failed"))
		slots := func(args []string) string {
			if args[0] == "CLUSTER" {
				return slotsAt(heir.address)
			}
			return ""
		}
		heir.answerWith(slots)
		node.answerWith(slots)
		time.Sleep(2 * refreshPause)
		expectSent(t, k)
	})
}

// expectSent expects that a claim fails as one that may have been granted.
func expectSent(t *testing.T, k *Keys) {
	t.Helper()
	held, err := Claim(k, leaseOf("k"), time.Hour)
	if held != nil || !errors.Is(err, errUnreachable) || errors.Is(err, ErrDown) {
		t.Errorf("%+v, %v", held, err)
	}
}
