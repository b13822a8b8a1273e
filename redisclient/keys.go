package redisclient

import (
	"context"
	"crypto/sha1" //nolint:gosec // Redis names scripts by their SHA-1
	"encoding/hex"
	"fmt"
	"time"

	"github.com/example/traefik-idem/store"
)

// Each script is one step of a key's life and touches that key alone. Each can be sent twice with the same arguments:
// the second time it finds its own work and answers as if it did it then.
var (
	// claim: ARGV = the running record, the lease in ms. Nil if the key is ours now, else who has it and for how many ms.
	claimScript = newScript(`
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return false end
local v = redis.call('GET', KEYS[1])
if v == ARGV[1] then return false end
return {v, redis.call('PTTL', KEYS[1])}`)

	// finish: ARGV = the running record, the finished one, its time to live in ms. 1 if it is kept, 0 if the lease is lost.
	finishScript = newScript(`
local v = redis.call('GET', KEYS[1])
if v == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) return 1 end
if v == ARGV[2] then return 1 end
return 0`)

	// renew: ARGV = the running record, the lease in ms. 1 if the lease goes on, 0 if it is lost.
	renewScript = newScript(`
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0`)

	// release: ARGV = the running record. 1 if the key is free now, 0 if the lease was lost.
	releaseScript = newScript(`
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0`)
)

func newScript(source string) *script {
	sum := sha1.Sum([]byte(source)) //nolint:gosec // Redis names scripts by their SHA-1
	return &script{source: source, sha1: hex.EncodeToString(sum[:])}
}

// Keys is a store.Store in Redis.
type Keys struct {
	client *Client
	prefix string
}

var _ store.Store = (*Keys)(nil)

// NewKeys returns a store whose Redis keys are <keyPrefix>:req:<key>.
func NewKeys(client *Client, keyPrefix string) *Keys {
	return &Keys{client: client, prefix: keyPrefix + ":req:"}
}

// Claim implements store.Store. A value that is no record is an error that wraps store.ErrForeign.
func (k *Keys) Claim(l *store.Lease, d time.Duration) (store.Held, error) {
	reply, err := k.client.run(claimScript, k.prefix+l.Key, running(l), d.Milliseconds())
	if err != nil {
		return store.Held{}, err
	}
	if reply == nil {
		rec := store.Record{State: store.Claimed, Fingerprint: l.Fingerprint, Owner: l.Owner}
		return store.Held{Record: rec, Left: d}, nil
	}
	parts, ok := reply.([]interface{})
	if !ok || len(parts) != 2 {
		return store.Held{}, unexpected("claim", reply)
	}
	value, isBytes := parts[0].([]byte)
	left, isInt := parts[1].(int64)
	if !isBytes || !isInt {
		return store.Held{}, unexpected("claim", reply)
	}
	rec, err := store.Decode(value)
	if err != nil {
		return store.Held{}, err
	}
	return store.Held{Record: rec, Left: time.Duration(left) * time.Millisecond}, nil
}

// Renew implements store.Store.
func (k *Keys) Renew(l *store.Lease, d time.Duration) (bool, error) {
	return k.did(renewScript, l, d.Milliseconds())
}

// Finish implements store.Store.
func (k *Keys) Finish(l *store.Lease, rec store.Record, ttl time.Duration) (bool, error) {
	return k.did(finishScript, l, store.Encode(rec), ttl.Milliseconds())
}

// Release implements store.Store.
func (k *Keys) Release(l *store.Lease) (bool, error) {
	return k.did(releaseScript, l)
}

// Wait implements store.Store.
func (k *Keys) Wait(ctx context.Context, _ string, attempt int) {
	store.Poll(ctx, attempt)
}

// did runs a script that answers 1 for done and 0 for a lost lease.
func (k *Keys) did(s *script, l *store.Lease, args ...interface{}) (bool, error) {
	all := append([]interface{}{running(l)}, args...)
	reply, err := k.client.run(s, k.prefix+l.Key, all...)
	if err != nil {
		return false, err
	}
	n, ok := reply.(int64)
	if !ok {
		return false, unexpected("step", reply)
	}
	return n == 1, nil
}

// running is the record that stands in Redis as long as the lease holds.
func running(l *store.Lease) []byte {
	return store.Encode(store.Record{State: store.Running, Fingerprint: l.Fingerprint, Owner: l.Owner})
}

func unexpected(step string, reply interface{}) error {
	return fmt.Errorf("redis: unexpected reply to the %s script: %T", step, reply)
}
