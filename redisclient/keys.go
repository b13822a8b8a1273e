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

// Each script is one step of a key's life and touches only that key. Each can be sent twice with the same arguments: the
// second time it finds what it did the first time, and answers in the same way. It writes again what replicas must have,
// because WAIT only covers writes of its connection. Scripts read before they write, so that they can answer while Redis
// refuses to write.
var (
	// claim: ARGV = the running record, the lease in ms. Nil if the key is ours now, else the ms until its record expires, a
	// space, and the record. A key that was freed by hand is free.
	claimScript = newScript('$', 2, `
local v = redis.call('GET', KEYS[1])
if not v or v == ARGV[1] or string.sub(v, 1, `+strconv.Itoa(len(store.FreedHead))+`) == '`+store.FreedHead+`' then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return false end
return redis.call('PTTL', KEYS[1]) .. ' ' .. v`)

	// finish: ARGV = the running record, the finished one, its time to live in ms. 1 if it is kept, 0 if another owner has
	// the key. It is also kept if nobody has the key: the request ran. If Redis has no room for it, the claim is extended to
	// the time to live instead, so that nobody runs the request again.
	finishScript = replicated(newScript(':', 3, `
local v = redis.call('GET', KEYS[1])
if not v or v == ARGV[1] then
  local r = redis.pcall('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  if r.err then redis.call('PEXPIRE', KEYS[1], ARGV[3]) return r end
  return 1
end
if v == ARGV[2] then return redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return 0`))

	// renew: ARGV = the running record, the lease in ms. 1 if the lease is renewed, or claimed again because it was gone; 0 if
	// another owner has the key. PEXPIRE works without free memory.
	renewScript = newScript(':', 2, `
local v = redis.call('GET', KEYS[1])
if v == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
if v then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1`)

	// release: ARGV = the running record. 1 if the key is free now, 0 if another owner has it.
	releaseScript = newScript(':', 1, `
local v = redis.call('GET', KEYS[1])
if not v then return 1 end
if v == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0`)
)

// script is a Lua script over one key. Redis knows it by its digest once it has run.
type script struct {
	lua, sha1         string
	reply             byte   // the type of its reply in Redis' protocol
	byEVALSHA, byEVAL string // the command in Redis' protocol up to the key
	needsReplicas     bool   // replicas must have its write too, if Options.WaitReplicas says so
}

// replicated marks s as one whose write replicas must have too.
func replicated(s *script) *script {
	s.needsReplicas = true
	return s
}

// newScript returns a script whose replies have this type and which takes this number of arguments besides its key.
func newScript(reply byte, args int, lua string) *script {
	sum := sha1.Sum([]byte(lua)) //nolint:gosec // Redis names scripts by their SHA-1
	digest := hex.EncodeToString(sum[:])
	head := "*" + strconv.Itoa(4+args) + "\r\n"
	return &script{
		lua:       lua,
		sha1:      digest,
		reply:     reply,
		byEVALSHA: head + bulk("EVALSHA") + bulk(digest) + bulk("1"),
		byEVAL:    head + bulk("EVAL") + bulk(lua) + bulk("1"),
	}
}

// bulk is s as an argument in Redis' protocol.
func bulk(s string) string {
	return "$" + strconv.Itoa(len(s)) + "\r\n" + s + "\r\n"
}

// The most frequent replies of the scripts.
const (
	nilLine = "$-1\r\n"
	oneLine = ":1\r\n"
)

// Keys is a store of idempotency keys in Redis; see package store for what its functions do.
type Keys struct {
	// Failing is how many servers do not do what keys need, as far as is known.
	Failing *atomic.Int32

	client  *Client
	cluster *Cluster // that of client
	plain   bool     // there is no cluster, and no replicas to wait for
	prefix  string
	format  string                   // of a lease's Wire
	start   int                      // of the Redis key in a lease's Wire
	end     int                      // likewise
	times   map[time.Duration]string // usual durations as arguments in Redis' protocol
}

// wireFormat is the format of Keys.format, up to the running record.
const wireFormat = "$%d\r\n%s%%x\r\n$%%d\r\n"

// runningBytes is the length of a running record without its fingerprint and its owner.
var runningBytes = len(fmt.Sprintf(store.RunningFormat, "", ""))

