package idem

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/stats"
	"github.com/example/traefik-idem/store"
)

// Config is the middleware's configuration. Traefik decodes it from YAML, TOML, labels and CRDs; every value may also
// be a string. Durations are Go strings such as "90s" or a bare number of seconds. Lists that are left out take the
// default named here (New sets it: Traefik merges a list into a default that is not empty).
type Config struct {
	Header     string   `json:"header,omitempty"`     // request header with the idempotency key; means Key with that alone
	Key        []string `json:"key,omitempty"`        // sources of the key, the first that has a value counts; default X-Request-ID
	TTL        string   `json:"ttl,omitempty"`        // how long an answer is kept; cut to MaxTTL
	MaxTTL     string   `json:"maxTTL,omitempty"`     // cap on TTL, up to 168h
	ContentTTL string   `json:"contentTTL,omitempty"` // instead of TTL for a key from the source content

	Methods   []string `json:"methods,omitempty"`   // default POST, PUT, PATCH, DELETE
	Endpoints []string `json:"endpoints,omitempty"` // "POST /api/pay/" (and /api/pay), "/api/*/order/", "* /api/critical/"; default all paths
	Required  bool     `json:"required,omitempty"`  // a protected request without a key is refused
	Mode      string   `json:"mode,omitempty"`      // enforce, observe

	KeyFormat     string   `json:"keyFormat,omitempty"`     // token, visible, uuid, /regexp/
	MaxKeyLength  int      `json:"maxKeyLength,omitempty"`  // characters, 1..255
	Scope         []string `json:"scope,omitempty"`         // sources that set callers apart; default Host, Authorization; "none" alone = none
	RequireCaller bool     `json:"requireCaller,omitempty"` // a request with a key, but without a value of Scope other than Host, is refused
	OnInvalidKey  string   `json:"onInvalidKey,omitempty"`  // a key that cannot be used: reject, ignore
	Same          []string `json:"same,omitempty"`          // what makes two requests with a key the same: default query, type, body, conditions; json for body
	Ignore        []string `json:"ignore,omitempty"`        // sources that do not count for that: query, form, json
	OnMismatch    string   `json:"onMismatch,omitempty"`    // same key, other request: reject, replay

	InFlight        string `json:"inFlight,omitempty"`        // duplicate of a running request: wait, reject
	InFlightTimeout string `json:"inFlightTimeout,omitempty"` // how long it waits
	Lease           string `json:"lease,omitempty"`           // how long a claim outlives its owner
	Detach          bool   `json:"detach,omitempty"`          // finish the upstream call after the client has gone
	DetachTimeout   string `json:"detachTimeout,omitempty"`   // upper bound on that

	RetryableStatuses []string `json:"retryableStatuses,omitempty"` // statuses and ranges that free the key; default 408, 421, 425, 429, 503
	OnUnknown         string   `json:"onUnknown,omitempty"`         // sent, but with unknown outcome: hold, release

	ReplayHeader string   `json:"replayHeader,omitempty"` // response header that marks a replay; empty = none
	StatusHeader string   `json:"statusHeader,omitempty"` // response header with the decision; empty = none
	OmitHeaders  []string `json:"omitHeaders,omitempty"`  // response headers that are not replayed; default Set-Cookie

	ProblemBase   string `json:"problemBase,omitempty"`   // page that the types of problems lead to, as <page>#<slug>; empty = they are URNs
	ExpiresHeader string `json:"expiresHeader,omitempty"` // response header that says when the kept answer ends; empty = none
	ExposeHeaders bool   `json:"exposeHeaders,omitempty"` // scripts of other origins may read what the plugin says in headers

	MaxRequestBodyBytes  int64 `json:"maxRequestBodyBytes,omitempty"`  // read for the fingerprint; up to 256 MiB
	MaxResponseBodyBytes int64 `json:"maxResponseBodyBytes,omitempty"` // kept for replays; up to 256 MiB

	OnStoreError    string `json:"onStoreError,omitempty"`    // Redis unreachable: degrade, pass, reject
	LocalCacheBytes int64  `json:"localCacheBytes,omitempty"` // answers kept in this process; 0 = off
	LogLevel        string `json:"logLevel,omitempty"`        // error, warn, info, debug

	Redis RedisConfig `json:"redis,omitempty"`
	Stats StatsConfig `json:"stats,omitempty"`

	Rest map[string]interface{} `mapstructure:",remain" json:",omitempty"` // unknown settings
}

// RedisConfig says where keys are kept. Without endpoints they live in this Traefik's memory.
type RedisConfig struct {
	Endpoints    []string `json:"endpoints,omitempty"` // host:port, redis://user:password@host:port/db, rediss:// for TLS, unix:///path; several of sentinels or a cluster
	Username     string   `json:"username,omitempty"`
	Password     string   `json:"password,omitempty"`
	PasswordFile string   `json:"passwordFile,omitempty"`
	DB           int      `json:"db,omitempty"`
	KeyPrefix    string   `json:"keyPrefix,omitempty"`

	TLS      TLSConfig      `json:"tls,omitempty"`
	Sentinel SentinelConfig `json:"sentinel,omitempty"`
	Cluster  bool           `json:"cluster,omitempty"` // the endpoints are nodes of a Redis Cluster

	DialTimeout  string `json:"dialTimeout,omitempty"`
	ReadTimeout  string `json:"readTimeout,omitempty"`
	WriteTimeout string `json:"writeTimeout,omitempty"`

	PoolSize       int `json:"poolSize,omitempty"`       // upper bound on connections, of which there is one per CPU, at least two; 0 = no further bound
	MinIdleConns   int `json:"minIdleConns,omitempty"`   // connections opened in advance
	MaxActiveConns int `json:"maxActiveConns,omitempty"` // a further upper bound on connections; 0 = none

	WaitReplicas int `json:"waitReplicas,omitempty"` // replicas that must have a claim before the request runs; 0 = none

	Rest map[string]interface{} `mapstructure:",remain" json:",omitempty"` // unknown settings
}

