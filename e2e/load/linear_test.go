package load

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// A request is seen as steps on its key. A claim begins when the client sends and ends when the backend has the request,
// or the client an answer. What the backend answers then settles the key: in Redis, and in the memory of the Traefik that
// ran it. These are two steps, since other requests may come between them. An operator settles it in Redis alone, and the Traefiks
// may forget what they remember of it, at any time after that began.
type step struct {
	kind    string // claim, settle in Redis, settle in memory, settle by hand, forget
	traefik int
	request int
	to      byte // settle: done, unknown or free
	fault   bool // settle in Redis: Redis was not there all the time, and so it may have had no effect
}

// Where a key stands, in Redis and in the memory of each Traefik.
const (
	free    = 'F' // in memory: nothing is known
	running = 'R'
	done    = 'D'
	unknown = 'U'
)

// place is what is known of a key in one place.
type place struct {
	is byte
	by int // the request that runs, or ran
}

type keyState struct {
	redis  place
	memory [2]place // by Traefik
}

// outcome is what a claim came to: what the place that decided held, or that the claim was granted or had no result.
type outcome struct {
	granted, unavailable bool
	place                // by is known for done alone
}

// keyModel is docs/dev/design.md for one key, without the passing of time.
var keyModel = porcupine.NondeterministicModel{
	Init: func() []any { return []any{keyState{redis: place{is: free}, memory: [2]place{{is: free}, {is: free}}}} },
	Step: func(state, input, output any) []any {
		s, in := state.(keyState), input.(step)
		var next []any
		for _, to := range s.after(in, output) {
			next = append(next, to)
		}
		return next
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v: %+v", input, output) },
}

// after returns all states that in can lead to with this result.
func (s keyState) after(in step, output any) []keyState {
	own := place{running, in.request}
	switch in.kind {
	case "settle in memory":
		s.memory[in.traefik] = place{in.to, in.request}
		return []keyState{s}
	case "settle in Redis":
		settled := s
		settled.redis = place{in.to, in.request}
		switch {
		case s.redis != own: // fenced
			return []keyState{s}
		case in.fault:
			return []keyState{settled, s}
		}
		return []keyState{settled}
	case "settle by hand":
		settled := s
		settled.redis = place{in.to, in.request}
		finished := s.redis.is == unknown || (s.redis.is == done && in.to == free)
		switch {
		case !finished && in.fault:
			return []keyState{s}
		case !finished:
			return nil
		case in.fault:
			return []keyState{settled, s}
		}
		return []keyState{settled}
	case "forget":
		forgot := s
		if is := s.memory[in.traefik].is; is == done || is == unknown {
			forgot.memory[in.traefik] = place{is: free}
		}
		return []keyState{forgot, s}
	}
	out := output.(outcome)
	claimed := s
	claimed.redis = own
	local := s.memory[in.traefik]
	switch {
	case out.unavailable && s.redis.is == free:
		return []keyState{s, claimed} // whether it came to Redis is not known
	case out.unavailable:
		return []keyState{s}
	case out.granted && local.is == free && s.redis.is == free:
		claimed.memory[in.traefik] = own
		return []keyState{claimed}
	case out.granted:
		return nil
	}
	decides := local
	if local.is == free {
		decides = s.redis
		// What a Traefik could not write to Redis when its request ended it may write later.
		other := s.memory[1-in.traefik]
		if decides == (place{running, other.by}) && (other.is == done || other.is == unknown) && out.is == other.is {
			s.redis, decides = other, other
		}
	}
	if decides.is != out.is || (out.is == done && decides.by != out.by) {
		return nil
	}
	if decides.is != running {
		s.memory[in.traefik] = decides
	}
	return []keyState{s}
}

// TestTheModelOfAKey shows histories to the model that are right, and some that are not.
func TestTheModelOfAKey(t *testing.T) {
	claim := func(traefik, request int, out outcome, from, to int64) porcupine.Operation {
		return porcupine.Operation{Input: step{kind: "claim", traefik: traefik, request: request}, Output: out, Call: from, Return: to}
	}
	settle := func(kind string, request int, to byte, fault bool, from, until int64) porcupine.Operation {
		return porcupine.Operation{Input: step{kind: kind, request: request, to: to, fault: fault}, Call: from, Return: until}
	}
	redis, memory, hand, forget := "settle in Redis", "settle in memory", "settle by hand", "forget"
	granted, conflict := outcome{granted: true}, outcome{place: place{is: running}}
	replay := func(by int) outcome { return outcome{place: place{done, by}} }
	for name, c := range map[string]struct {
		right   bool
		history []porcupine.Operation
	}{
		"answered and replayed":         {true, []porcupine.Operation{claim(0, 1, granted, 1, 2), settle(redis, 1, done, false, 3, 4), settle(memory, 1, done, false, 3, 4), claim(1, 2, replay(1), 5, 6)}},
		"two run":                       {false, []porcupine.Operation{claim(0, 1, granted, 1, 2), claim(1, 2, granted, 3, 4)}},
		"two run at once":               {false, []porcupine.Operation{claim(0, 1, granted, 1, 4), claim(1, 2, granted, 2, 3)}},
		"runs after an answer":          {false, []porcupine.Operation{claim(0, 1, granted, 1, 2), settle(redis, 1, done, false, 3, 4), settle(memory, 1, done, false, 3, 4), claim(1, 2, granted, 5, 6)}},
		"runs after a release":          {true, []porcupine.Operation{claim(0, 1, granted, 1, 2), settle(redis, 1, free, false, 3, 9), settle(memory, 1, free, false, 3, 9), claim(1, 2, granted, 5, 6)}},
		"another's answer":              {false, []porcupine.Operation{claim(0, 1, granted, 1, 2), settle(redis, 1, done, false, 3, 4), settle(memory, 1, done, false, 3, 4), claim(1, 2, replay(2), 5, 6)}},
		"replayed before it ended":      {false, []porcupine.Operation{claim(0, 1, granted, 1, 2), claim(1, 2, replay(1), 3, 4), settle(redis, 1, done, false, 5, 6), settle(memory, 1, done, false, 5, 6)}},
		"conflict while it ends":        {true, []porcupine.Operation{claim(0, 1, granted, 1, 2), settle(redis, 1, done, false, 3, 9), settle(memory, 1, done, false, 3, 9), claim(1, 2, replay(1), 4, 5), claim(0, 3, conflict, 6, 7)}},
		"conflict after its end":        {false, []porcupine.Operation{claim(0, 1, granted, 1, 2), settle(redis, 1, done, false, 3, 4), settle(memory, 1, done, false, 3, 4), claim(1, 2, conflict, 5, 6)}},
		"conflict after a lost end":     {true, []porcupine.Operation{claim(0, 1, granted, 1, 2), settle(redis, 1, done, true, 3, 4), settle(memory, 1, done, false, 3, 4), claim(0, 2, replay(1), 5, 6), claim(1, 3, conflict, 7, 8)}},
		"runs after a lost end":         {false, []porcupine.Operation{claim(0, 1, granted, 1, 2), settle(redis, 1, done, true, 3, 4), settle(memory, 1, done, false, 3, 4), claim(1, 2, granted, 5, 6)}},
		"conflict with a lost claim":    {true, []porcupine.Operation{claim(0, 1, outcome{unavailable: true}, 1, 2), claim(1, 2, conflict, 3, 4)}},
		"conflict with nobody":          {false, []porcupine.Operation{claim(1, 2, conflict, 3, 4)}},
		"unknown stays unknown":         {true, []porcupine.Operation{claim(0, 1, granted, 1, 2), settle(redis, 1, unknown, false, 3, 9), settle(memory, 1, unknown, false, 3, 9), claim(1, 2, outcome{place: place{is: unknown}}, 5, 6)}},
		"answered by hand":              {true, []porcupine.Operation{claim(0, 1, granted, 1, 2), settle(redis, 1, unknown, false, 3, 4), settle(memory, 1, unknown, false, 3, 4), settle(hand, -1, done, false, 5, 6), claim(1, 2, replay(-1), 7, 8), claim(0, 3, outcome{place: place{is: unknown}}, 9, 10)}},
		"and then forgotten":            {true, []porcupine.Operation{claim(0, 1, granted, 1, 2), settle(redis, 1, unknown, false, 3, 4), settle(memory, 1, unknown, false, 3, 4), settle(hand, -1, done, false, 5, 6), settle(forget, 0, 0, false, 5, 9), claim(0, 3, replay(-1), 7, 8)}},
		"runs though it was answered":   {false, []porcupine.Operation{claim(0, 1, granted, 1, 2), settle(redis, 1, unknown, false, 3, 4), settle(memory, 1, unknown, false, 3, 4), settle(hand, -1, done, false, 5, 6), settle(forget, 0, 0, false, 5, 9), claim(0, 3, granted, 7, 8)}},
		"runs when it was freed":        {true, []porcupine.Operation{claim(0, 1, granted, 1, 2), settle(redis, 1, done, false, 3, 4), settle(memory, 1, done, false, 3, 4), settle(hand, -1, free, false, 5, 6), claim(1, 2, granted, 7, 8)}},
		"runs twice when it was freed":  {false, []porcupine.Operation{claim(0, 1, granted, 1, 2), settle(redis, 1, done, false, 3, 4), settle(memory, 1, done, false, 3, 4), settle(hand, -1, free, false, 5, 6), settle(forget, 0, 0, false, 5, 9), claim(1, 2, granted, 7, 8), claim(0, 3, granted, 7, 9)}},
		"freed while it runs":           {false, []porcupine.Operation{claim(0, 1, granted, 1, 2), settle(hand, -1, free, false, 3, 4)}},
		"two settle it":                 {false, []porcupine.Operation{claim(0, 1, granted, 1, 2), settle(redis, 1, unknown, false, 3, 4), settle(memory, 1, unknown, false, 3, 4), settle(hand, -1, done, false, 5, 7), settle(hand, -2, done, false, 5, 7)}},
		"an old end after it was freed": {false, []porcupine.Operation{claim(0, 1, granted, 1, 2), settle(redis, 1, done, false, 3, 4), settle(memory, 1, done, false, 3, 4), settle(hand, -1, free, false, 5, 6), claim(1, 2, replay(1), 7, 8)}},
		"runs though it is not unknown": {false, []porcupine.Operation{claim(0, 1, granted, 1, 2), settle(redis, 1, unknown, false, 3, 4), settle(memory, 1, unknown, false, 3, 4), claim(1, 2, granted, 5, 6)}},
	} {
		if porcupine.CheckOperations(keyModel.ToModel(), c.history) != c.right {
			t.Errorf("%s: the model says %t", name, !c.right)
		}
	}
}

// history is what clients and backend saw of all keys.
type history struct {
	begin    time.Time
	requests atomic.Int64
	arrivals sync.Map // request number: *arrival

	mu     sync.Mutex // guards faults
	faults []span
}

// span is a time, in ns since the beginning.
type span struct{ from, to int64 }

// arrival is what the backend knows of a request.
type arrival struct {
	at, answered int64
	to           byte
	calls        atomic.Int64
}

func (h *history) now() int64 { return int64(time.Since(h.begin)) }

// faulty reports whether there was a fault in s.
func (h *history) faulty(s span) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.faults, func(f span) bool { return f.from <= s.to && s.from <= f.to })
}

