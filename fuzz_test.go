package idem

import (
	"encoding/json"
	"errors"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/example/traefik-idem/store"
)

// FuzzParseKey compares parseKey with the rule of docs/how-it-works.md.
func FuzzParseKey(f *testing.F) {
	for _, line := range []string{"abc", `"abc"`, `"abc`, `""`, `"`, "", "a b", "a\n", "A-z_0./9", "\u00e9", "a\x00", strings.Repeat("x", 129), `"` + strings.Repeat("x", 128) + `"`} {
		f.Add(line, 128)
	}
	f.Add("abc", 2)
	f.Fuzz(func(t *testing.T, line string, most int) {
		most = 1 + int(uint(most)%255)
		want := line
		if len(line) >= 2 && line[0] == '"' && line[len(line)-1] == '"' {
			want = line[1 : len(line)-1]
		}
		const allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_./"
		valid := want != "" && len(want) <= most && strings.Trim(want, allowed) == ""
		if !valid {
			want = ""
		}
		key := parseKey([]string{line}, most, tokenKey)
		if key != want {
			t.Fatalf("parseKey(%q, %d) = %q, want %q", line, most, key, want)
		}
		if parseKey([]string{line, line}, most, tokenKey) != "" {
			t.Errorf("two lines %q are one key", line)
		}
		if key == "" {
			return
		}
		for _, same := range []string{key, `"` + key + `"`} {
			again := parseKey([]string{same}, most, tokenKey)
			if again != key {
				t.Errorf("key %q written as %s is %q", key, same, again)
			}
		}
	})
}

// FuzzIdentity has two requests, cut out of the same texts at different places: they have the same key and fingerprint in
// the store exactly if all their parts are the same, and it makes no difference how they are read.
func FuzzIdentity(f *testing.F) {
	f.Add("POST/payk1shop.exampletokenq=1text/plainbody", uint64(0x0102030405060708), uint64(0x0102030405060708))
	f.Add("POST/payk1shop.exampletokenq=1text/plainbody", uint64(0x0404020c05030a04), uint64(0x0405010c05030a04))
	f.Add("aaaaaaaaaaaaaaaaaaaaaaaa", uint64(0x0101010101010101), uint64(0x0101010101010201))
	f.Add("1:11:11:12:222:2210:", uint64(0x0201020102010201), uint64(0x0102010201020102))
	f.Add(strings.Repeat("long", 400), uint64(0x01ff01ff01ff01ff), uint64(0x01ff01ff01ff01fe))
	const mostBody = 40
	config := CreateConfig()
	config.Scope = []string{"Host", "Authorization"}
	config.MaxRequestBodyBytes = mostBody
	set, _, err := config.settings()
	if err != nil {
		f.Fatal(err)
	}
	h := &handler{settings: *set}
	f.Fuzz(func(t *testing.T, text string, cuts, otherCuts uint64) {
		a, b := cut(text, cuts), cut(text, otherCuts)
		leaseA, leaseB := a.lease(t, h, len(a[body])), b.lease(t, h, len(b[body]))
		keyA, keyB := leaseA.Key, leaseB.Key
		lowerA, lowerB := strings.ToLower(a[host]), strings.ToLower(b[host])
		sameKey := a[method] == b[method] && a.request(0).URL.EscapedPath() == b.request(0).URL.EscapedPath() && a[key] == b[key] &&
			lowerA == lowerB && a[caller] == b[caller]
		if (keyA == keyB) != sameKey {
			t.Errorf("%q and %q have the same store key: %t", a, b, keyA == keyB)
		}
		printA, printB := leaseA.Fingerprint, leaseB.Fingerprint
		if len(a[body]) <= mostBody && printA != a.lease(t, h, -1).Fingerprint {
			t.Errorf("%q has another fingerprint when it is sent in chunks", a)
		}
		first := func(r request) string { return r[body][:min(len(r[body]), mostBody)] }
		samePrint := a[query] == b[query] && a[contentType] == b[contentType] && first(a) == first(b) && len(a[body]) == len(b[body])
		if (printA == printB) != (samePrint && sameKey) {
			t.Errorf("%q and %q have the same fingerprint: %t", a, b, printA == printB)
		}
	})
}

// Parts of a request.
const (
	method = iota
	path
	key
	host
	caller
	query
	contentType
	body
	parts
)

type request [parts]string

// cut makes a request out of text, whose parts are as long as the bytes of lengths say, the last as long as there is text.
func cut(text string, lengths uint64) request {
	var r request
	for i := range r {
		n := min(len(text), int(lengths>>(56-8*i)&0xff))
		if i == body {
			n = len(text)
		}
		r[i] = text[:n]
		text = text[n:]
	}
	return r
}

func (r request) request(length int) *http.Request {
	return &http.Request{
		Method: r[method], URL: &url.URL{Path: r[path], RawQuery: r[query]}, Host: r[host], ContentLength: int64(length),
		Header: http.Header{"Authorization": {r[caller]}}, Body: io.NopCloser(strings.NewReader(r[body])),
	}
}

