package e2e

import (
	"bytes"
	"fmt"
	"math/rand"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
)

// TestWhatTheRequestIs has pairs of requests with one key that are the same request, or are not.
func TestWhatTheRequestIs(t *testing.T) {
	typed := func(contentType string) func(c *call) {
		return func(c *call) { c.header.Set("Content-Type", contentType) }
	}
	set := func(name string, values ...string) func(c *call) {
		return func(c *call) { c.header[http.CanonicalHeaderKey(name)] = values }
	}
	pairs := []struct {
		name     string
		one, two func(c *call)
		same     bool
	}{
		{"case", typed("application/json"), typed("Application/JSON"), true},
		{"charset's case", typed("application/json; charset=utf-8"), typed("application/json; charset=UTF-8"), true},
		{"spaces", typed("application/json; charset=utf-8"), typed("application/json ;charset=utf-8"), true},
		{"quotes", typed(`text/plain;charset="utf-8"`), typed("text/plain; charset=utf-8"), true},
		{"order", typed("text/plain; format=flowed; charset=utf-8"), typed("text/plain; charset=utf-8; format=flowed"), true},
		{"nothing behind", typed("application/json;"), typed("application/json"), true},
		{"another type", typed("application/json"), typed("application/xml"), false},
		{"another charset", typed("text/plain; charset=utf-8"), typed("text/plain; charset=latin1"), false},
		{"a charset", typed("text/plain; charset=utf-8"), typed("text/plain"), false},
		{"a parameter's case", typed("text/plain; version=a"), typed("text/plain; version=A"), false},
		{"no type", typed("no type"), typed("No type"), false},
		{"If-Match", set("If-Match", `"a"`), set("If-Match", `"b"`), false},
		{"If-Match again", set("If-Match", `"a"`), set("If-Match", `"a"`), true},
		{"If-Match and none", set("If-Match", `"a"`), set("X-Other", "a"), false},
		{"If-None-Match", set("If-None-Match", "*"), set("X-Other", "a"), false},
		{"one for another", set("If-Match", "*"), set("If-None-Match", "*"), false},
		{"If-Modified-Since", set("If-Modified-Since", "Thu, 26 Nov 2026 01:00:00 GMT"), set("If-Modified-Since", "Thu, 26 Nov 2026 02:00:00 GMT"), false},
		{"If-Unmodified-Since", set("If-Unmodified-Since", "Thu, 26 Nov 2026 01:00:00 GMT"), set("If-Unmodified-Since", "Thu, 26 Nov 2026 02:00:00 GMT"), false},
		{"If-Range", set("If-Range", `"a"`), set("If-Range", `"b"`), false},
		{"Range", set("Range", "bytes=0-9"), set("Range", "bytes=0-99"), false},
		{"two lines", set("If-Match", `"a"`, `"b"`), set("If-Match", `"a", "b"`), false},
	}
	everywhere(t, func(t *testing.T, e *env) {
		s := e.serve(t, nil, created)
		for i, pair := range pairs {
			one := post("/", fmt.Sprintf("k%d", i)).with(pair.one)
			two := post("/", fmt.Sprintf("k%d", i)).with(pair.two)
			first := s.do(one)
			s.want(first, 201, "first")
			again := s.do(two)
			if pair.same && again.header.Get("Decision") != "replayed" || !pair.same && again.header.Get("Decision") != "mismatch" {
				t.Errorf("%s: %d %s", pair.name, again.status, again.header.Get("Decision"))
			}
		}
		s.calls(int64(len(pairs)))
	})
}

// form is a call with a form of two fields and a file, as a client sends it with this boundary.
func form(t *testing.T, key, boundary, amount string, file []byte) call {
	t.Helper()
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	err := w.SetBoundary(boundary)
	if err != nil {
		t.Fatal(err)
	}
	_ = w.WriteField("amount", amount)
	_ = w.WriteField("to", "bob")
	part, _ := w.CreateFormFile("receipt", "receipt.pdf")
	_, _ = part.Write(file)
	_ = w.Close()
	return post("/", key).with(func(c *call) {
		c.header.Set("Content-Type", w.FormDataContentType())
		c.body = body.String()
	})
}