// TLSConfig says how connections to Redis are encrypted. They are if any of it is set, or an endpoint is rediss://.
// CA, Cert and Key are paths of files or PEM text.
type TLSConfig struct {
	Enabled            bool   `json:"enabled,omitempty"`
	CA                 string `json:"ca,omitempty"`                 // signs the server's certificate; empty = a CA of the system
	Cert               string `json:"cert,omitempty"`               // of the client
	Key                string `json:"key,omitempty"`                // of the client
	ServerName         string `json:"serverName,omitempty"`         // in the server's certificate; empty = host of the endpoint
	InsecureSkipVerify bool   `json:"insecureSkipVerify,omitempty"` // take any certificate

	Rest map[string]interface{} `mapstructure:",remain" json:",omitempty"` // unknown settings
}

// SentinelConfig says under which name the sentinels at the endpoints know the master, and how to log in to them.
type SentinelConfig struct {
	MasterName   string `json:"masterName,omitempty"` // empty = the endpoint is no sentinel
	Username     string `json:"username,omitempty"`
	Password     string `json:"password,omitempty"`
	PasswordFile string `json:"passwordFile,omitempty"`

	Rest map[string]interface{} `mapstructure:",remain" json:",omitempty"` // unknown settings
}

// StatsConfig says where the statistics are shown, who may see them, and what is kept.
type StatsConfig struct {
	Path         string   `json:"path,omitempty"`         // reserved prefix; empty = not shown
	Users        []string `json:"users,omitempty"`        // name:password, name:{SHA256}<hex>, name:{SHA}<base64>
	UsersFile    string   `json:"usersFile,omitempty"`    // the same, one a line
	Admins       []string `json:"admins,omitempty"`       // in the same form: who may settle and find keys, too
	AdminsFile   string   `json:"adminsFile,omitempty"`   // the same, one a line
	Insecure     bool     `json:"insecure,omitempty"`     // no login is needed to look
	TTL          string   `json:"ttl,omitempty"`          // life of the statistics in Redis
	MaxEndpoints int      `json:"maxEndpoints,omitempty"` // counted apart; the rest together

	Rest map[string]interface{} `mapstructure:",remain" json:",omitempty"` // unknown settings
}

// CreateConfig returns the defaults of everything but lists.
func CreateConfig() *Config {
	return &Config{
		TTL:                  "60s",
		MaxTTL:               "60s",
		ContentTTL:           defaultContentTTL.String(),
		Mode:                 "enforce",
		KeyFormat:            "token",
		MaxKeyLength:         128,
		OnInvalidKey:         "reject",
		OnMismatch:           "reject",
		InFlight:             "wait",
		InFlightTimeout:      "10s",
		Lease:                "15s",
		Detach:               true,
		DetachTimeout:        "60s",
		OnUnknown:            "hold",
		ReplayHeader:         "Idempotent-Replayed",
		MaxRequestBodyBytes:  1 << 20,
		MaxResponseBodyBytes: 1 << 20,
		OnStoreError:         "degrade",
		LocalCacheBytes:      defaultLocalBytes,
		LogLevel:             "info",
		Redis: RedisConfig{
			KeyPrefix:    "idem",
			DialTimeout:  "1s",
			ReadTimeout:  "1s",
			WriteTimeout: "1s",
		},
		Stats: StatsConfig{
			Path:         "/_idem",
			TTL:          "168h",
			MaxEndpoints: 1000,
		},
	}
}

// ErrConfig is wrapped by every error about a setting. Its text names the key, the value, and what is allowed.
var ErrConfig = errors.New("invalid configuration")

const (
	defaultLocalBytes = 32 << 20
	maxTTL            = 168 * time.Hour
	longestLease      = time.Hour
	leastOrdinaryTTL  = 10 * time.Second // with less, no answer is an ordinary one
	maxLocalBytes     = 64 << 30
)

// httpMethods are those that a method list or a pattern may name: RFC 9110 without CONNECT and TRACE, PATCH (RFC 5789),
// QUERY, and WebDAV (RFC 4918). An unknown name is refused, because a typing error would leave an endpoint without protection.
var httpMethods = strings.Fields("GET HEAD POST PUT PATCH DELETE OPTIONS QUERY COPY LOCK MKCOL MOVE PROPFIND PROPPATCH REPORT SEARCH UNLOCK")

var (
	tokenPattern  = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$") // RFC 9110, section 5.6.2
	pathPattern   = regexp.MustCompile(`^(/[A-Za-z0-9_~-][A-Za-z0-9_.~-]*)+$`)
	prefixPattern = regexp.MustCompile(`^[A-Za-z0-9_.:{}/-]{1,100}$`)
	digitsPattern = regexp.MustCompile(`^[0-9]+(\.[0-9]+)?$`)
)

