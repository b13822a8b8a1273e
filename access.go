package idem

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/example/traefik-idem/store"
)

// visitor is who asks for something below stats.path, and may look.
type visitor struct {
	name   string // as logged in; empty without a login
	admin  bool   // may settle and find keys, too
	digest []byte // of the login's password
	slowed bool   // too many wrong logins came from this address: this one was not looked at
}

// enter returns the visitor of the statistics. If that one may not even look, it answers the request and returns nil.
func enter(h *handler, w http.ResponseWriter, r *http.Request) *visitor {
	users, admins := h.readUsers()
	if len(users)+len(admins) == 0 && !h.statsInsecure {
		h.respond(w, http.StatusForbidden, "The statistics are closed. Set stats.users, stats.usersFile, stats.admins or stats.adminsFile to open them to some, or stats.insecure to open them to all.\n")
		return nil
	}
	who := identify(r, users, admins)
	switch {
	case who.name != "" || h.statsInsecure:
		return who
	case who.slowed:
		respondSlowed(h, w)
	default:
		askForLogin(h, w, "The statistics need a name and a password.\n")
	}
	return nil
}

// identify returns who has logged in with r, without a name if nobody has. A name may be in both lists, with two passwords:
// then each is a separate login. The list of admins counts first.
func identify(r *http.Request, users, admins logins) *visitor {
	name, password, given := r.BasicAuth()
	if !given {
		return &visitor{}
	}
	if len(users)+len(admins) == 0 { // stats.insecure behind a login of Traefik's
		return &visitor{}
	}
	address := addressOf(r)
	second := wrongLogins.take(address)
	if second == 0 {
		return &visitor{slowed: true}
	}
	asUser, asAdmin := users.find(name, password), admins.find(name, password)
	if asAdmin != nil {
		wrongLogins.untry(address, second)
		return &visitor{name: name, admin: true, digest: asAdmin.digest}
	}
	if asUser != nil {
		wrongLogins.untry(address, second)
		return &visitor{name: name, digest: asUser.digest}
	}
	return &visitor{}
}

// mayChange reports whether the visitor may settle and find keys, and whether r was sent on purpose: not by another site's page,
// to whose requests a browser adds the login on its own. It answers r if not.
func mayChange(h *handler, w http.ResponseWriter, r *http.Request, who *visitor) bool {
	if !sameOrigin(r) {
		h.respond(w, http.StatusForbidden, "A page of another site has sent this. Nothing was done.\n")
		return false
	}
	if !mayAct(h, w, r, who) {
		return false
	}
	kind := mediaName(r)
	switch {
	case kind == "application/json":
		return true
	case kind != formType || r.PostFormValue("token") == "": // curl sends that type on its own
		h.respond(w, http.StatusUnsupportedMediaType, "Requests that change something need Content-Type: application/json, even without a body.\n")
	case !validToken(who, r.PostFormValue("token"), time.Now()):
		h.respond(w, http.StatusForbidden, "The page was loaded too long ago, or with another login. Load it again. Nothing was done.\n")
	default:
		return true
	}
	return false
}

// mayAct reports whether the visitor may settle and find keys. It answers r if not; a viewer who asks for the page that logs in
// is asked for another login.
func mayAct(h *handler, w http.ResponseWriter, r *http.Request, who *visitor) bool {
	_, admins := h.readUsers()
	switch {
	case who.admin:
		return true
	case len(admins) == 0:
		h.respond(w, http.StatusForbidden, "Nobody may settle or find keys. Set stats.admins or stats.adminsFile to let some.\n")
	case who.slowed:
		respondSlowed(h, w)
	case who.name == "" || readsOnly(r):
		askForLogin(h, w, "Settling and finding keys requires an admin's name and password.\n")
	default:
		h.respond(w, http.StatusForbidden, "Settling and finding keys requires a login of stats.admins or stats.adminsFile. This one may only look.\n")
	}
	return false
}