func TestBoundariesOfFormsDoNotCount(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		s := e.serve(t, hosts.Settings{"maxRequestBodyBytes": 100000}, created)
		for i, size := range []int{10, 3000, 20000, 99000, 99800, 100000, 300000} { // up to more than is read
			file := make([]byte, size)
			_, _ = rand.New(rand.NewSource(int64(i))).Read(file)
			key := fmt.Sprintf("k%d", i)
			c := form(t, key, "----WebKitFormBoundary7MA4YWxkTrZu0gW", "10", file)
			first := s.do(c)
			s.want(first, 201, "first")
			s.wantReplay(first, s.do(c))
			s.wantReplay(first, s.do(form(t, key, "----WebKitFormBoundaryABCDEFGHIJKLMNOP", "10", file)))
			if size < 99000 || size >= 100000 { // else the one is read whole, and the other is not
				s.wantReplay(first, s.do(form(t, key, "short", "10", file)))
				s.wantReplay(first, s.do(form(t, key, "x y"+strings.Repeat("-", 60), "10", file)))
			}
			file[len(file)/4] ^= 1
			s.wantProblem(s.do(form(t, key, "another", "10", file)), 422, "key-reused", "mismatch")
			file[len(file)/4] ^= 1
			s.wantProblem(s.do(form(t, key, "another", "11", file)), 422, "key-reused", "mismatch")
			s.wantProblem(s.do(form(t, key, "another", "10", append(file, 'x'))), 422, "key-reused", "mismatch")
			s.wantProblem(s.do(c.with(func(c *call) { c.body = strings.Replace(c.body, "--\r\n", "\r\n", 1) })), 422, "key-reused", "mismatch")
		}
		// What stands elsewhere in a line is text.
		text := func(boundary, text string) call {
			return form(t, "text", boundary, text, nil)
		}
		s.want(s.do(text("one", "see --one")), 201, "first")
		s.wantProblem(s.do(text("two", "see --two")), 422, "key-reused", "mismatch")
		s.want(s.do(text("two", "see --one")), 201, "replayed")
	})
}

// TestThePathBeforeItWasChanged has the headers by which Traefik's middlewares tell of it; Traefik takes them off what a client
// sends.
func TestThePathBeforeItWasChanged(t *testing.T) {
	for _, host := range []hosts.Host{hosts.Compiled, hosts.Yaegi} {
		t.Run(host.String(), func(t *testing.T) {
			s := serve(t, host, created, hosts.Settings{"statusHeader": "Decision"})
			differ := []call{
				post("/pay", "k"),
				post("/pay", "k", "X-Forwarded-Prefix", "/one"),
				post("/pay", "k", "X-Forwarded-Prefix", "/two"),
				post("/pay", "k", "X-Forwarded-Prefix", "/one", "X-Forwarded-Prefix", "/two"),
				post("/pay", "k", "X-Replaced-Path", "/one"),
				post("/pay", "k", "X-Replaced-Path", "/one", "X-Forwarded-Prefix", "/two"),
			}
			for _, c := range differ {
				s.want(s.do(c), 201, "first")
			}
			for _, c := range differ {
				s.want(s.do(c), 201, "replayed")
			}
		})
	}
}

func TestMiddlewaresAboveThatChangeThePath(t *testing.T) {
	for name, change := range map[string]string{
		"stripPrefix":      "stripPrefix: {prefixes: [/one, /two]}",
		"stripPrefixRegex": `stripPrefixRegex: {regex: ["/(one|two)"]}`,
		"replacePath":      "replacePath: {path: /pay}",
		"replacePathRegex": `replacePathRegex: {regex: "^/(one|two)/(.*)", replacement: "/$2"}`,
	} {
		t.Run(name, func(t *testing.T) {
			b := newBackend(t, created)
			s := siteOf(t, hosts.ServeAs(t, fmt.Sprintf(`
http:
  routers: {ROUTER: {rule: "Host(%sNAME%s)", service: ROUTER, middlewares: [ROUTER-change, ROUTER-idem]}}
  services: {ROUTER: {loadBalancer: {servers: [{url: %q}]}}}
  middlewares:
    ROUTER-change: {%s}
    ROUTER-idem: {plugin: {idem: {statusHeader: Decision}}}
`, "`", "`", b.URL, change)), b)
			one := s.do(post("/one/pay", "k"))
			s.want(one, 201, "first")
			two := s.do(post("/two/pay", "k"))
			s.want(two, 201, "first")
			s.wantReplay(one, s.do(post("/one/pay", "k")))
			s.wantReplay(two, s.do(post("/two/pay", "k")))
			s.calls(2)
		})
	}
}
