package e2e

import (
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
)

// TestRequestsUnderWayHoldABoundedMemory has large requests in front of a backend that keeps them, until one is refused.
// When they have ended there is room again.
func TestRequestsUnderWayHoldABoundedMemory(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		const size = 60 << 20 // four of them fit into 256 MiB
		hold := make(chan struct{})
		var arrived sync.WaitGroup
		s := serve(t, host, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Hold") != "" {
				arrived.Done()
				<-hold
			}
			created(w, r)
		}, hosts.Settings{"statusHeader": "Decision", "maxRequestBodyBytes": 64 << 20})
		large := func(key string, headers ...string) call {
			return post("/", key, headers...).with(func(c *call) { c.body = strings.Repeat("x", size) })
		}
		var done sync.WaitGroup
		for range 4 {
			arrived.Add(1)
			done.Add(1)
			go func() {
				defer done.Done()
				s.want(s.do(large(unusedKey(), "Hold", "yes")), 201, "first")
			}()
		}
		arrived.Wait()
		key := unusedKey()
		s.wantProblem(s.do(large(key)), 503, "overloaded", "unavailable")
		s.want(s.do(post("/", unusedKey())), 201, "first") // small ones are not counted
		close(hold)
		done.Wait()
		first := s.do(large(key))
		s.want(first, 201, "first")
		s.wantReplay(first, s.do(large(key)))
		s.calls(6)
	})
}

// TestAnswersUnderWayHoldABoundedMemory has large answers that come in parts, until one is delivered and not kept.
func TestAnswersUnderWayHoldABoundedMemory(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		const size = 60 << 20
		hold := make(chan struct{})
		var sent sync.WaitGroup
		s := serve(t, host, func(w http.ResponseWriter, r *http.Request) {
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
				s.do(post("/", unusedKey(), "Hold", "yes"))
			}()
		}
		sent.Wait()
		key := unusedKey()
		if got := len(s.do(post("/", key)).body); got != size {
			t.Errorf("%d bytes of an answer that is not kept, want all %d", got, size)
		}
		again := s.do(post("/", key))
		for again.status != 409 { // the four may have been on their way still
			key = unusedKey()
			s.do(post("/", key))
			again = s.do(post("/", key))
		}
		s.wantProblem(again, 409, "response-not-kept", "unkept")
		close(hold)
		done.Wait()
		key = unusedKey()
		first := s.do(post("/", key))
		s.wantReplay(first, s.do(post("/", key)))
	})
}
