package since37

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// till is a service that books payments, and fails as it is told to: each call takes the next of ends, and after the last
// it pays and answers 201.
type till struct {
	*rig.Backend
	mu   sync.Mutex // guards what follows
	ends []string
	paid int
}

func newTill(t *testing.T, ends ...string) *till {
	l := &till{ends: ends}
	l.Backend = rig.NewBackend(t, l.serve)
	return l
}

// The ends of a call. What breaks has paid: the answer is what gets lost.
const (
	unpaid500 = "500, not paid"
	unpaid503 = "503, not paid"
	longer500 = "500, not paid, and told in more than is taken whole"
	breaks    = "paid, and the connection breaks"
)

func (l *till) serve(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	l.mu.Lock()
	end := ""
	if len(l.ends) > 0 {
		end, l.ends = l.ends[0], l.ends[1:]
	}
	if end == "" || end == breaks {
		l.paid++
	}
	l.mu.Unlock()
	switch end {
	case unpaid500:
		http.Error(w, "rolled back", http.StatusInternalServerError)
	case longer500:
		w.Header().Set("Content-Length", "100000")
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = w.Write(make([]byte, 100_000))
	case unpaid503:
		http.Error(w, "come again", http.StatusServiceUnavailable)
	case breaks:
		panic(http.ErrAbortHandler)
	default:
		rig.Created(w, r)
	}
}

// wantPaid checks how often the till was called, and how often it paid.
func (l *till) wantPaid(t *testing.T, calls int64, paid int) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.Calls.Load() != calls || l.paid != paid {
		t.Errorf("%d calls and %d payments, want %d and %d", l.Calls.Load(), l.paid, calls, paid)
	}
}

// part returns a part of a site's dynamic configuration.
func part(config map[string]any, name string) map[string]any {
	return config["http"].(map[string]any)[name].(map[string]any)
}

// retryOn is Traefik's middleware retry, for POST too.
func retryOn(statuses ...string) map[string]any {
	return map[string]any{"retry": map[string]any{
		"attempts": 4, "initialInterval": "1ms", "status": statuses, "retryNonIdempotentMethod": true}}
}

// chained returns the configuration of a site in front of l, whose plugin is called idem and stands in chain, with more
// middlewares.
func (l *till) chained(name string, settings hosts.Settings, chain []string, more map[string]any) map[string]any {
	config := hosts.Dynamic(name, l.URL)
	settings = maps.Clone(settings)
	settings["statusHeader"] = "Decision"
	middlewares := map[string]any{name: map[string]any{"plugin": map[string]any{"idem": map[string]any(settings)}}}
	maps.Copy(middlewares, more)
	config["http"].(map[string]any)["middlewares"] = middlewares
	for _, router := range part(config, "routers") {
		router.(map[string]any)["middlewares"] = chain
	}
	return config
}

