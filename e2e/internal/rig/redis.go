package rig

import (
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
)

// Restartable is an environment with a Redis of its own.
func Restartable(t *testing.T, host hosts.Host) (*Env, *redistest.Server) {
	t.Helper()
	server := redistest.Start(t)
	return &Env{Host: host, Redis: server}, server
}

var commonRedis struct {
	once   sync.Once
	server *redistest.Server
}

// SharedRedis is a Redis for all tests that do it no harm; each uses its own key prefix.
func SharedRedis(t testing.TB) *redistest.Server {
	t.Helper()
	redistest.Path(t) // skips each test, and not only the first
	commonRedis.once.Do(func() { commonRedis.server = redistest.Start(hosts.UntilExit{TB: t}) })
	if commonRedis.server == nil {
		t.Fatal("redis-server did not start; see the first test that needed it")
	}
	return commonRedis.server
}

// KeysIn counts the keys of requests that server has.
func KeysIn(server *redistest.Server) int {
	return len(strings.Fields(server.Do("KEYS", "*:req:*")))
}

// InfoField returns a field of what INFO says of a section, or nothing.
func InfoField(server *redistest.Server, section, name string) string {
	for line := range strings.Lines(server.Do("INFO", section)) {
		value, ok := strings.CutPrefix(line, name+":")
		if ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// Connections counts the clients of server, without the one that asks.
func Connections(t *testing.T, server *redistest.Server) int {
	t.Helper()
	n, err := strconv.Atoi(InfoField(server, "clients", "connected_clients"))
	if err != nil {
		t.Fatal(err)
	}
	return n - 1
}
