package stats

import (
	"fmt"
	"math"
	"sort"
	"time"
)

// The totals, by their index in Numbers.Totals. A request is counted under exactly one of those up to Unavailable;
// the ones after that are counted beside it.
const (
	First        = iota // ran under a claim of its key, or would have in observe mode
	ReplaysLocal        // answered from this process's memory
	ReplaysStore        // answered from Redis
	Conflicts           // 409: the first request still ran
	Unknown             // 409: how the first request ended is not known
	Unkept              // 409: its answer was too large to keep
	Observed            // duplicate in observe mode: let through
	Mismatches          // same key, other request
	Invalid             // 400: bad or missing key, an unknown caller, or a body that broke off
	Unobserved          // observe mode: not looked at, since there was no store, no memory or too many at once, or the body was not read to its end
	Passed              // let through without protection: no store
	Unavailable         // 503: no store, or no memory for the body

	Degraded    // decided by this process's memory, since Redis was out of reach
	StoreErrors // steps against Redis that failed

	UnknownOutcomes // first runs that were sent and had no whole answer
	Settled         // keys that were settled by hand
	numTotals
)

// Names are the names of the totals in stats.json and in Redis.
var Names = []string{"firstRuns", "replaysLocal", "replaysStore", "conflicts", "unknown", "unkept", "observed", "mismatches",
	"invalid", "unobserved", "passed", "unavailable", "degraded", "storeErrors", "unknownOutcomes", "settled"}

// ByEndpoint are the totals that are counted for each endpoint, too. Redis keeps them in this order: new ones come last.
var ByEndpoint = []int{ReplaysLocal, ReplaysStore, Conflicts, Unknown, Unkept, Observed, Mismatches, Unavailable, UnknownOutcomes}

// ProblemTotals are the totals that somebody has to look at.
var ProblemTotals = []int{UnknownOutcomes, Unavailable, Mismatches, Degraded}

// isDuplicate reports whether requests counted under total found their key held by the same request.
func isDuplicate(total int) bool { return total > First && total <= Observed }

// Other is the endpoint under which those beyond maxEndpoints are counted.
const Other = "other"

// The numbers of bars in the two charts.
const (
	Minutes = 60
	Hours   = 7 * 24
)

// Bounds on what a client can put into an endpoint's name, in bytes.
const (
	maxMethod = 32
	maxHost   = 255
	maxPath   = 512
	maxRaw    = 3 * maxPath // of an encoded one
)

// Endpoint is what is known of one method, host and path.
type Endpoint struct {
	Duplicates int64
	Last       int64   // Unix time of the last one; 0 = there was none
	Seen       int64   // Unix time of the last request that was counted here
	Outcomes   []int64 // counts by index in ByEndpoint; those that are missing at the end are 0. It is shared, and never changed
}

// Problem is when one of ProblemTotals came.
type Problem struct {
	Last    int64           // Unix time
	Minutes map[int64]int64 // by Unix time / 60
	Hours   map[int64]int64 // by Unix time / 3600
}

// Numbers are statistics, or what is to be added to some.
type Numbers struct {
	Since     int64 // Unix time of the first count; 0 = nothing counted yet
	Totals    []int64
	Endpoints map[string]Endpoint // by "METHOD host path", or Other
	Minutes   map[int64]int64     // duplicates by Unix time / 60
	Hours     map[int64]int64     // duplicates by Unix time / 3600
	Problems  []*Problem          // by index in ProblemTotals
}

// NewNumbers returns Numbers without any.
func NewNumbers() *Numbers {
	n := &Numbers{
		Totals:    make([]int64, numTotals),
		Endpoints: map[string]Endpoint{},
		Minutes:   map[int64]int64{},
		Hours:     map[int64]int64{},
		Problems:  make([]*Problem, len(ProblemTotals)),
	}
	for i := range n.Problems {
		n.Problems[i] = &Problem{Minutes: map[int64]int64{}, Hours: map[int64]int64{}}
	}
	return n
}

// Add adds more to n. Endpoints beyond maxEndpoints go under Other.
func (n *Numbers) Add(more *Numbers, maxEndpoints int) {
	if n.Since == 0 || (more.Since != 0 && more.Since < n.Since) {
		n.Since = more.Since
	}
	for i, count := range more.Totals {
		n.Totals[i] += count
	}
	for name, e := range more.Endpoints {
		n.addEndpoint(name, e, maxEndpoints)
	}
	addCounts(n.Minutes, more.Minutes)
	addCounts(n.Hours, more.Hours)
	for i, problem := range more.Problems {
		mine := n.Problems[i]
		addCounts(mine.Minutes, problem.Minutes)
		addCounts(mine.Hours, problem.Hours)
		mine.Last = larger(mine.Last, problem.Last)
	}
}

