package rig

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

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

// LogCommands has server log the commands that it is sent from now on, and forget those before.
func LogCommands(server *redistest.Server) {
	server.Do("CONFIG", "SET", "slowlog-max-len", "10000")
	server.Do("CONFIG", "SET", "slowlog-log-slower-than", "0")
	server.Do("SLOWLOG", "RESET")
}

// LoggedCommands returns what server has logged since LogCommands, an argument in each line.
func LoggedCommands(server *redistest.Server) string {
	return server.Do("SLOWLOG", "GET", "10000")
}

var scriptForKey = regexp.MustCompile(`\nEVALSHA\n[0-9a-f]+\n1\n\S+:req:`)

// ScriptsForKeys counts the scripts for keys of requests that server has been sent since LogCommands. What stores send in the
// background is not among them, such as the probe after their first connection.
func ScriptsForKeys(server *redistest.Server) int {
	return len(scriptForKey.FindAllString(LoggedCommands(server), -1))
}

// AwaitProbes returns when so many stores have probed server, each after its first connection. Nothing else calls PEXPIRE as long
// as no lease is renewed. A probe that never comes ends in the test's time-out.
func AwaitProbes(server *redistest.Server, stores int) {
	for {
		calls := 0
		_, _ = fmt.Sscanf(InfoField(server, "commandstats", "cmdstat_pexpire"), "calls=%d", &calls)
		if calls >= stores {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
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
