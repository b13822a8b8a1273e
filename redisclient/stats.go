package redisclient

import (
	"encoding/json"
	"fmt"
	"log"
	"math"
	"math/bits"
	"strconv"
	"strings"
	"time"

	"github.com/example/traefik-idem/stats"
)

// addScript adds numbers to the hash of statistics. ARGV = process, its sequence number, Unix time, time to live in s,
// how many endpoints are counted separately, how many of the following are fields with counts; these; then endpoints with their
// numbers. What the process has sent before is not added again. Fields of the hash:
//
//	t NAME          a total
//	l NAME          Unix time at which it was last counted, of totals that are problems
//	m N, h N        duplicates in the minute and in the hour N since 1970
//	M NAME N, H NAME N   the same of problems
//	e ENDPOINT      duplicates, the Unix time of the last, that of the last request counted here, and counts in the order of stats.ByEndpoint
//	p PROCESS       its last sequence number, and the Unix time of that
//	since           Unix time of the first count
//	endpoints       how many there are
//	pruned          the minute in which what is too old was last dropped
const addScript = `
local k = KEYS[1]
local process, sequence, now, ttl, most, pairs = 'p ' .. ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local function numbers(v) local all = {} for d in string.gmatch(v or '', '%d+') do all[#all + 1] = tonumber(d) end return all end
if (numbers(redis.call('HGET', k, process))[1] or 0) >= sequence then return 0 end
redis.call('HSET', k, process, string.format('%d %d', sequence, now))
redis.call('HSETNX', k, 'since', now)
for i = 7, 6 + 2 * pairs, 2 do
  if string.sub(ARGV[i], 1, 2) == 'l ' then
    redis.call('HSET', k, ARGV[i], math.max(tonumber(redis.call('HGET', k, ARGV[i]) or 0), tonumber(ARGV[i + 1])))
  else
    redis.call('HINCRBY', k, ARGV[i], ARGV[i + 1])
  end
end
for i = 7 + 2 * pairs, #ARGV, 2 do
  local field = 'e ' .. ARGV[i]
  local old = redis.call('HGET', k, field)
  if not old and ARGV[i] ~= 'other' then
    if tonumber(redis.call('HGET', k, 'endpoints') or 0) >= most then
      field = 'e other'
      old = redis.call('HGET', k, field)
    else
      redis.call('HINCRBY', k, 'endpoints', 1)
    end
  end
  local sum, more = numbers(old), numbers(ARGV[i + 1])
  for j = 1, math.max(#sum, #more) do
    local a, b = sum[j] or 0, more[j] or 0
    if j == 2 or j == 3 then a = math.max(a, b) else a = a + b end
    sum[j] = string.format('%d', a)
  end
  redis.call('HSET', k, field, table.concat(sum, ' '))
end
local minute = math.floor(now / 60)
if tonumber(redis.call('HGET', k, 'pruned') or 0) < minute then
  redis.call('HSET', k, 'pruned', minute)
  local all = redis.call('HGETALL', k)
  for i = 1, #all, 2 do
    local kind, n = string.lower(string.sub(all[i], 1, 2)), tonumber(string.match(all[i], ' (%d+)$'))
    if kind == 'm ' and n <= minute - 60 or kind == 'h ' and n <= math.floor(now / 3600) - 168 then
      redis.call('HDEL', k, all[i])
    elseif kind == 'p ' and (numbers(all[i + 1])[2] or 0) < now - 86400 then
      redis.call('HDEL', k, all[i])
    elseif kind == 'e ' then
      local values = numbers(all[i + 1])
      if math.max(values[2] or 0, values[3] or 0) < now - ttl then
        redis.call('HDEL', k, all[i])
        if all[i] ~= 'e other' then redis.call('HINCRBY', k, 'endpoints', -1) end
      end
    end
  end
end
redis.call('EXPIRE', k, ttl)
return 1`

// Bounds on one measurement of memory: one SCAN looks at about scanCount buckets of the keyspace, which occupies Redis for
// some tenths of a millisecond, and the measurement ends after scanTime.
const (
	scanCount = 500
	scanTime  = 500 * time.Millisecond
)

// Stats is a stats.Store in Redis.
type Stats struct {
	client *Client
	prefix string
}

var _ stats.Store = (*Stats)(nil)

// NewStats returns a store whose numbers are in the Redis key <keyPrefix>:stats, a hash. They are in one key, so that a
// flush is one atomic step.
func NewStats(client *Client, keyPrefix string) *Stats {
	return &Stats{client: client, prefix: keyPrefix + ":"}
}

