package redisclient

import (
	"errors"
	"fmt"
	"log"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// ErrDown is wrapped by the error for a command that was not sent, since the server did not answer the last time and no
// probe has found it since.
var ErrDown = errors.New("no answer from redis")

// States of a server.
const (
	fine     int32 = iota // it does what keys need
	refusing              // it answers, and refuses to write, for instance for want of memory: it is asked all the same, since it still reads
	down                  // it does not answer, or lets nobody in: nothing is sent but probes
)

// refusals are words of error replies that tell of the server and not of one key. In Redis 6 and before, an error in a
// script stands in the middle of its reply.
var refusals = map[string]int32{
	"OOM ":         refusing,
	"READONLY ":    refusing,
	"LOADING ":     refusing,
	"MASTERDOWN ":  refusing,
	"MISCONF ":     refusing,
	"NOREPLICAS ":  refusing,
	"CLUSTERDOWN ": refusing,
	"BUSY ":        refusing,

	"NOPERM ":                            refusing, // and what it is called in a script, by Redis 7 and before
	"ACL failure in script":              refusing,
	"The user executing the script":      refusing,
	"unknown command":                    refusing,
	"Unknown Redis command called from ": refusing,

	"NOAUTH ":    down,
	"WRONGPASS ": down,

	"max number of clients reached": down,
}

// probePause is between two probes of a server that is not fine, and before the first if it has been fine for less than
// that: so a server that comes and goes is not found fine, and logged, all the time.
const probePause = 200 * time.Millisecond

// probeScript does what keys need: run a script, and in it each command of the scripts for keys. An error names the command.
var probeScript = newScript(':', 0, `
for _, command in ipairs({{'GET', KEYS[1]}, {'SET', KEYS[1], '', 'PX', '1000'}, {'PTTL', KEYS[1]}, {'PEXPIRE', KEYS[1], '1000'}, {'DEL', KEYS[1]}}) do
  local reply = redis.pcall(unpack(command))
  if type(reply) == 'table' and reply.err then return redis.error_reply(command[1] .. ': ' .. reply.err) end
end
return 1`)

// breaker is what is known of how a server is. The first command that fails opens it; from then on no request waits for
// the server, until a probe in the background finds it fine.
type breaker struct {
	state atomic.Int32

	mu    sync.Mutex // guards everything below, and changes of state
	cause error      // why it is not fine
	since time.Time  // the last outage began
	back  time.Time  // the last outage ended
}

// plight is what all servers that have keys of one store share: the one, or the nodes of a cluster.
type plight struct {
	front   *Client      // that one, or what stands for the cluster
	closed  atomic.Bool  // nobody uses them any more
	servers atomic.Int32 // that are not fine
	outages atomic.Int64 // that have begun
	whole   atomic.Bool  // one of them has forbidden EVALSHA
	backlog *Backlog

	mu    sync.Mutex // guards everything below
	cause error      // why a server was not fine, of the last one
	probe string     // key that probes may write
}

func newPlight(front *Client, b *Backlog) *plight {
	return &plight{front: front, backlog: b}
}

func (p *plight) setProbe(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.probe = key
}

// Trouble returns why a server does not do what keys need, as far as is known; nil if all do.
func (c *Client) Trouble() error {
	p := c.plight
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.servers.Load() == 0 {
		return nil
	}
	return p.cause
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

// stateBy tells from an error reply how the server is.
func stateBy(reply error) int32 {
	for words, state := range refusals {
		if strings.Contains(reply.Error(), words) {
			return state
		}
	}
	return fine
}

// isForbidden tells whether an error reply says that the server does not have a command, or the user may not give it.
func isForbidden(reply error) bool {
	for _, words := range []string{"NOPERM ", "ACL failure in script", "The user executing the script", "unknown command", "Unknown Redis command called from "} {
		if strings.Contains(reply.Error(), words) {
			return true
		}
	}
	return false
}

// ofServer tells an error of the server or the way there from one of a command.
func ofServer(err error) bool {
	return errors.Is(err, ErrDown) || errors.Is(err, errUnreachable) || stateBy(err) != fine
}

// trip notes that a command failed, if the server has not been found as bad before, and has it probed.
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
	turn(c, state, cause)
	if before == fine {
		b.since = time.Now()
		go watch(c)
	}
}

// become changes the state. The caller holds the breaker's lock.
func become(c *Client, state int32, cause error) {
	before := c.breaker.state.Swap(state)
	c.breaker.cause = cause
	p := c.plight
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case before == fine && state != fine:
		p.servers.Add(1)
		p.outages.Add(1)
		if !p.closed.Load() {
			p.backlog.outages.Add(1)
		}
	case before != fine && state == fine:
		p.servers.Add(-1)
		callHooks(p.backlog)
	}
	if cause != nil {
		p.cause = cause
	}
}

