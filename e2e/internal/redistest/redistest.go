// Package redistest runs real Redis servers for tests and the load benchmark.
package redistest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/example/traefik-idem/e2e/internal/launch"
)

const (
	startTimeout = 20 * time.Second
	stopTimeout  = 5 * time.Second
	replyTimeout = time.Minute
	attempts     = 10 // ports tried before giving up
)

// T is what servers need of a testing.TB, so that a program that is no test can run them too. Fatal, Fatalf and Skip do not
// return.
type T interface {
	Helper()
	TempDir() string
	Cleanup(f func())
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Skip(args ...any)
}

// Server is a redis-server process on a port of the loopback interface that was free.
type Server struct {
	Addr string    // host:port
	Cmd  *exec.Cmd // the process that runs now, or ran last

	TLSAddr  string // host:port where it speaks TLS; empty: nowhere
	Password string // that Do logs in with; empty: none

	ca        *Authority // has signed cert; nil: the server does not speak TLS at Addr
	cert, key string     // paths of files

	t      T
	path   string
	dir    string
	config string // path of a configuration file; empty: none
	args   []string
	exited chan struct{} // closed when Cmd is gone
}

// Path returns where redis-server is, or what REDIS_SERVER names instead, such as Valkey's. Without one the test is skipped,
// except in CI, where nothing may be skipped.
func Path(t T) string {
	t.Helper()
	name := os.Getenv("REDIS_SERVER")
	if name == "" {
		name = "redis-server"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("this test needs a Redis, and in CI it must be there: %v", err)
		}
		t.Skip("this test needs " + name + ", which is not installed")
	}
	return path
}

// Start runs a server that keeps nothing on disk, with args added to its command line, and returns when it answers.
// It ends with the test, or with the process of the test if that comes first.
func Start(t T, args ...string) *Server {
	t.Helper()
	return startWith(t, nil, args...)
}

// startWith is Start for a server that speaks nothing but TLS, also to its replicas and to the nodes of its cluster, with
// certificates of ca; without TLS if that is nil.
func startWith(t T, ca *Authority, args ...string) *Server {
	t.Helper()
	s := newServer(t, ca)
	s.args = args
	s.start(func() { s.Addr = freeAddr(t) })
	return s
}

// newServer is startWith for a server that is started later.
func newServer(t T, ca *Authority) *Server {
	t.Helper()
	s := &Server{t: t, path: Path(t), dir: t.TempDir(), ca: ca}
	if ca != nil {
		s.cert, s.key = ca.Issue("127.0.0.1")
	}
	t.Cleanup(s.Kill)
	return s
}

// StartTLS is Start for a server that speaks TLS too, at TLSAddr, with a certificate for its address, and only to clients
// with a certificate of ca.
func StartTLS(t T, ca *Authority, args ...string) *Server {
	t.Helper()
	s := &Server{t: t, path: Path(t), dir: t.TempDir()}
	t.Cleanup(s.Kill)
	cert, key := ca.Issue("127.0.0.1")
	s.start(func() {
		s.Addr, s.TLSAddr = freeAddr(t), freeAddr(t)
		_, port, _ := net.SplitHostPort(s.TLSAddr)
		s.args = append([]string{"--tls-port", port, "--tls-ca-cert-file", ca.CertFile, "--tls-cert-file", cert, "--tls-key-file", key}, args...)
	})
	return s
}

// start launches the server at addresses that choose finds.
func (s *Server) start(choose func()) {
	s.t.Helper()
	for range attempts {
		choose()
		if s.launch() {
			return
		}
	}
	s.t.Fatalf("redis-server found each of %d free ports taken", attempts)
}