// settings is a checked Config: nothing is left to parse when a request comes.
type settings struct {
	header           string    // canonical: the first source of keys, if that is a header; else empty
	keySources       []*source // all of them
	keyFormat        *regexp.Regexp
	keyFormatText    string         // as configured
	otherFormat      *regexp.Regexp // of keys that are not one header
	ttl              time.Duration
	contentTTL       time.Duration             // 0 = no key comes from content
	protected        map[string]*regexp.Regexp // paths by method
	patterns         []stats.Pattern           // of these, those with a *
	required         bool
	observe          bool
	maxKeyLength     int
	ordinaryLengths  map[int]bool // lengths of keys for which serve takes the short way; empty if it never does
	identityFormat   string       // format of an identity; see serve
	ignoreInvalid    bool         // a key that is not valid counts as none
	scopeHost        bool         // Host is in scope
	scope            []string     // headers in it, canonical, without Host
	callers          []*source    // what else is in scope
	requireCaller    bool
	scopeFirst       string      // first element of scope; empty if there is none
	comparison       *comparison // nil: query string, media type, body and conditions
	same, ignore     []string
	rejectMismatch   bool
	wait             bool
	inFlightTimeout  time.Duration
	lease            time.Duration
	detach           bool
	detachTimeout    time.Duration
	retryable        map[int]bool
	classified       map[int]bool // statuses that may be another outcome than answered
	ordinaryStatuses map[int]bool // statuses of answers that may be ordinary: see recorder.WriteHeader
	holdUnknown      bool
	replayHeader     string
	statusHeader     string
	expiresHeader    string
	exposed          []string // response headers of the plugin's own that scripts may read; nil without exposeHeaders
	problemBase      string
	problemType      string          // all of a problem's type but the slug
	omit             map[string]bool // canonical; hop-by-hop headers too
	maxRequestBody   int64
	smallRequest     int64 // longest body that is read whole and not counted
	maxResponseBody  int
	longestRecord    int // longest record of an answer that is kept
	onStoreError     string
	localCacheBytes  int64
	logLevel         string
	redis            redisclient.Options // Address is empty for keys in memory
	keyPrefix        string

	methods, endpoints, omitHeaders []string // as configured, for the statistics page and the log

	statsPath       string // without a slash at its end
	statsEnd        string // all paths below statsPath come before it; empty = the statistics are not shown
	statsUsers      logins
	statsUsersFile  string
	statsAdmins     logins
	statsAdminsFile string
	statsInsecure   bool
	statsLimits     stats.Limits
}

// check is a Config that is being checked. It keeps the first error.
type check struct {
	err error
}

// longestTTL bounds a ttl before maxTTL cuts it.
const longestTTL = 100 * 365 * 24 * time.Hour

