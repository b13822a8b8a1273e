package stats

import (
	"fmt"
	"time"
)

// Desk is what the page shows to this visitor besides the numbers.
type Desk struct {
	User     string // logged in; empty without a login
	Admin    bool   // may settle and find keys
	MayLogIn bool   // there are admins
	Token    string // of an admin's forms

	Keys     []*Key // with unknown outcome, and running for long; newest first
	Unlisted string // reason why none are listed
	Full     bool   // more may exist than are listed

	ID   string // of the key that is looked up; empty: none
	Key  *Key   // what is known of it
	Do   string // action to confirm: release, force or settle
	Said string // result of the last action or look-up
	Good bool   // Said is good news
}

// keyRow is a key in the list, or the one that is looked up.
type keyRow struct {
	ID, State, Class, Means       string
	SinceAt, Since, SinceAgo      string
	UntilAt, Until                string
	Where, Traefik, Version, Held string
	Unknown, Running, Free        bool
}

// fillDesk fills what the page has of keys.
func (v *view) fillDesk(d *Desk, now time.Time) {
	v.Desk = d
	unknown, running := int64(0), int64(0)
	for _, k := range d.Keys {
		r := newKeyRow(k, now)
		switch {
		case r.Unknown:
			unknown++
		case r.Running:
			running++
		}
		v.Keys = append(v.Keys, r)
	}
	if d.Key != nil {
		v.Found = []keyRow{newKeyRow(d.Key, now)}
	}
	v.Release = d.Admin && d.Key != nil && d.Do == "release" && d.Key.State != "free" && d.Key.State != "running"
	v.Force = d.Admin && d.Key != nil && d.Do == "force" && d.Key.State == "running"
	v.Settle = d.Admin && d.Key != nil && d.Do == "settle" && d.Key.State == "unknown"
	more := ""
	if d.Full && (unknown == 0 || running == 0) { // long runs are listed after all others
		more = "or more "
	}
	switch {
	case unknown > 0:
		v.NeedsNote = v.Needs + " " + v.NeedsNote
		if v.Needs == "Nothing" {
			v.NeedsNote = ""
		}
		v.Needs = grouped(unknown) + " " + more + "to settle"
		v.NeedsClass = "bad"
	case running > 0 && v.NeedsClass == "good":
		v.Needs = several(running, more+"long run")
		v.NeedsNote = ""
		v.NeedsClass = "warn"
	}
}

func newKeyRow(k *Key, now time.Time) keyRow {
	r := keyRow{ID: k.ID, Where: k.Method + " " + k.Host + " " + k.Path, Traefik: k.Traefik, Version: k.Version}
	since, err := time.Parse(time.RFC3339, k.Since)
	if err == nil {
		r.SinceAt = k.Since
		r.Since = exact(since.Unix())
		r.SinceAgo = ago(now.Unix() - since.Unix())
	}
	until, err := time.Parse(time.RFC3339, k.Until)
	if err == nil {
		r.UntilAt = k.Until
		r.Until = exact(until.Unix())
	}
	r.Held = "held until"
	switch k.State {
	case "unknown":
		r.State, r.Class, r.Unknown = "Unknown outcome", "bad", true
		r.Means = "It was sent to the backend, and no whole answer came back. Duplicates get 409."
	case "running":
		r.State, r.Class, r.Running, r.Held = "Running", "warn", true, "lease until"
		r.Means = "Its request runs, and duplicates wait for its answer or get 409."
	case "done":
		r.State = "Done"
		r.Means = fmt.Sprintf("It was answered with %d, and duplicates get that answer of %s.", k.Status, size(int64(k.Bytes)))
	case "unkept":
		r.State = "Not kept"
		r.Means = fmt.Sprintf("It was answered with %d, and the answer was too large to keep. Duplicates get 409.", k.Status)
	case "observed":
		r.State = "Observed"
		r.Means = "Its request and its duplicates were let through, as mode: observe says. No answer is kept."
	case "unreachable":
		r.State, r.Class = "Not readable now", "warn"
	default:
		r.State, r.Free = "Free", true
		r.Means = "Nothing is kept of it: the next request with it runs."
	}
	return r
}
