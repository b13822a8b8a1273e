package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report turns samples into the text of docs/dev/benchmarks.md.
type report struct {
	rounds   int
	duration time.Duration
	variants []variant
	against  string              // the revision that is compared with; empty: none
	samples  map[string][]sample // by the name of the variant, one a round
}

const head = `# Benchmarks

Written by ` + "`make bench`" + `. Do not edit.

A real Traefik, a real Redis, a compiled backend and wrk share the CPUs of one machine. The
load is POST requests with a body of 80 bytes of JSON and an answer of 240 bytes, over 32 connections that send the next request as soon as
the last is answered. If a variant names a size, bodies and answers have that size; if it names a number of connections, it has that many. All processes are
started again for each measurement. In each round, the variants are measured one after the other.

`

const notes = `
- *of plain* is the throughput as a share of the variant without a middleware and with the same load, in the same round:
  the median, and in brackets the lowest and the highest.
- *of no-op* is the same share of a Yaegi plugin that only calls the next handler.
- CPU is user and system time per request. RSS is at the end of the run, the two Traefiks' together.
- Every variant sends the header ` + "`X-Request-ID`" + `, so that all send the same bytes. *no key* looks for the key elsewhere.
- *first*: every request has another key. ` + "`ttl`" + ` is 10s, ` + "`localCacheBytes`" + ` 256 MiB, so that nothing is evicted before it expires;
  with a size named, ` + "`localCacheBytes`" + ` is the default, and with 1 MB ` + "`ttl`" + ` is 2s.
- *duplicate*: every request has the same key, which ran before. *Redis*: ` + "`localCacheBytes`" + ` is 0.
- *Redis Cluster* is three masters, all on this machine, without replicas. Its CPU is that of all three.
- *two Traefiks* share the 32 connections, the two cores and one Redis. Commands of concurrent requests are sent to Redis together,
  and each Traefik has half as many of them. *16 connections* shows what that costs in one Traefik.
- *waiting*: 16 connections at a time send the same key. The backend takes 20 ms; one request runs and 15 wait for it.
- Every answer was the backend's, or a replay of it. The backend counts its calls: it got every first request and no
  duplicate, otherwise there is no report.
`

const steadyHead = `
## At a constant rate

How long a request takes when the machine is not fully loaded. Instead of wrk, the library of vegeta sends that number of requests per second,
at even intervals, over as many connections as needed. A latency counts from the time when the request was due, so it includes the time
spent waiting for slow requests before it. *added* is the difference from the variant without a middleware, in the same round: the median.
The p99.9 of a short round is that of a handful of requests.

| variant | p50 | p99 | p99.9 | added: p50 | p99 | p99.9 | CPU Traefik | CPU Redis |
|---|---|---|---|---|---|---|---|---|
`

const comparisonHead = `
## Against %[1]s

The same variants with the plugin of this revision, each measured right after the other. *ratio* is the throughput as a share
of the revision's, round by round: the median, and in brackets the lowest and the highest. *then* is the revision.

| variant | requests/s | then | ratio | p99 | then | CPU Traefik | then |
|---|---|---|---|---|---|---|---|
`

const steadyComparisonHead = `
At a constant rate, *ratio* is that of the p99.

| variant | p50 | then | p99 | then | ratio | p99.9 | then | CPU Traefik | then |
|---|---|---|---|---|---|---|---|---|---|
`

const growthHead = `
## Growth

The cost of a request must not grow with the number of kept keys, patterns, routers or paths. Every
path is an endpoint of the statistics. *cost* is the CPU time of Traefik and Redis per request, compared with the smallest number. Of several patterns,
the last one matches. The load is duplicates from the local cache.

For *distinct keys* the load is first requests, in one round. That many other requests came before, through Traefik, with a ` + "`ttl`" + ` of an
hour. All are kept, in Redis or in a memory of 2 GiB: the first of them was sent again, and replayed. With the
default bound on memory they are not all kept: it holds some 28,000 answers, or half as many beside the keys of dropped answers.

`

const memoryHead = `
## Memory

Traefik's memory in the measurements of *distinct keys* above. *start* is after the first hundred requests, each with another key.
*after* is at the end of the measurement, which adds some thousands of keys. The difference must not be more than 64 MiB plus
` + "`localCacheBytes`" + `.

| keys in | ` + "`localCacheBytes`" + ` | distinct keys | RSS at the start | after | more | at most |
|---|---|---|---|---|---|---|
`

const repeat = `
## Repeat it

` + "```sh" + `
make bench                 # everything, into docs/dev/benchmarks.md
cd e2e
go run ./cmd/bench -list   # the variants
go run ./cmd/bench -rounds 1 -duration 2s -only '^duplicate, local cache$'
go run ./cmd/bench -duration 10s -only '/s$'       # at constant rates
go run ./cmd/bench -against HEAD^ -only '^first'   # beside the plugin of another revision
go run ./cmd/bench -skip '1000000$'   # without a million keys, which take long
` + "```" + `

Other programs on the machine disturb the measurement. Shares are affected less than numbers.
`

