package yaegi

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
)

// watchedBody is a request's body that says when it is not in memory any more.
type watchedBody struct{ io.Reader }

func (*watchedBody) Close() error { return nil }

// TestRequestsAreForgottenWhenTheyHaveEnded has the first requests of a middleware, which start goroutines and timers that go on:
// these must not keep the requests in memory.
func TestRequestsAreForgottenWhenTheyHaveEnded(t *testing.T) {
	server := map[string]any{"endpoints": redistest.Start(t).Addr}
	cluster := map[string]any{"endpoints": strings.Join(redistest.StartMasters(t, 3).Endpoints(), ","), "cluster": true}
	away := map[string]any{"endpoints": "127.0.0.1:1", "cluster": true}
	for host, build := range hosts.Builders(t) {
		for name, settings := range map[string]hosts.Settings{"memory": {}, "Redis": {"redis": server}, "Cluster": {"redis": cluster}, "no Cluster": {"redis": away}} {
			t.Run(host+" "+name, func(t *testing.T) {
				settings["lease"] = "1m"
				next := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) })
				h, err := build(t.Context(), next, settings, fmt.Sprint(t.Name(), time.Now().UnixNano()))
				if err != nil {
					t.Fatal(err)
				}
				var forgotten atomic.Int32
				const requests = 4
				for i := range requests {
					ended := make(chan struct{})
					go func() { // so that no variable of the test has the request
						defer close(ended)
						body := &watchedBody{strings.NewReader("{}")}
						runtime.SetFinalizer(body, func(*watchedBody) { forgotten.Add(1) })
						ctx, cancel := context.WithCancel(context.Background())
						defer cancel()
						r := httptest.NewRequest(http.MethodPost, "/", nil).WithContext(ctx)
						r.Body, r.ContentLength = body, 2
						r.Header.Set("Content-Type", "application/json")
						r.Header.Set("X-Request-ID", fmt.Sprint("key-", i))
						w := httptest.NewRecorder()
						h.ServeHTTP(w, r)
						if w.Code != http.StatusCreated {
							t.Errorf("status %d", w.Code)
						}
					}()
					<-ended
				}
				for deadline := time.Now().Add(time.Minute); forgotten.Load() < requests && time.Now().Before(deadline); {
					runtime.GC()
					time.Sleep(50 * time.Millisecond)
				}
				if n := requests - forgotten.Load(); n > 0 {
					t.Errorf("%d of %d requests are still in memory", n, requests)
				}
			})
		}
	}
}
