package examples

import (
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/payments"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// paymentsServer is the sample backend.
func paymentsServer(t *testing.T) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(payments.Handler())
	t.Cleanup(server.Close)
	return server
}

// paysOnce sends a payment twice, which has to be made once, and then another one. The backend is new.
func paysOnce(s *rig.Site) {
	s.T.Helper()
	first := s.Do(rig.Pay("order-4711"))
	again := s.Do(rig.Pay("order-4711"))
	s.WantExample(first, 201, "first")
	s.WantExample(again, 201, "replayed")
	if string(first.Body) != string(again.Body) || again.Header.Get("Idempotent-Replayed") != "true" {
		s.T.Errorf("the duplicate got %s %v, want %s", again.Body, again.Header, first.Body)
	}
	s.WantExample(s.Do(rig.Pay("order-4712")), 201, "first")
	wantPaid(s, 2)
}

// wantPaid asks the sample backend how often it was called to pay.
func wantPaid(s *rig.Site, n int, more ...string) {
	s.T.Helper()
	c := rig.Post("/", "", more...)
	c.Method, c.Body = http.MethodGet, ""
	page := s.Do(c)
	if !strings.HasPrefix(string(page.Body), fmt.Sprintf("calls of the backend: %d\n", n)) {
		s.T.Errorf("the backend says %s, want %d calls", page.Body, n)
	}
}

func TestExampleFile(t *testing.T) {
	// A busy machine must not look like an outage.
	for format, patience := range map[string][2]string{
		"yml":  {"keyPrefix: shop", "keyPrefix: shop\n            dialTimeout: 10s\n            readTimeout: 10s"},
		"toml": {`keyPrefix = "shop"`, `keyPrefix = "shop"` + "\n    dialTimeout = \"10s\"\n    readTimeout = \"10s\""},
	} {
		t.Run(format, func(t *testing.T) {
			redis, addr := redistest.Start(t), rig.FreeAddress(t)
			dir := rig.CopyExample(t, "file", map[string]string{
				":8080": addr, "http://127.0.0.1:8000": paymentsServer(t).URL, "127.0.0.1:6379": redis.Addr, patience[0]: patience[1],
			})
			s := rig.SiteOf(t, hosts.Run(t, dir, "traefik."+format, addr, "shop.example"), nil)
			paysOnce(s)
			if keys := redis.Do("KEYS", "shop:req:*"); strings.Count(keys, "shop:req:") != 2 {
				t.Errorf("keys in Redis: %q, want 2", keys)
			}
		})
	}
}

