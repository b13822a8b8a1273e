package redis

import (
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// TestCountersDoNotJumpWhenRedisComesLater has a second Traefik start while Redis, which has counted for the first one, is away.
func TestCountersDoNotJumpWhenRedisComesLater(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
		front := rig.NewFront(t, server.Addr)
		b := rig.NewBackend(t, ends)
		at := func(addr string) *rig.Site {
			return rig.SiteOf(t, host.Serve(t, b.URL, hosts.Settings{"statusHeader": "Decision", "lease": "10m", "stats": rig.OpenStats["stats"], "redis": patient(map[string]any{"endpoints": addr})}), b)
		}
		const name = "traefik_idem_unknown_outcomes_total"
		first := at(server.Addr)
		for range 5 {
			first.Send(rig.Post("/unknown", rig.UnusedKey()))
		}
		first.Counted(func(f rig.Figures) bool { return f.Totals["unknownOutcomes"] == 5 })
		server.Kill()
		later := at(front.Addr)
		later.Send(rig.Post("/unknown", rig.UnusedKey()))
		for range 2 {
			_, metrics := later.Metrics()
			if metrics[name] != nil || metrics["traefik_idem_store_healthy"].GetMetric()[0].GetGauge().GetValue() != 0 || metrics["traefik_idem_build_info"] == nil {
				t.Errorf("while Redis is away: %v", metrics)
			}
			if f := later.Stats(); f.Store.Healthy || f.Totals["unknownOutcomes"] != 1 {
				t.Errorf("while Redis is away: %+v", f)
			}
		}
		if got := first.Metric(name).GetCounter().GetValue(); got != 5 {
			t.Errorf("the first has counted %v", got)
		}
		server.Restart()
		for later.Metric(name) == nil { // what never comes ends in the test's time-out
			time.Sleep(10 * time.Millisecond)
		}
		if got := later.Metric(name).GetCounter().GetValue(); got != 6 {
			t.Errorf("when Redis is there: %v", got)
		}
	})
}
