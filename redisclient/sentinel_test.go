package redisclient

import (
	"net"
	"strconv"
	"sync/atomic"
	"testing"
)

// TestAnOldAnswerOfTheOnlySentinel has one address behind which there may be several sentinels, one of them cut off: it names the
// master of before. In the end all do, because the group was set up anew.
func TestAnOldAnswerOfTheOnlySentinel(t *testing.T) {
	const now, before = "10.0.0.2:6379", "10.0.0.1:6379"
	var asked atomic.Int64
	naming := func(address string, epoch int) func(args []string) string {
		host, port, _ := net.SplitHostPort(address)
		return func(args []string) string {
			if args[1] == "MASTER" {
				return "*2\r\n" + bulk("config-epoch") + bulk(strconv.Itoa(epoch))
			}
			asked.Add(1)
			return "*2\r\n" + bulk(host) + bulk(port)
		}
	}
	server := startFake(t, naming(now, 7))
	opts := fast(server.address)
	opts.Sentinel.MasterName = "shop"
	m := newMaster(opts)
	defer m.close()
	awaitTrue(t, func() bool { return m.current() == now })

	server.answerWith(naming(before, 6))
	conns := server.accepted()
	awaitTrue(t, func() bool { return server.accepted() > conns+3 }) // each time perhaps to another sentinel
	server.answerWith(naming(now, 7))
	asked.Store(0)
	awaitTrue(t, func() bool { return asked.Load() > 2 })
	if m.current() != now {
		t.Errorf("an old answer has led back to %s", m.current())
	}
	server.answerWith(naming(before, 0))
	awaitTrue(t, func() bool { return m.current() == before })
}