func (r *report) text(machine string) string {
	var b strings.Builder
	b.WriteString(head)
	fmt.Fprintf(&b, "Rounds: %d, with %v for each variant. Date: %s.\n\n%s\n## Load\n\n", r.rounds, r.duration, time.Now().UTC().Format(time.DateOnly), machine)
	b.WriteString("| variant | requests/s | of plain | of no-op | p50 | p99 | CPU Traefik | CPU Redis | RSS |\n" +
		"|---|---|---|---|---|---|---|---|---|\n")
	for _, v := range r.variants {
		if v.growth != "" || v.rate > 0 || v.source != "" {
			continue
		}
		m := r.median(&v)
		ofNoop := ""
		if v.noop != "" {
			ofNoop = r.share(v.name, v.noop)
		}
		fmt.Fprintf(&b, "| %s | %.0f | %s | %s | %s | %s | %s | %s | %s |\n", v.name, m.rate, r.share(v.name, v.base), ofNoop,
			milliseconds(m.p50), milliseconds(m.p99), microseconds(m.traefikCPU), microseconds(m.redisCPU), mebibytes(m.rss))
	}
	b.WriteString(notes)
	b.WriteString(r.broken())
	b.WriteString(r.steady())
	b.WriteString(r.comparison())
	b.WriteString(growthHead)
	b.WriteString("| what grows | how many | keys in | requests/s | of plain | p99 | CPU Traefik | CPU Redis | cost |\n|---|---|---|---|---|---|---|---|---|\n")
	fewest := map[string]sample{} // by what grows and where keys are
	for _, v := range r.variants {
		if v.growth == "" || v.source != "" {
			continue
		}
		m := r.median(&v)
		least, ok := fewest[v.growth+v.keysIn]
		if !ok {
			least = m
			fewest[v.growth+v.keysIn] = m
		}
		cost := float64(m.traefikCPU+m.redisCPU) / float64(least.traefikCPU+least.redisCPU)
		fmt.Fprintf(&b, "| %s | %d | %s | %.0f | %s | %s | %s | %s | %.2f |\n", v.growth, v.count, v.keysIn, m.rate, r.share(v.name, v.base),
			milliseconds(m.p99), microseconds(m.traefikCPU), microseconds(m.redisCPU), cost)
	}
	b.WriteString(r.memory())
	b.WriteString(repeat)
	return b.String()
}

// steady is the table of loads at a constant rate.
func (r *report) steady() string {
	rows := ""
	for _, v := range r.variants {
		if v.rate == 0 || v.source != "" {
			continue
		}
		m := r.median(&v)
		added := " |  | "
		if v.base != "" {
			added = r.added(v.name, v.base, p50) + " | " + r.added(v.name, v.base, p99) + " | " + r.added(v.name, v.base, p999)
		}
		rows += fmt.Sprintf("| %s | %s | %s | %s | %s | %s | %s |\n", v.name, finely(m.p50), finely(m.p99), finely(m.p999), added,
			microseconds(m.traefikCPU), microseconds(m.redisCPU))
	}
	if rows == "" {
		return ""
	}
	return steadyHead + rows
}

// added returns by how much a latency of a variant exceeds that of base, round by round: the median.
func (r *report) added(name, base string, of func(s sample) time.Duration) string {
	var more []time.Duration
	for i, s := range r.samples[name] {
		more = append(more, of(s)-of(r.samples[base][i]))
	}
	return finely(median(more, func(d time.Duration) time.Duration { return d }))
}

// comparison is the table of what the plugin does against that of the revision.
func (r *report) comparison() string {
	if r.against == "" {
		return ""
	}
	rows, steadyRows := "", ""
	for _, v := range r.variants {
		if v.kind != "idem" || v.source != "" {
			continue
		}
		earlier := variant{name: v.earlier(r.against)}
		now, then := r.median(&v), r.median(&earlier)
		if v.rate > 0 {
			steadyRows += fmt.Sprintf("| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", v.name, finely(now.p50), finely(then.p50), finely(now.p99), finely(then.p99),
				r.ratio(v.name, earlier.name, func(s sample) float64 { return float64(s.p99) }), finely(now.p999), finely(then.p999),
				microseconds(now.traefikCPU), microseconds(then.traefikCPU))
			continue
		}
		rows += fmt.Sprintf("| %s | %.0f | %.0f | %s | %s | %s | %s | %s |\n", v.name, now.rate, then.rate, r.share(v.name, earlier.name),
			milliseconds(now.p99), milliseconds(then.p99), microseconds(now.traefikCPU), microseconds(then.traefikCPU))
	}
	text := fmt.Sprintf(comparisonHead, r.against) + rows
	if steadyRows != "" {
		text += steadyComparisonHead + steadyRows
	}
	return text
}

