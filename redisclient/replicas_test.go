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

// TestAClaimThatMayBeGrantedIsDoubtful, though the breaker trips before it is sent once more: somebody has to give it back.
func TestAClaimThatMayBeGrantedIsDoubtful(t *testing.T) {
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
		expectDoubtful(t, NewKeys(c, "idem"))
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
		expectDoubtful(t, NewKeys(c, "idem"))
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
		expectDoubtful(t, k)
	})
}

// expectDoubtful expects that a claim fails as one that may have been granted.
func expectDoubtful(t *testing.T, k *Keys) {
	t.Helper()
	l := leaseOf("k")
	held, err := Claim(k, l, time.Hour)
	if held != nil || err == nil || !l.Doubtful {
		t.Errorf("%+v, %v; it is doubtful: %t", held, err, l.Doubtful)
	}
}

// TestARefusedClaimIsNotDoubtful, unless it was sent before without a reply, or nobody knows who has refused it.
func TestARefusedClaimIsNotDoubtful(t *testing.T) {
	for _, test := range []struct {
		refusal     string
		lost, doubt bool
	}{
		{"OOM command not allowed when used memory > 'maxmemory'.", false, false},
		{"LOADING Redis is loading the dataset in memory", false, false},
		{"READONLY You can't write against a read only replica.", false, false},
		{"WRONGTYPE Operation against a key holding the wrong kind of value", false, false},
		{"NOPERM this user has no permissions to access one of the keys", false, false},
		{"LOADING Redis is loading the dataset in memory", true, true},
		{"ERR upstream timeout", false, true},
	} {
		lost := &atomic.Bool{}
		server := stuckProbes(t, func(args []string) string {
			switch {
			case len(args) < 2 || args[1] != claimScript.sha1:
				return oneLine
			case lost.CompareAndSwap(true, false):
				return ""
			}
			return "-" + test.refusal + "\r\n"
		})
		c := New(fast(server.address), NewBacklog())
		defer c.Close()
		k, l := NewKeys(c, "idem"), leaseOf("k")
		_, err := Renew(k, l, time.Hour) // there is a connection now
		if err != nil {
			t.Fatal(err)
		}
		lost.Store(test.lost)
		_, err = Claim(k, l, time.Hour)
		if err == nil || l.Doubtful != test.doubt {
			t.Errorf("%s: %v; it is doubtful: %t", test.refusal, err, l.Doubtful)
		}
	}
}
