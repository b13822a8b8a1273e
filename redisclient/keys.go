package redisclient

import (
	"crypto/sha1" //nolint:gosec // Redis names scripts by their SHA-1
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/example/traefik-idem/store"
)

// Each script is one step of a key's life and touches that key alone. Each can be sent twice with the same arguments:
// the second time it finds its own work and answers as if it did it then. What replicas are to have is written again, or
// nobody could wait for it over another connection. They read before they write: what Redis has is known also while it
// refuses to write.
var (
	// claim: ARGV = the running record, the lease in ms. Nil if the key is ours now, else for how many ms it is held, a
	// space, and its record.
	claimScript = newScript('$', 2, `
local v = redis.call('GET', KEYS[1])
if not v or v == ARGV[1] then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return false end
return redis.call('PTTL', KEYS[1]) .. ' ' .. v`)

	// finish: ARGV = the running record, the finished one, its time to live in ms. 1 if it is kept, 0 if somebody else has
	// the key. That nobody has it is no reason not to keep it: the request ran. If there is no room for it, the claim stays
	// for as long, so that nobody else runs the request again.
	finishScript = newScript(':', 3, `
local v = redis.call('GET', KEYS[1])
if not v or v == ARGV[1] then
  local r = redis.pcall('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  if r.err then redis.call('PEXPIRE', KEYS[1], ARGV[3]) return r end
  return 1
end
if v == ARGV[2] then return redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return 0`)

	// renew: ARGV = the running record, the lease in ms. 1 if the lease goes on, also if it was gone: then it is claimed
	// again; 0 if somebody else has the key. PEXPIRE needs no room.
	renewScript = newScript(':', 2, `
local v = redis.call('GET', KEYS[1])
if v == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
if v then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1`)

	// release: ARGV = the running record. 1 if the key is free now, 0 if the lease was lost.
	releaseScript = newScript(':', 1, `
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0`)
)

// script is a Lua script over one key. Redis knows it by its digest once it has run.
type script struct {
	source, sha1     string
	reply            byte   // the type of its reply in Redis' protocol
	bySHA1, bySource string // the command in Redis' protocol up to the key
}

func newScript(reply byte, args int, source string) *script {
	sum := sha1.Sum([]byte(source)) //nolint:gosec // Redis names scripts by their SHA-1
	digest := hex.EncodeToString(sum[:])
	head := "*" + strconv.Itoa(4+args) + "\r\n"
	return &script{
		source:   source,
		sha1:     digest,
		reply:    reply,
		bySHA1:   head + bulk("EVALSHA") + bulk(digest) + bulk("1"),
		bySource: head + bulk("EVAL") + bulk(source) + bulk("1"),
	}
}

// bulk is s as an argument in Redis' protocol.
func bulk(s string) string {
	return "$" + strconv.Itoa(len(s)) + "\r\n" + s + "\r\n"
}

// The replies that the scripts give most.
const (
	nilLine = "$-1\r\n"
	oneLine = ":1\r\n"
)

// Keys is a store of idempotency keys in Redis; see package store for what its functions do.
type Keys struct {
	// Trouble is 0 while Redis does what keys need, as far as is known.
	Trouble *atomic.Int32

	client  *Client
	cluster *Cluster // whose nodes have the keys; nil: the client's server has them
	plain   bool     // there is neither a cluster nor are there replicas to wait for
	prefix  string
	format  string                   // of a lease's Wire
	times   map[time.Duration]string // as arguments in Redis' protocol
}

// NewKeys returns a store whose Redis keys are <keyPrefix>:req:<key in hex>. Steps with one of the times as their argument
// are quicker than others.
func NewKeys(client *Client, keyPrefix string, times ...time.Duration) *Keys {
	client.plight.setProbe(keyPrefix + ":probe")
	k := &Keys{Trouble: &client.plight.servers, client: client, plain: client.opts.WaitReplicas == 0, prefix: keyPrefix + ":req:", times: map[time.Duration]string{}}
	k.format = fmt.Sprintf(wireFormat, len(k.prefix)+2*sha256.Size, k.prefix) + store.RunningFormat + "\r\n"
	for _, d := range times {
		k.times[d] = milliseconds(d)
	}
	return k
}

