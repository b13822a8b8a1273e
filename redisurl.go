package idem

import (
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/example/traefik-idem/redisclient"
)

// endpoint is what one element of redis.endpoints says. What it does not say is empty.
type endpoint struct {
	address                string // host:port, or redisclient.UnixScheme and a path
	encrypted              bool
	username, password, db string
}

const endpointForm = "an address such as redis:6379, or a URL such as redis://user:password@redis:6379/2, rediss:// for TLS or unix:///run/redis.sock; " +
	"special characters of a user or a password are percent-encoded in a URL"

// redisSchemes are the beginnings of URLs, and whether connections are encrypted.
var redisSchemes = map[string]bool{"redis": false, "rediss": true, "valkey": false, "valkeys": true}

// The ports where there is none in a URL.
const (
	redisPort    = "6379"
	sentinelPort = "26379"
)

// checkEndpoints checks redis.endpoints, and adds to opts what they say. A user, a password and a database in them are those
// of Redis, also in the address of a sentinel.
func (c *RedisConfig) checkEndpoints(k *check, opts *redisclient.Options) {
	endpoints := list(c.Endpoints)
	port := redisPort
	if c.Sentinel.MasterName != "" {
		port = sentinelPort
	}
	db := ""
	if c.DB != 0 {
		db = strconv.Itoa(c.DB)
	}
	var addresses, shown []string
	for _, text := range endpoints {
		shown = append(shown, shownEndpoint(text))
		e, ok := parseEndpoint(text, port)
		if !ok {
			k.fail("redis.endpoints", shownEndpoint(text), endpointForm)
			continue
		}
		addresses = append(addresses, e.address)
		opts.TLS.Enabled = opts.TLS.Enabled || e.encrypted
		opts.Username = k.agree("redis.username", opts.Username, e.username, "…")
		opts.Password = k.agree("redis.password", opts.Password, e.password, "…")
		db = k.agree("redis.db", db, e.db, db)
		switch {
		case e.password != "" && c.PasswordFile != "":
			k.fail("redis.passwordFile", shownFile(c.PasswordFile), "either redis.passwordFile or a password in redis.endpoints, not both")
		case e.username != "" && opts.Password == "" && c.PasswordFile == "": // which may be a password without its colon
			k.fail("redis.endpoints", shownEndpoint(text), "a user together with a password; a password without a user is redis://:password@redis:6379")
		}
	}
	single := c.Sentinel.MasterName == "" && !c.Cluster
	if len(endpoints) > 1 && single {
		k.fail("redis.endpoints", strings.Join(shown, ","), "one address such as redis:6379; several with redis.sentinel.masterName or redis.cluster")
	}
	opts.Address = strings.Join(addresses, ",")
	if strings.Contains(opts.Address, redisclient.UnixScheme) && (!single || opts.TLS.Enabled) {
		k.fail("redis.endpoints", strings.Join(shown, ","), "host and port; a unix socket is for one server, without redis.sentinel, redis.cluster and redis.tls")
	}
	if db != "" {
		number, _ := strconv.ParseInt(db, 10, 64)
		opts.DB = int(k.number("redis.db", number, 0, 1<<20))
	}
}

// agree returns what a setting and an element of redis.endpoints say about the same thing. They may not say two things. shown
// is what the error shows of the setting.
func (k *check) agree(key, set, said, shown string) string {
	if set == "" {
		return said
	}
	if said != "" && said != set {
		k.fail(key, shown, "the same value as in redis.endpoints, or set it in one place only")
	}
	return set
}

// parseEndpoint reads an element of redis.endpoints. defaultPort is for URLs without a port.
func parseEndpoint(text, defaultPort string) (*endpoint, bool) {
	e := &endpoint{}
	if !strings.Contains(text, "://") {
		host, port, err := net.SplitHostPort(text)
		e.address = text
		return e, err == nil && isHost(host) && isPort(port)
	}
	u, err := url.Parse(text)
	if err != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, false
	}
	e.username = u.User.Username()
	e.password, _ = u.User.Password()
	if u.Scheme+"://" == redisclient.UnixScheme {
		e.address = redisclient.UnixScheme + u.Path
		return e, u.Host == "" && len(u.Path) > 1 && !strings.Contains(u.Path, ",")
	}
	encrypted, known := redisSchemes[u.Scheme]
	e.encrypted = encrypted
	port := u.Port()
	if port == "" {
		port = defaultPort
	}
	e.address = net.JoinHostPort(u.Hostname(), port)
	e.db = strings.TrimPrefix(u.Path, "/")
	return e, known && isHost(u.Hostname()) && isPort(port) && (e.db == "" || dbPattern.MatchString(e.db))
}

var dbPattern = regexp.MustCompile("^(0|[1-9][0-9]{0,6})$")

func isHost(host string) bool {
	return host != "" && !strings.ContainsAny(host, "/@,")
}

func isPort(port string) bool {
	number, err := strconv.ParseUint(port, 10, 16)
	return err == nil && number != 0
}

// endpointParts are scheme, login, host, port with database, and what else there is.
var endpointParts = regexp.MustCompile(`(?s)^([A-Za-z]+://)?(.*@)?(\[[0-9A-Fa-f:.%]*\]|[A-Za-z0-9._-]*)((?::[0-9]{1,5})?(?:/[0-9]{0,7})?)(.*)$`)

// shownEndpoint is what an error shows of an element of redis.endpoints: nothing that may be a part of a password. In a URL that
// cannot be read that may be anything but the host.
func shownEndpoint(text string) string {
	if strings.HasPrefix(text, redisclient.UnixScheme+"/") {
		path, _, _ := strings.Cut(text, "?")
		return path
	}
	part := endpointParts.FindStringSubmatch(text)
	login := ""
	if part[2] != "" {
		login = "…@"
	}
	if part[5] != "" || part[3] == "" { // without a host, the port may be the beginning of a password with a comma
		return part[1] + login + part[3] + "…"
	}
	return part[1] + login + part[3] + part[4]
}
