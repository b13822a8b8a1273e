package behaviour

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// post is a request without the usual header, with this body of this type.
func post(path, contentType, body string, more ...string) rig.Call {
	return rig.Post(path, "", more...).With(func(c *rig.Call) {
		c.Body = body
		c.Header.Del("Content-Type")
		if contentType != "" {
			c.Header.Set("Content-Type", contentType)
		}
	})
}

func jsonPost(body string, more ...string) rig.Call {
	return post("/", "application/json", body, more...)
}

func formPost(body string) rig.Call { return post("/", "application/x-www-form-urlencoded", body) }

// bearer is a token with these claims. Nobody checks its signature.
func bearer(claims string) string {
	return "Bearer " + base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
}

// TestSourcesOfKeys has, for each source, requests with one key, requests with other keys, requests with none, and requests whose
// key is not valid.
func TestSourcesOfKeys(t *testing.T) {
	twice := func(c rig.Call, name, value string) rig.Call {
		return c.With(func(c *rig.Call) { c.Header.Add(name, value) })
	}
	for _, c := range []struct {
		key                         any
		same, others, none, invalid []rig.Call
	}{
		{
			key:     "header:X-Key",
			same:    []rig.Call{rig.Post("/", "", "X-Key", "a"), rig.Post("/", "", "x-key", `"a"`)},
			others:  []rig.Call{rig.Post("/", "", "X-Key", "b")},
			none:    []rig.Call{rig.Post("/", "a"), rig.Post("/", "", "X-Key", "")},
			invalid: []rig.Call{rig.Post("/", "", "X-Key", "a b"), rig.Post("/", "", "X-Key", "a", "X-Key", "a")},
		},
		{
			key:    "cookie:session",
			same:   []rig.Call{rig.Post("/", "", "Cookie", "session=a"), rig.Post("/", "", "Cookie", "x=session=b;  session =a ; y=1"), rig.Post("/", "", "Cookie", "xsession=c", "Cookie", "session=a")},
			others: []rig.Call{rig.Post("/", "", "Cookie", `session="a"`), rig.Post("/", "", "Cookie", "session=b"), rig.Post("/", "", "Cookie", `session={"a":1}`)},
			none:   []rig.Call{rig.Post("/", ""), rig.Post("/", "", "Cookie", "session="), rig.Post("/", "", "Cookie", "Session=a; xsession=a; session")},
			invalid: []rig.Call{
				rig.Post("/", "", "Cookie", "session=a; session=a"), rig.Post("/", "", "Cookie", "session=a", "Cookie", "session=b"),
				rig.Post("/", "", "Cookie", "session=é"), rig.Post("/", "", "Cookie", "session="+strings.Repeat("a", 129)),
			},
		},
		{
			key:     "query:id",
			same:    []rig.Call{rig.Post("/?id=a", ""), rig.Post("/?%69d=%61", "")},
			others:  []rig.Call{rig.Post("/?id=a+b", ""), rig.Post("/?id=A", "")},
			none:    []rig.Call{rig.Post("/", ""), rig.Post("/?id=", ""), rig.Post("/?ID=a", "")},
			invalid: []rig.Call{rig.Post("/?id=a&id=a", ""), rig.Post("/?id=%00", ""), rig.Post("/?id=a&x=%zz", ""), rig.Post("/?id=a;id=b", ""), rig.Post("/?id=a"+strings.Repeat("&x", 1000), "")},
		},
		{
			key:  "form:token",
			same: []rig.Call{formPost("token=a&x=1"), formPost("x=1&tok%65n=a"), post("/", "Application/x-www-form-urlencoded ; charset=utf-8", "token=a&x=1"), post("/?token=b", "application/x-www-form-urlencoded", "token=a&x=1")},
			none: []rig.Call{
				formPost("x=1"), formPost("token="), formPost(""), post("/?token=a", "application/x-www-form-urlencoded", "x=1"),
				post("/", "text/plain", "token=a"), post("/", "", "token=a"), jsonPost(`{"token":"a"}`),
			},
			others: []rig.Call{formPost("token=b")},
			invalid: []rig.Call{
				formPost("token=a&token=a"), formPost("token=%00"), formPost("token=%zz"), formPost("token=a&x=" + strings.Repeat("1", 2000)),
				twice(formPost("token=a"), "Content-Type", "text/plain"), formPost("token=a").Headers("Content-Encoding", "gzip"),
			},
		},
		{
			key: "json:/data/0/a~1b~0/id",
			same: []rig.Call{
				jsonPost(`{"data":[{"a/b~":{"id":"a"}}]}`), jsonPost("\ufeff{\"x\":[1,{}], \"data\":[{\"a/b~\":{\"\\u0069d\":\"\\u0061\"}}]}"),
				post("/", "text/plain; charset=UTF-8", `{"data":[{"a/b~":{"id":"a"}}]}`), post("/", "", `{"data":[{"a/b~":{"id":"a"}}]}`), formPost(`{"data":[{"a/b~":{"id":"a"}}]}`), post("/", "Application/CloudEvents+JSON", ` {"data" : [ {"a/b~": {"id":"a"} } ] } `),
			},
			others: []rig.Call{
				jsonPost(`{"data":[{"a/b~":{"id":"b c"}}]}`), jsonPost(`{"data":[{"a/b~":{"id":1}}]}`), jsonPost(`{"data":[{"a/b~":{"id":1.0}}]}`), jsonPost(`{"data":[{"a/b~":{"id":true}}]}`),
			},
			none: []rig.Call{
				jsonPost(`{"data":[{"a/b~":{"id":null}}]}`), jsonPost(`{"data":[{"a/b~":{"id":""}}]}`), jsonPost(`{"data":[{"a/b~":{"ID":"a"}}]}`), jsonPost(`{"data":[]}`), jsonPost(`{"data":{"00":1}}`),
				jsonPost(`{"data":[{"a/b~":[{"id":"a"}]}]}`), jsonPost(`[]`), jsonPost(`"data"`), jsonPost(`null`), jsonPost(""), post("/", "text/plain", "data"), post("/", "image/png", "\x89PNG{"),
				formPost(`data=1`), formPost(strings.Repeat("a", 2000)), post("/", "text/plain", "[INFO] up"), post("/", "text/plain", "{{.id}}"), post("/", "application/x-ndjson", "{\"data\":[]}\n{\"data\":[]}\n"),
				post("/", "application/x-ndjson", `{"data":[]}`+"\n"+`{"x":"`+strings.Repeat("x", 2000)+`"}`),
			},
			invalid: []rig.Call{
				jsonPost(`{"data":[{"a/b~":{"id":"a","id":"a"}}]}`), jsonPost(`{"data":[],"data":[{"a/b~":{"id":"a"}}]}`), jsonPost(`{"data":[{"a/b~":{"id":"a"}}]`), jsonPost(`{"data":[{"a/b~":{"id":"a"}}]} x`),
				jsonPost(`{"data":[{"a/b~":{"id":{}}}]}`), jsonPost(`{"data":[{"a/b~":{"id":["a"]}}]}`), jsonPost(`{"data":[{"a/b~":{"id":"\u0000"}}]}`), jsonPost(`{"data":[{"a/b~":{"id":"é"}}]}`), jsonPost(`{"data":[{"a/b~":{"id":"\ud800"}}]}`),
				jsonPost(`{"x":"` + strings.Repeat("x", 2000) + `","data":[{"a/b~":{"id":"a"}}]}`), jsonPost(strings.Repeat("[", 1000)), jsonPost(`{"data":[{"a/b~":{"id":"a"}}]}`).Headers("Content-Encoding", "br"),
				twice(jsonPost(`{"data":[{"a/b~":{"id":"a"}}]}`), "Content-Type", "text/plain"), jsonPost("\xff\xfe{\x00}\x00"),
				post("/", "", `{"data":[{"a/b~":{"id":"a"}}]`), post("/", "text/plain", "{"), formPost("\ufeff\r\n [ -"), post("/", "", `{"id":"a",}`), post("/", "", strings.Repeat("[", 1000)),
				post("/", "text/plain", `{"data":[{"a/b~":{"id":"a"}}],"x":"`+strings.Repeat("x", 2000)+`"}`), post("/", "", `{"data":[{"a/b~":{"id":"a"}}]}`+strings.Repeat(" ", 2000)),
				post("/", "text/plain", `{"data":[{"a/b~":{"id":"a"}}]}`).Headers("Content-Encoding", "br"),
			},
		},
		{ // objects in objects
			key:    "json:/a/b/c",
			same:   []rig.Call{jsonPost(`{"a":{"b":{"c":"k"}}}`), jsonPost(`{"x":{"b":1},"a" : {"y":[],"b"	:	{ "d":{}, "c" :"k","e":1} , "z":{"b":{"c":"l"}}},"b":2}`)},
			others: []rig.Call{jsonPost(`{"a":{"b":{"c":"l"}}}`)},
			none:   []rig.Call{jsonPost(`{"a":{"b":{}},"c":1}`), jsonPost(`{"a":{"b":"c"}}`), jsonPost(`{"a":{"b":["c"]}}`), jsonPost(`{"a":{},"b":{"c":"k"}}`), jsonPost(`{"a":null}`)},
			invalid: []rig.Call{
				jsonPost(`{"a":{"b":{"c":"k"}},"a":1}`), jsonPost(`{"a":{"b":{"c":"k"},"b":{}}}`), jsonPost(`{"a":{},"a":{"b":{"c":"k"}}}`), jsonPost(`{"a":{"b":{"c":"k","d":1,"c":"k"}}}`),
				jsonPost(`{"a":{"b":{"c":{}}}}`), jsonPost(`{"a":{"b":1,"b":{"c":"k"}}}`),
			},
		},
		{
			key:    "jwt:sub",
			same:   []rig.Call{rig.Post("/", "", "Authorization", bearer(`{"sub":"a"}`)), rig.Post("/", "", "Authorization", "bEARER"+strings.TrimPrefix(bearer(`{"sub":"a"}`), "Bearer")), rig.Post("/", "", "Authorization", strings.Replace(bearer(`{"sub":"a"}`), " ", " \t", 1)), rig.Post("/", "", "Authorization", strings.Replace(bearer(`{"sub":"a"}`), " ", "\t", 1))},
			others: []rig.Call{rig.Post("/", "", "Authorization", bearer(`{"sub":"b"}`)), rig.Post("/", "", "Authorization", bearer(`{"sub":17}`))},
			none:   []rig.Call{rig.Post("/", ""), rig.Post("/", "", "Authorization", "Basic YTpi"), rig.Post("/", "", "Authorization", bearer(`{"iss":"a"}`)), rig.Post("/", "", "Authorization", bearer(`["sub"]`))},
			invalid: []rig.Call{
				rig.Post("/", "", "Authorization", "Bearer opaque"), rig.Post("/", "", "Authorization", "Bearer a.b"), rig.Post("/", "", "Authorization", "Bearer a.b.c.d.e"), rig.Post("/", "", "Authorization", "Bearer"),
				rig.Post("/", "", "Authorization", "Bearer a."+base64.URLEncoding.EncodeToString([]byte(`{"sub":"abc"}`))+".c"), // with padding
				rig.Post("/", "", "Authorization", bearer(`{"sub":"a"`)), rig.Post("/", "", "Authorization", bearer(`{"sub":"a","sub":"a"}`)), rig.Post("/", "", "Authorization", bearer(`{"sub":["a"]}`)),
				rig.Post("/", "", "Authorization", bearer(`{"sub":"a"}`), "Authorization", bearer(`{"sub":"a"}`)), rig.Post("/", "", "Authorization", "Basic YTpi", "Authorization", bearer(`{"sub":"a"}`)),
			},
		},
		{
			key:    []any{"Ce-Source + json:/id + query:n"},
			same:   []rig.Call{jsonPost(`{"id":"a"}`, "Ce-Source", "https://x/y").With(func(c *rig.Call) { c.Path = "/?n=1" })},
			others: []rig.Call{jsonPost(`{"id":"a"}`, "Ce-Source", "https://x/y").With(func(c *rig.Call) { c.Path = "/?n=2" }), jsonPost(`{"id":"a1"}`, "Ce-Source", "https://x/y").With(func(c *rig.Call) { c.Path = "/?n=1" })},
			none:   []rig.Call{jsonPost(`{"id":"a"}`), jsonPost(`{"id":"a"}`, "Ce-Source", "https://x/y"), rig.Post("/?n=1", "")},
			invalid: []rig.Call{
				jsonPost(`{"id":["a"]}`, "Ce-Source", "x").With(func(c *rig.Call) { c.Path = "/?n=2" }), jsonPost(`{"id":"a"}`, "Ce-Source", "x", "Ce-Source", "x").With(func(c *rig.Call) { c.Path = "/?n=2" }),
				jsonPost(`{"id":"`+strings.Repeat("a", 64)+`"}`, "Ce-Source", strings.Repeat("b", 65)).With(func(c *rig.Call) { c.Path = "/?n=2" }),
			},
		},
		{
			key:     "X-Key, json:/id, query:id",
			same:    []rig.Call{jsonPost(`{"id":"b"}`, "X-Key", "a"), jsonPost(`{"id":"b"}`, "X-Key", "a")},
			others:  []rig.Call{jsonPost(`{"id":"a"}`), rig.Post("/?id=a", ""), rig.Post("/?id=a", "", "X-Key", "b")},
			none:    []rig.Call{jsonPost(`{}`), rig.Post("/?x", "")},
			invalid: []rig.Call{jsonPost(`{}`, "X-Key", "é"), jsonPost(`{"id":"é"}`)},
		},
	} {
		t.Run(fmt.Sprint(c.key), func(t *testing.T) {
			rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
				t.Parallel()
				e := &rig.Env{Host: host}
				s := e.Serve(t, hosts.Settings{"key": c.key, "maxRequestBodyBytes": 1500, "onMismatch": "replay", "scope": "none"}, echo)
				first := s.Do(c.same[0])
				s.Want(first, 201, "first")
				for i, call := range c.same {
					t.Log("the same", i)
					s.WantReplay(first, s.Do(call))
				}
				for i, call := range c.others {
					t.Log("another", i)
					other := s.Do(call)
					s.Want(other, 201, "first")
					s.WantReplay(other, s.Do(call))
				}
				for i, call := range c.none {
					t.Log("none", i)
					for range 2 {
						passed := s.Do(call)
						s.Want(passed, 201, "")
						if string(passed.Body) != call.Body {
							t.Errorf("the backend got %q, want %q", passed.Body, call.Body)
						}
					}
				}
				for i, call := range c.invalid {
					t.Log("invalid", i)
					s.WantProblem(s.Do(call), 400, "invalid-key", "invalid")
				}
				s.Calls(int64(1 + len(c.others) + 2*len(c.none)))
				required := e.Serve(t, hosts.Settings{"key": c.key, "maxRequestBodyBytes": 1500, "required": true, "onInvalidKey": "ignore"}, echo)
				required.Want(required.Do(c.same[0]), 201, "first")
				for i, call := range append(c.none, c.invalid...) {
					t.Log("required", i)
					required.WantProblem(required.Do(call), 400, "missing-key", "missing")
				}
				required.Calls(1)
			})
		})
	}
}

