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
func storeKey(h *handler, r *http.Request, key string) string {
	path, method, host := r.URL.EscapedPath(), r.Method, r.Host
	if len(path)+len(method)+len(host) > usual {
		return longStoreKey(h, r, key)
	}
	parts := h.keyHead + lengths[len(method)] + method + lengths[len(path)] + path + lengths[len(key)] + key
	if h.scopeHost {
		host = strings.ToLower(host)
		parts += lengths[len(host)] + host
	}
	for _, name := range h.scope {
		values := r.Header[name]
		if len(values) > 0 {
			parts += scopePart(values)
		} else {
			parts += "0"
		}
	}
	sum := sha256.Sum256([]byte(parts))
	return hex.EncodeToString(sum[:])
}

// longStoreKey is storeKey for parts of any length.
func longStoreKey(h *handler, r *http.Request, key string) string {
	parts := h.keyHead + part(r.Method) + part(r.URL.EscapedPath()) + part(key)
	if h.scopeHost {
		parts += part(strings.ToLower(r.Host))
	}
	for _, name := range h.scope {
		parts += scopePart(r.Header[name])
	}
	sum := sha256.Sum256([]byte(parts))
	return hex.EncodeToString(sum[:])
}

// scopePart is what a header with these values sets callers apart by.
func scopePart(values []string) string {
	parts := strconv.Itoa(len(values))
	for _, value := range values {
		parts += part(value)
	}
	return parts
}

// part is s behind its length.
func part(s string) string {
	return strconv.Itoa(len(s)) + ":" + s
}

// usual is the longest part of a usual length.
const usual = 1023

// lengths are what stands before parts of usual lengths, as part puts it.
var lengths = newLengths()

func newLengths() []string {
	all := make([]string, usual+1)
	for n := range all {
		all[n] = strconv.Itoa(n) + ":"
	}
	return all
}

// errIncompleteBody says that the client broke off, or its body is malformed.
var errIncompleteBody = errors.New("the request body did not arrive whole")

// takeFingerprint reads r's body as far as it is compared, puts it back, and returns the SHA-256 over query string,
// Content-Type and body. Of a body longer than maxRequestBodyBytes the declared length stands for the rest, which
// streams; that body is returned, and nil for one that was read whole.
func takeFingerprint(h *handler, r *http.Request, contentType string) (string, *streamedBody, error) {
	query, size := r.URL.RawQuery, r.ContentLength
	if size < 0 || size > h.maxRequestBody || len(query)+len(contentType) > usual {
		return takeLongFingerprint(h, r, part(query)+part(contentType))
	}
	head := lengths[len(query)] + query + lengths[len(contentType)] + contentType
	data := append(make([]byte, 0, int64(len(head))+size), head...)
	if size > 0 {
		data = data[:cap(data)]
		body := data[len(head):]
		_, err := io.ReadFull(r.Body, body)
		if err != nil {
			return "", nil, errIncompleteBody
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	sum := sha256.Sum256(data)
	return string(sum[:]), nil, nil
}

// takeLongFingerprint is takeFingerprint for a body that is too long to be compared whole, or does not tell its length.
func takeLongFingerprint(h *handler, r *http.Request, head string) (string, *streamedBody, error) {
	most := h.maxRequestBody
	b := bytes.NewBufferString(head)
	n, err := b.ReadFrom(io.LimitReader(r.Body, most+1))
	if err != nil {
		return "", nil, errIncompleteBody
	}
	data := b.Bytes()
	var rest *streamedBody
	body := bytes.NewReader(data[len(head):])
	if n <= most {
		r.Body = io.NopCloser(body)
	} else {
		rest = &streamedBody{reader: io.MultiReader(body, r.Body), body: r.Body}
		r.Body = rest
		// The byte over the bound is left out, so that the fingerprint does not depend on how the read went.
		data = strconv.AppendInt(bytes.Clone(data[:int64(len(head))+most]), r.ContentLength, 10)
	}
	sum := sha256.Sum256(data)
	return string(sum[:]), rest, nil
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
