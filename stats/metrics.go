package stats

import (
	"fmt"
	"math"
	"sort"
	"strings"
)

// totalLabels are the values of the label outcome, by total.
var totalLabels = []string{"first", "replayed_local", "replayed_store", "conflict", "unknown", "unkept", "observed", "mismatch",
	"invalid", "unobserved", "passed", "unavailable"}

// escaper writes a label's value as the Prometheus text format wants it.
var escaper = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

// Metrics returns the numbers in the Prometheus text format. version is the plugin's. What Traefiks share is left out until the store
// has told it once: a counter that began at 0 and went on from the shared total would be taken for that many requests.
func (c *Collector) Metrics(version string) string {
	s := c.Read()
	var b strings.Builder
	if s.Loaded {
		writeShared(&b, s)
	}
	healthy := 1
	if s.Err != nil {
		healthy = 0
	}
	family(&b, "store_healthy", "gauge", "1 if the store does what keys need, else 0.")
	fmt.Fprintf(&b, "traefik_idem_store_healthy %d\n", healthy)
	c.writeOwn(&b, version)
	return b.String()
}

// writeShared writes the metrics that all Traefiks with the same store share.
func writeShared(b *strings.Builder, s Snapshot) {
	n := s.Numbers.copy()
	n.Add(s.Lost, math.MaxInt)
	family(b, "requests_total", "counter", "Requests that were looked at, by outcome.")
	for total, outcome := range totalLabels {
		fmt.Fprintf(b, "traefik_idem_requests_total{outcome=\"%s\"} %d\n", outcome, n.Totals[total])
	}
	single(b, "duplicates_total", "Requests that found their key held by the same request.", n.Duplicates())
	single(b, "backend_calls_saved_total", "Duplicates that were answered without the backend.", n.Saved())
	single(b, "degraded_requests_total", "Requests decided by a Traefik's memory, since Redis was out of reach.", n.Totals[Degraded])
	single(b, "store_errors_total", "Steps against Redis that failed.", n.Totals[StoreErrors])
	single(b, "unknown_outcomes_total", "Requests that were sent to the backend and had no whole answer: nobody knows how they ended.", n.Totals[UnknownOutcomes])
	single(b, "settled_total", "Keys that were settled by hand.", n.Totals[Settled])

	family(b, "endpoint_duplicates_total", "counter", "Duplicates by endpoint. What is beyond stats.maxEndpoints has the path \"other\" and no method.")
	for _, name := range s.Numbers.ranked() {
		if n.Endpoints[name].Duplicates == 0 {
			continue
		}
		method, host, path := splitName(name)
		fmt.Fprintf(b, "traefik_idem_endpoint_duplicates_total{method=\"%s\",host=\"%s\",path=\"%s\"} %d\n",
			escaper.Replace(method), escaper.Replace(host), escaper.Replace(path), n.Endpoints[name].Duplicates)
	}
	other, beyond := n.Endpoints[Other]
	if beyond {
		fmt.Fprintf(b, "traefik_idem_endpoint_duplicates_total{method=\"\",host=\"\",path=\"other\"} %d\n", other.Duplicates)
	}

	family(b, "last_duplicate_timestamp_seconds", "gauge", "When the last duplicate came; 0 if none has.")
	fmt.Fprintf(b, "traefik_idem_last_duplicate_timestamp_seconds %d\n", n.Last())
	family(b, "memory_bytes", "gauge", "Memory that the plugin's keys take; an estimate on a large keyspace.")
	if s.Unmeasured == nil {
		fmt.Fprintf(b, "traefik_idem_memory_bytes %d\n", s.Memory.likely())
	}
}

// writeOwn writes the metrics that are about this process alone.
func (c *Collector) writeOwn(b *strings.Builder, version string) {
	running, finished, lasted := c.requests.Running()
	family(b, "keys", "gauge", "Keys in this Traefik's memory: of running requests, and of finished ones.")
	fmt.Fprintf(b, "traefik_idem_keys{state=\"running\"} %d\ntraefik_idem_keys{state=\"finished\"} %d\n", running, finished)
	family(b, "run_seconds", "histogram", "How long first requests ran in this Traefik, to a quarter of a second.")
	lasted.write(b, "run_seconds", "")
	steps := c.store.Steps()
	if len(steps) > 0 {
		family(b, "store_seconds", "histogram", "How long steps of keys in Redis took this Traefik. Two a second are measured.")
	}
	for _, step := range sortedNames(steps) {
		steps[step].write(b, "store_seconds", "step=\""+step+"\",")
	}
	c.mu.Lock()
	middlewares := make([]string, 0, len(c.users))
	for name := range c.users {
		middlewares = append(middlewares, name)
	}
	c.mu.Unlock()
	sort.Strings(middlewares)
	family(b, "build_info", "gauge", "1. The plugin's version, and the middlewares of this Traefik that these metrics are about.")
	fmt.Fprintf(b, "traefik_idem_build_info{version=\"%s\",middleware=\"%s\"} 1\n", escaper.Replace(version), escaper.Replace(strings.Join(middlewares, ",")))
}

// sortedNames returns the names of steps in order.
func sortedNames(steps map[string]*Histogram) []string {
	names := make([]string, 0, len(steps))
	for name := range steps {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// family begins a metric.
func family(b *strings.Builder, name, kind, help string) {
	fmt.Fprintf(b, "# HELP traefik_idem_%s %s\n# TYPE traefik_idem_%s %s\n", name, help, name, kind)
}

// single writes a counter without labels.
func single(b *strings.Builder, name, help string, value int64) {
	family(b, name, "counter", help)
	fmt.Fprintf(b, "traefik_idem_%s %d\n", name, value)
}
