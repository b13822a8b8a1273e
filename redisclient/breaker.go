package redisclient

import (
	"errors"
	"fmt"
	"log"
	"sync"
	"sync/atomic"
	"time"
)

// ErrDown is wrapped by the error for a command that was not sent, because the server did not answer the last time and no
// probe has found it since.
var ErrDown = errors.New("no answer from redis")

// States of a server.
const (
	fine     int32 = iota // it does what keys need
	refusing              // it answers but refuses to write, for instance for lack of memory: it still reads, so commands are sent
	down                  // it does not answer, or refuses the login: only probes are sent
)

// probePause is the time between two probes of a server that is not fine. It also comes before the first probe if the server
// has been fine for less than that, so that a server that comes and goes does not fill the log.
const probePause = 200 * time.Millisecond

// probeScript does what keys need: run a script, and in it each command of the scripts for keys. An error names the command.
var probeScript = newScript(':', 0, `
for _, command in ipairs({{'GET', KEYS[1]}, {'SET', KEYS[1], '', 'PX', '1000'}, {'PTTL', KEYS[1]}, {'PEXPIRE', KEYS[1], '1000'}, {'DEL', KEYS[1]}}) do
  local reply = redis.pcall(unpack(command))
  if type(reply) == 'table' and reply.err then return redis.error_reply(command[1] .. ': ' .. reply.err) end
end
return 1`)

// breaker is the circuit breaker of one server. The first command that fails trips it; from then on no request waits for the
// server, until a probe in the background finds it fine.
type breaker struct {
	state atomic.Int32

	mu    sync.Mutex // guards everything below, and changes of state. Taken before health.mu and Backlog.mu
	cause error      // of the state; nil while it is fine
	since time.Time  // begin of the last outage
	back  time.Time  // end of the last outage
}

// health is the state of all servers of one store together: of its only server, or of the nodes of a cluster.
type health struct {
	closed    atomic.Bool  // the store is not used any more
	failing   atomic.Int32 // number of servers that are not fine
	outages   atomic.Int64 // number of outages that have begun
	noEVALSHA atomic.Bool  // a server has forbidden EVALSHA
	noHashes  atomic.Bool  // a server has forbidden what statistics and notes need
	timings   *timings

	// Hooks, set before there is any command.
	onOutage func()      // a server that was fine is not
	onBack   func()      // a server that was not fine is
	onClose  func()      // the store is closed
	needed   func() bool // reports whether a store that is closed has to find its servers again

	mu       sync.Mutex // guards everything below
	troubles []trouble  // of the servers that are not fine; the last one has failed last
	probeKey string     // key that probes may write
}

// trouble is why a server is not fine.
type trouble struct {
	server *breaker
	cause  error
}

func newHealth() *health {
	return &health{timings: newTimings()}
}

func (h *health) setProbeKey(key string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.probeKey = key
}

// Trouble returns why a server does not do what keys need, as far as is known; nil if all do.
func (c *Client) Trouble() error {
	h := c.health
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.troubles) == 0 {
		return nil
	}
	return h.troubles[len(h.troubles)-1].cause
}

// notSent is the error for a command while the server is down.
func notSent(c *Client) error {
	c.breaker.mu.Lock()
	cause := c.breaker.cause
	c.breaker.mu.Unlock()
	if cause == nil { // it has just been found again
		return ErrDown
	}
	return fmt.Errorf("%w: %w", ErrDown, cause)
}

// trip sets the state of c's server after a command failed with cause, unless it is as bad already, and starts to probe it.
func trip(c *Client, state int32, cause error) {
	if c.main != nil {
		c = c.main
	}
	b := c.breaker
	b.mu.Lock()
	defer b.mu.Unlock()
	before := b.state.Load()
	if state <= before {
		return
	}
	transition(c, state, cause)
	if before == fine {
		b.since = time.Now()
		go startProbing(c)
	}
}

// setState changes the state without logging it. The caller holds the lock of the breaker.
func setState(c *Client, state int32, cause error) {
	before := c.breaker.state.Swap(state)
	c.breaker.cause = cause
	h := c.health
	h.mu.Lock()
	defer h.mu.Unlock()
	var troubles []trouble
	for _, t := range h.troubles {
		if t.server != c.breaker {
			troubles = append(troubles, t)
		}
	}
	if state != fine {
		troubles = append(troubles, trouble{c.breaker, cause})
	}
	h.troubles = troubles
	h.failing.Store(int32(len(troubles)))
	if before == fine && state != fine {
		h.outages.Add(1)
		if !h.closed.Load() {
			h.onOutage()
		}
	}
}

