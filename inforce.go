package idem

import (
	"fmt"
	"reflect"
	"sort"
	"strconv"
	"strings"

	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/stats"
)

// inForce returns all settings with their values, for the page: as effective has them, and the others as they are configured.
// Of a secret it tells only that it is set.
func inForce(h *handler, c *Config) []stats.Setting {
	known := map[string]string{
		"redis.endpoints":         "", // as configured, they may have a password in them
		"redis.username":          h.redis.Username,
		"redis.password":          concealed(h.redis.Password),
		"redis.tls.enabled":       strconv.FormatBool(h.redis.TLS.Enabled),
		"redis.sentinel.password": concealed(c.Redis.Sentinel.Password),
		"redis.tls.ca":            redisclient.ShownPEM(c.Redis.TLS.CA),
		"redis.tls.cert":          redisclient.ShownPEM(c.Redis.TLS.Cert),
		"redis.tls.key":           redisclient.ShownPEM(c.Redis.TLS.Key),
		"stats.users":             concealed(strings.Join(list(c.Stats.Users), "")),
		"stats.admins":            concealed(strings.Join(list(c.Stats.Admins), "")),
	}
	all := []stats.Setting{{Name: "middleware", Value: h.name}}
	for _, setting := range h.effective() {
		known[setting.Name] = setting.Value
	}
	return append(all, settingValues("", reflect.ValueOf(*c), known)...)
}

// effective returns the settings in force, without secrets.
func (h *handler) effective() []stats.Setting {
	s := &h.settings
	var retryable []string
	for status := range s.retryable {
		retryable = append(retryable, strconv.Itoa(status))
	}
	sort.Strings(retryable)
	var scope []string
	if s.scopeHost {
		scope = append(scope, kindHost)
	}
	scope = append(scope, s.scope...)
	for _, from := range s.callers {
		scope = append(scope, from.text)
	}
	if len(scope) == 0 {
		scope = []string{noScope}
	}
	mode := "enforce"
	if s.observe {
		mode = "observe"
	}
	endpoints := strings.Join(s.endpoints, ", ")
	if endpoints == "" {
		endpoints = "all paths"
	}
	settings := []stats.Setting{
		{Name: "middleware", Value: h.name},
		{Name: "key", Value: s.keyTexts()},
		{Name: "keyFormat", Value: s.keyFormatText},
		{Name: "mode", Value: mode},
		{Name: "ttl", Value: s.ttl.String()},
		{Name: "methods", Value: strings.Join(s.methods, ", ")},
		{Name: "endpoints", Value: endpoints},
		{Name: "required", Value: strconv.FormatBool(s.required)},
		{Name: "scope", Value: strings.Join(scope, ", ")},
		{Name: "requireCaller", Value: strconv.FormatBool(s.requireCaller)},
		{Name: "same", Value: strings.Join(s.same, ", ")},
		{Name: "inFlightTimeout", Value: s.inFlightTimeout.String()},
		{Name: "lease", Value: s.lease.String()},
		{Name: "retryableStatuses", Value: strings.Join(retryable, ", ")},
		{Name: "omitHeaders", Value: strings.Join(s.omitHeaders, ", ")},
		{Name: "maxRequestBodyBytes", Value: strconv.FormatInt(s.maxRequestBody, 10)},
		{Name: "maxResponseBodyBytes", Value: strconv.Itoa(s.maxResponseBody)},
		{Name: "localCacheBytes", Value: strconv.FormatInt(s.localCacheBytes, 10)},
		{Name: "stats.ttl", Value: s.statsLimits.TTL.String()},
		{Name: "stats.maxEndpoints", Value: strconv.Itoa(s.statsLimits.MaxEndpoints)},
	}
	if s.problemBase != "" {
		settings = append(settings, stats.Setting{Name: "problemBase", Value: s.problemBase})
	}
	if s.expiresHeader != "" {
		settings = append(settings, stats.Setting{Name: "expiresHeader", Value: s.expiresHeader})
	}
	if s.exposed != nil {
		settings = append(settings, stats.Setting{Name: "exposeHeaders", Value: "true"})
	}
	if len(s.ignore) > 0 {
		settings = append(settings, stats.Setting{Name: "ignore", Value: strings.Join(s.ignore, ", ")})
	}
	if s.contentTTL > 0 {
		settings = append(settings, stats.Setting{Name: "contentTTL", Value: s.contentTTL.String()})
	}
	if s.redis.Address != "" {
		settings = append(settings,
			stats.Setting{Name: "onStoreError", Value: s.onStoreError},
			stats.Setting{Name: "redis.endpoints", Value: s.redis.Address},
			stats.Setting{Name: "redis.db", Value: strconv.Itoa(s.redis.DB)},
			stats.Setting{Name: "redis.keyPrefix", Value: s.keyPrefix})
	}
	return settings
}

// keyTexts names the sources of keys.
func (s *settings) keyTexts() string {
	var texts []string
	for _, from := range s.keySources {
		texts = append(texts, from.text)
	}
	return strings.Join(texts, ", ")
}

// concealed is what is shown of a secret.
func concealed(secret string) string {
	if secret == "" {
		return ""
	}
	return "set"
}

// settingValues returns the settings of a section and of those in it, with the values that are known and else with their own.
func settingValues(section string, settings reflect.Value, known map[string]string) []stats.Setting {
	var all []stats.Setting
	for i := 0; i < settings.NumField(); i++ {
		name, _, _ := strings.Cut(settings.Type().Field(i).Tag.Get("json"), ",")
		field := settings.Field(i)
		value, isKnown := known[section+name]
		switch {
		case name == "": // Rest
			continue
		case isKnown:
		case field.Kind() == reflect.Struct:
			all = append(all, settingValues(section+name+".", field, known)...)
			continue
		case field.Kind() == reflect.Slice:
			lines, _ := field.Interface().([]string)
			value = strings.Join(lines, ", ")
		default:
			value = fmt.Sprint(field.Interface())
		}
		all = append(all, stats.Setting{Name: section + name, Value: value})
	}
	return all
}
