package clients

// The clients that people use, and how they repeat themselves.

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/hashicorp/go-retryablehttp"
	"github.com/stripe/stripe-go/v82"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// lossy returns the site as seen through a network that loses the first n answers: the connection breaks when they come.
func lossy(t *testing.T, s *rig.Site, n int64) *hosts.Site {
	t.Helper()
	var answers atomic.Int64
	addr := rig.Listen(t, func(conn net.Conn) {
		server, err := net.Dial("tcp", s.Addr)
		if err != nil {
			return
		}
		defer server.Close()
		go func() { _, _ = io.Copy(server, conn) }()
		buffer := make([]byte, 64<<10)
		for {
			length, err := server.Read(buffer)
			if err != nil || answers.Add(1) <= n {
				return
			}
			_, _ = conn.Write(buffer[:length])
		}
	})
	return hosts.At(addr, s.Name, s.Logs)
}

var withKey = hosts.Settings{"header": "Idempotency-Key", "statusHeader": "Decision"}

func TestRetryableHTTP(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		var busy atomic.Bool
		s := rig.Serve(t, host, func(w http.ResponseWriter, r *http.Request) {
			if busy.Swap(false) {
				http.Error(w, "come again", 503)
				return
			}
			rig.Created(w, r)
		}, withKey)
		network := lossy(t, s, 2)
		client := retryablehttp.NewClient()
		client.HTTPClient = network.Client()
		client.Logger, client.RetryWaitMin, client.RetryWaitMax = nil, time.Millisecond, 10*time.Millisecond
		pay := func(key string) rig.Answer {
			t.Helper()
			request, err := retryablehttp.NewRequest(http.MethodPost, s.URL("/pay"), []byte(`{"amount":10}`))
			if err != nil {
				t.Fatal(err)
			}
			request.Header.Set("Idempotency-Key", key)
			response, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			body, err := io.ReadAll(response.Body)
			return rig.Answer{Status: response.StatusCode, Header: response.Header, Body: body, Err: err}
		}
		s.Want(pay("k1"), 201, "replayed")
		s.Calls(1)
		busy.Store(true)
		s.Want(pay("k2"), 201, "first")
		s.Calls(3)
	})
}

func TestStripe(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		s := rig.Serve(t, host, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(map[string]any{"object": "payment_intent", "id": fmt.Sprintf("pi_%d", rig.Unique.Add(1)), "amount": json.Number(r.FormValue("amount"))})
		}, withKey)
		network := lossy(t, s, 2)
		api := stripe.GetBackendWithConfig(stripe.APIBackend, &stripe.BackendConfig{
			URL: stripe.String("http://" + s.Name), HTTPClient: network.Client(), MaxNetworkRetries: stripe.Int64(5),
			LeveledLogger: &stripe.LeveledLogger{Level: stripe.LevelNull}, EnableTelemetry: stripe.Bool(false),
		})
		api.(*stripe.BackendImplementation).SetNetworkRetriesSleep(false)
		intents := stripe.NewClient("sk_test_1", stripe.WithBackends(&stripe.Backends{API: api})).V1PaymentIntents
		params := func(amount int64) *stripe.PaymentIntentCreateParams {
			return &stripe.PaymentIntentCreateParams{Amount: stripe.Int64(amount), Currency: stripe.String("eur")}
		}
		first, err := intents.Create(t.Context(), params(10)) // the library makes up a key
		if err != nil || first.Amount != 10 || first.LastResponse.Header.Get("Decision") != "replayed" {
			t.Fatalf("%v, %+v", err, first)
		}
		s.Calls(1)

		named := params(20)
		named.SetIdempotencyKey("order-4711")
		one, err := intents.Create(t.Context(), named)
		if err != nil {
			t.Fatal(err)
		}
		two, err := intents.Create(t.Context(), named)
		if err != nil || one.ID != two.ID || one.ID == first.ID {
			t.Errorf("%v: intents %s, %s and %s", err, first.ID, one.ID, two.ID)
		}
		s.Calls(2)
		other := params(99)
		other.SetIdempotencyKey("order-4711")
		_, err = intents.Create(t.Context(), other)
		var refused *stripe.Error
		if !errors.As(err, &refused) || refused.Type != stripe.ErrorTypeIdempotency || refused.Code != "key-reused" ||
			refused.HTTPStatusCode != 422 || refused.Msg != "this idempotency key was used for another request" {
			t.Errorf("the same key for another amount: %v", err)
		}
		s.Calls(2)
	})
}

