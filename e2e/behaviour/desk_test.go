package behaviour

import (
	"html"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// deskStats are the settings of a page with a viewer and an admin. Keys are held for longer than a busy machine takes.
var deskStats = hosts.Settings{"ttl": "1h", "maxTTL": "1h", "stats": map[string]any{"users": "eye:look", "admins": "boss:pass"}}

// field matches what a form of the page sends unless somebody changes it.
var field = regexp.MustCompile(`<input[^>]* name="(\w+)"[^>]* value="([^"]*)"`)

// desk is somebody at the page.
type desk struct {
	*rig.Site
	login func(c *rig.Call)
}

// page reads the page.
func (d *desk) page(query string) string {
	d.T.Helper()
	a := patiently(d.Site, rig.Get("/_idem/"+query).With(d.login))
	if a.Status != 200 || !strings.HasPrefix(a.Header.Get("Content-Type"), "text/html") {
		d.T.Fatalf("%s: %d %s", query, a.Status, a.Body)
	}
	return content(a)
}

// content is what is shown of a page, without its style and script.
func content(a rig.Answer) string {
	_, text, _ := strings.Cut(string(a.Body), "<main>")
	text, _, _ = strings.Cut(text, "</main>")
	return text
}

// fields are those of the form on page that is sent to action.
func (d *desk) fields(page, action string) url.Values {
	d.T.Helper()
	_, form, has := strings.Cut(page, `action="./`+action+`"`)
	form, _, _ = strings.Cut(form, "</form>")
	if !has {
		d.T.Fatalf("no form that is sent to %s:\n%s", action, page)
	}
	values := url.Values{}
	for _, f := range field.FindAllStringSubmatch(form, -1) {
		values.Set(f[1], html.UnescapeString(f[2]))
	}
	return values
}

// send sends a form.
func (d *desk) send(action string, fields url.Values, more ...string) rig.Answer {
	d.T.Helper()
	c := rig.Call{Method: "POST", Path: "/_idem/" + action, Body: fields.Encode(), Header: rig.Get("/").Header}
	return patiently(d.Site, c.With(d.login).Headers(append([]string{"Content-Type", "application/x-www-form-urlencoded"}, more...)...))
}

// wantsPage checks that the page leads somewhere, and returns what is there.
func (d *desk) wantsPage(a rig.Answer, location string) string {
	d.T.Helper()
	if a.Status != 303 || a.Header.Get("Location") != location {
		d.T.Fatalf("answer %d %q, want %s\n%s", a.Status, a.Header.Get("Location"), location, content(a))
	}
	query, _, _ := strings.Cut(strings.TrimPrefix(location, "./"), "#")
	return d.page(query)
}

func (d *desk) wants(page string, texts ...string) {
	d.T.Helper()
	for _, text := range texts {
		if !strings.Contains(page, text) {
			d.T.Errorf("no %q on the page:\n%s", text, page)
		}
	}
}

func (d *desk) wantsNone(page string, texts ...string) {
	d.T.Helper()
	for _, text := range texts {
		if strings.Contains(page, text) {
			d.T.Errorf("%q on the page:\n%s", text, page)
		}
	}
}

// TestKeysAreSettledOnThePage by its forms, as they are sent without a script.
func TestKeysAreSettledOnThePage(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, deskStats, ends)
		viewer, admin := &desk{s, basic("eye", "look")}, &desk{s, basic("boss", "pass")}
		viewer.wants(viewer.page(""), "None. ", `href="./login"`)
		first, second := rig.Post("/unknown", "secret-"+rig.UnusedKey()), rig.Post("/unknown", "secret-"+rig.UnusedKey())
		ids := make([]string, 2)
		for i, c := range []rig.Call{first, second} {
			s.Send(c)
			ids[i] = s.IDOf(s.Do(c))
		}
		calls := s.Backend.Calls.Load()

		// Who may look sees what waits, and can do nothing about it.
		seen := viewer.page("?id=urn:traefik-idem:key:" + strings.ToUpper(ids[0]))
		viewer.wants(seen, "2 to settle", "Unknown outcome", `id="k`+ids[0], `id="k`+ids[1], "POST "+s.Name+" /unknown", "Duplicates get 409", "You may look.")
		viewer.wantsNone(seen+viewer.page("?do=settle&id="+ids[0]), "do=settle", "do=release", `method="post"`, `name="token"`, "secret-")
		viewer.wants(viewer.page("?id=0123456789abcdef"), "No key of this id was noted lately")
		viewer.wantsNone(viewer.page("?did=settled&id="+ids[0]), "Every Traefik knows")
		viewer.wants(viewer.page("?id=%3Cb%3E"), "An id has 16 hexadecimal digits", "&lt;b&gt;")
		form := admin.fields(admin.page("?do=settle&id="+ids[0]), "settle")
		if a := viewer.send("settle", form); a.Status != 403 || !strings.Contains(string(a.Body), "may only look") {
			t.Errorf("a viewer settles: %d %s", a.Status, a.Body)
		}
		if a := patiently(s, rig.Get("/_idem/login").With(viewer.login)); a.Status != 401 {
			t.Errorf("a viewer who wants to log in: %d", a.Status)
		}
		admin.wantsPage(patiently(s, rig.Get("/_idem/login").With(admin.login)), "./")
		if a := admin.send("settle", form, "Origin", "http://other.test"); a.Status != 403 {
			t.Errorf("the page of another site: %d", a.Status)
		}
		stale := admin.fields(admin.page("?do=release&id="+ids[0]), "settle")

		// What is wrong is said, and changes nothing.
		for name, value := range map[string]string{"status": "99", "contentType": "a/b; =c", "id": "../" + ids[0], "do": "nothing", "seen": "other"} {
			wrong := url.Values{}
			for field := range form {
				wrong.Set(field, form.Get(field))
			}
			wrong.Set(name, value)
			if a := admin.send("settle", wrong); a.Status != 400 && a.Status != 409 || !strings.Contains(string(a.Body), `class="alert bad" role="status"`) {
				t.Errorf("%s %s: %d %s", name, value, a.Status, content(a))
			}
		}
		s.WantProblem(s.Do(first), 409, "outcome-unknown", "unknown")

		form.Set("status", "202")
		form.Set("body", `{"paid":"<b>"}`)
		settled := admin.wantsPage(admin.send("settle", form, "Origin", "http://"+s.Name), "./?id="+ids[0]+"&did=settled#key")
		admin.wants(settled, "Every Traefik knows within 2 seconds", "It was answered with 202", "1 to settle")
		a := s.Do(first)
		s.Want(a, 202, "replayed")
		if string(a.Body) != `{"paid":"<b>"}` || a.Header.Get("Content-Type") != "application/json" {
			t.Errorf("a duplicate got %s %v", a.Body, a.Header)
		}
		if a := admin.send("settle", stale); a.Status != 409 || !strings.Contains(string(a.Body), "has changed since you looked") || !strings.Contains(string(a.Body), "It was answered with 202") {
			t.Errorf("a form about what is not so any more: %d %s", a.Status, content(a))
		}
		form = admin.fields(admin.page("?do=release&id="+ids[1]), "settle")
		released := admin.wantsPage(admin.send("settle", form), "./?id="+ids[1]+"&did=settled#key")
		admin.wants(released, "Every Traefik knows within 2 seconds", "the next request with it runs", "None. ")
		s.Calls(calls)

		// From a request to its key.
		done := rig.Post("/pay", rig.UnusedKey()).Headers("Authorization", "Bearer x")
		s.Do(done)
		form = admin.fields(admin.page(""), "find")
		form.Set("url", s.URL("/pay"))
		form.Set("key", done.Header.Get("X-Request-ID"))
		form.Set("headers", "Authorization:  Bearer x \r\n\r\n")
		found := admin.send("find", form)
		id, _, _ := strings.Cut(strings.TrimPrefix(found.Header.Get("Location"), "./?id="), "#")
		admin.wants(admin.wantsPage(found, "./?id="+id+"#key"), "It was answered with 201", "do=release")
		form.Set("url", "nowhere")
		if a := admin.send("find", form); a.Status != 400 || !strings.Contains(string(a.Body), "Url must be whole") {
			t.Errorf("a request that is none: %d %s", a.Status, content(a))
		}
		for _, path := range []string{"settle", "find"} {
			if a := patiently(s, rig.Get("/_idem/"+path).With(admin.login)); a.Status != 405 || a.Header.Get("Allow") != "POST" {
				t.Errorf("GET %s: %d %v", path, a.Status, a.Header)
			}
		}
		for _, action := range []string{"answered", "freed"} {
			s.AwaitLog("a key was " + action + " by hand\" user=\"boss\"")
		}
	})
}
