package behaviour

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/decode"
	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// TestSettingsThatHurtInSilenceAreRefused has what used to be taken, and then did something else than was meant.
func TestSettingsThatHurtInSilenceAreRefused(t *testing.T) {
	within := func(section, key string, value any) hosts.Settings {
		return hosts.Settings{section: map[string]any{key: value}}
	}
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for _, c := range []struct {
			settings hosts.Settings
			parts    []string // of the error
		}{
			{hosts.Settings{"scope": ""}, []string{`scope: ""`, "none"}},
			{hosts.Settings{"scope": []any{}}, []string{`scope: ""`, "none"}},
			{hosts.Settings{"scope": " , "}, []string{`scope: ""`, "none"}},
			{hosts.Settings{"scope": []any{"Host", "none"}}, []string{`scope: "Host,none"`, "none"}},
			{hosts.Settings{"methods": []any{" "}}, []string{`methods: ""`, "blanks"}},
			{hosts.Settings{"endpoints": ","}, []string{`endpoints: ""`, "blanks"}},
			{within("redis", "endpoints", []any{""}), []string{`redis.endpoints: ""`, "blanks"}},
			{within("stats", "users", " "), []string{`stats.users: ""`, "blanks"}},
			{hosts.Settings{"endpoints": "POST /api/caf%C3%A9/"}, []string{`endpoints: "POST /api/caf%C3%A9/"`, "decoded"}},
			{hosts.Settings{"replayHeader": "content-length"}, []string{`replayHeader: "content-length"`, "X-Request-ID"}},
			{hosts.Settings{"replayHeader": "Set-Cookie"}, []string{`replayHeader: "Set-Cookie"`, "X-Request-ID"}},
			{hosts.Settings{"statusHeader": "Transfer-Encoding"}, []string{`statusHeader: "Transfer-Encoding"`, "X-Request-ID"}},
			{hosts.Settings{"statusHeader": "keep-alive"}, []string{`statusHeader: "keep-alive"`, "X-Request-ID"}},
			{hosts.Settings{"statusHeader": "Location"}, []string{`statusHeader: "Location"`, "X-Request-ID"}},
			{hosts.Settings{"statusHeader": "idempotent-replayed"}, []string{`statusHeader: "idempotent-replayed"`, "another header than replayHeader"}},
			{hosts.Settings{"expiresHeader": "Expires"}, []string{`expiresHeader: "Expires"`, "X-Request-ID"}},
			{hosts.Settings{"expiresHeader": "idempotent-replayed"}, []string{`expiresHeader: "idempotent-replayed"`, "another header than replayHeader and statusHeader"}},
			{hosts.Settings{"expiresHeader": "X-One", "statusHeader": "X-One"}, []string{`expiresHeader: "X-One"`, "another header than replayHeader and statusHeader"}},
			{hosts.Settings{"problemBase": "example.com/errors"}, []string{`problemBase: "example.com/errors"`, "https://example.com"}},
			{hosts.Settings{"problemBase": "https://example.com/errors#"}, []string{`problemBase: "https://example.com/errors#"`, "without a #"}},
			{hosts.Settings{"problemBase": "javascript://example.com/"}, []string{`problemBase: "javascript://example.com/"`, "https://example.com"}},
			{hosts.Settings{"problemBase": "https:///errors"}, []string{`problemBase: "https:///errors"`, "https://example.com"}},
			{hosts.Settings{"maxRequestBodyBytes": 268435457}, []string{`maxRequestBodyBytes: "268435457"`, "0 to 268435456"}},
			{hosts.Settings{"maxResponseBodyBytes": "1073741824"}, []string{`maxResponseBodyBytes: "1073741824"`, "0 to 268435456"}},
			{hosts.Settings{"header": "Cookie"}, []string{`header: "Cookie"`, "X-Request-ID"}},
			{hosts.Settings{"header": "content-type"}, []string{`header: "content-type"`, "X-Request-ID"}},
		} {
			refusal := host.Refusal(t, c.settings)
			for _, part := range append(c.parts, "invalid configuration", "allowed") {
				if !strings.Contains(refusal, part) {
					t.Errorf("%v: no %q in the error %q", c.settings, part, refusal)
				}
			}
		}
	})
}