// echo answers with the body of the request.
func echo(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	w.WriteHeader(http.StatusCreated)
	_, _ = w.Write(body)
}

// TestCallers has callers who are known by something else than Authorization: each has answers of its own, and gets them again.
func TestCallers(t *testing.T) {
	for scope, c := range map[string]struct {
		callers []rig.Call
		same    rig.Call   // another request of the first caller
		nobody  []rig.Call // requests of one caller who is not known
		unclear []rig.Call // requests whose caller cannot be told
	}{
		"Host, cookie:session": {
			callers: []rig.Call{rig.Post("/", "k", "Cookie", "session=alice"), rig.Post("/", "k", "Cookie", "session=bob"), rig.Post("/", "k", "Cookie", `session="bob"`), rig.Post("/", "k", "Cookie", `session={"user": "bob"}`)},
			same:    rig.Post("/", "k", "Cookie", "theme=dark; session=alice; _ga=1"),
			nobody:  []rig.Call{rig.Post("/", "k"), rig.Post("/", "k", "Cookie", "theme=dark"), rig.Post("/", "k", "Cookie", "session=")},
			unclear: []rig.Call{rig.Post("/", "k", "Cookie", "session=alice; session=bob"), rig.Post("/", "k", "Cookie", "session=alice", "Cookie", "session=alice")},
		},
		"Host, jwt:sub": {
			callers: []rig.Call{rig.Post("/", "k", "Authorization", bearer(`{"sub":"alice","exp":1}`)), rig.Post("/", "k", "Authorization", bearer(`{"sub":"bob","exp":1}`))},
			same:    rig.Post("/", "k", "Authorization", bearer(`{"sub":"alice","exp":2}`)),
			nobody:  []rig.Call{rig.Post("/", "k"), rig.Post("/", "k", "Authorization", "Basic YTpi"), rig.Post("/", "k", "Authorization", bearer(`{"iss":"i"}`))},
			unclear: []rig.Call{rig.Post("/", "k", "Authorization", "Basic YTpi", "Authorization", bearer(`{"sub":"alice"}`)), rig.Post("/", "k", "Authorization", "", "Authorization", bearer(`{"sub":"bob"}`)), rig.Post("/", "k", "Authorization", "Bearer opaque"), rig.Post("/", "k", "Authorization", bearer(`{"sub":"alice","sub":"bob"}`))},
		},
		"json:/tenant, X-User": {
			callers: []rig.Call{
				rig.Post("/", "k").With(func(c *rig.Call) { c.Body = `{"tenant":"alice"}` }), rig.Post("/", "k").With(func(c *rig.Call) { c.Body = `{"tenant":"bob"}` }),
				rig.Post("/", "k", "X-User", "alice"), rig.Post("/", "k", "X-User", "alice", "X-User", "bob"), rig.Post("/", "k", "X-User", "alice").With(func(c *rig.Call) { c.Body = `{"tenant":"alice"}` }),
			},
			same:    rig.Post("/", "k").With(func(c *rig.Call) { c.Body = ` { "tenant" : "\u0061lice" } ` }),
			nobody:  []rig.Call{rig.Post("/", "k"), rig.Post("/", "k").With(func(c *rig.Call) { c.Body = `{"tenant":""}` })},
			unclear: []rig.Call{rig.Post("/", "k").With(func(c *rig.Call) { c.Body = `{"tenant":"alice"` }), rig.Post("/", "k").With(func(c *rig.Call) { c.Body = `{"tenant":["alice"]}` })},
		},
		"X-Tenant + query:user": {
			callers: []rig.Call{rig.Post("/?user=b", "k", "X-Tenant", "a"), rig.Post("/?user=ab", "k", "X-Tenant", "a"), rig.Post("/?user=b", "k", "X-Tenant", "aa"), rig.Post("/?user=b", "k", "X-Tenant", `a"b`)},
			same:    rig.Post("/?x=1&user=b", "k", "X-Tenant", "a"),
			nobody:  []rig.Call{rig.Post("/", "k", "X-Tenant", "a"), rig.Post("/?user=b", "k")},
			unclear: []rig.Call{rig.Post("/?user=b&user=a", "k", "X-Tenant", "a")},
		},
	} {
		t.Run(scope, func(t *testing.T) {
			rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
				t.Parallel()
				e := &rig.Env{Host: host}
				s := e.Serve(t, hosts.Settings{"scope": scope, "onMismatch": "replay"}, rig.Created)
				var answers []rig.Answer
				for i, call := range append(c.callers, c.nobody[0]) {
					t.Log("caller", i)
					answers = append(answers, s.Do(call))
					s.Want(answers[i], 201, "first")
				}
				for i, call := range append(c.callers, c.nobody[0]) {
					t.Log("caller again", i)
					s.WantReplay(answers[i], s.Do(call))
				}
				s.WantReplay(answers[0], s.Do(c.same))
				for _, call := range c.nobody {
					s.WantReplay(answers[len(c.callers)], s.Do(call))
				}
				for i, call := range c.unclear {
					t.Log("unclear", i)
					s.WantProblem(s.Do(call), 400, "missing-caller", "missing")
				}
				s.Calls(int64(len(answers)))
				strict := e.Serve(t, hosts.Settings{"scope": scope, "requireCaller": true}, rig.Created)
				for _, call := range append(c.nobody, c.unclear...) {
					strict.WantProblem(strict.Do(call), 400, "missing-caller", "missing")
				}
				strict.Want(strict.Do(c.callers[0].With(func(c *rig.Call) { c.Header.Del("X-Request-ID") })), 201, "")
				strict.WantRunOf(c.callers[0])
				strict.Calls(2)
			})
		})
	}
}