// turn changes the state and says so, unless nobody uses the client any more: what it meets says nothing of the others. The
// caller holds the lock.
func turn(c *Client, state int32, cause error) {
	b := c.breaker
	become(c, state, cause)
	if state == fine {
		b.back = time.Now()
	}
	if c.plight.closed.Load() {
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

// watch probes the server until it is fine, and then writes there what could not be written meanwhile.
func watch(c *Client) {
	defer endWatch(c)
	c.breaker.mu.Lock()
	flaps := c.breaker.since.Sub(c.breaker.back) < probePause
	c.breaker.mu.Unlock()
	if flaps {
		time.Sleep(probePause)
	}
	for !found(c) {
		time.Sleep(probePause)
	}
	settle(c.plight.front)
}

// endWatch has the next failure start a new watch if this one ended with a panic.
func endWatch(c *Client) {
	if p := recover(); p != nil {
		log.Printf("level=error msg=\"probing Redis failed\" cause=%q", p)
		c.breaker.mu.Lock()
		defer c.breaker.mu.Unlock()
		become(c, fine, nil)
	}
}

// found probes the server, and tells whether it is fine. Of a client that nobody uses any more it says so too: whoever
// still has something to send finds out by himself.
func found(c *Client) bool {
	state, cause := probe(c)
	c.lock()
	closed := c.closed
	c.unlock()
	b := c.breaker
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case closed:
		become(c, fine, nil)
		return true
	case state != b.state.Load():
		turn(c, state, cause)
	}
	return state == fine
}

// probe does what keys need over a new connection, and returns how the server is.
func probe(c *Client) (int32, error) {
	l := <-c.lanes
	defer giveBack(c, l)
	disconnect(l)
	state, cause := try(c, l)
	if state == fine {
		c.closeIdle() // other connections may lead to what the server was before
	}
	return state, cause
}

// check probes a server when it is connected to for the first time, since a command that is needed seldom may be forbidden
// too, and when a command was.
func check(c *Client) {
	defer recovered("probing Redis")
	if c.main != nil {
		c = c.main
	}
	for i := 0; i < 100 && probeKey(c) == ""; i++ { // it was connected to in advance, before there was a store
		time.Sleep(10 * time.Millisecond)
	}
	l := <-c.lanes
	defer giveBack(c, l)
	state, cause := try(c, l)
	if state == refusing { // of all else the commands of requests tell
		trip(c, state, cause)
	}
}

// try does what keys need over l.
func try(c *Client, l *lane) (int32, error) {
	key := probeKey(c)
	replies, err := exchangeAny(c, l, []Command{{Name: "EVALSHA", Args: []interface{}{probeScript.sha1, 1, key}}})
	if err != nil {
		return down, err
	}
	refusal := errorIn(replies[0])
	if refusal != nil && (isUnknownScript(refusal) || lacksEVALSHA(refusal)) {
		if lacksEVALSHA(refusal) {
			sendWhole(c)
		}
		replies, err = exchangeAny(c, l, []Command{{Name: "EVAL", Args: []interface{}{probeScript.source, 1, key}}})
		if err != nil {
			return down, err
		}
		refusal = errorIn(replies[0])
	}
	if refusal != nil && stateBy(refusal) != fine {
		return stateBy(refusal), named(refusal)
	}
	return fine, nil
}

// named is an error reply without the arguments of a command that the server does not know.
func named(reply error) error {
	text, _, cut := strings.Cut(reply.Error(), ", with args beginning with")
	if !cut {
		return reply
	}
	return errors.New(text)
}

// probeKey returns a key that a probe of c may write: of a node, one that it has.
func probeKey(c *Client) string {
	p := c.plight
	p.mu.Lock()
	key := p.probe
	p.mu.Unlock()
	if c.cluster != nil {
		key = ownKey(c, key)
	}
	return key
}