// serve answers, asks to come again, or breaks off.
func (h *history) serve(w http.ResponseWriter, r *http.Request) {
	number := r.Header.Get("X-Number")
	_, _ = io.Copy(io.Discard, r.Body)
	a := &arrival{at: h.now(), to: []byte{done, done, done, free, free, unknown}[rand.IntN(6)]}
	before, twice := h.arrivals.LoadOrStore(number, a)
	if twice {
		before.(*arrival).calls.Add(1)
	}
	time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond) // so that others meet it; nothing depends on it
	a.answered = h.now()
	switch a.to {
	case done:
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, number)
	case free:
		w.WriteHeader(http.StatusServiceUnavailable)
	default:
		panic(http.ErrAbortHandler)
	}
}

// send sends one request and returns its steps.
func (h *history) send(t *testing.T, s *rig.Site, traefik int, key string) []porcupine.Operation {
	request := int(h.requests.Add(1))
	number := strconv.Itoa(request)
	op := porcupine.Operation{ClientId: request, Input: step{kind: "claim", traefik: traefik, request: request}, Call: h.now()}
	a := s.Send(rig.Post("/", key, "X-Number", number))
	op.Return = h.now()
	decision, _, _ := strings.Cut(a.Header.Get("Decision"), ";")
	says := fmt.Sprintf("%d %s %q %v", a.Status, decision, a.Body, a.Err)
	seen, ran := h.arrivals.Load(number)
	if !ran {
		by, _ := strconv.Atoi(string(a.Body))
		switch {
		case a.Status == 201 && decision == "replayed" && by != 0:
			op.Output = outcome{place: place{done, by}}
		case a.Status == 409 && decision == "conflict":
			op.Output = outcome{place: place{is: running}}
		case a.Status == 409 && decision == "unknown":
			op.Output = outcome{place: place{is: unknown}}
		case a.Status == 503 && decision == "unavailable":
			op.Output = outcome{unavailable: true}
			// The claim is given up afterwards, if that is possible then.
			return []porcupine.Operation{op, {Input: step{kind: "settle in Redis", traefik: traefik, request: request, to: free, fault: true}, Call: op.Call, Return: math.MaxInt64}}
		default:
			t.Errorf("key %s, request %d: %s", key, request, says)
			return nil
		}
		return []porcupine.Operation{op}
	}
	arrived := seen.(*arrival)
	right := map[byte]bool{
		done:    a.Status == 201 && decision == "first" && string(a.Body) == number,
		free:    a.Status == 503 && decision == "released",
		unknown: a.Status == 502 && decision == "unknown",
	}
	if !right[arrived.to] || arrived.calls.Load() > 0 {
		t.Errorf("key %s, request %d: %s; the backend was called %d times more and said %c", key, request, says, arrived.calls.Load(), arrived.to)
	}
	settle := porcupine.Operation{Input: step{kind: "settle in memory", traefik: traefik, request: request, to: arrived.to}, Call: arrived.answered, Return: op.Return}
	if arrived.to != done {
		settle.Return = math.MaxInt64 // it happens after the client was answered
	}
	op.Output, op.Return = outcome{granted: true}, arrived.at
	inRedis := settle
	inRedis.Input = step{kind: "settle in Redis", traefik: traefik, request: request, to: arrived.to}
	return []porcupine.Operation{op, settle, inRedis}
}

