package clients

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// logIn has the browser send a login with each request.
func (b *browser) logIn(name, password string) {
	b.t.Helper()
	login := "Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+password))
	b.run(network.SetExtraHTTPHeaders(network.Headers{"Authorization": login}))
}

// follow does what leads to another page, and waits until that is there.
func (b *browser) follow(actions ...chromedp.Action) {
	b.t.Helper()
	_, err := chromedp.RunResponse(b.ctx, actions...)
	if err != nil {
		b.t.Fatal(err)
	}
}

// TestAnUnknownOutcomeIsSettled in one Traefik, by Chromium and by curl, and answered by another one that has refused it.
func TestAnUnknownOutcomeIsSettled(t *testing.T) {
	axe := axe(t)
	redis := rig.SharedRedis(t)
	backend := rig.NewBackend(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	settings := (&rig.Env{Redis: redis}).Settings(hosts.Settings{"scope": "none", "ttl": "1h", "maxTTL": "1h", "stats": map[string]any{"users": "eye:look", "admins": "boss:pass"}})
	one := rig.SiteOf(t, hosts.StartTraefik(t).Serve(t, backend.URL, settings), backend)
	other := rig.SiteOf(t, hosts.StartTraefik(t).Serve(t, backend.URL, settings), backend)
	broken := func() (rig.Call, string) {
		t.Helper()
		c := rig.Post("/pay", rig.UnusedKey())
		one.Send(c)
		a := other.Do(c)
		other.WantProblem(a, 409, "outcome-unknown", "unknown")
		return c, other.IDOf(a)
	}
	replays := func(c rig.Call, body string) {
		t.Helper()
		begin := time.Now()
		a := other.Do(c)
		for a.Status == 409 { // one that never knows ends in the test's time-out
			time.Sleep(10 * time.Millisecond)
			a = other.Do(c)
		}
		t.Logf("the other Traefik knows after %s", time.Since(begin))
		other.Want(a, 201, "replayed")
		if string(a.Body) != body {
			t.Errorf("a duplicate got %s, want %s", a.Body, body)
		}
	}

	c, id := broken()
	b := newBrowser(t)
	// With a login in its address the page is refreshed, too.
	b.run(chromedp.Navigate(strings.Replace(address(one, "/_idem/"), "http://", "http://eye:look@", 1)))
	clock := b.eval(`document.querySelector("#clock time").dateTime`)
	b.run(chromedp.Evaluate(`void document.dispatchEvent(new Event("visibilitychange"))`, nil))
	b.await(fmt.Sprintf(`document.querySelector("#clock time").dateTime !== %q || document.querySelector("#trouble .alert") !== null`, clock))
	if got := b.eval(`document.querySelector("#trouble").textContent`); got != "" {
		t.Errorf("with a login in the address: %s", got)
	}
	b.watch(address(one, "/_idem/"))
	b.theme("light", 1180, 900, false)
	page := chromedp.Navigate(address(one, "/_idem/"))
	b.logIn("eye", "look")
	b.run(page)
	for b.eval(`document.querySelector("#needs").textContent`) != "1 to settle" { // the other Traefik tells within a second
		b.run(page)
	}
	if got := b.eval(`document.querySelectorAll(".acts, form[method=post]").length`); got != "0" {
		t.Errorf("a viewer sees %s things to do", got)
	}
	b.run(chromedp.SendKeys("#id", "urn:traefik-idem:key:"+id, chromedp.ByQuery))
	b.follow(chromedp.Click(".lookup button", chromedp.ByQuery))

	b.logIn("boss", "pass")
	b.run(page)
	b.follow(chromedp.Click("#s"+id, chromedp.ByQuery))
	b.run(chromedp.Evaluate(`document.querySelector("#find").open = true`, nil))
	b.theme("dark", 1180, 900, false)
	b.accessible(axe, "the dark form that settles")
	b.theme("light", 390, 844, true)
	b.accessible(axe, "the form that settles on a phone")
	if got := b.eval(`document.documentElement.scrollWidth`); got != "390" {
		t.Errorf("on a phone the page is %s wide", got)
	}
	// What is typed stays when the page is refreshed, and the keyboard sends it.
	b.run(chromedp.SendKeys("textarea[name=body]", `{"paid":true}`, chromedp.ByQuery), chromedp.Evaluate(`void document.dispatchEvent(new Event("visibilitychange"))`, nil))
	clock = b.eval(`document.querySelector("#clock time").dateTime`)
	b.await(fmt.Sprintf(`document.querySelector("#clock time").dateTime !== %q`, clock))
	b.follow(chromedp.Focus("input[name=status]", chromedp.ByQuery), chromedp.KeyEvent("\r"))
	replays(c, `{"paid":true}`)
	for _, text := range []string{"Every Traefik knows within 2 seconds", "It was answered with 201"} {
		if got := b.eval(`document.querySelector("#key").textContent`); !strings.Contains(got, text) {
			t.Errorf("no %q in %s", text, got)
		}
	}
	b.accessible(axe, "a key that is settled")

	// The same without a script, and as release.
	c, id = broken()
	b.run(emulation.SetScriptExecutionDisabled(true), page)
	for b.eval(`document.querySelectorAll("#r`+id+`").length`) != "1" {
		b.run(page)
	}
	b.follow(chromedp.Click("#r"+id, chromedp.ByQuery))
	b.follow(chromedp.Click("button.danger", chromedp.ByQuery))
	calls := backend.Calls.Load()
	for a := other.Do(c); a.Header.Get("Decision") == "unknown" && backend.Calls.Load() == calls; a = other.Do(c) {
		time.Sleep(10 * time.Millisecond)
	}
	other.Calls(calls + 1)

	// And by curl.
	c, id = broken()
	out, err := exec.Command(rig.Tool(t, "curl"), "-sS", "-u", "boss:pass", "-X", "PUT", "-H", "Content-Type: application/json", "-H", "Host: "+one.Name,
		"-d", `{"status": 201, "body": {"paid": "by curl"}}`, "http://"+one.Addr+"/_idem/keys/"+id).CombinedOutput()
	if err != nil || !strings.Contains(string(out), `"state":"done"`) {
		t.Fatalf("curl: %v %s", err, out)
	}
	replays(c, `{"paid": "by curl"}`)
}
