package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"
)

// rates are the constant rates, in requests per second, that variants are also measured at.
var rates = []int{500, 2000}

// answerTime is how long a request at a constant rate may take.
const answerTime = 30 * time.Second

// pacer is a vegeta.Pacer: request n is due n periods after the begin, whatever became of those before it.
type pacer struct {
	period time.Duration
	begin  time.Time
}

// Pace implements vegeta.Pacer. It waits itself: see pause.
func (p *pacer) Pace(elapsed time.Duration, hits uint64) (time.Duration, bool) {
	if hits == 0 {
		p.begin = time.Now().Add(-elapsed)
	}
	for {
		wait := time.Until(p.due(hits))
		if wait <= 0 {
			return 0, false
		}
		pause(wait)
	}
}

// Rate implements vegeta.Pacer.
func (p *pacer) Rate(time.Duration) float64 { return float64(time.Second) / float64(p.period) }

// due is when a request is to be sent.
func (p *pacer) due(n uint64) time.Time { return p.begin.Add(time.Duration(n) * p.period) }

// steadyLoad sends requests at the constant rate of the variant to the first Traefik for so long. A latency counts from when
// its request was due, and so with the time that it waited because others took long.
func (s *stand) steadyLoad(ctx context.Context, each int, duration time.Duration) (load, error) {
	prefix := "same-"
	if each != sameKey {
		s.loads++
		prefix = strconv.Itoa(s.loads) + "-"
	}
	var sent atomic.Int64
	body := []byte(`{"pad":"` + strings.Repeat("x", or(s.v.body, smallBody)-10) + `"}`)
	target := func(t *vegeta.Target) error {
		key := 100000000 // as in load.lua
		if each != sameKey {
			key += int(sent.Add(1)) / each
		}
		t.Method = http.MethodPost
		t.URL = "http://" + s.addresses[0] + "/p0/"
		t.Body = body
		t.Header = http.Header{"Content-Type": {"application/json"}, "X-Request-ID": {prefix + strconv.Itoa(key)}}
		return nil
	}
	if s.client == nil {
		s.client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: vegeta.DefaultConnections}, Timeout: answerTime}
	}
	attacker := vegeta.NewAttacker(vegeta.Client(s.client))
	defer context.AfterFunc(ctx, func() { attacker.Stop() })()

	// This process shares the cores with what it measures: its garbage can wait.
	runtime.GC()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	p := &pacer{period: time.Second / time.Duration(s.v.rate)}
	latencies := make([]time.Duration, 0, s.v.rate*int(duration/time.Second)+1)
	var failures []string
	for result := range attacker.Attack(target, p, duration, "") {
		if result.Error != "" {
			failures = append(failures, result.Error)
			continue
		}
		latencies = append(latencies, result.End().Sub(p.due(result.Seq)))
	}
	if ctx.Err() != nil {
		return load{}, ctx.Err()
	}
	if len(failures) > 0 {
		return load{}, fmt.Errorf("%d requests had no answer, or not the backend's; the first: %s", len(failures), failures[0])
	}
	if len(latencies) == 0 {
		return load{}, errors.New("no request was sent")
	}
	slices.Sort(latencies)
	below := func(share float64) time.Duration { return latencies[int(share*float64(len(latencies)-1))] }
	return load{
		requests: len(latencies),
		rate:     float64(len(latencies)) / duration.Seconds(),
		p50:      below(0.5),
		p99:      below(0.99),
		p999:     below(0.999),
	}, nil
}