// operate has an operator look for the key, and settle it if its request has ended. It returns the steps of that.
func (h *history) operate(t *testing.T, s *rig.Site, key string) []porcupine.Operation {
	number := int(h.requests.Add(1))
	in := step{kind: "settle by hand", request: -number, to: free}
	from := h.now()
	found := s.Send(rig.AsBoss("POST", "find", fmt.Sprintf(`{"method":"POST","url":%q,"key":%q}`, s.URL("/"), key)))
	var k rig.Key
	if found.Status == 200 {
		_ = json.Unmarshal(found.Body, &k)
	}
	c := rig.AsBoss("DELETE", k.ID, "")
	switch {
	case k.State == "unknown" && rand.IntN(2) == 0:
		in.to = done
		c = rig.AsBoss("PUT", k.ID, fmt.Sprintf(`{"status":201,"body":"%d"}`, -number))
	case k.State != "unknown" && k.State != "done":
		return nil
	}
	a := s.Send(c)
	// All may forget, also if nothing was changed; and twice, since it is told before and after.
	var all []porcupine.Operation
	for traefik := range 2 {
		forget := porcupine.Operation{ClientId: number, Input: step{kind: "forget", traefik: traefik}, Call: from, Return: math.MaxInt64}
		all = append(all, forget, forget)
	}
	switch a.Status {
	case 200:
		return append(all, porcupine.Operation{ClientId: number, Input: in, Call: from, Return: h.now()})
	case 503:
		in.fault = true
		return append(all, porcupine.Operation{ClientId: number, Input: in, Call: from, Return: math.MaxInt64})
	case 404, 409: // another came first, or Redis has lost the note
	default:
		t.Errorf("key %s, operator %d: %d %s", key, number, a.Status, a.Body)
	}
	return all
}

