package behaviour

import (
	"context"
	"encoding/hex"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// patiently sends c again as long as wrong logins of other tests are in its way.
func patiently(s *rig.Site, c rig.Call) rig.Answer {
	s.T.Helper()
	return s.DoWhile(http.StatusTooManyRequests, c)
}

// TestWhoMaySettle asks for keys that nobody has used: who may settle is told that there is no such key.
func TestWhoMaySettle(t *testing.T) {
	file := filepath.Join(t.TempDir(), "admins")
	rig.WriteFile(t, file, "# who may settle\nchief:{SHA256}"+hex.EncodeToString(sum256("s3cret"))+"\n")
	drop := rig.Call{Method: http.MethodDelete, Path: "/_idem/keys/0123456789abcdef", Header: http.Header{"Content-Type": {"application/json"}}}
	find := rig.Call{Method: http.MethodPost, Path: "/_idem/keys/find", Header: http.Header{"Content-Type": {"application/json"}}, Body: "{}"}
	put := rig.Call{Method: http.MethodPut, Path: "/_idem/keys/0123456789abcdef", Header: http.Header{"Content-Type": {"application/json"}}, Body: "{}"}
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		wants := func(s *rig.Site, what string, c rig.Call, want int, text string) {
			t.Helper()
			a := patiently(s, c)
			if a.Status != want || !strings.Contains(string(a.Body), text) || a.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s: %s %s: %d %s, want %d %s", what, c.Method, c.Path, a.Status, a.Body, want, text)
			}
			if asks := a.Header.Get("WWW-Authenticate") != ""; asks != (want == 401) {
				t.Errorf("%s: %s %s asks for a login: %t", what, c.Method, c.Path, asks)
			}
		}
		look := rig.Get("/_idem/stats.json")
		nobody := rig.Serve(t, host, rig.Created, hosts.Settings{})
		insecure := rig.Serve(t, host, rig.Created, rig.OpenStats)
		viewers := rig.Serve(t, host, rig.Created, hosts.Settings{"stats": map[string]any{"users": "eye:look"}})
		admins := rig.Serve(t, host, rig.Created, hosts.Settings{"stats": map[string]any{"admins": "boss:pass word"}})
		both := rig.Serve(t, host, rig.Created, hosts.Settings{"stats": map[string]any{"users": "eye:look, boss:other, same:same", "admins": "boss:pass word, same:same", "adminsFile": file}})
		open := rig.Serve(t, host, rig.Created, hosts.Settings{"stats": map[string]any{"insecure": true, "admins": "boss:pass word"}})
		for _, c := range []rig.Call{drop, find, put} {
			wants(nobody, "closed", c, 403, "stats.admins")
			wants(insecure, "insecure", c, 403, "stats.admins")
			wants(insecure, "insecure, with a login", c.With(basic("boss", "pass word")), 403, "stats.admins")
			wants(viewers, "no admins", c.With(basic("eye", "look")), 403, "stats.admins")
			wants(viewers, "no login", c, 401, "")
			wants(both, "a viewer", c.With(basic("eye", "look")), 403, "may only look")
			wants(both, "an admin's name with a viewer's password", c.With(basic("boss", "other")), 403, "may only look")
			wants(both, "no login", c, 401, "")
			wants(both, "a wrong password", c.With(basic("boss", "pass")), 401, "")
			wants(open, "open, no login", c, 401, "admin")
			wants(open, "open, a wrong password", c.With(basic("boss", "pass")), 401, "admin")
		}
		wants(open, "open, no login", look, 200, "")
		wants(open, "open, a wrong password", look.With(basic("boss", "pass")), 200, "")
		wants(admins, "no login", look, 401, "")
		wants(admins, "an admin", look.With(basic("boss", "pass word")), 200, "")
		wants(both, "a viewer", look.With(basic("boss", "other")), 200, "")

		type login struct{ name, password string }
		for s, logins := range map[*rig.Site][]login{admins: {{"boss", "pass word"}}, open: {{"boss", "pass word"}}, both: {{"boss", "pass word"}, {"same", "same"}, {"chief", "s3cret"}}} {
			for _, l := range logins {
				good := drop.With(basic(l.name, l.password))
				wants(s, "an admin", good, 404, "")
				for name, lines := range map[string][]string{
					"its own page, by Sec-Fetch-Site": {"Sec-Fetch-Site", "same-origin", "Origin", "http://other.test"},
					"its own page, by Origin":         {"Origin", "http://" + s.Name},
					"a proxy that changes Host":       {"Origin", "https://outside.test", "X-Forwarded-Host", "outside.test"},
					"JSON with a charset":             {"Content-Type", "Application/JSON; charset=utf-8"},
				} {
					if name == "a proxy that changes Host" && host == hosts.Traefik {
						continue // Traefik trusts no such header unless it is told to
					}
					wants(s, name, good.Headers(lines...), 404, "")
				}
				for name, lines := range map[string][]string{
					"another site":          {"Sec-Fetch-Site", "cross-site"},
					"another subdomain":     {"Sec-Fetch-Site", "same-site", "Origin", "http://" + s.Name},
					"another origin":        {"Origin", "http://other.test"},
					"another port":          {"Origin", "http://" + s.Name + ":81"},
					"an origin that hides":  {"Origin", "null"},
					"an origin that is odd": {"Origin", "http://%zz"},
				} {
					wants(s, name, good.Headers(lines...), 403, "another site")
				}
				for name, lines := range map[string][]string{
					"text":                {"Content-Type", "text/plain"},
					"parts":               {"Content-Type", "multipart/form-data; boundary=x"},
					"no form, as of curl": {"Content-Type", "application/x-www-form-urlencoded"},
				} {
					wants(s, name, good.Headers(lines...), 415, "application/json")
				}
				wants(s, "no type", good.With(func(c *rig.Call) { c.Header.Del("Content-Type") }), 415, "application/json")
				wants(s, "a form without a token", find.With(basic(l.name, l.password)).Headers("Content-Type", "application/x-www-form-urlencoded").With(func(c *rig.Call) { c.Body = "id=0123456789abcdef&token=1.2" }), 403, "Load it again")
			}
		}
		for _, s := range []*rig.Site{nobody, insecure, viewers, admins, both, open} {
			s.Calls(0)
		}
	})
}

