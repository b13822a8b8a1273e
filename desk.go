package idem

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/example/traefik-idem/stats"
	"github.com/example/traefik-idem/store"
)

// This file is what the page has for an operator: the keys that wait for one, a key that was looked up, and the forms that settle
// and find keys. They work without a script. keyspages.go does the same for programs.

// Pages that forms of the page are sent to, and the one that asks for an admin's login.
const (
	settlePage = "/settle"
	findPage   = "/find"
	loginPage  = "/login"
)

// deskOf returns what the page shows to who, with the key that r asks for.
func deskOf(h *handler, r *http.Request, who *visitor) *stats.Desk {
	_, admins := h.readUsers()
	d := &stats.Desk{User: who.name, Admin: who.admin, MayLogIn: len(admins) > 0}
	if who.admin {
		d.Token = tokenOf(who, time.Now())
	}
	listed := listKeys(h, "")
	d.Keys = listed.Keys
	d.Unlisted = listed.Detail
	d.Full = len(listed.Keys) == mostListed
	query := r.URL.Query()
	d.ID = idIn(query.Get("id"))
	if d.ID == "" {
		return d
	}
	if !idPattern.MatchString(d.ID) {
		d.Said = "An id has 16 hexadecimal digits. 409 and 422 answers have it, behind urn:traefik-idem:key:, and so does the log."
		return d
	}
	looked := lookKey(h, d.ID)
	d.Key = looked.Key
	d.Do = query.Get("do")
	if looked.Status != http.StatusOK {
		d.Said = sentence(looked.Detail)
		return d
	}
	d.Good = true
	settled := looked.Key.State == stateNames[store.Free] || looked.Key.State == stateNames[store.Done]
	did := query.Get("did")
	switch { // anybody can write an address, and a request may have come since
	case !settled:
	case did == "settled":
		d.Said = "Done. Every Traefik knows within 2 seconds."
	case did == "later":
		d.Said = "Done in Redis, which could not be asked after that. Traefiks that remember the key otherwise are told as soon as Redis is back."
	}
	return d
}

// sentence is a detail as the page has it.
func sentence(detail string) string {
	if detail == "" {
		return ""
	}
	return strings.ToUpper(detail[:1]) + detail[1:] + "."
}

// servePage answers with the page.
func servePage(h *handler, w http.ResponseWriter, r *http.Request, status int, d *stats.Desk) {
	header := w.Header()
	header.Set("Content-Type", "text/html; charset=utf-8")
	header.Set("Content-Security-Policy", stats.Policy)
	header.Set("Referrer-Policy", "same-origin") // of forms, no-referrer would have browsers hide the origin
	h.respondCompressed(w, r, status, stats.Page(h.stats.Read(), h.name, version, d))
}

// isForm reports whether page is one that only a form of the page is sent to.
func isForm(page string) bool {
	return page == settlePage || page == findPage
}

// serveForm does what a form of the page asks for, and leads back to the page. The visitor may do it.
func serveForm(h *handler, w http.ResponseWriter, r *http.Request, page string, who *visitor) {
	id, did := r.PostFormValue("id"), ""
	var a *keysAnswer
	switch {
	case page == findPage:
		a = findByRequest(h, &keyQuery{Method: strings.ToUpper(r.PostFormValue("method")), URL: r.PostFormValue("url"), Key: r.PostFormValue("key"), Headers: headerLines(r.PostFormValue("headers"))})
		if a.Status == http.StatusOK {
			id = a.Key.ID
		}
	case !idPattern.MatchString(id):
		a = badQuery("an id has 16 hexadecimal digits")
	default:
		a = settleByForm(h, r, id, who.name)
		did = "&did=settled"
		if a.By.IsZero() {
			did = "&did=later"
		}
	}
	if a.Status == http.StatusOK {
		w.Header().Set("Location", "./?id="+url.QueryEscape(id)+did+"#key")
		h.respond(w, http.StatusSeeOther, "")
		return
	}
	d := deskOf(h, r, who)
	d.ID = id
	d.Key = a.Key
	d.Said = sentence(a.Detail)
	d.Good = false
	servePage(h, w, r, a.Status, d)
}

// settleByForm settles the key with this id as the form says.
func settleByForm(h *handler, r *http.Request, id, user string) *keysAnswer {
	seen := r.PostFormValue("seen")
	switch r.PostFormValue("do") {
	case "release":
		return freeKey(h, user, id, seen, false)
	case "force":
		return freeKey(h, user, id, seen, true)
	case "settle":
		status, err := strconv.Atoi(strings.TrimSpace(r.PostFormValue("status")))
		if err != nil {
			return badQuery("the status must be a number, as 201")
		}
		return answerKey(h, user, id, seen, &handAnswer{Status: status, Body: r.PostFormValue("body"), ContentType: strings.TrimSpace(r.PostFormValue("contentType"))})
	}
	return badQuery("the form must say release, force or settle")
}

// headerLines reads headers, one a line, each name: value.
func headerLines(text string) map[string]string {
	headers := map[string]string{}
	for _, line := range strings.Split(text, "\n") {
		name, value, _ := strings.Cut(line, ":")
		if strings.TrimSpace(name) != "" {
			headers[strings.TrimSpace(name)] = strings.TrimSpace(value)
		}
	}
	return headers
}