func TestCurlRetry(t *testing.T) {
	rig.NeedCurl(t)
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		s := rig.Serve(t, host, rig.Created, withKey)
		out, err := exec.Command("curl", "-sS", "-i", "--retry", "5", "--retry-all-errors", "--retry-delay", "1",
			"http://"+lossy(t, s, 1).Addr+"/pay", "-H", "Host: "+s.Name, "-H", "Idempotency-Key: k", "-d", `{"amount":10}`).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "\r\nDecision: replayed\r\n") || !strings.Contains(string(out), "payment ") {
			t.Errorf("%v\n%s", err, out)
		}
		s.Calls(1)
	})
}

// shop is a page with a form whose key the server made for the order.
func shop(pay http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			pay(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, `<!doctype html><link rel="icon" href="data:,"><form id="form"><input type="hidden" name="key" value="%s"><button>Pay</button></form>
<ol id="answers"></ol>
<script>
form.onsubmit = async (event) => {
  event.preventDefault();
  const answer = await fetch("/pay", {method: "POST", body: '{"amount":10}',
    headers: {"Content-Type": "application/json", "Idempotency-Key": form.key.value}});
  answers.append(document.createElement("li"));
  answers.lastChild.textContent = answer.status + " " + await answer.text();
};
</script>`, r.URL.Query().Get("order"))
	}
}

func TestADoubleClickInABrowser(t *testing.T) {
	arrived, proceed := make(chan struct{}, 2), make(chan struct{})
	s := rig.Serve(t, hosts.Traefik, shop(rig.Gated(arrived, proceed)), withKey)
	b := newBrowser(t)
	b.watch(address(s, "/"))
	b.run(chromedp.Navigate(address(s, "/?order=4711")),
		chromedp.Click("button", chromedp.ByQuery), chromedp.DoubleClick("button", chromedp.ByQuery)) // as a mouse does: a first click, and a second
	<-arrived
	close(proceed)
	b.await(`answers.children.length === 2 && [...answers.children].every((li) => li.textContent !== "")`)
	answers := b.eval(`[...answers.children].map((li) => li.textContent).join("|")`)
	one, two, _ := strings.Cut(answers, "|")
	if one != two || !strings.HasPrefix(one, "201 payment ") {
		t.Errorf("the page got %q, want the same payment twice", answers)
	}
	s.Calls(2) // the page and one payment
}

func TestTwoTabsInABrowser(t *testing.T) {
	s := rig.Serve(t, hosts.Traefik, shop(rig.Created), withKey)
	b := newBrowser(t)
	ctx, cancel := chromedp.NewContext(b.ctx)
	t.Cleanup(cancel)
	tabs := []*browser{b, {t: t, ctx: ctx}}
	for _, tab := range tabs {
		tab.watch(address(s, "/"))
		tab.run(chromedp.Navigate(address(s, "/?order=4711")))
	}
	var answers []string
	for _, tab := range tabs {
		tab.run(chromedp.Click("button", chromedp.ByQuery))
		tab.await("answers.children.length === 1 && answers.textContent !== ''")
		answers = append(answers, tab.eval("answers.textContent"))
	}
	if answers[0] != answers[1] || !strings.HasPrefix(answers[0], "201 payment ") {
		t.Errorf("the tabs got %q, want the same payment", answers)
	}
	s.Calls(3) // two pages and one payment
}

