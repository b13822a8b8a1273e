package idem

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestParseKey(t *testing.T) {
	long := strings.Repeat("x", 10)
	for _, c := range []struct {
		lines []string
		key   string // empty: not valid
	}{
		{[]string{"abc"}, "abc"},
		{[]string{`"abc"`}, "abc"},
		{[]string{"A-z_0./9"}, "A-z_0./9"},
		{[]string{long}, long},
		{[]string{`"` + long + `"`}, long},
		{[]string{long + "x"}, ""},
		{[]string{`"` + long + `x"`}, ""},
		{[]string{""}, ""},
		{[]string{`""`}, ""},
		{[]string{`"`}, ""},
		{[]string{`"abc`}, ""},
		{[]string{`abc"`}, ""},
		{[]string{`""abc""`}, ""},
		{[]string{"a\nb"}, ""},
		{[]string{"abc\n"}, ""},
		{[]string{"a b"}, ""},
		{[]string{"a", "a"}, ""},
		{nil, ""},
	} {
		key := parseKey(c.lines, 10)
		if key != c.key {
			t.Errorf("parseKey(%q) = %q, want %q", c.lines, key, c.key)
		}
	}
}

func newTestHandler(t *testing.T, change func(c *Config)) *handler {
	t.Helper()
	config := CreateConfig()
	change(config)
	set, _, err := config.settings()
	if err != nil {
		t.Fatal(err)
	}
	return &handler{settings: *set}
}

// TestStoreKeysCannotBeShifted has requests whose parts, put one after the other, are the same text.
func TestStoreKeysCannotBeShifted(t *testing.T) {
	h := newTestHandler(t, func(c *Config) { c.Scope = []string{"Host", "A", "B"} })
	request := func(method, host, path string, header http.Header) *http.Request {
		r := httptest.NewRequest(method, "http://x"+path, nil)
		r.Host = host
		r.Header = header
		return r
	}
	storeKey := func(r *http.Request, key string) string {
		body, _, err := takeBody(h, r)
		if err != nil {
			t.Fatal(err)
		}
		return newLease(h, r, key, nil, body).Key
	}
	seen := map[string]int{}
	for i, c := range []struct {
		r   *http.Request
		key string
	}{
		{request("POST", "x", "/", http.Header{}), "ab"},
		{request("POST", "x", "/a", http.Header{}), "b"},
		{request("POST", "x", "/", http.Header{"A": {"ab"}}), "ab"},
		{request("POST", "x", "/", http.Header{"A": {"a"}, "B": {"b"}}), "ab"},
		{request("POST", "x", "/", http.Header{"B": {"ab"}}), "ab"},
		{request("POST", "x", "/", http.Header{"A": {"a", "b"}}), "ab"},
		{request("POST", "x", "/", http.Header{"A": {""}}), "ab"},
		{request("POST", "x1:a", "/", http.Header{}), "ab"},
		{request("PUT", "x", "/", http.Header{}), "ab"},
		{request("POST", "x", "/a%2Fb", http.Header{}), "ab"},
		{request("POST", "x", "/a/b", http.Header{}), "ab"},
	} {
		key := storeKey(c.r, c.key)
		other, twice := seen[key]
		if twice || len(key) != 32 {
			t.Errorf("requests %d and %d have one store key %x", other, i, key)
		}
		seen[key] = i
	}
	upper := storeKey(request("POST", "SHOP.example", "/", http.Header{}), "k")
	lower := storeKey(request("POST", "shop.example", "/", http.Header{}), "k")
	if upper != lower {
		t.Error("the case of a host name sets callers apart")
	}
}

func TestFingerprints(t *testing.T) {
	h := newTestHandler(t, func(c *Config) { c.MaxRequestBodyBytes = 10 })
	take := func(url, contentType, body string) string {
		r := httptest.NewRequest(http.MethodPost, url, strings.NewReader(body))
		r.Header.Set("Content-Type", contentType)
		data, rest, err := takeBody(h, r)
		if err != nil {
			t.Fatal(err)
		}
		if (rest != nil) != (len(body) > 10) {
			t.Errorf("a body of %d bytes streams: %t", len(body), rest != nil)
		}
		after, err := io.ReadAll(r.Body)
		if err != nil || string(after) != body {
			t.Errorf("the body is %q after the fingerprint, %v; it was %q", after, err, body)
		}
		return newLease(h, r, "k", r.Header["Content-Type"], data).Fingerprint
	}
	first := take("/?a", "t", "body")
	if first != take("/?a", "t", "body") {
		t.Error("the same request has another fingerprint")
	}
	for _, other := range []string{take("/?b", "t", "body"), take("/?a", "u", "body"), take("/?a", "t", "bodY"), take("/?a", "tb", "ody"), take("/?at", "", "body")} {
		if first == other {
			t.Error("another request has the same fingerprint")
		}
	}
	long := take("/", "t", "0123456789abc")
	if long != take("/", "t", "0123456789xyz") || long == take("/", "t", "0123456789abcd") || long == take("/", "t", "x123456789abc") {
		t.Error("of a long body the first 10 bytes and the length count")
	}
}

func TestABrokenBodyHasNoFingerprint(t *testing.T) {
	h := newTestHandler(t, func(*Config) {})
	r := httptest.NewRequest(http.MethodPost, "/", io.MultiReader(bytes.NewReader([]byte("half")), brokenReader{}))
	_, _, err := takeBody(h, r)
	if err == nil {
		t.Error("half a body has a fingerprint")
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
