package behaviour

import (
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// TestRequestsUnderWayHoldABoundedMemory has large requests in front of a backend that keeps them, until one is refused.
// When they have ended there is room again.
func TestRequestsUnderWayHoldABoundedMemory(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		const size = 60 << 20 // four of them fit into 256 MiB
		hold := make(chan struct{})
		var arrived sync.WaitGroup
		s := rig.Serve(t, host, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Hold") != "" {
				arrived.Done()
				<-hold
			}
			rig.Created(w, r)
		}, hosts.Settings{"statusHeader": "Decision", "maxRequestBodyBytes": 64 << 20})
		large := func(key string, headers ...string) rig.Call {
			return rig.Post("/", key, headers...).With(func(c *rig.Call) { c.Body = strings.Repeat("x", size) })
		}
		var done sync.WaitGroup
		for range 4 {
			arrived.Add(1)
			done.Add(1)
			go func() {
				defer done.Done()
				s.Want(s.Do(large(rig.UnusedKey(), "Hold", "yes")), 201, "first")
			}()
		}
		arrived.Wait()
		key := rig.UnusedKey()
		s.WantProblem(s.Do(large(key)), 503, "overloaded", "unavailable")
		s.Want(s.Do(rig.Post("/", rig.UnusedKey())), 201, "first") // small ones are not counted
		close(hold)
		done.Wait()
		first := s.Do(large(key))
		s.Want(first, 201, "first")
		s.WantReplay(first, s.Do(large(key)))
		s.Calls(6)
	})
}

// TestAnswersUnderWayHoldABoundedMemory has large answers that come in parts, until one is delivered and not kept.
func TestAnswersUnderWayHoldABoundedMemory(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		const size = 60 << 20
		hold := make(chan struct{})
		var sent sync.WaitGroup
		s := rig.Serve(t, host, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusCreated)
			part := make([]byte, 1<<20)
			for range size / len(part) {
				_, _ = w.Write(part)
			}
			_ = http.NewResponseController(w).Flush()
			if r.Header.Get("Hold") != "" {
				sent.Done()
				<-hold
			}
		}, hosts.Settings{"statusHeader": "Decision", "maxResponseBodyBytes": 64 << 20, "localCacheBytes": 512 << 20})
		var done sync.WaitGroup
		for range 4 {
			sent.Add(1)
			done.Add(1)
			go func() {
				defer done.Done()
				s.Do(rig.Post("/", rig.UnusedKey(), "Hold", "yes"))
			}()
		}
		sent.Wait()
		key := rig.UnusedKey()
		if got := len(s.Do(rig.Post("/", key)).Body); got != size {
			t.Errorf("%d bytes of an answer that is not kept, want all %d", got, size)
		}
		again := s.Do(rig.Post("/", key))
		for again.Status != 409 { // the four may have been on their way still
			key = rig.UnusedKey()
			s.Do(rig.Post("/", key))
			again = s.Do(rig.Post("/", key))
		}
		s.WantProblem(again, 409, "response-not-kept", "unkept")
		close(hold)
		done.Wait()
		key = rig.UnusedKey()
		first := s.Do(rig.Post("/", key))
		s.WantReplay(first, s.Do(rig.Post("/", key)))
	})
}