// Outage returns the number of the outage that Redis is in, counted from 1; 0 if it does what keys need.
func (k *Keys) Outage() int64 {
	if k.Trouble.Load() == 0 {
		return 0
	}
	return k.client.plight.outages.Load()
}

// NewClusterKeys is NewKeys for a cluster.
func NewClusterKeys(cluster *Cluster, keyPrefix string, times ...time.Duration) *Keys {
	k := NewKeys(cluster.front, keyPrefix, times...)
	k.cluster = cluster
	k.plain = false
	return k
}

// milliseconds is d as an argument in Redis' protocol.
func milliseconds(d time.Duration) string {
	return bulk(strconv.FormatInt(int64(d/time.Millisecond), 10))
}

// Claim gives the key to the lease for d and returns nil if nobody holds it, and else tells who does. A value that is no
// record is an error that wraps store.ErrForeign.
func Claim(k *Keys, l *store.Lease, d time.Duration) (*store.Held, error) {
	cmd := new(command)
	args := k.times[d]
	if args == "" {
		args = milliseconds(d)
	}
	step(k, claimScript, l, cmd, args)
	if cmd.line == nilLine && cmd.err == nil {
		return nil, nil
	}
	return decode(cmd)
}

// WasFree tells whether an error of Claim says that nobody else has the key: too few replicas have the claim that was
// granted, or the master refuses to write it.
func WasFree(err error) bool {
	for _, words := range []string{"OOM ", "MISCONF ", "NOREPLICAS "} {
		if strings.Contains(err.Error(), words) {
			return !errors.Is(err, ErrDown)
		}
	}
	return errors.Is(err, ErrReplicas)
}

// Renew makes the lease last d from now, and claims the key again if nobody has it any more; false if somebody else has it.
func Renew(k *Keys, l *store.Lease, d time.Duration) (bool, error) {
	cmd := &command{}
	k = over(k, standIn(k.client))
	step(k, renewScript, l, cmd, argument(k, d))
	return cmd.line == oneLine, cmd.err
}

// Finish replaces the lease by record for ttl; false, and nothing is changed, if somebody else has the key.
func Finish(k *Keys, l *store.Lease, record string, ttl time.Duration) (bool, error) {
	cmd := new(command)
	end := k.times[ttl]
	if end == "" {
		end = milliseconds(ttl)
	}
	// The brackets spare two copies of the record: strings are put together two at a time.
	step(k, finishScript, l, cmd, "$"+strconv.Itoa(len(record))+"\r\n"+(record+("\r\n"+end)))
	return cmd.line == oneLine, cmd.err
}

// Release makes the key free; false, and nothing is changed, if the lease is lost.
func Release(k *Keys, l *store.Lease) (bool, error) {
	cmd := &command{}
	step(k, releaseScript, l, cmd, "")
	return cmd.line == oneLine, cmd.err
}

// argument is d as an argument in Redis' protocol.
func argument(k *Keys, d time.Duration) string {
	text := k.times[d]
	if text == "" {
		text = milliseconds(d)
	}
	return text
}

// wire is what all steps of a lease have as their first arguments: the key, and the running record, by which the owner of the
// lease is known. The lease's key is hashed here, since it holds what nobody is to read.
func wire(k *Keys, l *store.Lease) string {
	return fmt.Sprintf(k.format, sha256.Sum256([]byte(l.Key)), runningBytes+len(l.Fingerprint)+len(l.Owner), l.Fingerprint, l.Owner)
}

// step runs s by its digest, with args behind what all steps have.
func step(k *Keys, s *script, l *store.Lease, cmd *command, args string) {
	if l.Wire == "" {
		l.Wire = wire(k, l)
	}
	cmd.wire = s.bySHA1 + l.Wire + args
	if k.plain {
		send(k.client, cmd)
	} else {
		deliver(k, s, l, cmd)
	}
	switch {
	case cmd.err != nil:
	case cmd.line[0] != s.reply:
	default:
		return
	}
	mend(k, s, l, cmd, args)
}

// wireFormat makes the format of wire.
const wireFormat = "$%d\r\n%s%%x\r\n$%%d\r\n"

