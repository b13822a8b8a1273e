package redisclient

import (
	"strconv"
	"strings"
	"time"
)

// MaxNotes is how many notes of each kind are kept, the newest.
const MaxNotes = 1000

// maxSettled is how many settled keys the notebook remembers, the newest. A process that has missed more forgets all that it
// remembers of Redis' records.
const maxSettled = 256

// notebookLife is how long the notebook outlives its last use: longer than any record.
const notebookLife = 8 * 24 * time.Hour

var (
	maxSettledText   = strconv.Itoa(maxSettled)
	notebookLifeText = strconv.FormatInt(int64(notebookLife/time.Second), 10)
)

// noteScript adds to the notebook, a hash. ARGV = Unix time in ms, how many notes of a kind are kept, a new epoch, the epoch and
// the version that the process knows, how many keys were settled; of each of these its hash and the version of its record; then
// notes: kind, name, Unix time in ms until when it is wanted, text. It replies with epoch, version, and what was settled since
// the version that the process knows, as far as it is still there. Fields of the hash:
//
//	k NAME                 kind, number, until when, and text of a note
//	KIND N                 the name of note number N; the newest has the highest
//	KIND first, KIND last  the first number and the last
//	epoch                  what it was called when it began: another one if Redis has lost its data
//	version                how many keys were settled
//	s N                    the hash of the key that was settled as number N, the version of the record that it had, and when
//
// A note of kind other does not replace one of another kind. One of kind gone ends the note of the kind that is its text.
var noteScript = `
local k, now, most = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local function number(field) return tonumber(redis.call('HGET', k, field) or 0) end
local function split(note) return string.match(note or '', '^(%S+) (%d+) (%d+) ') end
redis.call('HSETNX', k, 'epoch', ARGV[3])
local epoch, from, settled = redis.call('HGET', k, 'epoch'), tonumber(ARGV[5]), tonumber(ARGV[6])
if epoch ~= ARGV[4] then from = 0 end
for i = 1, settled do
  local n = redis.call('HINCRBY', k, 'version', 1)
  redis.call('HSET', k, 's ' .. n, ARGV[5 + 2 * i] .. ' ' .. ARGV[6 + 2 * i])
  redis.call('HDEL', k, 's ' .. n - ` + maxSettledText + `)
end
local touched = {}
for i = 7 + 2 * settled, #ARGV, 4 do
  local kind, field, old = ARGV[i], 'k ' .. ARGV[i + 1], redis.call('HGET', k, 'k ' .. ARGV[i + 1])
  local was, nth, till = split(old)
  local lives = was and tonumber(till) > now
  if kind == 'gone' then
    if was == ARGV[i + 3] then redis.call('HDEL', k, field) end
  elseif kind ~= 'other' or not lives or was == 'other' then
    if was ~= kind then
      nth = redis.call('HINCRBY', k, kind .. ' last', 1)
      redis.call('HSET', k, kind .. ' ' .. nth, ARGV[i + 1])
      touched[kind] = true
    end
    redis.call('HSET', k, field, kind .. ' ' .. nth .. ' ' .. ARGV[i + 2] .. ' ' .. ARGV[i + 3])
  end
end
for kind in pairs(touched) do
  local last, first = number(kind .. ' last'), number(kind .. ' first')
  while first <= last do
    local name = redis.call('HGET', k, kind .. ' ' .. first)
    if name then
      local was, nth, till = split(redis.call('HGET', k, 'k ' .. name))
      local has = was == kind and tonumber(nth) == first
      if has and last - first < most and tonumber(till) > now then break end
      if has then redis.call('HDEL', k, 'k ' .. name) end
      redis.call('HDEL', k, kind .. ' ' .. first)
    end
    first = first + 1
  end
  redis.call('HSET', k, kind .. ' first', first)
end
redis.call('EXPIRE', k, ` + notebookLifeText + `)
local version = number('version')
local reply = {epoch, tostring(version), tostring(from)}
for n = math.max(from + 1, version - ` + maxSettledText + ` + 1), version do reply[#reply + 1] = redis.call('HGET', k, 's ' .. n) or '' end
return reply`

