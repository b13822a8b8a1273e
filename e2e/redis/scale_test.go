package redis

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
	"github.com/example/traefik-idem/redisclient"
)

func ping(client *redisclient.Client) ([]any, error) {
	return client.Batch([]redisclient.Command{{Name: "PING"}})
}

func TestThePoolIsBounded(t *testing.T) {
	server := redistest.Start(t)
	client := redisclient.New(redisclient.Options{Address: server.Addr, DialTimeout: rig.Never, ReadTimeout: rig.Never, WriteTimeout: rig.Never, PoolSize: 2, MaxActiveConns: 3, MinIdleConns: 2}, redisclient.NewBacklog())
	var wg sync.WaitGroup
	for range 50 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range 20 {
				_, err := ping(client)
				if err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	if n := rig.Connections(t, server); n > 2 {
		t.Errorf("%d connections, want at most poolSize 2", n)
	}
	client.Close()
	_, err := ping(client) // of a request that outlives its configuration
	if err != nil {
		t.Error(err)
	}
	for rig.Connections(t, server) > 0 { // a connection that is left ends in the test's time-out
		time.Sleep(5 * time.Millisecond)
	}
}

func TestABusyPoolSaysSo(t *testing.T) {
	server := redistest.Start(t)
	client := redisclient.New(redisclient.Options{Address: server.Addr, DialTimeout: rig.Never, ReadTimeout: 200 * time.Millisecond, WriteTimeout: rig.Never, MaxActiveConns: 1}, redisclient.NewBacklog())
	defer client.Close()
	server.Pause()
	defer server.Resume()
	failures := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := ping(client)
			failures <- err
		}()
	}
	for range 2 {
		if err := <-failures; err == nil {
			t.Error("a server that is stopped answers")
		}
	}
}

// roundTrips counts the commands that the plugin has sent to server for requests: nothing but EVALSHA, once its scripts are
// known and its connections open. The PING that measures a batch goes with it.
func roundTrips(t *testing.T, server *redistest.Server) int {
	t.Helper()
	commands := rig.LoggedCommands(server)
	for _, other := range []string{"AUTH", "SELECT", "MULTI"} {
		if strings.Contains(commands, "\n"+other+"\n") {
			t.Errorf("the plugin sends more than scripts: %s", commands)
		}
	}
	return rig.ScriptsForKeys(server)
}

func TestRoundTrips(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		e := &rig.Env{Host: host, Redis: server}
		cached := e.Serve(t, hosts.Settings{"lease": "10m"}, rig.Created) // with time-outs as long as here, a shorter one is renewed at once
		plain := e.Serve(t, hosts.Settings{"lease": "10m", "localCacheBytes": 0}, rig.Created)
		for _, s := range []*rig.Site{cached, plain} {
			s.Do(rig.Post("/", "warm")) // Redis learns the scripts
			for _, c := range []struct {
				name string
				call rig.Call
				want int
			}{
				{"first", rig.Post("/", "k"), 2},
				{"duplicate", rig.Post("/", "k"), 1},
				{"mismatch", rig.Post("/", "k").With(func(c *rig.Call) { c.Body = "{}" }), 1},
				{"without a key", rig.Post("/", ""), 0},
				{"not protected", rig.Post("/", "k").With(func(c *rig.Call) { c.Method = http.MethodGet }), 0},
				{"invalid key", rig.Post("/", "a b"), 0},
			} {
				rig.LogCommands(server)
				s.Do(c.call)
				got := roundTrips(t, server)
				want := c.want
				if s == cached && want == 1 {
					want = 0 // known here
				}
				if got != want {
					t.Errorf("%s: %d round trips, want %d", c.name, got, want)
				}
			}
		}
	})
}
