package docs

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// life is what happens to one key at a site with a Redis of its own.
type life struct {
	*rig.Site

	t        *testing.T
	env      *rig.Env
	server   *redistest.Server
	settings hosts.Settings
	sites    []*rig.Site  // one at each Traefik
	answers  []rig.Answer // that the client got, in this order
}

// lives are those in docs/how-it-works.md, by their headings.
var lives = []struct {
	heading string
	live    func(l *life)
}{
	{"The first request", func(l *life) {
		l.serve(rig.Created, nil)
		l.pay()
	}},
	{"A duplicate", func(l *life) {
		l.serve(rig.Created, nil)
		l.pay()
		l.pay()
	}},
	{"A duplicate while the first runs", func(l *life) {
		arrived, proceed := make(chan struct{}), make(chan struct{})
		l.serve(rig.Gated(arrived, proceed), hosts.Settings{"inFlightTimeout": "100ms"})
		first := l.begin(l.Site)
		<-arrived
		l.pay()
		close(proceed)
		l.got(<-first)
		l.pay()
	}},
	{"The client has gone", func(l *life) {
		arrived, proceed := make(chan struct{}), make(chan struct{})
		l.serve(rig.Gated(arrived, proceed), patient)
		ctx, goAway := context.WithCancel(context.Background())
		go func() {
			<-arrived
			goAway()
		}()
		_, err := l.HTTP.Do(l.Request(payment).WithContext(ctx)) //nolint:bodyclose // there is none
		if err == nil {
			l.t.Error("the client got an answer")
		}
		close(proceed)
		l.pay()
	}},
	{"The backend dies", func(l *life) {
		l.serve(func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			panic(http.ErrAbortHandler)
		}, nil)
		l.pay()
		l.pay()
	}},
	{"Redis is away, and comes back", func(l *life) {
		l.serve(rig.Created, nil)
		l.server.Kill()
		l.pay()
		l.pay()
		l.server.Restart()
		l.AwaitLog("answers of the outage were written to Redis")
		l.pay()
	}},
	{"Two Traefiks", func(l *life) {
		arrived, proceed := make(chan struct{}), make(chan struct{})
		l.serve(rig.Gated(arrived, proceed), patient)
		front := rig.NewFront(l.t, l.server.Addr) // two that know a Redis by different addresses share no memory
		other := l.another(front.Addr)
		first := l.begin(l.Site)
		<-arrived
		before := front.Commands.Load()
		duplicate := l.begin(other)
		for front.Commands.Load() == before { // it has not asked Redis yet
			time.Sleep(time.Millisecond)
		}
		close(proceed)
		l.got(<-first)
		l.got(<-duplicate)
	}},
}

var payment = rig.Post("/pay", "4f9c")

// patient settings let no duplicate stop waiting on a busy machine.
var patient = hosts.Settings{"inFlightTimeout": "10m"}

// serve has the plugin serve the site before backend.
func (l *life) serve(backend http.HandlerFunc, more hosts.Settings) {
	l.settings = l.env.Settings(hosts.Settings{"statusHeader": "Idempotency-Status", "scope": "Authorization", "logLevel": "warn"})
	maps.Copy(l.settings, more)
	l.Site = rig.Serve(l.t, l.env.Host, backend, l.settings)
	l.sites = []*rig.Site{l.Site}
}

// another serves the same at another Traefik, which knows Redis by another address: so they share no memory, even where both
// are in this process.
func (l *life) another(redis string) *rig.Site {
	l.settings["redis"].(map[string]any)["endpoints"] = redis
	var site *hosts.Site
	if l.env.Host == hosts.Traefik {
		site = hosts.StartTraefik(l.t).Serve(l.t, l.Backend.URL, l.settings)
	} else {
		site = l.env.Host.Serve(l.t, l.Backend.URL, l.settings)
	}
	other := rig.SiteOf(l.t, site, l.Backend)
	l.sites = append(l.sites, other)
	return other
}

// pay has the client pay, and wait for the answer.
func (l *life) pay() { l.got(l.Do(payment)) }

// begin has the client pay at s.
func (l *life) begin(s *rig.Site) <-chan rig.Answer {
	answer := make(chan rig.Answer, 1)
	go func() { answer <- s.Send(payment) }()
	return answer
}

// got notes an answer.
func (l *life) got(a rig.Answer) {
	l.t.Helper()
	if a.Err != nil {
		l.t.Fatal(a.Err)
	}
	l.answers = append(l.answers, a)
}