// memory is the table of what keys did to Traefik's memory.
func (r *report) memory() string {
	rows := ""
	for _, v := range r.variants {
		if v.growth != growKeys || v.source != "" {
			continue
		}
		cache := int64(v.settings["localCacheBytes"].(int))
		m := r.median(&v)
		rows += fmt.Sprintf("| %s | %s | %d | %s | %s | %s | %s |\n", v.keysIn, mebibytes(cache), v.count,
			mebibytes(m.rssBefore), mebibytes(m.rss), mebibytes(m.rss-m.rssBefore), mebibytes(64<<20+cache))
	}
	if rows == "" {
		return ""
	}
	return memoryHead + rows
}

// broken says how many answers were broken off, which is allowed without the plugin alone.
func (r *report) broken() string {
	var list []string
	for _, v := range r.variants {
		broken, requests := 0, 0
		for _, s := range r.samples[v.name] {
			broken += s.broken
			requests += s.requests
		}
		if broken > 0 {
			list = append(list, fmt.Sprintf("%d of %d (%s)", broken, requests+broken, v.name))
		}
	}
	if list == nil {
		return ""
	}
	return "- Without the plugin, Traefik broke off " + strings.Join(list, ", ") + " answers: this can happen when a backend answers " +
		"before Go's transport has sent the end of a longer body.\n"
}

// median returns the median of each figure.
func (r *report) median(v *variant) sample {
	samples := r.samples[v.name]
	return sample{
		rate:       median(samples, func(s sample) float64 { return s.rate }),
		p50:        median(samples, p50),
		p99:        median(samples, p99),
		p999:       median(samples, p999),
		traefikCPU: median(samples, func(s sample) time.Duration { return s.traefikCPU }),
		redisCPU:   median(samples, func(s sample) time.Duration { return s.redisCPU }),
		rss:        median(samples, func(s sample) int64 { return s.rss }),
		rssBefore:  median(samples, func(s sample) int64 { return s.rssBefore }),
	}
}

func p50(s sample) time.Duration  { return s.p50 }
func p99(s sample) time.Duration  { return s.p99 }
func p999(s sample) time.Duration { return s.p999 }

func median[S any, T int64 | float64 | time.Duration](samples []S, of func(s S) T) T {
	values := sorted(samples, of)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}

func sorted[S any, T int64 | float64 | time.Duration](samples []S, of func(s S) T) []T {
	values := make([]T, len(samples))
	for i, s := range samples {
		values[i] = of(s)
	}
	slices.Sort(values)
	return values
}

// share returns the throughput of a variant as a share of that of base, round by round: median, least and most.
func (r *report) share(name, base string) string {
	if base == "" {
		return ""
	}
	return r.ratio(name, base, func(s sample) float64 { return s.rate })
}

// ratio returns a figure of a variant as a share of that of base, round by round: median, least and most.
func (r *report) ratio(name, base string, of func(s sample) float64) string {
	var ratios []float64
	for i, s := range r.samples[name] {
		ratios = append(ratios, of(s)/of(r.samples[base][i]))
	}
	self := func(ratio float64) float64 { return ratio }
	all := sorted(ratios, self)
	return fmt.Sprintf("%.2f (%.2f–%.2f)", median(ratios, self), all[0], all[len(all)-1])
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

func finely(d time.Duration) string {
	return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
}

func microseconds(d time.Duration) string {
	return fmt.Sprintf("%.0f µs", float64(d)/float64(time.Microsecond))
}

func mebibytes(n int64) string { return fmt.Sprintf("%d MiB", n>>20) }

// machine describes what the measurements were made on and with.
func machine(ctx context.Context, traefik string) string {
	cpuInfo, _ := os.ReadFile("/proc/cpuinfo")
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	first := func(pattern, text string) string {
		found := regexp.MustCompile(pattern).FindStringSubmatch(text)
		if found == nil {
			return "unknown"
		}
		return strings.TrimSpace(found[1])
	}
	output := func(name string, args ...string) string {
		text, _ := exec.CommandContext(ctx, name, args...).CombinedOutput() // wrk -v has no good exit status
		return string(text)
	}
	var b strings.Builder
	b.WriteString("| | |\n|---|---|\n")
	for _, line := range [][2]string{
		{"CPU", first(`(?m)^model name\s*:(.*)$`, string(cpuInfo)) + fmt.Sprintf(", %d cores", runtime.NumCPU())},
		{"kernel", first(`^(\d+\.\d+)`, string(kernel))},
		{"Go, of backend and benchmark", runtime.Version()},
		{"Traefik", first(`(?m)^Version:(.*)$`, output(traefik, "version")) + ", " + first(`(?m)^Go version:(.*)$`, output(traefik, "version"))},
		{"Redis", first(`v=(\S+)`, output("redis-server", "-v"))},
		{"wrk", first(`^wrk (\S+)`, output("wrk", "-v"))},
	} {
		fmt.Fprintf(&b, "| %s | %s |\n", line[0], line[1])
	}
	return b.String()
}
