package idem

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"sort"
	"strconv"
	"strings"
)

// source says where in a request a value is. It is read from its text once, when a handler is built.
type source struct {
	text    string   // in its normal form
	places  []*place // more than one: a + b
	inBody  bool     // a place in it is in the body
	content bool     // it is the request itself
	unnamed bool     // identities of keys from it do not name it
}

// place is a source without a +.
type place struct {
	kind   string
	name   string         // of a header (canonical), cookie, parameter, field or claim
	path   []string       // the reference tokens of a JSON pointer
	cookie *regexp.Regexp // finds the cookie
	hop    int            // of an address: its place in X-Forwarded-For from the right; 0 = RemoteAddr
}

// Kinds of sources.
const (
	kindHost    = "Host"
	kindHeader  = "header"
	kindCookie  = "cookie"
	kindQuery   = "query"
	kindForm    = "form"
	kindJSON    = "json"
	kindClaim   = "jwt"
	kindAddress = "ip"
	kindContent = "content"
)

// What a source finds in a request.
const (
	absent   = iota
	present  // one value
	unusable // several values, or one that cannot be read
	unread   // it is in the body, which was not read yet
)

// Bounds on what a source looks at. What is longer or has more of them is unusable.
const (
	longestList    = 64 << 10 // bytes of the lines of Cookie, Authorization or X-Forwarded-For
	longestPointer = 32       // reference tokens
	mostMembers    = 1000     // of each JSON object, and elements of each array, on the way of a pointer
	mostFields     = 1000     // of a query string or form
)

// sourceForm says what a source is.
const sourceForm = "a header name such as X-Request-ID, cookie:session, query:id, form:token, json:/data/id, jwt:sub, ip or ip:1; or two and more of them with + between them, which needs a space on each side"

// parseSource returns the source that text names, or nil if it names none.
func parseSource(text string) *source {
	s := &source{}
	var texts []string
	for _, piece := range strings.Split(text, " + ") {
		p, normal := parsePlace(strings.TrimSpace(piece))
		if p == nil || (p.kind == kindContent && piece != text) {
			return nil
		}
		s.places = append(s.places, p)
		s.inBody = s.inBody || p.kind == kindForm || p.kind == kindJSON || p.kind == kindContent
		texts = append(texts, normal)
	}
	s.text = strings.Join(texts, " + ")
	s.content = s.places[0].kind == kindContent
	return s
}

// joined matches a JSON pointer and another place behind a + without a space on each side. Both together would be a pointer to
// something that nobody sends. For the same reason, no other place has a + in its name.
var joined = regexp.MustCompile(`\+\s*(header|cookie|query|form|json|jwt|ip):`)

// parsePlace returns the place that text names, and its normal form; nil if it names none.
func parsePlace(text string) (*place, string) {
	kind, name, named := strings.Cut(text, ":")
	if !named && kind != kindAddress && kind != kindContent {
		kind, name = kindHeader, text
	}
	p := &place{kind: kind, name: strings.TrimSpace(name)}
	normal := kind + ":" + p.name
	valid := p.name != ""
	switch kind {
	case kindHeader:
		valid = tokenPattern.MatchString(p.name)
		p.name = http.CanonicalHeaderKey(p.name)
		normal = p.name
		if p.name == kindHost {
			p.kind = kindHost
		}
	case kindCookie:
		valid = tokenPattern.MatchString(p.name)
		if !valid {
			break
		}
		p.cookie = regexp.MustCompile(`(?:^|;)[ \t]*` + regexp.QuoteMeta(p.name) + `[ \t]*=([^;]*)`)
	case kindQuery:
	case kindForm:
	case kindClaim:
		p.path = []string{p.name}
	case kindJSON:
		p.path = pointer(p.name)
		valid = p.path != nil
	case kindAddress:
		if !named {
			return p, kind
		}
		hop, err := strconv.Atoi(p.name)
		valid = err == nil && hop > 0 && hop < 100
		p.hop = hop
	case kindContent:
		valid = !named
		normal = kind
	default:
		valid = false
	}
	if !valid || joined.MatchString(p.name) || (kind != kindJSON && strings.Contains(p.name, "+")) {
		return nil, ""
	}
	return p, normal
}

// pointer returns the reference tokens of a JSON pointer (RFC 6901), or nil if text is none, or the one of a whole document.
func pointer(text string) []string {
	tokens := strings.Split(text, "/")
	if tokens[0] != "" || len(tokens) < 2 || len(tokens)-1 > longestPointer || !pointerPattern.MatchString(text) {
		return nil
	}
	for i, token := range tokens {
		tokens[i] = strings.ReplaceAll(strings.ReplaceAll(token, "~1", "/"), "~0", "~")
	}
	return tokens[1:]
}

var pointerPattern = regexp.MustCompile(`^(?s:[^~]|~[01])*$`)