// settings returns the checked settings, warnings in one text or "", and the first error, which wraps ErrConfig.
func (c *Config) settings() (*settings, string, error) {
	k := &check{}
	k.refuseUnknown(c)
	s := &settings{
		ttl:             k.duration("ttl", c.TTL, time.Millisecond, longestTTL),
		required:        c.Required,
		observe:         k.oneOf("mode", c.Mode, "enforce", "observe") == "observe",
		maxKeyLength:    int(k.number("maxKeyLength", int64(c.MaxKeyLength), 1, 255)),
		ignoreInvalid:   k.oneOf("onInvalidKey", c.OnInvalidKey, "reject", "ignore") == "ignore",
		rejectMismatch:  k.oneOf("onMismatch", c.OnMismatch, "reject", "replay") == "reject",
		wait:            k.oneOf("inFlight", c.InFlight, "wait", "reject") == "wait",
		inFlightTimeout: k.duration("inFlightTimeout", c.InFlightTimeout, time.Millisecond, time.Hour),
		lease:           k.duration("lease", c.Lease, 100*time.Millisecond, longestLease),
		detach:          c.Detach,
		detachTimeout:   k.duration("detachTimeout", c.DetachTimeout, time.Millisecond, 24*time.Hour),
		holdUnknown:     k.oneOf("onUnknown", c.OnUnknown, "hold", "release") == "hold",
		replayHeader:    k.tokenOrNone("replayHeader", c.ReplayHeader),
		statusHeader:    k.tokenOrNone("statusHeader", c.StatusHeader),
		expiresHeader:   k.tokenOrNone("expiresHeader", c.ExpiresHeader),
		problemBase:     c.ProblemBase,
		problemType:     k.problemType(c.ProblemBase),
		maxRequestBody:  k.number("maxRequestBodyBytes", c.MaxRequestBodyBytes, 0, mostBody),
		maxResponseBody: int(k.number("maxResponseBodyBytes", c.MaxResponseBodyBytes, 0, mostBody)),
		onStoreError:    k.oneOf("onStoreError", c.OnStoreError, "degrade", "pass", "reject"),
		localCacheBytes: k.number("localCacheBytes", c.LocalCacheBytes, 0, maxLocalBytes),
		logLevel:        k.oneOf("logLevel", c.LogLevel, "error", "warn", "info", "debug"),
	}
	k.unused("replayHeader", c.ReplayHeader)
	k.unused("statusHeader", c.StatusHeader)
	k.unused("expiresHeader", c.ExpiresHeader)
	if s.statusHeader != "" && s.statusHeader == s.replayHeader {
		k.fail("statusHeader", c.StatusHeader, "another header than replayHeader")
	}
	if s.expiresHeader != "" && (s.expiresHeader == s.replayHeader || s.expiresHeader == s.statusHeader) {
		k.fail("expiresHeader", c.ExpiresHeader, "another header than replayHeader and statusHeader")
	}
	if c.ExposeHeaders {
		s.exposed = list([]string{s.replayHeader, s.statusHeader, s.expiresHeader})
	}
	k.someOf("methods", c.Methods)
	k.someOf("endpoints", c.Endpoints)
	k.someOf("ignore", c.Ignore)
	k.someOf("omitHeaders", c.OmitHeaders)
	k.someOf("retryableStatuses", c.RetryableStatuses)
	k.someOf("redis.endpoints", c.Redis.Endpoints)
	k.someOf("stats.users", c.Stats.Users)
	k.someOf("stats.admins", c.Stats.Admins)
	var warnings []string
	longest := k.duration("maxTTL", c.MaxTTL, time.Millisecond, maxTTL)
	if s.ttl > longest {
		warning := fmt.Sprintf("ttl %s is longer than maxTTL and cut to %s; raise maxTTL to keep answers longer", s.ttl, longest)
		warnings = append(warnings, warning)
		s.ttl = longest
	}
	s.smallRequest = smallBody
	if s.maxRequestBody < smallBody {
		s.smallRequest = s.maxRequestBody
	}
	s.longestRecord = len(store.DoneHead) + store.FingerprintSize + len(store.StatusLines[http.StatusOK]) + len("\r\n") + s.maxResponseBody
	c.checkKey(k, s)
	c.checkScope(k, s)
	c.checkSame(k, s)
	// serve sees only the canonical spelling of a header in scope. Of Authorization no other counts: see linesOf.
	ordinary := !s.observe && s.detach && len(s.scope) < 2 && (s.scopeFirst == "" || s.scopeFirst == "Authorization") && len(s.callers) == 0 && !s.requireCaller && s.comparison == nil && (s.keyFormat == tokenKey || s.keyFormat == visibleKey)
	s.ordinaryLengths = map[int]bool{}
	for length := 1; ordinary && length <= s.maxKeyLength; length++ {
		s.ordinaryLengths[length] = true
	}
	s.identityFormat = fmt.Sprintf(identityTemplate, s.observe, "%q")
	if !s.scopeHost {
		s.identityFormat = fmt.Sprintf(identityTemplate, s.observe, "%.0s")
	}
	s.omit = map[string]bool{}
	s.omitHeaders = k.tokens("omitHeaders", list(c.OmitHeaders, "Set-Cookie"))
	for _, name := range append(hopByHop, s.omitHeaders...) {
		s.omit[name] = true
	}
	s.retryable = k.statuses("retryableStatuses", list(c.RetryableStatuses, "408", "421", "425", "429", "503"))
	s.classified = map[int]bool{statusClientClosed: true, 500: true, 502: true, 503: true, 504: true}
	for status := range s.retryable {
		s.classified[status] = true
	}
	s.ordinaryStatuses = map[int]bool{}
	for status := 200; status < 600; status++ {
		// The ttl of an ordinary answer begins at the watchdog's next tick, which matters only for a short one.
		s.ordinaryStatuses[status] = !s.classified[status] && !bodiless(status) && s.maxResponseBody >= wholeBytes && s.ttl >= leastOrdinaryTTL
	}
	s.methods = k.methods("methods", list(c.Methods, "POST", "PUT", "PATCH", "DELETE"))
	s.endpoints = list(c.Endpoints)
	s.protected, s.patterns = k.endpoints(s.methods, s.endpoints)
	c.Redis.check(k, s)
	idle := c.idleWithoutRedis(s)
	if s.redis.Address == "" && idle != "" {
		warning := idle + " does nothing without redis.endpoints: keys are in the memory of this Traefik alone"
		warnings = append(warnings, warning)
	}
	// A renewal is due after a third of lease, and may take as long as the longest time-out.
	slowest := longer(s.redis.DialTimeout, longer(s.redis.ReadTimeout, s.redis.WriteTimeout))
	if s.redis.Address != "" && s.lease < slowest*3/2 {
		k.fail("lease", c.Lease, "at least one and a half times redis.dialTimeout, redis.readTimeout and redis.writeTimeout, the longest of which is "+slowest.String())
	} else if s.redis.Address != "" && s.lease < slowest*3 { // a claim, and then a renewal, may wait for the reply before its own
		warning := fmt.Sprintf("lease %s is less than three times %s, the longest time-out of Redis; if Redis answers that late, a key may run twice", s.lease, slowest)
		warnings = append(warnings, warning)
	}
	c.Stats.check(k, s)
	if k.err != nil {
		return nil, "", k.err
	}
	return s, strings.Join(warnings, "; "), nil
}

// defaultContentTTL is the default of contentTTL. Nobody can tell whether it is set too, so it is cut to ttl.
const defaultContentTTL = 5 * time.Second

