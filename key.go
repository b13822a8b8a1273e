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
	"strconv"
	"strings"
	"sync/atomic"

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

// newLease returns the lease that r, with this key, these lines of Content-Type and this body, asks for. The lease's Key
// names r's key in a store: the SHA-256 over everything that must not be shared, each part quoted, so that no part can be
// shifted into another; also what middlewares above say of the path before they changed it.
func newLease(h *handler, r *http.Request, key string, types []string, body []byte) *store.Lease {
	host := ""
	if h.scopeHost {
		host = strings.ToLower(r.Host)
	}
	parts := fmt.Appendf(nil, "%t%q%q%q%q%q", h.observe, r.Method, r.URL.EscapedPath(), key, host, r.Header[h.scopeFirst])
	if len(h.scope) > 1 {
		parts = appendScope(parts, r.Header, h.scope[1:])
	}
	if r.Header["X-Forwarded-Prefix"] != nil || r.Header["X-Replaced-Path"] != nil {
		parts = fmt.Appendf(parts, "path%q%q", r.Header["X-Forwarded-Prefix"], r.Header["X-Replaced-Path"])
	}
	identity := sha256.Sum256(parts)
	return &store.Lease{
		Key:         string(identity[:]),
		Fingerprint: string(fingerprint(h, r, types, body)),
		Owner:       processToken + strconv.FormatInt(ownerCount.Add(1), 36),
	}
}

// appendScope adds the values of further headers that set callers apart.
func appendScope(parts []byte, header http.Header, names []string) []byte {
	for _, name := range names {
		parts = fmt.Appendf(parts, "%q", header[name])
	}
	return parts
}

// errIncompleteBody says that the client broke off, or its body is malformed.
var errIncompleteBody = errors.New("the request body did not arrive whole")

// takenBody is a request body that was read, as far as it is compared, and put back.
type takenBody struct {
	compared []byte           // what stands for it in the fingerprint
	original io.ReadCloser    // the request's Body, which has been read
	data     []byte           // what was read
	unread   io.LimitedReader // of data, by those who are next
	rest     *streamedBody    // the whole, where it goes on behind data; else nil
}

// noBody is that of a request without one.
var noBody = &takenBody{}

// takeBody reads r's body as far as it is compared, and puts it back. Of a body longer than maxRequestBodyBytes the
// declared length stands for the rest, which streams.
func takeBody(h *handler, r *http.Request, c *charge) (*takenBody, error) {
	size := r.ContentLength
	switch {
	case size <= 0:
	case size > h.smallRequest:
	default:
		data := make([]byte, size)
		t := &takenBody{compared: data, original: r.Body, data: data}
		_, err := io.ReadFull(r.Body, data)
		if err != nil {
			err = takeAgain(r, data, err)
			if err != nil {
				return nil, err
			}
		}
		t.unread.R = bytes.NewReader(data)
		t.unread.N = size
		r.Body = io.NopCloser(&t.unread)
		return t, nil
	}
	return takeOddBody(h, r, c)
}

// takeOddBody is takeBody where there is none, or it does not tell its length, or is long. What it takes goes to the
// account c.
func takeOddBody(h *handler, r *http.Request, c *charge) (*takenBody, error) {
	if r.ContentLength == 0 {
		return noBody, nil
	}
	t := &takenBody{original: r.Body}
	err := readAgain(r)
	if err != nil {
		return nil, err
	}
	source := r.Body
	most := h.maxRequestBody
	t.data, err = readSome(r, most+1, c)
	t.unread.R = bytes.NewReader(t.data)
	t.unread.N = int64(len(t.data))
	r.Body = io.NopCloser(&t.unread)
	if errors.Is(err, errBusy) || int64(len(t.data)) > most {
		t.rest = &streamedBody{reader: io.MultiReader(&t.unread, source), body: t.original}
		r.Body = t.rest
	}
	switch {
	case errors.Is(err, errBusy):
		return nil, errBusy
	case err != nil:
		return nil, errIncompleteBody
	case t.rest == nil:
		t.compared = t.data
	default: // The byte over the bound is left out, so that the fingerprint does not depend on how the read went.
		t.compared = strconv.AppendInt(bytes.Clone(t.data[:most]), r.ContentLength, 10)
	}
	return t, nil
}

// firstRoom is how much room, in bytes, is made first for a body that does not tell its length, or is not believed.
const firstRoom = 4 << 10

// readSome reads r's body up to most bytes. Room is made, and paid for, at once if the body tells its length and half of
// mostInFlight stays free, and else in steps, each for as much as has come: clients that are slow, or lie about lengths,
// cannot take what others need. The error is errBusy if there is no room for more than what is returned.
func readSome(r *http.Request, most int64, c *charge) ([]byte, error) {
	room := int64(firstRoom)
	if r.ContentLength >= 0 {
		if r.ContentLength < most {
			most = r.ContentLength
		}
		if heldBytes.Load()+most < mostInFlight/2 {
			room = most
		}
	}
	data := new(bytes.Buffer)
	for ; int64(data.Len()) < most; room *= 2 {
		if room > most {
			room = most
		}
		step := room - int64(data.Len())
		if !pay(c, int(step)) {
			return data.Bytes(), errBusy
		}
		larger := bytes.NewBuffer(make([]byte, 0, room+bytes.MinRead)) // which a buffer wants to be left at the end
		larger.Write(data.Bytes())
		data = larger
		_, err := io.CopyN(data, r.Body, step)
		if err == io.EOF && r.ContentLength < 0 { //nolint:errorlint // CopyN returns io.EOF itself
			break
		}
		if err != nil {
			return nil, err
		}
	}
	return data.Bytes(), nil
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
