package clients

import (
	"fmt"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// startDemo runs the demo with the Traefik under test, and returns the address of its page.
func startDemo(t *testing.T) string {
	t.Helper()
	var out hosts.Buffer
	cmd := rig.Command(t, ".", rig.Build(t, "../cmd/demo"))
	cmd.Env = append(cmd.Env, "TRAEFIK="+hosts.Binary(t), "TMPDIR="+t.TempDir())
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it has to stop what it started
	cmd.WaitDelay = time.Minute
	err := cmd.Start()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() { <-ended })
	for {
		found := regexp.MustCompile(`(?m)^Try it +(http://\S+/demo/)$`).FindStringSubmatch(out.String())
		if found != nil {
			return found[1]
		}
		select {
		case <-ended:
			t.Fatalf("the demo has ended:\n%s", out.String())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// TestDemoPage clicks every button of the demo's page.
func TestDemoPage(t *testing.T) {
	redistest.Path(t) // one that the demo starts
	page := startDemo(t)
	b := newBrowser(t)
	b.run(chromedp.Navigate(page))
	rows := 0
	click := func(button string, payments int) {
		t.Helper()
		b.await(fmt.Sprintf("!document.getElementById(%q).disabled && !document.getElementById(%q).hidden", button, button))
		b.eval(fmt.Sprintf("document.getElementById(%q).click()", button))
		rows += payments
		b.await(fmt.Sprintf("document.querySelectorAll('#log .done').length === %d", rows))
	}
	cell := func(row, column int) string {
		t.Helper()
		return b.eval(fmt.Sprintf("document.getElementById('log').rows[%d].cells[%d].textContent", row, column))
	}
	want := func(status, meaning string, calls int) {
		t.Helper()
		b.await(fmt.Sprintf("document.getElementById('calls').textContent === '%d'", calls))
		got, means := cell(0, 2), cell(0, 3)
		if !strings.HasPrefix(got+" ", status+" ") || !strings.HasPrefix(means, meaning) {
			t.Errorf("the page shows %q %q, want %s and %q", got, means, status, meaning)
		}
	}
	const kept = "The kept answer."
	click("pay", 1)
	want("201", "It ran.", 1)
	click("again", 1)
	want("201", kept, 1)
	if first, again := cell(1, 2), cell(0, 2); first != again {
		t.Errorf("the duplicate got %q, the first %q", again, first)
	}
	click("other", 1)
	want("422", "This key belongs to another payment.", 1)
	click("double", 2)
	if first, second := cell(1, 2), cell(0, 2); first != second || !strings.HasPrefix(first, "201 ") {
		t.Errorf("a double click got %q and %q", first, second)
	}
	click("kill", 1)
	want("502", "The backend broke off.", 3)
	click("again", 1)
	want("409", "The backend got it and never answered.", 3)
	click("pay", 1)
	want("201", "It ran.", 4)
	click("redis", 1)
	want("done", "", 4)
	click("again", 1)
	want("201", kept, 4)
	click("pay", 1)
	want("201", "It ran. Decided without Redis.", 5)
	click("redis", 1)
	click("again", 1)
	want("201", kept, 5)
	if text := b.eval("document.getElementById('sent').textContent"); text != "11" {
		t.Errorf("%s payments were sent, the page says, want 11", text)
	}
	b.run(chromedp.Reload())
	b.await("document.getElementById('calls').textContent === '5'")
	for id, since := range map[string]string{"sent": "since this page was loaded", "calls": "since the demo started, curl included"} {
		if label := b.eval(fmt.Sprintf("document.getElementById(%q).previousElementSibling.textContent", id)); !strings.HasSuffix(label, since) {
			t.Errorf("after a reload the page counts %q", label)
		}
	}
}
