package bench

import (
	"context"
	"io"
	"maps"
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
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// way is one that a request takes through the plugin.
type way struct {
	name        string
	allocations float64 // that a request made under Yaegi when they were recorded
	settings    hosts.Settings
	redis       bool
	key         func(i int) string // of request i
}

func sameKey(int) string { return "same" }

// ways are the usual ones. Record fewer allocations where there are fewer; more have to be worth it.
var ways = []way{
	{name: "no key", allocations: 36, key: func(int) string { return "" }},
	{name: "not protected", allocations: 57, settings: hosts.Settings{"endpoints": "POST /other/"}, key: strconv.Itoa},
	{name: "first, memory", allocations: 564, key: strconv.Itoa},
	{name: "first, Redis", allocations: 990, redis: true, key: strconv.Itoa},
	{name: "duplicate, local cache", allocations: 457, redis: true, key: sameKey},
	{name: "duplicate, Redis", allocations: 830, settings: hosts.Settings{"localCacheBytes": 0}, redis: true, key: sameKey},
}

// handler builds the plugin before a handler that answers at once. No other handler has its keys.
func (y way) handler(t testing.TB, build hosts.Builder, server *redistest.Server) http.Handler {
	t.Helper()
	name := "way" + strconv.FormatInt(rig.Unique.Add(1), 10)
	settings := hosts.Settings{}
	maps.Copy(settings, y.settings)
	if y.redis {
		settings["redis"] = map[string]any{"endpoints": server.Addr, "keyPrefix": name}
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	handler, err := build(ctx, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", "240")
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write(make([]byte, 240))
	}), settings, name)
	if err != nil {
		t.Fatal(err)
	}
	return handler
}

// request is request i.
func (y way) request(i int) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/pay", strings.NewReader(strings.Repeat("x", 80)))
	r.Header.Set("Content-Type", "application/json")
	if key := y.key(i); key != "" {
		r.Header.Set("X-Request-ID", key)
	}
	return r
}

// BenchmarkHandler is each way of a request, compiled and interpreted.
func BenchmarkHandler(b *testing.B) {
	server := redistest.Start(b)
	for name, build := range hosts.Builders(b) {
		for _, y := range ways {
			b.Run(name+"/"+y.name, func(b *testing.B) {
				handler := y.handler(b, build, server)
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					w := httptest.NewRecorder()
					handler.ServeHTTP(w, y.request(i))
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
			memory    = store.NewMemory(1)
			collector = stats.New("this process", stats.NewProcessStore(memory), stats.Limits{TTL: time.Hour, MaxEndpoints: 1000}, memory)
			counter   = collector.Counter("", nil)
			request   = httptest.NewRequest("POST", "/api/payments/", http.NoBody)
		)
		func empty(n int) { for i := 0; i < n; i++ {} }
		func first(n int) { for i := 0; i < n; i++ { collector.Counts[stats.First].Add(1) } }
		func duplicate(n int) { for i := 0; i < n; i++ { stats.Count(counter, stats.ReplaysLocal, request) } }`,
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
