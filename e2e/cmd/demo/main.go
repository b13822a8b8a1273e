// Command demo runs a real Traefik with the plugin from this repository before a sample payments backend, and prints
// curl lines to try. Keys are kept in Traefik's memory, or with -redis host:port in that Redis.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	module         = "github.com/example/traefik-idem"
	traefikVersion = "3.6.12" // is built where there is no Traefik 3 on the PATH
	startTimeout   = time.Minute
	stopTimeout    = 10 * time.Second
)

func main() {
	redis := flag.String("redis", "", "keep keys in the Redis at this `host:port`; empty: in Traefik's memory")
	flag.Parse()
	log.SetFlags(0)
	log.SetOutput(os.Stdout)
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	err := demo(ctx, *redis)
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// demo runs until ctx is over or Traefik ends.
func demo(ctx context.Context, redis string) error {
	if redis != "" {
		err := ping(redis)
		if err != nil {
			return fmt.Errorf("no Redis at %s: %w", redis, err)
		}
	}
	root, err := findRoot()
	if err != nil {
		return err
	}
	binary, err := findTraefik(ctx, root)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "idem-demo")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()

	payments := &backend{}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: payments.routes()}
	defer server.Close()
	go func() { _ = server.Serve(listener) }()

	entry, err := freeAddress("127.0.0.1:8080")
	if err != nil {
		return err
	}
	err = writeFiles(dir, root, entry, "http://"+listener.Addr().String(), redis)
	if err != nil {
		return err
	}
	traefik, err := startTraefik(ctx, binary, dir)
	if err != nil {
		return err
	}
	defer traefik.stop()
	err = traefik.await(ctx, "http://"+entry+"/")
	if err != nil {
		return err
	}

	store := "Traefik's memory"
	if redis != "" {
		store = "Redis at " + redis
	}
	fmt.Printf("\nTraefik   http://%s\nstats     http://%s/_idem/\nbackend   http://%s\nkeys in   %s\nlog       %s\n", entry, entry, listener.Addr(), store, traefik.log)
	printLines("http://" + entry)
	select {
	case <-ctx.Done():
		fmt.Println("\nstopping")
		return nil
	case <-traefik.ended:
		return traefik.ownEnd(ctx)
	}
}

// printLines prints what to paste. The keys are new at every start, since a Redis may still hold those of the last one.
func printLines(base string) {
	start := strconv.FormatInt(time.Now().UnixMilli(), 36)
	pay := func(options, key, amount string) string {
		return fmt.Sprintf(`curl -sS %s%s/api/payments/ -H 'Content-Type: application/json' -H 'Idempotency-Key: %s-%s' -d '{"amount": %s}'`,
			options, base, key, start, amount)
	}
	for _, line := range []struct{ say, curl string }{
		{"A first call. The backend takes a second:", pay("-i ", "first", "10")},
		{"The same again. The kept answer comes at once, with Idempotent-Replayed: true:", pay("-i ", "first", "10")},
		{"The same key with another body. 422:", pay("-i ", "first", "99")},
		{"Two at once. The second waits for the first, and both get one answer:",
			pay("", "twin", "20") + " & " + pay("", "twin", "20") + " & wait"},
		{"How often the backend was really called:", "curl -sS " + base + "/"},
	} {
		fmt.Printf("\n%s\n  %s\n", line.say, line.curl)
	}
	fmt.Print("\nCtrl-C stops everything.\n\n")
}

// ping asks the Redis at address for a sign of life.
func ping(address string) error {
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

// findRoot returns the folder of the plugin, which is the working directory or above it.
func findRoot() (string, error) {
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

var version3 = regexp.MustCompile(`(?m)^Version:\s+v?3\.`)

// findTraefik returns the path of a Traefik 3: the one on the PATH, or the one that `make traefik` builds.
func findTraefik(ctx context.Context, root string) (string, error) {
	path, err := exec.LookPath("traefik")
	if err == nil {
		output, err := exec.CommandContext(ctx, path, "version").Output()
		if err == nil && version3.Match(output) {
			return path, nil
		}
		fmt.Println(path, "is not a Traefik 3 and not used")
	}
	path = filepath.Join(root, ".build", "traefik-"+traefikVersion)
	_, err = os.Stat(path)
	if err == nil {
		return path, nil
	}
	build := exec.CommandContext(ctx, "make", "-C", root, "traefik", "TRAEFIK_VERSION="+traefikVersion)
	build.Cancel = func() error { return build.Process.Signal(syscall.SIGTERM) }
	build.Stdout, build.Stderr = os.Stdout, os.Stderr
	err = build.Run()
	if err != nil {
		return "", fmt.Errorf("building Traefik: %w", err)
	}
	return path, nil
}

// freeAddress returns wanted if nobody listens there, and else any free address.
func freeAddress(wanted string) (string, error) {
	listener, err := net.Listen("tcp", wanted)
	if err != nil {
		listener, err = net.Listen("tcp", "127.0.0.1:0")
	}
	if err != nil {
		return "", err
	}
	defer listener.Close()
	return listener.Addr().String(), nil
}

const staticConfiguration = `
global: {checkNewVersion: false, sendAnonymousUsage: false}
log: {level: INFO, noColor: true}
entryPoints:
  web: {address: %q}
providers:
  file: {filename: dynamic.yml, watch: false}
experimental:
  localPlugins:
    idem: {moduleName: %q}
`

const dynamicConfiguration = `
http:
  routers:
    demo:
      rule: PathPrefix("/")
      entryPoints: [web]
      middlewares: [idem]
      service: payments
  services:
    payments:
      loadBalancer:
        servers: [{url: %q}]
  middlewares:
    idem:
      plugin:
        idem:
          header: Idempotency-Key
          endpoints: [POST /api/payments/]
          ttl: 60s
          statusHeader: Idempotency-Status
          redis: {endpoints: %q}
          stats: {insecure: true}
`

// writeFiles fills dir with all that Traefik reads.
func writeFiles(dir, root, entry, backend, redis string) error {
	parent := filepath.Join(dir, "plugins-local", "src", filepath.Dir(module))
	err := os.MkdirAll(parent, 0o755)
	if err != nil {
		return err
	}
	err = os.Symlink(root, filepath.Join(parent, filepath.Base(module)))
	if err != nil {
		return err
	}
	err = os.WriteFile(filepath.Join(dir, "traefik.yml"), fmt.Appendf(nil, staticConfiguration, entry, module), 0o600)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "dynamic.yml"), fmt.Appendf(nil, dynamicConfiguration, backend, redis), 0o600)
}

