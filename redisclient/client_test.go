package redisclient

import (
	"bufio"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/example/traefik-idem/store"
)

// within is how long what must not hang may take.
const within = 10 * time.Second

// fakeServer answers each command with what handle returns; if that is empty, it closes the connection.
type fakeServer struct {
	address string
	handle  func(args []string) string

	mu       sync.Mutex // guards everything below
	listener net.Listener
	conns    []net.Conn
}

// startFake starts a server on a free port of this host.
func startFake(t *testing.T, handle func(args []string) string) *fakeServer {
	t.Helper()
	s := &fakeServer{address: "127.0.0.1:0", handle: handle}
	s.start(t)
	t.Cleanup(s.kill)
	return s
}

func (s *fakeServer) start(t *testing.T) {
	t.Helper()
	listener, err := net.Listen("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listener, s.address = listener, listener.Addr().String()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns = append(s.conns, conn)
			s.mu.Unlock()
			go s.serve(conn)
		}
	}()
}

// kill ends the server. What it was sent has no reply.
func (s *fakeServer) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.listener.Close()
	for _, conn := range s.conns {
		_ = conn.Close()
	}
}

func (s *fakeServer) serve(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	for {
		line, err := r.ReadString('\n')
		n, _ := strconv.Atoi(strings.Trim(line, "*\r\n"))
		args := make([]string, n)
		for i := range args {
			line, err = r.ReadString('\n')
			size, _ := strconv.Atoi(strings.Trim(line, "$\r\n"))
			arg := make([]byte, size+2)
			if err == nil {
				_, err = io.ReadFull(r, arg)
			}
			args[i] = string(arg[:size])
		}
		if err != nil {
			return
		}
		reply := s.handle(args)
		if reply == "" {
			return
		}
		_, _ = io.WriteString(conn, reply)
	}
}

// granted is what a server replies that grants every claim, keeps every answer, and has as many replicas as are asked for.
func granted(args []string) string {
	if len(args) > 1 && (args[1] == claimScript.sha1 || args[1] == claimScript.source) {
		return nilLine
	}
	return oneLine
}

// fast are options for a server on this host, which does not answer for long.
func fast(address string) Options {
	return Options{Address: address, DialTimeout: time.Second, ReadTimeout: time.Second, WriteTimeout: time.Second}
}

// TestRedisDiesUnderALongAnswer has as few connections as can be configured: none is left to find out why the answer failed.
func TestRedisDiesUnderALongAnswer(t *testing.T) {
	for name, limit := range map[string]func(*Options){
		"no limit":       func(*Options) {},
		"maxActiveConns": func(o *Options) { o.MaxActiveConns = 1 },
		"poolSize":       func(o *Options) { o.PoolSize = 1 },
		"waitReplicas":   func(o *Options) { o.WaitReplicas = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			var server *fakeServer
			server = startFake(t, func(args []string) string {
				if len(strings.Join(args, "")) > longBytes {
					server.kill()
				}
				return granted(args)
			})
			opts := fast(server.address)
			limit(&opts)
			c := New(opts)
			defer c.Close()
			k := NewKeys(c, "idem")
			fingerprint := strings.Repeat("f", store.FingerprintSize)
			l := &store.Lease{Key: "k", Fingerprint: fingerprint, Owner: "o-1"}
			held, err := Claim(k, l, time.Hour)
			if held != nil || err != nil {
				t.Fatalf("the claim: %+v, %v", held, err)
			}
			ended := make(chan error)
			go func() {
				_, err := Finish(k, l, store.DoneHead+fingerprint+store.StatusLines[201]+"\r\n"+strings.Repeat("x", 40<<10), time.Hour)
				ended <- err
				_, err = Claim(k, &store.Lease{Key: "l", Fingerprint: fingerprint, Owner: "o-2"}, time.Hour)
				ended <- err
			}()
			for step, want := range []error{errUnreachable, ErrDown} {
				select {
				case err := <-ended:
					if !errors.Is(err, want) || errors.Is(err, ErrTooLarge) {
						t.Errorf("step %d: %v, want %v", step, err, want)
					}
				case <-time.After(within):
					t.Fatalf("step %d hangs", step)
				}
			}
		})
	}
}