// NewKeys returns a store whose Redis keys are <keyPrefix>:req:<SHA-256 of the key, in hex>. times are the usual leases and
// times to live; others work too, but take longer.
func NewKeys(client *Client, keyPrefix string, times ...time.Duration) *Keys {
	client.health.setProbeKey(keyPrefix + ":probe")
	k := &Keys{Failing: &client.health.failing, prefix: keyPrefix + ":req:", times: map[time.Duration]string{}}
	setClient(k, client)
	length := len(k.prefix) + 2*sha256.Size
	k.format = fmt.Sprintf(wireFormat, length, k.prefix) + store.RunningFormat + "\r\n"
	k.start = len(fmt.Sprintf("$%d\r\n", length))
	k.end = k.start + length
	for _, d := range times {
		k.times[d] = milliseconds(d)
	}
	return k
}

// setClient has commands of k sent by c.
func setClient(k *Keys, c *Client) {
	k.client = c
	k.cluster = c.cluster
	k.plain = c.cluster == nil && c.opts.WaitReplicas == 0
}

// Outage returns the number of the outage that Redis is in, counted from 1; 0 if it does what keys need.
func (k *Keys) Outage() int64 {
	if k.Failing.Load() == 0 {
		return 0
	}
	return k.client.health.outages.Load()
}

// milliseconds is d as an argument in Redis' protocol.
func milliseconds(d time.Duration) string {
	return bulk(strconv.FormatInt(int64(d/time.Millisecond), 10))
}

// Claim gives the key to the lease for d and returns nil if the key is free, else what holds it. It returns an error that
// wraps store.ErrForeign if the stored value is not a record. After an error Redis may have the claim: l.Doubtful says so.
func Claim(k *Keys, l *store.Lease, d time.Duration) (*store.Held, error) {
	cmd := new(command)
	args := k.times[d]
	if args == "" {
		args = milliseconds(d)
	}
	runScript(k, claimScript, l, cmd, args)
	if cmd.line == nilLine && cmd.err == nil {
		return nil, nil
	}
	return decode(cmd)
}

// Renew makes the lease last d from now, and claims the key again if nobody has it any more. It returns false if somebody
// else has it.
func Renew(k *Keys, l *store.Lease, d time.Duration) (bool, error) {
	cmd := &command{}
	k = via(k, usableClient(k.client))
	runScript(k, renewScript, l, cmd, argument(k, d))
	return cmd.line == oneLine, cmd.err
}

// Finish replaces the lease by record for ttl. It returns false, and changes nothing, if another owner has the key.
func Finish(k *Keys, l *store.Lease, record string, ttl time.Duration) (bool, error) {
	cmd := new(command)
	end := k.times[ttl]
	if end == "" {
		end = milliseconds(ttl)
	}
	// The brackets spare two copies of the record: strings are put together two at a time.
	runScript(k, finishScript, l, cmd, "$"+strconv.Itoa(len(record))+"\r\n"+(record+("\r\n"+end)))
	return cmd.line == oneLine, cmd.err
}

// FinishLong is Finish in more steps, and copies the record only once.
func FinishLong(k *Keys, l *store.Lease, record string, ttl time.Duration) (bool, error) {
	cmd := &command{}
	if l.Wire == "" {
		l.Wire = wire(k, l)
	}
	cmd.wire = strings.Join([]string{finishScript.byEVALSHA, l.Wire, "$", strconv.Itoa(len(record)), "\r\n", record, "\r\n", argument(k, ttl)}, "")
	route(k, finishScript, l, cmd)
	retry(k, finishScript, l, cmd)
	return cmd.line == oneLine, cmd.err
}

// Release makes the key free. It returns false, and changes nothing, if another owner has the key.
func Release(k *Keys, l *store.Lease) (bool, error) {
	cmd := &command{}
	runScript(k, releaseScript, l, cmd, "")
	return cmd.line == oneLine, cmd.err
}

// argument is milliseconds, without work for the usual durations.
func argument(k *Keys, d time.Duration) string {
	arg := k.times[d]
	if arg == "" {
		arg = milliseconds(d)
	}
	return arg
}

// wire returns the first arguments of all scripts for a lease: the Redis key, and the running record, which identifies the
// owner. The lease's key is hashed here because it holds secrets, such as a value of Authorization.
func wire(k *Keys, l *store.Lease) string {
	return fmt.Sprintf(k.format, sha256.Sum256([]byte(l.Key)), runningBytes+len(l.Fingerprint)+len(l.Owner), l.Fingerprint, l.Owner)
}

// runScript runs s by its digest, with args after the arguments that wire returns.
func runScript(k *Keys, s *script, l *store.Lease, cmd *command, args string) {
	if l.Wire == "" {
		l.Wire = wire(k, l)
	}
	cmd.wire = s.byEVALSHA + l.Wire + args
	if k.plain {
		send(k.client, cmd)
	} else {
		route(k, s, l, cmd)
	}
	switch {
	case cmd.err != nil:
	case cmd.line[0] != s.reply:
	default:
		return
	}
	retry(k, s, l, cmd)
}