// checkKey sets where keys come from, and what they may look like.
func (c *Config) checkKey(k *check, s *settings) {
	texts := list(c.Key, "X-Request-ID")
	switch {
	case c.Header != "" && len(c.Key) > 0:
		k.fail("header", c.Header, "either header or key, not both: header: X-Request-ID means key: [X-Request-ID]")
	case c.Header != "":
		texts = []string{kindHeader + ":" + k.token("header", c.Header)}
		k.unused("header", c.Header)
	case len(texts) == 0:
		k.fail("key", "", "at least one source")
	}
	content := false
	for _, text := range texts {
		from := k.source("key", text)
		if content {
			k.fail("key", text, "nothing after content, which every request has")
		}
		content = from.content
		for _, p := range from.places {
			if p.kind == kindHeader || p.kind == kindHost {
				k.unused("key", p.name)
			}
		}
		s.keySources = append(s.keySources, from)
	}
	if len(s.keySources) > 0 {
		first := s.keySources[0]
		first.unnamed = len(first.places) == 1 && first.places[0].kind == kindHeader
		if first.unnamed {
			s.header = first.text
		}
	}
	contentTTL := k.duration("contentTTL", c.ContentTTL, time.Millisecond, maxTTL)
	if content {
		s.contentTTL = contentTTL
		if contentTTL > s.ttl {
			s.contentTTL = s.ttl
			if contentTTL != defaultContentTTL {
				k.fail("contentTTL", c.ContentTTL, "at most ttl, "+s.ttl.String())
			}
		}
	}
	s.keyFormatText = c.KeyFormat
	s.keyFormat = k.keyFormat(c.KeyFormat)
	s.otherFormat = s.keyFormat
	if s.keyFormat == tokenKey {
		s.otherFormat = visibleKey
	}
}

// keyFormat returns the regular expression of a format of keys.
func (k *check) keyFormat(format string) *regexp.Regexp {
	switch format {
	case "token":
		return tokenKey
	case "visible":
		return visibleKey
	case "uuid":
		return uuidKey
	}
	inside := strings.TrimSuffix(strings.TrimPrefix(format, "/"), "/")
	_, err := regexp.Compile(inside)
	whole, wholeErr := regexp.Compile(`^(?:` + inside + `)$`)
	if err != nil || wholeErr != nil || len(format) != len(inside)+2 || inside == "" {
		k.fail("keyFormat", format, "token, visible, uuid, or a regular expression between slashes, such as /[A-Z]{3}-[0-9]+/, which the whole key has to match")
		return visibleKey
	}
	return whole
}

// source returns the source that text names. Nobody can tell whether IP is meant to be ip or a header.
func (k *check) source(setting, text string) *source {
	for _, name := range strings.Split(text, " + ") {
		name = strings.TrimSpace(name)
		kind := strings.ToLower(name)
		if name != kind && (kind == kindAddress || kind == kindContent) {
			k.fail(setting, text, kind+", or header:"+name+" for the header of that name")
		}
	}
	s := parseSource(text)
	if s == nil {
		k.fail(setting, text, sourceForm)
		return &source{}
	}
	return s
}

// noScope as the only element of scope says that nothing sets callers apart.
const (
	noScope   = "none"
	scopeForm = "sources that set callers apart, or none by itself: then every caller with the key gets its answer"
)

// checkScope sets what sets callers apart.
func (c *Config) checkScope(k *check, s *settings) {
	texts := list(c.Scope, "Host", "Authorization")
	if len(texts) == 1 && strings.EqualFold(texts[0], noScope) {
		texts = nil
	} else if len(texts) == 0 {
		k.fail("scope", "", scopeForm)
	}
	for _, text := range texts {
		from := k.source("scope", text)
		switch {
		case strings.EqualFold(text, noScope):
			k.fail("scope", strings.Join(texts, ","), scopeForm)
		case from.content:
			k.fail("scope", text, "content in key alone")
		case from.text == kindHost:
			s.scopeHost = true
		case len(from.places) == 1 && from.places[0].kind == kindHeader:
			s.scope = append(s.scope, from.text)
		default:
			s.callers = append(s.callers, from)
		}
	}
	if len(s.scope) > 0 {
		s.scopeFirst = s.scope[0]
	}
	s.requireCaller = c.RequireCaller
	if c.RequireCaller && len(s.scope)+len(s.callers) == 0 {
		k.fail("requireCaller", "true", "a scope with another source than Host in it")
	}
}

// checkSame sets what makes two requests with one key the same.
func (c *Config) checkSame(k *check, s *settings) {
	s.same = list(c.Same, "query", "type", "body", "conditions")
	counts := map[string]bool{}
	for _, what := range s.same {
		counts[k.oneOf("same", what, "query", "type", "body", "json", "conditions")] = true
	}
	if len(counts) == 0 || (counts["body"] && counts["json"]) {
		k.fail("same", strings.Join(s.same, ","), "some of query, type, conditions, and of body and json one at the most")
	}
	compared := &comparison{query: counts["query"], mediaType: counts["type"], conditions: counts["conditions"], body: counts["body"] || counts["json"], asJSON: counts["json"]}
	for _, text := range list(c.Ignore) {
		from := parseSource(text)
		if from == nil || len(from.places) > 1 || !ignorable[from.places[0].kind] {
			k.fail("ignore", text, "query:_, form:csrf or json:/sentAt")
			continue
		}
		s.ignore = append(s.ignore, from.text)
		compared.ignored = append(compared.ignored, from.places[0])
		compared.asJSON = compared.asJSON || from.places[0].kind == kindJSON
	}
	if len(s.ignore) > 0 || counts["json"] || len(counts) < 4 {
		s.comparison = compared
	}
}