// Restart runs the server again, empty, at the address that it had before Stop or Kill.
func (s *Server) Restart() {
	s.t.Helper()
	s.Kill()
	for range attempts {
		if s.launch() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	s.t.Fatalf("restart redis-server: %s is taken", s.Addr)
}

// Lapse does to clients what a restart does, but is never away meanwhile: data and scripts are gone, and connections are closed.
// While a server starts again, what a plugin sends in the background may find out that it is away.
func (s *Server) Lapse() {
	s.t.Helper()
	s.Do("FLUSHALL")
	s.Do("SCRIPT", "FLUSH")
	s.Do("CLIENT", "KILL", "TYPE", "normal") // but the one that says so
}

// Stop shuts the server down as an administrator would: connections are closed, and new ones refused.
func (s *Server) Stop() {
	s.signal(syscall.SIGTERM)
	s.signal(syscall.SIGCONT) // a paused server does not see the first signal
	select {
	case <-s.exited:
	case <-time.After(stopTimeout):
		s.Kill()
	}
}

// Kill ends the server at once.
func (s *Server) Kill() {
	if s.exited == nil {
		return
	}
	s.signal(syscall.SIGKILL)
	<-s.exited
}

// Pause freezes the server: connections stay open, new ones are accepted by the kernel, and nothing is answered.
func (s *Server) Pause() { s.signal(syscall.SIGSTOP) }

// Resume ends Pause.
func (s *Server) Resume() { s.signal(syscall.SIGCONT) }

// Pass returns when more than d has passed by the server's own clock, which is what it expires keys by: a key is there
// up to and including the millisecond at which it ends.
func (s *Server) Pass(d time.Duration) {
	s.t.Helper()
	end := s.now().Add(d)
	for now := s.now(); !now.After(end); now = s.now() {
		time.Sleep(end.Sub(now) + time.Millisecond)
	}
}

// now returns the server's clock in the whole milliseconds that it counts in.
func (s *Server) now() time.Time {
	s.t.Helper()
	var seconds, micros int64
	_, err := fmt.Sscan(s.Do("TIME"), &seconds, &micros)
	if err != nil {
		s.t.Fatalf("redis %s: TIME: %v", s.Addr, err)
	}
	return time.UnixMilli(seconds*1000 + micros/1000)
}

// Do sends one command over a connection of its own and returns the reply as redis-cli prints it to a pipe: nil is
// empty, an array has one element per line. Anything but a good reply fails the test. It may be called from any
// goroutine.
func (s *Server) Do(args ...string) string {
	s.t.Helper()
	reply, err := s.do(args...)
	if err != nil {
		s.t.Errorf("redis %s: %s: %v", s.Addr, strings.Join(args, " "), err)
		return ""
	}
	return text(reply)
}

func (s *Server) do(args ...string) (any, error) {
	options := []redis.DialOption{redis.DialPassword(s.Password),
		redis.DialConnectTimeout(replyTimeout), redis.DialReadTimeout(replyTimeout), redis.DialWriteTimeout(replyTimeout)}
	if s.ca != nil {
		options = append(options, redis.DialUseTLS(true), redis.DialTLSConfig(s.ca.client(s.cert, s.key)))
	}
	conn, err := redis.Dial("tcp", s.Addr, options...)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	rest := make([]any, len(args)-1)
	for i, arg := range args[1:] {
		rest[i] = arg
	}
	return conn.Do(args[0], rest...)
}

func text(reply any) string {
	switch r := reply.(type) {
	case nil:
		return ""
	case []byte:
		return string(r)
	case []any:
		lines := make([]string, len(r))
		for i, element := range r {
			lines[i] = text(element)
		}
		return strings.Join(lines, "\n")
	default:
		return fmt.Sprint(r)
	}
}

// ready is what a server and a sentinel write when they listen.
var ready = regexp.MustCompile("eady to accept connections|Sentinel ID is")

// launch runs the process and waits until it answers; false means that somebody else has the port.
func (s *Server) launch() bool {
	s.t.Helper()
	host, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		s.t.Fatal(err)
	}
	logName := filepath.Join(s.dir, "redis-server.log")
	logFile, err := os.Create(logName)
	if err != nil {
		s.t.Fatalf("log of redis-server: %v", err)
	}
	defer logFile.Close()
	log := func() []byte {
		out, err := os.ReadFile(logName)
		if err != nil {
			s.t.Fatalf("log of redis-server: %v", err)
		}
		return out
	}

	args := []string{"--port", port, "--bind", host, "--dir", s.dir}
	if s.ca != nil {
		args = []string{"--port", "0", "--tls-port", port, "--bind", host, "--dir", s.dir, "--tls-replication", "yes", "--tls-cluster", "yes",
			"--tls-ca-cert-file", s.ca.CertFile, "--tls-cert-file", s.cert, "--tls-key-file", s.key}
	}
	if s.config == "" {
		args = append(args, "--save", "", "--appendonly", "no")
	}
	args = append(args, s.args...)
	if s.config != "" {
		args = append([]string{s.config}, args...)
	}
	cmd := exec.Command(s.path, args...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	dieWithParent(cmd)
	exited := make(chan struct{})
	started := make(chan error)
	go func() {
		defer close(exited)
		// The kernel takes the end of the thread that started the process for the end of the parent. Locked to this
		// goroutine, the thread outlives the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // it is meant to be killed
		}
	}()
	if err := <-started; err != nil {
		s.t.Fatalf("start redis-server: %v", err)
	}
	s.Cmd, s.exited = cmd, exited

	// Its own log says that the port is its own; an answer to PING could be another server's.
	for end := time.Now().Add(startTimeout); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ready.Match(log()) && s.answers() {
			return true
		}
		select {
		case <-exited:
			out := log()
			if bytes.Contains(out, []byte("Address already in use")) {
				return false
			}
			s.t.Fatalf("redis-server ended before it was ready: %v\n%s", cmd.ProcessState, out)
		default:
		}
	}
	s.t.Fatalf("redis-server does not answer after %v\n%s", startTimeout, log())
	return false
}

// answers says whether PING has a reply. A server that asks for a password is up as well.
func (s *Server) answers() bool {
	reply, err := s.do("PING")
	return reply == "PONG" || err != nil && strings.HasPrefix(err.Error(), "NOAUTH")
}

func (s *Server) signal(sig os.Signal) { _ = s.Cmd.Process.Signal(sig) } // one that has ended needs no signal

func freeAddr(t T) string {
	t.Helper()
	addr, err := launch.FreeAddress("")
	if err != nil {
		t.Fatalf("find a free port for redis-server: %v", err)
	}
	return addr
}
