package clients

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"image/png"
	"io"
	"math"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// browser is a tab of a headless Chromium. It fails the test on whatever the page complains of, and on requests to other
// hosts.
type browser struct {
	t   *testing.T
	ctx context.Context
}

func newBrowser(t *testing.T) *browser {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(rig.Tool(t, "chromium", "chromium-browser", "google-chrome", "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")),
		chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-features", "HttpsUpgrades,HttpsFirstBalancedModeAutoEnable"),
		chromedp.Flag("host-resolver-rules", "MAP *.test 127.0.0.1"))
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	// A browser newer than the library sends events that the library does not know.
	ctx, _ = chromedp.NewContext(ctx, chromedp.WithErrorf(func(string, ...any) {}))
	t.Cleanup(func() { _ = chromedp.Cancel(ctx) }) // waits for the browser to end
	b := &browser{t: t, ctx: ctx}
	b.run(chromedp.Navigate("about:blank"))
	return b
}

// watch reports what goes wrong in the page until the test ends.
func (b *browser) watch(origin string) {
	var mu sync.Mutex
	ended := false
	report := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		if !ended {
			b.t.Errorf(format, args...)
		}
	}
	b.t.Cleanup(func() {
		mu.Lock()
		defer mu.Unlock()
		ended = true
	})
	chromedp.ListenTarget(b.ctx, func(event any) {
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			report("exception in the page: %v", e.ExceptionDetails)
		case *runtime.EventConsoleAPICalled:
			report("the page writes to the console: %s", e.Type)
		case *cdplog.EventEntryAdded:
			report("the browser logs: %s: %s (%s)", e.Entry.Level, e.Entry.Text, e.Entry.URL)
		case *network.EventRequestWillBeSent:
			if !strings.HasPrefix(e.Request.URL, origin) && !strings.HasPrefix(e.Request.URL, "data:") {
				report("the page asks for %s", e.Request.URL)
			}
		}
	})
}

func (b *browser) run(actions ...chromedp.Action) {
	b.t.Helper()
	err := chromedp.Run(b.ctx, actions...)
	if err != nil {
		b.t.Fatal(err)
	}
}

// eval returns the value of a JavaScript expression as text.
func (b *browser) eval(expression string) string {
	b.t.Helper()
	var text string
	b.run(chromedp.Evaluate("String("+expression+")", &text))
	return text
}

// await waits until expression is true. What never comes ends in the test's time-out.
func (b *browser) await(expression string) {
	b.t.Helper()
	for b.eval(expression) != "true" {
		time.Sleep(50 * time.Millisecond)
	}
}

// theme sets what the viewer prefers, and the size of the window.
func (b *browser) theme(scheme string, width, height int64, mobile bool) {
	b.t.Helper()
	b.run(emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}),
		emulation.SetDeviceMetricsOverride(width, height, 2, mobile))
}

// address returns the site's URL for a browser, which has to name the port.
func address(s *rig.Site, path string) string {
	u, err := url.Parse(s.URL(path))
	if err != nil {
		s.T.Fatal(err)
	}
	_, port, _ := strings.Cut(s.Addr, ":")
	u.Host += ":" + port
	return u.String()
}

// seed writes a history of statistics into Redis as the plugin does.
func seed(server *redistest.Server, prefix string, endpoints []string, scale float64) {
	now := time.Now().Unix()
	args := []string{"HSET", prefix + ":stats", "since", fmt.Sprint(now - 23*24*3600), "endpoints", fmt.Sprint(len(endpoints)), "pruned", fmt.Sprint(now / 60)}
	add := func(field string, value any) { args = append(args, field, fmt.Sprint(value)) }
	wave := func(at int64, period float64) float64 { return 1 + math.Sin(float64(at)*2*math.Pi/period) }
	for i := range int64(60) {
		at := now/60 - i
		add(fmt.Sprintf("m %d", at), int64(scale*(2+3*wave(at, 23)+float64(at*7919%5))))
	}
	for i := range int64(168) {
		at := now/3600 - i
		add(fmt.Sprintf("h %d", at), int64(scale*(40+160*wave(at-8, 24)+float64(at*104729%70))))
	}
	var duplicates int64
	for i, name := range endpoints {
		n := int64(scale*9000/math.Pow(float64(i+1), 1.3)) + 1
		duplicates += n
		last := now - int64(i*i*47)%500000
		add("e "+name, fmt.Sprintf("%d %d %d %d %d %d", n, last, last, n-n*6/10-n/25, n*6/10, n/25))
	}
	add("t firstRuns", duplicates*24)
	add("t replaysStore", duplicates*6/10)
	add("t conflicts", duplicates/25)
	add("t replaysLocal", duplicates-duplicates*6/10-duplicates/25)
	add("t mismatches", duplicates/200)
	add("t invalid", duplicates/120)
	server.Do(args...)
}