// ignorable are the kinds of sources that ignore may have.
var ignorable = map[string]bool{kindQuery: true, kindForm: true, kindJSON: true}

func (c *RedisConfig) check(k *check, s *settings) {
	s.redis = redisclient.Options{
		Username:       c.Username,
		Password:       c.Password,
		PasswordFile:   c.PasswordFile,
		DB:             int(k.number("redis.db", int64(c.DB), 0, 1<<20)),
		DialTimeout:    k.duration("redis.dialTimeout", c.DialTimeout, time.Millisecond, time.Minute),
		ReadTimeout:    k.duration("redis.readTimeout", c.ReadTimeout, time.Millisecond, time.Minute),
		WriteTimeout:   k.duration("redis.writeTimeout", c.WriteTimeout, time.Millisecond, time.Minute),
		PoolSize:       int(k.number("redis.poolSize", int64(c.PoolSize), 0, 10000)),
		MinIdleConns:   int(k.number("redis.minIdleConns", int64(c.MinIdleConns), 0, 10000)),
		MaxActiveConns: int(k.number("redis.maxActiveConns", int64(c.MaxActiveConns), 0, 10000)),
		WaitReplicas:   int(k.number("redis.waitReplicas", int64(c.WaitReplicas), 0, 100)),
	}
	s.keyPrefix = c.KeyPrefix
	if !prefixPattern.MatchString(c.KeyPrefix) {
		k.fail("redis.keyPrefix", c.KeyPrefix, "1 to 100 of the characters A-Z a-z 0-9 _ . : { } / -")
	}
	k.credentials("redis.sentinel", c.Sentinel.Username, c.Sentinel.Password, c.Sentinel.PasswordFile)
	s.redis.Sentinel = redisclient.Sentinel{
		MasterName:   c.Sentinel.MasterName,
		Username:     c.Sentinel.Username,
		Password:     c.Sentinel.Password,
		PasswordFile: c.Sentinel.PasswordFile,
	}
	s.redis.Cluster = c.Cluster
	if c.Cluster && c.Sentinel.MasterName != "" {
		k.fail("redis.sentinel.masterName", c.Sentinel.MasterName, "either redis.cluster or redis.sentinel.masterName, not both")
	}
	s.redis.TLS = c.TLS.check(k)
	c.checkEndpoints(k, &s.redis)
	k.credentials("redis", s.redis.Username, s.redis.Password, c.PasswordFile)
	if c.Cluster && s.redis.DB != 0 {
		k.fail("redis.db", strconv.Itoa(s.redis.DB), "0, the only database of a cluster")
	}
}

// idleWithoutRedis names a setting that says how to use a Redis; empty if there is none. Its address may be missing by mistake, for
// example because it is a variable that is not set.
func (c *Config) idleWithoutRedis(s *settings) string {
	r := c.Redis
	switch {
	case s.onStoreError != "degrade":
		return "onStoreError " + s.onStoreError
	case r.Username != "":
		return "redis.username"
	case r.Password != "":
		return "redis.password"
	case r.PasswordFile != "":
		return "redis.passwordFile"
	case r.DB != 0:
		return "redis.db"
	case s.redis.TLS.Enabled:
		return "redis.tls"
	case r.Cluster:
		return "redis.cluster"
	case r.Sentinel.MasterName+r.Sentinel.Username+r.Sentinel.Password+r.Sentinel.PasswordFile != "":
		return "redis.sentinel"
	case r.WaitReplicas != 0:
		return "redis.waitReplicas"
	}
	return ""
}

// filePattern matches what can hardly be but the path of a file.
var filePattern = regexp.MustCompile(`^(\.{1,2}|/[^/\s]+)/\S*$`)

// shownFile is what an error shows of a setting that is the path of a file: in its place may stand what belongs in the file, a
// password or a login.
func shownFile(path string) string {
	if filePattern.MatchString(path) {
		return path
	}
	return "…"
}

// credentials checks those of a section of the settings.
func (k *check) credentials(section, username, password, passwordFile string) {
	if password != "" && passwordFile != "" {
		k.fail(section+".passwordFile", shownFile(passwordFile), "either "+section+".password or "+section+".passwordFile, not both")
	}
	if username != "" && password == "" && passwordFile == "" {
		k.fail(section+".username", "…", "a user together with "+section+".password or "+section+".passwordFile")
	}
	if passwordFile != "" {
		_, err := redisclient.ReadFile(passwordFile)
		if err != nil {
			k.fail(section+".passwordFile", shownFile(passwordFile), "the path of a file that can be read ("+err.Error()+")")
		}
	}
}

