package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/example/traefik-idem/e2e/internal/redistest"
)

// masters is how many a Redis Cluster has. Replicas would take the two cores' time for what is elsewhere in real life.
const masters = 3

// servers are the Redis servers of one measurement.
type servers struct {
	host    host
	masters []*redistest.Server
}

// startServers starts a Redis, or a Redis Cluster, with files in dir.
func startServers(dir string, cluster bool) (*servers, error) {
	s := &servers{host: host{dir: dir}}
	err := failed(func() {
		if cluster {
			s.masters = redistest.StartMasters(&s.host, masters).Masters
		} else {
			s.masters = append(s.masters, redistest.Start(&s.host))
		}
	})
	return s, err
}

// stop ends them.
func (s *servers) stop() {
	for _, f := range s.host.cleanups {
		f()
	}
}

func (s *servers) addresses() []string {
	var all []string
	for _, server := range s.masters {
		all = append(all, server.Addr)
	}
	return all
}

func (s *servers) pids() []int {
	var all []int
	for _, server := range s.masters {
		all = append(all, server.Cmd.Process.Pid)
	}
	return all
}

// host is a redistest.T. What would fail a test is a panic, which failed makes an error of.
type host struct {
	dir      string
	cleanups []func()
}

type failure struct{ error }

func failed(f func()) (err error) {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case failure:
			err = p.error
		default:
			panic(p)
		}
	}()
	f()
	return nil
}

func (h *host) Helper()                           {}
func (h *host) Cleanup(f func())                  { h.cleanups = append(h.cleanups, f) }
func (h *host) Errorf(format string, args ...any) { panic(failure{fmt.Errorf(format, args...)}) }
func (h *host) Fatalf(format string, args ...any) { h.Errorf(format, args...) }
func (h *host) Fatal(args ...any)                 { panic(failure{errors.New(fmt.Sprint(args...))}) }
func (h *host) Skip(args ...any)                  { h.Fatal(args...) }

func (h *host) TempDir() string {
	dir, err := os.MkdirTemp(h.dir, "redis")
	if err != nil {
		h.Fatal(err)
	}
	return dir
}
