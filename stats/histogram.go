package stats

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Histogram counts durations by upper bounds. It has no lock of its own: the lock of the struct that has it guards it.
type Histogram struct {
	bounds []time.Duration
	counts []int64 // by bound, those above the bound before; the last one: above all bounds
	sum    float64 // seconds: nanoseconds of many long runs would not fit into an integer
}

// NewHistogram returns an empty histogram with these upper bounds, in ascending order.
func NewHistogram(bounds ...time.Duration) *Histogram {
	return &Histogram{bounds: bounds, counts: make([]int64, len(bounds)+1)}
}

// Observe adds n durations of d.
func (h *Histogram) Observe(d time.Duration, n int64) {
	i := 0
	for i < len(h.bounds) && d > h.bounds[i] {
		i++
	}
	h.counts[i] += n
	h.sum += d.Seconds() * float64(n)
}

// Copy returns a copy.
func (h *Histogram) Copy() *Histogram {
	c := NewHistogram(h.bounds...)
	copy(c.counts, h.counts)
	c.sum = h.sum
	return c
}

// write writes the samples of h for a family. label is empty, or a label with a comma after it.
func (h *Histogram) write(b *strings.Builder, family, label string) {
	total := int64(0)
	for i, bound := range h.bounds {
		total += h.counts[i]
		fmt.Fprintf(b, "traefik_idem_%s_bucket{%sle=\"%s\"} %d\n", family, label, decimal(bound.Seconds()), total)
	}
	total += h.counts[len(h.bounds)]
	fmt.Fprintf(b, "traefik_idem_%s_bucket{%sle=\"+Inf\"} %d\n", family, label, total)
	braces := ""
	if label != "" {
		braces = "{" + strings.TrimSuffix(label, ",") + "}"
	}
	fmt.Fprintf(b, "traefik_idem_%s_sum%s %s\n", family, braces, decimal(h.sum))
	fmt.Fprintf(b, "traefik_idem_%s_count%s %d\n", family, braces, total)
}

// decimal is a number as the Prometheus text format has it.
func decimal(n float64) string {
	return strconv.FormatFloat(n, 'f', -1, 64)
}
