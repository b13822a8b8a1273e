package behaviour

import (
	"net/http"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// TestMetricsOfRuns has a run that a tick of the watchdog sees, and one that it may miss.
func TestMetricsOfRuns(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		t.Parallel()
		arrived, proceed := make(chan struct{}), make(chan struct{})
		slow := rig.Gated(arrived, proceed)
		s := e.Serve(t, rig.OpenStats, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				slow(w, r)
				return
			}
			rig.Created(w, r)
		})
		s.Do(rig.Post("/quick", "quick"))
		ended := make(chan rig.Answer, 1)
		go func() { ended <- s.Send(rig.Post("/slow", "slow")) }()
		<-arrived
		for s.Metric("traefik_idem_keys", "running").GetGauge().GetValue() != 1 {
			time.Sleep(10 * time.Millisecond)
		}
		close(proceed)
		<-ended
		h := &dto.Histogram{}
		for h.GetSampleCount() != 2 {
			h = s.Metric("traefik_idem_run_seconds").GetHistogram()
			time.Sleep(10 * time.Millisecond)
		}
		bounds := h.GetBucket()
		if h.GetSampleSum() <= 0 || bounds[0].GetUpperBound() != 0.25 || bounds[len(bounds)-2].GetUpperBound() != 300 {
			t.Errorf("runs: %v", h)
		}
		running, finished := s.Metric("traefik_idem_keys", "running").GetGauge().GetValue(), s.Metric("traefik_idem_keys", "finished").GetGauge().GetValue()
		if running != 0 || finished != 2 {
			t.Errorf("%v keys run and %v have finished, want 0 and 2", running, finished)
		}
	})
}

// TestMetricsOfSteps waits until claims and finishes in Redis were measured.
func TestMetricsOfSteps(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		t.Parallel()
		s := e.Serve(t, rig.OpenStats, rig.Created)
		if e.Redis != nil {
			s.AwaitSteps()
		} else if page := string(s.Do(rig.Get("/_idem/metrics")).Body); strings.Contains(page, "store_seconds") {
			t.Errorf("there are steps without Redis:\n%s", page)
		}
	})
}

func TestMetricsNameTheMiddleware(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		s := rig.Serve(t, host, rig.Created, rig.OpenStats)
		info := s.Metric("traefik_idem_build_info")
		labels := map[string]string{}
		for _, label := range info.GetLabel() {
			labels[label.GetName()] = label.GetValue()
		}
		if info.GetGauge().GetValue() != 1 || labels["version"] == "" || labels["middleware"] == "" || strings.Contains(labels["middleware"], ",") {
			t.Errorf("build_info %v", info)
		}
	})
}