// TestIETFDraft has what draft-ietf-httpapi-idempotency-key-header-07 asks of a server. Where it leaves a choice, the
// settings say what was chosen.
func TestIETFDraft(t *testing.T) {
	const uuid = `"8e03978e-40d5-43e8-bc93-6894a57f9324"`
	keyed := func(keys ...string) rig.Call {
		return rig.Post("/pay", "").With(func(c *rig.Call) { c.Header["Idempotency-Key"] = keys })
	}
	amount := func(c rig.Call, body string) rig.Call { return c.With(func(c *rig.Call) { c.Body = body }) }
	for _, c := range []struct {
		section, name string
		settings      hosts.Settings
		before        []rig.Call // sent first, and answered by the backend
		running       bool       // the backend has not answered them yet
		request       rig.Call
		status        int
		slug          string // of a problem
		decision      string
	}{
		{"2.1", "a String of RFC 8941", nil, nil, false, keyed(uuid), 201, "", "first"},
		{"2.1", "no closing quote", nil, nil, false, keyed(`"abc`), 400, "invalid-key", "invalid"},
		{"2.1", "two lines are a List, not an Item", nil, nil, false, keyed(`"a"`, `"b"`), 400, "invalid-key", "invalid"},
		{"2.1", "a List on one line", nil, nil, false, keyed(`"a", "b"`), 400, "invalid-key", "invalid"},
		{"2.1", "a Byte Sequence", nil, nil, false, keyed(`:YWJj:`), 400, "invalid-key", "invalid"},
		{"2.2", "another key", nil, []rig.Call{keyed(uuid)}, false, keyed(`"other"`), 201, "", "first"},
		{"2.2", "the same key without quotes", nil, []rig.Call{keyed(uuid)}, false, keyed(strings.Trim(uuid, `"`)), 201, "", "replayed"},
		{"2.2", "the same key at another resource", nil, []rig.Call{keyed(uuid)}, false, keyed(uuid).With(func(c *rig.Call) { c.Path = "/refund" }), 201, "", "first"},
		{"2.4", "another body", nil, []rig.Call{keyed(uuid)}, false, amount(keyed(uuid), "{}"), 422, "key-reused", "mismatch"},
		{"2.4", "another query", nil, []rig.Call{keyed(uuid)}, false, keyed(uuid).With(func(c *rig.Call) { c.Path = "/pay?now=1" }), 422, "key-reused", "mismatch"},
		{"2.4", "no fingerprint", hosts.Settings{"onMismatch": "replay"}, []rig.Call{keyed(uuid)}, false, amount(keyed(uuid), "{}"), 201, "", "replayed"},
		{"2.6", "the first time", nil, nil, false, keyed(uuid), 201, "", "first"},
		{"2.6", "a retry of a success", nil, []rig.Call{keyed(uuid)}, false, keyed(uuid), 201, "", "replayed"},
		{"2.6", "a retry of an error", nil, []rig.Call{amount(keyed(uuid), "402")}, false, amount(keyed(uuid), "402"), 402, "", "replayed"},
		{"2.6", "a concurrent request", hosts.Settings{"inFlight": "reject"}, []rig.Call{keyed(uuid)}, true, keyed(uuid), 409, "in-flight", "conflict"},
		{"2.7", "no key", hosts.Settings{"required": true}, nil, false, rig.Post("/pay", ""), 400, "missing-key", "missing"},
		{"2.7", "no key where none is required", nil, nil, false, rig.Post("/pay", ""), 201, "", ""},
		{"2.7", "an empty key", hosts.Settings{"required": true}, nil, false, keyed(""), 400, "missing-key", "missing"},
		{"2.7", "reuse with another payload", nil, []rig.Call{keyed(uuid)}, false, amount(keyed(uuid), "[]"), 422, "key-reused", "mismatch"},
		{"2.7", "reuse with another payload while the first runs", nil, []rig.Call{keyed(uuid)}, true, amount(keyed(uuid), "[]"), 422, "key-reused", "mismatch"},
		{"2.7", "429 is no result", nil, []rig.Call{amount(keyed(uuid), "429")}, false, amount(keyed(uuid), "429"), 429, "", "released"},
	} {
		t.Run(c.section+" "+c.name, func(t *testing.T) {
			rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
				arrived, proceed := make(chan struct{}, 5), make(chan struct{})
				settings := hosts.Settings{"header": "Idempotency-Key", "statusHeader": "Decision"}
				for name, value := range c.settings {
					settings[name] = value
				}
				s := rig.Serve(t, host, func(w http.ResponseWriter, r *http.Request) {
					arrived <- struct{}{}
					if c.running {
						<-proceed
					}
					var status int
					_, err := fmt.Fscan(r.Body, &status)
					if err == nil {
						w.WriteHeader(status)
						return
					}
					rig.Created(w, r)
				}, settings)
				answers := make(chan rig.Answer, len(c.before))
				for _, before := range c.before {
					go func() { answers <- s.Send(before) }()
					<-arrived
					if !c.running {
						<-answers
					}
				}
				a := s.Do(c.request)
				if c.slug == "" {
					s.Want(a, c.status, c.decision)
				} else {
					s.WantProblem(a, c.status, c.slug, c.decision)
				}
				if c.running {
					close(proceed)
					<-answers
				}
			})
		})
	}
	t.Run("2.3 expiry", func(t *testing.T) {
		rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
			s := e.Serve(t, hosts.Settings{"header": "Idempotency-Key", "ttl": "1s"}, rig.Created)
			first := s.Do(keyed(uuid))
			s.Want(first, 201, "first")
			for a := s.Do(keyed(uuid)); a.Header.Get("Decision") != "first"; a = s.Do(keyed(uuid)) {
				s.WantReplay(first, a)
				time.Sleep(20 * time.Millisecond)
			}
			s.Calls(2)
		})
	})
}
