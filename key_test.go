package idem

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"
	"time"
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
		key := parseKey(c.lines, 10, tokenKey)
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

// build builds the middleware, which is given up when the test ends.
func build(t *testing.T, next http.Handler, config *Config) http.Handler {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	h, err := New(ctx, next, config, t.Name())
	if err != nil {
		t.Fatal(err)
	}
	return h
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
		c := &reservation{}
		defer unreserve(c)
		body, err := readBody(h, r, c)
		if err != nil {
			t.Fatal(err)
		}
		return newRun(h, r, keyOf(h, key), body.compared).Key
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
		if twice {
			t.Errorf("requests %d and %d have one store key %q", other, i, key)
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
		c := &reservation{}
		defer unreserve(c)
		taken, err := readBody(h, r, c)
		if err != nil {
			t.Fatal(err)
		}
		if (taken.streamed != nil) != (len(body) > 10) {
			t.Errorf("a body of %d bytes streams: %t", len(body), taken.streamed != nil)
		}
		after, err := io.ReadAll(taken.onward)
		if err != nil || string(after) != body {
			t.Errorf("the body is %q after the fingerprint, %v; it was %q", after, err, body)
		}
		return newRun(h, r, keyOf(h, "k"), taken.compared).Fingerprint
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
	c := &reservation{}
	defer unreserve(c)
	_, err := readBody(h, r, c)
	if err == nil {
		t.Error("half a body has a fingerprint")
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// TestLargeBodies takes bodies of many lengths, declared or not, while there is much room or little.
func TestLargeBodies(t *testing.T) {
	const most = 300_000
	h := newTestHandler(t, func(c *Config) { c.MaxRequestBodyBytes = most })
	for _, taken := range []int64{0, mostInFlight / 2} {
		for _, size := range []int{1, firstRoom, firstRoom + 1, smallBody, smallBody + 1, 2*smallBody + 1, most, most + 1, 2 * most} {
			for _, declared := range []bool{true, false} {
				name := fmt.Sprintf("%d bytes, declared %t, with %d taken", size, declared, taken)
				reservedBytes.Store(taken)
				body := strings.Repeat("0123456789", size/10+1)[:size]
				var held int64 // at the first read
				first := readerFunc(func([]byte) (int, error) {
					held = reservedBytes.Load() - taken
					return 0, io.EOF
				})
				r := httptest.NewRequest(http.MethodPost, "/?q", io.MultiReader(first, iotest.HalfReader(strings.NewReader(body))))
				r.ContentLength = -1
				if declared {
					r.ContentLength = int64(size)
				}
				c := &reservation{}
				whole, err := readBody(h, r, c)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				data := whole.compared
				want := body
				if size > most {
					want = body[:most] + fmt.Sprint(r.ContentLength)
				}
				if string(data) != want {
					t.Errorf("%s: %d bytes that differ", name, len(data))
				}
				atOnce, paid := int64(firstRoom), int64(min(size, most+1))
				switch {
				case declared && size <= smallBody:
					atOnce, paid = 0, 0
				case declared && taken == 0:
					atOnce = paid
				}
				if held != min(atOnce, most+1) {
					t.Errorf("%s: %d bytes are held at the first read, want %d", name, held, atOnce)
				}
				if c.bytes < paid || c.bytes > 2*paid+firstRoom || reservedBytes.Load() != taken+c.bytes {
					t.Errorf("%s: %d bytes are counted, and %d together", name, c.bytes, reservedBytes.Load())
				}
				types, none := []string{"a/b"}, []string(nil)
				r.Header["Content-Type"] = types
				l := newRun(h, r, keyOf(h, "k"), data)
				sum := sha256.Sum256([]byte(fmt.Sprintf(sameFormat, l.Key, "q", types, none, none, none, none, none, none, data)))
				if got := l.Fingerprint; got != string(sum[:]) {
					t.Errorf("%s: fingerprint %x, want %x", name, got, sum)
				}
				rest, err := io.ReadAll(whole.onward)
				if err != nil || string(rest) != body {
					t.Errorf("%s: %d bytes go on, %v", name, len(rest), err)
				}
				unreserve(c)
			}
		}
	}
	reservedBytes.Store(0)
}

// TestALargeBodyThatDoesNotComeWhole is broken off, or comes while half of the room is taken, with a length that is declared.
func TestALargeBodyThatDoesNotComeWhole(t *testing.T) {
	calls := 0
	next := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls++
		_, _ = io.Copy(w, r.Body)
	})
	config := CreateConfig()
	config.MaxRequestBodyBytes = 5 * smallBody
	h := build(t, next, config)
	plugin, _ := h.(*handler)
	started := time.Now().UnixNano() // what was known before is still
	for i, c := range []struct {
		sent, declared int
		taken          int64
		status         int
	}{
		{2 * smallBody, 2 * smallBody, 0, http.StatusOK},
		{2 * smallBody, 2 * smallBody, mostInFlight / 2, http.StatusOK},
		{2*smallBody - 1, 2 * smallBody, 0, http.StatusBadRequest},
		{0, 2 * smallBody, mostInFlight / 2, http.StatusBadRequest},
		{2 * smallBody, 2 * smallBody, mostInFlight - smallBody, http.StatusServiceUnavailable},
		{5 * smallBody, 5 * smallBody, 0, http.StatusOK},
		{5*smallBody + 1, 5*smallBody + 1, 0, http.StatusOK},
	} {
		reservedBytes.Store(c.taken)
		body := strings.Repeat("0123456789", c.sent/10+1)[:c.sent]
		calls = 0
		for try := range 2 {
			r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
			r.ContentLength = int64(c.declared)
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("X-Request-ID", fmt.Sprint("k", i, "-", started))
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			switch {
			case w.Code != c.status:
				t.Errorf("%+v: %d %s", c, w.Code, w.Body)
			case c.status != http.StatusOK:
			case calls != 1 || w.Body.String() != body:
				t.Errorf("%+v: try %d got %d bytes after %d calls", c, try, w.Body.Len(), calls)
			}
		}
		if held, coming := reservedBytes.Load(), plugin.stats.Coming.Load(); held != c.taken || coming != 0 {
			t.Errorf("%+v: %d bytes are held and %d requests come afterwards", c, held, coming)
		}
	}
	reservedBytes.Store(0)
}

// TestASlowClientHoldsLittle has one that declares much and sends little, while half of the room is taken.
func TestASlowClientHoldsLittle(t *testing.T) {
	h := newTestHandler(t, func(*Config) {})
	reservedBytes.Store(mostInFlight / 2)
	defer reservedBytes.Store(0)
	for _, sent := range []int{0, 100, firstRoom, 100_000} {
		reader, writer := io.Pipe()
		r := httptest.NewRequest(http.MethodPost, "/", reader)
		r.ContentLength = h.maxRequestBody
		c, done := &reservation{}, make(chan error)
		go func() {
			_, err := readBody(h, r, c)
			done <- err
		}()
		_, _ = writer.Write(make([]byte, sent))
		held := reservedBytes.Load() - mostInFlight/2
		if held > int64(2*sent+firstRoom) {
			t.Errorf("after %d bytes %d are held", sent, held)
		}
		writer.CloseWithError(io.ErrUnexpectedEOF)
		err := <-done
		if !errors.Is(err, errIncompleteBody) {
			t.Errorf("after %d bytes of a body: %v", sent, err)
		}
		unreserve(c)
	}
}

// TestABodyThatFindsNoRoomGoesOn has a body that is let through, in observe mode for instance.
func TestABodyThatFindsNoRoomGoesOn(t *testing.T) {
	h := newTestHandler(t, func(*Config) {})
	reservedBytes.Store(mostInFlight - 2*smallBody)
	defer reservedBytes.Store(0)
	body := strings.Repeat("x", 3*smallBody)
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
	c := &reservation{}
	_, err := readBody(h, r, c)
	if !errors.Is(err, errBusy) {
		t.Fatalf("a body that there is no room for: %v", err)
	}
	rest, err := io.ReadAll(r.Body)
	if err != nil || string(rest) != body {
		t.Errorf("%d bytes go on, %v", len(rest), err)
	}
	unreserve(c)
	if held := reservedBytes.Load(); held != mostInFlight-2*smallBody {
		t.Errorf("%d bytes are held afterwards", held)
	}
}

// TestTheLargestBodyHasRoom: what maxRequestBodyBytes may be can be given to a request that is alone, which reads one byte more.
func TestTheLargestBodyHasRoom(t *testing.T) {
	c := &reservation{}
	defer unreserve(c)
	if !reserve(c, mostBody+1) || reserve(c, 1) {
		t.Errorf("%d bytes are held, want all there are, %d", c.bytes, mostInFlight)
	}
}

// keyOf is a key in the header of h.
func keyOf(h *handler, key string) *keyed {
	return &keyed{key: key, from: h.keySources[0], state: present}
}
