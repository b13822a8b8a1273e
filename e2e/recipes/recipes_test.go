// Package recipes runs docs/recipes.md and examples/webhooks with what their senders really send.
package recipes

import (
	"bytes"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// recipe are the settings under a heading of docs/recipes.md.
func recipe(t *testing.T, heading string) hosts.Settings {
	t.Helper()
	_, section, found := strings.Cut(rig.ReadRoot(t, "docs/recipes.md"), "\n## "+heading+"\n")
	_, section, _ = strings.Cut(section, "```yaml\n")
	text, _, fenced := strings.Cut(section, "```\n")
	var config struct {
		HTTP struct {
			Middlewares struct {
				Idem struct{ Plugin struct{ Idem hosts.Settings } }
			}
		}
	}
	err := yaml.Unmarshal([]byte(text), &config)
	settings := config.HTTP.Middlewares.Idem.Plugin.Idem
	if err != nil || !found || !fenced || settings == nil {
		t.Fatalf("docs/recipes.md has no settings under %s: %v", heading, err)
	}
	settings["statusHeader"] = "Decision"
	return settings
}

// rows are the rows of the table of senders, as they change the settings of webhooks.
func rows(t *testing.T) map[string]hosts.Settings {
	t.Helper()
	_, table, _ := strings.Cut(rig.ReadRoot(t, "docs/recipes.md"), "| sender | `key` |\n|---|---|\n")
	table, _, _ = strings.Cut(table, "\n\n")
	all := map[string]hosts.Settings{}
	for line := range strings.Lines(table + "\n") {
		name, rest, _ := strings.Cut(strings.Trim(line, "| \n"), " | ")
		settings := hosts.Settings{}
		var key []any
		for _, span := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(rest, -1) {
			setting, value, other := strings.Cut(span[1], ": ")
			if other {
				settings[setting] = value
			} else {
				key = append(key, span[1])
			}
		}
		settings["key"] = key
		all[name] = settings
	}
	return all
}

// inbox is a backend for webhooks that checks their signatures, and answers 500 while it is down.
func inbox(down *atomic.Bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		for _, s := range senders {
			if s.path != r.URL.Path || s.sign == nil {
				continue
			}
			name, signature := s.sign(r.Header, string(body))
			if r.Header.Get(name) != "" && r.Header.Get(name) != signature {
				http.Error(w, "wrong signature", http.StatusUnauthorized)
				return
			}
		}
		if down.Load() {
			http.Error(w, "no database", http.StatusInternalServerError)
			return
		}
		fmt.Fprintf(w, "accepted %d", rig.Unique.Add(1))
	}
}

// delivers has the sender deliver events several times: each has to be processed once, and again only after it was refused.
func delivers(s *rig.Site, sender *sender, down *atomic.Bool) {
	s.T.Helper()
	for _, event := range []string{"One", "Other"} {
		first := s.Do(sender.deliver(event, 1))
		s.Want(first, 200, "first")
		for try := 2; try <= 4; try++ {
			s.WantReplay(first, s.Do(sender.deliver(event, try)))
		}
	}
	down.Store(true)
	s.Want(s.Do(sender.deliver("Failing", 1)), 500, "released")
	down.Store(false)
	later := s.Do(sender.deliver("Failing", 2))
	s.Want(later, 200, "first")
	s.WantReplay(later, s.Do(sender.deliver("Failing", 3)))
	if sender.sign == nil {
		return
	}
	name, _ := sender.sign(http.Header{}, "")
	forged := sender.deliver("Foreseen", 1).With(func(c *rig.Call) { c.Header.Set(name, c.Header.Get(name)+"0") })
	s.Want(s.Do(forged), 401, "released")
	s.Want(s.Do(sender.deliver("Foreseen", 1)), 200, "first")
}

