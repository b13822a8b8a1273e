package idem

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestDefaults(t *testing.T) {
	set, warning, err := CreateConfig().settings()
	if err != nil || warning != "" {
		t.Fatalf("defaults: %q, %v", warning, err)
	}
	if set.header != "X-Request-Id" || set.ttl != time.Minute || set.lease != 15*time.Second || !set.retryable[503] || !set.omit["Set-Cookie"] || !set.scopeHost || len(set.scope) != 1 || set.scope[0] != "Authorization" {
		t.Errorf("defaults: %+v", set)
	}
	for method, protected := range map[string]bool{"POST": true, "PUT": true, "PATCH": true, "DELETE": true, "GET": false, "HEAD": false} {
		if (set.protected[method] != nil) != protected {
			t.Errorf("%s is protected: %t", method, !protected)
		}
	}
}

func TestBadSettings(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	for _, c := range []struct {
		key, value, allowed string
		change              func(c *Config)
	}{
		{"header", "X-A", "not both", func(c *Config) { c.Header = "X-A"; c.Key = []string{"X-B"} }},
		{"key", "", "at least one source", func(c *Config) { c.Key = []string{} }},
		{"key", "Host", "not Host", func(c *Config) { c.Key = []string{"host"} }},
		{"key", "Authorization", "not Host", func(c *Config) { c.Key = []string{"X-A + authorization"} }},
		{"key", "a b", "cookie:session", func(c *Config) { c.Key = []string{"X-A", "a b"} }},
		{"key", "body:id", "cookie:session", func(c *Config) { c.Key = []string{"body:id"} }},
		{"key", "X-A+X-B", "a space on each side", func(c *Config) { c.Key = []string{"X-A+X-B"} }},
		{"key", "json:/a +json:/b", "a space on each side", func(c *Config) { c.Key = []string{"json:/a +json:/b"} }},
		{"scope", "header:X-A+X-B", "a space on each side", func(c *Config) { c.Scope = []string{"Host", "header:X-A+X-B"} }},
		{"scope", "cookie:a+query:b", "a space on each side", func(c *Config) { c.Scope = []string{"cookie:a+query:b"} }},
		{"scope", "cookie:session+ip", "a space on each side", func(c *Config) { c.Scope = []string{"cookie:session+ip"} }},
		{"scope", "jwt:sub+X-Tenant", "a space on each side", func(c *Config) { c.Scope = []string{"Host", "jwt:sub+X-Tenant"} }},
		{"key", "query:tenant +X-User", "a space on each side", func(c *Config) { c.Key = []string{"query:tenant +X-User"} }},
		{"key", "form:id+X-User", "a space on each side", func(c *Config) { c.Key = []string{"X-A", "form:id+X-User"} }},
		{"key", "ip:+1", "a space on each side", func(c *Config) { c.Key = []string{"ip:+1"} }},
		{"scope", "IP", "ip, or header:IP for the header of that name", func(c *Config) { c.Scope = []string{"Host", "IP"} }},
		{"scope", "X-User + Ip", "ip, or header:Ip for the header of that name", func(c *Config) { c.Scope = []string{"X-User + Ip"} }},
		{"key", "Content", "content, or header:Content for the header of that name", func(c *Config) { c.Key = []string{"X-A", "Content"} }},
		{"key", "cookie:a b", "cookie:session", func(c *Config) { c.Key = []string{"cookie:a b"} }},
		{"key", "query:", "cookie:session", func(c *Config) { c.Key = []string{"query: "} }},
		{"key", "json:", "cookie:session", func(c *Config) { c.Key = []string{"json:"} }},
		{"key", "json:id", "json:/data/id", func(c *Config) { c.Key = []string{"json:id"} }},
		{"key", "json:/a~2", "json:/data/id", func(c *Config) { c.Key = []string{"json:/a~2"} }},
		{"key", "json:/a~", "json:/data/id", func(c *Config) { c.Key = []string{"json:/a~"} }},
		{"key", "json:" + strings.Repeat("/a", 33), "json:/data/id", func(c *Config) { c.Key = []string{"json:" + strings.Repeat("/a", 33)} }},
		{"key", "ip:0", "ip:1", func(c *Config) { c.Key = []string{"ip:0"} }},
		{"key", "ip:x", "ip:1", func(c *Config) { c.Key = []string{"ip:x"} }},
		{"key", "content:x", "ip:1", func(c *Config) { c.Key = []string{"content:x"} }},
		{"key", "ip + content", "ip:1", func(c *Config) { c.Key = []string{"ip + content"} }},
		{"key", "X-A", "after content", func(c *Config) { c.Key = []string{"content", "X-A"} }},
		{"contentTTL", "10s", "at most ttl, 9s", func(c *Config) { c.Key = []string{"content"}; c.TTL = "9s"; c.ContentTTL = "10s" }},
		{"contentTTL", "5001ms", "at most ttl, 2s", func(c *Config) { c.Key = []string{"content"}; c.TTL = "2s"; c.ContentTTL = "5001ms" }},
		{"contentTTL", "x", "duration", func(c *Config) { c.ContentTTL = "x" }},
		{"keyFormat", "base64", "between slashes", func(c *Config) { c.KeyFormat = "base64" }},
		{"keyFormat", "/a", "between slashes", func(c *Config) { c.KeyFormat = "/a" }},
		{"keyFormat", "/", "between slashes", func(c *Config) { c.KeyFormat = "/" }},
		{"keyFormat", "//", "between slashes", func(c *Config) { c.KeyFormat = "//" }},
		{"keyFormat", "/a)(b/", "between slashes", func(c *Config) { c.KeyFormat = "/a)(b/" }},
		{"scope", "content", "in key alone", func(c *Config) { c.Scope = []string{"content"} }},
		{"scope", "cookie:", "cookie:session", func(c *Config) { c.Scope = []string{"cookie:"} }},
		{"requireCaller", "true", "another source than Host", func(c *Config) { c.RequireCaller = true; c.Scope = []string{"Host"} }},
		{"requireCaller", "true", "another source than Host", func(c *Config) { c.RequireCaller = true; c.Scope = []string{"none"} }},
		{"same", "header", "query, type, body, json, conditions", func(c *Config) { c.Same = []string{"query", "header"} }},
		{"same", "", "some of query", func(c *Config) { c.Same = []string{} }},
		{"same", "body,json", "one at the most", func(c *Config) { c.Same = []string{"body", "json"} }},
		{"ignore", "", "more in it than blanks", func(c *Config) { c.Ignore = []string{" ", ""} }},
		{"ignore", "X-Sent", "json:/sentAt", func(c *Config) { c.Ignore = []string{"query:_", "X-Sent"} }},
		{"ignore", "json:sentAt", "json:/sentAt", func(c *Config) { c.Ignore = []string{"json:sentAt"} }},
		{"ignore", "query:a + query:b", "json:/sentAt", func(c *Config) { c.Ignore = []string{"query:a + query:b"} }},
		{"ignore", "content", "json:/sentAt", func(c *Config) { c.Ignore = []string{"content"} }},
		{"header", "a b", "header name", func(c *Config) { c.Header = "a b" }},
		{"ttl", "soon", "duration", func(c *Config) { c.TTL = "soon" }},
		{"ttl", "0", "from 1ms", func(c *Config) { c.TTL = "0" }},
		{"ttl", "-5s", "from 1ms", func(c *Config) { c.TTL = "-5s" }},
		{"ttl", "", "duration", func(c *Config) { c.TTL = "" }},
		{"maxTTL", "200h", "from 1ms to 168h", func(c *Config) { c.MaxTTL = "200h" }},
		{"methods", "PSOT", "GET, HEAD, POST", func(c *Config) { c.Methods = []string{"POST", "PSOT"} }},
		{"methods", "TRACE", "GET, HEAD, POST", func(c *Config) { c.Methods = []string{"TRACE"} }},
		{"methods", "", "at least one", func(c *Config) { c.Methods = []string{} }},
		{"endpoints", "api/x", "path prefix", func(c *Config) { c.Endpoints = []string{"api/x"} }},
		{"endpoints", "POST", "path prefix", func(c *Config) { c.Endpoints = []string{"POST"} }},
		{"endpoints", "POST /a b", "path prefix", func(c *Config) { c.Endpoints = []string{"POST /a b"} }},
		{"endpoints", `/\xff`, "path prefix", func(c *Config) { c.Endpoints = []string{"/\xff"} }},
		{"endpoints", "PSOT", "GET, HEAD, POST", func(c *Config) { c.Endpoints = []string{"PSOT /a"} }},
		{"mode", "off", "enforce, observe", func(c *Config) { c.Mode = "off" }},
		{"maxKeyLength", "0", "1 to 255", func(c *Config) { c.MaxKeyLength = 0 }},
		{"maxKeyLength", "256", "1 to 255", func(c *Config) { c.MaxKeyLength = 256 }},
		{"scope", "", "or none by itself", func(c *Config) { c.Scope = []string{} }},
		{"scope", "", "or none by itself", func(c *Config) { c.Scope = []string{" ", ""} }},
		{"scope", "Host,none", "or none by itself", func(c *Config) { c.Scope = []string{"Host", "none"} }},
		{"header", "transfer-encoding", "not Host", func(c *Config) { c.Header = "transfer-encoding" }},
		{"header", "authorization", "not Host", func(c *Config) { c.Header = "authorization" }},
		{"header", "User-Agent", "not Host", func(c *Config) { c.Header = "User-Agent" }},
		{"replayHeader", "Content-Length", "not Host", func(c *Config) { c.ReplayHeader = "Content-Length" }},
		{"replayHeader", "set-cookie", "not Host", func(c *Config) { c.ReplayHeader = "set-cookie" }},
		{"statusHeader", "Connection", "not Host", func(c *Config) { c.StatusHeader = "Connection" }},
		{"statusHeader", "TE", "not Host", func(c *Config) { c.StatusHeader = "TE" }},
		{"statusHeader", "Content-Encoding", "not Host", func(c *Config) { c.StatusHeader = "Content-Encoding" }},
		{"statusHeader", "IDEMPOTENT-replayed", "another header than replayHeader", func(c *Config) { c.StatusHeader = "IDEMPOTENT-replayed" }},
		{"endpoints", "POST /a%20b", "decoded", func(c *Config) { c.Endpoints = []string{"POST /a%20b"} }},
		{"endpoints", "", "blanks", func(c *Config) { c.Endpoints = []string{" ", " "} }},
		{"methods", "", "blanks", func(c *Config) { c.Methods = []string{""} }},
		{"omitHeaders", "", "blanks", func(c *Config) { c.OmitHeaders = []string{" "} }},
		{"retryableStatuses", "", "blanks", func(c *Config) { c.RetryableStatuses = []string{" "} }},
		{"redis.endpoints", "", "blanks", func(c *Config) { c.Redis.Endpoints = []string{" "} }},
		{"stats.users", "", "blanks", func(c *Config) { c.Stats.Users = []string{"", ""} }},
		{"scope", "a:b", "header name", func(c *Config) { c.Scope = []string{"a:b"} }},
		{"onInvalidKey", "replay", "reject, ignore", func(c *Config) { c.OnInvalidKey = "replay" }},
		{"onMismatch", "ignore", "reject, replay", func(c *Config) { c.OnMismatch = "ignore" }},
		{"inFlight", "queue", "wait, reject", func(c *Config) { c.InFlight = "queue" }},
		{"inFlightTimeout", "2h", "from 1ms to 1h", func(c *Config) { c.InFlightTimeout = "2h" }},
		{"lease", "10ms", "from 100ms to 1h", func(c *Config) { c.Lease = "10ms" }},
		{"lease", "1499ms", "the longest of which is 1s", func(c *Config) { c.Lease = "1499ms"; c.Redis.Endpoints = []string{"redis:6379"} }},
		{"lease", "15s", "the longest of which is 20s", func(c *Config) { c.Redis.DialTimeout = "20s"; c.Redis.Endpoints = []string{"redis:6379"} }},
		{"detachTimeout", "x", "duration", func(c *Config) { c.DetachTimeout = "x" }},
		{"retryableStatuses", "5xx", "200 to 599", func(c *Config) { c.RetryableStatuses = []string{"5xx"} }},
		{"retryableStatuses", "599-500", "200 to 599", func(c *Config) { c.RetryableStatuses = []string{"599-500"} }},
		{"retryableStatuses", "100", "200 to 599", func(c *Config) { c.RetryableStatuses = []string{"100"} }},
		{"onUnknown", "", "hold, release", func(c *Config) { c.OnUnknown = "" }},
		{"replayHeader", "a b", "header name", func(c *Config) { c.ReplayHeader = "a b" }},
		{"statusHeader", "é", "header name", func(c *Config) { c.StatusHeader = "é" }},
		{"omitHeaders", "a b", "header name", func(c *Config) { c.OmitHeaders = []string{"a b"} }},
		{"maxRequestBodyBytes", "-1", "0 to 268435456", func(c *Config) { c.MaxRequestBodyBytes = -1 }},
		{"maxRequestBodyBytes", "268435457", "0 to 268435456", func(c *Config) { c.MaxRequestBodyBytes = mostBody + 1 }},
		{"maxResponseBodyBytes", "268435457", "0 to 268435456", func(c *Config) { c.MaxResponseBodyBytes = mostBody + 1 }},
		{"maxResponseBodyBytes", "2147483648", "0 to 268435456", func(c *Config) { c.MaxResponseBodyBytes = 2 << 30 }},
		{"onStoreError", "fail", "degrade, pass, reject", func(c *Config) { c.OnStoreError = "fail" }},
		{"localCacheBytes", "-1", "whole number", func(c *Config) { c.LocalCacheBytes = -1 }},
		{"logLevel", "trace", "error, warn, info, debug", func(c *Config) { c.LogLevel = "trace" }},
		{"redis.endpoints", "redis", "redis:6379", func(c *Config) { c.Redis.Endpoints = []string{"redis"} }},
		{"redis.endpoints", "redis…", "redis:6379", func(c *Config) { c.Redis.Endpoints = []string{"redis:http"} }},
		{"redis.endpoints", "a:1,b:2", "one address", func(c *Config) { c.Redis.Endpoints = []string{"a:1", "b:2"} }},
		{"redis.endpoints", "redis:6379/2", "rediss:// for TLS", func(c *Config) { c.Redis.Endpoints = []string{"redis:6379/2"} }},
		{"redis.endpoints", "redis://…@redis:6379", "percent-encoded", func(c *Config) { c.Redis.Endpoints = []string{"redis://:se%cret@redis:6379"} }},
		{"redis.endpoints", "http://redis:80", "redis:6379", func(c *Config) { c.Redis.Endpoints = []string{"http://redis:80"} }},
		{"redis.tls.ca", missing, "file with PEM certificates", func(c *Config) { c.Redis.TLS.CA = missing }},
		{"redis.tls.ca", "PEM text", "file with PEM certificates", func(c *Config) { c.Redis.TLS.CA = "-----BEGIN NOTHING" }},
		{"redis.tls.cert", "", "or neither", func(c *Config) { c.Redis.TLS.Key = missing }},
		{"redis.tls.cert", missing, "files with a PEM certificate", func(c *Config) { c.Redis.TLS.Cert = missing; c.Redis.TLS.Key = missing }},
		{"redis.username", "…", "together with redis.password", func(c *Config) { c.Redis.Username = "shop" }},
		{"redis.passwordFile", missing, "file that can be read", func(c *Config) { c.Redis.PasswordFile = missing }},
		{"redis.sentinel.username", "…", "together with redis.sentinel.password", func(c *Config) { c.Redis.Sentinel.Username = "shop" }},
		{"redis.sentinel.passwordFile", missing, "file that can be read", func(c *Config) { c.Redis.Sentinel.PasswordFile = missing }},
		{"redis.sentinel.masterName", "shop", "not both", func(c *Config) { c.Redis.Cluster = true; c.Redis.Sentinel.MasterName = "shop" }},
		{"redis.db", "2", "only database of a cluster", func(c *Config) { c.Redis.Cluster = true; c.Redis.DB = 2 }},
		{"redis.waitReplicas", "101", "0 to 100", func(c *Config) { c.Redis.WaitReplicas = 101 }},
		{"redis.db", "-1", "whole number", func(c *Config) { c.Redis.DB = -1 }},
		{"redis.keyPrefix", "", "1 to 100", func(c *Config) { c.Redis.KeyPrefix = "" }},
		{"redis.keyPrefix", "a*", "1 to 100", func(c *Config) { c.Redis.KeyPrefix = "a*" }},
		{"redis.dialTimeout", "0s", "from 1ms to 1m", func(c *Config) { c.Redis.DialTimeout = "0s" }},
		{"redis.readTimeout", "2m", "from 1ms to 1m", func(c *Config) { c.Redis.ReadTimeout = "2m" }},
		{"redis.writeTimeout", "x", "from 1ms to 1m", func(c *Config) { c.Redis.WriteTimeout = "x" }},
		{"redis.poolSize", "-1", "whole number", func(c *Config) { c.Redis.PoolSize = -1 }},
		{"redis.minIdleConns", "-1", "whole number", func(c *Config) { c.Redis.MinIdleConns = -1 }},
		{"redis.maxActiveConns", "-1", "whole number", func(c *Config) { c.Redis.MaxActiveConns = -1 }},
	} {
		config := CreateConfig()
		c.change(config)
		_, err := New(context.Background(), http.NotFoundHandler(), config, "idem@file")
		if !errors.Is(err, ErrConfig) {
			t.Errorf("%s=%q: error %v", c.key, c.value, err)
			continue
		}
		for _, part := range []string{"idem@file", c.key + ": ", `"` + c.value + `"`, c.allowed} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s=%q: no %q in the error %q", c.key, c.value, part, err)
			}
		}
	}
}