func (c *TLSConfig) check(k *check) redisclient.TLS {
	t := redisclient.TLS{CA: c.CA, Cert: c.Cert, Key: c.Key, ServerName: c.ServerName, InsecureSkipVerify: c.InsecureSkipVerify}
	t.Enabled = c.Enabled || c.CA != "" || c.Cert != "" || c.Key != "" || c.ServerName != "" || c.InsecureSkipVerify
	_, err := t.Roots()
	if err != nil {
		k.fail("redis.tls.ca", redisclient.ShownPEM(c.CA), "the path of a file with PEM certificates, or the PEM text ("+err.Error()+")")
	}
	if (c.Cert == "") != (c.Key == "") {
		k.fail("redis.tls.cert", redisclient.ShownPEM(c.Cert), "redis.tls.cert and redis.tls.key, or neither")
	}
	_, err = t.Certificates()
	if err != nil {
		k.fail("redis.tls.cert", redisclient.ShownPEM(c.Cert), "the paths of files with a PEM certificate and, in redis.tls.key, its key, or the PEM text ("+err.Error()+")")
	}
	return t
}

func (c *StatsConfig) check(k *check, s *settings) {
	s.statsPath = strings.TrimSuffix(c.Path, "/")
	s.statsEnd = s.statsPath + "0" // the next character after the slash
	if c.Path == "" {
		s.statsEnd = ""
	} else if !pathPattern.MatchString(s.statsPath) {
		k.fail("stats.path", c.Path, "a path such as /_idem of the characters A-Z a-z 0-9 _ - . ~, or nothing")
	}
	s.statsInsecure = c.Insecure
	s.statsLimits = stats.Limits{
		TTL:          k.duration("stats.ttl", c.TTL, time.Minute, 366*24*time.Hour),
		MaxEndpoints: int(k.number("stats.maxEndpoints", int64(c.MaxEndpoints), 1, 10000)),
	}
	s.statsUsersFile, s.statsAdminsFile = c.UsersFile, c.AdminsFile
	s.statsUsers = k.logins("stats.users", c.Users, c.UsersFile)
	s.statsAdmins = k.logins("stats.admins", c.Admins, c.AdminsFile)
	if c.Insecure && (len(s.statsUsers) > 0 || c.UsersFile != "") {
		k.fail("stats.insecure", "true", "either stats.insecure, or stats.users and stats.usersFile, not both")
	}
}

// logins checks a list of logins, and the file that goes with it, which is read again whenever somebody logs in.
func (k *check) logins(key string, lines []string, file string) logins {
	var all logins
	for _, line := range list(lines) {
		l, err := parseLogin(line)
		if err != nil {
			name, _, hasName := strings.Cut(line, ":")
			if !hasName {
				name = ""
			}
			k.fail(key, name+":…", loginForm) // what is left out may be a password
			continue
		}
		all = append(all, l)
	}
	if file != "" {
		fromFile, err := readLogins(file)
		if err == nil && len(fromFile) == 0 {
			err = errLogin
		}
		if err != nil {
			k.fail(key+"File", shownFile(file), "the path of a file that can be read ("+err.Error()+")")
		}
	}
	return all
}

// fail keeps the first error.
func (k *check) fail(key, value, allowed string) {
	if k.err == nil {
		k.err = fmt.Errorf("%w: %s: %q is not allowed; allowed: %s", ErrConfig, key, value, allowed)
	}
}

func (k *check) oneOf(key, value string, allowed ...string) string {
	for _, a := range allowed {
		if value == a {
			return value
		}
	}
	k.fail(key, value, strings.Join(allowed, ", "))
	return value
}

func (k *check) number(key string, value, least, most int64) int64 {
	if value < least || value > most {
		k.fail(key, strconv.FormatInt(value, 10), fmt.Sprintf("a whole number from %d to %d", least, most))
	}
	return value
}

func (k *check) duration(key, value string, least, most time.Duration) time.Duration {
	text := strings.TrimSpace(value)
	if digitsPattern.MatchString(text) {
		text += "s"
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < least || d > most {
		k.fail(key, value, fmt.Sprintf("a duration such as 90s, or a number of seconds, from %s to %s", least, most))
	}
	return d
}

// someOf refuses a list of blanks, as it comes from a variable that is not set in YAML or TOML. An empty list is allowed, and a label
// with such a variable is one too.
func (k *check) someOf(key string, values []string) {
	if len(values) > 0 && len(list(values)) == 0 {
		k.fail(key, "", "a list with more in it than blanks")
	}
}

// usedHeaders are headers with another meaning in HTTP, and usedPrefixes the beginnings of such: for the framing of messages,
// the description of bodies, the connection, caches, browsers, and secrets.
var (
	usedHeaders = map[string]bool{
		"Age": true, "Allow": true, "Authorization": true, "Cache-Control": true, "Cookie": true, "Cookie2": true, "Date": true, "Etag": true, "Expect": true,
		"Expires": true, "Forwarded": true, "Host": true, "Http2-Settings": true, "Last-Modified": true, "Location": true, "Origin": true, "Pragma": true,
		"Range": true, "Referer": true, "Retry-After": true, "Set-Cookie": true, "Set-Cookie2": true, "Strict-Transport-Security": true, "User-Agent": true,
		"Vary": true, "Via": true, "Www-Authenticate": true, "X-Real-Ip": true,
		"Alt-Svc": true, "Clear-Site-Data": true, "Refresh": true, http.CanonicalHeaderKey(runHeader): true,
	}
	usedPrefixes = []string{"Accept", "Access-Control-", "Content-", "If-", "Proxy-", "Sec-", "X-Forwarded-"}
)

// unused refuses a header that is used for something else.
func (k *check) unused(key, value string) {
	name := http.CanonicalHeaderKey(value)
	used := usedHeaders[name]
	for _, prefix := range usedPrefixes {
		used = used || strings.HasPrefix(name, prefix)
	}
	for _, other := range hopByHop {
		used = used || name == other
	}
	if used {
		k.fail(key, value, "a header name such as X-Request-ID, but not Host, Content-Length, Set-Cookie or another that HTTP needs for itself")
	}
}

func longer(a, b time.Duration) time.Duration {
	if a > b {
		return a
	}
	return b
}

func (k *check) token(key, value string) string {
	if !tokenPattern.MatchString(value) {
		k.fail(key, value, "a header name such as X-Request-ID")
	}
	return value
}

func (k *check) tokenOrNone(key, value string) string {
	if value == "" {
		return ""
	}
	return http.CanonicalHeaderKey(k.token(key, value))
}

func (k *check) tokens(key string, values []string) []string {
	var names []string
	for _, value := range values {
		names = append(names, http.CanonicalHeaderKey(k.token(key, value)))
	}
	return names
}

// problemType returns what a problem's type has before the slug: base and a #, or a URN if there is no base.
func (k *check) problemType(base string) string {
	if base == "" {
		return "urn:traefik-idem:problem:"
	}
	u, err := url.Parse(base)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" || u.User != nil || strings.ContainsAny(base, "# ") {
		shown := base[strings.LastIndex(base, "@")+1:] // what stands before it may be a password
		k.fail("problemBase", shown, "the address of a page, such as https://example.com/docs/errors, without a #")
	}
	return base + "#"
}

