package rig

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
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
		Kind, Error, Unshared string
		Healthy               bool
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

// Key is what the pages about keys say of one.
type Key struct {
	ID, State, Since, Until, Method, Host, Path, Traefik, Version string
	Status, Bytes                                                 int
}

// Key looks a key up by its id.
func (s *Site) Key(id string) Key {
	s.T.Helper()
	var k Key
	s.read(Get("/_idem/keys/"+id), &k)
	return k
}

// Keys lists keys of a state.
func (s *Site) Keys(state string) []Key {
	s.T.Helper()
	var list struct{ Keys []Key }
	s.read(Get("/_idem/keys?state="+state), &list)
	return list.Keys
}

// read sends c, and reads the JSON in its answer into into.
func (s *Site) read(c Call, into any) {
	s.T.Helper()
	a := s.Do(c)
	if a.Status != 200 || a.Header.Get("Content-Type") != "application/json" {
		s.T.Fatalf("%s %s: %d %s", c.Method, c.Path, a.Status, a.Body)
	}
	err := json.Unmarshal(a.Body, into)
	if err != nil {
		s.T.Fatalf("%s %s: %v\n%s", c.Method, c.Path, err, a.Body)
	}
}

// AdminStats are the settings that show the statistics to everybody, and let boss settle keys.
var AdminStats = hosts.Settings{"stats": map[string]any{"insecure": true, "admins": "boss:pass"}}

// AsBoss is a request to a page about keys by somebody who may settle them, with a body of JSON.
func AsBoss(method, page, body string, more ...string) Call {
	request := &http.Request{Header: http.Header{"Content-Type": {"application/json"}}}
	request.SetBasicAuth("boss", "pass")
	return Call{Method: method, Path: "/_idem/keys/" + page, Body: body, Header: request.Header}.Headers(more...)
}

// Settle settles a key, which has to succeed.
func (s *Site) Settle(method, page, body string, more ...string) Key {
	s.T.Helper()
	var settled struct {
		Key          Key
		EverywhereBy string
	}
	s.read(AsBoss(method, page, body, more...), &settled)
	by, err := time.Parse(time.RFC3339, settled.EverywhereBy)
	if err != nil || time.Until(by) > 2*time.Second {
		s.T.Errorf("%s %s: everywhere by %q: %v", method, page, settled.EverywhereBy, err)
	}
	return settled.Key
}

// WantKeyProblem checks an answer about a key that says why nothing was done, and returns the key that it tells of.
func (s *Site) WantKeyProblem(a Answer, status int, slug string) Key {
	s.T.Helper()
	var problem struct {
		Type, Title, Detail string
		Status              int
		Key                 Key
	}
	err := json.Unmarshal(a.Body, &problem)
	if err != nil || a.Status != status || problem.Status != status || problem.Type != "urn:traefik-idem:problem:"+slug || problem.Title == "" || problem.Detail == "" || a.Header.Get("Content-Type") != "application/problem+json" {
		s.T.Errorf("answer %d %s, want %d %s (%v)", a.Status, a.Body, status, slug, err)
	}
	return problem.Key
}

// IDOf returns the public id of the key in an answer of the plugin's own.
func (s *Site) IDOf(a Answer) string {
	s.T.Helper()
	var problem struct{ Instance string }
	_ = json.Unmarshal(a.Body, &problem)
	id, named := strings.CutPrefix(problem.Instance, "urn:traefik-idem:key:")
	if !named {
		s.T.Fatalf("no key is named in %d %s", a.Status, a.Body)
	}
	return id
}

// Find returns what is known of the key of a request with a key.
func (s *Site) Find(c Call) Key {
	s.T.Helper()
	headers := map[string]string{}
	if caller := c.Header.Get("Authorization"); caller != "" {
		headers["Authorization"] = caller
	}
	query, _ := json.Marshal(map[string]any{"method": c.Method, "url": s.URL(c.Path), "key": c.Header.Get("X-Request-ID"), "headers": headers})
	var k Key
	s.read(AsBoss("POST", "find", string(query)), &k)
	return k
}