// transition changes the state and logs that, unless the client is not used any more: its outage is not that of the others.
// The caller holds the lock of the breaker.
func transition(c *Client, state int32, cause error) {
	b := c.breaker
	setState(c, state, cause)
	if state == fine {
		b.back = time.Now()
		c.health.onBack()
	}
	if c.health.closed.Load() {
		return
	}
	switch state {
	case fine:
		log.Printf("level=warn msg=\"Redis is back\" redis=%q after=%q", c.opts.Address, time.Since(b.since).Round(time.Millisecond))
	case refusing:
		if isForbidden(cause) {
			log.Printf("level=error msg=\"Redis forbids a command that keys need\" redis=%q cause=%q", c.opts.Address, cause)
			return
		}
		log.Printf("level=error msg=\"Redis refuses to write\" redis=%q cause=%q", c.opts.Address, cause)
	default:
		log.Printf("level=error msg=\"Redis is out of reach\" redis=%q cause=%q", c.opts.Address, cause)
	}
}

// startProbing is a variable for the same reason as startSender: the probing must not keep in memory the request that began it.
var startProbing func(c *Client)

func init() { startProbing = probeUntilFine }

// probeUntilFine probes the server until it is fine.
func probeUntilFine(c *Client) {
	defer endProbing(c)
	c.breaker.mu.Lock()
	flaps := c.breaker.since.Sub(c.breaker.back) < probePause
	c.breaker.mu.Unlock()
	if flaps {
		time.Sleep(probePause)
	}
	for {
		probed := ""
		if c.master != nil {
			probed = c.master.current()
		}
		if reprobe(c) {
			break
		}
		pauseProbing(c, probed)
	}
}

// pauseProbing returns after probePause, or as soon as the sentinels name another master than the one that was probed.
func pauseProbing(c *Client, probed string) {
	if c.master == nil {
		time.Sleep(probePause)
		return
	}
	_, _ = c.master.await(probed, time.Now().Add(probePause)) // the next probe tells
}

// endProbing ends a panic, and lets the next failure start the probing again.
func endProbing(c *Client) {
	if p := recover(); p != nil {
		log.Printf("level=error msg=\"probing Redis failed\" cause=%q", p)
		c.breaker.mu.Lock()
		defer c.breaker.mu.Unlock()
		setState(c, fine, nil)
	}
}

// reprobe probes the server, sets its state, and reports whether it is fine. A closed client counts as fine, so that its probing
// ends, unless it alone can write what is pending. A command that it still sends trips the breaker again if need be.
func reprobe(c *Client) bool {
	state, cause := probe(c)
	if state == down && c.node { // another one may have its slots by now
		_ = c.cluster.refresh("", c.opts.Address)
	}
	c.lock()
	closed := c.closed
	c.unlock()
	b := c.breaker
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case closed && !c.health.needed():
		setState(c, fine, nil)
		b.back = time.Now() // the next probing begins with a pause, if a command fails again
		successor := c.node && !c.health.closed.Load()
		if successor {
			c.health.onBack()
		}
		return true
	case state != b.state.Load():
		transition(c, state, cause)
	}
	return state == fine
}

// probe does what keys need over a new connection, and returns the state of the server. c may represent a cluster.
func probe(c *Client) (int32, error) {
	if isFront(c) {
		return probeMap(c.cluster)
	}
	pc := <-c.conns
	defer putConn(c, pc)
	disconnect(pc)
	state, cause := probeOver(c, pc)
	if state == fine {
		c.closeIdle() // other connections may lead to what the server was before
	}
	return state, cause
}

// check probes a server after the first connection to it, because a command that is rarely needed may be forbidden too. It
// also runs after an error that is not known, or says that a command is forbidden.
func check(c *Client) {
	defer recovered("probing Redis")
	if c.main != nil {
		c = c.main
	}
	for i := 0; i < 100 && probeKey(c) == ""; i++ { // a connection made in advance may be older than the store
		time.Sleep(10 * time.Millisecond)
	}
	pc := <-c.conns
	defer putConn(c, pc)
	state, cause := probeOver(c, pc)
	if state == refusing { // the commands of requests find out everything else
		trip(c, state, cause)
	}
}

// probeOver does what keys need over pc, and returns the state of the server and its cause.
func probeOver(c *Client, pc *pooledConn) (int32, error) {
	key := probeKey(c)
	replies, err := exchangeAny(c, pc, []Command{{Name: "EVALSHA", Args: []interface{}{probeScript.sha1, 1, key}}})
	if err != nil {
		return down, err
	}
	refusal := errorIn(replies[0])
	if refusal != nil && (isUnknownScript(refusal) || lacksEVALSHA(refusal)) {
		if lacksEVALSHA(refusal) {
			disableEVALSHA(c)
		}
		replies, err = exchangeAny(c, pc, []Command{{Name: "EVAL", Args: []interface{}{probeScript.lua, 1, key}}})
		if err != nil {
			return down, err
		}
		refusal = errorIn(replies[0])
	}
	if refusal == nil || isAboutKey(refusal) {
		return fine, nil
	}
	state := stateFrom(refusal)
	if state == fine { // an error that nobody knows, as of a proxy: keys get it too
		state = refusing
	}
	return state, withoutArguments(refusal)
}

// probeKey returns a key that a probe of c may write. For a node of a cluster it is a key in one of the node's slots.
func probeKey(c *Client) string {
	h := c.health
	h.mu.Lock()
	key := h.probeKey
	h.mu.Unlock()
	if c.cluster != nil {
		key = ownKey(c, key)
	}
	return key
}