// statuses reads "429" and "500-599".
func (k *check) statuses(key string, values []string) map[int]bool {
	statuses := map[int]bool{}
	for _, value := range values {
		first, last, isRange := strings.Cut(value, "-")
		if !isRange {
			last = first
		}
		from, err1 := strconv.Atoi(strings.TrimSpace(first))
		to, err2 := strconv.Atoi(strings.TrimSpace(last))
		if err1 != nil || err2 != nil || from < 200 || to > 599 || from > to {
			k.fail(key, value, "statuses from 200 to 599, such as 503, and ranges such as 500-599")
			continue
		}
		for status := from; status <= to; status++ {
			statuses[status] = true
		}
	}
	return statuses
}

func (k *check) methods(key string, values []string) []string {
	if len(values) == 0 {
		k.fail(key, "", "at least one of "+strings.Join(httpMethods, ", "))
	}
	var methods []string
	for _, value := range values {
		methods = append(methods, k.oneOf(key, strings.ToUpper(value), httpMethods...))
	}
	return methods
}

// endpoints turns patterns into one regular expression of path prefixes for each method, so that a request asks once,
// however many patterns there are. The method "*" is for all methods without a separate expression. It also returns the
// patterns with a * in their path, each with its own expression.
func (k *check) endpoints(methods, patterns []string) (map[string]*regexp.Regexp, []stats.Pattern) {
	paths := map[string][]string{}
	var starred []stats.Pattern
	for _, pattern := range patterns {
		these := methods
		fields := strings.Fields(pattern)
		path := fields[len(fields)-1]
		switch {
		case len(fields) == 2 && fields[0] == "*":
			these = append([]string{"*"}, httpMethods...)
		case len(fields) == 2:
			these = k.methods("endpoints", fields[:1])
		}
		if strings.Contains(path, "%") {
			k.fail("endpoints", pattern, "a decoded path prefix, without %; * matches a space and whatever else a pattern cannot contain")
		}
		if len(fields) > 2 || !strings.HasPrefix(path, "/") || strings.ContainsAny(path, "?#") || !utf8.ValidString(path) {
			k.fail("endpoints", pattern, "a path prefix such as /api/orders/, which may follow a method or *, as in POST /api/orders/")
			continue // an expression must be valid UTF-8
		}
		expression := strings.ReplaceAll(regexp.QuoteMeta(path), `\*`, `.*`)
		if strings.HasSuffix(path, "/") { // the path without the slash is protected too
			expression = expression[:len(expression)-1] + `(?:/|$)`
		}
		known := map[string]bool{}
		for _, method := range these {
			paths[method] = append(paths[method], expression)
			known[method] = true
		}
		if strings.Contains(path, "*") {
			starred = append(starred, stats.Pattern{Path: path, Methods: known, Matches: regexp.MustCompile(`^(?s:` + expression + `)`)})
		}
	}
	protected := map[string]*regexp.Regexp{}
	if len(patterns) == 0 {
		for _, method := range methods {
			protected[method] = everyPath
		}
	}
	for method, expressions := range paths {
		protected[method] = regexp.MustCompile(`^(?s:` + strings.Join(expressions, "|") + `)`)
	}
	return protected, starred
}

// list trims the elements of a list, because a label's list is only split at its commas, and leaves out empty ones. It returns
// the default for a list that is not set; a list that is set and empty stays empty.
func list(values []string, byDefault ...string) []string {
	if values == nil {
		return byDefault
	}
	trimmed := []string{}
	for _, value := range values {
		value = strings.TrimSpace(value)
		if value != "" {
			trimmed = append(trimmed, value)
		}
	}
	return trimmed
}

// hopByHop headers belong to one connection and are not replayed (RFC 9110, section 7.6.1).
var hopByHop = []string{"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}