// TestRetrySince37 puts Traefik's own retry, which since 3.7 looks at statuses and sends POST again, above and below the
// plugin.
func TestRetrySince37(t *testing.T) {
	p := hosts.StartTraefik(t)
	comeAgain := hosts.Settings{"retryableStatuses": "429, 500, 503"}
	serve := func(t *testing.T, l *till, name string, settings hosts.Settings, chain ...string) *rig.Site {
		t.Helper()
		p.Write(t, name+".test", l.chained(name+".test", settings, chain, map[string]any{"retry-" + name: retryOn("500", "502", "504")}))
		return rig.SiteOf(t, p.Site(t, name+".test"), l.Backend)
	}

	t.Run("above, a server that fails twice before it pays", func(t *testing.T) {
		l := newTill(t, unpaid500, unpaid500)
		s := serve(t, l, "above", comeAgain, "retry-above", "above.test")
		first := s.Do(rig.Post("/pay", "k"))
		s.Want(first, 201, "first")
		l.wantPaid(t, 3, 1)
		s.WantReplay(first, s.Do(rig.Post("/pay", "k")))
		l.wantPaid(t, 3, 1)
	})
	t.Run("above, a server that fails for good", func(t *testing.T) {
		l := newTill(t, unpaid500, unpaid500, unpaid500, unpaid500)
		s := serve(t, l, "for-good", comeAgain, "retry-for-good", "for-good.test")
		s.Want(s.Do(rig.Post("/pay", "k")), 500, "released")
		l.wantPaid(t, 4, 0)
		s.Want(s.Do(rig.Post("/pay", "k")), 201, "first")
		l.wantPaid(t, 5, 1)
	})
	t.Run("above, a status that does not free the key", func(t *testing.T) {
		l := newTill(t, unpaid500)
		s := serve(t, l, "kept", hosts.Settings{}, "retry-kept", "kept.test")
		s.Want(s.Do(rig.Post("/pay", "k")), 500, "replayed")
		l.wantPaid(t, 1, 0)
	})
	t.Run("above, a status that does not free the key, with a long answer", func(t *testing.T) {
		l := newTill(t, longer500)
		s := serve(t, l, "kept-long", hosts.Settings{}, "retry-kept-long", "kept-long.test")
		a := s.Do(rig.Post("/pay", "k"))
		s.Want(a, 500, "replayed")
		if len(a.Body) != 100_000 {
			t.Errorf("%d bytes of it", len(a.Body))
		}
		l.wantPaid(t, 1, 0)
	})
	t.Run("above, a status that does not free the key, with an answer that is too large", func(t *testing.T) {
		l := newTill(t, longer500)
		s := serve(t, l, "unkept", hosts.Settings{"maxResponseBodyBytes": 1000}, "retry-unkept", "unkept.test")
		s.WantProblem(s.Do(rig.Post("/pay", "k")), 409, "response-not-kept", "unkept")
		l.wantPaid(t, 1, 0)
	})
	t.Run("above, a server that pays and breaks off", func(t *testing.T) {
		l := newTill(t, breaks, breaks)
		s := serve(t, l, "breaks", comeAgain, "retry-breaks", "breaks.test")
		s.WantProblem(s.Do(rig.Post("/pay", "k")), 409, "outcome-unknown", "unknown")
		s.WantProblem(s.Do(rig.Post("/pay", "k")), 409, "outcome-unknown", "unknown")
		l.wantPaid(t, 1, 1)
	})
	t.Run("above, a server that fails, and then pays and breaks off", func(t *testing.T) {
		l := newTill(t, unpaid500, breaks)
		s := serve(t, l, "fails-breaks", comeAgain, "retry-fails-breaks", "fails-breaks.test")
		s.WantProblem(s.Do(rig.Post("/pay", "k")), 409, "outcome-unknown", "unknown")
		l.wantPaid(t, 2, 1)
	})
	t.Run("above, a server that is not there", func(t *testing.T) {
		addr := rig.FreeAddress(t)
		l := newTill(t)
		gone := &till{Backend: &rig.Backend{Server: &httptest.Server{URL: "http://" + addr}}}
		s := serve(t, gone, "gone", comeAgain, "retry-gone", "gone.test")
		s.Want(s.Do(rig.Post("/pay", "k")), 502, "released")
		listener, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = http.Serve(listener, l.Config.Handler) }() //nolint:gosec // ends with its listener
		t.Cleanup(func() { _ = listener.Close() })
		s.Want(s.Do(rig.Post("/pay", "k")), 201, "first")
		l.wantPaid(t, 1, 1)
	})
	t.Run("above, many at once", func(t *testing.T) {
		l := newTill(t, unpaid500, unpaid500)
		s := serve(t, l, "many", comeAgain, "retry-many", "many.test")
		answers := make([]rig.Answer, 10)
		var all sync.WaitGroup
		for i := range answers {
			all.Add(1)
			go func() {
				defer all.Done()
				answers[i] = s.Send(rig.Post("/pay", "k"))
			}()
		}
		all.Wait()
		for _, a := range answers {
			if a.Err != nil || a.Status != 201 || string(a.Body) != string(answers[0].Body) {
				t.Errorf("%d %q %v, want 201 %q", a.Status, a.Body, a.Err, answers[0].Body)
			}
		}
		l.wantPaid(t, 3, 1)
	})
	t.Run("above, without a key", func(t *testing.T) {
		l := newTill(t, breaks)
		s := serve(t, l, "keyless", hosts.Settings{}, "retry-keyless", "keyless.test")
		s.Want(s.Do(rig.Post("/pay", "")), 201, "")
		l.wantPaid(t, 2, 2) // as Traefik is told to
	})
	t.Run("below", func(t *testing.T) {
		l := newTill(t, unpaid500, breaks)
		s := serve(t, l, "below", comeAgain, "below.test", "retry-below")
		first := s.Do(rig.Post("/pay", "k"))
		s.Want(first, 201, "first")
		l.wantPaid(t, 3, 2) // as Traefik is told to
		s.WantReplay(first, s.Do(rig.Post("/pay", "k")))
		l.wantPaid(t, 3, 2)
	})
	t.Run("below, the last try breaks off", func(t *testing.T) {
		l := newTill(t, unpaid500, unpaid500, unpaid500, breaks)
		s := serve(t, l, "below-breaks", comeAgain, "below-breaks.test", "retry-below-breaks")
		s.Want(s.Do(rig.Post("/pay", "k")), 502, "unknown")
		s.WantProblem(s.Do(rig.Post("/pay", "k")), 409, "outcome-unknown", "unknown")
		l.wantPaid(t, 4, 1)
	})
	t.Run("below, the last try is told to come again", func(t *testing.T) {
		l := newTill(t, unpaid500, unpaid500, unpaid500, unpaid503)
		s := serve(t, l, "below-503", comeAgain, "below-503.test", "retry-below-503")
		s.Want(s.Do(rig.Post("/pay", "k")), 503, "unknown") // what the other tries did cannot be told from here
		s.WantProblem(s.Do(rig.Post("/pay", "k")), 409, "outcome-unknown", "unknown")
		l.wantPaid(t, 4, 0)
	})
	t.Run("below, as a middleware of the service", func(t *testing.T) {
		l := newTill(t, unpaid500, unpaid500)
		config := l.chained("service.test", comeAgain, []string{"service.test"}, map[string]any{"retry-service": retryOn("500")})
		part(config, "services")["service"].(map[string]any)["middlewares"] = []string{"retry-service"}
		p.Write(t, "service.test", config)
		s := rig.SiteOf(t, p.Site(t, "service.test"), l.Backend)
		first := s.Do(rig.Post("/pay", "k"))
		s.Want(first, 201, "first")
		s.WantReplay(first, s.Do(rig.Post("/pay", "k")))
		l.wantPaid(t, 3, 1)
	})
}