// TestACallerWithoutAuthorization is refused where one has to be known.
func TestACallerWithoutAuthorization(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"requireCaller": "true"}, rig.Created)
		s.WantProblem(s.Do(rig.Post("/", "k")), 400, "missing-caller", "missing")
		s.WantProblem(s.Do(rig.Post("/", "k", "Authorization", "")), 400, "missing-caller", "missing")
		s.WantRunOf(rig.Post("/", "k", "Authorization", "Basic YTpi"))
		s.Want(s.Do(rig.Post("/", "")), 201, "")
		s.Calls(2)
	})
}

// TestAddresses has clients at two addresses of this machine.
func TestAddresses(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"scope": "ip"}, rig.Created)
		from := func(address string) *rig.Site {
			client := s.Client()
			client.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}).DialContext(ctx, "tcp", s.Addr)
			}
			t.Cleanup(client.CloseIdleConnections)
			return &rig.Site{Site: s.Site, T: t, HTTP: client, Backend: s.Backend}
		}
		for _, address := range []string{"127.0.0.1", "127.0.0.2"} {
			s.Want(from(address).Do(rig.Post("/", "k")), 201, "first")
			s.Want(from(address).Do(rig.Post("/", "k", "X-Forwarded-For", "127.0.0.3")), 201, "replayed")
		}
		s.Calls(2)
	})
}