// valueOf returns the value of s in r, whose body has been read as readBody does, and what was found. The values of several
// places are quoted, so that none can be shifted into another.
func valueOf(h *handler, s *source, r *http.Request, body []byte) (string, int) {
	if len(s.places) == 1 {
		return valueAtPlace(h, s.places[0], r, body)
	}
	values := ""
	for _, p := range s.places {
		value, state := valueAtPlace(h, p, r, body)
		if state != present {
			return "", state
		}
		values += strconv.Quote(value)
	}
	return values, present
}

// valueAtPlace is valueOf for one place.
func valueAtPlace(h *handler, p *place, r *http.Request, body []byte) (string, int) {
	switch p.kind {
	case kindHost:
		return strings.ToLower(r.Host), present
	case kindHeader:
		return only(linesOf(r, p.name))
	case kindCookie:
		return cookieOf(p, r.Header["Cookie"])
	case kindQuery:
		return fieldOf(r.URL.RawQuery, p.name)
	case kindForm:
		return formField(h, p.name, r, body)
	case kindClaim:
		return claimOf(p, r.Header["Authorization"])
	case kindAddress:
		return clientAddress(p, r)
	}
	return memberOfBody(h, p, r, body)
}

// linesOf returns the lines of a header, of all spellings of its name: Traefik's basicAuth and digestAuth set theirs under the
// name that they are configured with, beside what a client has sent. The canonical spelling comes first. For Authorization
// only that counts, because serve looks for no other.
func linesOf(r *http.Request, name string) []string {
	lines := r.Header[name]
	if name == "Authorization" {
		return lines
	}
	var others []string
	for other := range r.Header {
		if len(other) == len(name) && other != name && strings.EqualFold(other, name) {
			others = append(others, other)
		}
	}
	sort.Strings(others)
	for _, other := range others {
		lines = append(lines[:len(lines):len(lines)], r.Header[other]...)
	}
	return lines
}

// only returns the value if there is exactly one; an empty one counts as none.
func only(values []string) (string, int) {
	switch {
	case len(values) == 0:
		return "", absent
	case len(values) > 1:
		return "", unusable
	case values[0] == "":
		return "", absent
	}
	return values[0], present
}

// cookieOf returns the value of a cookie as it was sent, quotes included. net/http leaves out cookies with characters that
// it does not like; a backend may well take them.
func cookieOf(p *place, lines []string) (string, int) {
	cookies := strings.Join(lines, ";")
	if !strings.Contains(cookies, p.name) {
		return "", absent
	}
	if len(cookies) > longestList {
		return "", unusable
	}
	var values []string
	for _, found := range p.cookie.FindAllStringSubmatch(cookies, 2) {
		values = append(values, strings.Trim(found[1], " \t"))
	}
	return only(values)
}

// fieldOf returns the value of a field in a query string, or in a form that is encoded like one.
func fieldOf(encoded, name string) (string, int) {
	if strings.Count(encoded, "&") >= mostFields {
		return "", unusable
	}
	values, err := url.ParseQuery(encoded)
	if err != nil {
		return "", unusable
	}
	return only(values[name])
}

// formField returns the value of a field in a body that is an urlencoded form.
func formField(h *handler, name string, r *http.Request, body []byte) (string, int) {
	switch {
	case len(body) == 0:
		return "", absent
	case len(r.Header["Content-Type"]) > 1: // who knows which of them counts
		return "", unusable
	case mediaName(r) != formType:
		return "", absent
	case !readable(h, r, body):
		return "", unusable
	}
	return fieldOf(string(body), name)
}

const formType = "application/x-www-form-urlencoded"

// mediaName returns the media type of r's body, without parameters.
func mediaName(r *http.Request) string {
	name, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	return strings.ToLower(strings.TrimSpace(name))
}

// readable reports whether body is all of r's, and not compressed.
func readable(h *handler, r *http.Request, body []byte) bool {
	coding := r.Header["Content-Encoding"]
	return int64(len(body)) <= h.maxRequestBody && (coding == nil || strings.EqualFold(strings.Join(coding, ","), "identity"))
}

// memberOfBody returns the value at a JSON pointer in the body. A body without a JSON media type may still be JSON;
// one that says so, or begins so, has to be.
func memberOfBody(h *handler, p *place, r *http.Request, body []byte) (string, int) {
	if len(body) == 0 {
		return "", absent
	}
	if len(r.Header["Content-Type"]) > 1 {
		return "", unusable
	}
	data, isJSON := jsonBody(h, r, body)
	switch {
	case isJSON:
		return valueAt(data, p.path)
	case saysJSON.MatchString(mediaName(r)) || brokenJSON(h, body):
		return "", unusable
	}
	return "", absent
}

var saysJSON = regexp.MustCompile(`^((application|text)/json|.*\+json)$`)

// byteOrderMark may stand before JSON by mistake (RFC 8259, section 8.1).
const byteOrderMark = "\ufeff"

// jsonBody returns the body of r without a byte order mark, and whether it is JSON.
func jsonBody(h *handler, r *http.Request, body []byte) ([]byte, bool) {
	data := bytes.TrimPrefix(body, []byte(byteOrderMark))
	return data, readable(h, r, body) && json.Valid(data)
}