func askForLogin(h *handler, w http.ResponseWriter, why string) {
	w.Header().Set("WWW-Authenticate", `Basic realm="traefik-idem", charset="UTF-8"`)
	h.respond(w, http.StatusUnauthorized, why)
}

func respondSlowed(h *handler, w http.ResponseWriter) {
	w.Header().Set("Retry-After", "1")
	h.respond(w, http.StatusTooManyRequests, "Too many wrong logins from this address. Try again in a second.\n")
}

// sameOrigin reports whether r does not come from a page of another site, as far as a browser says so. Sec-Fetch-Site is only
// sent over TLS and to localhost. No page can set these headers, nor X-Forwarded-Host without asking first.
func sameOrigin(r *http.Request) bool {
	site := r.Header.Get("Sec-Fetch-Site")
	if site != "" {
		return site == "same-origin" || site == "none"
	}
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true
	}
	from, err := url.Parse(origin)
	if err != nil || from.Host == "" {
		return false
	}
	return strings.EqualFold(from.Host, r.Host) || strings.EqualFold(from.Host, r.Header.Get("X-Forwarded-Host"))
}

// tokenHours is how long a token is valid: in this hour, and as many after it.
const tokenHours = 12

// tokenOf returns what the page's forms carry, so that no other page can send them. It is made of the login alone: then the
// page of one Traefik can be sent to another. Each token differs, so that nobody can find one out from how well pages
// compress.
func tokenOf(who *visitor, now time.Time) string {
	return signed(who, strconv.FormatInt(now.Unix()/3600, 10)+"."+store.RandomHex(8))
}

// signed returns text with a signature that only the login can have made.
func signed(who *visitor, text string) string {
	mac := hmac.New(sha256.New, who.digest)
	mac.Write([]byte("traefik-idem " + text + " " + who.name))
	return text + "." + hex.EncodeToString(mac.Sum(nil))
}

// validToken reports whether token was made for who, and not too long ago.
func validToken(who *visitor, token string, now time.Time) bool {
	hour, rest, _ := strings.Cut(token, ".")
	random, _, _ := strings.Cut(rest, ".")
	begin, err := strconv.ParseInt(hour, 10, 64)
	age := now.Unix()/3600 - begin
	if err != nil || age < 0 || age > tokenHours {
		return false
	}
	return hmac.Equal([]byte(token), []byte(signed(who, hour+"."+random)))
}

// Bounds on wrong logins.
const (
	mostWrong     = 10   // from one address in one second
	mostAddresses = 1000 // that are told apart; those beyond count together
)

// throttle counts the logins of this second by address. A login takes its place before it is looked at, and gives it back if
// it was right; so no more are tried at the same time either.
type throttle struct {
	mu     sync.Mutex // guards everything below
	second int64
	tried  map[string]int
}

// wrongLogins are those of all handlers.
var wrongLogins = &throttle{}

// take returns the second in which a login from address may be looked at; 0 if it may not.
func (t *throttle) take(address string) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now().Unix()
	if now != t.second {
		t.second = now
		t.tried = map[string]int{}
	}
	address = t.counted(address)
	if t.tried[address] >= mostWrong {
		return 0
	}
	t.tried[address]++
	return now
}

// untry takes back the try in second of a login that was right.
func (t *throttle) untry(address string, second int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if second == t.second {
		t.tried[t.counted(address)]--
	}
}

// counted is the name under which address counts. The caller holds the lock.
func (t *throttle) counted(address string) string {
	_, known := t.tried[address]
	if !known && len(t.tried) >= mostAddresses {
		return ""
	}
	return address
}

// addressOf returns where r comes from, by its connection, since a client can write what it likes into a header. For
// an IPv6 address it returns the network, because everybody has 2^64 addresses.
func addressOf(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	address, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	address = address.Unmap()
	if address.Is4() {
		return address.String()
	}
	network, err := address.WithZone("").Prefix(64)
	if err != nil {
		return host
	}
	return network.String()
}
