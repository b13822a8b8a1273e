package idem

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
)

// keyPattern is a key as it is or as a structured-field string (RFC 8941, section 3.3.3; the IETF draft
// draft-ietf-httpapi-idempotency-key-header writes it so). None of the characters needs an escape inside quotes.
var keyPattern = regexp.MustCompile(`^(?:[A-Za-z0-9\-_./]+|"[A-Za-z0-9\-_./]+")$`)

// parseKey returns the idempotency key in the lines of its header; false if they are not one valid key.
func parseKey(lines []string, maxLength int) (string, bool) {
	if len(lines) != 1 || len(lines[0]) > maxLength+2 || !keyPattern.MatchString(lines[0]) {
		return "", false
	}
	key := strings.Trim(lines[0], `"`)
	return key, len(key) <= maxLength
}

// storeKey names r's key in a store: the hex SHA-256 over everything that must not be shared, each part behind its
// length, so that no part can be shifted into another.
func (h *handler) storeKey(r *http.Request, key string) string {
	var b bytes.Buffer
	if h.set.observe {
		part(&b, "observe") // what was only observed must never be taken for a claim
	}
	part(&b, r.Method)
	for _, name := range h.set.scope {
		if name == "Host" {
			part(&b, strings.ToLower(r.Host))
			continue
		}
		values := r.Header[name]
		b.WriteString(strconv.Itoa(len(values)))
		for _, value := range values {
			part(&b, value)
		}
	}
	part(&b, r.URL.EscapedPath())
	part(&b, key)
	sum := sha256.Sum256(b.Bytes())
	return hex.EncodeToString(sum[:])
}

func part(b *bytes.Buffer, s string) {
	b.WriteString(strconv.Itoa(len(s)))
	b.WriteByte(':')
	b.WriteString(s)
}

// errIncompleteBody says that the client broke off, or its body is malformed.
var errIncompleteBody = errors.New("the request body did not arrive whole")

// takeFingerprint reads r's body as far as it is compared, puts it back, and returns the SHA-256 over query string,
// Content-Type and body. Of a body longer than maxRequestBodyBytes the declared length stands for the rest, which
// streams; rest is that body, and nil for one that was read whole.
func (h *handler) takeFingerprint(r *http.Request) (fingerprint string, rest *streamedBody, err error) {
	var b bytes.Buffer
	part(&b, r.URL.RawQuery)
	part(&b, r.Header.Get("Content-Type"))
	head := b.Len()
	if r.Body != nil && r.Body != http.NoBody {
		most := h.set.maxRequestBody
		if r.ContentLength > 0 && r.ContentLength <= most {
			b.Grow(int(r.ContentLength) + bytes.MinRead)
		}
		n, err := b.ReadFrom(io.LimitReader(r.Body, most+1))
		if err != nil {
			return "", nil, errIncompleteBody
		}
		body := bytes.NewReader(b.Bytes()[head:])
		if n > most {
			rest = &streamedBody{reader: io.MultiReader(body, r.Body), body: r.Body}
			r.Body = rest
		} else {
			r.Body = io.NopCloser(body)
		}
	}
	sum := sha256.New()
	if rest == nil {
		sum.Write(b.Bytes())
	} else {
		// The byte over the bound is left out, so that the fingerprint does not depend on how the read went.
		sum.Write(b.Bytes()[:int64(head)+h.set.maxRequestBody])
		sum.Write(strconv.AppendInt(nil, r.ContentLength, 10))
	}
	return string(sum.Sum(nil)), rest, nil
}

// streamedBody is a request body too long to be read in advance. It remembers whether the client broke it off.
type streamedBody struct {
	reader io.Reader
	body   io.Closer
	broken atomic.Bool
}

// Read implements io.Reader.
func (s *streamedBody) Read(p []byte) (int, error) {
	n, err := s.reader.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // a reader returns io.EOF itself
		s.broken.Store(true)
	}
	return n, err
}

// Close implements io.Closer.
func (s *streamedBody) Close() error {
	return s.body.Close()
}

// processToken and ownerCount make the tokens of this process's leases.
var (
	processToken = randomToken()
	ownerCount   atomic.Int64
)

func randomToken() string {
	random := make([]byte, 16)
	_, err := rand.Read(random)
	if err != nil { // without a unique token two processes could take each other's leases
		panic("traefik-idem: no random numbers to be had: " + err.Error())
	}
	return hex.EncodeToString(random)
}

// newOwner returns a fencing token that no other lease has.
func newOwner() string {
	return processToken + "-" + strconv.FormatInt(ownerCount.Add(1), 36)
}
