package behaviour

import (
	"fmt"
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

func TestBadSettingsAreRefused(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for key, c := range map[string]struct {
			settings hosts.Settings
			allowed  string
		}{
			`ttl: "soon"`:                  {hosts.Settings{"ttl": "soon"}, "90s"},
			`methods: "PSOT"`:              {hosts.Settings{"methods": "POST,PSOT"}, "GET, HEAD, POST"},
			`maxKeyLength: "300"`:          {hosts.Settings{"maxKeyLength": "300"}, "1 to 255"},
			`redis.endpoints: "redis"`:     {hosts.Settings{"redis": map[string]any{"endpoints": "redis"}}, "redis:6379"},
			`onStoreError: "panic"`:        {hosts.Settings{"onStoreError": "panic"}, "degrade, pass, reject"},
			`endpoints: "pay"`:             {hosts.Settings{"endpoints": []any{"pay"}}, "path prefix"},
			`retryableStatuses: "5xx"`:     {hosts.Settings{"retryableStatuses": []any{429, "5xx"}}, "500-599"},
			`redis.passwordFile: "…"`:      {hosts.Settings{"redis": map[string]any{"passwordFile": "S3cret"}}, "can be read (no such file or directory)"},
			`redis.readTimeout: "forever"`: {hosts.Settings{"redis": map[string]any{"readTimeout": "forever"}}, "1ms to 1m"},
		} {
			refusal := host.Refusal(t, c.settings)
			for _, part := range []string{"invalid configuration", key, "allowed", c.allowed} {
				if !strings.Contains(refusal, part) {
					t.Errorf("%v: no %q in the error %q", c.settings, part, refusal)
				}
			}
		}
	})
}

// TestLabelSettings has every value as a label has it: a string.
func TestLabelSettings(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		settings := hosts.Settings{
			"key": "X-Key, cookie:pay, json:/a/0/id", "keyFormat": "/[a-z0-9]+/", "contentTTL": "2", "requireCaller": "true", "ttl": "30", "maxTTL": "2m", "methods": "POST, PUT", "endpoints": "POST /pay/, /order/*/x",
			"required": "true", "mode": "enforce", "maxKeyLength": "10", "scope": "Host, X-Tenant, query:user", "same": "query, json", "ignore": "json:/at, query:_", "onMismatch": "reject",
			"inFlight": "reject", "inFlightTimeout": "1s", "lease": "60", "detach": "false", "detachTimeout": "3s",
			"retryableStatuses": "429, 500-504", "onUnknown": "release", "replayHeader": "X-Replay", "statusHeader": "Decision",
			"expiresHeader": "X-Expires", "exposeHeaders": "true", "problemBase": "https://example.com/errors",
			"omitHeaders": "Date, Set-Cookie", "maxRequestBodyBytes": "1000", "maxResponseBodyBytes": "1000",
			"onStoreError": "reject", "localCacheBytes": "1000000", "logLevel": "warn",
			"redis": map[string]any{"db": "0", "keyPrefix": fmt.Sprintf("t%d", rig.PrefixCount.Add(1)), "dialTimeout": "20", "readTimeout": "20s", "writeTimeout": "20s",
				"poolSize": "3", "minIdleConns": "1", "maxActiveConns": "5"},
		}
		if e.Redis != nil {
			settings["redis"].(map[string]any)["endpoints"] = e.Redis.Addr
		}
		s := rig.Serve(t, e.Host, rig.Created, settings)
		first := s.Do(rig.Post("/order/1/x?user=u", "", "X-Key", "k"))
		s.Want(first, 201, "first")
		again := s.Do(rig.Post("/order/1/x?user=u", "", "X-Key", "k"))
		s.Want(again, 201, "replayed")
		if again.Header.Get("X-Replay") != "true" || len(first.Header.Values("Date")) != 1 {
			t.Errorf("replay %v", again.Header)
		}
		if again.Header["X-Expires"] == nil {
			t.Errorf("a replay without its end: %v", again.Header)
		}
		s.Want(s.Do(post("/order/1/x?user=u&_=1", "text/plain", `{"at":1,"amount":1e1}`, "X-Key", "k")), 201, "replayed")
		s.Want(s.Do(rig.Post("/order/1/x", "", "X-Key", "k", "X-Tenant", "t")), 201, "first")
		s.Want(s.Do(rig.Post("/pay/", "", "Cookie", "pay=k", "X-Tenant", "t")), 201, "first")
		s.Want(s.Do(jsonPost(`{"a":[{"id":"k"}]}`, "X-Tenant", "t").With(func(c *rig.Call) { c.Path = "/pay/" })), 201, "first")
		s.Want(s.Do(rig.Post("/pay/", "", "X-Key", "k")), 400, "missing")
		s.Want(s.Do(rig.Post("/pay/", "", "X-Key", "a-b")), 400, "invalid")
		s.Want(s.Do(rig.Post("/other", "", "X-Key", "k")), 201, "")
		missing := s.Do(rig.Post("/pay/", "", "Origin", "https://shop.test"))
		s.Want(missing, 400, "missing")
		if exposed := missing.Header.Get("Access-Control-Expose-Headers"); exposed != "X-Replay, Decision, X-Expires" || !strings.Contains(string(missing.Body), `"https://example.com/errors#missing-key"`) {
			t.Errorf("exposed %q, problem %s", exposed, missing.Body)
		}
		invalid := s.Do(rig.Post("/pay/", "", "X-Key", "12345678901"))
		s.Want(invalid, 400, "invalid")
		if !strings.Contains(string(invalid.Body), `"https://example.com/errors#invalid-key"`) {
			t.Errorf("a key that is too long: %s", invalid.Body)
		}
	})
}

