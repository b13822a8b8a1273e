package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"sync"

	"github.com/example/traefik-idem/e2e/internal/launch"
	"github.com/example/traefik-idem/e2e/internal/payments"
)

//go:embed page.html
var page []byte

// backend is the sample backend, which can die in the middle of a call. It comes back at once, as one that a supervisor starts.
type backend struct {
	*payments.Service
	address string

	mu     sync.Mutex // guards everything below
	server *http.Server
	dying  bool // at the next payment
}

func startBackend() (*backend, error) {
	b := &backend{Service: payments.Handler(), address: "127.0.0.1:0"}
	return b, b.listen()
}

// listen starts the server at the address that it had before.
func (b *backend) listen() error {
	listener, err := net.Listen("tcp", b.address)
	if err != nil {
		return err
	}
	b.address = listener.Addr().String()
	b.server = &http.Server{Handler: b}
	go func(server *http.Server) { _ = server.Serve(listener) }(b.server)
	return nil
}

// ServeHTTP pays. If it is to die, it does so after it has paid and before it answers.
func (b *backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	dying := b.dying && r.Method == http.MethodPost
	if dying {
		b.dying = false
	}
	b.mu.Unlock()
	if !dying {
		b.Service.ServeHTTP(w, r)
		return
	}
	b.Service.ServeHTTP(nobody{}, r)
	b.mu.Lock()
	defer b.mu.Unlock()
	_ = b.server.Close()
	err := b.listen()
	if err != nil {
		fmt.Println("the backend does not come back:", err)
	}
}

func (b *backend) kill() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dying = true
}

func (b *backend) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	_ = b.server.Close()
}

// nobody is where an answer goes that nobody gets.
type nobody struct{}

func (nobody) Header() http.Header         { return http.Header{} }
func (nobody) Write(p []byte) (int, error) { return len(p), nil }
func (nobody) WriteHeader(int)             {}

// redisServer is a Redis that the demo starts and stops.
type redisServer struct {
	ctx     context.Context
	dir     string
	binary  string
	address string

	mu      sync.Mutex // guards process
	process *launch.Process
}

// startRedis starts a Redis with files in dir; nil if there is none on the PATH.
func startRedis(ctx context.Context, dir string) (*redisServer, error) {
	binary, _ := exec.LookPath("redis-server")
	if binary == "" {
		return nil, nil
	}
	address, err := launch.FreeAddress("")
	if err != nil {
		return nil, err
	}
	s := &redisServer{ctx: ctx, dir: dir, binary: binary, address: address}
	return s, s.start()
}

func (s *redisServer) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil {
		return nil
	}
	_, port, _ := net.SplitHostPort(s.address)
	process, err := launch.Start(s.ctx, s.dir, "redis", s.binary, "--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "yes")
	if err != nil {
		return err
	}
	err = process.Await(s.ctx, func(context.Context) error { return launch.Ping(s.address) })
	if err != nil {
		process.Stop()
		return err
	}
	s.process = process
	return nil
}

func (s *redisServer) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil {
		s.process.Stop()
		s.process = nil
	}
}

func (s *redisServer) runs() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process != nil
}

// desk answers for the page with the buttons, which Traefik has below /demo/. redis is nil if the demo has none of its own.
func desk(b *backend, redis *redisServer, store string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /demo/{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write(page) // a client that has gone needs no answer
	})
	mux.HandleFunc("GET /demo/state", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"calls": b.Calls(), "store": store, "ownRedis": redis != nil, "redisRuns": redis != nil && redis.runs()}) // likewise
	})
	act := func(path string, do func() error) {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-Demo") == "" { // no other site's page can send that
				http.Error(w, "only the demo's page may do that", http.StatusForbidden)
				return
			}
			err := do()
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		})
	}
	act("/demo/kill", func() error { b.kill(); return nil })
	if redis != nil {
		act("/demo/redis/stop", func() error { redis.stop(); return nil })
		act("/demo/redis/start", redis.start)
	}
	return mux
}
