package decode_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	idem "github.com/example/traefik-idem"
	"github.com/example/traefik-idem/e2e/internal/decode"
)

var complaint = regexp.MustCompile(`^idem@docker: invalid configuration: ([A-Za-z.]+): ("(?:[^"\\]|\\.)*") is not allowed; allowed: .`)

var unknownSetting = regexp.MustCompile(`(?s)^idem@docker: invalid configuration: (redis\.|redis\.tls\.|redis\.sentinel\.|stats\.)?.*: there is no such setting; (the nearest that is )?allowed`)

const secret = "correct horse battery staple"

// FuzzConfiguration builds the middleware from labels, one a line, without the part that all have in common. It works, or
// New says which setting is wrong, and what it is.
func FuzzConfiguration(f *testing.F) {
	for _, labels := range []string{
		"", "header=Idempotency-Key\nttl=24h\nmaxTTL=24h\nendpoints=POST /api/payments/, * /api/orders/*/pay",
		"required=true\nmode=observe\nmaxKeyLength=20\nmethods=GET,post", "ttl=soon", "methods=PSOT", "methods=", "endpoints=GET", "endpoints=/\xff",
		"scope=Host, X-Tenant\nonMismatch=replay\ninFlight=reject\ninFlightTimeout=3\nlease=0.5s\ndetach=false\ndetachTimeout=1h",
		"retryableStatuses=429,500-503\nonUnknown=release\nreplayHeader=\nstatusHeader=X-Decision\nomitHeaders=Date", "retryableStatuses=503-500",
		"maxRequestBodyBytes=0\nmaxResponseBodyBytes=1073741825", "onStoreError=reject\nlocalCacheBytes=0\nlogLevel=debug", "maxKeyLength=many", "required=perhaps",
		"redis.endpoints=127.0.0.1:6379\nredis.username=a\nredis.password=b\nredis.db=3\nredis.keyPrefix=shop\nredis.dialTimeout=2", "redis.endpoints=redis", "redis.endpoints=a:1,b:2", "redis.endpoints=1,1,", "redis.endpoints=,", "scope= ,", "scope=none,none",
		"redis.passwordFile=none\nredis.password=b", "redis.poolSize=3\nredis.minIdleConns=2\nredis.maxActiveConns=10001", "redis=x", "redis.endpoint=a:1", "redis.pasword=" + secret, "Rest=x", secret, "redis." + secret + "=x", "redis.tls.ca.x=1", "redis.endpoints.0=a:1",
		"redis.endpoints=redis://shop:p%40w@redis/2", "redis.endpoints=rediss://:pw@[::1]:7000", "redis.endpoints=unix:///run/redis.sock", "redis.endpoints=redis://a:b@c\nredis.password=d", "redis.endpoints=redis://a@b/c?d#e",
		"stats.path=\nstats.insecure=true", "stats.path=/a/../b", "stats.users=ops:{SHA}x", "stats.users=ops:pass\nstats.insecure=true", "stats.admins=ops:pass\nstats.insecure=true", "stats.usersFile=users\nstats.ttl=1m\nstats.maxEndpoints=10",
	} {
		f.Add(labels)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, labels string) {
		config := idem.CreateConfig()
		err := decode.Settings(decode.Labels(labels), config)
		if err != nil {
			return // this far it was Traefik's own work
		}
		// Nothing is read from anywhere, and nobody connected to.
		for _, file := range []*string{&config.Redis.PasswordFile, &config.Stats.UsersFile} {
			if *file != "" {
				*file = filepath.Join(dir, filepath.Base(*file)+"_")
			}
		}
		if config.Redis.MinIdleConns > 0 && config.Redis.MinIdleConns < 10000 {
			config.Redis.MinIdleConns = 0
		}
		if config.Redis.Password != "" {
			config.Redis.Password = secret
		}
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		passed := false
		handler, err := idem.New(ctx, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { passed = true }), config, "idem@docker")
		if err != nil {
			explains(t, labels, config, err)
			return
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/pay", nil))
		switch {
		case config.Stats.Path == "/pay" || config.Stats.Path == "/pay/":
		case passed == (w.Code == http.StatusBadRequest), !passed && (!config.Required || config.Mode == "observe"):
			t.Errorf("%q: a request without a key passes: %t, and is answered %d", labels, passed, w.Code)
		}
	})
}

// explains checks that an error names a setting, what it is, and what it may be.
func explains(t *testing.T, labels string, config *idem.Config, err error) {
	t.Helper()
	if unknownSetting.MatchString(err.Error()) && errors.Is(err, idem.ErrConfig) && !strings.Contains(err.Error(), secret) {
		return
	}
	found := complaint.FindStringSubmatch(err.Error())
	if found == nil || !errors.Is(err, idem.ErrConfig) || strings.Contains(err.Error(), secret) {
		t.Fatalf("%q: error %v", labels, err)
	}
	value, unquoteErr := strconv.Unquote(found[2])
	if unquoteErr != nil {
		t.Fatalf("%q: error %v", labels, err)
	}
	setting := reflect.ValueOf(config).Elem()
	for _, name := range strings.Split(found[1], ".") {
		setting = setting.FieldByNameFunc(func(field string) bool { return strings.EqualFold(field, name) })
		if !setting.IsValid() {
			t.Fatalf("%q: there is no setting %s: %v", labels, found[1], err)
		}
	}
	is := []string{"", fmt.Sprint(setting.Interface())}
	if setting.Kind() == reflect.Slice { // it is one of the list, or all of it; elements that are empty do not count
		is = setting.Interface().([]string)
		var all []string
		for _, element := range is {
			if element = strings.TrimSpace(element); element != "" {
				all = append(all, element)
			}
		}
		is = append(is, strings.Join(all, ","), "")
	} else if found[1] == "redis.db" {
		is = append(is, config.Redis.Endpoints...)
	}
	// What may be a password is left out.
	leftOut := strings.NewReplacer(":…", ".*", "…", ".*")
	shown := regexp.MustCompile("(?is)" + leftOut.Replace(regexp.QuoteMeta(strings.ToValidUTF8(value, "…"))))
	if !slices.ContainsFunc(is, shown.MatchString) {
		t.Errorf("%q: %s is %q: %v", labels, found[1], setting.Interface(), err)
	}
}
