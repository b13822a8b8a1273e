package stats

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"html/template"
	"sort"
	"strconv"
	"strings"
	"time"
)

// view is the data of the page's template. It has no methods for the template: under Yaegi it could not call them.
type view struct {
	GeneratedAt, Generated            string
	Kind, Health, HealthText, Trouble string
	Unshared                          string
	Loaded                            bool // the numbers of all are known
	Label, Headline, Since, Protected string
	Share, Last, LastAt, LastAgo      string
	Needs, NeedsClass, NeedsNote      string
	Problems                          []problemLine
	Charts                            []chart
	Endpoints                         []row
	Counted, More                     string
	Outcomes                          []outcome
	Memory, MemoryNote, MemoryWidth   string
	MemoryClass                       string
	Measured, MeasuredAt, MeasuredAgo string
	Warning                           bool
	Middlewares                       []middleware
	Version                           string
	Desk                              *Desk
	Keys, Found                       []keyRow // Found has the key that is looked up, if it is known
	Release, Force, Settle            bool     // the action to confirm
}

// problemLine is a line of what needs a look.
type problemLine struct {
	Name, Class, Means, LastHour, LastAt, LastAgo string
}

// chart is a row of bars: duplicates, and problems below them. All numbers are in units of its viewBox, which is stretched over
// the width that there is.
type chart struct {
	ID, Title, Unit, Peak, Summary string
	Width, Height                  int
	Bars                           []bar
	Ticks                          []tick
	First, Step, Counts, Problems  string // for the script: Unix time of the first bar, its seconds, and all counts
	Rows                           []chartRow
}

type bar struct {
	X           int
	Y, H, Class string
	Text        string
}

type tick struct {
	X, Text, Class string
}

type chartRow struct {
	At, Text, Duplicates, Problems string
}

type row struct {
	Method, Host, Path, Duplicates, Number, Troubles string
	SeenAt, SeenUnix, SeenAgo                        string
	Long                                             bool
	Shares                                           []share
	Outcomes                                         []outcome
}

// share is a part of a bar.
type share struct {
	X, Width, Class string
}

type outcome struct {
	Name, Count, Means, Class, Share string
}

type middleware struct {
	Name     string
	Settings []Setting
}

// Policy is the page's Content-Security-Policy: only its own style and script, and requests and forms to its own origin.
var Policy = "default-src 'none'; style-src '" + sourceHash(pageStyle) + "'; script-src '" + sourceHash(pageScript) +
	"'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

