package e2e

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/traefik/yaegi/interp"
	"github.com/traefik/yaegi/stdlib"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
)

// BenchmarkHandler is the plugin before a handler that answers at once, compiled and interpreted.
func BenchmarkHandler(b *testing.B) {
	server := redistest.Start(b)
	redis := map[string]any{"endpoints": server.Addr}
	next := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", "240")
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write(make([]byte, 240))
	})
	body := strings.Repeat("x", 80)
	for name, build := range hosts.Builders(b) {
		for _, c := range []struct {
			name     string
			settings hosts.Settings
			key      func(i int) string
		}{
			{"no key", hosts.Settings{}, func(int) string { return "" }},
			{"first, memory", hosts.Settings{}, strconv.Itoa},
			{"first, Redis", hosts.Settings{"redis": redis}, strconv.Itoa},
			{"duplicate, local cache", hosts.Settings{"redis": redis}, func(int) string { return "same" }},
			{"duplicate, Redis", hosts.Settings{"redis": redis, "localCacheBytes": 0}, func(int) string { return "same" }},
		} {
			b.Run(name+"/"+c.name, func(b *testing.B) {
				server.Do("FLUSHDB")
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				handler, err := build(ctx, next, c.settings, b.Name()+strconv.Itoa(b.N))
				if err != nil {
					b.Fatal(err)
				}
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					r := httptest.NewRequest(http.MethodPost, "/pay", strings.NewReader(body))
					if key := c.key(i); key != "" {
						r.Header.Set("X-Request-ID", key)
					}
					w := httptest.NewRecorder()
					handler.ServeHTTP(w, r)
					if w.Code != http.StatusCreated {
						b.Fatalf("%d %s", w.Code, w.Body)
					}
				}
			})
		}
	}
}

// BenchmarkCounting is what the statistics cost a request, interpreted.
func BenchmarkCounting(b *testing.B) {
	goPath := b.TempDir()
	err := hosts.LinkPlugin(filepath.Join(goPath, "src"))
	if err != nil {
		b.Fatal(err)
	}
	i := interp.New(interp.Options{GoPath: goPath})
	err = i.Use(stdlib.Symbols)
	if err != nil {
		b.Fatal(err)
	}
	for _, source := range []string{
		`import ("net/http"; "net/http/httptest"; "time"; "github.com/example/traefik-idem/stats"; "github.com/example/traefik-idem/store")`,
		`var (
			collector = stats.New(stats.NewProcess(store.NewMemory(1)), stats.Limits{TTL: time.Hour, MaxEndpoints: 1000})
			request   = httptest.NewRequest("POST", "/api/payments/", http.NoBody)
		)
		func empty(n int) { for i := 0; i < n; i++ {} }
		func first(n int) { for i := 0; i < n; i++ { collector.Counts[stats.First].Add(1) } }
		func duplicate(n int) { for i := 0; i < n; i++ { stats.Duplicate(collector, stats.ReplaysLocal, request) } }`,
	} {
		_, err = i.Eval(source)
		if err != nil {
			b.Fatal(err)
		}
	}
	for _, name := range []string{"empty", "first", "duplicate"} {
		count, err := i.Eval(name)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			count.Interface().(func(int))(b.N)
		})
	}
}
