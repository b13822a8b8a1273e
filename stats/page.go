package stats

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"html/template"
	"strconv"
	"strings"
	"time"
)

// view is the data of the page's template. It has only strings, because a template must not call interpreted methods.
type view struct {
	GeneratedAt, Generated              string
	Kind, Health, HealthText, Trouble   string
	Label, Headline, Since, Protected   string
	Saved, Share, Last, LastAt, LastAgo string
	Charts                              []chart
	Endpoints                           []row
	Counted, More                       string
	Outcomes                            []outcome
	Memory, MemoryNote, MemoryWidth     string
	MemoryClass                         string
	Measured, MeasuredAt, MeasuredAgo   string
	Warning                             bool
	Settings                            []Setting
}

// chart is a row of bars. All numbers are in units of its viewBox, which is stretched over the width that there is.
type chart struct {
	Title, From, Peak, Summary string
	Width                      int
	Bars                       []bar
}

type bar struct {
	X      int
	Y, H   string
	At     string // of its beginning, ISO 8601
	Text   string
	Number string
}

type row struct {
	Method, Host, Path, Duplicates, Number, Share string
	LastAt, LastUnix, LastAgo                     string
}

type outcome struct {
	Name, Count, Means, Class, Share string
}

// Policy is the page's Content-Security-Policy: only its own style and script, and requests to its own origin.
var Policy = "default-src 'none'; style-src '" + sourceHash(pageStyle) + "'; script-src '" + sourceHash(pageScript) +
	"'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

