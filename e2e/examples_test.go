package e2e

import (
	"compress/gzip"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/launch"
	"github.com/example/traefik-idem/e2e/internal/payments"
	"github.com/example/traefik-idem/e2e/internal/redistest"
)

// copyExample puts the files of an example, with each text in changes replaced, into a new folder. A text that stands
// in none of them fails the test: it would check something else than the example.
func copyExample(t *testing.T, name string, changes map[string]string) string {
	t.Helper()
	from, to := filepath.Join(hosts.Root(), "examples", name), t.TempDir()
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	unused := maps.Clone(changes)
	for _, entry := range entries {
		text := readRoot(t, filepath.Join("examples", name, entry.Name()))
		for old, changed := range changes {
			if strings.Contains(text, old) {
				delete(unused, old)
			}
			text = strings.ReplaceAll(text, old, changed)
		}
		err := os.WriteFile(filepath.Join(to, entry.Name()), []byte(text), 0o600)
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(unused) > 0 {
		t.Fatalf("examples/%s has no %q", name, slices.Collect(maps.Keys(unused)))
	}
	return to
}

// paymentsServer is the sample backend.
func paymentsServer(t *testing.T) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(payments.Handler())
	t.Cleanup(server.Close)
	return server
}

func freeAddress(t *testing.T) string {
	t.Helper()
	addr, err := launch.FreeAddress("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// pay is a payment as the examples protect it.
func pay(key string, more ...string) call {
	return post("/api/payments/", "", append([]string{"Idempotency-Key", key}, more...)...)
}

// paysOnce sends a payment twice, which has to be made once, and then another one. The backend is new.
func (s *site) paysOnce() {
	s.t.Helper()
	first := s.do(pay("order-4711"))
	again := s.do(pay("order-4711"))
	s.wantExample(first, 201, "first")
	s.wantExample(again, 201, "replayed")
	if string(first.body) != string(again.body) || again.header.Get("Idempotent-Replayed") != "true" {
		s.t.Errorf("the duplicate got %s %v, want %s", again.body, again.header, first.body)
	}
	s.wantExample(s.do(pay("order-4712")), 201, "first")
	s.wantPaid(2)
}

// wantExample is want with the header that the examples use.
func (s *site) wantExample(a answer, status int, decision string) {
	s.t.Helper()
	if a.status != status || a.header.Get("Idempotency-Status") != decision {
		s.t.Fatalf("answer %d %q, want %d %q\n%s\n%s", a.status, a.header.Get("Idempotency-Status"), status, decision, a.body, s.Logs())
	}
}

// wantPaid asks the sample backend how often it was called to pay.
func (s *site) wantPaid(n int, more ...string) {
	s.t.Helper()
	c := post("/", "", more...)
	c.method, c.body = http.MethodGet, ""
	page := s.do(c)
	if !strings.HasPrefix(string(page.body), fmt.Sprintf("calls of the backend: %d\n", n)) {
		s.t.Errorf("the backend says %s, want %d calls", page.body, n)
	}
}

func TestExampleFile(t *testing.T) {
	// A busy machine must not look like an outage.
	for format, patience := range map[string][2]string{
		"yml":  {"keyPrefix: shop", "keyPrefix: shop\n            dialTimeout: 20s\n            readTimeout: 20s"},
		"toml": {`keyPrefix = "shop"`, `keyPrefix = "shop"` + "\n    dialTimeout = \"20s\"\n    readTimeout = \"20s\""},
	} {
		t.Run(format, func(t *testing.T) {
			redis, addr := redistest.Start(t), freeAddress(t)
			dir := copyExample(t, "file", map[string]string{
				":8080": addr, "http://127.0.0.1:8000": paymentsServer(t).URL, "127.0.0.1:6379": redis.Addr, patience[0]: patience[1],
			})
			s := siteOf(t, hosts.Run(t, dir, "traefik."+format, addr, "shop.example"), nil)
			s.paysOnce()
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
	chain := func(t *testing.T, middlewares string) *site {
		addr := freeAddress(t)
		dir := copyExample(t, "chain", map[string]string{
			":8080": addr, "http://127.0.0.1:8000": paymentsServer(t).URL, "average: 10": "average: 5", "burst: 10": "burst: 5", order: middlewares,
		})
		return siteOf(t, hosts.Run(t, dir, "traefik.yml", addr, "shop.example"), nil)
	}
	unzipped := func(t *testing.T, a answer) string {
		t.Helper()
		reader, err := gzip.NewReader(strings.NewReader(string(a.body)))
		if err != nil {
			t.Fatalf("not zipped: %v, %v", err, a.header)
		}
		text, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}

	t.Run("as it is", func(t *testing.T) {
		s := chain(t, order)
		first := s.do(pay("k", "Authorization", alice, "Accept-Encoding", "gzip"))
		s.wantExample(first, 201, "first")
		again := s.do(pay("k", "Authorization", alice))
		s.wantExample(again, 201, "replayed")
		if string(again.body) != unzipped(t, first) {
			t.Errorf("a client without gzip got %q %v", again.body, again.header)
		}
		zipped := s.do(pay("k", "Authorization", alice, "Accept-Encoding", "gzip"))
		s.wantExample(zipped, 201, "replayed")
		if unzipped(t, zipped) != string(again.body) {
			t.Errorf("a client with gzip got %q %v", zipped.body, zipped.header)
		}
		for _, origin := range []string{"https://shop.example", "https://app.shop.example"} {
			preflight := call{method: http.MethodOptions, path: "/api/payments/", header: http.Header{"Origin": {origin}, "Access-Control-Request-Method": {"POST"}}}
			refused, replayed := s.do(pay("k", "Origin", origin)), s.do(pay("k", "Authorization", alice, "Origin", origin))
			for _, a := range []answer{s.do(preflight), refused, replayed} {
				if allowed := a.header.Values("Access-Control-Allow-Origin"); len(allowed) != 1 || allowed[0] != origin {
					t.Errorf("%d to %s allows %q", a.status, origin, allowed)
				}
			}
			s.wantExample(replayed, 201, "replayed")
		}
		s.wantExample(s.do(pay("k")), 401, "")
		s.wantExample(s.do(pay("k", "X-User", "alice")), 401, "")
		s.wantExample(s.do(pay("k", "Authorization", bob)), 201, "first") // his own, not hers
		s.wantPaid(2, "Authorization", bob)
		for range 10 {
			s.do(pay("k", "Authorization", alice))
		}
		s.wantExample(s.do(pay("k", "Authorization", alice)), 429, "")
		s.wantExample(s.do(pay("k", "Authorization", bob)), 201, "replayed")
	})
	t.Run("the plugin above authentication", func(t *testing.T) {
		s := chain(t, "[idem, auth]")
		s.wantExample(s.do(pay("k", "Authorization", alice, "X-User", "alice")), 201, "first")
		s.wantExample(s.do(pay("k", "X-User", "alice")), 201, "replayed") // to somebody who has no password
	})
	t.Run("the plugin above the rate limit", func(t *testing.T) {
		s := chain(t, "[auth, idem, limit]")
		s.wantExample(s.do(pay("k", "Authorization", alice)), 201, "first")
		for range 10 { // duplicates are not counted
			s.wantExample(s.do(pay("k", "Authorization", alice)), 201, "replayed")
		}
	})
	t.Run("the plugin above compression", func(t *testing.T) {
		s := chain(t, "[auth, idem, compress]")
		s.wantExample(s.do(pay("k", "Authorization", alice, "Accept-Encoding", "gzip")), 201, "first")
		again := s.do(pay("k", "Authorization", alice)) // which cannot read what it gets
		s.wantExample(again, 201, "replayed")
		unzipped(t, again)
	})
}
