package since37

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"gopkg.in/yaml.v3"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// collector takes what Traefik exports of its spans, in OpenTelemetry's format.
type collector struct {
	*httptest.Server
	mu    sync.Mutex // guards spans
	spans []byte
}

func newCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{}
	c.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body := io.Reader(r.Body)
		if r.Header.Get("Content-Encoding") == "gzip" {
			unzipped, err := gzip.NewReader(r.Body)
			if err != nil {
				t.Error(err)
				return
			}
			body = unzipped
		}
		data, err := io.ReadAll(body)
		if err != nil {
			t.Error(err)
		}
		c.mu.Lock()
		c.spans = append(c.spans, data...)
		c.mu.Unlock()
	}))
	t.Cleanup(c.Close)
	return c
}

// await waits until a span has the attribute, whose one value is a list of one text. Protocol buffers write each with its
// length before it.
func (c *collector) await(attribute, value string) {
	want := append([]byte(attribute), 0x12, byte(len(value)+6), 0x2a, byte(len(value)+4), 0x0a, byte(len(value)+2), 0x0a, byte(len(value)))
	want = append(want, value...)
	for {
		c.mu.Lock()
		found := bytes.Contains(c.spans, want)
		c.mu.Unlock()
		if found {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// runTraefik starts a Traefik with this static and dynamic configuration, and returns the site called name at the entry
// point addr, and the folder that Traefik runs in.
func runTraefik(t *testing.T, static, dynamic map[string]any, addr, name string) (*hosts.Site, string) {
	t.Helper()
	dir := t.TempDir()
	static["providers"] = map[string]any{"file": map[string]any{"filename": "dynamic.yml"}}
	static["experimental"] = map[string]any{"localPlugins": map[string]any{"idem": map[string]any{"moduleName": "github.com/example/traefik-idem"}}}
	for file, content := range map[string]any{"traefik.yml": static, "dynamic.yml": dynamic} {
		data, err := yaml.Marshal(content)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, file), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return hosts.Run(t, dir, "traefik.yml", addr, name), dir
}

// TestObservabilitySince37 looks for the plugin's decisions in Traefik's access log, metrics and spans, and for the trace at the
// backend.
func TestObservabilitySince37(t *testing.T) {
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
	spans, addr, api := newCollector(t), rig.FreeAddress(t), rig.FreeAddress(t)
	var traces sync.Map // of the requests that the backend got
	b := rig.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
		traces.Store(r.Header.Get("Traceparent"), true)
		rig.Created(w, r)
	})
	dynamic := hosts.Dynamic("shop.test", b.URL, hosts.Settings{"statusHeader": "Idempotency-Status"})
	_, page, _ := strings.Cut(rig.ReadRoot(t, "docs/watching.md"), "\n## The access log\n")
	_, snippet, _ := strings.Cut(page, "\n```yaml\n")
	snippet, _, _ = strings.Cut(snippet, "```")
	var static map[string]any
	err := yaml.Unmarshal([]byte(snippet), &static)
	if err != nil {
		t.Fatal(err)
	}
	static["entryPoints"] = map[string]any{"web": map[string]any{"address": addr}, "traefik": map[string]any{"address": api}}
	static["accessLog"].(map[string]any)["filePath"] = "access.log"
	static["metrics"] = map[string]any{"prometheus": map[string]any{"addRoutersLabels": true, "headerLabels": map[string]any{"decision": "Idempotency-Status"}}}
	static["tracing"].(map[string]any)["otlp"] = map[string]any{"http": map[string]any{"endpoint": spans.URL + "/v1/traces"}}
	site, dir := runTraefik(t, static, dynamic, addr, "shop.test")
	s := rig.SiteOf(t, site, b)
	trace := "4bf92f3577b34da6a3ce929d0e0e4736"
	c := rig.Post("/pay", "k", "Traceparent", "00-"+trace+"-00f067aa0ba902b7-01")
	s.WantExample(s.Do(c), 201, "first")
	s.WantExample(s.Do(c), 201, "replayed")
	s.WantExample(s.Do(c.With(func(c *rig.Call) { c.Body = "other" })), 422, "mismatch")
	s.Calls(1)

	t.Run("access log", func(t *testing.T) {
		var lines []map[string]any
		for len(lines) < 3 {
			data, err := os.ReadFile(filepath.Join(dir, "access.log"))
			if err != nil {
				t.Fatal(err)
			}
			lines = nil
			for text := range strings.Lines(string(data)) {
				var line map[string]any
				err := json.Unmarshal([]byte(text), &line)
				if err == nil && line["RequestMethod"] == "POST" {
					lines = append(lines, line)
				}
			}
			time.Sleep(10 * time.Millisecond)
		}
		var shown strings.Builder
		for _, line := range lines {
			part := map[string]any{}
			for _, field := range []string{"DownstreamStatus", "RequestMethod", "RequestPath", "ServiceName", "downstream_Idempotency-Status"} {
				if value, has := line[field]; has {
					part[field] = value
				}
			}
			data, err := json.Marshal(part)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&shown, "%s\n", data)
		}
		if !strings.Contains(page, "\n```json\n"+shown.String()+"```\n") {
			t.Errorf("docs/watching.md does not show what Traefik logs:\n%s", shown.String())
		}
	})
	t.Run("metrics", func(t *testing.T) {
		response, err := http.Get("http://" + api + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		parser := expfmt.NewTextParser(model.LegacyValidation)
		families, err := parser.TextToMetricFamilies(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		count := func(name string) (n float64) {
			for _, metric := range families[name].GetMetric() {
				for _, label := range metric.GetLabel() {
					if label.GetName() == "method" && label.GetValue() == "POST" {
						n += metric.GetCounter().GetValue()
					}
					if label.GetName() == "decision" && label.GetValue() != "" {
						t.Errorf("%s has the label decision=%q, which the docs deny", name, label.GetValue())
					}
				}
			}
			return n
		}
		// A router counts all requests, a service those that were sent to it.
		if all, sent := count("traefik_router_requests_total"), count("traefik_service_requests_total"); all != 3 || sent != 1 {
			t.Errorf("%v requests of the router and %v of the service, want 3 and 1", all, sent)
		}
	})
	t.Run("spans", func(t *testing.T) {
		for _, decision := range []string{"first", "replayed", "mismatch"} {
			spans.await("http.response.header.idempotency-status", decision)
			if !strings.Contains(page, fmt.Sprintf("\nhttp.response.header.idempotency-status = [%q]\n", decision)) {
				t.Errorf("docs/watching.md does not show the span of %s", decision)
			}
		}
	})
	t.Run("trace", func(t *testing.T) {
		traces.Range(func(parent, _ any) bool {
			if !strings.HasPrefix(parent.(string), "00-"+trace+"-") {
				t.Errorf("the backend got the trace %q, want one of %s", parent, trace)
			}
			return true
		})
	})
}