// TestAdminsAreChecked when the middleware is built, as users are.
func TestAdminsAreChecked(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	rig.WriteFile(t, empty, "# nobody\n")
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for want, stats := range map[string]map[string]any{
			`stats.admins: ":…"`:                  {"admins": "secretword"},
			`stats.admins: "ops:…"`:               {"admins": "ops:$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC"},
			`stats.admins: ""`:                    {"admins": []any{" "}},
			`stats.adminsFile: "/does/not/exist"`: {"adminsFile": "/does/not/exist"},
			`stats.adminsFile: "` + empty:         {"adminsFile": empty},
		} {
			refusal := host.Refusal(t, hosts.Settings{"stats": stats})
			if !strings.Contains(refusal, want) || !strings.Contains(refusal, "allowed: ") || strings.Contains(refusal, "secretword") {
				t.Errorf("%v: %q", stats, refusal)
			}
		}
	})
}

// TestWrongLoginsAreSlowedDown: of one address no more than ten are looked at in a second, and right ones of another all.
func TestWrongLoginsAreSlowedDown(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		s := rig.Serve(t, host, rig.Created, hosts.Settings{"stats": map[string]any{"admins": "boss:pass word"}})
		open := rig.Serve(t, host, rig.Created, hosts.Settings{"stats": map[string]any{"insecure": true, "admins": "boss:pass word"}})
		elsewhere := &rig.Site{Site: s.Site, T: t, HTTP: s.Client()}
		elsewhere.HTTP.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}).DialContext(ctx, "tcp", s.Addr)
		}
		defer elsewhere.HTTP.CloseIdleConnections()
		wrong := rig.Get("/_idem/").With(basic("boss", "wrong"))
		right := rig.Get("/_idem/").With(basic("boss", "pass word"))
		begin := time.Now()
		var refused, slowed atomic.Int64
		for slowed.Load() == 0 { // on a machine that cannot send eleven in a second, nobody is slowed down
			var all sync.WaitGroup
			for range 40 {
				all.Go(func() {
					switch a := s.Send(wrong); a.Status {
					case 401:
						refused.Add(1)
					case 429:
						slowed.Add(1)
						if a.Header.Get("Retry-After") != "1" {
							t.Errorf("no Retry-After: %v", a.Header)
						}
					default:
						t.Errorf("a wrong login: %d %v", a.Status, a.Err)
					}
				})
			}
			all.Go(func() {
				if a := elsewhere.Send(right); a.Status != 200 {
					t.Errorf("a right login from elsewhere: %d %v", a.Status, a.Err)
				}
			})
			all.Go(func() {
				if a := open.Send(wrong); a.Status != 200 {
					t.Errorf("the page that is open to everybody: %d %v", a.Status, a.Err)
				}
			})
			all.Wait()
		}
		if most := int64(10 * (time.Since(begin)/time.Second + 2)); refused.Load() > most {
			t.Errorf("%d wrong logins were looked at in %s", refused.Load(), time.Since(begin))
		}
		if a := patiently(s, right); a.Status != 200 {
			t.Errorf("a right login, later: %d", a.Status)
		}
		for range 30 { // right ones are not counted
			if a := s.Do(right); a.Status != 200 {
				t.Errorf("a right login: %d", a.Status)
			}
		}
	})
}
