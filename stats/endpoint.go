package stats

import (
	"log"
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
	endpoints []map[string]int64 // counts since the last gathering, by total and raw name; nil for totals that are not in Apart
	most      int                // raw names in each of these maps; then as many endpoints
	users     int                // handlers
	left      time.Time          // when the last handler was given up
}

// counterLife is how long a counter outlives its last handler, whose requests may still run.
const counterLife = 24 * time.Hour

// noEndpoints is Counter.endpoints before anything is counted.
func noEndpoints() []map[string]int64 {
	endpoints := make([]map[string]int64, counters)
	for _, total := range Apart {
		endpoints[total] = map[string]int64{}
	}
	return endpoints
}

// Count adds one to a total of Apart, and to what its endpoint has of it. Duplicates wait for it, so it is short: Yaegi
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
func admit(k *Counter, counted map[string]int64, name string) string {
	if len(name) > longestRaw {
		method, host, path := parts(name)
		name = clip(method, longestMethod) + " " + clip(host, longestHost) + " " + clip(path, longestRaw)
	}
	if len(counted) < k.most {
		return name
	}
	name = k.endpoint(name)
	_, known := counted[name]
	if !known && len(counted) >= 2*k.most {
		return Other
	}
	return name
}

// Leave says that a handler is given up.
func (k *Counter) Leave() {
	defer func() {
		if p := recover(); p != nil {
			log.Printf("level=error msg=\"giving up a counter failed\" cause=%q", p)
		}
	}()
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
	for _, total := range Apart {
		for name, count := range raw[total] {
			if name != Other {
				name = k.endpoint(name)
			}
			counted[total][name] += count
		}
	}
}

// endpoint returns the name of the endpoint that a raw name belongs to. Of an endpoint's name it is this name.
func (k *Counter) endpoint(raw string) string {
	method, host, escaped := parts(raw)
	escaped = whole(escaped)
	longest := ""
	for _, p := range k.patterns {
		if len(p.Path) > len(longest) && (p.Methods["*"] || p.Methods[method]) && p.Matches.MatchString(decoded(escaped)) {
			longest = p.Path
		}
	}
	if longest == "" {
		longest = withoutIDs(decoded(kept.Replace(escaped)))
	}
	return endpoint(method, host, longest)
}

// decoded returns a path without its escapes, or as it is if some are none.
func decoded(escaped string) string {
	path, err := url.PathUnescape(escaped)
	if err != nil {
		return escaped
	}
	return path
}

// kept keeps encoded in a path what would mean something else.
var kept = strings.NewReplacer("%25", "%2525", "%2F", "%252F", "%2f", "%252F", "%3F", "%253F", "%3f", "%253F", "%23", "%2523")

// whole returns an encoded path without the part of an escape that was left where it was clipped.
func whole(escaped string) string {
	clipped := strings.TrimSuffix(escaped, cut)
	if len(clipped) == len(escaped) {
		return escaped
	}
	return partial.ReplaceAllString(clipped, "") + cut
}

// partial matches, at the end of an encoded path, an escape that is not whole.
var partial = regexp.MustCompile(`%[0-9A-Fa-f]?$`)

// id matches a segment of a path that is a number, a UUID, a ULID, or 16 or more hex digits.
var id = regexp.MustCompile(`/(?:[0-9]+|[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}|[0-7][0-9A-HJKMNP-TV-Za-hjkmnp-tv-z]{25}|[0-9A-Fa-f]{16,})(/|$)`)

// withoutIDs replaces such segments. Two beside each other have one slash in common, so it goes twice over the path.
func withoutIDs(path string) string {
	return id.ReplaceAllString(id.ReplaceAllString(path, "/{id}$1"), "/{id}$1")
}

// Other characters than visible ASCII must not be in the name of an endpoint, and in its path none that cannot be seen.
var (
	unprintable = regexp.MustCompile(`[^!-~]`)
	invisible   = regexp.MustCompile(`[^\pL\pM\pN\pP\pS]|\x{FFFD}`) // what is no UTF-8 counts as U+FFFD
)

// endpoint returns the name under which requests are counted. Its parts have bounded length and no spaces, and … stands where
// something was cut off.
func endpoint(method, host, path string) string {
	return part(method, longestMethod) + " " + part(strings.ToLower(host), longestHost) + " " + whole(clip(invisible.ReplaceAllStringFunc(path, url.PathEscape), longestPath))
}

func part(s string, longest int) string {
	s = clip(s, longest)
	text := strings.TrimSuffix(s, cut)
	return unprintable.ReplaceAllString(text, "?") + s[len(text):]
}

// cut replaces what was cut off.
const cut = "…"

// clip shortens s. It does not shorten again what it has shortened before.
func clip(s string, longest int) string {
	if len(s) <= longest || (len(s) <= longest+len(cut) && strings.HasSuffix(s, cut)) {
		return s
	}
	return strings.ToValidUTF8(s[:longest], "") + cut
}

// parts splits an endpoint's name.
func parts(name string) (string, string, string) {
	method, rest, _ := strings.Cut(name, " ")
	host, path, _ := strings.Cut(rest, " ")
	return method, host, path
}
