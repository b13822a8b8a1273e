package redis

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// overRedis serves a site with keys in Redis alone, so that every answer shows whether Redis was reached. A busy machine does not
// look like an outage, unless redis has shorter time-outs.
func overRedis(t *testing.T, host hosts.Host, redis map[string]any) *rig.Site {
	t.Helper()
	redis["keyPrefix"] = fmt.Sprintf("t%d", rig.PrefixCount.Add(1))
	patient(redis)
	return rig.Serve(t, host, rig.Created, hosts.Settings{"statusHeader": "Decision", "onStoreError": "reject", "localCacheBytes": 0, "lease": "10m", "redis": redis})
}

// patient gives redis time-outs that a busy machine does not reach, where it has none, and returns it.
func patient(redis map[string]any) map[string]any {
	for _, name := range []string{"dialTimeout", "readTimeout", "writeTimeout"} {
		if redis[name] == nil {
			redis[name] = "20s"
		}
	}
	return redis
}

// wantUnavailable checks that Redis cannot be used, and that the log says why.
func wantUnavailable(s *rig.Site, key, cause string) {
	s.T.Helper()
	s.WantProblem(s.Do(rig.Post("/", key)), 503, "store-unavailable", "unavailable;degraded")
	for end := time.Now().Add(time.Minute); !strings.Contains(s.Logs(), cause); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			logs := s.Logs()
			s.T.Fatalf("no %q in the log, which ends with %s", cause, logs[max(0, len(logs)-1000):])
		}
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestRedisOverTLS(t *testing.T) {
	ca := redistest.NewAuthority(t)
	server := redistest.StartTLS(t, ca)
	cert, key := ca.Issue("client")
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for name, redis := range map[string]map[string]any{
			"files":     {"endpoints": server.TLSAddr, "tls": map[string]any{"ca": ca.CertFile, "cert": cert, "key": key}},
			"PEM text":  {"endpoints": server.TLSAddr, "tls": map[string]any{"ca": readFile(t, ca.CertFile), "cert": readFile(t, cert), "key": readFile(t, key)}},
			"a scheme":  {"endpoints": "rediss://" + server.TLSAddr, "tls": map[string]any{"enabled": "true", "ca": ca.CertFile, "cert": cert, "key": key}},
			"no checks": {"endpoints": "rediss://" + server.TLSAddr, "tls": map[string]any{"insecureSkipVerify": "true", "cert": cert, "key": key}},
			"a database and a server name": {"endpoints": []any{server.TLSAddr}, "db": 3,
				"tls": map[string]any{"ca": ca.CertFile, "cert": cert, "key": key, "serverName": "127.0.0.1"}},
		} {
			t.Run(name, func(t *testing.T) {
				overRedis(t, host, redis).WantRun("k")
			})
		}
	})
}

func TestRedisOverTLSIsChecked(t *testing.T) {
	ca, other := redistest.NewAuthority(t), redistest.NewAuthority(t)
	server := redistest.StartTLS(t, ca)
	cert, key := ca.Issue("client")
	strangersCert, strangersKey := other.Issue("client")
	refused := "redis " + server.TLSAddr // with TLS 1.3 the server refuses after the handshake, and the reason may be lost
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for _, c := range []struct {
			cause string
			redis map[string]any
		}{
			{"not valid for any names, but wanted to match redis", map[string]any{"endpoints": server.TLSAddr, "tls": map[string]any{"ca": ca.CertFile, "cert": cert, "key": key, "serverName": "redis"}}},
			{"certificate signed by unknown authority", map[string]any{"endpoints": server.TLSAddr, "tls": map[string]any{"ca": other.CertFile, "cert": cert, "key": key}}},
			{"certificate signed by unknown authority", map[string]any{"endpoints": "rediss://" + server.TLSAddr, "tls": map[string]any{"cert": cert, "key": key}}},
			{refused, map[string]any{"endpoints": server.TLSAddr, "tls": map[string]any{"ca": ca.CertFile}}},
			{refused, map[string]any{"endpoints": server.TLSAddr, "tls": map[string]any{"ca": ca.CertFile, "cert": strangersCert, "key": strangersKey}}},
			{"TLS with " + server.Addr + ": no answer to the handshake, as from a port without TLS: ", map[string]any{"endpoints": server.Addr, "dialTimeout": "2s", "tls": map[string]any{"ca": ca.CertFile, "cert": cert, "key": key}}},
			{refused, map[string]any{"endpoints": server.TLSAddr}},
		} {
			wantUnavailable(overRedis(t, host, c.redis), "k", c.cause)
		}
	})
}

// TestARenewedCertificateIsTaken replaces the client's files between two connections.
func TestARenewedCertificateIsTaken(t *testing.T) {
	ca, other := redistest.NewAuthority(t), redistest.NewAuthority(t)
	server := redistest.StartTLS(t, ca)
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		dir := t.TempDir()
		install := func(from *redistest.Authority) {
			cert, key := from.Issue("client")
			rig.WriteFile(t, dir+"/cert.pem", readFile(t, cert))
			rig.WriteFile(t, dir+"/key.pem", readFile(t, key))
		}
		install(other)
		s := overRedis(t, host, map[string]any{"endpoints": server.TLSAddr, "tls": map[string]any{"ca": ca.CertFile, "cert": dir + "/cert.pem", "key": dir + "/key.pem"}})
		wantUnavailable(s, "k", "redis "+server.TLSAddr)
		install(ca)
		s.AwaitStore()
		s.WantRun("k")
	})
}

