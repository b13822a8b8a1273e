package stats

import (
	"encoding/json"
	"time"
)

// WarnBytes is the memory above which the page warns.
const WarnBytes = 10 << 20

// Setting is one setting in force.
type Setting struct {
	Name, Value string
}

// report is stats.json; docs/statistics.md describes it. None of these structs has unexported fields, because Yaegi would
// marshal those too.
type report struct {
	GeneratedAt     string                   `json:"generatedAt"`
	Since           *string                  `json:"since"`
	LastDuplicate   *string                  `json:"lastDuplicate"`
	Totals          map[string]int64         `json:"totals"`
	Endpoints       []endpointReport         `json:"endpoints"`
	OtherDuplicates int64                    `json:"otherDuplicates"`
	Minutes         []int64                  `json:"minutes"`
	Hours           []int64                  `json:"hours"`
	Problems        map[string]problemReport `json:"problems"`
	Memory          memoryReport             `json:"memory"`
	Store           storeReport              `json:"store"`
	Settings        map[string]string        `json:"settings"`
}

type endpointReport struct {
	Method        string           `json:"method"`
	Host          string           `json:"host"`
	Path          string           `json:"path"`
	Duplicates    int64            `json:"duplicates"`
	LastDuplicate *string          `json:"lastDuplicate"`
	LastSeen      string           `json:"lastSeen"`
	Outcomes      map[string]int64 `json:"outcomes"`
}

type problemReport struct {
	LastHour int64   `json:"lastHour"`
	Last     *string `json:"last"`
	Minutes  []int64 `json:"minutes"`
	Hours    []int64 `json:"hours"`
}

type memoryReport struct {
	Bytes      int64   `json:"bytes"`
	Exact      bool    `json:"exact"`
	AtLeast    int64   `json:"atLeast"`
	Sampled    float64 `json:"sampled"`
	Warning    bool    `json:"warning"`
	MeasuredAt *string `json:"measuredAt"`
}

type storeReport struct {
	Kind     string `json:"kind"`
	Healthy  bool   `json:"healthy"`
	Error    string `json:"error"`
	Unshared string `json:"unshared"`
}

// named returns the totals under their names, with the sums.
func named(n *Numbers) map[string]int64 {
	totals := map[string]int64{
		"protected":  n.Protected(),
		"duplicates": n.Duplicates(),
		"saved":      n.Saved(),
		"replays":    n.Totals[ReplaysLocal] + n.Totals[ReplaysStore],
	}
	for i, name := range Names {
		totals[name] = n.Totals[i]
	}
	return totals
}

// JSON returns stats.json.
func JSON(s Snapshot, settings []Setting) string {
	n := s.Numbers
	minute, hour := s.Now.Unix()/60, s.Now.Unix()/3600
	r := report{
		GeneratedAt:     s.Now.UTC().Format(time.RFC3339),
		Since:           moment(n.Since),
		LastDuplicate:   moment(n.Last()),
		Totals:          named(n),
		Endpoints:       []endpointReport{},
		OtherDuplicates: n.Endpoints[Other].Duplicates,
		Minutes:         bars(n.Minutes, minute, Minutes),
		Hours:           bars(n.Hours, hour, Hours),
		Problems:        map[string]problemReport{},
		Memory: memoryReport{
			Bytes:   s.Memory.likely(),
			Exact:   s.Memory.Exact,
			AtLeast: s.Memory.Bytes,
			Sampled: s.Memory.Scanned,
			Warning: s.Memory.likely() > WarnBytes,
		},
		Store:    storeReport{Kind: s.Kind, Healthy: s.Err == nil},
		Settings: map[string]string{},
	}
	if !s.Measured.IsZero() && s.Unmeasured == nil {
		r.Memory.MeasuredAt = moment(s.Measured.Unix())
	}
	if s.Err != nil {
		r.Store.Error = s.Err.Error()
	}
	if s.Unshared != nil {
		r.Store.Unshared = s.Unshared.Error()
	}
	for _, setting := range settings {
		r.Settings[setting.Name] = setting.Value
	}
	for i, total := range ProblemTotals {
		p := n.Problems[i]
		r.Problems[Names[total]] = problemReport{p.lastHour(), moment(p.Last), bars(p.Minutes, minute, Minutes), bars(p.Hours, hour, Hours)}
	}
	for _, name := range n.ranked() {
		method, host, path := splitName(name)
		e := n.Endpoints[name]
		outcomes := map[string]int64{}
		for i, count := range e.Outcomes {
			if count > 0 && i < len(ByEndpoint) {
				outcomes[Names[ByEndpoint[i]]] = count
			}
		}
		r.Endpoints = append(r.Endpoints, endpointReport{method, host, path, e.Duplicates, moment(e.Last), iso(larger(e.Last, e.Seen)), outcomes})
	}
	text, err := json.Marshal(r)
	if err != nil { // strings and numbers always marshal
		return "{}\n"
	}
	return string(text) + "\n"
}

func iso(unix int64) string {
	return time.Unix(unix, 0).UTC().Format(time.RFC3339)
}

// moment is iso for a time that may be missing: nil for 0.
func moment(unix int64) *string {
	if unix == 0 {
		return nil
	}
	text := iso(unix)
	return &text
}