// listScript returns names and notes of a kind that are still wanted, the newest first. ARGV = the kind, Unix time in ms, the
// number below which the notes are, how many at most.
const listScript = `
local k, kind, reply = KEYS[1], ARGV[1], {}
local first, nth = tonumber(redis.call('HGET', k, kind .. ' first') or 0), tonumber(redis.call('HGET', k, kind .. ' last') or 0)
nth = math.min(nth, tonumber(ARGV[3]) - 1)
while nth >= first and #reply < 2 * ARGV[4] do
  local name = redis.call('HGET', k, kind .. ' ' .. nth)
  local note = name and redis.call('HGET', k, 'k ' .. name)
  local till = note and string.match(note, '^' .. kind .. ' ' .. nth .. ' (%d+) ')
  if till and tonumber(till) > tonumber(ARGV[2]) then
    reply[#reply + 1] = name
    reply[#reply + 1] = note
  end
  nth = nth - 1
end
return reply`

// Note is a line of the notebook.
type Note struct {
	Kind, Name string
	Number     int64 // among those of its kind; the newest has the highest. Redis sets it
	Until      int64 // Unix time in ms
	Text       string
}

// Settled is a key that was settled: its SHA-256 in hex, and the version of the record that it had.
type Settled struct {
	Hash, Version string
	At            int64 // Unix time in ms
}

// News is what was settled since a version of the notebook.
type News struct {
	Epoch   string
	Version int64
	Settled []Settled
	Missed  bool // there was more
}

// Notebook is what the Traefiks on one Redis note of keys that somebody may ask about, in the hash <keyPrefix>:keys.
type Notebook struct {
	client *Client
	key    string
}

// NewNotebook returns the notebook of the Redis that k uses.
func NewNotebook(k *Keys, keyPrefix string) *Notebook {
	return &Notebook{client: k.client, key: keyPrefix + ":keys"}
}

// Exchange adds notes, tells others what was settled, and returns what was settled since the version of known. Repeating
// it with the same arguments does no harm.
func (n *Notebook) Exchange(now int64, epoch string, known *News, settled []Settled, notes []Note) (*News, error) {
	args := []interface{}{noteScript, 1, n.key, now, MaxNotes, epoch, known.Epoch, known.Version, len(settled)}
	for _, s := range settled {
		args = append(args, s.Hash, s.Version+" "+strconv.FormatInt(s.At, 10))
	}
	for _, note := range notes {
		args = append(args, note.Kind, note.Name, note.Until, note.Text)
	}
	all, err := n.list(Command{Name: "EVAL", Args: args})
	if err != nil {
		return nil, err
	}
	if len(all) < 3 {
		return nil, errProtocol
	}
	news := &News{Epoch: text(all[0])}
	news.Version, _ = strconv.ParseInt(text(all[1]), 10, 64)
	from, _ := strconv.ParseInt(text(all[2]), 10, 64)
	news.Missed = news.Version-from > int64(len(all)-3)
	for _, one := range all[3:] {
		hash, rest, _ := strings.Cut(text(one), " ")
		version, at, _ := strings.Cut(rest, " ")
		s := Settled{Hash: hash, Version: version}
		s.At, _ = strconv.ParseInt(at, 10, 64) // older versions of the plugin do not tell it
		news.Settled = append(news.Settled, s)
	}
	return news, nil
}

// Get returns the note of this name. Its Kind is empty if there is none.
func (n *Notebook) Get(name string) (Note, error) {
	reply, err := doAbout(n.client, n.key, Command{Name: "HGET", Args: []interface{}{n.key, "k " + name}})
	if err != nil || reply == nil {
		return Note{}, err
	}
	return note(name, text(reply)), nil
}

// List returns the newest notes of a kind with numbers below this one that are wanted at now, at most that many, the newest first.
func (n *Notebook) List(kind string, now, below int64, most int) ([]Note, error) {
	all, err := n.list(Command{Name: "EVAL", Args: []interface{}{listScript, 1, n.key, kind, now, below, most}})
	if err != nil {
		return nil, err
	}
	var notes []Note
	for i := 0; i+1 < len(all); i += 2 {
		notes = append(notes, note(text(all[i]), text(all[i+1])))
	}
	return notes, nil
}

// list sends a command whose reply is a list.
func (n *Notebook) list(command Command) ([]interface{}, error) {
	reply, err := doAbout(n.client, n.key, command)
	if err != nil {
		return nil, err
	}
	return array(command.Name, reply)
}

// note reads a field of the hash.
func note(name, field string) Note {
	parts := strings.SplitN(field, " ", 4)
	if len(parts) != 4 {
		return Note{}
	}
	number, _ := strconv.ParseInt(parts[1], 10, 64) // 0 for what is not ours, as below
	until, _ := strconv.ParseInt(parts[2], 10, 64)
	return Note{Kind: parts[0], Name: name, Number: number, Until: until, Text: parts[3]}
}