// TestExampleRetrySince37 checks what examples/chain/README.md says of retry.yml.
func TestExampleRetrySince37(t *testing.T) {
	alice := []string{"Authorization", "Basic YWxpY2U6d29uZGVybGFuZA=="}
	chain := func(t *testing.T, l *till) *rig.Site {
		addr := rig.FreeAddress(t)
		dir := rig.CopyExample(t, "chain", map[string]string{
			":8080": addr, "http://127.0.0.1:8000": l.URL, "filename: dynamic.yml": "filename: retry.yml"})
		return rig.SiteOf(t, hosts.Run(t, dir, "traefik.yml", addr, "shop.example"), l.Backend)
	}
	t.Run("the server fails twice", func(t *testing.T) {
		l := newTill(t, unpaid500, unpaid500)
		s := chain(t, l)
		first := s.Do(rig.Pay("k", alice...))
		s.WantExample(first, 201, "first")
		again := s.Do(rig.Pay("k", alice...))
		s.WantExample(again, 201, "replayed")
		if string(again.Body) != string(first.Body) {
			t.Errorf("the duplicate got %q, want %q", again.Body, first.Body)
		}
		l.wantPaid(t, 3, 1)
	})
	t.Run("the server pays and breaks off", func(t *testing.T) {
		l := newTill(t, breaks)
		s := chain(t, l)
		s.WantExample(s.Do(rig.Pay("k", alice...)), 502, "unknown")
		s.WantExample(s.Do(rig.Pay("k", alice...)), 409, "unknown")
		l.wantPaid(t, 1, 1)
	})
	t.Run("there is no key", func(t *testing.T) {
		l := newTill(t, unpaid500)
		s := chain(t, l)
		s.WantExample(s.Do(rig.Pay("", alice...)), 400, "missing")
		l.wantPaid(t, 0, 0)
	})
}

// TestRetryLedgerSince37 sends many payments at once through Traefik's retry and the plugin, each of them three times, to
// a server that fails in one of four ways. None may be made twice.
func TestRetryLedgerSince37(t *testing.T) {
	var mu sync.Mutex // guards both
	calls, paid := map[string]int{}, map[string]int{}
	l := &till{Backend: rig.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		key := r.Header.Get("X-Request-Id")
		mu.Lock()
		calls[key]++
		fails := map[byte]int{'t': 2, 'f': 1}[key[0]] > calls[key]-1
		if !fails {
			paid[key]++
		}
		mu.Unlock()
		switch {
		case fails:
			http.Error(w, "rolled back", http.StatusInternalServerError)
		case key[0] == 'b' || key[0] == 'f':
			panic(http.ErrAbortHandler)
		default:
			rig.Created(w, r)
		}
	})}
	p := hosts.StartTraefik(t)
	p.Write(t, "ledger.test", l.chained("ledger.test", hosts.Settings{"retryableStatuses": "429, 500, 503"},
		[]string{"retry-ledger", "ledger.test"}, map[string]any{"retry-ledger": retryOn("500")}))
	s := rig.SiteOf(t, p.Site(t, "ledger.test"), l.Backend)

	const each = 25
	keys := make(chan string)
	var clients sync.WaitGroup
	for range 16 {
		clients.Add(1)
		go func() {
			defer clients.Done()
			for key := range keys {
				a := s.Send(rig.Post("/pay", key))
				mu.Lock()
				known := a.Err == nil && paid[key] == 1 && (a.Status == 201) == (key[0] == 'o' || key[0] == 't')
				if !known || (a.Status != 201 && a.Status != 409 && a.Status != 502) {
					t.Errorf("%s: %d %q %v, paid %d times", key, a.Status, a.Header.Get("Decision"), a.Err, paid[key])
				}
				mu.Unlock()
			}
		}()
	}
	for i := range each {
		for range 3 {
			for _, kind := range []string{"ok", "twice", "breaks", "fails-breaks"} {
				keys <- fmt.Sprintf("%s-%d", kind, i)
			}
		}
	}
	close(keys)
	clients.Wait()
	all := 0
	for _, n := range calls {
		all += n
	}
	t.Logf("%d payments, each sent three times: the server was called %d times", len(paid), all)
	if len(paid) != 4*each || all != 7*each {
		t.Errorf("%d payments by %d calls, want %d by %d", len(paid), all, 4*each, 7*each)
	}
}