// lease checks that the body is afterwards what it was before.
func (r request) lease(t *testing.T, h *handler, length int) *store.Run {
	t.Helper()
	sent := r.request(length)
	held := &reservation{}
	defer unreserve(held)
	taken, err := readBody(h, sent, held)
	if err != nil {
		t.Fatal(err)
	}
	after, err := io.ReadAll(taken.onward)
	if err != nil || string(after) != r[body] {
		t.Errorf("the body is %q after the fingerprint, %v; it was %q", after, err, r[body])
	}
	sent.Header["Content-Type"] = []string{r[contentType]}
	return newRun(h, sent, keyOf(h, r[key]), taken.compared)
}

// FuzzSources reads a value by a source that is written in any way, out of any request. A source has one normal form, and what it
// finds is one value: of a JSON body, the one that encoding/json finds there.
func FuzzSources(f *testing.F) {
	for _, text := range []string{"X-Key", "header:x-key", "Host", "cookie:a", "query:a", "form:a", "json:/a/0/b", "json:/a~1b~0", "json:/", "jwt:sub", "ip", "ip:2", "content", "X-Key + json:/id", "json:/a + content", "json:/~2", "a:b", ""} {
		f.Add(text, "a=1; a=2", "a=1&a=%00", `{"a":[{"b":"x"}],"a/b~":1.0,"":null}`)
		f.Add(text, "1.2.3.4, [::1]:5", "application/x-www-form-urlencoded", "a=1&%zz")
		f.Add(text, "Bearer e30.eyJzdWIiOiJ4In0.", "application/json", strings.Repeat("[", 20000))
		f.Add(text, `session="a"`, "application/json", `{"a":{"0":{"b":true}},"a":1}`)
	}
	f.Fuzz(func(t *testing.T, text, header, other, body string) {
		s := parseSource(text)
		if s == nil {
			return
		}
		again := parseSource(s.text)
		if again == nil || again.text != s.text || again.inBody != s.inBody || len(again.places) != len(s.places) {
			t.Fatalf("%q is written %q, and that %+v", text, s.text, again)
		}
		config := CreateConfig()
		config.MaxRequestBodyBytes = 100_000
		set, _, err := config.settings()
		if err != nil {
			t.Fatal(err)
		}
		h := &handler{settings: *set}
		r := &http.Request{Method: "POST", Host: other, URL: &url.URL{Path: "/", RawQuery: other}, RemoteAddr: header, Header: http.Header{
			"X-Key": {header}, "Cookie": {header}, "Authorization": {header}, "X-Forwarded-For": {header}, "Content-Type": {other},
		}}
		value, state := valueOf(h, s, r, []byte(body))
		if (value != "") != (state == present) && s.places[0].kind != kindHost || state == unread {
			t.Errorf("%q finds %q in state %d", s.text, value, state)
		}
		valueAgain, stateAgain := valueOf(h, again, r, []byte(body))
		if value != valueAgain || state != stateAgain {
			t.Errorf("%q finds %q and %q", s.text, value, valueAgain)
		}
		if p := s.places[0]; len(s.places) == 1 && p.kind == kindJSON {
			want, found := scalarAt(strings.TrimPrefix(body, byteOrderMark), p.path)
			if (state == present && (value != want || !found)) || (state == absent && found && mediaName(r) != formType && len(body) <= 100_000) {
				t.Errorf("%q finds %q in %q in state %d, want %q, %t", s.text, value, body, state, want, found)
			}
		}
	})
}

// scalarAt returns what encoding/json finds at a pointer, if it is a string, number or boolean.
func scalarAt(body string, path []string) (string, bool) {
	d := json.NewDecoder(strings.NewReader(body))
	d.UseNumber()
	var node any
	if !json.Valid([]byte(body)) || d.Decode(&node) != nil {
		return "", false
	}
	for _, token := range path {
		switch n := node.(type) {
		case map[string]any:
			node = n[token]
		case []any:
			i, err := strconv.Atoi(token)
			if err != nil || i < 0 || i >= len(n) || strconv.Itoa(i) != token {
				return "", false
			}
			node = n[i]
		default:
			return "", false
		}
	}
	switch n := node.(type) {
	case string:
		return n, n != ""
	case json.Number:
		return n.String(), true
	case bool:
		return strconv.FormatBool(n), true
	}
	return "", false
}

