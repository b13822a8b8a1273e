package redisclient

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // Redis names scripts by their SHA-1
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/example/traefik-idem/store"
)

// Each script is one step of a key's life and touches that key alone. Each can be sent twice with the same arguments:
// the second time it finds its own work and answers as if it did it then. They read before they write: what Redis has is
// known also while it refuses to write.
var (
	// claim: ARGV = the running record, the lease in ms. Nil if the key is ours now, else for how many ms it is held, a
	// space, and its record.
	claimScript = newScript(2, `
local v = redis.call('GET', KEYS[1])
if not v then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return false end
if v == ARGV[1] then return false end
return redis.call('PTTL', KEYS[1]) .. ' ' .. v`)

	// finish: ARGV = the running record, the finished one, its time to live in ms. 1 if it is kept, 0 if somebody else has
	// the key, 2 if nobody has. If there is no room for it, the claim stays for as long, so that nobody else runs the
	// request again.
	finishScript = newScript(3, `
local v = redis.call('GET', KEYS[1])
if v == ARGV[1] then
  local r = redis.pcall('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  if r.err then redis.call('PEXPIRE', KEYS[1], ARGV[3]) return r end
  return 1
end
if v == ARGV[2] then return 1 end
return v and 0 or 2`)

	// renew: ARGV = the running record, the lease in ms. 1 if the lease goes on, 0 if it is lost.
	renewScript = newScript(2, `
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0`)

	// release: ARGV = the running record. 1 if the key is free now, 0 if the lease was lost.
	releaseScript = newScript(1, `
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0`)
)

// script is a Lua script over one key. Redis knows it by its digest once it has run.
type script struct {
	bySHA1, bySource string // the command in Redis' protocol up to the key
}

func newScript(args int, source string) *script {
	sum := sha1.Sum([]byte(source)) //nolint:gosec // Redis names scripts by their SHA-1
	head := "*" + strconv.Itoa(4+args) + "\r\n"
	return &script{
		bySHA1:   head + bulk("EVALSHA") + bulk(hex.EncodeToString(sum[:])) + bulk("1"),
		bySource: head + bulk("EVAL") + bulk(source) + bulk("1"),
	}
}

// bulkHeads are what stands before an argument of so many bytes in Redis' protocol.
var bulkHeads = newBulkHeads()

func newBulkHeads() []string {
	heads := make([]string, 1<<10)
	for n := range heads {
		heads[n] = "$" + strconv.Itoa(n) + "\r\n"
	}
	return heads
}

// bulk is s as an argument in Redis' protocol.
func bulk(s string) string {
	return "$" + strconv.Itoa(len(s)) + "\r\n" + s + "\r\n"
}

// Keys is a store of idempotency keys in Redis; see package store for what its functions do.
type Keys struct {
	// Trouble is 0 while Redis does what keys need, as far as is known.
	Trouble *atomic.Int32

	client *Client
	prefix string
}

// NewKeys returns a store whose Redis keys are <keyPrefix>:req:<key>.
func NewKeys(client *Client, keyPrefix string) *Keys {
	client.breaker.mu.Lock()
	client.breaker.key = keyPrefix + ":probe"
	client.breaker.mu.Unlock()
	return &Keys{client: client, prefix: keyPrefix + ":req:", Trouble: &client.breaker.state}
}

// Outage returns the number of the outage that Redis is in, counted from 1; 0 if it does what keys need.
func (k *Keys) Outage() int64 {
	if k.Trouble.Load() == fine {
		return 0
	}
	return k.client.breaker.outages.Load()
}

// Claim gives the key to the lease for d if nobody holds it, and else tells who does. A value that is no record is an
// error that wraps store.ErrForeign.
func Claim(k *Keys, l *store.Lease, d time.Duration) (store.Held, error) {
	held := store.Held{Record: store.Record{State: store.Claimed}, Left: d}
	cmd := &command{head: milliseconds(d)}
	step(k, claimScript, l, cmd)
	if cmd.reply != nil || cmd.number != noNumber || cmd.err != nil {
		return decode(cmd)
	}
	return held, nil
}

// Renew makes the lease last d from now; false if it is lost.
func Renew(k *Keys, l *store.Lease, d time.Duration) (bool, error) {
	cmd := &command{head: milliseconds(d)}
	step(k, renewScript, l, cmd)
	return cmd.number == 1, cmd.err
}

// ErrGone is the error for a lease that ended without anybody having taken the key: Redis was restarted or had no room.
var ErrGone = errors.New("the key is gone from Redis, though its lease was renewed")

// Finish replaces the lease by rec for ttl; false, and nothing is changed, if the lease is lost, with ErrGone if nobody
// else has it.
func Finish(k *Keys, l *store.Lease, rec *store.Record, ttl time.Duration) (bool, error) {
	cmd := &command{tail: "\r\n" + milliseconds(ttl)}
	if rec.State == store.Done {
		cmd.body = rec.Answer.Body
	}
	head := store.Head(rec)
	cmd.head = "$" + strconv.Itoa(len(head)+len(cmd.body)) + "\r\n" + head
	step(k, finishScript, l, cmd)
	if cmd.number == 2 {
		cmd.err = ErrGone
	}
	return cmd.number == 1, cmd.err
}

// Release makes the key free; false, and nothing is changed, if the lease is lost.
func Release(k *Keys, l *store.Lease) (bool, error) {
	cmd := &command{}
	step(k, releaseScript, l, cmd)
	return cmd.number == 1, cmd.err
}

// step runs s by its digest, and by its source when Redis has forgotten it. In front of what is in cmd come the key and
// the running record, by which the owner of the lease is known.
func step(k *Keys, s *script, l *store.Lease, cmd *command) {
	if k.client.breaker.state.Load() == down {
		cmd.err = fmt.Errorf("redis %s: %w", k.client.opts.Address, notSent(k.client))
		return
	}
	key := k.prefix + l.Key
	running := store.RunningHead(l)
	args := bulkHeads[len(key)] + key + "\r\n" + bulkHeads[len(running)] + running + "\r\n" + cmd.head
	cmd.head = s.bySHA1 + args
	send(k.client, cmd)
	if cmd.err != nil && strings.Contains(cmd.err.Error(), "NOSCRIPT ") {
		cmd.head = s.bySource + args
		send(k.client, cmd)
	}
	if cmd.err == nil && s != claimScript && cmd.number == noNumber {
		cmd.err = errProtocol
	}
	if cmd.err != nil {
		trip(k.client, stateBy(cmd.err), cmd.err)
		cmd.err = fmt.Errorf("redis %s: %w", k.client.opts.Address, cmd.err)
	}
}

// milliseconds is d as an argument in Redis' protocol.
func milliseconds(d time.Duration) string {
	text := strconv.FormatInt(int64(d/time.Millisecond), 10)
	return bulkHeads[len(text)] + text + "\r\n"
}

// decode reads what the claim script tells of a key that somebody holds.
func decode(cmd *command) (store.Held, error) {
	if cmd.err != nil {
		return store.Held{}, cmd.err
	}
	space := bytes.IndexByte(cmd.reply, ' ')
	if space < 0 {
		return store.Held{}, store.ErrForeign
	}
	left, err := strconv.ParseInt(string(cmd.reply[:space]), 10, 64)
	if err != nil {
		return store.Held{}, store.ErrForeign
	}
	rec, err := store.Decode(cmd.reply[space+1:])
	return store.Held{Record: rec, Left: time.Duration(left) * time.Millisecond}, err
}