func sourceHash(source string) string {
	sum := sha256.Sum256([]byte(source))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// Page returns the page.
func Page(s Snapshot, settings []Setting) string {
	n := s.Numbers
	now := s.Now.Unix()
	v := &view{
		GeneratedAt: iso(now),
		Generated:   exact(now),
		Label:       "duplicates stopped",
		Headline:    grouped(n.Duplicates()),
		Protected:   grouped(n.Protected()),
		Saved:       grouped(n.Saved()),
		Share:       percent(n.Duplicates(), n.Protected()),
		Settings:    settings,
	}
	v.health(s)
	if n.Totals[Observed] > 0 {
		v.Label = "duplicates seen"
	}
	v.Since = "Nothing has been counted yet."
	if n.Since != 0 {
		v.Since = "since " + time.Unix(n.Since, 0).UTC().Format("2 January 2006")
	}
	last := n.Last()
	if last != 0 {
		v.Last, v.LastAt, v.LastAgo = exact(last), iso(last), ago(now-last)
	}
	v.Charts = []chart{
		newChart("Last hour", "60 minutes ago", "minute", bars(n.Minutes, now/60, Minutes), now, 60),
		newChart("Last 7 days", "7 days ago", "hour", bars(n.Hours, now/3600, Hours), now, 3600),
	}
	v.rows(n, now)
	v.outcomes(n)
	v.memory(s)
	var b strings.Builder
	b.WriteString(pageTop)
	err := body.Execute(&b, v)
	if err != nil {
		return "The page cannot be shown: " + template.HTMLEscapeString(err.Error())
	}
	b.WriteString(pageEnd)
	return b.String()
}

func (v *view) health(s Snapshot) {
	switch {
	case s.Err != nil:
		v.Health = "bad"
		v.HealthText = "Redis cannot be used"
		v.Trouble = s.Err.Error()
	case s.Kind == "redis":
		v.Health = "good"
		v.HealthText = "Redis answers"
	default:
		v.Health = "good"
		v.HealthText = "In this Traefik’s memory"
	}
}

func (v *view) rows(n *Numbers, now int64) {
	most := int64(1)
	names := n.ranked()
	if len(names) > 0 {
		most = n.Endpoints[names[0]].Duplicates
	}
	for _, name := range names {
		method, host, path := parts(name)
		e := n.Endpoints[name]
		v.Endpoints = append(v.Endpoints, row{
			Method: method, Host: host, Path: path,
			Duplicates: grouped(e.Duplicates),
			Number:     strconv.FormatInt(e.Duplicates, 10),
			Share:      strconv.FormatInt(e.Duplicates*100/most, 10),
			LastAt:     iso(e.Last),
			LastUnix:   strconv.FormatInt(e.Last, 10),
			LastAgo:    ago(now - e.Last),
		})
	}
	v.Counted = several(int64(len(names)), "endpoint")
	other := n.Endpoints[Other].Duplicates
	if other > 0 {
		v.More = several(other, "more duplicate") + " at endpoints beyond stats.maxEndpoints, counted together."
	}
}

func (v *view) outcomes(n *Numbers) {
	t := n.Totals
	lines := []struct {
		name, class, means string
		count              int64
	}{
		{"First runs", "first", "ran and reached the backend", t[First]},
		{"Replays from memory", "stopped", "answered from this Traefik’s memory", t[ReplaysLocal]},
		{"Replays from Redis", "stopped", "answered with what Redis had kept", t[ReplaysStore]},
		{"Conflicts", "stopped", "409: the first request still ran", t[Conflicts]},
		{"Unknown", "stopped", "409: nobody knows how the first request ended", t[Unknown]},
		{"Not kept", "stopped", "409: the answer was too large to keep", t[Unkept]},
		{"Observed", "seen", "duplicates let through in observe mode", t[Observed]},
		{"Not observed", "trouble", "not looked at: too many at once, or no store", t[Unobserved]},
		{"Mismatches", "refused", "422: the key was used for another request", t[Mismatches]},
		{"Invalid", "refused", "400: bad or missing key, or a broken body", t[Invalid]},
		{"Unprotected", "trouble", "let through while Redis was away", t[Passed]},
		{"Unavailable", "trouble", "503 while Redis was away", t[Unavailable]},
		{"Degraded", "trouble", "decided by memory while Redis was away", t[Degraded]},
		{"Unknown outcomes", "trouble", "sent to the backend, without a whole answer", t[UnknownOutcomes]},
		{"Store errors", "trouble", "steps against Redis that failed", t[StoreErrors]},
	}
	most := int64(1)
	for _, line := range lines {
		if line.count > most {
			most = line.count
		}
	}
	for _, line := range lines {
		o := outcome{Name: line.name, Means: line.means, Class: line.class, Count: grouped(line.count), Share: strconv.FormatInt(line.count*100/most, 10)}
		if line.count == 0 {
			o.Class = "none"
		}
		v.Outcomes = append(v.Outcomes, o)
	}
}

func (v *view) memory(s Snapshot) {
	m := s.Memory
	bytes := m.likely()
	v.Memory = size(bytes)
	v.Warning = bytes > WarnBytes
	width := bytes * 100 / WarnBytes
	if width > 100 {
		width = 100
	}
	v.MemoryWidth = strconv.FormatInt(width, 10)
	v.MemoryClass = "first"
	if v.Warning {
		v.MemoryClass = "trouble"
	}
	if s.Unmeasured == nil && !s.Measured.IsZero() {
		at := s.Measured.Unix()
		v.Measured, v.MeasuredAt, v.MeasuredAgo = exact(at), iso(at), ago(s.Now.Unix()-at)
	}
	switch {
	case s.Unmeasured != nil:
		v.Memory = "unknown"
		v.MemoryNote = "It cannot be measured: " + s.Unmeasured.Error()
	case s.Measured.IsZero():
		v.Memory = "unknown"
		v.MemoryNote = "It could not be measured yet."
	case m.Estimated:
		v.MemoryNote = "for " + several(m.Keys, "key") + " in this Traefik’s memory, by its own accounts."
	case m.Exact:
		v.MemoryNote = "for " + several(m.Keys, "key") + " in Redis, each measured."
	case m.Bytes == 0 || m.Looked <= 0:
		v.Memory = "at least " + v.Memory
		v.MemoryNote = "Redis holds too many keys to look at all of them."
	default:
		v.Memory = "about " + v.Memory
		v.MemoryNote = fmt.Sprintf("sampled: %.0f%% of the keys in Redis were looked at. At least %s.", m.Looked*100, size(m.Bytes))
	}
}

const chartHeight = 100

func newChart(title, from, unit string, values []int64, now, seconds int64) chart {
	c := chart{Title: title, From: from, Width: len(values) * 10}
	sum, peak := int64(0), int64(0)
	for _, value := range values {
		sum += value
		if value > peak {
			peak = value
		}
	}
	c.Peak = grouped(peak)
	c.Summary = fmt.Sprintf("%s: %s, at most %s in one %s.", title, several(sum, "duplicate"), grouped(peak), unit)
	first := now/seconds - int64(len(values)) + 1
	for i, value := range values {
		if value == 0 {
			continue
		}
		height := float64(value) * chartHeight / float64(peak)
		if height < 2 { // one duplicate is to be seen beside a thousand
			height = 2
		}
		begin := (first + int64(i)) * seconds
		c.Bars = append(c.Bars, bar{
			X:      i * 10,
			Y:      strconv.FormatFloat(chartHeight-height, 'f', 1, 64),
			H:      strconv.FormatFloat(height, 'f', 1, 64),
			At:     iso(begin),
			Number: grouped(value),
			Text:   grouped(value) + " · " + exact(begin),
		})
	}
	return c
}

// exact returns a time as the page shows it without its script, which shows local time.
func exact(unix int64) string {
	return time.Unix(unix, 0).UTC().Format("2 Jan 2006, 15:04:05 UTC")
}

// ago returns how long ago something was, in words.
func ago(seconds int64) string {
	switch {
	case seconds < 5:
		return "just now"
	case seconds < 60:
		return strconv.FormatInt(seconds, 10) + " s ago"
	case seconds < 3600:
		return strconv.FormatInt(seconds/60, 10) + " min ago"
	case seconds < 48*3600:
		return strconv.FormatInt(seconds/3600, 10) + " h ago"
	}
	return strconv.FormatInt(seconds/86400, 10) + " days ago"
}

// grouped returns n with thin spaces between thousands.
func grouped(n int64) string {
	digits := strconv.FormatInt(n, 10)
	for at := len(digits) - 3; at > 0; at -= 3 {
		digits = digits[:at] + " " + digits[at:]
	}
	return digits
}

func several(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return grouped(n) + " " + what + "s"
}

func percent(part, whole int64) string {
	if whole == 0 {
		return "–"
	}
	share := float64(part) * 100 / float64(whole)
	if share > 0 && share < 0.1 {
		return "< 0.1 %"
	}
	return strconv.FormatFloat(share, 'f', 1, 64) + " %"
}

func size(bytes int64) string {
	switch {
	case bytes < 1<<10:
		return strconv.FormatInt(bytes, 10) + " bytes"
	case bytes < 1<<20:
		return strconv.FormatFloat(float64(bytes)/(1<<10), 'f', 1, 64) + " KB"
	}
	return strconv.FormatFloat(float64(bytes)/(1<<20), 'f', 1, 64) + " MB"
}

var body = template.Must(template.New("body").Parse(bodySource))