// TestAKeyInAnotherFormIsNotShown: a private key is PEM text or a file, and no error shows one that is neither.
func TestAKeyInAnotherFormIsNotShown(t *testing.T) {
	key := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("-----BEGIN PRIVATE KEY-----\n", 10)))
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		refusal := host.Refusal(t, hosts.Settings{"redis": map[string]any{"endpoints": "redis:6379", "tls": map[string]any{"cert": "testdata/none.pem", "key": key}}})
		if !strings.Contains(refusal, "testdata/none.pem: no such file") || strings.Contains(refusal, key[:20]) {
			t.Errorf("refusal %q", refusal)
		}
		refusal = host.Refusal(t, hosts.Settings{"redis": map[string]any{"endpoints": "redis:6379", "tls": map[string]any{"cert": filepath.Join(hosts.Root(), "go.mod"), "key": key}}})
		if !strings.Contains(refusal, "…: file name too long") || strings.Contains(refusal, key[:20]) {
			t.Errorf("refusal %q", refusal)
		}
	})
}

// TestScopeNone: whoever has the key gets its answer, if the configuration says so.
func TestScopeNone(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"scope": "none"}, rig.Created)
		first := s.Do(rig.Post("/", "k", "Authorization", "Bearer alice"))
		s.Want(first, 201, "first")
		s.WantReplay(first, s.Do(rig.Post("/", "k", "Authorization", "Bearer bob")))
		s.Calls(1)
	})
}

// TestForeignHashes: who logs in with the hash of another format itself must not get in; so it is refused where it stands.
func TestForeignHashes(t *testing.T) {
	dir := t.TempDir()
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for i, hash := range []string{
			"$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC", "$2a$10$N9qo8uLOickgx2ZMRZoMye", "$apr1$r31.....$HqJZimcKQFAMYayBlzkrA/",
			"$1$salt$hash", "$5$salt$hash", "$6$rounds=5000$salt$hash", "$argon2id$v=19$m=65536$salt$hash", "{CRYPT}$6$salt$hash", "{SSHA}c2VjcmV0d29yZA==",
			"{md5}c2VjcmV0d29yZA==", "{SHA512}c2VjcmV0d29yZA==", "{sha}+PY/+o41iAewg7IitdqgVx9OCq0=",
		} {
			file := filepath.Join(dir, fmt.Sprintf("%s%d", host, i))
			rig.WriteFile(t, file, "# comment\nops:"+hash+"\n")
			for setting, want := range map[string]string{"users": `stats.users: "ops:…"`, "usersFile": "line 2: "} {
				value := map[string]string{"users": "ok:fine, ops:" + hash, "usersFile": file}[setting]
				if setting == "users" && strings.Contains(hash, ",") {
					continue // a list is split there
				}
				refusal := host.Refusal(t, hosts.Settings{"stats": map[string]any{setting: value}})
				if !strings.Contains(refusal, want) || !strings.Contains(refusal, "hash of another kind") || strings.Contains(refusal, hash[3:]) {
					t.Errorf("stats.%s with %s: error %q, want %s", setting, hash, refusal, want)
				}
			}
		}
		s := rig.Serve(t, host, rig.Created, hosts.Settings{"stats": map[string]any{"users": "ops:$ecret$2y"}})
		request := rig.Call{Method: http.MethodGet, Path: "/_idem/stats.json", Header: http.Header{}}
		s.Want(s.Do(request), 401, "")
		request.Header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("ops:$ecret$2y")))
		s.Want(s.Do(request), 200, "")
	})
}

// TestUnknownSettingsAreRefused: a slip of the pen is named, and what was probably meant.
func TestUnknownSettingsAreRefused(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for label, want := range map[string]string{
			"redis.endpoint=redis:6379":             "redis.endpoint: there is no such setting; the nearest that is allowed is redis.endpoints",
			"onStorError=reject":                    "onStorError: there is no such setting; the nearest that is allowed is onStoreError",
			"stats.user=ops:secret":                 "stats.user: there is no such setting; the nearest that is allowed is stats.users",
			"redis.tls.caFile=/secret":              "redis.tls.caFile: there is no such setting; ",
			"redis.tls.servername.x=1":              "",
			"redis.tls.sever_name=secret":           "redis.tls.sever_name: there is no such setting; the nearest that is allowed is redis.tls.serverName",
			"redis.sentinel.endpoints=secret":       "redis.sentinel.endpoints: there is no such setting; the nearest that is allowed is redis.endpoints",
			"redis.sentinel.mastername2=secret":     "redis.sentinel.mastername2: there is no such setting; the nearest that is allowed is redis.sentinel.masterName",
			"redisEndpoints=redis:6379":             "redisEndpoints: there is no such setting; the nearest that is allowed is redis.endpoints",
			"redis_password=secret":                 "redis_password: there is no such setting; the nearest that is allowed is redis.password",
			"redis.pasword=secret":                  "redis.pasword: there is no such setting; the nearest that is allowed is redis.password",
			"passwordFile=secret":                   "passwordFile: there is no such setting; the nearest that is allowed is redis.passwordFile",
			"tls.ca=secret":                         "tls: there is no such setting; the nearest that is allowed is redis.tls",
			"redis.stats.path=/x":                   "redis.stats: there is no such setting; the nearest that is allowed is stats",
			"max_ttl=1h":                            "max_ttl: there is no such setting; the nearest that is allowed is maxTTL",
			"endpoint=POST /secret":                 "endpoint: there is no such setting; the nearest that is allowed is endpoints",
			"stats.colour=secret":                   "stats.colour: there is no such setting; allowed: stats.path, stats.users, stats.usersFile, stats.admins, stats.adminsFile, stats.insecure, stats.ttl, stats.maxEndpoints",
			"redis.address=secret":                  "redis.address: there is no such setting; allowed: redis.endpoints, redis.username",
			"rest=secret":                           "rest: there is no such setting; ",
			"redis.rest.x=secret":                   "redis.rest: there is no such setting; ",
			"REDIS.Endpoints=\nSTATS.insecure=true": "",
		} {
			refusal := host.Refusal(t, hosts.Settings(decode.Labels(label)))
			if want == "" {
				if strings.Contains(refusal, "no such setting") {
					t.Errorf("%s: error %q", label, refusal)
				}
				continue
			}
			if !strings.Contains(refusal, "invalid configuration: "+want) || strings.Contains(refusal, "secret") {
				t.Errorf("%s: error %q, want %q", label, refusal, want)
			}
		}
	})
}