// retry runs a command that has failed again while its error is one that prepareRetry can remedy. There may be two such errors in a
// row: a replica refuses the command, and the new master does not know the script. An error that remains may trip the breaker.
func retry(k *Keys, s *script, l *store.Lease, cmd *command) {
	for attempt := 0; attempt < 2 && cmd.err != nil && prepareRetry(k, cmd); attempt++ {
		route(k, s, l, cmd)
	}
	if cmd.err == nil && cmd.line[0] != s.reply {
		cmd.err = errProtocol
	}
	if cmd.err == nil {
		return
	}
	if s == claimScript && mayBeDone(cmd) {
		l.Doubtful = true
	}
	switch {
	case strings.Contains(cmd.err.Error(), "Protocol error: invalid bulk length"):
		cmd.err = fmt.Errorf("%w: %w", ErrTooLarge, cmd.err)
	case cmd.from == nil || isAboutKey(cmd.err) || IsUnreachable(cmd.err) || errors.Is(cmd.err, ErrTooLarge):
	case errors.Is(cmd.err, ErrReplicas): // also where WAIT is forbidden
	case !isForbidden(cmd.err) && stateFrom(cmd.err) != fine:
		trip(cmd.from, stateFrom(cmd.err), cmd.err)
	case cmd.from.state() == fine:
		check(cmd.from) // it names a command that is forbidden, and tells whether an unknown error concerns the server
	}
	address := k.client.opts.Address
	if k.cluster != nil && cmd.from != nil {
		address = cmd.from.opts.Address
	}
	cmd.err = fmt.Errorf("redis %s: %w", address, withoutArguments(cmd.err))
}

// mayBeDone reports whether a command that failed may have been carried out all the same: it was sent, and no reply says that its
// script has refused. An error that nobody knows may be of a proxy that has passed the command on.
func mayBeDone(cmd *command) bool {
	refused := strings.HasPrefix(cmd.line, "-") && (stateFrom(cmd.err) != fine || isAboutKey(cmd.err))
	return cmd.resent || (!refused && !errors.Is(cmd.err, ErrDown))
}

// prepareRetry reports whether cmd can succeed when it is sent again, and prepares it for that: the server did not know the
// script, forbids EVALSHA, or is a replica now.
func prepareRetry(k *Keys, cmd *command) bool {
	switch {
	case lacksEVALSHA(cmd.err):
		disableEVALSHA(cmd.from)
		cmd.wire = withEVAL(cmd.wire)
	case isUnknownScript(cmd.err):
		cmd.wire = withEVAL(cmd.wire)
	case isReplica(cmd.err) && cmd.from != nil && cmd.from.state() == fine: // else its probes see when it is a master again
		k.client.closeIdle()
	default:
		return false
	}
	return true
}

// disableEVALSHA makes c send scripts with EVAL from now on. It is logged for the first server only.
func disableEVALSHA(c *Client) {
	if c.main != nil {
		c = c.main
	}
	for _, side := range append(sides(c), c) {
		side.lock()
		side.rewrites = true
		side.noEVALSHA = true
		side.unlock()
	}
	if !c.health.noEVALSHA.Swap(true) {
		log.Printf("level=warn msg=\"Redis forbids EVALSHA; scripts are sent whole, with EVAL\" redis=%q", c.opts.Address)
	}
}

// withEVAL returns a command with EVALSHA as one with EVAL and the whole script.
func withEVAL(wire string) string {
	for _, s := range []*script{claimScript, finishScript, renewScript, releaseScript, writeBackScript, lookScript, freeScript, answerScript} {
		if strings.HasPrefix(wire, s.byEVALSHA) {
			return s.byEVAL + wire[len(s.byEVALSHA):]
		}
	}
	return wire
}

// route sends cmd, of the script s, to the server that has the key of l.
func route(k *Keys, s *script, l *store.Lease, cmd *command) {
	cmd.script = s
	if k.cluster == nil {
		sendToReplicas(k.client, cmd)
	} else {
		sendToSlot(k.cluster, l.Wire[k.start:k.end], cmd)
	}
}

// decode reads the claim script's reply for a key that is held.
func decode(cmd *command) (*store.Held, error) {
	if cmd.err != nil {
		return nil, cmd.err
	}
	ms, record, _ := strings.Cut(string(cmd.reply), " ")
	cmd.reply = nil // under Yaegi, a sender keeps its last command in memory while it is idle
	left, err := strconv.Atoi(ms)
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
