package redistest

import (
	"bufio"
	"errors"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestServer(t *testing.T) {
	s := Start(t)
	if got := s.Do("SET", "k", "v"); got != "OK" {
		t.Errorf("SET: %q", got)
	}
	if got := s.Do("MGET", "k", "none", "k"); got != "v\n\nv" {
		t.Errorf("MGET: %q", got)
	}
	if got := s.Do("INCR", "n"); got != "1" {
		t.Errorf("INCR: %q", got)
	}

	s.Pause()
	done := make(chan string)
	go func() { done <- s.Do("GET", "k") }()
	select {
	case got := <-done:
		t.Errorf("a paused server answered %q", got)
	case <-time.After(200 * time.Millisecond):
	}
	s.Resume()
	if got := <-done; got != "v" {
		t.Errorf("GET after a pause: %q", got)
	}

	for name, end := range map[string]func(){"Stop": s.Stop, "Kill": s.Kill, "Stop while paused": func() { s.Pause(); s.Stop() }} {
		end()
		if _, err := s.do("PING"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("PING after %s: %v", name, err)
		}
		end() // a second time does no harm
		s.Restart()
		if got := s.Do("DBSIZE"); got != "0" {
			t.Errorf("DBSIZE after %s and Restart: %q", name, got)
		}
	}
}

func TestArguments(t *testing.T) {
	t.Parallel()
	s := Start(t, "--requirepass", "secret")
	if _, err := s.do("GET", "k"); err == nil || !strings.HasPrefix(err.Error(), "NOAUTH") {
		t.Errorf("GET without a password: %v", err)
	}
	Start(t, "--cluster-enabled", "yes")
}

func TestPortTaken(t *testing.T) {
	first := Start(t)
	second := &Server{t: t, path: first.path, dir: t.TempDir(), Addr: first.Addr}
	if second.launch() {
		t.Error("two servers have one port")
		second.Kill()
	}
}

// The server must live on while threads of the test come and go.
func TestOutlivesThreads(t *testing.T) {
	Path(t) // only the test's own goroutine can skip it
	started := make(chan *Server)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		started <- Start(t)
	}()
	s := <-started
	for range 100 {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread()
		}()
		<-done
	}
	time.Sleep(100 * time.Millisecond)
	if got := s.Do("PING"); got != "PONG" {
		t.Errorf("PING: %q", got)
	}
}

// The server must not outlive a test that is killed.
func TestDiesWithParent(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells a process that its parent has ended")
	}
	if os.Getenv("REDISTEST_CHILD") != "" {
		s := Start(t)
		_, _ = os.Stdout.WriteString("addr " + s.Addr + " " + strconv.Itoa(s.Cmd.Process.Pid) + "\n")
		select {}
	}
	Path(t)
	child := exec.Command(os.Args[0], "-test.run=^TestDiesWithParent$")
	child.Env = append(os.Environ(), "REDISTEST_CHILD=1", "TMPDIR="+t.TempDir())
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	fields := strings.Fields(line)
	if err != nil || len(fields) != 3 || fields[0] != "addr" {
		t.Fatalf("the child says %q, %v", line, err)
	}
	time.Sleep(200 * time.Millisecond) // it must still be there
	conn, err := net.Dial("tcp", fields[1])
	if err != nil {
		t.Fatalf("the child's server: %v", err)
	}
	conn.Close()
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	for range 100 {
		if conn, err = net.Dial("tcp", fields[1]); err != nil {
			return
		}
		conn.Close()
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("redis-server, process %s, still answers after its parent was killed", fields[2])
}

func TestPass(t *testing.T) {
	s := Start(t)
	for range 20 {
		s.Do("SET", "k", "v", "PX", "20")
		s.Pass(20 * time.Millisecond)
		if got := s.Do("EXISTS", "k"); got != "0" {
			t.Errorf("EXISTS after the key's time has passed: %q", got)
		}
	}
}