// Kind implements stats.Store.
func (s *Stats) Kind() string { return "redis" }

// Trouble implements stats.Store.
func (s *Stats) Trouble() error { return s.client.Trouble() }

// Add implements stats.Store.
func (s *Stats) Add(process string, sequence, now int64, numbers *stats.Numbers, limits stats.Limits) error {
	var fields, endpoints []interface{}
	for i, count := range numbers.Totals {
		if count != 0 {
			fields = append(fields, "t "+stats.Names[i], count)
		}
	}
	for minute, count := range numbers.Minutes {
		fields = append(fields, "m "+strconv.FormatInt(minute, 10), count)
	}
	for hour, count := range numbers.Hours {
		fields = append(fields, "h "+strconv.FormatInt(hour, 10), count)
	}
	for i, problem := range numbers.Problems {
		name := stats.Names[stats.ProblemTotals[i]]
		if problem.Last != 0 {
			fields = append(fields, "l "+name, problem.Last)
		}
		for minute, count := range problem.Minutes {
			fields = append(fields, "M "+name+" "+strconv.FormatInt(minute, 10), count)
		}
		for hour, count := range problem.Hours {
			fields = append(fields, "H "+name+" "+strconv.FormatInt(hour, 10), count)
		}
	}
	for name, e := range numbers.Endpoints {
		endpoints = append(endpoints, name, fmt.Sprint(e.Duplicates, e.Last, e.Seen, e.Outcomes))
	}
	// EVAL sends the whole script. Once a second that costs nothing, and it saves the round trip for a script that Redis lacks.
	args := []interface{}{addScript, 1, s.prefix + "stats", process, sequence, now, int64(limits.TTL / time.Second), limits.MaxEndpoints, len(fields) / 2}
	args = append(append(args, fields...), endpoints...)
	_, err := s.do("EVAL", args)
	return err
}

// do sends one command about the hash of statistics; an error reply is returned as an error.
func (s *Stats) do(name string, args []interface{}) (interface{}, error) {
	return doAbout(s.client, s.prefix+"stats", Command{Name: name, Args: args})
}

// doAbout sends one command about a hash, of statistics or of notes, to c's Redis; an error reply is returned as an error. That such a
// command is forbidden is logged once.
func doAbout(c *Client, key string, command Command) (interface{}, error) {
	client := usableClient(c)
	reply, err := doVia(client, key, command)
	if err == nil || !isForbidden(err) {
		return reply, err
	}
	if client.cluster == nil && client.Trouble() == nil {
		check(client) // keys may need it too
	}
	if client.Trouble() != nil {
		return nil, err
	}
	if !client.health.noHashes.Swap(true) {
		log.Printf("level=error msg=\"Redis forbids a command that only statistics and notes about keys need\" redis=%q cause=%q", client.opts.Address, err)
	}
	return nil, fmt.Errorf("%w: %w", stats.ErrForbidden, err)
}

// doVia is doAbout for a client that can be used.
func doVia(client *Client, key string, command Command) (interface{}, error) {
	if client.cluster != nil {
		return client.cluster.do(key, command)
	}
	reply, err := client.do(command)
	if err != nil && isReplica(err) && client.state() == fine {
		client.closeIdle()
		return client.do(command)
	}
	return reply, err
}

// Load implements stats.Store.
func (s *Stats) Load() (*stats.Numbers, error) {
	reply, err := s.do("HGETALL", []interface{}{s.prefix + "stats"})
	if err != nil {
		return nil, err
	}
	all, err := array("HGETALL", reply)
	if err != nil {
		return nil, err
	}
	totals, problems := map[string]int{}, map[string]*stats.Problem{}
	for i, name := range stats.Names {
		totals[name] = i
	}
	numbers := stats.NewNumbers()
	for i, total := range stats.ProblemTotals {
		problems[stats.Names[total]] = numbers.Problems[i]
	}
	for i := 0; i+1 < len(all); i += 2 {
		field, value := text(all[i]), text(all[i+1])
		kind, name, _ := strings.Cut(field, " ")
		if kind == "e" {
			numbers.Endpoints[name] = endpointOf(value)
			continue
		}
		n, _ := strconv.ParseInt(value, 10, 64) // 0 for what is not ours
		name, at, _ := strings.Cut(name, " ")
		problem := problems[name]
		switch kind {
		case "since":
			numbers.Since = n
		case "t":
			total, known := totals[name]
			if known {
				numbers.Totals[total] = n
			}
		case "m":
			minute, _ := strconv.ParseInt(name, 10, 64)
			numbers.Minutes[minute] = n
		case "h":
			hour, _ := strconv.ParseInt(name, 10, 64)
			numbers.Hours[hour] = n
		case "l":
			if problem != nil {
				problem.Last = n
			}
		case "M":
			minute, _ := strconv.ParseInt(at, 10, 64)
			if problem != nil {
				problem.Minutes[minute] = n
			}
		case "H":
			hour, _ := strconv.ParseInt(at, 10, 64)
			if problem != nil {
				problem.Hours[hour] = n
			}
		}
	}
	return numbers, nil
}

