package redisclient

import (
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/example/traefik-idem/store"
)

// This file settles keys by hand. A key is named by its SHA-256 in hex, since that is all that Redis knows of
// it. Each step compares the record with what was looked at, and changes nothing if it is another one by now.
var (
	// look: nil if the key is free, else the ms until its record expires, the record's version, the length of the answer's body,
	// and the record without its answer.
	lookScript = newScript('$', 0, `
local v = redis.call('GET', KEYS[1])
if not v or string.sub(v, 1, `+strconv.Itoa(len(store.FreedHead))+`) == '`+store.FreedHead+`' then return false end
local head, body = v, 0
if string.sub(v, 6, 6) == 'D' then head, body = string.sub(v, 1, 43), #v - 3 - (string.find(v, '\r\n\r\n', 42, true) or #v - 3) end
return redis.call('PTTL', KEYS[1]) .. ' ' .. redis.sha1hex(v) .. ' ' .. body .. ' ' .. head`)

	// free: ARGV = the version of the record, the record of a freed key, or nothing for a lease that is not renewed, and then how
	// many ms of it are left at most. 1 if the key is free now, 0 if it has another record. The record of a freed key lives as
	// long as the one before would have; a second if that has no time to live, or is about to expire.
	freeScript = replicated(newScript(':', 3, `
local v = redis.call('GET', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
if not v and ARGV[2] == '' then return 1 end
if not v or v ~= ARGV[2] and redis.sha1hex(v) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then
  if left > tonumber(ARGV[3]) then return 0 end
  return redis.call('DEL', KEYS[1])
end
if left < 1 then left = 1000 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', left)
return 1`))

	// answer: ARGV = the version of the record, the new record, its time to live in ms at least. 1 if it is kept, 0 if the key has
	// another record.
	answerScript = replicated(newScript(':', 3, `
local v = redis.call('GET', KEYS[1])
if not v or (v ~= ARGV[2] and redis.sha1hex(v) ~= ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', math.max(redis.call('PTTL', KEYS[1]), tonumber(ARGV[3])))
return 1`))
)

// Seen is what a look at a key has found. The answer of its record is not read.
type Seen struct {
	store.Held
	Version string // tells this record from any other
	Body    int    // length of the answer's body
}

// Look returns the record of the key with this SHA-256 in hex; nil if the key is free.
func Look(k *Keys, hash string) (*Seen, error) {
	cmd := &command{}
	runScript(k, lookScript, named(k, hash), cmd, "")
	if cmd.err != nil || cmd.line == nilLine {
		return nil, cmd.err
	}
	parts := strings.SplitN(string(cmd.reply), " ", 4)
	if len(parts) != 4 {
		return nil, errProtocol
	}
	left, _ := strconv.Atoi(parts[0])
	body, _ := strconv.Atoi(parts[2])
	seen := &Seen{Version: parts[1], Body: body}
	seen.Record = parts[3]
	seen.Left = time.Duration(left) * time.Millisecond
	return seen, readSeen(seen)
}

// readSeen reads the record of seen. That of an answer has no header: it is read like that of one that is not kept.
func readSeen(seen *Seen) error {
	isAnswer := strings.HasPrefix(seen.Record, store.DoneHead)
	if isAnswer {
		seen.Record = store.KeyOnly(seen.Record)
	}
	err := store.Read(&seen.Held)
	if err == nil && isAnswer {
		seen.State = store.Done
	}
	return err
}

// LookAll is Look for many keys. A value that is not a record counts as none.
func LookAll(k *Keys, hashes []string) ([]*Seen, []error) {
	all := make([]*Seen, len(hashes))
	errs := make([]error, len(hashes))
	var looks sync.WaitGroup
	for i, hash := range hashes {
		looks.Add(1)
		go lookOne(k, hash, i, all, errs, &looks)
	}
	looks.Wait()
	return all, errs
}

// lookOne is Look for number i of many.
func lookOne(k *Keys, hash string, i int, all []*Seen, errs []error, looks *sync.WaitGroup) {
	defer recovered("looking keys up")
	defer looks.Done()
	errs[i] = errProtocol // a panic tells nothing of the key
	seen, err := Look(k, hash)
	if errors.Is(err, store.ErrForeign) {
		seen = nil
		err = nil
	}
	all[i] = seen
	errs[i] = err
}

// Free frees the key that seen was found under. nonce makes the record of a freed key the only one of its kind. A running request
// loses its key as if its lease was over, unless the lease was renewed since. Free returns false, and changes nothing, if the
// key has another record.
func Free(k *Keys, hash string, seen *Seen, nonce string) (bool, error) {
	mark := store.FreedHead + seen.Fingerprint + nonce
	if seen.State == store.Running {
		mark = ""
	}
	cmd := &command{}
	runScript(k, freeScript, named(k, hash), cmd, bulk(seen.Version)+bulk(mark)+milliseconds(seen.Left))
	return cmd.line == oneLine, cmd.err
}

// Answer replaces the record of the key that seen was found under, for ttl, or as long as that record would have lived if that is
// longer. It returns false, and changes nothing, if the key has another record.
func Answer(k *Keys, hash string, seen *Seen, record string, ttl time.Duration) (bool, error) {
	cmd := &command{}
	runScript(k, answerScript, named(k, hash), cmd, bulk(seen.Version)+bulk(record)+milliseconds(ttl))
	return cmd.line == oneLine, cmd.err
}

// HashOffset is where the SHA-256 of a lease's key, in hex, begins in the lease's Wire.
func HashOffset(k *Keys) int { return k.start + len(k.prefix) }

// named returns a lease that names a key by its SHA-256, for scripts that need no more of it.
func named(k *Keys, hash string) *store.Lease {
	return &store.Lease{Wire: bulk(k.prefix + hash)}
}
