package idem

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"

	"github.com/example/traefik-idem/store"
)

// keyCharacters are those that a key may consist of. None of them needs an escape inside quotes.
const keyCharacters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_./"

// parseKey returns the idempotency key in the lines of its header, or nothing if they are not one valid key: as it is, or
// as a structured-field string (RFC 8941, section 3.3.3; the IETF draft draft-ietf-httpapi-idempotency-key-header writes
// it so).
func parseKey(lines []string, maxLength int) string {
	if len(lines) != 1 {
		return ""
	}
	key := lines[0]
	if strings.Trim(key, keyCharacters) != "" {
		key = unquote(key)
	}
	if len(key) > maxLength {
		return ""
	}
	return key
}

// unquote returns the key in a structured-field string, or nothing if there is none.
func unquote(text string) string {
	last := len(text) - 1
	if last < 1 || text[0] != '"' || text[last] != '"' || strings.Trim(text[1:last], keyCharacters) != "" {
		return ""
	}
	return text[1:last]
}

// identityFormat is the format of settings.identityFormat. Its arguments are whether requests are observed, and the verb for
// the host.
const identityFormat = "%t %%q%%q%%q%%q%s%%q%%q%%q"

// sameFormat is the format of what a fingerprint covers: the identity, the query string, the lines of Content-Type, the
// body.
const sameFormat = "%s%q%q%s"

// newLease returns the lease that r, with this key and this body, asks for. The lease's Key is its identity: everything that
// sets requests apart, each part quoted, so that no part can be shifted into another. That includes the original path, if
// middlewares above have changed it. serve does the same for an ordinary request, in fewer steps.
func newLease(h *handler, r *http.Request, key string, body []byte) *store.Run {
	header := r.Header
	identity := fmt.Sprintf(h.identityFormat, r.Method, r.URL.Path, r.URL.RawPath, key, strings.ToLower(r.Host), header[h.scopeFirst], header["X-Forwarded-Prefix"], header["X-Replaced-Path"])
	if len(h.scope) > 1 {
		for _, name := range h.scope[1:] {
			identity += fmt.Sprintf("%q", header[name])
		}
	}
	return &store.Run{Lease: &store.Lease{Key: identity, Fingerprint: fingerprint(h, r, identity, body)}, Client: r.Context()}
}

// publicID is what may be shown of a key wherever the key itself may not: the beginning of the digest of its identity, which
// the key in Redis has too.
func publicID(identity string) string {
	sum := sha256.Sum256([]byte(identity))
	return hex.EncodeToString(sum[:8])
}
