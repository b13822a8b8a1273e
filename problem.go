package idem

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"
)

// problem is the body of an answer of the plugin's own (RFC 9457, application/problem+json). It has no unexported
// fields, since under Yaegi those would be marshalled too.
type problem struct {
	Type           string `json:"type"`
	Title          string `json:"title"`
	Status         int    `json:"status"`
	Detail         string `json:"detail"`
	OriginalStatus int    `json:"originalStatus,omitempty"`
}

// refusal is a problem that the plugin answers with instead of the backend.
type refusal struct {
	problem    problem
	decision   string        // value of the status header
	retryAfter time.Duration // 0 = no Retry-After
}

func newRefusal(status int, slug, detail, decision string) refusal {
	return refusal{
		problem:  problem{Type: "urn:traefik-idem:problem:" + slug, Title: http.StatusText(status), Status: status, Detail: detail},
		decision: decision,
	}
}

func invalidKey() refusal {
	return newRefusal(http.StatusBadRequest, "invalid-key", "invalid idempotency key", "invalid")
}

func missingKey(header string) refusal {
	return newRefusal(http.StatusBadRequest, "missing-key", "this request needs an idempotency key in the header "+header, "missing")
}

func incompleteBody() refusal {
	return newRefusal(http.StatusBadRequest, "incomplete-body", "the request body did not arrive whole; nothing was done", "invalid")
}

func inFlight() refusal {
	f := newRefusal(http.StatusConflict, "in-flight", "a request with this idempotency key is still being processed", "conflict")
	f.retryAfter = time.Second
	return f
}

func outcomeUnknown(left time.Duration) refusal {
	f := newRefusal(http.StatusConflict, "outcome-unknown", "the first request with this idempotency key was sent, and how it ended is not known", "unknown")
	f.retryAfter = left
	return f
}

func responseNotKept(status int) refusal {
	f := newRefusal(http.StatusConflict, "response-not-kept", "the first request with this idempotency key was answered, but the answer was too large to keep", "unkept")
	f.problem.OriginalStatus = status
	return f
}

func keyReused() refusal {
	return newRefusal(http.StatusUnprocessableEntity, "key-reused", "this idempotency key was used for another request", "mismatch")
}

func storeUnavailable() refusal {
	f := newRefusal(http.StatusServiceUnavailable, "store-unavailable", "the store of idempotency keys cannot be reached; nothing was done", "unavailable")
	f.retryAfter = time.Second
	return f
}

func overloaded() refusal {
	f := newRefusal(http.StatusServiceUnavailable, "overloaded", "too many large requests are under way; nothing was done", "unavailable")
	f.retryAfter = time.Second
	return f
}

// refuse answers with f.
func refuse(h *handler, w http.ResponseWriter, f refusal, degraded bool) {
	body, _ := json.Marshal(f.problem) // strings and numbers always marshal
	header := w.Header()
	header.Set("Content-Type", "application/problem+json")
	header.Set("Content-Length", strconv.Itoa(len(body)))
	if f.retryAfter > 0 {
		seconds := (f.retryAfter + time.Second - 1) / time.Second
		header.Set("Retry-After", strconv.Itoa(int(seconds)))
	}
	decide(h, w, f.decision, degraded)
	w.WriteHeader(f.problem.Status)
	_, _ = w.Write(body) // a client that has gone needs no answer
}

// decide writes the status header, if there is to be one.
func decide(h *handler, w http.ResponseWriter, decision string, degraded bool) {
	if h.statusHeader == "" {
		return
	}
	if degraded {
		decision += ";degraded"
	}
	w.Header().Set(h.statusHeader, decision)
}
