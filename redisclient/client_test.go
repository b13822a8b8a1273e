package redisclient

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/example/traefik-idem/store"
)

// within is how long what must not hang may take.
const within = time.Minute

// fakeServer answers each command with what handle returns; if that is empty, it closes the connection.
type fakeServer struct {
	address string

	mu       sync.Mutex // guards everything below
	handle   func(args []string) string
	listener net.Listener
	conns    []net.Conn
}

// startFake starts a server on a free port of this host.
func startFake(t *testing.T, handle func(args []string) string) *fakeServer {
	t.Helper()
	s := &fakeServer{address: "127.0.0.1:0", handle: handle}
	s.start(t)
	s.address = s.listener.Addr().String()
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
	s.listener = listener
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

// accepted counts the connections that there have been.
func (s *fakeServer) accepted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// answerWith changes how the server answers, and returns how it did before.
func (s *fakeServer) answerWith(handle func(args []string) string) func(args []string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.handle
	s.handle = handle
	return before
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
		s.mu.Lock()
		handle := s.handle
		s.mu.Unlock()
		reply := handle(args)
		if reply == "" {
			return
		}
		_, _ = io.WriteString(conn, reply)
	}
}

// granted is what a server replies that grants every claim, keeps every answer, and has as many replicas as are asked for.
func granted(args []string) string {
	if len(args) > 1 && (args[1] == claimScript.sha1 || args[1] == claimScript.lua) {
		return nilLine
	}
	return oneLine
}

// fast are options for a server on this host, which does not answer for long.
func fast(address string) Options {
	return Options{Address: address, DialTimeout: time.Second, ReadTimeout: time.Second, WriteTimeout: time.Second}
}

// leaseOf returns a lease of key.
func leaseOf(key string) *store.Lease {
	return &store.Lease{Key: key, Fingerprint: strings.Repeat("f", store.FingerprintSize), Owner: "o-1"}
}

// answerOf returns the record of an answer with this body to the request of leaseOf.
func answerOf(body string) string {
	return store.DoneHead + leaseOf("").Fingerprint + store.StatusLines[201] + "\r\n" + body
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
			c := New(opts, NewBacklog())
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

// TestLongCommandsAreSentInTheirOrder has long commands among short ones: none may overtake an older one of its kind.
func TestLongCommandsAreSentInTheirOrder(t *testing.T) {
	long := func() *command { return &command{wire: strings.Repeat("x", longBytes+1)} }
	short := func() *command { return &command{wire: strings.Repeat("x", longBytes)} }
	same := func(got []*command, want ...*command) bool { return slices.Equal(got, want) }
	c := New(Options{Address: nobody}, NewBacklog())
	defer c.Close()
	c.spare, c.bulk.spare = 0, 0 // nobody sends
	a, b, d, e, f, g := long(), short(), long(), short(), short(), long()
	c.queue = []*command{g}
	first := splitBatch(c, []*command{a, b, d, e, f})
	if !same(first, b, e) || !same(c.queue, f, g) || !same(c.bulk.queue, a, d) {
		t.Errorf("%d are sent, %d stay, %d are long ones", len(first), len(c.queue), len(c.bulk.queue))
	}
	first = splitBatch(c, c.queue)
	if !same(first, f) || !same(c.bulk.queue, a, d, g) {
		t.Errorf("%d are sent, %d are long ones: the youngest is not the last", len(first), len(c.bulk.queue))
	}
	c.queue = nil
	taken := c.bulk.queue
	c.bulk.queue = nil
	first = splitBatch(c.bulk, taken)
	if !same(first, a) || !same(c.bulk.queue, d, g) {
		t.Errorf("%d long ones are sent, %d stay", len(first), len(c.bulk.queue))
	}
}

// TestAProxyHasNoServer has a proxy between that answers everything with an error of its own, and then finds the server. What was
// answered meanwhile is written. An error about one key is none of the server.
func TestAProxyHasNoServer(t *testing.T) {
	server := startFake(t, granted)
	fail := func(reply string) {
		server.answerWith(func([]string) string { return "-" + reply + "\r\n" })
	}
	c := New(fast(server.address), NewBacklog())
	defer c.Close()
	k := NewKeys(c, "idem")
	l := &store.Lease{Key: "k", Fingerprint: strings.Repeat("f", store.FingerprintSize), Owner: "o-1"}
	record := store.DoneHead + l.Fingerprint + store.StatusLines[201] + "\r\n"
	for reply, state := range map[string]int32{
		"ERR no upstream host": refusing,
		"ERR max number of clients + cluster connections reached": down,
		"DENIED Redis is running in protected mode":               down,
	} {
		fail(reply)
		_, err := Claim(k, l, time.Hour)
		if err == nil || c.state() != state || k.Failing.Load() != 1 {
			t.Errorf("%s: %v, and the server's state is %d", reply, err, c.state())
		}
		WriteLater(k, l, record, time.Hour)
		time.Sleep(10 * time.Millisecond)
		if c.Idle() {
			t.Errorf("%s: an answer is dropped", reply)
		}
		server.answerWith(granted)
		awaitTrue(t, c.Idle)
		awaitTrue(t, func() bool { return c.state() == fine })
	}
	fail("WRONGTYPE Operation against a key holding the wrong kind of value")
	WriteLater(k, l, record, time.Hour)
	awaitTrue(t, c.Idle)
	if c.state() != fine || c.health.outages.Load() != 3 {
		t.Errorf("a value of another application is an outage: state %d", c.state())
	}
}

// TestAnErrorThatNobodyKnows is one of each write to the key, while the server does all that a probe wants: what is written is
// dropped when it is refused without an answer as well.
func TestAnErrorThatNobodyKnows(t *testing.T) {
	unknown := fmt.Sprintf(store.UnknownFormat, leaseOf("").Fingerprint, "o-1")
	for record, want := range map[string]string{answerOf("body"): store.KeyOnly(answerOf("body")), unknown: unknown} {
		for _, refused := range []int{1, 2} {
			lines := captureLog(t)
			var mu sync.Mutex
			var writes []string
			server := startFake(t, func(args []string) string {
				if len(args) < 2 || args[1] != writeBackScript.sha1 {
					return granted(args)
				}
				mu.Lock()
				defer mu.Unlock()
				writes = append(writes, args[5])
				if len(writes) > refused {
					return granted(args)
				}
				return "-ERR no such luck\r\n"
			})
			b := NewBacklog()
			c := New(fast(server.address), b)
			WriteLater(NewKeys(c, "idem"), leaseOf("k"), record, time.Hour)
			awaitTrue(t, func() bool { return isWritten(b) })
			c.Close()
			mu.Lock()
			defer mu.Unlock()
			if len(writes) != 2 || writes[0] != record || writes[1] != want || c.state() != fine {
				t.Errorf("%q was written, and the server's state is %d", writes, c.state())
			}
			told := 1
			if refused == 1 && record == want {
				told = 0
			}
			if said := lines.find("other Traefiks .*cause=.*no such luck"); len(said) != told {
				t.Errorf("of %.6s, refused %d times, it was told %q", record, refused, said)
			}
		}
	}
}

// awaitTrue waits until done is true.
func awaitTrue(t *testing.T, done func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("what is awaited does not come")
		}
	}
}
