// Package launch finds and runs the programs that the demo and the load benchmark are made of.
package launch

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// Module is the plugin's module.
	Module = "github.com/example/traefik-idem"

	// TraefikVersion is the version that is built where there is no Traefik 3 on the PATH, and that tests are made for.
	TraefikVersion = "3.7.12"

	startTimeout = time.Minute
	stopTimeout  = 10 * time.Second
)

// Root returns the folder of the plugin, which is the working directory or above it.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		_, err = os.Stat(filepath.Join(dir, ".traefik.yml"))
		if err == nil {
			return dir, nil
		}
		if filepath.Dir(dir) == dir {
			return "", errors.New("this is not a folder of the plugin's repository: there is no .traefik.yml in it or above it")
		}
		dir = filepath.Dir(dir)
	}
}

// usable is what a Traefik 3 says of its version. One that was built without a version says dev.
var usable = regexp.MustCompile(`(?m)^Version:\s+(v?3\.|dev\s)`)

// Traefik returns the path of a Traefik 3: the one that TRAEFIK names in the environment, the one on the PATH, or the one that
// `make traefik` builds.
func Traefik(ctx context.Context, root string) (string, error) {
	wanted := os.Getenv("TRAEFIK")
	path, err := exec.LookPath(cmp.Or(wanted, "traefik"))
	if err == nil {
		var output []byte
		output, err = exec.CommandContext(ctx, path, "version").Output()
		if err == nil && usable.Match(output) {
			return filepath.Abs(path)
		}
		if err == nil {
			line, _, _ := strings.Cut(string(output), "\n")
			err = fmt.Errorf("it says %s", line)
		}
		if wanted == "" {
			fmt.Println(path, "is not a Traefik 3 and not used")
		}
	}
	if wanted != "" {
		return "", fmt.Errorf("TRAEFIK=%s is not a Traefik 3: %w", wanted, err)
	}
	path = filepath.Join(root, ".build", "traefik-"+TraefikVersion)
	_, err = os.Stat(path)
	if err == nil {
		return path, nil
	}
	err = BuildTraefik(ctx, root, TraefikVersion, path, os.Stdout)
	if err != nil {
		return "", fmt.Errorf("building Traefik: %w", err)
	}
	return path, nil
}

// LinkPlugin puts the plugin, whose folder is root, where a Traefik that runs in dir looks for local plugins.
func LinkPlugin(dir, root string) error {
	parent := filepath.Join(dir, "plugins-local", "src", filepath.Dir(Module))
	err := os.MkdirAll(parent, 0o755)
	if err != nil {
		return err
	}
	return os.Symlink(root, filepath.Join(parent, filepath.Base(Module)))
}

// FreeAddress returns wanted if it is not empty and nobody listens there, and else a free address of the loopback interface. Its
// port is lower than those that systems give to whoever asks for any port, so that it is given to nobody meanwhile, and leaves room
// for the bus of a Redis Cluster, which is 10000 above. No call in a process gets the port of another, nor does another process get it
// while this one lives: who has spoken to a server may go on to for minutes, and the server may come back.
func FreeAddress(wanted string) (string, error) {
	if wanted != "" && isFree(wanted) {
		return wanted, nil
	}
	ports.Lock()
	defer ports.Unlock()
	for {
		for len(ports.left) > 0 {
			address := fmt.Sprintf("127.0.0.1:%d", ports.left[0])
			ports.left = ports.left[1:]
			if isFree(address) {
				return address, nil
			}
		}
		err := takeBlock()
		if err != nil {
			return "", err
		}
	}
}

const (
	lowestPort = 11000
	blockSize  = 100 // ports that a process takes at once
	blocks     = 100
)

// ports are those that this process alone may give away.
var ports struct {
	sync.Mutex
	left []int
	held []net.PacketConn // one for each block, until the process ends
}

// takeBlock takes ports that no other process has. It says so to them by a UDP port for each block, where there is no bus.
func takeBlock() error {
	for _, block := range rand.Perm(blocks) {
		first := lowestPort + block*blockSize
		held, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.1:%d", first+10000))
		if err != nil {
			continue
		}
		ports.held = append(ports.held, held)
		for _, i := range rand.Perm(blockSize) {
			ports.left = append(ports.left, first+i)
		}
		return nil
	}
	return fmt.Errorf("no free port of 127.0.0.1 from %d to %d", lowestPort, lowestPort+blocks*blockSize-1)
}

func isFree(address string) bool {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return false
	}
	_ = listener.Close()
	return true
}

// Ping asks the Redis at address for a sign of life.
func Ping(address string) error {
	conn, err := net.DialTimeout("tcp", address, 2*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	err = conn.SetDeadline(time.Now().Add(2 * time.Second))
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(conn, "PING\r\n")
	if err != nil {
		return err
	}
	reply, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return fmt.Errorf("PING has no answer: %w", err)
	}
	if reply != "+PONG\r\n" {
		return fmt.Errorf("PING is answered with %.100q", reply)
	}
	return nil
}

// Process is a running program.
type Process struct {
	Log   string        // path of the file with what it prints
	PID   int           // its process id
	Ended chan struct{} // closed when it is gone

	name   string
	cancel context.CancelFunc
}

// Start starts binary in dir, under a name that error messages and its log file bear. It ends with ctx, or at Stop.
func Start(ctx context.Context, dir, name, binary string, args ...string) (*Process, error) {
	ctx, cancel := context.WithCancel(ctx)
	p := &Process{Log: filepath.Join(dir, name+".log"), Ended: make(chan struct{}), name: name, cancel: cancel}
	file, err := os.Create(p.Log)
	if err != nil {
		cancel()
		return nil, err
	}
	defer file.Close()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = file, file
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopTimeout
	err = cmd.Start()
	if err != nil {
		cancel()
		return nil, err
	}
	p.PID = cmd.Process.Pid
	go func() {
		_ = cmd.Wait()
		close(p.Ended)
	}()
	return p, nil
}

// Stop ends the process and returns when it is gone.
func (p *Process) Stop() {
	p.cancel()
	<-p.Ended
}

// Await returns when ready has no error to tell any more.
func (p *Process) Await(ctx context.Context, ready func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-p.Ended:
			return p.OwnEnd(ctx)
		case <-ctx.Done():
			return p.failure("is not ready")
		case <-tick.C:
		}
		err := ready(ctx)
		if err == nil {
			return nil
		}
	}
}

// OK asks for url and returns an error for every status but 200. A backend says that, and Traefik itself does not.
func OK(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	_ = response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, response.Status)
	}
	return nil
}

// OwnEnd reports that the process ended. A Ctrl-C reaches it too, and it may be faster to see it than this process.
func (p *Process) OwnEnd(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(time.Second):
		return p.failure("ended by itself")
	}
}

// failure is an error with the process's log.
func (p *Process) failure(what string) error {
	text, err := os.ReadFile(p.Log)
	if err != nil {
		return fmt.Errorf("%s %s, and its log cannot be read: %w", p.name, what, err)
	}
	return fmt.Errorf("%s %s. Its log:\n%s", p.name, what, text)
}
