package idem

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/example/traefik-idem/store"
)

// keyPattern is a key as it is or as a structured-field string (RFC 8941, section 3.3.3; the IETF draft
// draft-ietf-httpapi-idempotency-key-header writes it so). None of the characters needs an escape inside quotes.
var keyPattern = regexp.MustCompile(`^(?:[A-Za-z0-9\-_./]+|"[A-Za-z0-9\-_./]+")$`)

// parseKey returns the idempotency key in the lines of its header, or nothing if they are not one valid key.
func parseKey(lines []string, maxLength int) string {
	if len(lines) != 1 || !keyPattern.MatchString(lines[0]) {
		return ""
	}
	key := strings.Trim(lines[0], `"`)
	if len(key) > maxLength {
		return ""
	}
	return key
}

// newLease returns the lease that r, with this key and these lines of Content-Type, asks for, and what of r's body is
// still to come. The lease's Key names r's key in a store: the hex SHA-256 over everything that must not be shared, each
// part quoted, so that no part can be shifted into another. Its Fingerprint is the SHA-256 over query string,
// Content-Type and body.
func newLease(h *handler, r *http.Request, key string, types []string) (*store.Lease, *streamedBody, error) {
	body, rest, err := takeBody(h, r)
	if err != nil {
		return nil, nil, err
	}
	same := sha256.Sum256(fmt.Appendf(nil, "%q%q%s", r.URL.RawQuery, types, body))
	host := ""
	if h.scopeHost {
		host = strings.ToLower(r.Host)
	}
	parts := fmt.Appendf(nil, "%t%q%q%q%q", h.observe, r.Method, r.URL.EscapedPath(), key, host)
	for _, name := range h.scope {
		parts = fmt.Appendf(parts, "%q", r.Header[name])
	}
	return &store.Lease{
		Key:         fmt.Sprintf("%x", sha256.Sum256(parts)),
		Fingerprint: string(same[:]),
		Owner:       processToken + strconv.FormatInt(ownerCount.Add(1), 36),
	}, rest, nil
}

// errIncompleteBody says that the client broke off, or its body is malformed.
var errIncompleteBody = errors.New("the request body did not arrive whole")

// takeBody reads r's body as far as it is compared, and puts it back. Of a body longer than maxRequestBodyBytes the
// declared length stands for the rest, which streams; that body is returned too, and nil for one that was read whole.
func takeBody(h *handler, r *http.Request) ([]byte, *streamedBody, error) {
	size := r.ContentLength
	if size <= 0 || size > smallBody || size > h.maxRequestBody {
		return takeOddBody(h, r)
	}
	body := make([]byte, size)
	_, err := io.ReadFull(r.Body, body)
	if err != nil {
		return nil, nil, errIncompleteBody
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	return body, nil, nil
}

// takeOddBody is takeBody where there is none, or it does not tell its length, or is long. Room for it is made as it comes.
func takeOddBody(h *handler, r *http.Request) ([]byte, *streamedBody, error) {
	if r.ContentLength == 0 {
		return nil, nil, nil
	}
	most := h.maxRequestBody
	data, err := io.ReadAll(io.LimitReader(r.Body, most+1))
	if errors.Is(err, errBusy) {
		r.Body = &streamedBody{reader: io.MultiReader(bytes.NewReader(data), r.Body), body: r.Body}
		return nil, nil, errBusy
	}
	if err != nil {
		return nil, nil, errIncompleteBody
	}
	if int64(len(data)) <= most {
		r.Body = io.NopCloser(bytes.NewReader(data))
		return data, nil, nil
	}
	rest := &streamedBody{reader: io.MultiReader(bytes.NewReader(data), r.Body), body: r.Body}
	r.Body = rest
	// The byte over the bound is left out, so that the fingerprint does not depend on how the read went.
	return strconv.AppendInt(bytes.Clone(data[:most]), r.ContentLength, 10), rest, nil
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

// processToken and ownerCount make the fencing tokens of this process's leases.
var (
	processToken = randomToken() + "-"
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
