package idem

import (
	"net/http"
	"net/url"
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

// serveStats answers a request for the statistics, and reports whether r is one. It is called for paths that begin like
// statsPath.
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
	if !h.statsInsecure {
		logins := h.logins()
		if len(logins) == 0 {
			h.answer(w, http.StatusForbidden, "The statistics are closed. Set stats.users or stats.usersFile to open them to some, or stats.insecure to open them to all.\n")
			return true
		}
		name, password, _ := r.BasicAuth()
		if !logins.allow(name, password) {
			header.Set("WWW-Authenticate", `Basic realm="traefik-idem", charset="UTF-8"`)
			h.answer(w, http.StatusUnauthorized, "The statistics need a name and a password.\n")
			return true
		}
	}
	switch page {
	case "", "/", "/stats.json", "/metrics":
	default:
		h.answer(w, http.StatusNotFound, "There is no such page. There are: "+h.statsPath+"/, /stats.json and /metrics below it.\n")
		return true
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		header.Set("Allow", "GET, HEAD")
		h.answer(w, http.StatusMethodNotAllowed, "Only GET and HEAD are possible here.\n")
		return true
	}
	switch page {
	case "":
		// Relative, because a middleware above may have removed a part of the path.
		header.Set("Location", h.statsPath[strings.LastIndex(h.statsPath, "/")+1:]+"/")
		h.answer(w, http.StatusPermanentRedirect, "")
	case "/":
		header.Set("Content-Type", "text/html; charset=utf-8")
		header.Set("Content-Security-Policy", stats.Policy)
		header.Set("Referrer-Policy", "no-referrer")
		h.answer(w, http.StatusOK, stats.Page(h.stats.Read(), h.effective()))
	case "/stats.json":
		header.Set("Content-Type", "application/json")
		h.answer(w, http.StatusOK, stats.JSON(h.stats.Read(), h.effective()))
	case "/metrics":
		header.Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		h.answer(w, http.StatusOK, h.stats.Metrics(version))
	}
	return true
}

// answer writes a whole answer; net/http leaves the body out for HEAD.
func (h *handler) answer(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body)) // a client that has gone needs no answer
}

// logins returns the users who may see the statistics. It reads the file each time, so that a change needs no restart.
func (h *handler) logins() logins {
	if h.statsUsersFile == "" {
		return h.statsLogins
	}
	fromFile, err := readLogins(h.statsUsersFile)
	if err != nil {
		h.log.printLimited(levelError, "stats.usersFile cannot be used", err)
	}
	return append(fromFile, h.statsLogins...)
}
