package redisclient

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // Redis names scripts by their SHA-1
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/example/traefik-idem/store"
)

// Each script is one step of a key's life and touches that key alone. Each can be sent twice with the same arguments:
// the second time it finds its own work and answers as if it did it then.
var (
	// claim: ARGV = the running record, the lease in ms. Nil if the key is ours now, else for how many ms it is held, a
	// space, and its record.
	claimScript = newScript(2, `
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return false end
local v = redis.call('GET', KEYS[1])
if v == ARGV[1] then return false end
return redis.call('PTTL', KEYS[1]) .. ' ' .. v`)

	// finish: ARGV = the running record, the finished one, its time to live in ms. 1 if it is kept, 0 if somebody else has
	// the key, 2 if nobody has.
	finishScript = newScript(3, `
local v = redis.call('GET', KEYS[1])
if v == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) return 1 end
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
	client  *Client
	cluster *Cluster // whose nodes have the keys; nil: the client's server has them
	plain   bool     // there is neither a cluster nor are there replicas to wait for
	prefix  string
}

// NewKeys returns a store whose Redis keys are <keyPrefix>:req:<key>.
func NewKeys(client *Client, keyPrefix string) *Keys {
	return &Keys{client: client, plain: client.opts.WaitReplicas == 0, prefix: keyPrefix + ":req:"}
}

// NewClusterKeys is NewKeys for a cluster.
func NewClusterKeys(cluster *Cluster, keyPrefix string) *Keys {
	return &Keys{client: cluster.front, cluster: cluster, prefix: keyPrefix + ":req:"}
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
	key := k.prefix + l.Key
	running := store.RunningHead(l)
	args := bulkHeads[len(key)] + key + "\r\n" + bulkHeads[len(running)] + running + "\r\n" + cmd.head
	cmd.head = s.bySHA1 + args
	if k.plain {
		send(k.client, cmd)
	} else {
		deliver(k, s, key, cmd)
	}
	if cmd.err != nil {
		mend(k, s, key, args, cmd)
	}
	if cmd.err == nil && s != claimScript && cmd.number == noNumber {
		cmd.err = errProtocol
	}
	if cmd.err != nil {
		cmd.err = fmt.Errorf("redis %s: %w", k.client.opts.Address, cmd.err)
	}
}

// mend carries out again what failed for a reason that is none the second time: a server that does not know the script,
// or one that is a replica now. A new master may be both in turn.
func mend(k *Keys, s *script, key, args string, cmd *command) {
	for attempt := 0; attempt < 2 && cmd.err != nil; attempt++ {
		switch {
		case strings.Contains(cmd.err.Error(), "NOSCRIPT "):
			cmd.head = s.bySource + args
		case isReplica(cmd.err):
			k.client.closeIdle()
		default:
			return
		}
		deliver(k, s, key, cmd)
	}
}

// deliver sends cmd, of the script s, to where key is. Claims and finished records may be wanted at replicas too.
func deliver(k *Keys, s *script, key string, cmd *command) {
	wait := s == claimScript || s == finishScript
	if k.cluster == nil {
		sendTo(k.client, cmd, wait)
	} else {
		sendToSlot(k.cluster, key, cmd, wait)
	}
}

func sendTo(c *Client, cmd *command, wait bool) {
	if wait {
		sendAndWait(c, cmd)
	} else {
		send(c, cmd)
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