func TestAPasswordIsInNoError(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	err := os.WriteFile(file, []byte("secret"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	config := CreateConfig()
	config.Redis.Password = "secret"
	config.Redis.PasswordFile = file
	_, err = New(context.Background(), http.NotFoundHandler(), config, "idem@file")
	if !errors.Is(err, ErrConfig) || strings.Contains(err.Error(), "secret") {
		t.Errorf("two passwords: %v", err)
	}
	config = CreateConfig()
	config.ProblemBase = "https://shop:secret@example.com/errors"
	_, err = New(context.Background(), http.NotFoundHandler(), config, "idem@file")
	if !errors.Is(err, ErrConfig) || strings.Contains(err.Error(), "secret") {
		t.Errorf("a login in an address: %v", err)
	}
}

// TestAPasswordInsteadOfAPathIsInNoError, as Traefik puts one there for urn:k8s:secret:….
func TestAPasswordInsteadOfAPathIsInNoError(t *testing.T) {
	for name, change := range map[string]func(c *Config, value string){
		"redis.passwordFile":                   func(c *Config, value string) { c.Redis.PasswordFile = value },
		"redis.passwordFile beside a password": func(c *Config, value string) { c.Redis.PasswordFile = value; c.Redis.Password = "hidden" },
		"redis.passwordFile beside a login": func(c *Config, value string) {
			c.Redis.PasswordFile = value
			c.Redis.Endpoints = []string{"redis://:hidden@redis"}
		},
		"redis.sentinel.passwordFile": func(c *Config, value string) { c.Redis.Sentinel.PasswordFile = value },
		"redis.sentinel.passwordFile and other": func(c *Config, value string) {
			c.Redis.Sentinel.PasswordFile = value
			c.Redis.Sentinel.Password = "hidden"
		},
		"redis.username":          func(c *Config, value string) { c.Redis.Username = value },
		"redis.sentinel.username": func(c *Config, value string) { c.Redis.Sentinel.Username = value },
		"stats.usersFile":         func(c *Config, value string) { c.Stats.UsersFile = value },
		"stats.adminsFile":        func(c *Config, value string) { c.Stats.AdminsFile = value },
	} {
		for _, value := range []string{"S3cret", "/S3cret+", ".S3cret", "ops:S3cret", "two words/S3cret", "S3cret\n", strings.Repeat("S3cret/", 1000), "S3cret\x00", "~/S3cret"} {
			config := CreateConfig()
			change(config, value)
			_, err := New(context.Background(), http.NotFoundHandler(), config, "idem@file")
			if !errors.Is(err, ErrConfig) || strings.Contains(err.Error(), "S3cret") || strings.Contains(err.Error(), "hidden") || !strings.Contains(err.Error(), `"…"`) {
				t.Errorf("%s: %q: the error is %v", name, value, err)
			}
		}
	}
	for _, path := range []string{"/run/secrets/redis-password", "./redis.password", "../secrets/redis"} {
		config := CreateConfig()
		config.Redis.PasswordFile = path
		_, err := New(context.Background(), http.NotFoundHandler(), config, "idem@file")
		if err == nil || !strings.Contains(err.Error(), `"`+path+`" is not allowed`) || !strings.Contains(err.Error(), "(no such file or directory)") {
			t.Errorf("the path %s is not in the error %v", path, err)
		}
	}
}

// TestAPrivateKeyIsInNoError, nor on the page, in whatever form somebody has put it where a path or PEM text belongs.
func TestAPrivateKeyIsInNoError(t *testing.T) {
	der := make([]byte, 48) // as long as one of Ed25519, the shortest
	for i := range der {
		der[i] = byte(7 * i)
	}
	text := base64.StdEncoding.EncodeToString(der)
	pemText := "-----BEGIN PRIVATE KEY-----\n" + text + "\n-----END PRIVATE KEY-----\n"
	file := filepath.Join(t.TempDir(), "client.pem")
	err := os.WriteFile(file, []byte("x"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]string{
		"PEM": pemText, "base64 of PEM": base64.StdEncoding.EncodeToString([]byte(pemText)), "base64 of DER": text, "half of it": pemText[5:],
		"base64 of long PEM": base64.StdEncoding.EncodeToString([]byte(strings.Repeat(pemText, 30))), "like a path": "/" + text, "escaped": strings.ReplaceAll(pemText, "\n", `\n`),
	} {
		for _, tls := range []TLSConfig{{Cert: file, Key: key}, {Cert: key, Key: file}, {Cert: key}, {CA: key}} {
			config := CreateConfig()
			config.Redis.Endpoints = []string{"redis:6379"}
			config.Redis.TLS = tls
			_, err := New(context.Background(), http.NotFoundHandler(), config, "idem@file")
			if !errors.Is(err, ErrConfig) || strings.Contains(err.Error(), key[:20]) || strings.Contains(err.Error(), text[:20]) {
				t.Errorf("%s: the error is %v", name, err)
			}
			shown := fmt.Sprint(inForce(&handler{}, config))
			if strings.Contains(shown, key[:20]) || strings.Contains(shown, text[:20]) {
				t.Errorf("%s: the page shows %s", name, shown)
			}
		}
	}
	for _, path := range []string{"certs/missing.pem", "/run/secrets/redis-client-key", "./client.key"} {
		config := CreateConfig()
		config.Redis.Endpoints = []string{"redis:6379"}
		config.Redis.TLS = TLSConfig{Cert: file, Key: path}
		_, err := New(context.Background(), http.NotFoundHandler(), config, "idem@file")
		if err == nil || !strings.Contains(err.Error(), path+": no such file") {
			t.Errorf("the path %s is not in the error %v", path, err)
		}
	}
}

func TestEndpoints(t *testing.T) {
	const none = ""
	for _, c := range []struct {
		endpoint, address, username, password string
		db                                    int
		encrypted                             bool
	}{
		{"redis:6379", "redis:6379", none, none, 0, false},
		{" [::1]:6379 ", "[::1]:6379", none, none, 0, false},
		{"redis://redis:6379", "redis:6379", none, none, 0, false},
		{"redis://redis", "redis:6379", none, none, 0, false},
		{"redis://redis/", "redis:6379", none, none, 0, false},
		{"rediss://redis", "redis:6379", none, none, 0, true},
		{"valkey://10.0.0.1:7000/1", "10.0.0.1:7000", none, none, 1, false},
		{"VALKEYS://redis/0", "redis:6379", none, none, 0, true},
		{"redis://[fd00::5]", "[fd00::5]:6379", none, none, 0, false},
		{"redis://:pw@[::1]:7000/15", "[::1]:7000", none, "pw", 15, false},
		{"redis://[fe80::1%25eth0]:7000", "[fe80::1%eth0]:7000", none, none, 0, false},
		{"redis://shop:pw@redis:6379/2", "redis:6379", "shop", "pw", 2, false},
		{"rediss://shop:p%40s%2Fs%3Aw%25+%23%3F@redis:6380/1048576", "redis:6380", "shop", "p@s/s:w%+#?", 1048576, true},
		{"redis://sh%3Aop:%C3%A4@redis", "redis:6379", "sh:op", "ä", 0, false},
		{"redis://a:b:c@redis", "redis:6379", "a", "b:c", 0, false},
		{"unix:///run/redis.sock", "unix:///run/redis.sock", none, none, 0, false},
		{"unix:///run/my%20redis@1.sock", "unix:///run/my redis@1.sock", none, none, 0, false},
		{"unix://shop:p%40w@/run/redis.sock", "unix:///run/redis.sock", "shop", "p@w", 0, false},
	} {
		config := CreateConfig()
		config.Redis.Endpoints = []string{c.endpoint}
		set, _, err := config.settings()
		if err != nil {
			t.Errorf("%s: %v", c.endpoint, err)
			continue
		}
		opts := set.redis
		if opts.Address != c.address || opts.Username != c.username || opts.Password != c.password || opts.DB != c.db || opts.TLS.Enabled != c.encrypted {
			t.Errorf("%s: %+v", c.endpoint, opts)
		}
		config.Redis.Username, config.Redis.Password, config.Redis.DB = c.username, c.password, c.db // the same is fine
		again, _, err := config.settings()
		if err != nil || again.redis != opts {
			t.Errorf("%s, set apart too: %v", c.endpoint, err)
		}
		handler := &handler{settings: *set}
		for _, setting := range handler.effective() {
			if c.password != "" && strings.Contains(setting.Value, c.password) {
				t.Errorf("the password is in force in %s: %s", setting.Name, setting.Value)
			}
		}
	}
}

// TestSecretsInEndpoints has endpoints that are refused: the error says why, and has no part of what may be a password.
func TestSecretsInEndpoints(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	err := os.WriteFile(file, []byte("another"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	const twice = "or set it in one place only"
	for _, c := range []struct {
		endpoints []string
		want      string
		change    func(c *RedisConfig)
	}{
		{[]string{"redis://shop:secret@redis"}, `redis.password: "…"`, func(c *RedisConfig) { c.Password = "hidden" }},
		{[]string{"redis://shop:secret@redis"}, `redis.username: "…"`, func(c *RedisConfig) { c.Username = "other" }},
		{[]string{"redis://shop:secret@redis/0"}, `redis.db: "2"`, func(c *RedisConfig) { c.DB = 2 }},
		{[]string{"redis://shop:secret@redis/3"}, twice, func(c *RedisConfig) { c.DB = 2 }},
		{[]string{"redis://:secret@redis"}, "not both", func(c *RedisConfig) { c.PasswordFile = file }},
		{[]string{"redis://:secret@a", "redis://:secret@b", "redis://:hidden@c"}, `redis.password: "…"`, func(c *RedisConfig) { c.Cluster = true }},
		{[]string{"redis://:secret@a/1", "redis://:secret@b/2"}, `redis.db: "1"`, func(c *RedisConfig) { c.Sentinel.MasterName = "shop" }},
		{[]string{"redis://:secret@a/1"}, "only database of a cluster", func(c *RedisConfig) { c.Cluster = true }},
		{[]string{"redis://:secret@a", "redis://:hidden@b"}, "or set it in one place only", nil},
		{[]string{"redis://:secret@a", "redis://:secret@b:1/2"}, `"redis://…@a,redis://…@b:1/2"`, nil},
		{[]string{"redis://shop:@redis"}, `"redis://…@redis"`, nil},
		{[]string{"redis://secret@redis"}, "redis://:password@redis:6379", nil},
		{[]string{"unix://:secret@/run/redis.sock"}, "a unix socket is for one server", func(c *RedisConfig) { c.Cluster = true }},
		{[]string{"unix://:secret@/run/redis.sock"}, "a unix socket is for one server", func(c *RedisConfig) { c.Sentinel.MasterName = "shop" }},
		{[]string{"unix:///run/redis.sock"}, `"unix:///run/redis.sock"`, func(c *RedisConfig) { c.TLS.Enabled = true }},
		{[]string{"unix://run/secret"}, endpointForm, nil},
		{[]string{"unix:///"}, endpointForm, nil},
		{[]string{"unix:///run/redis.sock?password=secret"}, endpointForm, nil},
		{[]string{"unix:///a", "unix:///b"}, "one address", nil},
		{[]string{"shop:secret@redis:6379"}, endpointForm, nil},
		{[]string{"redis:secret"}, endpointForm, nil},
		{[]string{"redis://user:secret"}, endpointForm, nil},
		{[]string{"redis://user:12/secret"}, `"redis://user…"`, nil},
		{[]string{"redis://user:12secret"}, `"redis://user…"`, nil},
		{[]string{"redis://:12", "34secret@redis:6379"}, `"redis://…"`, nil}, // as a label is split
		{[]string{":12345"}, `"…"`, nil},
		{[]string{"redis:6379", "password=secret"}, `"password…"`, nil},
		{[]string{"redis://:sec%ret@redis"}, endpointForm, nil},
		{[]string{"redis://:secret/hidden@redis"}, endpointForm, nil},
		{[]string{"redis://:secret#hidden@redis"}, endpointForm, nil},
		{[]string{"redis://:1#secret@redis"}, endpointForm, nil},
		{[]string{"redis://:secret@hidden?secret@redis"}, endpointForm, nil},
		{[]string{"redis://:secret^@redis:6379"}, `"redis://…@redis:6379"`, nil},
		{[]string{"redis://redis?password=secret"}, `"redis://redis…"`, nil},
		{[]string{"redis://redis#secret"}, endpointForm, nil},
		{[]string{"redis://:secret@redis:0"}, endpointForm, nil},
		{[]string{"redis://:secret@redis:65536"}, endpointForm, nil},
		{[]string{"redis://:secret@redis/one"}, endpointForm, nil},
		{[]string{"redis://:secret@redis/-1"}, endpointForm, nil},
		{[]string{"redis://:secret@redis/1/"}, endpointForm, nil},
		{[]string{"redis://:secret@redis/9999999"}, "0 to 1048576", nil},
		{[]string{"redis://:secret@"}, endpointForm, nil},
		{[]string{"redis://:secret@[::1"}, endpointForm, nil},
		{[]string{"redis://:secret@redis\nsecret"}, endpointForm, nil},
		{[]string{"postgres://shop:secret@redis:5432/1"}, `"postgres://…@redis:5432/1"`, nil},
	} {
		config := CreateConfig()
		config.Redis.Endpoints = c.endpoints
		if c.change != nil {
			c.change(&config.Redis)
		}
		_, err := New(context.Background(), http.NotFoundHandler(), config, "idem@file")
		switch {
		case !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), c.want):
			t.Errorf("%q: %v, want %s", c.endpoints, err, c.want)
		case strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "hidden"):
			t.Errorf("%q: a secret in the error %v", c.endpoints, err)
		}
	}
}

func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{"90s": 90 * time.Second, "90": 90 * time.Second, "1.5": 1500 * time.Millisecond, " 2m ": 2 * time.Minute} {
		config := CreateConfig()
		config.MaxTTL = "1h"
		config.TTL = text
		set, _, err := config.settings()
		if err != nil || set.ttl != want {
			t.Errorf("ttl %q: %v, %v", text, set, err)
		}
	}
}

func TestALongTTLIsCut(t *testing.T) {
	config := CreateConfig()
	config.TTL = "24h"
	set, warning, err := config.settings()
	if err != nil || set.ttl != time.Minute || !strings.Contains(warning, "ttl 24h0m0s") || !strings.Contains(warning, "maxTTL") {
		t.Errorf("ttl over maxTTL: %v, %q, %v", set.ttl, warning, err)
	}
	config.MaxTTL = "48h"
	set, warning, err = config.settings()
	if err != nil || set.ttl != 24*time.Hour || warning != "" {
		t.Errorf("ttl under maxTTL: %v, %q, %v", set.ttl, warning, err)
	}
}

// TestSettingsOfARedisWithoutAddress do nothing. They may be meant for a Redis whose address is a variable that is not set.
func TestSettingsOfARedisWithoutAddress(t *testing.T) {
	for name, change := range map[string]func(c *Config){
		"onStoreError reject": func(c *Config) { c.OnStoreError = "reject" },
		"redis.username":      func(c *Config) { c.Redis.Username = "shop"; c.Redis.Password = "secret" },
		"redis.password":      func(c *Config) { c.Redis.Password = "secret" },
		"redis.passwordFile":  func(c *Config) { c.Redis.PasswordFile = os.Args[0] },
		"redis.db":            func(c *Config) { c.Redis.DB = 2 },
		"redis.tls":           func(c *Config) { c.Redis.TLS.ServerName = "redis" },
		"redis.cluster":       func(c *Config) { c.Redis.Cluster = true },
		"redis.sentinel":      func(c *Config) { c.Redis.Sentinel.MasterName = "shop" },
		"redis.waitReplicas":  func(c *Config) { c.Redis.WaitReplicas = 1 },
	} {
		config := CreateConfig()
		config.TTL = "24h"
		config.Redis.Endpoints = []string{}
		change(config)
		_, warning, err := config.settings()
		if err != nil || !strings.Contains(warning, "; "+name+" does nothing without redis.endpoints") || !strings.Contains(warning, "maxTTL") || strings.Contains(warning, "secret") {
			t.Errorf("%s without an address: %q, %v", name, warning, err)
		}
	}
	config := CreateConfig()
	config.OnStoreError = "reject"
	config.Redis.Endpoints = []string{"redis:6379"}
	_, warning, err := config.settings()
	if err != nil || warning != "" {
		t.Errorf("onStoreError with redis: %q, %v", warning, err)
	}
}

// TestTheDefaultOfContentTTLIsCut to ttl, in whatever way it is written.
func TestTheDefaultOfContentTTLIsCut(t *testing.T) {
	for _, text := range []string{"5s", "5", "5000ms"} {
		config := CreateConfig()
		config.Key = []string{"content"}
		config.TTL = "2s"
		config.ContentTTL = text
		set, _, err := config.settings()
		if err != nil || set.contentTTL != 2*time.Second {
			t.Errorf("contentTTL %q: %v, %v", text, set, err)
		}
	}
	if text := CreateConfig().ContentTTL; text != "5s" {
		t.Errorf("contentTTL is %q by default", text)
	}
}

func TestNewReturnsAtOnceWithoutRedis(t *testing.T) {
	config := CreateConfig()
	config.Redis.Endpoints = []string{"192.0.2.1:6379"} // an address that nobody has
	config.Redis.MinIdleConns = 3
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	returned := make(chan error, 1)
	go func() {
		_, err := New(ctx, http.NotFoundHandler(), config, "idem@file")
		returned <- err
	}()
	err := <-returned // connecting there would take the test's whole time-out
	if err != nil {
		t.Error(err)
	}
}

// TestAShortLeaseIsToldOf where there is a Redis that may answer late.
func TestAShortLeaseIsToldOf(t *testing.T) {
	for _, test := range []struct {
		lease, endpoint string
		told            bool
	}{{"2s", "redis:6379", true}, {"2999ms", "redis:6379", true}, {"3s", "redis:6379", false}, {"2s", "", false}} {
		config := CreateConfig()
		config.Lease = test.lease
		config.Redis.Endpoints = list([]string{test.endpoint})
		_, warning, err := config.settings()
		if err != nil || strings.Contains(warning, "three times 1s") != test.told {
			t.Errorf("%+v: %q, %v", test, warning, err)
		}
	}
}