// traefik is a running Traefik.
type traefik struct {
	log    string // path
	cancel context.CancelFunc
	ended  chan struct{}
}

// startTraefik starts binary in dir. It ends with ctx, or at stop.
func startTraefik(ctx context.Context, binary, dir string) (*traefik, error) {
	ctx, cancel := context.WithCancel(ctx)
	t := &traefik{log: filepath.Join(dir, "traefik.log"), cancel: cancel, ended: make(chan struct{})}
	file, err := os.Create(t.log)
	if err != nil {
		cancel()
		return nil, err
	}
	defer file.Close()
	cmd := exec.CommandContext(ctx, binary, "--configFile=traefik.yml")
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = file, file
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopTimeout
	err = cmd.Start()
	if err != nil {
		cancel()
		return nil, err
	}
	go func() {
		_ = cmd.Wait()
		close(t.ended)
	}()
	return t, nil
}

// stop ends Traefik and returns when it is gone.
func (t *traefik) stop() {
	t.cancel()
	<-t.ended
}

// await returns when url is answered with 200, which the backend does and Traefik itself does not.
func (t *traefik) await(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-t.ended:
			return t.ownEnd(ctx)
		case <-ctx.Done():
			return t.failure("Traefik does not serve the plugin")
		case <-tick.C:
		}
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			continue
		}
		_ = response.Body.Close()
		if response.StatusCode == http.StatusOK {
			return nil
		}
	}
}

// ownEnd reports that Traefik ended. A Ctrl-C reaches Traefik too, which may be faster to see it than this process.
func (t *traefik) ownEnd(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(time.Second):
		return t.failure("Traefik ended by itself")
	}
}

// failure is an error with Traefik's log.
func (t *traefik) failure(what string) error {
	text, err := os.ReadFile(t.log)
	if err != nil {
		return fmt.Errorf("%s, and its log cannot be read: %w", what, err)
	}
	return fmt.Errorf("%s. Its log:\n%s", what, text)
}

// backend is the payments service.
type backend struct {
	mu       sync.Mutex // guards everything below
	calls    int
	payments []payment
}

type payment struct {
	ID      string      `json:"id"`
	Amount  json.Number `json:"amount"`
	Created time.Time   `json:"created"`
}

func (b *backend) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", b.page)
	mux.HandleFunc("POST /api/payments/{$}", b.pay)
	return mux
}

// pay creates a payment, which takes a second.
func (b *backend) pay(w http.ResponseWriter, r *http.Request) {
	var p payment
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&p)
	b.mu.Lock()
	b.calls++
	call := b.calls
	b.mu.Unlock()
	log.Printf("backend: call %d  %s %s amount %s", call, r.Method, r.URL.Path, p.Amount)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	time.Sleep(time.Second)
	p.ID = "pay-" + strconv.Itoa(call)
	p.Created = time.Now().Round(time.Millisecond)
	b.mu.Lock()
	b.payments = append(b.payments, p)
	b.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(p) // a client that has gone needs no answer
}

// page tells how often the backend was really called.
func (b *backend) page(w http.ResponseWriter, _ *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var text strings.Builder
	fmt.Fprintf(&text, "calls of the backend: %d\n", b.calls)
	const shown = 10
	for i := len(b.payments) - 1; i >= 0 && i >= len(b.payments)-shown; i-- {
		p := b.payments[i]
		fmt.Fprintf(&text, "%s  %s  amount %s\n", p.Created.Format(time.TimeOnly), p.ID, p.Amount)
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte(text.String())) // likewise
}
