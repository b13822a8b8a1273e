package stats

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Pattern is a pattern of protected endpoints with a * in its path.
type Pattern struct {
	Path    string
	Methods map[string]bool // "*" = every method
	Matches *regexp.Regexp  // of a decoded path
}

// Counter counts by endpoint what handlers with the same patterns see.
type Counter struct {
	patterns []Pattern

	mu        sync.Mutex         // guards everything below
	endpoints []map[string]int64 // counts since the last gathering, by total and raw name; nil for totals that are not in ByEndpoint
	maxNames  int                // the most raw names in each of these maps; as many endpoints may follow
	users     int                // handlers
	left      time.Time          // when the last handler was given up
}

// counterLife is how long a counter outlives its last handler, whose requests may still run.
const counterLife = 24 * time.Hour

// noEndpoints is Counter.endpoints before anything is counted.
func noEndpoints() []map[string]int64 {
	endpoints := make([]map[string]int64, numTotals)
	for _, total := range ByEndpoint {
		endpoints[total] = map[string]int64{}
	}
	return endpoints
}

// Count adds one to a total of ByEndpoint, and to what its endpoint has of it. Duplicates wait for it, so it is short: Yaegi
// allocates every variable of a function at each call. admit and take do the rest.
func Count(k *Counter, total int, r *http.Request) {
	name := r.Method + " " + r.Host + " " + r.URL.EscapedPath()
	k.mu.Lock()
	counted := k.endpoints[total]
	n := counted[name]
	if n == 0 {
		name = admit(k, counted, name)
		n = counted[name]
	}
	counted[name] = n + 1
	k.mu.Unlock()
}

// admit returns the name under which a request is counted whose raw name has no count yet. That is the raw name, bounded, as
// long as there are few, then the endpoint's, which many raw names share, and Other if there are too many endpoints.
// The caller holds the lock.
func admit(k *Counter, counted map[string]int64, name string) string {
	if len(name) > maxRaw {
		method, host, path := splitName(name)
		name = clip(method, maxMethod) + " " + clip(host, maxHost) + " " + clip(path, maxRaw)
	}
	if len(counted) < k.maxNames {
		return name
	}
	name = k.endpointOf(name)
	_, known := counted[name]
	if !known && len(counted) >= 2*k.maxNames {
		return Other
	}
	return name
}

// Leave says that a handler is given up.
func (k *Counter) Leave() {
	defer recovered("giving up a counter")
	k.mu.Lock()
	defer k.mu.Unlock()
	k.users--
	k.left = time.Now()
}

// outlived reports whether nobody can count with k any more.
func (k *Counter) outlived() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.users == 0 && time.Since(k.left) >= counterLife
}

// take adds what was counted since the last time to counted, by total and endpoint.
func (k *Counter) take(counted []map[string]int64) {
	k.mu.Lock()
	raw := k.endpoints
	k.endpoints = noEndpoints()
	k.mu.Unlock()
	for _, total := range ByEndpoint {
		for name, count := range raw[total] {
			if name != Other {
				name = k.endpointOf(name)
			}
			counted[total][name] += count
		}
	}
}

// endpointOf returns the name of the endpoint that a raw name belongs to. The name of an endpoint belongs to itself.
func (k *Counter) endpointOf(raw string) string {
	method, host, escaped := splitName(raw)
	escaped = trimEscape(escaped)
	decoded, err := url.PathUnescape(escaped)
	if err != nil {
		decoded = escaped
	}
	longest := ""
	for _, p := range k.patterns {
		if len(p.Path) > len(longest) && (p.Methods["*"] || p.Methods[method]) && p.Matches.MatchString(decoded) {
			longest = p.Path
		}
	}
	if longest == "" {
		longest = withoutIDs(readable(escaped))
	}
	return endpointName(method, host, longest)
}

// readable returns an encoded path without its escapes, but for those of what would mean something else. A path with a percent
// sign that begins no escape stays as it is.
func readable(escaped string) string {
	path, err := url.PathUnescape(keepEscapes.Replace(escaped))
	if err != nil {
		return escaped
	}
	return path
}

// keepEscapes keeps encoded in a path what would mean something else.
var keepEscapes = strings.NewReplacer("%25", "%2525", "%2F", "%252F", "%2f", "%252F", "%3F", "%253F", "%3f", "%253F", "%23", "%2523")

// trimEscape returns an encoded path without the part of an escape that was left where it was clipped.
func trimEscape(escaped string) string {
	clipped := strings.TrimSuffix(escaped, ellipsis)
	if len(clipped) == len(escaped) {
		return escaped
	}
	return brokenEscape.ReplaceAllString(clipped, "") + ellipsis
}

// brokenEscape matches, at the end of an encoded path, an escape that is not whole.
var brokenEscape = regexp.MustCompile(`%[0-9A-Fa-f]?$`)

// idSegment matches a segment of a path that is a number, a UUID, a ULID, or 16 or more hex digits.
var idSegment = regexp.MustCompile(`/(?:[0-9]+|[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}|[0-7][0-9A-HJKMNP-TV-Za-hjkmnp-tv-z]{25}|[0-9A-Fa-f]{16,})(/|$)`)

// withoutIDs replaces such segments. Two beside each other have one slash in common, so it goes twice over the path.
func withoutIDs(path string) string {
	return idSegment.ReplaceAllString(idSegment.ReplaceAllString(path, "/{id}$1"), "/{id}$1")
}

// Other characters than visible ASCII must not be in the name of an endpoint, and in its path none that cannot be seen.
var (
	unprintable = regexp.MustCompile(`[^!-~]`)
	invisible   = regexp.MustCompile(`[^\pL\pM\pN\pP\pS]|\x{FFFD}`) // what is no UTF-8 counts as U+FFFD
)

// endpointName returns the name under which requests are counted. Its parts have bounded length and no spaces, and an ellipsis stands where
// something was cut off.
func endpointName(method, host, path string) string {
	return printable(method, maxMethod) + " " + printable(strings.ToLower(host), maxHost) + " " + trimEscape(clip(invisible.ReplaceAllStringFunc(path, url.PathEscape), maxPath))
}

// printable returns s clipped, with question marks for what must not be in a method or a host.
func printable(s string, limit int) string {
	s = clip(s, limit)
	text := strings.TrimSuffix(s, ellipsis)
	return unprintable.ReplaceAllString(text, "?") + s[len(text):]
}

// ellipsis replaces what was cut off.
const ellipsis = "…"

// clip shortens s. It does not shorten again what it has shortened before.
func clip(s string, limit int) string {
	if len(s) <= limit || (len(s) <= limit+len(ellipsis) && strings.HasSuffix(s, ellipsis)) {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + ellipsis
}

// splitName splits a name into method, host and encoded path. Over HTTP/2 a method and a host may come with spaces in them, which
// are the host's then; a path has none.
func splitName(name string) (string, string, string) {
	method, rest, _ := strings.Cut(name, " ")
	space := strings.LastIndexByte(rest, ' ')
	if space < 0 {
		return method, rest, ""
	}
	return method, rest[:space], rest[space+1:]
}
