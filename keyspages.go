package idem

import (
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/example/traefik-idem/stats"
)

// idPattern matches a public id.
var idPattern = regexp.MustCompile(`^[0-9a-f]{` + strconv.Itoa(idDigits) + `}$`)

// idIn returns the public id in what somebody has copied, perhaps as a problem names it.
func idIn(text string) string {
	return strings.TrimPrefix(strings.ToLower(strings.TrimSpace(text)), "urn:traefik-idem:key:")
}

// keyList is keys of one or more states. Like all that is marshalled here, it has no unexported fields: see problem.
type keyList struct {
	Keys []*stats.Key `json:"keys"`
}

// settledKey is a key that was settled.
type settledKey struct {
	Key          *stats.Key `json:"key"`
	EverywhereBy string     `json:"everywhereBy,omitempty"` // when all Traefiks know
	Detail       string     `json:"detail,omitempty"`
}

// keyProblem is a problem about a key.
type keyProblem struct {
	Type   string     `json:"type"`
	Title  string     `json:"title"`
	Status int        `json:"status"`
	Detail string     `json:"detail"`
	Key    *stats.Key `json:"key,omitempty"` // what there is now
}

// isKeysPage reports whether page, below stats.path, is one about keys.
func isKeysPage(page string) bool {
	return page == "/keys" || strings.HasPrefix(page, "/keys/")
}

// serveKeys answers for the pages about keys. user is the name of the login, which may do what r asks for.
func serveKeys(h *handler, w http.ResponseWriter, r *http.Request, page, user string) {
	id := idIn(strings.TrimPrefix(strings.TrimPrefix(page, "/keys"), "/"))
	allowed := "GET, HEAD"
	switch {
	case id == "find":
		allowed = "POST"
	case idPattern.MatchString(id):
		allowed = "GET, HEAD, DELETE, PUT"
	case id != "":
		respondKeys(h, w, keysRefusal(http.StatusNotFound, "key-unknown", "an id has 16 hexadecimal digits; there are also /keys?state=unknown, /keys?state=running and POST /keys/find"))
		return
	}
	possible := false
	for _, method := range strings.Split(allowed, ", ") {
		possible = possible || r.Method == method
	}
	switch {
	case !possible:
		w.Header().Set("Allow", allowed)
		respondKeys(h, w, keysRefusal(http.StatusMethodNotAllowed, "method-not-allowed", "allowed methods: "+allowed))
	case readsOnly(r) && id == "":
		serveList(h, w, r)
	case readsOnly(r):
		respondKeys(h, w, lookKey(h, id))
	default:
		serveChange(h, w, r, id, user)
	}
}

// serveList answers with a list of keys.
func serveList(h *handler, w http.ResponseWriter, r *http.Request) {
	state := r.URL.Query().Get("state")
	if state != "" && state != noteUnknown && state != noteRunning {
		respondKeys(h, w, badQuery("state can be unknown or running"))
		return
	}
	respondKeys(h, w, listKeys(h, state))
}

// serveChange finds or settles a key.
func serveChange(h *handler, w http.ResponseWriter, r *http.Request, id, user string) {
	version := strings.Trim(strings.TrimPrefix(r.Header.Get("If-Match"), "W/"), `" `)
	switch {
	case version == "*":
		version = ""
	case version == "" && r.Header["If-Match"] != nil: // what was meant as a condition must not count as none
		respondKeys(h, w, badQuery("If-Match is empty: want the version of the record that you have seen, or no such header"))
		return
	}
	switch r.Method {
	case http.MethodDelete:
		respondKeys(h, w, freeKey(h, user, id, version, r.URL.Query().Get("force") == "true"))
	case http.MethodPut:
		given := map[string]json.RawMessage{}
		if readJSON(h, w, r, &given) {
			a, wrong := readHandAnswer(given)
			if wrong != nil {
				respondKeys(h, w, wrong)
				return
			}
			respondKeys(h, w, answerKey(h, user, id, version, a))
		}
	default:
		q := &keyQuery{}
		if readJSON(h, w, r, q) {
			respondKeys(h, w, findByRequest(h, q))
		}
	}
}

// readHandAnswer reads the members of an answer that an operator gives, or returns why it cannot. The body is the text in a JSON
// string, or any other JSON value as it is, but for null: that is none. A map, because Yaegi makes no json.RawMessage of a struct's field.
func readHandAnswer(given map[string]json.RawMessage) (*handAnswer, *keysAnswer) {
	a := &handAnswer{}
	for name, value := range given {
		var err error
		text := strings.TrimSpace(string(value))
		switch {
		case text == "null":
		case name == "status":
			err = json.Unmarshal(value, &a.Status)
		case name == "contentType":
			err = json.Unmarshal(value, &a.ContentType)
		case name != "body":
			return nil, badQuery(strconv.Quote(name) + ": there are status, body and contentType")
		case strings.HasPrefix(text, `"`):
			err = json.Unmarshal(value, &a.Body)
		default:
			a.Body = text
		}
		if err != nil {
			return nil, badQuery(name + ": the value is of the wrong type")
		}
	}
	isText := strings.HasPrefix(strings.TrimSpace(string(given["body"])), `"`)
	switch {
	case a.ContentType != "" || a.Body == "":
	case isText:
		a.ContentType = "text/plain; charset=utf-8"
	default:
		a.ContentType = "application/json"
	}
	return a, nil
}

// readJSON reads the body of r into into; if that cannot be, it answers and returns false. In JSON, a body may be six times as long
// as it is.
func readJSON(h *handler, w http.ResponseWriter, r *http.Request, into interface{}) bool {
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 6*int64(h.maxResponseBody)+64<<10))
	if err != nil {
		respondKeys(h, w, badQuery("the body is too long, or broke off"))
		return false
	}
	err = json.Unmarshal(text, into)
	if err == nil { // Yaegi panics at the assertion
		return true
	}
	wrong, is := err.(*json.UnmarshalTypeError) //nolint:errorlint // nor does errors.As work there
	if is && wrong.Field == "body" {
		respondKeys(h, w, badQuery("body must be a string: the body of the request as it was sent"))
	} else {
		respondKeys(h, w, badQuery("the body is not the JSON that is wanted here"))
	}
	return false
}

// respondKeys writes an answer about keys as JSON.
func respondKeys(h *handler, w http.ResponseWriter, a *keysAnswer) {
	header := w.Header()
	header.Set("Content-Type", "application/json")
	var text []byte
	switch {
	case a.Problem != "":
		header.Set("Content-Type", "application/problem+json")
		text, _ = json.Marshal(keyProblem{Type: "urn:traefik-idem:problem:" + a.Problem, Title: http.StatusText(a.Status), Status: a.Status, Detail: a.Detail, Key: a.Key}) // strings and numbers always marshal, also below
	case a.Keys != nil:
		text, _ = json.Marshal(keyList{Keys: a.Keys})
	case !a.By.IsZero() || a.Detail != "":
		settled := settledKey{Key: a.Key, Detail: a.Detail}
		if !a.By.IsZero() {
			settled.EverywhereBy = a.By.UTC().Format(time.RFC3339)
		}
		text, _ = json.Marshal(settled)
	default:
		if a.Key.Version != "" {
			header.Set("ETag", `"`+a.Key.Version+`"`)
		}
		text, _ = json.Marshal(a.Key)
	}
	h.respond(w, a.Status, string(text)+"\n")
}
