package behaviour

import (
	"bytes"
	"fmt"
	"math/rand"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// TestWhatTheRequestIs has pairs of requests with one key that are the same request, or are not.
func TestWhatTheRequestIs(t *testing.T) {
	typed := func(contentType string) func(c *rig.Call) {
		return func(c *rig.Call) { c.Header.Set("Content-Type", contentType) }
	}
	set := func(name string, values ...string) func(c *rig.Call) {
		return func(c *rig.Call) { c.Header[http.CanonicalHeaderKey(name)] = values }
	}
	pairs := []struct {
		name     string
		one, two func(c *rig.Call)
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
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, nil, rig.Created)
		for i, pair := range pairs {
			one := rig.Post("/", fmt.Sprintf("k%d", i)).With(pair.one)
			two := rig.Post("/", fmt.Sprintf("k%d", i)).With(pair.two)
			first := s.Do(one)
			s.Want(first, 201, "first")
			again := s.Do(two)
			if pair.same && again.Header.Get("Decision") != "replayed" || !pair.same && again.Header.Get("Decision") != "mismatch" {
				t.Errorf("%s: %d %s", pair.name, again.Status, again.Header.Get("Decision"))
			}
		}
		s.Calls(int64(len(pairs)))
	})
}

// form is a call with a form of two fields and a file, as a client sends it with this boundary.
func form(t *testing.T, key, boundary, amount string, file []byte) rig.Call {
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
	return rig.Post("/", key).With(func(c *rig.Call) {
		c.Header.Set("Content-Type", w.FormDataContentType())
		c.Body = body.String()
	})
}

func TestBoundariesOfFormsDoNotCount(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"maxRequestBodyBytes": 100000}, rig.Created)
		for i, size := range []int{10, 3000, 20000, 99000, 99800, 100000, 300000} { // up to more than is read
			file := make([]byte, size)
			_, _ = rand.New(rand.NewSource(int64(i))).Read(file)
			key := fmt.Sprintf("k%d", i)
			c := form(t, key, "----WebKitFormBoundary7MA4YWxkTrZu0gW", "10", file)
			first := s.Do(c)
			s.Want(first, 201, "first")
			s.WantReplay(first, s.Do(c))
			s.WantReplay(first, s.Do(form(t, key, "----WebKitFormBoundaryABCDEFGHIJKLMNOP", "10", file)))
			if size < 99000 || size >= 100000 { // else the one is read whole, and the other is not
				s.WantReplay(first, s.Do(form(t, key, "short", "10", file)))
				s.WantReplay(first, s.Do(form(t, key, "x y"+strings.Repeat("-", 60), "10", file)))
			}
			file[len(file)/4] ^= 1
			s.WantProblem(s.Do(form(t, key, "another", "10", file)), 422, "key-reused", "mismatch")
			file[len(file)/4] ^= 1
			s.WantProblem(s.Do(form(t, key, "another", "11", file)), 422, "key-reused", "mismatch")
			s.WantProblem(s.Do(form(t, key, "another", "10", append(file, 'x'))), 422, "key-reused", "mismatch")
			s.WantProblem(s.Do(c.With(func(c *rig.Call) { c.Body = strings.Replace(c.Body, "--\r\n", "\r\n", 1) })), 422, "key-reused", "mismatch")
		}
		// What stands elsewhere in a line is text.
		text := func(boundary, text string) rig.Call {
			return form(t, "text", boundary, text, nil)
		}
		s.Want(s.Do(text("one", "see --one")), 201, "first")
		s.WantProblem(s.Do(text("two", "see --two")), 422, "key-reused", "mismatch")
		s.Want(s.Do(text("two", "see --one")), 201, "replayed")
	})
}

// TestThePathBeforeItWasChanged has the headers by which Traefik's middlewares tell of it; Traefik takes them off what a client
// sends.
func TestThePathBeforeItWasChanged(t *testing.T) {
	for _, host := range []hosts.Host{hosts.Compiled, hosts.Yaegi} {
		t.Run(host.String(), func(t *testing.T) {
			s := rig.Serve(t, host, rig.Created, hosts.Settings{"statusHeader": "Decision"})
			differ := []rig.Call{
				rig.Post("/pay", "k"),
				rig.Post("/pay", "k", "X-Forwarded-Prefix", "/one"),
				rig.Post("/pay", "k", "X-Forwarded-Prefix", "/two"),
				rig.Post("/pay", "k", "X-Forwarded-Prefix", "/one", "X-Forwarded-Prefix", "/two"),
				rig.Post("/pay", "k", "X-Replaced-Path", "/one"),
				rig.Post("/pay", "k", "X-Replaced-Path", "/one", "X-Forwarded-Prefix", "/two"),
			}
			for _, c := range differ {
				s.Want(s.Do(c), 201, "first")
			}
			for _, c := range differ {
				s.Want(s.Do(c), 201, "replayed")
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
			b := rig.NewBackend(t, rig.Created)
			s := rig.SiteOf(t, hosts.ServeAs(t, fmt.Sprintf(`
http:
  routers: {ROUTER: {rule: "Host(%sNAME%s)", service: ROUTER, middlewares: [ROUTER-change, ROUTER-idem]}}
  services: {ROUTER: {loadBalancer: {servers: [{url: %q}]}}}
  middlewares:
    ROUTER-change: {%s}
    ROUTER-idem: {plugin: {idem: {statusHeader: Decision}}}
`, "`", "`", b.URL, change)), b)
			one := s.Do(rig.Post("/one/pay", "k"))
			s.Want(one, 201, "first")
			two := s.Do(rig.Post("/two/pay", "k"))
			s.Want(two, 201, "first")
			s.WantReplay(one, s.Do(rig.Post("/one/pay", "k")))
			s.WantReplay(two, s.Do(rig.Post("/two/pay", "k")))
			s.Calls(2)
		})
	}
}
