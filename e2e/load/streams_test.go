package load

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// Lengths of streamed answers: kept, and too large to be. A client that stalls gets no answer whole.
const (
	keptBytes  = rig.StalledBytes + (16 << 10)
	mostBytes  = 192 << 10 // maxResponseBodyBytes
	largeBytes = mostBytes + rig.StalledBytes + (16 << 10)
)

// streamed is a backend that answers as the path says: /<length>/declared or /open. After half of it, /broken breaks off; after one
// byte, /held does, when there is something to receive.
func streamed(proceed <-chan struct{}) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/"), "/")
		n, _ := strconv.Atoi(parts[0])
		if parts[1] == "declared" {
			w.Header().Set("Content-Length", parts[0])
		}
		switch parts[len(parts)-1] {
		case "broken":
			rig.WritePart(w, n/2)
			panic(http.ErrAbortHandler)
		case "held":
			rig.WritePart(w, 1)
			<-proceed
			panic(http.ErrAbortHandler)
		}
		rig.WritePart(w, n/2)
		rig.WritePart(w, n-n/2)
	}
}

// streamer is a client of streamed answers.
type streamer struct{ site, stalled *rig.Site }

// stream has an answer streamed in one of eight ways, and another request for it.
func (c *streamer) stream(n int64) {
	key, length := rig.UnusedKey(), []string{"declared", "open"}[n/8%2]
	kept := rig.Post(fmt.Sprintf("/%d/%s", keptBytes, length), key)
	large := rig.Post(fmt.Sprintf("/%d/%s", largeBytes, length), key)
	broken := rig.Post(fmt.Sprintf("/%d/%s/broken", 2*keptBytes, length), key)
	switch n % 8 {
	case 0: // read at once
		c.rest(c.begin(c.site, kept), keptBytes, false)
		c.replayed(kept)
	case 1: // read slowly
		response := c.begin(c.stalled, kept)
		c.replayed(kept)
		c.rest(response, keptBytes, false)
	case 2: // broken off by the client
		_ = c.begin(c.site, kept).Body.Close()
		c.replayed(kept)
	case 3:
		_ = c.begin(c.stalled, kept).Body.Close()
		c.replayed(kept)
	case 4: // broken off by the backend
		c.rest(c.begin(c.site, broken), keptBytes, true)
		c.refused(broken, "unknown")
	case 5: // read slowly as well
		response := c.begin(c.stalled, broken)
		c.refused(broken, "unknown")
		c.rest(response, keptBytes, true)
	case 6: // too large
		c.rest(c.begin(c.stalled, large), largeBytes, false)
		c.refused(large, "unkept")
	case 7: // broken off by the client as well
		_ = c.begin(c.stalled, large).Body.Close()
		c.refused(large, "unkept")
	}
}

// begin sends call from s and returns when one byte of its answer has come.
func (c *streamer) begin(s *rig.Site, call rig.Call) *http.Response {
	response, err := s.HTTP.Do(s.Request(call))
	if err != nil {
		c.site.T.Errorf("%s: %v", call.Path, err)
		return &http.Response{Body: http.NoBody}
	}
	_, err = io.ReadFull(response.Body, make([]byte, 1))
	if err != nil {
		c.site.T.Errorf("%s: %v", call.Path, err)
	}
	return response
}

// rest reads what is left of an answer of so many bytes, which may break off after them.
func (c *streamer) rest(response *http.Response, length int64, breaks bool) {
	n, err := io.Copy(io.Discard, response.Body)
	_ = response.Body.Close()
	if n != length-1 || breaks != (err != nil) {
		c.site.T.Errorf("%d of %d bytes, %v", n+1, length, err)
	}
}

// replayed checks that call is answered with a kept answer.
func (c *streamer) replayed(call rig.Call) {
	a := c.site.Send(call)
	if a.Err != nil || a.Status != 200 || a.Header.Get("Decision") != "replayed" || len(a.Body) != keptBytes {
		c.site.T.Errorf("%s again: %d %q, %d bytes, %v", call.Path, a.Status, a.Header.Get("Decision"), len(a.Body), a.Err)
	}
}

// refused checks that call is refused.
func (c *streamer) refused(call rig.Call, decision string) {
	a := c.site.Send(call)
	if a.Err != nil || a.Status != 409 || a.Header.Get("Decision") != decision {
		c.site.T.Errorf("%s again: %d %q, %v", call.Path, a.Status, a.Header.Get("Decision"), a.Err)
	}
}