var sampleEndpoints = []string{
	"POST pay.example.com /api/payments/", "POST pay.example.com /api/v5/order/*/pay/", "PATCH shop.example.com /api/orders/",
	"POST shop.example.com /api/cart/checkout", "PUT accounts.example.com /api/profile/address", "POST pay.example.com /api/refunds/",
	"DELETE shop.example.com /api/cart/items/{id}", "POST mail.example.com /api/invites/", "POST accounts.example.com /api/webhooks/stripe",
}

// TestScreenshots takes the pictures of the README. They are kept if SCREENSHOTS names a folder.
func TestScreenshots(t *testing.T) {
	folder := os.Getenv("SCREENSHOTS")
	if folder == "" {
		folder = t.TempDir()
	}
	b := newBrowser(t)
	e := &rig.Env{Host: hosts.Traefik, Redis: rig.SharedRedis(t)}
	shot := func(name string, endpoints []string, scheme string, width, height int64) {
		t.Helper()
		settings := e.Settings(rig.OpenStats)
		if endpoints != nil {
			prefix := settings["redis"].(map[string]any)["keyPrefix"].(string)
			seed(e.Redis, prefix, endpoints, 1)
		}
		s := rig.Serve(t, e.Host, rig.Created, settings)
		b.theme(scheme, width, height, width < 600)
		b.run(chromedp.Navigate(address(s, "/_idem/")))
		b.await("document.querySelector('#pause').hidden === false")
		var picture []byte
		b.run(chromedp.CaptureScreenshot(&picture))
		config, err := png.DecodeConfig(bytes.NewReader(picture))
		if err != nil || int64(config.Width) != 2*width {
			t.Errorf("%s: %v, %d wide", name, err, config.Width)
		}
		err = os.WriteFile(filepath.Join(folder, name+".png"), picture, 0o644)
		if err != nil {
			t.Fatal(err)
		}
	}
	shot("statistics-light", sampleEndpoints, "light", 1180, 1180)
	shot("statistics-dark", sampleEndpoints, "dark", 1180, 1180)
	shot("statistics-phone", sampleEndpoints, "dark", 390, 1500)
}