// http is what the client got: status, the plugin's headers, and the type of a problem.
func (l *life) http() string {
	var all []string
	for _, a := range l.answers {
		text := fmt.Sprintf("HTTP/1.1 %d %s\n", a.Status, http.StatusText(a.Status))
		isProblem := a.Header.Get("Content-Type") == "application/problem+json"
		for _, name := range []string{"Content-Type", "Idempotency-Status", "Idempotent-Replayed", "Retry-After"} {
			if values := a.Header.Values(name); len(values) > 0 && (name != "Content-Type" || isProblem) {
				text += fmt.Sprintf("%s: %s\n", name, strings.Join(values, ", "))
			}
		}
		if isProblem {
			var problem struct{ Type string }
			err := json.Unmarshal(a.Body, &problem)
			if err != nil {
				l.t.Error(err)
			}
			text += fmt.Sprintf("\n{\"type\":%q, …}\n", problem.Type)
		}
		all = append(all, text)
	}
	return strings.Join(all, "\n")
}

// logged are the lines about the sites and Redis, without what Traefik puts before and after them.
func (l *life) logged() string {
	const middleware, redis = `middleware="idem@file"`, `redis="127.0.0.1:6379"`
	var lines strings.Builder
	for _, site := range l.sites {
		name := strings.TrimSuffix(site.Name, ".test")
		text := strings.NewReplacer(l.server.Addr, "127.0.0.1:6379", name+"-0@file", "idem@file", site.Name+"-0@file", "idem@file").Replace(site.Logs())
		for line := range strings.Lines(text) {
			_, line, found := strings.Cut(line, " level=")
			if found && (strings.Contains(line, middleware) || strings.Contains(line, redis)) {
				line, _, _ = strings.Cut(strings.TrimSuffix(line, "\n"), " module=")
				lines.WriteString("level=" + line + "\n")
			}
		}
	}
	return lines.String()
}

// differs is what differs between two runs.
var differs = regexp.MustCompile(`(?:after|cause)="[^"]*"|Retry-After: \d\d+`)

// TestLives compares a request's lives in docs/how-it-works.md with what happens: the answers that the client gets, how often
// the backend is called, and what is logged.
func TestLives(t *testing.T) {
	shown := map[string]map[string]string{}
	for _, s := range sections(t, "docs/how-it-works.md") {
		shown[s.heading] = map[string]string{}
		for _, found := range snippet.FindAllStringSubmatch(s.text, -1) {
			shown[s.heading][found[1]] = found[2]
		}
	}
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for _, story := range lives {
			t.Run(story.heading, func(t *testing.T) {
				l := &life{t: t}
				l.env, l.server = rig.Restartable(t, host)
				story.live(l)
				page := shown[story.heading]
				same := func(kind, got string) bool {
					return differs.ReplaceAllString(got, "…") == differs.ReplaceAllString(page[kind], "…")
				}
				if !same("http", l.http()) {
					t.Errorf("the client gets\n%s\nthe page has\n%s", l.http(), page["http"])
				}
				for end := time.Now().Add(10 * time.Second); !same("text", l.logged()) && time.Now().Before(end); { // Traefik writes to a pipe
					time.Sleep(10 * time.Millisecond)
				}
				if !same("text", l.logged()) {
					t.Errorf("logged is\n%s\nthe page has\n%s", l.logged(), page["text"])
				}
				wantDiagram(l, page["mermaid"])
			})
		}
	})
}

var toClient = regexp.MustCompile(`-->>Client: (.*)`)

// wantDiagram compares the answers and the calls of the backend with those in a sequence diagram.
func wantDiagram(l *life, diagram string) {
	l.t.Helper()
	var got, drawn []string
	for _, a := range l.answers {
		got = append(got, fmt.Sprintf("%d, %s", a.Status, a.Header.Get("Idempotency-Status")))
	}
	for _, arrow := range toClient.FindAllStringSubmatch(diagram, -1) {
		drawn = append(drawn, strings.ReplaceAll(arrow[1], "#59;", ";")) // Mermaid takes a bare one for the end of a line
	}
	if !slices.Equal(got, drawn) {
		l.t.Errorf("the client gets %q, the diagram has %q", got, drawn)
	}
	l.Calls(int64(strings.Count(diagram, "->>Backend: ")))
}
