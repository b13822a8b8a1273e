package idem

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/example/traefik-idem/stats"
)

// slashes keeps an encoded slash encoded when the rest of a path is decoded.
var slashes = strings.NewReplacer("%2F", "%252F", "%2f", "%252F")

// routingPath is the path that Traefik's routers compare: decoded, but for encoded slashes, which separate nothing.
func routingPath(u *url.URL) string {
	if u.RawPath == "" {
		return u.Path
	}
	path, err := url.PathUnescape(slashes.Replace(u.EscapedPath()))
	if err != nil {
		return u.Path
	}
	return path
}

// serveStats answers a request for the pages below stats.path, and reports whether r is one.
func serveStats(h *handler, w http.ResponseWriter, r *http.Request) bool {
	if h.statsEnd == "" {
		return false
	}
	page, under := strings.CutPrefix(routingPath(r.URL), h.statsPath)
	if !under || (page != "" && page[0] != '/') {
		return false
	}
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Content-Type", "text/plain; charset=utf-8")
	who := enter(h, w, r)
	switch {
	case who == nil:
		return true
	case (strings.HasPrefix(page, "/keys/") || isForm(page)) && !readsOnly(r) && !mayChange(h, w, r, who):
		return true
	}
	allowed := "GET, HEAD"
	possible := readsOnly(r)
	switch {
	case isKeysPage(page):
		serveKeys(h, w, r, page, who.name)
		return true
	case isForm(page) && r.Method == http.MethodPost:
		serveForm(h, w, r, page, who)
		return true
	case isForm(page):
		allowed, possible = "POST", false
	}
	switch page {
	case "", "/", "/stats.json", "/metrics", loginPage, settlePage, findPage:
	default:
		h.respond(w, http.StatusNotFound, "There is no such page. There are: "+h.statsPath+"/, /stats.json, /metrics and /keys below it.\n")
		return true
	}
	if !possible {
		header.Set("Allow", allowed)
		h.respond(w, http.StatusMethodNotAllowed, "Not possible here. Possible are: "+allowed+".\n")
		return true
	}
	switch page {
	case "":
		// Relative, because a middleware above may have removed a part of the path.
		header.Set("Location", h.statsPath[strings.LastIndex(h.statsPath, "/")+1:]+"/")
		h.respond(w, http.StatusPermanentRedirect, "")
	case "/":
		servePage(h, w, r, http.StatusOK, deskOf(h, r, who))
	case "/stats.json":
		header.Set("Content-Type", "application/json")
		h.respondCompressed(w, r, http.StatusOK, stats.JSON(h.stats.Read(), h.inForce))
	case "/metrics":
		header.Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		h.respondCompressed(w, r, http.StatusOK, h.stats.Metrics(version))
	case loginPage:
		if mayAct(h, w, r, who) {
			header.Set("Location", "./")
			h.respond(w, http.StatusSeeOther, "")
		}
	}
	return true
}

// readsOnly reports whether r changes nothing.
func readsOnly(r *http.Request) bool {
	return r.Method == http.MethodGet || r.Method == http.MethodHead
}

// respond writes a whole answer; net/http leaves the body out for HEAD.
func (h *handler) respond(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body)) // a client that has gone needs no answer
}

// respondCompressed is respond, with a body that is compressed if the client takes it so: with many endpoints it is hundreds of
// kilobytes, mostly the same again and again.
func (h *handler) respondCompressed(w http.ResponseWriter, r *http.Request, status int, body string) {
	w.Header().Set("Vary", "Accept-Encoding")
	if gzipAccepted.MatchString(strings.Join(r.Header["Accept-Encoding"], ",")) {
		var short bytes.Buffer
		z := gzip.NewWriter(&short)
		_, err := io.WriteString(z, body)
		if err == nil && z.Close() == nil { // a buffer takes all
			w.Header().Set("Content-Encoding", "gzip")
			body = short.String()
		}
	}
	h.respond(w, status, body)
}

// gzipAccepted matches an Accept-Encoding that names gzip, with another weight than 0.
var gzipAccepted = regexp.MustCompile(`(?i)(^|[, ])gzip *(;\s*q=(1|0\.\d*[1-9])\S*)? *(,|$)`)
