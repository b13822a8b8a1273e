package behaviour

import (
	"fmt"
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// TestSame has, for each way to compare, a request, others that are the same, and others that are not.
func TestSame(t *testing.T) {
	at := func(path string, c rig.Call) rig.Call {
		return c.With(func(c *rig.Call) { c.Path = path })
	}
	many := func(first string) string { // numbers, of which the first is written in another way
		return `[` + first + strings.Repeat(",1", 10_000) + `]`
	}
	for i, c := range []struct {
		settings    hosts.Settings
		one         rig.Call
		same, other []rig.Call
	}{
		{
			hosts.Settings{"same": "body"},
			jsonPost(`{"a":1}`),
			[]rig.Call{at("/?q=1", jsonPost(`{"a":1}`)), post("/", "text/plain", `{"a":1}`), jsonPost(`{"a":1}`, "If-Match", "1")},
			[]rig.Call{jsonPost(`{"a": 1}`), jsonPost("")},
		},
		{
			hosts.Settings{"same": "query, type, conditions"},
			at("/?q=1", jsonPost(`{"a":1}`)),
			[]rig.Call{at("/?q=1", jsonPost(`{"a":2}`)), at("/?q=1", jsonPost(""))},
			[]rig.Call{at("/?q=2", jsonPost(`{"a":1}`)), at("/?q=1", post("/", "text/plain", `{"a":1}`)), at("/?q=1", jsonPost(`{"a":1}`, "Range", "bytes=0-1"))},
		},
		{
			hosts.Settings{"same": "body, conditions"},
			form(t, "", "one", "10", nil),
			[]rig.Call{form(t, "", "another", "10", nil)},
			[]rig.Call{form(t, "", "one", "11", nil)},
		},
		{
			hosts.Settings{"same": []any{"query", "type", "json", "conditions"}},
			jsonPost(`{"a":1,"b":[10,"\u0041<&/é",null,true,{"c":1.50,"d":9007199254740993}],"e":"1.0"}`),
			[]rig.Call{
				jsonPost(`{ "e": "1.0", "b" : [ 10.0, "A<&\/é" ,null, true, { "d":9007199254740993.0 , "c":15e-1 } ], "a":1e0 }`),
				jsonPost("\ufeff" + `{"\u0061":0.1E+1,"b":[1e1,"A\u003c&/\u00e9",null,true,{"c":1.5,"d":900719925474099.3e1}],"e":"1.0"}` + "\r\n"),
			},
			[]rig.Call{
				jsonPost(`{"a":1,"b":[10,"\u0041<&/é",null,true,{"c":1.50,"d":9007199254740992}],"e":"1.0"}`), jsonPost(`{"a":1,"b":[10,"\u0041<&/é",null,true,{"c":1.50,"d":9007199254740993}],"e":"1"}`),
				jsonPost(`{"a":1,"b":["\u0041<&/é",10,null,true,{"c":1.50,"d":9007199254740993}],"e":"1.0"}`), jsonPost(`{"a":"1","b":[10,"\u0041<&/é",null,true,{"c":1.50,"d":9007199254740993}],"e":"1.0"}`),
				jsonPost(`{"a":1,"b":[10,"\u0041<&/é",null,true,{"c":1.50,"d":9007199254740993}],"e":"1.0","f":null}`), jsonPost(`{"a":1,"a":1,"b":[10,"\u0041<&/é",null,true,{"c":1.50,"d":9007199254740993}],"e":"1.0"}`),
				at("/?q", jsonPost(`{"a":1,"b":[10,"\u0041<&/é",null,true,{"c":1.50,"d":9007199254740993}],"e":"1.0"}`)),
			},
		},
		{ // of two members of one name, nobody knows which counts
			hosts.Settings{"same": "json"},
			jsonPost(`{"a":1,"a":2}`),
			[]rig.Call{jsonPost(`{"a":1,"a":2}`)},
			[]rig.Call{jsonPost(`{"a":2}`), jsonPost(`{"a":2,"a":2}`), jsonPost(`{"a":1,"\u0061":2}`), jsonPost(`{"a":1, "a":2}`)},
		},
		{ // no Unicode
			hosts.Settings{"same": "json"},
			jsonPost(`["\ud800"]`),
			[]rig.Call{jsonPost(`["\ud800"]`)},
			[]rig.Call{jsonPost(`["\ud801"]`), jsonPost(`[ "\ud800"]`)},
		},
		{ // no JSON
			hosts.Settings{"same": "json"},
			jsonPost(`{"a":1`),
			[]rig.Call{jsonPost(`{"a":1`), post("/", "text/plain", `{"a":1`)},
			[]rig.Call{jsonPost(`{"a": 1`), jsonPost(`{"a":1}`)},
		},
		{ // among too many others, a number with an exponent is compared as it is written
			hosts.Settings{"same": "json"},
			jsonPost(many("1e0")),
			[]rig.Call{jsonPost(many(" 1e0 "))},
			[]rig.Call{jsonPost(many("1")), jsonPost(many("1e0") + " ").With(func(c *rig.Call) { c.Body = strings.Replace(c.Body, "1]", "2]", 1) })},
		},
		{ // longer than what is compared as values
			hosts.Settings{"same": "json"},
			jsonPost(`{"a":"` + strings.Repeat("a", 128<<10) + `"}`),
			[]rig.Call{jsonPost(`{"a":"` + strings.Repeat("a", 128<<10) + `"}`)},
			[]rig.Call{jsonPost(`{"a": "` + strings.Repeat("a", 128<<10) + `"}`)},
		},
		{
			hosts.Settings{"ignore": "json:/sentAt, json:/meta/tries, json:/list/1, query:_, form:csrf"},
			at("/?_=1&q=1", jsonPost(`{"a":1,"sentAt":"now","meta":{"tries":1,"x":1},"list":[1,2]}`)),
			[]rig.Call{
				at("/?q=1&_=2&_=3", jsonPost(`{"sentAt":"then","a":1,"meta":{"x":1},"list":[1,3]}`)),
				at("/?q=1", jsonPost(`{"list":[1,[]],"meta":{"x":1,"tries":{"tries":2}},"a":1.0}`)),
			},
			[]rig.Call{
				at("/?_=1&q=2", jsonPost(`{"a":1,"sentAt":"now","meta":{"tries":1,"x":1},"list":[1,2]}`)), at("/?_=1&q=1", jsonPost(`{"a":2,"sentAt":"now","meta":{"tries":1,"x":1},"list":[1,2]}`)),
				at("/?_=1&q=1", jsonPost(`{"a":1,"sentAt":"now","meta":{"tries":1,"x":2},"list":[1,2]}`)), at("/?_=1&q=1", jsonPost(`{"a":1,"sentAt":"now","meta":{"tries":1,"x":1},"list":[1,2,3]}`)),
				at("/?_=1&q=1", jsonPost(`{"a":1,"meta":{"sentAt":"now","tries":1,"x":1},"list":[1,2]}`)), at("/?_=1&q=1&%zz", jsonPost(`{"a":1,"sentAt":"now","meta":{"tries":1,"x":1},"list":[1,2]}`)),
			},
		},
		{
			hosts.Settings{"ignore": []any{"form:csrf"}, "same": "query, type, body"},
			formPost("amount=10&csrf=1&to=bob"),
			[]rig.Call{formPost("amount=10&to=bob&csrf=2&csrf=3"), formPost("to=bob&amount=10"), formPost("csrf=x&amount=10&to=b%6Fb")},
			[]rig.Call{formPost("amount=11&csrf=1&to=bob"), formPost("amount=10&amount=10&csrf=1&to=bob"), at("/?csrf=1", formPost("amount=10&csrf=1&to=bob")), post("/", "text/plain", "amount=10&csrf=1&to=bob"), formPost("amount=10&csrf=1&to=bob&%zz")},
		},
		{ // JSON that is sent as a form, as curl -d does
			hosts.Settings{"ignore": "json:/sentAt, form:csrf", "same": "query, type, json"},
			formPost(`{"a":1,"b":"&csrf=1","sentAt":1}`),
			[]rig.Call{formPost(`{ "b":"&csrf=1", "a":1.0 }`)},
			[]rig.Call{formPost(`{"a":1,"b":"&csrf=2"}`), formPost(`{"a":2,"b":"&csrf=1"}`), formPost("a=1&csrf=1")},
		},
		{
			hosts.Settings{"ignore": "form:csrf"},
			formPost(`{"b":"csrf=1&csrf=1&c=1"}`),
			nil,
			[]rig.Call{formPost(`{"b":"csrf=1&csrf=2&c=1"}`), formPost(`{"b":"csrf=1&c=1"}`), formPost(`{"b": "csrf=1&csrf=1&c=1"}`)},
		},
		{ // a form all the same
			hosts.Settings{"ignore": "form:csrf, json:/sentAt"},
			formPost("amount=10&csrf=1"),
			[]rig.Call{formPost("csrf=2&amount=10")},
			[]rig.Call{formPost("amount=1e1&csrf=1")},
		},
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
				t.Parallel()
				e := &rig.Env{Host: host}
				key := func(c rig.Call) rig.Call {
					return c.With(func(c *rig.Call) { c.Header.Set("X-Request-ID", "k") })
				}
				s := e.Serve(t, c.settings, rig.Created)
				first := s.Do(key(c.one))
				s.Want(first, 201, "first")
				for i, call := range append(c.same, c.one) {
					t.Log("the same", i)
					s.WantReplay(first, s.Do(key(call)))
				}
				for i, call := range c.other {
					t.Log("another", i)
					s.WantProblem(s.Do(key(call)), 422, "key-reused", "mismatch")
				}
				s.Calls(1)
			})
		})
	}
}

// TestWhatIsIgnoredInContent: a key that is the request itself leaves out what does not count.
func TestWhatIsIgnoredInContent(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"key": "content", "contentTTL": "60s", "ignore": "json:/sentAt"}, rig.Created)
		first := s.Do(jsonPost(`{"a":1,"sentAt":1}`))
		s.Want(first, 201, "first")
		s.WantReplay(first, s.Do(jsonPost(`{"sentAt":2,"a":1}`)))
		s.Want(s.Do(jsonPost(`{"sentAt":2,"a":2}`)), 201, "first")
		s.Calls(2)
	})
}