// TestStreamsLeaveNothing has 2,000 answers streamed on each host, half of them with keys in Redis. When they have ended and their
// records are dropped, nothing is left of them.
func TestStreamsLeaveNothing(t *testing.T) {
	const (
		workers = 16
		warmUp  = 96 // pools have their size then, and Redis its connections
		streams = 1000
		heap    = 1 << 20   // a kilobyte for each. Notes of keys, which end with their ttl, are a third of that
		others  = 8         // goroutines and descriptors: a leak in one of the eight ways is 125
		most    = 256 << 20 // what all requests under way may hold
	)
	server := rig.SharedRedis(t)
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		proceed := make(chan struct{})
		s := rig.NewChangeable(t, host, streamed(proceed))
		var clients []*streamer
		for range workers {
			clients = append(clients, &streamer{s.Other(), s.Stalls()["HTTP2"]})
		}
		measure := func() rig.Usage {
			for _, c := range clients {
				c.site.HTTP.CloseIdleConnections()
				c.stalled.HTTP.CloseIdleConnections()
			}
			s.HTTP.CloseIdleConnections()
			s.Backend.CloseClientConnections()
			return rig.Measure(t, s.Traefik, server)
		}
		var last atomic.Int64
		for _, e := range []*rig.Env{{Host: host}, {Host: host, Redis: server}} {
			settings := e.Settings(hosts.Settings{"inFlightTimeout": "10m", "stats": map[string]any{"insecure": true}})
			reload := func(maxResponseBodyBytes, localCacheBytes int) {
				settings["maxResponseBodyBytes"] = maxResponseBodyBytes
				settings["localCacheBytes"] = localCacheBytes
				s.Put(settings)
			}
			stream := func(n int64) {
				reload(mostBytes, 256<<20) // room for all records
				var all sync.WaitGroup
				end := last.Load() + n
				for _, c := range clients {
					all.Go(func() {
						for i := last.Add(1); i <= end; i = last.Add(1) {
							c.stream(i)
						}
					})
				}
				all.Wait()
				last.Store(end)
				reload(most, 1) // for none
			}
			stream(warmUp)
			before := measure()
			for range 5 {
				time.Sleep(20 * time.Millisecond)
				before = least(before, measure())
			}
			nothingLeft := func(of string) {
				t.Helper()
				after := measure()
				left := func() bool {
					return after.Heap > before.Heap+heap || after.Goroutines > before.Goroutines+others || after.Files > before.Files+others
				}
				for end := time.Now().Add(30 * time.Second); left() && time.Now().Before(end); { // what ends by itself may take its time
					time.Sleep(20 * time.Millisecond)
					after = least(after, measure())
				}
				t.Logf("%s: %d KiB of heap more; before %+v, after %+v", of, (after.Heap-before.Heap)>>10, before, after)
				if left() {
					t.Errorf("%s: something is left", of)
				}
			}
			stream(streams)
			nothingLeft(fmt.Sprintf("%d streams", streams))
			bytes := s.Stats().Memory.Bytes
			kept := s.Metric("traefik_idem_keys", "finished").GetGauge().GetValue()
			if kept != 0 || (e.Redis == nil && bytes != 0) {
				t.Errorf("%g records are left in memory, and %d bytes", kept, bytes)
			}
			if e.Redis != nil {
				long := rig.Post(fmt.Sprintf("/%d/open", 16<<20), rig.UnusedKey())
				first := s.Do(long)
				s.WantReplay(first, s.Do(long))
				nothingLeft("a long answer, kept in Redis and replayed")
			}
			// An answer that takes all that requests under way may hold, but for less than a kilobyte, leaves no room.
			all := rig.Post(fmt.Sprintf("/%d/declared/held", most-1<<10), rig.UnusedKey())
			held := clients[0].begin(clients[0].site, all)
			large := rig.Post("/2/open", rig.UnusedKey()).With(func(c *rig.Call) { c.Body = strings.Repeat("x", 17<<10) })
			s.WantProblem(s.Do(large), 503, "overloaded", "unavailable")
			proceed <- struct{}{}
			_ = held.Body.Close()
			s.Want(s.DoWhile(503, large), 200, "first")
		}
	})
}

// least is the least of each in a and b.
func least(a, b rig.Usage) rig.Usage {
	return rig.Usage{Goroutines: min(a.Goroutines, b.Goroutines), Connections: min(a.Connections, b.Connections), Files: min(a.Files, b.Files), Heap: min(a.Heap, b.Heap), Rss: b.Rss}
}
