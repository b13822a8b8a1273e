package idem

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/example/traefik-idem/store"
)

// keyCharacters are those that a key may consist of, unless keyFormat allows others. None needs an escape inside quotes.
const keyCharacters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_./"

// keyed is a request's key, as far as it is known.
type keyed struct {
	key   string  // empty for content, whose key comes from the fingerprint
	from  *source // source that has it; nil if none has
	state int
}

// findKey looks for the key of r: the first source that has a value has it. bodyIs says whether body is there: present, unread
// for not yet, or absent for never.
func findKey(h *handler, r *http.Request, body []byte, bodyIs int) *keyed {
	for _, s := range h.keySources {
		if s.inBody && bodyIs == unread {
			return &keyed{state: unread}
		}
		if s.inBody && bodyIs == absent {
			continue
		}
		key, state := keyAt(h, s, r, body)
		if state == unusable && h.ignoreInvalid {
			state = absent
		}
		if state != absent {
			return &keyed{key: key, from: s, state: state}
		}
	}
	return &keyed{}
}

// keyAt returns the key that r has at s, and what was found.
func keyAt(h *handler, s *source, r *http.Request, body []byte) (string, int) {
	p := s.places[0]
	switch {
	case len(s.places) > 1:
	case s.content:
		if len(body) > 0 && int64(len(body)) > h.maxRequestBody { // the rest may differ
			return "", absent
		}
		return "", present
	case p.kind == kindHeader:
		lines := r.Header[p.name]
		if lines == nil || p.name != h.header { // where that is there, serve looks for no other spelling
			lines = linesOf(r, p.name)
		}
		if len(lines) == 0 || (len(lines) == 1 && lines[0] == "") {
			return "", absent
		}
		key := parseKey(lines, h.maxKeyLength, h.keyFormat)
		if key == "" {
			return "", unusable
		}
		return key, present
	}
	length, key := 0, ""
	for _, p := range s.places {
		value, state := valueAtPlace(h, p, r, body)
		if state != present {
			return "", state
		}
		if p.kind == kindHeader && strings.HasPrefix(value, `"`) {
			value = unquoted(value)
		}
		length += len(value)
		if length > h.maxKeyLength || !visibleKey.MatchString(value) || !h.otherFormat.MatchString(value) {
			return "", unusable
		}
		if len(s.places) > 1 { // as in valueOf
			value = strconv.Quote(value)
		}
		key += value
	}
	return key, present
}

// parseKey returns the idempotency key in the lines of its header, or nothing if they are not one valid key.
func parseKey(lines []string, maxLength int, format *regexp.Regexp) string {
	if len(lines) != 1 {
		return ""
	}
	key := lines[0]
	if strings.HasPrefix(key, `"`) {
		key = unquoted(key)
	}
	if len(key) > maxLength || !visibleKey.MatchString(key) || !format.MatchString(key) {
		return ""
	}
	return key
}

// unquoted returns what a header in quotes says, which is a structured-field string (RFC 8941, section 3.3.3; the IETF draft
// draft-ietf-httpapi-idempotency-key-header writes keys so). It returns nothing if it is not valid.
func unquoted(value string) string {
	if !quotedString.MatchString(value) {
		return ""
	}
	return unescape.Replace(value[1 : len(value)-1])
}

var (
	quotedString = regexp.MustCompile(`^"([^"\\]|\\["\\])*"$`)
	unescape     = strings.NewReplacer(`\\`, `\`, `\"`, `"`)
)

// Formats of keys. Every key is visible: in a structured-field string nothing else can be.
var (
	tokenKey   = regexp.MustCompile(`^[A-Za-z0-9_./-]+$`) // of keyCharacters
	visibleKey = regexp.MustCompile(`^[ -~]+$`)
	uuidKey    = regexp.MustCompile(`^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`)
)

// identityTemplate is the format of settings.identityFormat. Its arguments are whether requests are observed, and the verb for
// the host.
const identityTemplate = "%t %%q%%q%%q%%q%s%%q%%q%%q"

// sameFormat is the format of what a fingerprint covers: the identity, the query string, the lines of Content-Type and of each of
// conditionHeaders, the body.
const sameFormat = "%s%q%q%q%q%q%q%q%q%s"

// newRun returns the run that r, with this key and this body, asks for. The Key of its lease is its identity: everything that
// sets requests apart, each part quoted, so that no part can be shifted into another. That includes the original path, if
// middlewares above have changed it. It returns nil if the caller of r cannot be told. serve does the same for an ordinary
// request, in fewer steps.
func newRun(h *handler, r *http.Request, k *keyed, body []byte) *store.Run {
	callers, known := callersOf(h, r, body)
	if !known {
		return nil
	}
	more := ""
	if callers != "" {
		more = " callers" + callers
	}
	key := k.key
	if !k.from.unnamed { // the same value from another source is another key
		more += fmt.Sprintf(" from%q", k.from.text)
	}
	if k.from.content {
		key = hex.EncodeToString([]byte(fingerprint(h, r, identityOf(h, r, "", more), body)))
	}
	identity := identityOf(h, r, key, more)
	return &store.Run{Lease: &store.Lease{Key: identity, Fingerprint: fingerprint(h, r, identity, body)}, Client: r.Context()}
}

// callersOf returns what sets the caller of r apart besides the headers in scope, as a part of an identity. It returns false
// if that cannot be told: a value cannot be used, or there is none where one is required.
func callersOf(h *handler, r *http.Request, body []byte) (string, bool) {
	known := !h.requireCaller
	for _, name := range h.scope {
		known = known || strings.Join(linesOf(r, name), "") != ""
	}
	callers := ""
	for _, s := range h.callers {
		value, state := valueOf(h, s, r, body)
		if state == unusable {
			return "", false
		}
		known = known || state == present
		callers += strconv.Quote(value)
	}
	return callers, known
}

// identityBefore returns the identity of r before its body was read, or nothing if that is not known then.
func identityBefore(h *handler, r *http.Request, k *keyed) string {
	for _, s := range h.callers {
		if s.inBody {
			return ""
		}
	}
	if k.state != present {
		return ""
	}
	l := newRun(h, r, k, nil)
	if l == nil {
		return ""
	}
	return l.Key
}

// identityOf returns the identity of r with this key. more is what only some middlewares have in it.
func identityOf(h *handler, r *http.Request, key, more string) string {
	header := r.Header
	identity := fmt.Sprintf(h.identityFormat, r.Method, r.URL.Path, r.URL.RawPath, key, strings.ToLower(r.Host), linesOf(r, h.scopeFirst), header["X-Forwarded-Prefix"], header["X-Replaced-Path"])
	if len(h.scope) > 1 {
		for _, name := range h.scope[1:] {
			identity += fmt.Sprintf("%q", linesOf(r, name))
		}
	}
	return identity + more
}

// publicID is what may be shown of a key wherever the key itself may not: the beginning of the digest of its identity, which
// the key in Redis has too.
func publicID(identity string) string {
	sum := sha256.Sum256([]byte(identity))
	return hex.EncodeToString(sum[:idDigits/2])
}

// idDigits is the length of a public id.
const idDigits = 16