func TestWebhooks(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		all := rows(t)
		for i, sender := range senders {
			t.Run(fmt.Sprint(i, sender.row), func(t *testing.T) {
				settings := recipe(t, "Webhooks")
				delete(settings, "redis") // which this test does not start
				for name, value := range all[sender.row] {
					settings[name] = value
				}
				if all[sender.row] == nil {
					t.Fatal("docs/recipes.md does not have it")
				}
				down := &atomic.Bool{}
				delivers(rig.Serve(t, host, inbox(down), settings), sender, down)
			})
		}
		for row := range all {
			known := false
			for _, sender := range senders {
				known = known || sender.row == row
			}
			if !known {
				t.Errorf("nothing is sent as %s does", row)
			}
		}
	})
}

// TestStripeWithoutItsCounter has ignore in the place of onMismatch.
func TestStripeWithoutItsCounter(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		settings := recipe(t, "Webhooks")
		delete(settings, "redis")
		delete(settings, "onMismatch")
		settings["ignore"] = "json:/pending_webhooks"
		s := rig.Serve(t, host, rig.Created, settings)
		first := s.Do(senders[0].deliver("One", 1))
		s.Want(first, 201, "first")
		again := senders[0].deliver("One", 2)
		s.WantReplay(first, s.Do(again))
		again.Body = strings.Replace(again.Body, "2000", "3000", 1)
		s.WantProblem(s.Do(again), 422, "key-reused", "mismatch")
	})
}

// TestExampleWebhooks starts examples/webhooks, which has all senders.
func TestExampleWebhooks(t *testing.T) {
	down := &atomic.Bool{}
	b := rig.NewBackend(t, inbox(down))
	addr := rig.FreeAddress(t)
	dir := rig.CopyExample(t, "webhooks", map[string]string{":8080": addr, "http://127.0.0.1:8000": b.URL, "Idempotency-Status": "Decision"})
	s := rig.SiteOf(t, hosts.Run(t, dir, "traefik.yml", addr, "hooks.example"), b)
	for _, sender := range senders {
		delivers(s, sender, down)
	}
}

func TestAPIWithTheKeyInTheBody(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		s := rig.Serve(t, host, rig.Created, recipe(t, "APIs with the key in the body"))
		pay := func(key, more string) rig.Call {
			return rig.Post("/v2/payments", "", "Square-Version", "2026-01-22", "Authorization", "Bearer EAAA").With(func(c *rig.Call) {
				c.Body = `{"source_id":"cnon:card-nonce-ok",` + key + `"amount_money":{"amount":1000,"currency":"USD"}` + more + `}`
			})
		}
		const key = `"idempotency_key":"7b0f3ec5-086a-4871-8f13-3c81b3875218",`
		first := s.Do(pay(key, ""))
		s.Want(first, 201, "first")
		s.WantReplay(first, s.Do(pay(key, "")))
		s.WantProblem(s.Do(pay(key, `,"note":"another"`)), 422, "key-reused", "mismatch")
		s.WantProblem(s.Do(pay("", "")), 400, "missing-key", "missing")
		s.Want(s.Do(pay(key, "").Headers("Authorization", "Bearer EBBB")), 201, "first")
		s.Calls(2)
	})
}

func TestGraphQL(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		s := rig.Serve(t, host, rig.Created, recipe(t, "GraphQL"))
		ask := func(body string, more ...string) rig.Call {
			return rig.Post("/graphql", "", more...).With(func(c *rig.Call) { c.Body = body })
		}
		const query = `{"operationName":"Orders","query":"query Orders { orders { id } }","variables":{}`
		mutation := func(amount int) string {
			return fmt.Sprintf(`{"operationName":"Pay","query":"mutation Pay($amount: Int!) { pay(amount: $amount) { id } }","variables":{"amount":%d},"extensions":{"idempotencyKey":"5b4f2c1e-8d5a-4a0e-9c59-0f6ad1f5c7aa"}}`, amount)
		}
		for _, body := range []string{query + "}", query + `,"extensions":{"persistedQuery":{"version":1,"sha256Hash":"ecf4edb46db40b5132295c0291d62fb65d6759a9eedfa4d5d612dd5ec54a6b38"}}}`, "[" + query + "}]"} {
			for range 2 {
				s.Want(s.Do(ask(body)), 201, "") // runs each time
			}
		}
		s.Want(s.Do(rig.Get("/graphql?query=%7Borders%7Bid%7D%7D")), 201, "")
		first := s.Do(ask(mutation(10)))
		s.Want(first, 201, "first")
		s.WantReplay(first, s.Do(ask(mutation(10))))
		s.WantProblem(s.Do(ask(mutation(20))), 422, "key-reused", "mismatch")
		batch := s.Do(ask("["+query+"}]", "Idempotency-Key", "k"))
		s.Want(batch, 201, "first")
		s.WantReplay(batch, s.Do(ask("["+query+"}]", "Idempotency-Key", "k")))
		s.Calls(9)
	})
}

