package rig

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/example/traefik-idem/e2e/internal/hosts"
)

// KeyLength is the setting of a site's middleware as Traefik runs it.
func KeyLength(t *testing.T, p *hosts.Process, site string) int {
	t.Helper()
	var middleware struct {
		Plugin struct {
			Idem struct {
				MaxKeyLength string `json:"maxKeyLength"`
			} `json:"idem"`
		} `json:"plugin"`
	}
	err := json.Unmarshal([]byte(get(t, fmt.Sprintf("%s/api/http/middlewares/%s-0@file", p.API, site))), &middleware)
	if err != nil {
		t.Fatal(err)
	}
	n, _ := strconv.Atoi(middleware.Plugin.Idem.MaxKeyLength)
	return n
}

// OpenStats are the settings that show the statistics to everybody.
var OpenStats = hosts.Settings{"stats": map[string]any{"insecure": true}}

// Get is a GET request without a key.
func Get(path string) Call { return Call{Method: http.MethodGet, Path: path, Header: http.Header{}} }

// Figures are stats.json.
type Figures struct {
	GeneratedAt, Since, LastDuplicate string
	Totals                            map[string]int64
	Endpoints                         []struct {
		Method, Host, Path, LastDuplicate, LastSeen string
		Duplicates                                  int64
		Outcomes                                    map[string]int64
	}
	Problems map[string]struct {
		LastHour       int64
		Last           string
		Minutes, Hours []int64
	}
	OtherDuplicates int64
	Minutes, Hours  []int64
	Memory          struct {
		Bytes, AtLeast int64
		Exact, Warning bool
		Sampled        float64
		MeasuredAt     string
	}
	Store struct {
		Kind, Error string
		Healthy     bool
	}
	Settings map[string]string
}

// Stats reads the statistics.
func (s *Site) Stats() Figures {
	s.T.Helper()
	a := s.Do(Get("/_idem/stats.json"))
	if a.Status != 200 || a.Header.Get("Content-Type") != "application/json" || a.Header.Get("Cache-Control") != "no-store" {
		s.T.Fatalf("stats.json: %d %v\n%s", a.Status, a.Header, a.Body)
	}
	var f Figures
	err := json.Unmarshal(a.Body, &f)
	if err != nil {
		s.T.Fatalf("stats.json: %v\n%s", err, a.Body)
	}
	return f
}

// Counted waits until done is true of the statistics. What never comes ends in the test's time-out.
func (s *Site) Counted(done func(f Figures) bool) Figures {
	s.T.Helper()
	f := s.Stats()
	for !done(f) {
		time.Sleep(20 * time.Millisecond)
		f = s.Stats()
	}
	return f
}

// Metrics reads the metrics with Prometheus' own code.
func (s *Site) Metrics() (Answer, map[string]*dto.MetricFamily) {
	s.T.Helper()
	a := s.Do(Get("/_idem/metrics"))
	if a.Status != 200 || a.Header.Get("Content-Type") != "text/plain; version=0.0.4; charset=utf-8" || a.Header.Get("Cache-Control") != "no-store" {
		s.T.Fatalf("metrics: %d %v", a.Status, a.Header)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(a.Body))
	if err != nil {
		s.T.Fatalf("the metrics do not parse: %v\n%s", err, a.Body)
	}
	return a, families
}

// Metric is the first metric called name one of whose labels has this value, if one is given. It is nil if there is none.
func (s *Site) Metric(name string, value ...string) *dto.Metric {
	s.T.Helper()
	_, families := s.Metrics()
	for _, metric := range families[name].GetMetric() {
		if len(value) == 0 {
			return metric
		}
		for _, label := range metric.GetLabel() {
			if label.GetValue() == value[0] {
				return metric
			}
		}
	}
	return nil
}

// AwaitSteps sends requests until a claim and a finish in Redis have been measured.
func (s *Site) AwaitSteps() {
	s.T.Helper()
	for _, step := range []string{"claim", "finish"} {
		for s.Metric("traefik_idem_store_seconds", step).GetHistogram().GetSampleSum() == 0 {
			s.WantRun(UnusedKey())
			time.Sleep(10 * time.Millisecond)
		}
	}
}
