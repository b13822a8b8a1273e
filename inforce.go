package idem

import (
	"fmt"
	"reflect"
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
