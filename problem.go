package idem

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/example/traefik-idem/stats"
	"github.com/example/traefik-idem/store"
)

// problem is the body of an answer of the plugin's own (RFC 9457, application/problem+json). It has no unexported
// fields, since under Yaegi those would be marshalled too.
type problem struct {
	Type           string      `json:"type"`
	Title          string      `json:"title"`
	Status         int         `json:"status"`
	Detail         string      `json:"detail"`
	Instance       string      `json:"instance,omitempty"`
	OriginalStatus int         `json:"originalStatus,omitempty"`
	Error          stripeError `json:"error"`
}

// stripeError is the member that Stripe's clients look for in an answer. They take a 4xx without it for a success.
type stripeError struct {
	Type    string `json:"type"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

// refusal is what the plugin answers instead of the backend.
type refusal struct {
	status     int
	slug       string // of the problem's type
	detail     string
	decision   string        // value of the status header
	retryAfter time.Duration // 0 = no Retry-After
	total      int           // total that counts it
}

var (
	invalidKey       = &refusal{status: http.StatusBadRequest, slug: "invalid-key", detail: "invalid idempotency key", decision: "invalid", total: stats.Invalid}
	missingKey       = &refusal{status: http.StatusBadRequest, slug: "missing-key", detail: "this request needs an idempotency key in %s", decision: "missing", total: stats.Invalid}
	missingCaller    = &refusal{status: http.StatusBadRequest, slug: "missing-caller", detail: "the caller cannot be identified: a value that scope names is missing, or is not a single value", decision: "missing", total: stats.Invalid}
	incompleteBody   = &refusal{status: http.StatusBadRequest, slug: "incomplete-body", detail: "the request body did not arrive whole; nothing was done", decision: "invalid", total: stats.Invalid}
	inFlight         = &refusal{status: http.StatusConflict, slug: "in-flight", detail: "a request with this idempotency key is still being processed", decision: "conflict", retryAfter: time.Second, total: stats.Conflicts}
	outcomeUnknown   = &refusal{status: http.StatusConflict, slug: "outcome-unknown", detail: "the first request with this idempotency key was sent, and how it ended is not known", decision: "unknown", total: stats.Unknown}
	responseNotKept  = &refusal{status: http.StatusConflict, slug: "response-not-kept", detail: "the first request with this idempotency key was answered, but the answer was too large to keep", decision: "unkept", total: stats.Unkept}
	keyReused        = &refusal{status: http.StatusUnprocessableEntity, slug: "key-reused", detail: "this idempotency key was used for another request", decision: "mismatch", total: stats.Mismatches}
	storeUnavailable = &refusal{status: http.StatusServiceUnavailable, slug: "store-unavailable", detail: "the store of idempotency keys cannot be reached; nothing was done", decision: "unavailable", retryAfter: time.Second, total: stats.Unavailable}
	overloaded       = &refusal{status: http.StatusServiceUnavailable, slug: "overloaded", detail: "too many large requests are under way; nothing was done", decision: "unavailable", retryAfter: time.Second, total: stats.Unavailable}
)

// refusalByState has the refusal of a duplicate by the state of its key.
var refusalByState = map[store.State]*refusal{store.Running: inFlight, store.Unknown: outcomeUnknown, store.Unkept: responseNotKept}

// refuse counts r under f's total, and answers it with f. identity is that of its key, empty if it has none; held is what holds
// the key, nil if it was not claimed.
func refuse(h *handler, w http.ResponseWriter, r *http.Request, f *refusal, identity string, held *store.Held) {
	if f.total == stats.Invalid { // clients may invent paths: not counted by endpoint
		h.stats.Counts[f.total].Add(1)
	} else {
		stats.Count(h.counter, f.total, r)
	}
	p := problem{Type: h.problemType + f.slug, Title: http.StatusText(f.status), Status: f.status, Detail: f.detail}
	if identity != "" {
		p.Instance = "urn:traefik-idem:key:" + publicID(identity)
		sight(h, noteOther, identity, r.Host, store.Free)
	}
	retryAfter := f.retryAfter
	switch f {
	case missingKey:
		p.Detail = fmt.Sprintf(f.detail, h.keyTexts())
	case outcomeUnknown:
		retryAfter = held.Left
	case responseNotKept:
		p.OriginalStatus = held.Answer.Status
	}
	p.Error = stripeError{Type: "idempotency_error", Code: f.slug, Message: p.Detail}
	body, _ := json.Marshal(p) // strings and numbers always marshal
	header := w.Header()
	header.Set("Cache-Control", "no-store") // a cache above may be told to keep errors
	header.Set("Content-Type", "application/problem+json")
	header.Set("Content-Length", strconv.Itoa(len(body)))
	if retryAfter > 0 {
		seconds := (retryAfter + time.Second - 1) / time.Second
		header.Set("Retry-After", strconv.Itoa(int(seconds)))
		expose(h, header, r, "Retry-After")
	}
	announce(h, w, r, f.decision, held != nil && held.Degraded, 0)
	w.WriteHeader(f.status)
	_, _ = w.Write(body) // a client that has gone needs no answer
}

// announce adds the headers that the settings ask for: the decision, when the kept answer ends, and which headers scripts may read.
// left is how long the answer is kept from now on; 0 if it is not.
func announce(h *handler, w http.ResponseWriter, r *http.Request, decision string, degraded bool, left time.Duration) {
	header := w.Header()
	if h.statusHeader != "" {
		if degraded {
			decision += ";degraded"
		}
		header.Set(h.statusHeader, decision)
	}
	if h.expiresHeader != "" && left > 0 {
		header.Set(h.expiresHeader, time.Now().Add(left).UTC().Format(http.TimeFormat))
	}
	expose(h, header, r, h.exposed...)
}

// expose lets scripts of other origins read these headers, if they may read the answer at all. The backend's answer says so, or a
// middleware above says so later; then the request names an origin.
func expose(h *handler, header http.Header, r *http.Request, names ...string) {
	const list = "Access-Control-Expose-Headers"
	readable := header["Access-Control-Allow-Origin"] != nil || r.Header["Origin"] != nil
	if h.exposed != nil && len(names) > 0 && readable {
		header.Set(list, strings.Join(append(header.Values(list), names...), ", "))
	}
}