// axe returns the source of axe-core, which checks a page against the accessibility guidelines.
func axe(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	pack := exec.Command(rig.Tool(t, "npm"), "pack", "--silent", "--pack-destination", dir, "axe-core@4.10.3")
	pack.Dir = dir
	out, err := pack.CombinedOutput()
	if err != nil {
		t.Fatalf("npm pack: %v\n%s", err, out)
	}
	file, err := os.Open(filepath.Join(dir, "axe-core-4.10.3.tgz"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	for archive := tar.NewReader(unzipped); ; {
		header, err := archive.Next()
		if err != nil {
			t.Fatalf("no axe.min.js in the package: %v", err)
		}
		if header.Name == "package/axe.min.js" {
			source, err := io.ReadAll(archive)
			if err != nil {
				t.Fatal(err)
			}
			return string(source)
		}
	}
}

// accessible checks the page that is shown against WCAG 2.2 AA and axe's best practices.
func (b *browser) accessible(axe, what string) {
	b.t.Helper()
	var violations string
	b.run(chromedp.Evaluate(axe, nil), chromedp.Evaluate(`axe.run().then((r) => r.violations.map((v) =>
		v.id + ": " + v.help + "\n" + v.nodes.map((n) => "    " + n.html.slice(0, 200) + " " + n.failureSummary).join("\n")).join("\n"))`,
		&violations, func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }))
	if violations != "" {
		b.t.Errorf("%s is not accessible:\n%s", what, violations)
	}
}

func TestThePageInABrowser(t *testing.T) {
	axe := axe(t)
	b := newBrowser(t)
	e := &rig.Env{Host: hosts.Traefik, Redis: rig.SharedRedis(t)}
	s := e.Serve(t, hosts.Settings{"stats": rig.OpenStats["stats"], "ttl": "1h", "maxTTL": "1h"}, rig.Created) // keys are held to the end of the test
	duplicates := func(path string, n int) {
		for range n + 1 {
			s.Do(rig.Post(path, "k"))
		}
	}
	b.watch(address(s, "/_idem/"))
	page := chromedp.Navigate(address(s, "/_idem/"))
	b.theme("light", 1180, 900, false)
	b.run(page)
	b.accessible(axe, "the empty page")

	ends := time.Now().Truncate(time.Hour).Add(time.Hour)
	if time.Until(ends) < 2*time.Minute { // all of it is to be in the newest bar, to the end of the test
		time.Sleep(time.Until(ends))
	}
	duplicates("/b", 12)
	duplicates("/a", 3)
	duplicates("/c", 5)
	b.run(page)
	text := func(selector string) string {
		t.Helper()
		return b.eval("document.querySelector('" + selector + "').textContent")
	}
	paths := func() string {
		t.Helper()
		return b.eval(`[...document.querySelectorAll("#rows tr")].filter((tr) => tr.checkVisibility()).map((tr) => tr.cells[2].firstChild.textContent + tr.cells[3].textContent).join(" ")`)
	}
	wants := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	wants("headline", text("#duplicates"), "20")
	wants("what needs a look", text("#needs"), "Nothing")
	wants("the part for that", text("#problems"), "Nothing. Unknown outcomes, mismatches, and what happens while Redis is away are listed here.")
	wants("outcomes of an endpoint", strings.TrimSpace(text("#rows .became")), "12 replayed")
	wants("health", text("#state"), "Redis answers")
	wants("table", paths(), "/b12 /c5 /a3")
	wants("host", text("#rows .host"), s.Name)
	wants("charts", b.eval(`[...document.querySelectorAll(".plot")].flatMap((p) => p.dataset.counts.split(" ")).reduce((n, c) => n + Number(c), 0)`), "40")
	wants("days", b.eval(`document.querySelectorAll(".ticks")[1].querySelectorAll("line").length`), "7")
	// Values by keyboard, by a finger, and as a table.
	b.run(chromedp.Focus("#hours", chromedp.ByQuery), chromedp.KeyEvent(kb.End))
	wants("the newest bar", b.eval(`document.querySelector("#hours-value").textContent.startsWith("20 duplicates, 0 problems · ")`), "true")
	b.run(chromedp.KeyEvent(kb.ArrowLeft))
	wants("the bar before it", b.eval(`document.querySelector("#hours-value").textContent.startsWith("0 duplicates, 0 problems · ")`), "true")
	b.run(chromedp.KeyEvent(kb.Escape))
	wants("no bar", text("#hours-value"), "at most 20 duplicates in one hour")
	b.run(chromedp.Evaluate(`(() => {
		const box = document.querySelector("#hours").getBoundingClientRect();
		document.querySelector("#hours").dispatchEvent(new PointerEvent("pointerdown", {pointerType: "touch", clientX: box.right - 1, clientY: box.top + 9, bubbles: true}));
	})()`, nil))
	wants("the bar under a finger", b.eval(`document.querySelector("#hours-value").textContent.startsWith("20 duplicates, 0 problems · ")`), "true")
	b.run(chromedp.Evaluate(`document.querySelector("#hours-table").open = true`, nil))
	wants("as a table", b.eval(`[...document.querySelectorAll("#hours-table tbody td")].slice(1).map((td) => td.textContent).join(" ")`), "20 0")

	click := func(key string) { b.run(chromedp.Click(`th[data-key="`+key+`"] button`, chromedp.ByQuery)) }
	click("path")
	wants("by path", paths(), "/a3 /b12 /c5")
	wants("aria-sort", b.eval(`document.querySelector('th[data-key=path]').getAttribute("aria-sort")`), "ascending")
	click("path")
	wants("by path, down", paths(), "/c5 /b12 /a3")
	click("duplicates")
	wants("by duplicates", paths(), "/b12 /c5 /a3")
	// The keyboard does it too.
	b.run(chromedp.Focus(`th[data-key="duplicates"] button`, chromedp.ByQuery), chromedp.KeyEvent("\r"))
	wants("by duplicates, up", paths(), "/a3 /c5 /b12")
	b.run(chromedp.SendKeys("#filter input", "post /b", chromedp.ByQuery))
	wants("filtered", paths(), "/b12")
	wants("count", text("#shown"), "1 of 3 endpoints")
	wants("the exact time on hover", b.eval(`(() => { const t = document.querySelector("#rows time"); return t.title === new Date(t.dateTime).toLocaleString(undefined, {dateStyle: "medium", timeStyle: "medium"}) })()`), "true")

	b.run(chromedp.SendKeys("#filter input", "nowhere", chromedp.ByQuery))
	wants("filtered away", paths(), "")
	wants("no hit", b.eval(`document.querySelector("#nohit").checkVisibility()`), "true")
	wants("no hit, counted", text("#shown"), "0 of 3 endpoints")
	b.run(chromedp.Evaluate(`document.querySelector("#filter input").value = ""`, nil), chromedp.SendKeys("#filter input", "post /b", chromedp.ByQuery))

	// The second bar: the first goes with the next minute.
	b.run(chromedp.Focus("#minutes", chromedp.ByQuery), chromedp.KeyEvent(kb.Home), chromedp.KeyEvent(kb.ArrowRight))
	s.WantProblem(s.Do(rig.Post("/c", "k").With(func(c *rig.Call) { c.Body = "{}" })), 422, "key-reused", "mismatch")
	duplicates("/b", 1) // and the one that would have been the first
	duplicates("/d", 2)
	b.await(`document.querySelector("#duplicates").textContent === "24"`)
	wants("after the refresh", paths(), "/b14")
	wants("what needs a look now", b.eval(`document.querySelector(".tile").className + " " + document.querySelector("#needs").textContent`), "tile warn 1")
	wants("the part for that now", b.eval(`document.querySelector("#problems .count").textContent + document.querySelector("#problems .name").textContent`), "1Mismatch")
	wants("the problem in the charts", b.eval(`document.querySelectorAll(".plot rect.trouble").length`), "2")
	wants("the table that was opened", b.eval(`document.querySelector("#hours-table").open`), "true")
	wants("the focus", b.eval(`document.activeElement.id`), "minutes")
	wants("the bar that was chosen", b.eval(`document.querySelector("#minutes-value").textContent.startsWith("0 duplicates, 0 problems · ")`), "true")
	b.run(chromedp.Evaluate(`document.querySelector("#filter input").value = ""`, nil), chromedp.SendKeys("#filter input", "/", chromedp.ByQuery))
	wants("unfiltered after the refresh", paths(), "/d2 /a3 /c5 /b14")
	click("troubles")
	wants("by problems", b.eval(`document.querySelector("#rows tr").textContent.includes("1 mismatch")`), "true")
	long := "/" + strings.Repeat("long-path/", 40)
	duplicates(long, 1)
	b.await(`document.querySelectorAll("#rows tr").length === 5`)
	wants("lines of a long path", b.eval(`(() => { const path = document.querySelector('#rows .two[title^="/long-path"]'); return Math.round(path.getBoundingClientRect().height / parseFloat(getComputedStyle(path).lineHeight)) })()`), "2")

	b.run(chromedp.Evaluate(`for (const d of document.querySelectorAll("details")) d.open = true`, nil))
	wants("settings", b.eval(`[...document.querySelectorAll(".settings dt")].filter((dt) => ["maxTTL", "redis.tls.ca", "stats.admins"].includes(dt.textContent)).length`), "3")
	b.accessible(axe, "the page")
	b.theme("dark", 1180, 900, false)
	b.accessible(axe, "the dark page")
	b.theme("light", 390, 844, true)
	b.accessible(axe, "the page on a phone")
	wants("width on a phone", b.eval(`document.documentElement.scrollWidth`), "390")

	// Without a script everything is there but sorting, filtering and refreshing.
	b.run(emulation.SetScriptExecutionDisabled(true), page)
	wants("table without a script", paths(), "/b14 /c5 /a3 /d2 "+long+"1")
	wants("days without a script", b.eval(`document.querySelectorAll(".ticks")[1].querySelectorAll("line").length`), "7")
	wants("filter without a script", b.eval(`document.querySelector("#filter").checkVisibility()`), "false")
}