func TestHTMLForms(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		arrived, proceed := make(chan struct{}, 10), make(chan struct{})
		s := rig.Serve(t, host, func(w http.ResponseWriter, r *http.Request) {
			arrived <- struct{}{}
			<-proceed
			if r.PostFormValue("amount") == "" {
				w.WriteHeader(http.StatusUnprocessableEntity)
				return
			}
			http.Redirect(w, r, fmt.Sprintf("/orders/%d", rig.Unique.Add(1)), http.StatusSeeOther)
		}, recipe(t, "HTML forms"))
		click := func(session, fields string) rig.Call {
			return rig.Post("/checkout", "", "Cookie", "theme=dark; session="+session, "Origin", "http://"+s.Name).With(func(c *rig.Call) {
				c.Header.Set("Content-Type", "application/x-www-form-urlencoded")
				c.Body = fields
			})
		}
		const form = "token=q0NU6GhcLW8%2Bf3mZ&amount=10&name=J%C3%B6rg"
		clicks := make(chan rig.Answer, 2)
		for range 2 {
			go func() { clicks <- s.Send(click("a", form)) }()
		}
		<-arrived
		close(proceed)
		one, two := <-clicks, <-clicks
		if one.Status != 303 || two.Status != 303 || one.Header.Get("Location") != two.Header.Get("Location") {
			t.Errorf("a double click gets %d %v and %d %v", one.Status, one.Header, two.Status, two.Header)
		}
		s.Calls(1)
		s.Want(s.Do(click("b", form)), 303, "first") // another user
		s.Want(s.Do(click("a", "token=next&amount=")), 422, "released")
		s.Want(s.Do(click("a", "token=next&amount=10")), 303, "first") // the same form, corrected
		s.Calls(4)
	})
}

func TestUploads(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		s := rig.Serve(t, host, func(w http.ResponseWriter, r *http.Request) {
			file, header, err := r.FormFile("file")
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			n, _ := io.Copy(io.Discard, file)
			w.WriteHeader(http.StatusCreated)
			fmt.Fprintf(w, "%s has %d bytes, upload %d", header.Filename, n, rig.Unique.Add(1))
		}, recipe(t, "Uploads"))
		upload := func(token, name string) rig.Call {
			var body bytes.Buffer
			form := multipart.NewWriter(&body) // with a boundary of its own, as browsers have
			_ = form.WriteField("album", "holidays")
			file, _ := form.CreateFormFile("file", name)
			_, _ = file.Write(bytes.Repeat([]byte("0123456789abcdef"), 3<<16)) // 3 MiB
			_ = form.Close()
			return rig.Post("/upload?token="+token, "", "Cookie", "session=a").With(func(c *rig.Call) {
				c.Header.Set("Content-Type", form.FormDataContentType())
				c.Body = body.String()
			})
		}
		first := s.Do(upload("t1", "beach.jpg"))
		s.Want(first, 201, "first")
		s.WantReplay(first, s.Do(upload("t1", "beach.jpg")))
		s.WantProblem(s.Do(upload("t1", "ocean.jpg")), 422, "key-reused", "mismatch")
		s.Want(s.Do(upload("t2", "beach.jpg")), 201, "first")
		s.Calls(2)
	})
}