// TestForwardedAddresses has proxies before this one. Traefik itself takes X-Forwarded-For off what comes from one that it does
// not trust.
func TestForwardedAddresses(t *testing.T) {
	for _, host := range []hosts.Host{hosts.Compiled, hosts.Yaegi} {
		t.Run(host.String(), func(t *testing.T) {
			s := rig.Serve(t, host, rig.Created, hosts.Settings{"statusHeader": "Decision", "scope": "ip:2", "requireCaller": true})
			via := func(lines ...string) rig.Call {
				return rig.Post("/", "k").With(func(c *rig.Call) { c.Header["X-Forwarded-For"] = lines })
			}
			first := s.Do(via("192.0.2.1, 10.0.0.1"))
			s.Want(first, 201, "first")
			for _, same := range [][]string{{"192.0.2.1,10.0.0.2"}, {"junk, 192.0.2.1:4711, 10.0.0.1"}, {"192.0.2.9", "::ffff:192.0.2.1", "junk"}} {
				s.WantReplay(first, s.Do(via(same...)))
			}
			s.Want(s.Do(via("192.0.2.1, 192.0.2.2, 10.0.0.1")), 201, "first")
			s.Want(s.Do(via("2001:DB8:0::1, 10.0.0.1")), 201, "first")
			s.Want(s.Do(via("[2001:db8::1]:443, 10.0.0.1")), 201, "replayed")
			for _, none := range [][]string{nil, {"192.0.2.1"}, {"unknown, 10.0.0.1"}, {", 10.0.0.1"}, {strings.Repeat("192.0.2.1, ", 6000) + "10.0.0.1"}} {
				s.WantProblem(s.Do(via(none...)), 400, "missing-caller", "missing")
			}
			s.Calls(3)
		})
	}
}