// TestExampleChain checks what examples/chain/README.md says of the order.
func TestExampleChain(t *testing.T) {
	const order = "[cors, compress, auth, limit, idem]"
	alice, bob := "Basic YWxpY2U6d29uZGVybGFuZA==", "Basic Ym9iOmJ1aWxkZXI="
	chain := func(t *testing.T, middlewares, headerField string) *rig.Site {
		addr := rig.FreeAddress(t)
		dir := rig.CopyExample(t, "chain", map[string]string{
			":8080": addr, "http://127.0.0.1:8000": paymentsServer(t).URL, "average: 10": "average: 5", "burst: 10": "burst: 5", order: middlewares, "X-User": headerField,
		})
		return rig.SiteOf(t, hosts.Run(t, dir, "traefik.yml", addr, "shop.example"), nil)
	}
	unzipped := func(t *testing.T, a rig.Answer) string {
		t.Helper()
		reader, err := gzip.NewReader(strings.NewReader(string(a.Body)))
		if err != nil {
			t.Fatalf("not zipped: %v, %v", err, a.Header)
		}
		text, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}

	t.Run("as it is", func(t *testing.T) {
		s := chain(t, order, "X-User")
		first := s.Do(rig.Pay("k", "Authorization", alice, "Accept-Encoding", "gzip"))
		s.WantExample(first, 201, "first")
		again := s.Do(rig.Pay("k", "Authorization", alice))
		s.WantExample(again, 201, "replayed")
		if string(again.Body) != unzipped(t, first) {
			t.Errorf("a client without gzip got %q %v", again.Body, again.Header)
		}
		zipped := s.Do(rig.Pay("k", "Authorization", alice, "Accept-Encoding", "gzip"))
		s.WantExample(zipped, 201, "replayed")
		if unzipped(t, zipped) != string(again.Body) {
			t.Errorf("a client with gzip got %q %v", zipped.Body, zipped.Header)
		}
		for _, origin := range []string{"https://shop.example", "https://app.shop.example"} {
			preflight := rig.Call{Method: http.MethodOptions, Path: "/api/payments/", Header: http.Header{"Origin": {origin}, "Access-Control-Request-Method": {"POST"}}}
			refused, replayed := s.Do(rig.Pay("k", "Origin", origin)), s.Do(rig.Pay("k", "Authorization", alice, "Origin", origin))
			for _, a := range []rig.Answer{s.Do(preflight), refused, replayed} {
				if allowed := a.Header.Values("Access-Control-Allow-Origin"); len(allowed) != 1 || allowed[0] != origin {
					t.Errorf("%d to %s allows %q", a.Status, origin, allowed)
				}
			}
			s.WantExample(replayed, 201, "replayed")
		}
		s.WantExample(s.Do(rig.Pay("k")), 401, "")
		s.WantExample(s.Do(rig.Pay("k", "X-User", "alice")), 401, "")
		s.WantExample(s.Do(rig.Pay("k", "Authorization", bob)), 201, "first") // his own, not hers
		wantPaid(s, 2, "Authorization", bob)
		for range 10 {
			s.Do(rig.Pay("k", "Authorization", alice))
		}
		s.WantExample(s.Do(rig.Pay("k", "Authorization", alice)), 429, "")
		s.WantExample(s.Do(rig.Pay("k", "Authorization", bob)), 201, "replayed")
	})
	t.Run("a name that Traefik writes as it is configured", func(t *testing.T) {
		s := chain(t, order, "X-WebAuth-User")
		s.WantExample(s.Do(rig.Pay("k", "Authorization", alice)), 201, "first")
		s.WantExample(s.Do(rig.Pay("k", "Authorization", bob)), 201, "first")
		s.WantExample(s.Do(rig.Pay("k", "Authorization", alice)), 201, "replayed")
		s.WantExample(s.Do(rig.Pay("other", "Authorization", bob, "X-Webauth-User", "alice")), 201, "first")
		s.WantExample(s.Do(rig.Pay("other", "Authorization", alice)), 201, "first")
	})
	t.Run("the plugin above authentication", func(t *testing.T) {
		s := chain(t, "[idem, auth]", "X-User")
		s.WantExample(s.Do(rig.Pay("k", "Authorization", alice, "X-User", "alice")), 201, "first")
		s.WantExample(s.Do(rig.Pay("k", "X-User", "alice")), 201, "replayed") // to somebody who has no password
	})
	t.Run("the plugin above the rate limit", func(t *testing.T) {
		s := chain(t, "[auth, idem, limit]", "X-User")
		s.WantExample(s.Do(rig.Pay("k", "Authorization", alice)), 201, "first")
		for range 10 { // duplicates are not counted
			s.WantExample(s.Do(rig.Pay("k", "Authorization", alice)), 201, "replayed")
		}
	})
	t.Run("the plugin above compression", func(t *testing.T) {
		s := chain(t, "[auth, idem, compress]", "X-User")
		s.WantExample(s.Do(rig.Pay("k", "Authorization", alice, "Accept-Encoding", "gzip")), 201, "first")
		again := s.Do(rig.Pay("k", "Authorization", alice)) // which cannot read what it gets
		s.WantExample(again, 201, "replayed")
		unzipped(t, again)
	})
}