// runningBytes is how long a running record is beside the fingerprint and the owner in it.
var runningBytes = len(fmt.Sprintf(store.RunningFormat, "", ""))

// mend carries out again what failed for a reason that is none the second time. A new master may have two such reasons,
// one after the other.
func mend(k *Keys, s *script, l *store.Lease, cmd *command, args string) {
	for attempt := 0; attempt < 2 && cmd.err != nil && curable(k, s, l, cmd, args); attempt++ {
		deliver(k, s, l, cmd)
	}
	if cmd.err == nil && cmd.line[0] != s.reply {
		cmd.err = errProtocol
	}
	if cmd.err == nil {
		return
	}
	switch {
	case strings.Contains(cmd.err.Error(), "Protocol error: invalid bulk length"):
		cmd.err = fmt.Errorf("%w: %w", ErrTooLarge, cmd.err)
	case cmd.from == nil:
	case isForbidden(cmd.err):
		if cmd.from.state() == fine {
			check(cmd.from) // it names the command
		}
	default:
		trip(cmd.from, stateBy(cmd.err), cmd.err)
	}
	cmd.err = fmt.Errorf("redis %s: %w", k.client.opts.Address, named(cmd.err))
}

// curable sees to it that cmd can succeed, if what it failed for is that the server does not know the script, or is a
// replica now.
func curable(k *Keys, s *script, l *store.Lease, cmd *command, args string) bool {
	switch {
	case lacksEVALSHA(cmd.err):
		sendWhole(cmd.from)
		cmd.wire = s.bySource + l.Wire + args
	case isUnknownScript(cmd.err):
		cmd.wire = s.bySource + l.Wire + args
	case isReplica(cmd.err):
		k.client.closeIdle()
	default:
		return false
	}
	return true
}

// isUnknownScript tells by an error reply that the server does not know a script by its digest.
func isUnknownScript(reply error) bool {
	return strings.Contains(reply.Error(), "NOSCRIPT ")
}

// lacksEVALSHA tells by an error reply that scripts cannot be called by their digests.
func lacksEVALSHA(reply error) bool {
	return isForbidden(reply) && strings.Contains(strings.ToLower(reply.Error()), "evalsha")
}

// sendWhole has scripts sent whole from now on. The first server for which that is so is logged.
func sendWhole(c *Client) {
	if c.main != nil {
		c = c.main
	}
	for _, side := range append(sides(c), c) {
		side.lock()
		side.odd = true
		side.whole = true
		side.unlock()
	}
	if !c.plight.whole.Swap(true) {
		log.Printf("level=warn msg=\"Redis forbids EVALSHA; scripts are sent whole, with EVAL\" redis=%q", c.opts.Address)
	}
}

// inFull is a command with its script instead of the digest of that.
func inFull(wire string) string {
	for _, s := range []*script{claimScript, finishScript, renewScript, releaseScript, writeBackScript} {
		if strings.HasPrefix(wire, s.bySHA1) {
			return s.bySource + wire[len(s.bySHA1):]
		}
	}
	return wire
}

// deliver sends cmd, of the script s, to where the key of l is.
func deliver(k *Keys, s *script, l *store.Lease, cmd *command) {
	cmd.script = s
	if k.cluster == nil {
		sendToReplicas(k.client, cmd)
	} else {
		sendToSlot(k.cluster, redisKey(k, l), cmd)
	}
}

// redisKey is the key of l in Redis.
func redisKey(k *Keys, l *store.Lease) string {
	return fmt.Sprintf("%s%x", k.prefix, sha256.Sum256([]byte(l.Key)))
}

// decode reads what the claim script tells of a key that somebody holds.
func decode(cmd *command) (*store.Held, error) {
	if cmd.err != nil {
		return nil, cmd.err
	}
	text, record, _ := strings.Cut(string(cmd.reply), " ")
	left, err := strconv.Atoi(text)
	if err != nil {
		return nil, store.ErrForeign
	}
	held := &store.Held{Record: record, Left: time.Duration(left) * time.Millisecond}
	err = store.Read(held)
	if err != nil {
		return nil, err
	}
	return held, nil
}