// TestHeadersNamedLikeSources are headers wherever a setting says so.
func TestHeadersNamedLikeSources(t *testing.T) {
	for name, setting := range map[string]hosts.Settings{"ip": {"header": "ip"}, "content": {"header": "content"}, "Ip": {"key": "header:ip"}} {
		rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
			e := &rig.Env{Host: host}
			s := e.Serve(t, setting, rig.Created)
			s.WantRunOf(rig.Post("/", "", name, "a"))
			s.Want(s.Do(rig.Post("/", "", name, "b")), 201, "first")
			s.Want(s.Do(rig.Post("/", "")), 201, "")
			s.Calls(3)
		})
	}
}

// TestKeyFormats has keys that each format allows, and others.
func TestKeyFormats(t *testing.T) {
	for format, c := range map[string]struct{ valid, invalid []string }{
		"token":           {[]string{"abc", `"abcd"`, "A-z_0./9"}, []string{"order:4711", "a b", `"a\"b"`, `"a\\b"`, `"a\b"`}},
		"visible":         {[]string{"order:4711", "AAAB+cd/efgh==", "{6F9619FF-8B86-D011-B42D-00CF4FC964FF}", "2026-11-26T05:39:21Z", "a b", `"a\"b"`, `"a\\b"`, `W/"x"`}, []string{"clé", `"a`, `"a"b"`, `"a\b"`, `"a";p=1`, `"`, "a\tb", strings.Repeat("k", 129)}},
		"uuid":            {[]string{"6f9619ff-8b86-d011-b42d-00cf4fc964ff", `"6F9619FF-8B86-D011-B42D-00CF4FC964FF"`}, []string{"6f9619ff8b86d011b42d00cf4fc964ff", "abc", "6f9619ff-8b86-d011-b42d-00cf4fc964ff0", "urn:uuid:6f9619ff-8b86-d011-b42d-00cf4fc964ff"}},
		"/a+|[é ]b/":      {[]string{"aaa", `"aa"`, " b"}, []string{"aab", "b", "xaaa", "éb"}},
		"/(?i)[a-f]{60}/": {[]string{strings.Repeat("aF", 30)}, []string{"abc", strings.Repeat("a", 61)}},
	} {
		t.Run(format, func(t *testing.T) {
			rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
				t.Parallel()
				e := &rig.Env{Host: host}
				s := e.Serve(t, hosts.Settings{"keyFormat": format, "key": "X-Request-ID, json:/id"}, rig.Created)
				for _, key := range c.valid {
					if key[0] == ' ' { // HTTP takes spaces off a header
						key = `"` + key + `"`
					}
					s.WantRunOf(rig.Post("/", key))
				}
				for _, key := range c.invalid {
					s.WantProblem(s.Do(rig.Post("/", key)), 400, "invalid-key", "invalid")
				}
				s.Calls(int64(len(c.valid)))
			})
		})
	}
}