// brokenJSON reports whether body, which cannot be read as JSON, is the beginning of an object or array: it may be cut off, or too
// long. Several values, one after the other, are another format.
func brokenJSON(h *handler, body []byte) bool {
	if int64(len(body)) > h.maxRequestBody {
		body = body[:h.maxRequestBody]
	}
	body = bytes.TrimPrefix(body, []byte(byteOrderMark))
	if !beginsJSON.Match(body) {
		return false
	}
	d := json.NewDecoder(bytes.NewReader(body))
	err := d.Decode(new(json.RawMessage))
	return err != nil || !d.More()
}

// beginsJSON matches more than the first character, which texts and images may have too.
var beginsJSON = regexp.MustCompile(`^[ \t\r\n]*(\{[ \t\r\n]*(["}]|$)|\[[ \t\r\n]*([]\[{"tfn0-9-]|$))`)

// claimOf returns a claim of the bearer token. It does not check the token's signature.
func claimOf(p *place, lines []string) (string, int) {
	if len(lines) > 1 { // who knows which of them counts
		return "", unusable
	}
	authorization := strings.ReplaceAll(strings.Join(lines, ""), "\t", " ")
	scheme, token, _ := strings.Cut(authorization, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", absent
	}
	if len(token) > longestList {
		return "", unusable
	}
	pieces := strings.Split(strings.TrimSpace(token), ".")
	if len(pieces) != 3 {
		return "", unusable
	}
	claims, err := base64.RawURLEncoding.DecodeString(pieces[1])
	if err != nil || !json.Valid(claims) {
		return "", unusable
	}
	return valueAt(claims, p.path)
}

// clientAddress returns the address of the client, or the one that a proxy before Traefik has seen.
func clientAddress(p *place, r *http.Request) (string, int) {
	text := r.RemoteAddr
	if p.hop > 0 {
		lines := strings.Join(r.Header["X-Forwarded-For"], ",")
		if len(lines) > longestList {
			return "", unusable
		}
		addresses := strings.Split(lines, ",")
		if lines == "" || p.hop > len(addresses) {
			return "", absent
		}
		text = strings.TrimSpace(addresses[len(addresses)-p.hop])
	}
	address, err := netip.ParseAddr(text)
	if err != nil {
		withPort, portErr := netip.ParseAddrPort(text)
		if portErr != nil {
			return "", unusable
		}
		address = withPort.Addr()
	}
	return address.Unmap().String(), present
}

// valueAt returns the string, number or boolean at a JSON pointer in data, which is valid JSON.
func valueAt(data []byte, path []string) (string, int) {
	var state int
	for len(path) > 0 {
		data = bytes.TrimLeft(data, " \t\r\n")
		switch data[0] {
		case '{':
			data, path, state = member(json.NewDecoder(bytes.NewReader(data)), data, path)
		case '[':
			data, state = element(data, path[0])
			path = path[1:]
		default:
			state = absent
		}
		if state != present {
			return "", state
		}
	}
	switch data[0] {
	case '{':
		return "", unusable
	case '[':
		return "", unusable
	case 'n':
		return "", absent
	case '"':
		text := new(string)
		err := json.Unmarshal(data, text)
		if err != nil || strings.Contains(*text, "\ufffd") { // what is no Unicode becomes that: different texts would be one
			return "", unusable
		}
		return only([]string{*text})
	}
	return string(data), present
}

// member goes along path into the object that d, which reads data, comes to next, and into objects in it, so that all of them are
// read once. It returns the value there, and the rest of path.
func member(d *json.Decoder, data []byte, path []string) ([]byte, []string, int) {
	_, _ = d.Token() // the bracket
	var found []byte
	var rest []string
	state := absent
	seen := false
	for n := 0; d.More(); n++ {
		token, _ := d.Token()
		name, _ := token.(string)
		here := name == path[0]
		if n == mostMembers || (here && seen) { // parsers do not agree on which of two counts
			return nil, nil, unusable
		}
		seen = seen || here
		if here && len(path) > 1 && bytes.TrimLeft(data[d.InputOffset():], " \t\r\n:")[0] == '{' {
			found, rest, state = member(d, data, path[1:])
			if state == unusable {
				return nil, nil, unusable
			}
			continue
		}
		value := new(json.RawMessage)
		err := d.Decode(value)
		if err != nil {
			return nil, nil, unusable
		}
		if here {
			found, rest, state = *value, path[1:], present
		}
	}
	_, _ = d.Token() // the other bracket
	return found, rest, state
}

// element returns an element of a JSON array.
func element(array []byte, token string) ([]byte, int) {
	index, err := strconv.Atoi(token)
	if err != nil || index < 0 || strconv.Itoa(index) != token {
		return nil, absent
	}
	if index >= mostMembers {
		return nil, unusable
	}
	d := json.NewDecoder(bytes.NewReader(array))
	_, _ = d.Token()
	for ; d.More(); index-- {
		value := new(json.RawMessage)
		err = d.Decode(value)
		if err != nil {
			return nil, unusable
		}
		if index == 0 {
			return *value, present
		}
	}
	return nil, absent
}