func sourceHash(source string) string {
	sum := sha256.Sum256([]byte(source))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// Page returns the page. It begins with the settings of the middleware that shows it.
func Page(s Snapshot, name, version string, d *Desk) string {
	n := s.Numbers
	now := s.Now.Unix()
	v := &view{
		GeneratedAt: iso(now),
		Generated:   exact(now),
		Label:       "duplicates stopped",
		Headline:    grouped(n.Duplicates()),
		Protected:   grouped(n.Protected()),
		Share:       percent(n.Duplicates(), n.Protected()),
		Version:     version,
	}
	v.fillHealth(s)
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
	v.fillProblems(n, now)
	v.fillDesk(d, s.Now)
	minutes, hours := map[int64]int64{}, map[int64]int64{}
	for _, problem := range n.Problems {
		addCounts(minutes, problem.Minutes)
		addCounts(hours, problem.Hours)
	}
	v.Charts = []chart{
		newChart("minutes", "Last hour", "minute", bars(n.Minutes, now/60, Minutes), bars(minutes, now/60, Minutes), now, 60),
		newChart("hours", "Last 7 days", "hour", bars(n.Hours, now/3600, Hours), bars(hours, now/3600, Hours), now, 3600),
	}
	v.fillRows(n, now)
	v.fillOutcomes(n)
	v.fillMemory(s)
	v.fillMiddlewares(s, name)
	var b strings.Builder
	b.WriteString(pageTop)
	err := body.Execute(&b, v)
	if err != nil {
		return "The page cannot be shown: " + template.HTMLEscapeString(err.Error())
	}
	b.WriteString(pageEnd)
	return b.String()
}

// fillProblems fills the tile that says what needs a look, and what it is a link to.
func (v *view) fillProblems(n *Numbers, now int64) {
	lines := []struct{ name, class, means string }{ // by index in ProblemTotals
		{"Unknown outcome", "bad", "It was sent to the backend, and no whole answer came back. Find out there what it did."},
		{"Unavailable", "bad", "Requests got 503: Redis was away, or there was no memory for a body."},
		{"Mismatch", "warn", "A client used a key for another request, and got 422. That is a mistake in the client."},
		{"Degraded", "warn", "Redis was away, and the memory of one Traefik decided. Traefiks did not know of each other’s keys."},
	}
	sum, last, latest := int64(0), int64(0), ""
	v.NeedsClass = "good"
	for i, line := range lines {
		p := n.Problems[i]
		count := p.lastHour()
		shown := problemLine{Name: line.name, Means: line.means, LastHour: grouped(count), Class: "none", LastAt: iso(p.Last), LastAgo: ago(now - p.Last)}
		if p.Last > last {
			last, latest = p.Last, line.name
		}
		if count > 0 {
			shown.Class = line.class
			if v.NeedsClass != "bad" {
				v.NeedsClass = line.class
			}
		}
		sum += count
		if p.Last != 0 {
			v.Problems = append(v.Problems, shown)
		}
	}
	switch {
	case sum > 0:
		v.Needs = grouped(sum)
		v.NeedsNote = "in the last hour"
	case last == 0:
		v.Needs = "Nothing"
		v.NeedsNote = "and nothing so far"
	default:
		v.Needs = "Nothing"
		v.NeedsNote = "in the last hour. Last: " + strings.ToLower(latest) + ", " + ago(now-last)
	}
}

// fillMiddlewares fills the settings of all that count here, first those of name.
func (v *view) fillMiddlewares(s Snapshot, name string) {
	names := []string{}
	for other := range s.Middlewares {
		if other != name {
			names = append(names, other)
		}
	}
	sort.Strings(names)
	for _, each := range append([]string{name}, names...) {
		v.Middlewares = append(v.Middlewares, middleware{Name: each, Settings: s.Middlewares[each]})
	}
}

func (v *view) fillHealth(s Snapshot) {
	v.Loaded = s.Loaded
	if s.Unshared != nil {
		v.Unshared = s.Unshared.Error()
	}
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

// rowWords are what a row says of each total of ByEndpoint, by index: of one request, and of several. Replays are put
// together.
var rowWords = []struct{ one, several, class string }{
	{"", "", ""},
	{"replayed", "replayed", "stopped"},
	{"conflict", "conflicts", "refused"},
	{"held", "held", "trouble"},
	{"not kept", "not kept", "refused"},
	{"observed", "observed", "stopped"},
	{"mismatch", "mismatches", "warned"},
	{"unavailable", "unavailable", "trouble"},
	{"unknown outcome", "unknown outcomes", "trouble"},
}

// urgent is the order in which a row says them: what somebody must look at first.
var urgent = []int{8, 7, 3, 6, 2, 4, 1, 5}

func (v *view) fillRows(n *Numbers, now int64) {
	most := int64(1)
	names := n.ranked()
	if len(names) > 0 && n.Endpoints[names[0]].Duplicates > 1 {
		most = n.Endpoints[names[0]].Duplicates
	}
	for _, name := range names {
		method, host, path := splitName(name)
		e := n.Endpoints[name]
		seen := larger(e.Last, e.Seen)
		r := row{
			Method: method, Host: host, Path: path, Long: len(path) > twoLines,
			Duplicates: grouped(e.Duplicates),
			Number:     strconv.FormatInt(e.Duplicates, 10),
			SeenAt:     iso(seen),
			SeenUnix:   strconv.FormatInt(seen, 10),
			SeenAgo:    ago(now - seen),
		}
		r.fillOutcomes(e, most)
		v.Endpoints = append(v.Endpoints, r)
	}
	v.Counted = several(int64(len(names)), "endpoint")
	other := n.Endpoints[Other].Duplicates
	if other > 0 {
		v.More = several(other, "more duplicate") + " at endpoints beyond stats.maxEndpoints, counted together."
	}
}

// fillOutcomes fills the bar of a row, in hundredths of most duplicates, and what it says.
func (r *row) fillOutcomes(e Endpoint, most int64) {
	counts := sums(e.Outcomes, make([]int64, len(ByEndpoint)))
	counts[1] += counts[0] // replays are replays
	counts[0] = 0
	at, troubles := int64(0), int64(0)
	for _, i := range urgent {
		count, line := counts[i], rowWords[i]
		if count == 0 {
			continue
		}
		o := outcome{Name: line.several, Class: line.class, Count: grouped(count)}
		if count == 1 {
			o.Name = line.one
		}
		r.Outcomes = append(r.Outcomes, o)
		if line.class == "trouble" || line.class == "warned" {
			troubles += count
		}
		if isDuplicate(ByEndpoint[i]) {
			r.Shares = append(r.Shares, share{X: hundredths(at, most), Width: hundredths(count, most), Class: line.class})
			at += count
		}
	}
	if at < e.Duplicates { // counted before outcomes were
		r.Shares = append(r.Shares, share{X: hundredths(at, most), Width: hundredths(e.Duplicates-at, most), Class: "stopped"})
	}
	r.Troubles = strconv.FormatInt(troubles, 10)
}

// twoLines is the length above which a path may take more than two lines where there is little room.
const twoLines = 40

func hundredths(part, whole int64) string {
	return strconv.FormatFloat(float64(part)*100/float64(whole), 'f', 1, 64)
}

func (v *view) fillOutcomes(n *Numbers) {
	t := n.Totals
	lines := []struct {
		name, class, means string
		count              int64
	}{
		{"First runs", "first", "ran and reached the backend", t[First]},
		{"Replays from memory", "stopped", "answered from this Traefik’s memory", t[ReplaysLocal]},
		{"Replays from Redis", "stopped", "answered with what Redis had kept", t[ReplaysStore]},
		{"Conflicts", "stopped", "409: the first request still ran", t[Conflicts]},
		{"Unknown", "trouble", "409: nobody knows how the first request ended", t[Unknown]},
		{"Not kept", "stopped", "409: the answer was too large to keep", t[Unkept]},
		{"Observed", "seen", "duplicates let through in observe mode", t[Observed]},
		{"Not observed", "trouble", "not looked at: too many at once, no store or memory, or a body read in part", t[Unobserved]},
		{"Mismatches", "refused", "422: the key was used for another request", t[Mismatches]},
		{"Invalid", "refused", "400: bad or missing key, no caller, or a body that broke off", t[Invalid]},
		{"Unprotected", "trouble", "let through while Redis was away", t[Passed]},
		{"Unavailable", "trouble", "503: Redis was away, or no memory for a body", t[Unavailable]},
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

func (v *view) fillMemory(s Snapshot) {
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
	case m.Bytes == 0 || m.Scanned <= 0:
		v.Memory = "at least " + v.Memory
		v.MemoryNote = "Redis holds too many keys to look at all of them."
	default:
		v.Memory = "about " + v.Memory
		v.MemoryNote = fmt.Sprintf("sampled: %.0f%% of the keys in Redis were looked at. At least %s.", m.Scanned*100, size(m.Bytes))
	}
}

// Heights of a chart: of duplicates, and of problems below them, if there are any.
const (
	duplicatesHeight = 100
	problemsHeight   = 40
)

func newChart(id, title, unit string, counts, problems []int64, now, seconds int64) chart {
	first := (now/seconds - int64(len(counts)) + 1) * seconds
	c := chart{
		ID: id, Title: title, Unit: unit, Width: len(counts) * 10, Height: duplicatesHeight,
		First: strconv.FormatInt(first, 10), Step: strconv.FormatInt(seconds, 10),
		Counts: joined(counts), Problems: joined(problems),
	}
	sum, peak := sumAndPeak(counts)
	troubles, worst := sumAndPeak(problems)
	c.Peak = "at most " + several(peak, "duplicate") + " in one " + unit
	if worst > 0 {
		c.Height += problemsHeight
		c.Peak += ", and " + several(worst, "problem")
	}
	c.Summary = fmt.Sprintf("%s, per %s: %s and %s; %s.", title, unit, several(sum, "duplicate"), several(troubles, "problem"), c.Peak)
	for i, count := range counts {
		trouble := problems[i]
		if count == 0 && trouble == 0 {
			continue
		}
		begin := first + int64(i)*seconds
		r := chartRow{At: iso(begin), Text: exact(begin), Duplicates: grouped(count), Problems: grouped(trouble)}
		text := several(count, "duplicate") + ", " + several(trouble, "problem") + " · " + r.Text
		if count > 0 {
			height := barHeight(count, peak, duplicatesHeight)
			c.Bars = append(c.Bars, bar{X: i * 10, Y: oneDigit(duplicatesHeight - height), H: oneDigit(height), Class: "stopped", Text: text})
		}
		if trouble > 0 {
			height := barHeight(trouble, worst, problemsHeight-4)
			c.Bars = append(c.Bars, bar{X: i * 10, Y: oneDigit(duplicatesHeight + 4), H: oneDigit(height), Class: "trouble", Text: text})
		}
		c.Rows = append(c.Rows, r)
	}
	c.fillTicks(first, seconds, int64(len(counts)))
	return c
}

// fillTicks fills the axis: quarters of an hour, or the days.
func (c *chart) fillTicks(first, seconds, count int64) {
	end := first + count*seconds
	if seconds == 60 {
		c.Ticks = []tick{{"0%", "60 min ago", "first"}, {"25%", "45", ""}, {"50%", "30", ""}, {"75%", "15", ""}, {"100%", "now", "last"}}
		return
	}
	for at := (first/86400 + 1) * 86400; at < end; at += 86400 {
		t := tick{X: hundredths(at-first, end-first) + "%"}
		if end-at > 8*3600 { // else there is no room for it
			t.Text = time.Unix(at, 0).UTC().Format("Mon 2")
		}
		c.Ticks = append(c.Ticks, t)
	}
}

func sumAndPeak(counts []int64) (int64, int64) {
	sum, peak := int64(0), int64(0)
	for _, count := range counts {
		sum += count
		peak = larger(peak, count)
	}
	return sum, peak
}

// barHeight is in proportion to count, but never so low that one cannot be seen beside a thousand.
func barHeight(count, peak int64, highest float64) float64 {
	height := float64(count) * highest / float64(peak)
	if height < 2 {
		return 2
	}
	return height
}

func oneDigit(n float64) string { return strconv.FormatFloat(n, 'f', 1, 64) }

// joined returns counts with spaces between them.
func joined(counts []int64) string {
	return strings.Trim(fmt.Sprint(counts), "[]")
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
