package idem

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2"
)

// TestAPanicWhenARunIsSettled has a run whose end cannot be written as a record: its key is looked after no more, and its
// duplicates are told that nobody knows.
func TestAPanicWhenARunIsSettled(t *testing.T) {
	for _, endpoints := range [][]string{nil, {miniredis.RunT(t).Addr()}} {
		calls := 0
		next := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			calls++
			x, _ := w.(*execution)
			x.WriteHeader(http.StatusCreated)
			x.status = 1 << 20
		})
		config := CreateConfig()
		config.Redis.Endpoints = endpoints
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		h, err := New(ctx, next, config, t.Name())
		if err != nil {
			t.Fatal(err)
		}
		send := func() *httptest.ResponseRecorder {
			w := httptest.NewRecorder()
			r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("{}"))
			r.Header.Set("X-Request-ID", "k")
			h.ServeHTTP(w, r)
			return w
		}
		send()
		again := send()
		if again.Code != http.StatusConflict || !strings.Contains(again.Body.String(), "outcome-unknown") || calls != 1 {
			t.Errorf("%s: a duplicate got %d %s; %d calls, want 1", endpoints, again.Code, again.Body, calls)
		}
		plugin, _ := h.(*handler)
		if len(running(plugin.care)) != 0 {
			t.Errorf("%s: the run is still looked after", endpoints)
		}
	}
}