// TestFailoverSince37 puts the plugin above a service that fails over by status, and on both of the services that it
// chooses from.
func TestFailoverSince37(t *testing.T) {
	p := hosts.StartTraefik(t)
	serve := func(t *testing.T, name string, main, spare *till, onServices bool) *rig.Site {
		t.Helper()
		config := main.chained(name+".test", hosts.Settings{}, []string{name + ".test"}, nil)
		balancer := func(l *till) map[string]any {
			return map[string]any{"loadBalancer": map[string]any{"servers": []any{map[string]any{"url": l.URL}}}}
		}
		services := part(config, "services")
		services["main-"+name], services["spare-"+name] = balancer(main), balancer(spare)
		services[name] = map[string]any{"failover": map[string]any{
			"service": "main-" + name, "fallback": "spare-" + name, "errors": map[string]any{"status": []string{"500-504"}}}}
		if onServices {
			part(config, "routers")[name].(map[string]any)["middlewares"] = []string{}
			for _, service := range []string{"main-", "spare-"} {
				services[service+name].(map[string]any)["middlewares"] = []string{name + ".test"}
			}
		}
		p.Write(t, name+".test", config)
		return rig.SiteOf(t, p.Site(t, name+".test"), main.Backend)
	}

	t.Run("plugin above", func(t *testing.T) {
		main, spare := newTill(t, unpaid503), newTill(t)
		s := serve(t, "over", main, spare, false)
		first := s.Do(rig.Post("/pay", "k"))
		s.Want(first, 201, "first")
		s.WantReplay(first, s.Do(rig.Post("/pay", "k")))
		main.wantPaid(t, 1, 0)
		spare.wantPaid(t, 1, 1)
	})
	t.Run("plugin above, and the first service breaks off", func(t *testing.T) {
		main, spare := newTill(t, breaks), newTill(t)
		s := serve(t, "over-breaks", main, spare, false)
		first := s.Do(rig.Post("/pay", "k"))
		s.Want(first, 201, "first")
		s.WantReplay(first, s.Do(rig.Post("/pay", "k")))
		main.wantPaid(t, 1, 1)
		spare.wantPaid(t, 1, 1) // as Traefik is told to
	})
	t.Run("plugin above, and both break off", func(t *testing.T) {
		main, spare := newTill(t, breaks), newTill(t, breaks)
		s := serve(t, "over-both", main, spare, false)
		s.Want(s.Do(rig.Post("/pay", "k")), 502, "unknown")
		s.WantProblem(s.Do(rig.Post("/pay", "k")), 409, "outcome-unknown", "unknown")
		main.wantPaid(t, 1, 1)
		spare.wantPaid(t, 1, 1)
	})
	t.Run("plugin on both services", func(t *testing.T) {
		main, spare := newTill(t, unpaid503), newTill(t)
		s := serve(t, "each", main, spare, true)
		first := s.Do(rig.Post("/pay", "k"))
		s.Want(first, 201, "first")
		s.WantReplay(first, s.Do(rig.Post("/pay", "k")))
		main.wantPaid(t, 1, 0)
		spare.wantPaid(t, 1, 1)
	})
	t.Run("plugin on both services, and the first tells of its failure at length", func(t *testing.T) {
		main, spare := newTill(t, longer500), newTill(t)
		s := serve(t, "each-long", main, spare, true)
		s.Want(s.Do(rig.Post("/pay", "k")), 500, "replayed")
		main.wantPaid(t, 1, 0)
		spare.wantPaid(t, 0, 0)
	})
	t.Run("plugin on both services, and the first breaks off", func(t *testing.T) {
		main, spare := newTill(t, breaks), newTill(t)
		s := serve(t, "each-breaks", main, spare, true)
		for range 2 {
			s.WantProblem(s.Do(rig.Post("/pay", "k")), 409, "outcome-unknown", "unknown")
		}
		main.wantPaid(t, 1, 1)
		spare.wantPaid(t, 0, 0) // it may have been paid
	})
}
