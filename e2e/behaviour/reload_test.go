package behaviour

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// halfBytes is half of an answer, sent before a reload. A client that stalls does not take it all.
const halfBytes = 2 * rig.StalledBytes

// reloads are changes that come while answers are streamed.
var reloads = []struct {
	what      string
	was, then hosts.Settings
	away      bool // there is no router until the answers have ended
	unkept    bool // they are too large for the middleware that has them
}{
	{what: "nothing else"},
	{what: "a maxResponseBodyBytes that is exceeded by now", then: hosts.Settings{"maxResponseBodyBytes": halfBytes}},
	{what: "one that was exceeded", was: hosts.Settings{"maxResponseBodyBytes": halfBytes}, unkept: true},
	{what: "a shorter ttl", then: hosts.Settings{"ttl": "5s"}},
	{what: "no router for a while", away: true},
}

// TestAnswersAreStreamedDuringAReload has the old middleware record them whole, whether their clients read or stall, and the new
// one answer their duplicates. Nothing is left of them.
func TestAnswersAreStreamedDuringAReload(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		var proceed atomic.Value // a channel that is closed when the other half may be sent
		s := rig.NewChangeable(t, e.Host, func(w http.ResponseWriter, r *http.Request) {
			reloaded := proceed.Load().(chan struct{})
			if r.URL.Path == "/declared" {
				w.Header().Set("Content-Length", strconv.Itoa(2*halfBytes))
			}
			rig.WritePart(w, halfBytes)
			<-reloaded
			rig.WritePart(w, halfBytes)
		})
		settings := e.Settings(hosts.Settings{"expiresHeader": "Expire", "inFlightTimeout": "1h"})
		put := func(more hosts.Settings, replayHeader string, cache int) {
			all := maps.Clone(settings)
			maps.Copy(all, more)
			all["replayHeader"], all["localCacheBytes"] = replayHeader, cache
			s.Put(all)
		}
		caches := []int{64 << 20}
		if e.Redis != nil {
			caches = append(caches, 0)
		}
		before := 0
		clients := []*rig.Site{s.Site}
		for _, cache := range caches {
			for _, reload := range reloads {
				reloaded := make(chan struct{})
				proceed.Store(reloaded)
				put(reload.was, "Old", cache)
				if before == 0 {
					before = rig.Measure(t, s.Traefik, e.Redis).Goroutines
				}
				var all []*stream
				for _, path := range []string{"/declared", "/open"} {
					for _, client := range []*rig.Site{s.Other(), s.Stalls()["HTTP2"]} {
						clients = append(clients, client)
						c := rig.Post(path, rig.UnusedKey())
						all = append(all, &stream{site: s.Site, what: fmt.Sprintf("%s, cache %d, %s %s", reload.what, cache, path, c.Header.Get("X-Request-ID")),
							call: c, first: client.Begin(c), stalls: client.HTTP.Transport.(*http.Transport).HTTP2 != nil})
					}
				}
				if reload.away {
					s.Remove()
					close(reloaded)
					for _, a := range all {
						if !a.stalls {
							a.read()
						}
					}
					put(reload.then, "New", cache)
				} else {
					ask(all) // most of these wait at the old one
					put(reload.then, "New", cache)
					ask(all)
					close(reloaded)
				}
				ask(all)
				for _, a := range all {
					if !a.stalls || reload.unkept {
						a.read()
					}
				}
				for _, a := range all {
					a.wantDuplicates(reload.unkept)
				}
				for _, a := range all {
					a.read()
				}
			}
		}
		s.Calls(int64(4 * len(reloads) * len(caches)))
		s.Remove()
		others := 0
		if e.Redis != nil {
			others = 4 // send to it
		}
		rig.Until(t, fmt.Sprintf("%d goroutines, as before", before), rig.Never, func() bool {
			for _, client := range clients {
				client.HTTP.CloseIdleConnections()
			}
			s.Backend.CloseClientConnections()
			return rig.Measure(t, s.Traefik, e.Redis).Goroutines <= before+others
		})
	})
}

// stream is an answer that is streamed, and its duplicates.
type stream struct {
	site   *rig.Site
	what   string
	call   rig.Call
	first  *http.Response
	stalls bool // its client, until read is called
	isRead bool
	again  []chan rig.Answer
}

// ask sends a duplicate of each, which may wait.
func ask(all []*stream) {
	for _, a := range all {
		again := make(chan rig.Answer, 1)
		a.again = append(a.again, again)
		go func() { again <- a.site.Send(a.call) }()
	}
}

// read has the client read what it has not read.
func (a *stream) read() {
	a.site.T.Helper()
	if a.isRead {
		return
	}
	a.isRead = true
	n, err := io.Copy(io.Discard, a.first.Body)
	if n != 2*halfBytes || err != nil {
		a.site.T.Errorf("%s: the client gets %d bytes, %v", a.what, n, err)
	}
}

// wantDuplicates checks the answers to duplicates. The last of them was sent to the new middleware.
func (a *stream) wantDuplicates(unkept bool) {
	a.site.T.Helper()
	for i, again := range a.again {
		got := <-again
		last := i == len(a.again)-1
		switch {
		case unkept:
			a.site.WantProblem(got, 409, "response-not-kept", "unkept")
		case got.Err != nil || got.Status != 200 || got.Header.Get("Decision") != "replayed" || len(got.Body) != 2*halfBytes || (last && got.Header.Get("New") != "true"):
			a.site.T.Errorf("%s: duplicate %d gets %d, %d bytes, %v, %v", a.what, i, got.Status, len(got.Body), got.Header, got.Err)
		case until(got.Header).Before(until(a.first.Header)):
			a.site.T.Errorf("%s: kept until %v and not %v", a.what, until(got.Header), until(a.first.Header))
		}
	}
}

// until is when an answer expires.
func until(header http.Header) time.Time {
	at, _ := http.ParseTime(header.Get("Expire"))
	return at
}
