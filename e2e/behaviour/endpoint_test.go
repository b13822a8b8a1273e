package behaviour

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// rows are the endpoints of f with their duplicates, sorted.
func rows(f rig.Figures) []string {
	all := []string{}
	for _, e := range f.Endpoints {
		all = append(all, fmt.Sprintf("%s %s %d", e.Method, e.Path, e.Duplicates))
	}
	slices.Sort(all)
	return all
}

// twice sends a request to each path, and its duplicate.
func twice(s *rig.Site, method string, paths ...string) {
	for _, path := range paths {
		for range 2 {
			s.Do(rig.Post(path, "k").With(func(c *rig.Call) { c.Method = method }))
		}
	}
}

// TestStatisticsCountEndpointsNotIDs checks which paths are one row of the statistics, and how it reads.
func TestStatisticsCountEndpointsNotIDs(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{
			"stats":     rig.OpenStats["stats"],
			"endpoints": []any{"POST /api/v5/order/*/pay/", "POST /api/v5/order/*", "* /any/*/x", "POST /", "PUT /"},
		}, rig.Created)
		twice(s, http.MethodPost,
			"/orders/17/pay", "/orders/18/pay",
			"/orders/123e4567-e89b-12d3-a456-426614174000/pay", "/orders/01ARZ3NDEKTSV4RRFFQ69G5FAV/pay", "/orders/01arz3ndektsv4rrffq69g5fav/pay",
			"/orders/507f1f77bcf86cd799439011/pay",
			"/1/2/3", "/4/5/6",
			"/orders/v5/face/2a", "/orders/1.5/-1/17x",
			"/api/v5/order/a/pay", "/api/v5/order/b/pay/", "/api/v5/order/c%2Fd/pay/now?q=1",
			"/api/v5/order/a/cancel",
			"/any/17/x", "/any/17/y",
			"/заказы/17", "/%d0%b7аказы/18",
			"/a%20b%2Fc%25%3F%23%0A%E2%80%AE%41%FF",
		)
		twice(s, http.MethodPut, "/api/v5/order/1/pay", "/any/18/x")
		want := []string{
			"POST /a%20b%2Fc%25%3F%23%0A%E2%80%AEA%FF 1",
			"POST /any/*/x 1",
			"POST /any/{id}/y 1",
			"POST /api/v5/order/* 1",
			"POST /api/v5/order/*/pay/ 3",
			"POST /orders/1.5/-1/17x 1",
			"POST /orders/v5/face/2a 1",
			"POST /orders/{id}/pay 6",
			"POST /{id}/{id}/{id} 2",
			"POST /заказы/{id} 2",
			"PUT /any/*/x 1",
			"PUT /api/v5/order/{id}/pay 1",
		}
		if got := rows(s.Stats()); !slices.Equal(got, want) {
			t.Errorf("rows\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		page, metrics := string(s.Do(rig.Get("/_idem/")).Body), string(s.Do(rig.Get("/_idem/metrics")).Body)
		if !strings.Contains(page, "/заказы/{id}") || !strings.Contains(metrics, `path="/заказы/{id}"} 2`) {
			t.Errorf("Cyrillic does not read as Cyrillic in\n%s\nor\n%s", page, metrics)
		}
	})
}

// TestAFloodOfIDsIsOneEndpoint has more raw names in one second than endpoints are counted apart.
func TestAFloodOfIDsIsOneEndpoint(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"stats": map[string]any{"insecure": true, "maxEndpoints": 2}, "endpoints": []any{"/", "/api/*/pay"}}, rig.Created)
		for i := range 20 {
			twice(s, http.MethodPost, fmt.Sprintf("/orders/%d", i), fmt.Sprintf("/api/order-%d/pay", i))
		}
		f := s.Stats()
		if got := rows(f); !slices.Equal(got, []string{"POST /api/*/pay 20", "POST /orders/{id} 20"}) || f.OtherDuplicates != 0 {
			t.Errorf("rows %q, and %d other duplicates", got, f.OtherDuplicates)
		}
	})
}

// TestEachHandlerHasItsOwnPatterns has two middlewares with different patterns count in the same Redis.
func TestEachHandlerHasItsOwnPatterns(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		e := &rig.Env{Host: host, Redis: rig.SharedRedis(t)}
		settings := e.Settings(hosts.Settings{"stats": rig.OpenStats["stats"], "endpoints": "/api/*/pay"})
		starred := rig.Serve(t, host, rig.Created, settings)
		settings["endpoints"] = "/api/"
		plain := rig.Serve(t, host, rig.Created, settings)
		twice(starred, http.MethodPost, "/api/one/pay", "/api/two/pay")
		twice(plain, http.MethodPost, "/api/one/pay", "/api/two/pay")
		f := plain.Counted(func(f rig.Figures) bool { return f.Totals["duplicates"] == 4 })
		paths := []string{}
		for _, endpoint := range f.Endpoints {
			paths = append(paths, endpoint.Host+endpoint.Path)
		}
		slices.Sort(paths)
		want := []string{starred.Name + "/api/*/pay", plain.Name + "/api/one/pay", plain.Name + "/api/two/pay"}
		slices.Sort(want)
		if !slices.Equal(paths, want) {
			t.Errorf("endpoints %q, want %q", paths, want)
		}
	})
}
