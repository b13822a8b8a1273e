package idem

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/example/traefik-idem/stats"
	"github.com/example/traefik-idem/store"
)

// mostObserved is how many requests a handler notes at the same time. Further ones are passed on without being noted, which
// bounds the cost of a store that hangs.
const mostObserved = 128

// observe passes a request on as if there were no plugin, and notes in the background that its key was seen: at once if there
// is no body, else as soon as the next handler has read all of it. A body that is not read to its end is not observed.
func observe(h *handler, w http.ResponseWriter, r *http.Request, k *keyed) {
	target := *r.URL // copies, because the next handler may change r
	seen := &http.Request{Method: r.Method, Host: r.Host, URL: &target, Header: r.Header.Clone(), RemoteAddr: r.RemoteAddr}
	o := &observedBody{body: r.Body, h: h, key: k, seen: seen, length: r.ContentLength}
	announce(h, w, r, "observed", false, 0) // also if its key may be in the body, which nobody has read yet
	if r.ContentLength == 0 {
		o.mu.Lock()
		observeWhole(o)
		o.mu.Unlock()
	} else {
		r = r.WithContext(r.Context()) // a copy: the middlewares above keep their body
		r.Body = o
		defer o.abandon()
	}
	h.next.ServeHTTP(w, r) // not marked: a plugin further down may enforce
}

// observedBody is the body of an observed request. While it is read, it keeps the part that is compared.
type observedBody struct {
	body   io.ReadCloser // the client's
	h      *handler
	key    *keyed
	seen   *http.Request // without its body
	length int64         // as declared, or -1

	mu          sync.Mutex // guards everything below: the transport may read while the handler ends
	data        bytes.Buffer
	read        int64
	reservation reservation // for data
	done        bool        // noted, or given up
}

// Read implements io.Reader.
func (o *observedBody) Read(p []byte) (int, error) {
	n, err := o.body.Read(p)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.done {
		return n, err
	}
	o.read += int64(n)
	kept := p[:n]
	if room := o.h.maxRequestBody + 1 - int64(o.data.Len()); int64(n) > room {
		kept = p[:room]
	}
	switch {
	case !reserve(&o.reservation, len(kept)):
		giveUp(o, stats.Unobserved)
		return n, err
	case err != nil && err != io.EOF: //nolint:errorlint // a reader returns io.EOF itself
		giveUp(o, stats.Invalid)
		return n, err
	}
	o.data.Write(kept)
	if err == io.EOF || o.read == o.length { //nolint:errorlint // likewise
		observeWhole(o)
	}
	return n, err
}

// Close implements io.Closer.
func (o *observedBody) Close() error {
	return o.body.Close()
}

// abandon gives up a body that was not read to its end.
func (o *observedBody) abandon() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.done {
		giveUp(o, stats.Unobserved)
	}
}

// giveUp counts the request of o under total, and ends its observation. The caller holds the lock.
func giveUp(o *observedBody, total int) {
	o.done = true
	o.data = bytes.Buffer{}
	unreserve(&o.reservation)
	o.h.stats.Counts[total].Add(1)
}

// observeWhole notes the key of a request whose body was read to its end. The caller holds the lock.
func observeWhole(o *observedBody) {
	o.done = true
	body := o.data.Bytes()
	if int64(len(body)) > o.h.maxRequestBody {
		body = comparedPart(o.h, body, o.length)
	}
	h := o.h
	k := o.key
	if k.state == unread {
		k = findKey(h, o.seen, body, present)
	}
	var l *store.Run
	if k.state == present {
		l = newRun(h, o.seen, k, body)
	}
	o.data = bytes.Buffer{}
	unreserve(&o.reservation)
	switch {
	case k.state == absent:
		return
	case l == nil:
		h.stats.Counts[stats.Invalid].Add(1)
		return
	case h.observing.Add(1) > mostObserved:
		h.observing.Add(-1)
		h.stats.Counts[stats.Unobserved].Add(1)
		return
	}
	claims := h
	if k.from.content {
		claims, _ = h.contentHandler.(*handler)
	}
	go recordSeen(h, claims, l, o.seen)
}

// recordSeen keeps the key for the time to live that claims has, or counts a duplicate if the key was seen before.
func recordSeen(h, claims *handler, l *store.Run, r *http.Request) {
	defer recovered("observing a request")
	defer h.observing.Add(-1)
	held := claim(claims, l)
	if held != nil && held.Err != nil {
		held = claimDegraded(claims, l, held.Err)
	}
	countDegraded(h, l, held)
	switch {
	case held == nil:
		finish(claims, l, fmt.Sprintf(store.ObservedFormat, l.Fingerprint, l.Owner))
	case held.Err != nil:
		if l.Doubtful {
			giveBack(claims, l)
		}
		h.stats.Counts[stats.Unobserved].Add(1)
	case mismatch(h, l, held):
		stats.Count(h.counter, stats.Mismatches, r)
	default:
		stats.Count(h.counter, stats.Observed, r)
		if h.log.level >= levelDebug {
			sight(h, noteOther, l.Key, r.Host, store.Free)
			h.log.write(levelDebug, "duplicate observed", keyName(l.Key))
		}
	}
}