// TestTOML has a dynamic configuration in TOML; all other tests have YAML.
func TestTOML(t *testing.T) {
	p := hosts.StartTraefik(t)
	b := rig.NewBackend(t, rig.Created)
	p.WriteFile(t, "toml1.test.toml", fmt.Appendf(nil, `
[http.routers.toml1]
  rule = "Host(`+"`toml1.test`"+`)"
  service = "toml1"
  middlewares = ["toml1"]
[[http.services.toml1.loadBalancer.servers]]
  url = %q
[http.middlewares.toml1.plugin.idem]
  key = ["Idempotency-Key", "X-A + json:/id"]
  keyFormat = "visible"
  scope = ["Host", "cookie:session"]
  requireCaller = true
  same = ["query", "json"]
  ignore = ["json:/at"]
  contentTTL = "1s"
  ttl = "30s"
  methods = ["POST"]
  maxKeyLength = 12
  statusHeader = "Decision"
  expiresHeader = "Idempotency-Expires"
  exposeHeaders = true
  problemBase = "https://example.com/errors"
  retryableStatuses = [429, "500-599"]
  [http.middlewares.toml1.plugin.idem.redis]
    keyPrefix = "toml"
    poolSize = 4
`, b.URL))
	s := rig.SiteOf(t, p.Site(t, "toml1.test"), b)
	first := s.Do(rig.Post("/", "", "Idempotency-Key", `"a\"c"`, "Cookie", "session=1"))
	s.Want(first, 201, "first")
	invalid := s.Do(rig.Post("/", "", "Idempotency-Key", "1234567890123", "Origin", "https://shop.test"))
	s.Want(invalid, 400, "invalid")
	if exposed := invalid.Header.Get("Access-Control-Expose-Headers"); !strings.HasSuffix(exposed, ", Idempotency-Expires") || !strings.Contains(string(invalid.Body), `"https://example.com/errors#invalid-key"`) {
		t.Errorf("exposed %q, problem %s", exposed, invalid.Body)
	}
	s.WantReplay(first, s.Do(rig.Post("/", "", "Idempotency-Key", `a"c`, "Cookie", "session=1")))
	s.Want(s.Do(rig.Post("/", "", "Idempotency-Key", `a"c`, "Cookie", "session=2")), 201, "first")
	s.Want(s.Do(jsonPost(`{"id":1,"at":1}`, "X-A", "a", "Cookie", "session=2")), 201, "first")
	s.Want(s.Do(jsonPost(`{"at":2,"id":1}`, "X-A", "a", "Cookie", "session=2")), 201, "replayed")
	s.Want(s.Do(rig.Post("/", "", "Idempotency-Key", "abc")), 400, "missing")
}