// endpointOf reads the numbers of an endpoint. JSON does it in one step: a loop over a thousand endpoints would be interpreted.
func endpointOf(value string) stats.Endpoint {
	var n []int64
	err := json.Unmarshal([]byte("["+strings.ReplaceAll(value, " ", ",")+"]"), &n)
	if err != nil || len(n) < 2 { // it is not ours
		return stats.Endpoint{}
	}
	e := stats.Endpoint{Duplicates: n[0], Last: n[1], Seen: n[1]}
	if len(n) > 2 {
		e.Seen = n[2]
		e.Outcomes = n[3:]
	}
	return e
}

// Memory implements stats.Store. It goes through the keyspace, of a cluster through those of all masters, in small steps
// and gives up after scanTime.
func (s *Stats) Memory() (stats.Memory, error) {
	nodes := []*Client{s.client}
	if s.client.cluster != nil {
		nodes = s.client.cluster.masters()
	}
	deadline := time.Now().Add(scanTime)
	all := stats.Memory{Exact: true}
	for _, node := range nodes {
		measured, err := s.memoryOf(node, deadline)
		all.Keys += measured.Keys
		all.Bytes += measured.Bytes
		all.Scanned += measured.Scanned / float64(len(nodes))
		all.Exact = all.Exact && measured.Exact
		if err != nil {
			return all, err
		}
	}
	return all, nil
}

// memoryOf measures what one server has. After the deadline it only measures what it has found.
func (s *Stats) memoryOf(node *Client, deadline time.Time) (stats.Memory, error) {
	measured := stats.Memory{}
	cursor := "0"
	scanning := true
	batch := []Command{s.scan(cursor)}
	for len(batch) > 0 {
		replies, err := node.Batch(batch)
		if err != nil {
			return measured, err
		}
		batch = nil
		usages := replies
		if scanning { // SCAN comes last; what it found is measured along with the next one
			usages = replies[:len(replies)-1]
			next, keys, err := scanReply(replies[len(replies)-1])
			if err != nil {
				return measured, err
			}
			cursor = next
			for _, key := range keys {
				batch = append(batch, Command{Name: "MEMORY", Args: []interface{}{"USAGE", key, "SAMPLES", 0}})
			}
			scanning = cursor != "0" && time.Now().Before(deadline)
			if scanning {
				batch = append(batch, s.scan(cursor))
			}
		}
		err = addUsages(&measured, usages)
		if err != nil {
			return measured, err
		}
	}
	measured.Scanned = scanned(cursor)
	measured.Exact = cursor == "0"
	return measured, nil
}

// addUsages adds replies to MEMORY USAGE. A key may have expired since it was found, or gone to another node.
func addUsages(measured *stats.Memory, usages []interface{}) error {
	for _, reply := range usages {
		err := errorIn(reply)
		if err != nil && !isRedirection(err) {
			return err
		}
		bytes := integer(reply)
		if bytes >= 0 {
			measured.Keys++
			measured.Bytes += bytes
		}
	}
	return nil
}

func (s *Stats) scan(cursor string) Command {
	return Command{Name: "SCAN", Args: []interface{}{cursor, "MATCH", s.prefix + "*", "COUNT", scanCount}}
}

// scanReply returns the cursor and the keys in a reply to SCAN.
func scanReply(reply interface{}) (string, []interface{}, error) {
	err := errorIn(reply)
	if err != nil {
		return "", nil, err
	}
	pair := elements(reply)
	if len(pair) != 2 {
		return "", nil, unexpected("SCAN", reply)
	}
	keys, err := array("SCAN", pair[1])
	return text(pair[0]), keys, err
}

// scanned returns the share of the keyspace, 0 to 1, that SCAN has passed when it replies with this cursor. Redis counts cursors from
// the highest bit down.
func scanned(cursor string) float64 {
	if cursor == "0" { // there is no more
		return 1
	}
	n, err := strconv.ParseUint(cursor, 10, 64)
	if err != nil {
		return 0
	}
	return float64(bits.Reverse64(n)) / math.MaxUint64
}