// lastHour is how often it came in the last hour. What is older was pruned.
func (p *Problem) lastHour() int64 {
	sum := int64(0)
	for _, count := range p.Minutes {
		sum += count
	}
	return sum
}

func addCounts(counts, more map[int64]int64) {
	for at, count := range more {
		counts[at] += count
	}
}

func larger(a, b int64) int64 {
	if a > b {
		return a
	}
	return b
}

func (n *Numbers) addEndpoint(name string, e Endpoint, maxEndpoints int) {
	old, known := n.Endpoints[name]
	named := len(n.Endpoints)
	_, other := n.Endpoints[Other]
	if other {
		named--
	}
	if !known && name != Other && named >= maxEndpoints {
		name = Other
		old = n.Endpoints[Other]
	}
	old.Duplicates += e.Duplicates
	old.Last = larger(old.Last, e.Last)
	old.Seen = larger(old.Seen, e.Seen)
	old.Outcomes = sums(old.Outcomes, e.Outcomes)
	n.Endpoints[name] = old
}

// sums returns the sums of two lists of counts, which stay as they are.
func sums(a, b []int64) []int64 {
	if len(a) < len(b) {
		a, b = b, a
	}
	if len(b) == 0 {
		return a
	}
	sum := append([]int64{}, a...)
	for i, count := range b {
		sum[i] += count
	}
	return sum
}

// Prune drops bars that have left the chart, and endpoints where nothing was counted for ttl.
func (n *Numbers) Prune(now int64, ttl time.Duration) {
	dropUntil(n.Minutes, now/60-Minutes)
	dropUntil(n.Hours, now/3600-Hours)
	for _, problem := range n.Problems {
		dropUntil(problem.Minutes, now/60-Minutes)
		dropUntil(problem.Hours, now/3600-Hours)
	}
	oldest := now - int64(ttl/time.Second)
	for name, e := range n.Endpoints {
		if larger(e.Last, e.Seen) < oldest {
			delete(n.Endpoints, name)
		}
	}
}

// dropUntil drops the counts up to this minute or hour.
func dropUntil(counts map[int64]int64, last int64) {
	for at := range counts {
		if at <= last {
			delete(counts, at)
		}
	}
}

// copy returns Numbers that share nothing with n.
func (n *Numbers) copy() *Numbers {
	c := NewNumbers()
	c.Add(n, math.MaxInt)
	return c
}

// Saved is how many calls the backend was spared: duplicates of requests that had an answer, or still ran.
func (n *Numbers) Saved() int64 {
	t := n.Totals
	return t[ReplaysLocal] + t[ReplaysStore] + t[Conflicts] + t[Unkept]
}

// Duplicates is how many requests found their key held by the same request.
func (n *Numbers) Duplicates() int64 {
	return n.Saved() + n.Totals[Unknown] + n.Totals[Observed]
}

// Protected is how many requests were looked at.
func (n *Numbers) Protected() int64 {
	sum := int64(0)
	for _, count := range n.Totals[:Degraded] {
		sum += count
	}
	return sum
}

// Last is the Unix time of the last duplicate; 0 = there was none.
func (n *Numbers) Last() int64 {
	last := int64(0)
	for _, e := range n.Endpoints {
		if e.Last > last {
			last = e.Last
		}
	}
	return last
}

// ranked returns the names of the endpoints, most duplicates first, without Other. It sorts strings, which is native code: a
// comparison function would be interpreted thousands of times.
func (n *Numbers) ranked() []string {
	ranks := make([]string, 0, len(n.Endpoints))
	for name, e := range n.Endpoints {
		if name != Other {
			ranks = append(ranks, fmt.Sprintf("%019d%s", math.MaxInt64-e.Duplicates, name))
		}
	}
	sort.Strings(ranks)
	for i, rank := range ranks {
		ranks[i] = rank[19:]
	}
	return ranks
}

// bars returns the counts of the last size units up to now, oldest first.
func bars(counts map[int64]int64, now int64, size int) []int64 {
	values := make([]int64, size)
	for i := range values {
		values[i] = counts[now-int64(size-1-i)]
	}
	return values
}
