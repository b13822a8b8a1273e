package idem

import (
	"context"
	"net/http"
	"reflect"
	"strings"
	"testing"
)

// TestAllSettingsAreShown by their names, as they are in force, and none of the secrets.
func TestAllSettingsAreShown(t *testing.T) {
	config := CreateConfig()
	config.TTL, config.MaxKeyLength = "2m", 77
	config.Redis.Endpoints = []string{"rediss://shop:hidden1@127.0.0.1:1/3"}
	config.Redis.Sentinel.MasterName, config.Redis.Sentinel.Password = "main", "hidden2"
	config.Stats.Users = []string{"eye:hidden3"}
	config.Stats.Admins = []string{"boss:hidden4"}
	config.Stats.UsersFile = ""
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	built, err := New(ctx, http.NotFoundHandler(), config, "shown@file")
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]string{}
	for _, setting := range built.(*handler).inForce {
		shown[setting.Name] = setting.Value
		if strings.Contains(setting.Value, "hidden") {
			t.Errorf("%s shows %s", setting.Name, setting.Value)
		}
	}
	for name, want := range map[string]string{
		"middleware": "shown@file", "ttl": "1m0s", "maxTTL": "60s", "maxKeyLength": "77", "scope": "Host, Authorization", "detach": "true", "omitHeaders": "Set-Cookie",
		"redis.endpoints": "127.0.0.1:1", "redis.username": "shop", "redis.password": "set", "redis.db": "3", "redis.tls.enabled": "true", "redis.sentinel.masterName": "main", "redis.sentinel.password": "set",
		"redis.cluster": "false", "stats.users": "set", "stats.admins": "set", "stats.insecure": "false",
	} {
		if shown[name] != want {
			t.Errorf("%s is shown as %q, want %q", name, shown[name], want)
		}
	}
	sections := map[string]bool{"redis": true, "redis.tls": true, "redis.sentinel": true, "stats": true}
	for _, name := range settingNames("", reflect.TypeOf(*config)) {
		if _, is := shown[name]; is == sections[name] {
			t.Errorf("%s is shown: %t", name, is)
		}
	}
}
