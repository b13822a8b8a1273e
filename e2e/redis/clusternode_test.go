package redis

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// TestAFullNodeIsFullUntilItHasRoom has one node after the other out of memory: most have not the slot that any one key is in.
func TestAFullNodeIsFullUntilItHasRoom(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		c := redistest.StartMasters(t, 3)
		s := overRedis(t, host, inCluster(c))
		for range 30 {
			s.WantRun(rig.UnusedKey())
		}
		for _, node := range c.Masters {
			node.Do("CONFIG", "SET", "maxmemory", "1")
			for s.Lines("Redis refuses to write", node.Addr) == 0 {
				s.Send(rig.Post("/", rig.UnusedKey()))
			}
			for range 5 {
				for range 10 {
					s.Send(rig.Post("/", rig.UnusedKey()))
				}
				refused := rig.InfoField(node, "stats", "total_error_replies")
				for rig.InfoField(node, "stats", "total_error_replies") == refused { // until it is probed
					time.Sleep(10 * time.Millisecond)
				}
			}
			if n := s.Lines("Redis refuses to write", node.Addr) + s.Lines("Redis is back", node.Addr); n != 1 {
				t.Errorf("%d lines about a node that is full all the time, want one", n)
			}
			node.Do("CONFIG", "SET", "maxmemory", "0")
			for s.Lines("Redis is back", node.Addr) == 0 {
				time.Sleep(10 * time.Millisecond)
			}
		}
		for range 30 {
			s.WantRun(rig.UnusedKey())
		}
		s.NoneTwice()
	})
}

// TestSlotsMoveToIPv6 has a node that names another one by an address without brackets, as Redis does.
func TestSlotsMoveToIPv6(t *testing.T) {
	listener, err := net.Listen("tcp", "[::1]:0")
	if err != nil && os.Getenv("CI") == "" {
		t.Skipf("this test needs IPv6: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	server := redistest.Start(t)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go forward(conn, server.Addr, func(command []string) bool {
				own := command[0] == "ASKING" // which only a node of a cluster knows
				if own {
					fmt.Fprint(conn, "+OK\r\n")
				}
				return !own
			})
		}
	}()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	for _, form := range []string{"MOVED 1 ::1:" + port, "MOVED 1 [::1]:" + port, "ASK 1 ::1:" + port} {
		t.Run(form[:9], func(t *testing.T) {
			rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
				var redirected atomic.Int64
				node := rig.Listen(t, func(conn net.Conn) {
					r := bufio.NewReader(conn)
					for {
						command, err := readCommand(r)
						if err != nil {
							return
						}
						if command[0] == "CLUSTER" {
							_, own, _ := net.SplitHostPort(conn.LocalAddr().String())
							fmt.Fprintf(conn, "*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:%s\r\n", own)
							continue
						}
						redirected.Add(1)
						fmt.Fprintf(conn, "-%s\r\n", form)
					}
				})
				s := overRedis(t, host, map[string]any{"endpoints": node, "cluster": "true"})
				s.WantRun("k")
				if redirected.Load() == 0 {
					t.Error("the node was not asked")
				}
			})
		})
	}
}

// forward carries commands from conn to the server at addr, as far as passes says so, which may change them, and replies back.
func forward(conn net.Conn, addr string, passes func(command []string) bool) {
	defer conn.Close()
	server, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		_, _ = io.Copy(conn, server)
		_ = conn.Close()
	}()
	r := bufio.NewReader(conn)
	for {
		command, err := readCommand(r)
		if err != nil {
			return
		}
		if !passes(command) {
			continue
		}
		fmt.Fprintf(server, "*%d\r\n", len(command))
		for _, arg := range command {
			fmt.Fprintf(server, "$%d\r\n%s\r\n", len(arg), arg)
		}
	}
}

// readCommand reads one command in Redis' protocol.
func readCommand(r *bufio.Reader) ([]string, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return nil, err
	}
	n, err := strconv.Atoi(strings.Trim(line, "*\r\n"))
	command := make([]string, n)
	for i := range command {
		if err == nil {
			line, err = r.ReadString('\n')
		}
		size, _ := strconv.Atoi(strings.Trim(line, "$\r\n"))
		arg := make([]byte, size+2)
		if err == nil {
			_, err = io.ReadFull(r, arg)
		}
		command[i] = string(arg[:size])
	}
	return command, err
}