// round has five clients send two requests each with one key, and an operator settle it meanwhile, and returns their steps.
func (h *history) round(t *testing.T, sites [][]*rig.Site, key string) []porcupine.Operation {
	var mu sync.Mutex // guards all
	var all []porcupine.Operation
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			for range 2 {
				traefik := rand.IntN(len(sites))
				ops := h.send(t, sites[traefik][rand.IntN(len(sites[traefik]))], traefik, key)
				mu.Lock()
				all = append(all, ops...)
				mu.Unlock()
			}
		})
	}
	wg.Go(func() {
		if rand.IntN(2) == 0 {
			return
		}
		traefik := rand.IntN(len(sites))
		ops := h.operate(t, sites[traefik][0], key)
		mu.Lock()
		all = append(all, ops...)
		mu.Unlock()
	})
	wg.Wait()
	end := h.now()
	for i := range all {
		in := all[i].Input.(step)
		all[i].Return = min(all[i].Return, end) // what nobody has seen after that need not have happened
		if in.kind == "settle in Redis" && h.faulty(span{all[i].Call, all[i].Return}) {
			in.fault = true
			all[i].Input = in
			if in.to == free { // it may be tried again
				all = append(all, all[i])
			}
		}
	}
	return all
}

// TestLinearizable has two Traefiks on one Redis, which is killed, restarted and paused meanwhile and writes everything to
// disk. What clients and backend see of each key must be what one sequence of atomic steps would look like.
func TestLinearizable(t *testing.T) {
	const faults, calm = 8, 30 // so many rounds between two faults, at least
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	h := &history{begin: time.Now()}
	b := rig.NewBackend(t, h.serve)
	e := &rig.Env{Redis: server}
	settings := e.Settings(hosts.Settings{"stats": rig.AdminStats["stats"], "scope": "Authorization", "onStoreError": "reject", "lease": "1h", "ttl": "1h", "maxTTL": "1h"})
	sites := make([][]*rig.Site, 2)
	for i := range sites {
		p := hosts.StartTraefik(t)
		for _, inFlight := range []string{"reject", "wait"} {
			settings["inFlight"], settings["inFlightTimeout"] = inFlight, "30ms"
			sites[i] = append(sites[i], rig.SiteOf(t, p.Serve(t, b.URL, settings), b))
		}
	}

	var rounds, checked, inFaults atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for !rig.Closed(stop) {
				key := fmt.Sprintf("key-%d", rounds.Add(1))
				all := h.round(t, sites, key)
				result := porcupine.CheckOperationsTimeout(keyModel.ToModel(), all, time.Minute)
				if result != porcupine.Ok {
					slices.SortFunc(all, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
					for _, op := range all {
						t.Logf("%12d to %12d  %s", op.Call, op.Return, keyModel.DescribeOperation(op.Input, op.Output))
					}
					t.Errorf("%s: %s", key, result)
				}
				checked.Add(1)
				if slices.ContainsFunc(all, func(op porcupine.Operation) bool { return op.Input.(step).fault }) {
					inFaults.Add(1)
				}
			}
		})
	}
	progress := func(n int64) {
		for from := checked.Load(); checked.Load() < from+n && !t.Failed(); {
			time.Sleep(5 * time.Millisecond)
		}
	}
	for i := 0; i < faults && !t.Failed(); i++ {
		progress(calm)
		h.mu.Lock()
		h.faults = append(h.faults, span{h.now(), math.MaxInt64})
		h.mu.Unlock()
		if i%2 == 0 {
			server.Kill()
			progress(3)
			server.Restart()
		} else {
			server.Pause()
			time.Sleep(100 * time.Millisecond) // no round ends meanwhile
			server.Resume()
		}
		// It is over when every Traefik reaches Redis again, over all of its connections.
		for _, of := range sites {
			for good := 0; good < 5 && !t.Failed(); good++ {
				number := fmt.Sprintf("over-%d", h.requests.Add(1))
				a := of[0].Send(rig.Post("/", number, "X-Number", number))
				if strings.HasPrefix(a.Header.Get("Decision"), "unavailable") {
					good = -1
				}
			}
		}
		h.mu.Lock()
		h.faults[len(h.faults)-1].to = h.now()
		h.mu.Unlock()
	}
	progress(calm)
	close(stop)
	wg.Wait()
	t.Logf("%d rounds, %d of them with a fault", checked.Load(), inFaults.Load())
	if inFaults.Load() == 0 {
		t.Error("no round had a fault")
	}
}