// FuzzCanonical compares the form in which JSON is compared with values that encoding/json has read: equal ones have one form, and
// others have not.
func FuzzCanonical(f *testing.F) {
	for _, pair := range [][2]string{
		{`{"a":1.0,"b":[1e2,"x"]}`, ` { "b" : [100, "\u0078"], "a":1 }`}, {`[9007199254740993]`, `[9007199254740992]`}, {`{"a":1,"a":2}`, `{"a":2}`}, {`{"a":"\u003a","b":1,"b":2}`, `{"a":":","b":2}`},
		{`[-0.0,0.10,1E+2,"1.0"]`, `[0,1e-1,100,"1.0"]`}, {`["\ud800"]`, `["\ud801"]`}, {`1`, `"1"`}, {`{"x":{"y":1,"z":[1,2]}}`, `{"x":{"z":[1,3]}}`}, {`12345678901234567890`, `1234567890123456789e1`}, {`1e999999999999`, `10e999999999998`},
	} {
		f.Add(pair[0], pair[1])
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		if !json.Valid([]byte(a)) || !json.Valid([]byte(b)) {
			return
		}
		one, two := canonical([]byte(a), nil), canonical([]byte(b), nil)
		if one == nil || two == nil {
			return
		}
		if again := canonical(one, nil); string(again) != string(one) {
			t.Errorf("%q is %q, and that %q", a, one, again)
		}
		if same := exactly(t, a) == exactly(t, b); same != (string(one) == string(two)) {
			t.Errorf("%q and %q are equal: %t; their forms are %q and %q", a, b, same, one, two)
		}
		if without := canonical([]byte(a), []*place{{kind: kindJSON, path: []string{"x", "y"}}}); !json.Valid(without) {
			t.Errorf("%q without /x/y is %q", a, without)
		}
	})
}

// exactly is a JSON text with its numbers as exact fractions. A number that is too long for that skips the test.
func exactly(t *testing.T, text string) string {
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var node any
	err := d.Decode(&node)
	if err != nil {
		t.Fatal(err)
	}
	var exact func(node any) any
	exact = func(node any) any {
		switch n := node.(type) {
		case map[string]any:
			for name, value := range n {
				n[name] = exact(value)
			}
		case []any:
			for i, value := range n {
				n[i] = exact(value)
			}
		case json.Number:
			_, exponent, _ := strings.Cut(strings.ToLower(n.String()), "e")
			if len(strings.TrimLeft(exponent, "+-")) > 3 {
				t.Skip()
			}
			fraction, _ := new(big.Rat).SetString(n.String())
			return []any{"number", fraction.String()}
		}
		return node
	}
	data, err := json.Marshal(exact(node))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// FuzzEndpoints compares the regular expressions that patterns become with a matcher that follows docs/configuration.md word by word.
func FuzzEndpoints(f *testing.F) {
	for _, patterns := range []string{"", "/", "POST /api/payments/", "POST /api/orders/1/", "/*/", "/api/*/1/", "/api/orders/,* /api/critical/", "/a*b*c", "PUT /a/*/b/,/x", "* /*", "post /p", "/a.b(c)[d]|e\\", "POST", "a", "PSOT /a", "/a?b", "/\xff", "/\ufffd", " /a , ,POST  /b "} {
		f.Add(patterns, "POST", "/api/orders/1")
		f.Add(patterns, "GET", "/a/xx/b/c")
		f.Add(patterns, "BREW", "/api/critical/\n*")
	}
	f.Fuzz(func(t *testing.T, text, method, path string) {
		config := CreateConfig()
		config.Endpoints = strings.Split(text, ",")
		set, _, err := config.settings()
		if err != nil {
			_, quoted, _ := strings.Cut(err.Error(), "endpoints: ")
			quoted, quotedErr := strconv.QuotedPrefix(quoted)
			value, unquoteErr := strconv.Unquote(quoted)
			if !errors.Is(err, ErrConfig) || quotedErr != nil || unquoteErr != nil || !strings.Contains(strings.ToUpper(text), strings.ToUpper(value)) {
				t.Errorf("patterns %q: error %v", text, err)
			}
			return
		}
		h := &handler{settings: *set}
		got := protects(h, &http.Request{Method: method, URL: &url.URL{Path: path}})
		want := method != "TRACE" && protectedByTheBook(list(config.Endpoints), method, path)
		if got != want {
			t.Errorf("patterns %q protect %s %q: %t, want %t", text, method, path, got, want)
		}
	})
}

func protectedByTheBook(patterns []string, method, path string) bool {
	usual := method == "POST" || method == "PUT" || method == "PATCH" || method == "DELETE"
	for _, pattern := range patterns {
		fields := strings.Fields(pattern)
		matches := usual
		if len(fields) == 2 {
			matches = fields[0] == "*" || strings.ToUpper(fields[0]) == method
		}
		prefix := fields[len(fields)-1]
		text := string([]rune(path)) // to a regular expression each invalid byte of a path is U+FFFD
		const end = "\xff"           // which text can therefore not have
		short, slashed := strings.CutSuffix(prefix, "/")
		if matches && (begins(text, prefix) || (slashed && begins(text+end, short+end))) {
			return true
		}
	}
	return len(patterns) == 0 && usual
}

// begins reports whether a beginning of path matches pattern, in which * matches any run of characters.
func begins(path, pattern string) bool {
	for i, piece := range strings.Split(pattern, "*") {
		at := strings.Index(path, piece)
		if at < 0 || (i == 0 && at > 0) {
			return false
		}
		path = path[at+len(piece):]
	}
	return true
}