// TestUnknownSettingsInTOML is the same from a file in TOML, in a table of a table.
func TestUnknownSettingsInTOML(t *testing.T) {
	p := hosts.StartTraefik(t)
	p.WriteFile(t, "unknown.test.toml", []byte(`
[http.routers.unknown]
  rule = "Host(`+"`unknown.test`"+`)"
  service = "unknown"
  middlewares = ["unknown"]
[[http.services.unknown.loadBalancer.servers]]
  url = "http://127.0.0.1:1"
[http.middlewares.unknown.plugin.idem.redis.sentinel]
  master = "secret"
`))
	rig.Until(t, "the middleware is refused", time.Minute, func() bool {
		return strings.Contains(p.Logs(), "redis.sentinel.master: there is no such setting; the nearest that is allowed is redis.sentinel.masterName")
	})
}

// TestALeaseIsLongerThanTheTimeOuts, or it could end before a slow reply tells that it was granted, or renewed.
func TestALeaseIsLongerThanTheTimeOuts(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for _, c := range []struct {
			lease, timeout, value string
			refused               bool
		}{
			{"400ms", "readTimeout", "1s", true},
			{"1s", "readTimeout", "1s", true},
			{"1s", "writeTimeout", "900ms", true},
			{"5s", "dialTimeout", "5s", true},
			{"", "readTimeout", "20s", true}, // the default lease
			{"", "readTimeout", "10s", false},
			{"1500ms", "readTimeout", "1s", false},
			{"30", "writeTimeout", "20", false},
		} {
			settings := hosts.Settings{"redis": map[string]any{"endpoints": "127.0.0.1:1", c.timeout: c.value}}
			if c.lease != "" {
				settings["lease"] = c.lease
			}
			refusal := host.Refusal(t, settings)
			if strings.Contains(refusal, "invalid configuration: lease: ") != c.refused || (c.refused && !strings.Contains(refusal, "redis.readTimeout")) || (!c.refused && refusal != "") {
				t.Errorf("lease %q with redis.%s %s: error %q", c.lease, c.timeout, c.value, refusal)
			}
		}
		refusal := host.Refusal(t, hosts.Settings{"lease": "400ms", "redis": map[string]any{"readTimeout": "1s"}})
		if refusal != "" {
			t.Errorf("a short lease with keys in memory: error %q", refusal)
		}
	})
}

// TestWhatTheDefaultScopeSeparates: callers by Authorization, and not by what else sets them apart, as docs/how-it-works.md says.
func TestWhatTheDefaultScopeSeparates(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, nil, rig.Created)
		for name, separates := range map[string]bool{"Authorization": true, "Cookie": false, "X-Api-Key": false} {
			s.Want(s.Do(rig.Post("/", name, name, "alice")), 201, "first")
			decision := map[bool]string{true: "first", false: "replayed"}[separates]
			s.Want(s.Do(rig.Post("/", name, name, "bob")), 201, decision)
		}
		named := e.Serve(t, hosts.Settings{"scope": "Host, X-Api-Key"}, rig.Created)
		named.Want(named.Do(rig.Post("/", "k", "X-Api-Key", "alice")), 201, "first")
		named.Want(named.Do(rig.Post("/", "k", "X-Api-Key", "bob")), 201, "first")
	})
}