// TestAQuotedKeyIsUnescaped: both ways to write it are one key.
func TestAQuotedKeyIsUnescaped(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"keyFormat": "visible"}, rig.Created)
		first := s.Do(rig.Post("/", `"a\"b\\c\\"`))
		s.Want(first, 201, "first")
		s.WantReplay(first, s.Do(rig.Post("/", `a"b\c\`)))
		s.Calls(1)
		joined := e.Serve(t, hosts.Settings{"key": "X-Tenant + X-Key + query:id"}, rig.Created)
		parts := func(tenant, key string) rig.Call { return rig.Post(`/?id="a"`, "", "X-Tenant", tenant, "X-Key", key) }
		first = joined.Do(parts("a", "b c"))
		joined.Want(first, 201, "first")
		joined.WantReplay(first, joined.Do(parts(`"a"`, `"b c"`)))
		joined.Want(joined.Do(parts("a", `"b \"c"`)), 201, "first")
		joined.Want(joined.Do(rig.Post(`/?id=a`, "", "X-Tenant", "a", "X-Key", "b c")), 201, "first")
		for _, key := range []string{`"b c`, `"`, `""`, `"b\c"`} {
			joined.WantProblem(joined.Do(parts("a", key)), 400, "invalid-key", "invalid")
		}
		joined.Calls(3)
	})
}

// TestBodiesOfConversations are not read in advance: gRPC and upgrades pass without a key, or are refused where one is required.
func TestBodiesOfConversations(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"key": "X-Key, json:/id, content"}, rig.Created)
		required := e.Serve(t, hosts.Settings{"key": "X-Key, json:/id, content", "required": true}, rig.Created)
		for _, c := range []rig.Call{
			post("/", "application/grpc+json", `{"id":1}`),
			jsonPost(`{"id":1}`, "Connection", "Upgrade", "Upgrade", "websocket"),
			jsonPost(`{"id":1,"id":1}`, "Connection", "Upgrade", "Upgrade", "websocket"),
		} {
			for range 2 {
				s.Want(s.Do(c), 201, "")
				required.WantProblem(required.Do(c), 400, "missing-key", "missing")
			}
		}
		s.Calls(6)
		required.Calls(0)
	})
}

// TestRequestsWithoutAKeyPassWhole after their bodies were read in search of one.
func TestRequestsWithoutAKeyPassWhole(t *testing.T) {
	type seen struct {
		body, encoding, trailer, expect string
		length                          int64
	}
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		got := make(chan seen, 1)
		s := e.Serve(t, hosts.Settings{"key": "json:/id, form:id", "maxRequestBodyBytes": 100_000}, func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			w.WriteHeader(http.StatusCreated)
			got <- seen{string(body), strings.Join(r.TransferEncoding, ","), r.Trailer.Get("X-Sum"), r.Header.Get("Expect"), r.ContentLength}
		})
		for _, body := range []string{"{}", strings.Repeat("[1]  ", 1000), strings.Repeat("text ", 10_000), strings.Repeat("more than is read ", 10_000)} {
			contentType := "application/json"
			if body[0] != '{' {
				contentType = "text/plain"
			}
			for _, chunked := range []bool{false, true} {
				request := s.Request(post("/", contentType, body))
				want := seen{body: body, length: int64(len(body)), expect: "100-continue"}
				request.Header.Set("Expect", "100-continue")
				if chunked {
					request = s.Request(post("/", contentType, body).With(func(c *rig.Call) { c.Reader = io.MultiReader(strings.NewReader(body)) }))
					request.Trailer = http.Header{"X-Sum": {"17"}}
					want = seen{body: body, encoding: "chunked", trailer: "17", length: -1}
					if len(body) > 100_000 { // a proxy does not know the trailer of a body that streams
						want.trailer = ""
					}
				}
				response, err := s.HTTP.Do(request)
				if err != nil {
					t.Fatal(err)
				}
				_ = response.Body.Close()
				if g := <-got; response.StatusCode != 201 || g != want {
					t.Errorf("%d bytes, chunked %t: status %d; the backend got %.100v, want %.100v", len(body), chunked, response.StatusCode, g, want)
				}
			}
		}
	})
}

// TestRetryOfARequestWithoutAKey has Traefik's retry above the plugin, which has read the body in search of a key. Of two
// servers one is dead.
func TestRetryOfARequestWithoutAKey(t *testing.T) {
	for _, chain := range []string{"[retry, idem]", "[idem, retry]"} {
		b := rig.NewBackend(t, digest)
		s := among(t, b, chain, `key: ["json:/id"], maxRequestBodyBytes: 100000`, []string{dead(1), b.URL}, b.URL)
		for name, payload := range payloads {
			for range 4 {
				c := rig.Post("/whole", "")
				want := fmt.Sprintf("%xdone", sha256.Sum256(payload(&c)))
				c.Header.Set("Content-Type", "text/plain")
				a := s.Do(c)
				s.Want(a, 201, "")
				if string(a.Body) != want {
					t.Errorf("%s: %q, want %q", name, a.Body, want)
				}
			}
		}
	}
}

// TestEqualRequestsAreOne for as long as contentTTL says, if their clients send no key.
func TestEqualRequestsAreOne(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"key": "X-Request-ID, content", "maxRequestBodyBytes": 100, "keyFormat": "uuid", "contentTTL": "60s"}, rig.Created)
		differ := []rig.Call{
			rig.Post("/", ""), rig.Post("/x", ""), rig.Post("/?q", ""), rig.Post("/", "", "Authorization", "Basic YTpi"), rig.Post("/", "", "If-Match", "1"),
			post("/", "text/plain", `{"amount":10}`), jsonPost(`{"amount":11}`), jsonPost(""), rig.Post("/", "").With(func(c *rig.Call) { c.Method = "PUT" }),
		}
		for _, c := range differ {
			s.Want(s.Do(c), 201, "first")
		}
		for _, c := range differ {
			s.Want(s.Do(c), 201, "replayed")
		}
		long := jsonPost(strings.Repeat("1", 101)) // of which the end is not read
		s.Want(s.Do(long), 201, "")
		s.Want(s.Do(long), 201, "")
		s.Calls(int64(len(differ) + 2))

		short := e.Serve(t, hosts.Settings{"key": "X-Request-ID, content", "contentTTL": "50ms"}, rig.Created)
		keyed := short.Do(rig.Post("/", "k"))
		short.Want(keyed, 201, "first")
		short.Want(short.Do(rig.Post("/", "")), 201, "first")
		rig.Until(t, "the end of contentTTL", time.Minute, func() bool { return short.Do(rig.Post("/", "")).Header.Get("Decision") == "first" })
		short.WantReplay(keyed, short.Do(rig.Post("/", "k")))
	})
}

// TestObservedSources counts duplicates by keys that are known only once the backend has read the body.
func TestObservedSources(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"key": "X-Key, json:/id, cookie:id, content", "scope": "cookie:session", "mode": "observe", "stats": rig.OpenStats["stats"]}, echo)
		for _, c := range []rig.Call{
			jsonPost(`{"id":1}`), jsonPost(`{"id":2}`), jsonPost(`{"id":1}`, "Cookie", "session=a"), jsonPost(`{}`, "Cookie", "id=1"), jsonPost(`{"a":1}`), jsonPost(`{"a":2}`),
		} {
			for range 3 {
				a := s.Do(c)
				s.Want(a, 201, "observed")
				if string(a.Body) != c.Body {
					t.Errorf("the backend got %q, want %q", a.Body, c.Body)
				}
			}
		}
		for _, c := range []rig.Call{jsonPost(`{"id":1`), jsonPost(`{"id":1}`, "Cookie", "session=a; session=b")} {
			s.Want(s.Do(c), 201, "observed")
		}
		f := s.Counted(func(f rig.Figures) bool {
			return fmt.Sprint(f.Totals["invalid"]) == "2" && fmt.Sprint(f.Totals["observed"]) == "12" && fmt.Sprint(f.Totals["firstRuns"]) == "6"
		})
		total(f, t, "mismatches", 0)
		s.Calls(20)
	})
}

// TestAKeyInAChunkedBody has a body without a declared length, and one that breaks off.
func TestAKeyInAChunkedBody(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		e := &rig.Env{Host: host}
		s := e.Serve(t, hosts.Settings{"key": "json:/id", "scope": "json:/tenant"}, echo)
		chunked := func(parts ...io.Reader) rig.Call {
			return jsonPost("").With(func(c *rig.Call) { c.Reader = io.MultiReader(parts...) })
		}
		body := `{"id":1,"tenant":2,"text":"` + strings.Repeat("long ", 10_000) + `"}`
		first := s.Do(chunked(strings.NewReader(body)))
		s.Want(first, 201, "first")
		if string(first.Body) != body {
			t.Errorf("the backend got %d bytes, want %d", len(first.Body), len(body))
		}
		s.WantReplay(first, s.Do(jsonPost(body)))
		conn, err := net.Dial("tcp", s.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"id\"\r\nx\r\n", s.Name)
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if response.StatusCode != 400 || response.Header.Get("Decision") != "invalid" {
			t.Errorf("half a body: %d %q", response.StatusCode, response.Header.Get("Decision"))
		}
		s.Calls(1)
	})
}
