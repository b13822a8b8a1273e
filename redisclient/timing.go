package redisclient

import (
	"strings"
	"sync"
	"time"

	"github.com/example/traefik-idem/stats"
)

// Steps are measured by samples, so that the others cost nothing: Stats.SampleSteps marks each client, and its next batches get a
// PING at their end, whose reply is the end of the batch.

// samplesAtOnce is how many batches are measured after each SampleSteps. At little traffic these are a claim and its finish.
const samplesAtOnce = 2

var ping = "*1\r\n" + bulk("PING")

// stepBounds are the upper bounds of the histograms of steps.
var stepBounds = []time.Duration{500 * time.Microsecond, time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond,
	10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second}

// timings are how long steps took, by name.
type timings struct {
	mu    sync.Mutex // guards everything below
	steps map[string]*stats.Histogram
}

func newTimings() *timings {
	t := &timings{steps: map[string]*stats.Histogram{}}
	for _, step := range []string{"claim", "finish"} {
		t.steps[step] = stats.NewHistogram(stepBounds...)
	}
	return t
}

// sample is the measurement of one batch.
type sample struct {
	timings *timings
	step    string
	begun   time.Time
}

// takeSample returns a PING that ends the measurement of a batch. It returns nil, and takes none, if the batch is to be split, or
// begins with no step that is measured.
func takeSample(c *Client, batch []*command) *command {
	size := len(ping)
	for _, cmd := range batch {
		size += len(cmd.wire)
		if len(cmd.wire) > longBytes || size > maxBuffered {
			return nil
		}
	}
	step := ""
	switch {
	case isStep(claimScript, batch[0].wire):
		step = "claim"
	case isStep(finishScript, batch[0].wire):
		step = "finish"
	default:
		return nil
	}
	c.lock()
	defer c.unlock()
	if c.samples == 0 { // another batch has just taken the last
		return nil
	}
	c.samples--
	c.rewrites = c.samples > 0 || c.noEVALSHA || c.node
	return &command{wire: ping, sample: &sample{timings: c.health.timings, step: step, begun: time.Now()}}
}

// isStep reports whether wire is a command with the script s.
func isStep(s *script, wire string) bool {
	return strings.HasPrefix(wire, s.byEVALSHA) || strings.HasPrefix(wire, s.byEVAL)
}

// end notes how long the batch took.
func (s *sample) end() {
	took := time.Since(s.begun)
	s.timings.mu.Lock()
	defer s.timings.mu.Unlock()
	s.timings.steps[s.step].Observe(took, 1)
}

// sampleNext marks the next batches of c for measurement.
func sampleNext(c *Client) {
	c.lock()
	defer c.unlock()
	c.samples = samplesAtOnce
	c.rewrites = true
}

// SampleSteps implements stats.Store.
func (s *Stats) SampleSteps() {
	cluster := s.client.cluster
	if cluster == nil {
		sampleNext(s.client)
		return
	}
	cluster.mu.RLock()
	defer cluster.mu.RUnlock()
	for _, node := range cluster.nodes {
		sampleNext(node)
	}
}

// Steps implements stats.Store.
func (s *Stats) Steps() map[string]*stats.Histogram {
	t := s.client.health.timings
	t.mu.Lock()
	defer t.mu.Unlock()
	steps := map[string]*stats.Histogram{}
	for step, histogram := range t.steps {
		steps[step] = histogram.Copy()
	}
	return steps
}