// TestThePasswordIsReadAgain changes the password of a server, and then the file with it.
func TestThePasswordIsReadAgain(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		server.Do("ACL", "SETUSER", "shop", "on", ">old-secret", "~*", "+@all")
		file := t.TempDir() + "/password"
		rig.WriteFile(t, file, "old-secret\n")
		// One connection, which is there after the first request: no other has to log in while the file has the old password.
		s := overRedis(t, host, map[string]any{"endpoints": server.Addr, "username": "shop", "passwordFile": file, "poolSize": 1})
		s.WantRun("before")
		server.Do("ACL", "SETUSER", "shop", "resetpass", ">new-secret")
		s.WantRun("logged-in")
		server.Do("CLIENT", "KILL", "USER", "shop")
		wantUnavailable(s, "old-file", "AUTH: WRONGPASS")
		rig.WriteFile(t, file, "new-secret\n")
		s.AwaitStore()
		s.WantRun("after")
		rig.WriteFile(t, file, "")
		server.Do("CLIENT", "KILL", "USER", "shop")
		s.WantProblem(s.Do(rig.Post("/", "no-password")), 503, "store-unavailable", "unavailable;degraded")
		for line := range strings.Lines(s.Logs()) {
			if strings.Contains(line, "middleware=") && strings.Contains(line, "-secret") { // Traefik's own lines show the configuration
				t.Errorf("a password in the log: %s", line)
			}
		}
	})
}

// TestRedisByURL connects as URLs say, over TCP, TLS and a unix socket. The password is not shown anywhere.
func TestRedisByURL(t *testing.T) {
	const password, encoded = "p@s/s:w%+#?", "p%40s%2Fs%3Aw%25+%23%3F"
	ca := redistest.NewAuthority(t)
	cert, key := ca.Issue("client")
	dir, err := os.MkdirTemp("", "sock") // the path of a socket has to be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := dir + "/redis 1.sock"
	server := redistest.StartTLS(t, ca, "--unixsocket", socket)
	server.Do("ACL", "SETUSER", "shop", "on", ">"+password, "~*", "+@all")
	unix := "unix://" + strings.ReplaceAll(socket, " ", "%20")
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for name, redis := range map[string]map[string]any{
			"TCP":                 {"endpoints": "redis://shop:" + encoded + "@" + server.Addr + "/3"},
			"TLS":                 {"endpoints": "rediss://shop:" + encoded + "@" + server.TLSAddr + "/3", "tls": map[string]any{"ca": ca.CertFile, "cert": cert, "key": key}},
			"said twice":          {"endpoints": []any{"valkey://shop:" + encoded + "@" + server.Addr + "/3"}, "username": "shop", "password": password, "db": "3"},
			"unix socket":         {"endpoints": unix, "username": "shop", "password": password, "db": 3},
			"unix socket by user": {"endpoints": strings.Replace(unix, "//", "//shop:"+encoded+"@", 1), "db": 3},
		} {
			t.Run(name, func(t *testing.T) {
				s := overRedis(t, host, redis)
				s.WantRun("k")
				keys := rig.InfoField(server, "keyspace", "db3")
				server.Do("ACL", "SETUSER", "shop", "off")
				server.Do("CLIENT", "KILL", "USER", "shop")
				wantUnavailable(s, "refused", "AUTH: WRONGPASS")
				server.Do("ACL", "SETUSER", "shop", "on")
				s.AwaitStore()
				s.WantRun("after")
				if now := rig.InfoField(server, "keyspace", "db3"); keys == "" || now == keys {
					t.Errorf("db3 has %s, and after another request %s", keys, now)
				}
				for line := range strings.Lines(s.Logs()) {
					if strings.Contains(line, "middleware=") && (strings.Contains(line, password) || strings.Contains(line, encoded)) { // Traefik's own lines show the configuration
						t.Errorf("the password is in the log: %s", line)
					}
				}
			})
		}
		for name, refused := range map[string]map[string]any{
			"another password": {"endpoints": "redis://shop:" + encoded + "@" + server.Addr, "password": "another"},
			"not encoded":      {"endpoints": "redis://shop:" + password + "@" + server.Addr},
		} {
			refusal := host.Refusal(t, hosts.Settings{"redis": refused})
			if !strings.Contains(refusal, "invalid configuration: redis.") || strings.Contains(refusal, password) || strings.Contains(refusal, encoded) || strings.Contains(refusal, "another") {
				t.Errorf("%s: refusal %q", name, refusal)
			}
		}
	})
}

// TestAUnixSocketComesBack restarts a server that listens on a socket alone.
func TestAUnixSocketComesBack(t *testing.T) {
	dir, err := os.MkdirTemp("", "sock")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t, "--unixsocket", dir+"/redis.sock")
		redis := map[string]any{"endpoints": "unix://" + dir + "/redis.sock"}
		s := overRedis(t, host, redis)
		s.WantRun("before")
		server.Stop()
		wantUnavailable(s, "k", `redis="unix://`+dir+`/redis.sock"`)
		server.Restart()
		s.AwaitStore()
		s.WantRun("k")
		stats := rig.Serve(t, host, rig.Created, hosts.Settings{"redis": redis, "lease": "10m", "stats": map[string]any{"insecure": true}})
		f := stats.Counted(func(f rig.Figures) bool { return f.Memory.Bytes > 0 })
		if !f.Store.Healthy || !f.Memory.Exact {
			t.Errorf("store %+v, memory %+v", f.Store, f.Memory)
		}
	})
}
