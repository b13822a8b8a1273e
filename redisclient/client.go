// Package redisclient is everything that talks to Redis: connections, commands, and the store of keys on top of them.
package redisclient

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gomodule/redigo/redis"
)

// errUnreachable is wrapped by the error for a command that was sent, perhaps, and had no reply.
var errUnreachable = errors.New("no reply")

var errProtocol = errors.New("the reply is not one that Redis gives")

// maxReply is the longest reply that is taken, in bytes: Redis' own bound on a string.
const maxReply = 512 << 20

// believed is the longest reply, in bytes, that room is made for before it has come. A garbled length must not take
// all memory.
const believed = 4 << 20

// shortReply is how long a reply may be, in bytes, that has no more time than others.
const shortReply = 4 << 10

// leastConns is how many connections a client opens at the most on a machine with fewer CPUs; else it is one per CPU.
// Commands of concurrent requests share connections and their flushes: every further one would only make those smaller.
const leastConns = 2

// Options say which Redis, and how to speak to it. Two clients with equal options are interchangeable.
type Options struct {
	Address      string // host:port; those of several sentinels or nodes of a cluster have commas between them
	Username     string // empty: the default user
	Password     string // empty: no login, unless PasswordFile is set
	PasswordFile string // read at every connect, so that a changed secret needs no restart
	DB           int
	TLS          TLS
	Sentinel     Sentinel
	Cluster      bool // of which the server is a node

	DialTimeout, ReadTimeout, WriteTimeout time.Duration

	PoolSize       int // connections at the most, if that is less than one per CPU, or two; 0 = so many
	MinIdleConns   int // connections opened in advance
	MaxActiveConns int // connections at the most; 0 = PoolSize alone counts

	WaitReplicas int // that must have a claim or an answer; 0 = the master alone
}

// Place names the Redis, whatever the other options: with which settings it is spoken to makes no difference to what it has.
func (o *Options) Place() string {
	addresses := strings.Split(o.Address, ",")
	sort.Strings(addresses)
	return fmt.Sprintf("%s %q %d", strings.Join(addresses, ","), o.Sentinel.MasterName, o.DB)
}

// Client sends commands to one Redis server. Commands that come while its connections are busy are sent together, in one
// write, when one is free. Many goroutines may send at once.
type Client struct {
	opts   Options
	lanes  chan *lane // those that nobody uses now; receiving one is the permission to use it
	master *master    // whom the sentinels name; nil: the server is at opts.Address

	breaker *breaker
	state   func() int32 // of the breaker. Yaegi finds a function in a field in half the time that a method takes
	plight  *plight      // shared by the nodes of a cluster
	node    bool         // it is one of those
	cluster *Cluster     // of which it is one; nil: of none
	checked atomic.Bool  // check has been called

	confirmer *Client // to the same server, for what waits for replicas; nil: nothing does
	bulk      *Client // to the same server, for long commands
	main      *Client // whose side it is; nil: it is nobody's
	waits     bool    // it is a side for what waits for replicas

	lock, unlock func()        // guard everything below
	queue        []*command    // to be sent
	spare        int           // goroutines that may yet send at the same time: idle, and not started; as many as lanes at the most
	idle         int           // senders that wait for wake
	wake         chan struct{} // has room for all that are idle
	closed       bool
	odd          bool // commands are not sent just as they are: see withOthers
	whole        bool // scripts are sent whole, since EVALSHA is forbidden
}

// lane is a place for a connection. Whoever took it out of Client.lanes has it alone.
type lane struct {
	conn    redis.Conn    // nil while it is not connected
	net     net.Conn      // below conn
	timeout time.Duration // for a reply
	reader  *bufio.Reader
	address string // to which it was connected last, or should have been
	unread  bool   // replies may be on their way that nobody waits for any more: the connection is of no more use
}

// command is a command and its reply.
type command struct {
	wire   string // as Redis' protocol has it
	script *script
	asking bool // ASKING goes before it
	waits  bool // it is the WAIT for replicas

	done  chan struct{} // it has its reply
	line  string        // the first line of the reply
	reply []byte        // a bulk string
	err   error         // an error reply, or why there is no reply
	from  *Client       // who has the error
}

// New returns a client. It connects when there is something to send, not before; Close frees it.
func New(opts Options) *Client {
	return NewSharing(opts, NewBacklog())
}

// NewSharing is New for one of several clients of the same Redis, which settle what any of them owes.
func NewSharing(opts Options, b *Backlog) *Client {
	c := build(opts, b)
	join(c)
	return c
}

// build is NewSharing for a client that does not settle what others owe.
func build(opts Options, b *Backlog) *Client {
	n := runtime.GOMAXPROCS(0)
	if n < leastConns {
		n = leastConns
	}
	for _, limit := range []int{opts.PoolSize, opts.MaxActiveConns} {
		if limit > 0 && limit < n {
			n = limit
		}
	}
	c := newClient(opts, n)
	c.breaker = &breaker{}
	c.state = c.breaker.state.Load
	c.plight = newPlight(c, b)
	if opts.Sentinel.MasterName != "" {
		c.master = newMaster(opts)
	}
	c.bulk = newSide(c, bulkConns, false)
	if opts.WaitReplicas > 0 {
		c.confirmer = newSide(c, n, true)
		c.confirmer.bulk = newSide(c, bulkConns, true)
	}
	if opts.MinIdleConns > 0 {
		go c.warm(n)
	}
	return c
}

// Idle tells that the server need not be told anything more, or that another client can tell it.
func (c *Client) Idle() bool {
	b := c.plight.backlog
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.clients.Len() > 1 || !owes(b)
}

// newClient returns a client with room for n connections.
func newClient(opts Options, n int) *Client {
	var mu sync.Locker = &sync.Mutex{}
	c := &Client{opts: opts, lanes: make(chan *lane, n), wake: make(chan struct{}, n), spare: n, lock: mu.Lock, unlock: mu.Unlock}
	for i := 0; i < n; i++ {
		c.lanes <- &lane{}
	}
	return c
}

// newSide returns a client for what takes long, so that nothing else waits behind it. It has connections of its own, up to n,
// unless their number is limited, and knows of the server what main knows.
func newSide(main *Client, n int, waits bool) *Client {
	c := newClient(main.opts, n)
	limit := main.opts.PoolSize
	if main.opts.MaxActiveConns > 0 || (limit > 0 && limit < 2*(cap(main.lanes)+bulkConns)) {
		c.lanes = main.lanes
	}
	c.main = main
	c.waits = waits
	c.odd = waits
	c.breaker = main.breaker
	c.state = main.state
	c.master = main.master
	return c
}

// sides are the clients that belong to c, without c.
func sides(c *Client) []*Client {
	var all []*Client
	for _, side := range []*Client{c.bulk, c.confirmer} {
		if side != nil {
			all = append(append(all, side), sides(side)...)
		}
	}
	return all
}

// Close closes idle connections now, and busy ones when their commands are done. Who still has something to send can do
// so, over a connection that lasts no longer: a request may outlive the configuration that it came under.
func (c *Client) Close() {
	retire(c)
	for _, side := range sides(c) {
		retire(side)
	}
	if !c.node {
		c.plight.closed.Store(true)
		leave(c)
	}
	if c.master != nil {
		c.master.close()
	}
	c.closeIdle()
}

// retire has the senders of c end when there is nothing left to send.
func retire(c *Client) {
	c.lock()
	defer c.unlock()
	c.closed = true
	for ; c.idle > 0; c.idle-- {
		c.spare--
		c.wake <- struct{}{}
	}
}

// closeIdle closes the connections that nobody uses now.
func (c *Client) closeIdle() {
	for _, side := range sides(c) {
		side.closeIdle()
	}
	for i := len(c.lanes); i > 0; i-- {
		l := <-c.lanes
		disconnect(l)
		c.lanes <- l
	}
}

// send carries out cmd and returns when it has its reply. If a connection turns out to be broken (Redis was restarted, or
// closed it for idleness) all its commands are sent once more over a new one: so it may only be used for commands
// that can be repeated.
func send(c *Client, cmd *command) {
	if c.state() == down {
		cmd.err = notSent(c)
		return
	}
	cmd.done = make(chan struct{}, 1)
	c.lock()
	c.queue = append(c.queue, cmd)
	if c.spare > 0 {
		rouse(c)
	}
	c.unlock()
	<-cmd.done
	if cmd.err != nil {
		cmd.from = c
	}
}

// rouse has a sender look into the queue. The caller holds the lock.
func rouse(c *Client) {
	c.spare--
	if c.idle > 0 {
		c.idle--
		c.wake <- struct{}{}
		return
	}
	go sendAll(&sender{client: c})
}

// sender is what a goroutine of sendAll has in hand.
type sender struct {
	client   *Client
	lane     *lane
	commands []*command
}

// sendAll sends what is in the queue, all in one write, and reads the replies, again and again. It is one function since
// Yaegi allocates the variables of a function at each call, and those of this loop once. It is written with a few calls
// of the standard library, because redigo, which does this byte by byte, takes many times as long under Yaegi.
func sendAll(s *sender) {
	defer endSender(s)
	c := s.client
	var out []byte
	var err error
	for {
		c.lock()
		commands := c.queue
		c.queue = nil
		odd := c.odd
		if len(commands) == 0 {
			if c.closed {
				c.spare++
				c.unlock()
				c.closeIdle()
				return
			}
			c.idle++
			c.spare++
			c.unlock()
			<-c.wake
			runtime.Gosched() // who is about to send goes along
			continue
		}
		c.unlock()
		s.commands = commands
		all := commands
		if odd {
			all = withOthers(c, commands)
		}
		out = out[:0]
		long := false
		for _, cmd := range all {
			if len(cmd.wire) > longBytes {
				long = true
				break
			}
			out = append(out, cmd.wire...)
		}
		if long || len(out) > mostKept {
			commands = divide(c, commands)
			if len(commands) == 0 {
				s.commands = nil
				continue
			}
			s.commands = commands
			all = commands
			if odd {
				all = withOthers(c, commands)
			}
			long = true
		}
		l := <-c.lanes
		s.lane = l
		err = nil
		if c.state() == down { // it was found so while these waited
			fail(commands, notSent(c))
			all = nil
		}
		reused := l.conn != nil
		for attempt := 0; attempt < 2 && len(all) > 0; attempt++ {
			err = nil
			if l.conn == nil {
				err = dial(c, l)
			}
			if err == nil {
				l.unread = true
				now := time.Now()
				_ = l.net.SetDeadline(now.Add(c.opts.ReadTimeout))
				if c.opts.WriteTimeout != c.opts.ReadTimeout {
					_ = l.net.SetWriteDeadline(now.Add(c.opts.WriteTimeout))
				}
				if long {
					err = writeLong(l.net, all, now.Add(c.opts.WriteTimeout), now.Add(c.opts.ReadTimeout))
				} else {
					_, err = l.net.Write(out)
				}
				for _, cmd := range all {
					if err == nil {
						line, broken := l.reader.ReadString('\n')
						err = broken
						cmd.line = line
						cmd.err = nil // of a first attempt
						if line != nilLine && line != oneLine && err == nil {
							err = receiveRest(l, cmd)
						}
					}
				}
				l.unread = err != nil
			}
			if err == nil || !worthAnother(c, l, reused, err) {
				break
			}
			disconnect(l)
		}
		if err != nil {
			lose(c, commands, err)
		} else if c.waits && len(all) > 0 {
			judge(c, all)
		}
		if l.unread {
			disconnect(l)
		}
		s.lane = nil
		c.lanes <- l
		s.commands = nil
		for _, cmd := range commands {
			cmd.done <- struct{}{}
		}
		if cap(out) > mostKept {
			out = nil
		}
	}
}

// Commands of more than longBytes go over connections of their own, one after the other: nothing small waits behind them.
// The others go together as far as they are no longer than mostKept, which is how much room for commands a sender keeps.
const (
	longBytes = 32 << 10
	mostKept  = 64 << 10
	bulkConns = 2 // for long commands
)

// divide returns what c sends first of commands, which are long or many. Long ones go to c.bulk, and the rest back into the
// queue.
func divide(c *Client, commands []*command) []*command {
	var first, rest, long []*command
	size := 0
	for _, cmd := range commands {
		size += len(cmd.wire)
		switch {
		case c.bulk != nil && len(cmd.wire) > longBytes:
			long = append(long, cmd)
			size -= len(cmd.wire)
		case len(first) > 0 && size > mostKept:
			rest = append(rest, cmd)
		default:
			first = append(first, cmd)
		}
	}
	enqueue(c, rest)
	if len(long) > 0 {
		enqueue(c.bulk, long)
	}
	return first
}

// enqueue puts commands before all others that c is to send.
func enqueue(c *Client, commands []*command) {
	c.lock()
	defer c.unlock()
	c.queue = append(commands, c.queue...)
	if len(commands) > 0 && c.spare > 0 {
		rouse(c)
	}
}

// slowest is how many bytes a second the way to Redis carries at the least. What is long has more time than what is short.
const slowest = 1 << 20

// transfer is how long n bytes may take.
func transfer(n int) time.Duration {
	return time.Duration(n) * time.Second / slowest
}

// writeLong writes commands that are long or many: piece by piece, since nothing is as large as all of them. They have to be
// written, and their replies to be there, so much after the times given as they take.
func writeLong(conn net.Conn, commands []*command, written, replied time.Time) error {
	size := 0
	for _, cmd := range commands {
		size += len(cmd.wire)
	}
	_ = conn.SetWriteDeadline(written.Add(transfer(size)))
	_ = conn.SetReadDeadline(replied.Add(transfer(size)))
	pieces := bufio.NewWriterSize(conn, mostKept)
	for _, cmd := range commands {
		_, _ = pieces.WriteString(cmd.wire) // Flush returns its error
	}
	return pieces.Flush()
}

// ErrTooLarge is the error for a command that Redis does not take, though it takes others: it is longer than
// proto-max-bulk-len, or than the way there carries in time.
var ErrTooLarge = errors.New("it is too large for Redis, or for the way there")

// lose tells commands that they had no reply. A long one may be too long; else the server is not as it should be.
func lose(c *Client, commands []*command, err error) {
	if c.main != nil && c.bulk == nil && c.state() != down {
		state, _ := probe(c.main)
		if state != down {
			fail(commands, fmt.Errorf("%w: %w", ErrTooLarge, err))
			return
		}
	}
	trip(c, down, err)
	fail(commands, fmt.Errorf("%w: %w", errUnreachable, err))
}

// endSender ends a sender. If it does so with a panic, those who wait for it are told, and another takes its place.
func endSender(s *sender) {
	p := recover()
	if p == nil {
		return
	}
	log.Printf("level=error msg=\"sending to Redis failed\" cause=%q", p)
	if s.lane != nil {
		disconnect(s.lane)
		s.client.lanes <- s.lane
	}
	fail(s.commands, errUnreachable)
	for _, cmd := range s.commands {
		cmd.done <- struct{}{}
	}
	go sendAll(&sender{client: s.client})
}

// worthAnother tells whether what failed on l with err may go better over a new connection: since the old one was dead,
// or since another server is master now.
func worthAnother(c *Client, l *lane, reused bool, err error) bool {
	if c.master != nil && c.master.elsewhere(l.address) {
		return true
	}
	return reused && !errors.Is(err, os.ErrDeadlineExceeded)
}

// giveBack lets others have the lane, without a connection on which they could get somebody else's replies.
func giveBack(c *Client, l *lane) {
	c.lock()
	closed := c.closed
	c.unlock()
	if closed || l.unread {
		disconnect(l)
	}
	c.lanes <- l
}

func fail(commands []*command, err error) {
	for _, cmd := range commands {
		cmd.err = err
	}
}

func disconnect(l *lane) {
	if l.conn != nil {
		_ = l.conn.Close()
		l.conn = nil
	}
	l.unread = false
}

// receiveRest reads what follows the first line of a reply, if anything does. It may be a bulk string, an integer or an
// error, which is all that the scripts return.
func receiveRest(l *lane, cmd *command) error {
	if cmd.line[0] == '$' {
		return receiveBulk(l, cmd)
	}
	return receiveOther(cmd)
}

// receiveOther takes a reply that is one line.
func receiveOther(cmd *command) error {
	line := cmd.line
	if len(line) < 4 || line[len(line)-2] != '\r' {
		return errProtocol
	}
	if cmd.wire == asking && line == "+OK\r\n" {
		return nil
	}
	value := line[1 : len(line)-2]
	if line[0] == '-' {
		cmd.err = errors.New(value)
		return nil
	}
	_, err := strconv.ParseInt(value, 10, 64)
	if err != nil || line[0] != ':' {
		return errProtocol
	}
	return nil
}

// receiveBulk reads a bulk string, of which the first line has been read.
func receiveBulk(l *lane, cmd *command) error {
	line := cmd.line
	n, err := strconv.Atoi(strings.TrimSuffix(line[1:], "\r\n"))
	switch {
	case err != nil || n < 0 || n > maxReply:
		return errProtocol
	case n > shortReply:
		return receiveLong(l, cmd, n)
	}
	reply := make([]byte, n+2)
	_, err = io.ReadFull(l.reader, reply)
	cmd.reply = reply[:n]
	if err == nil && reply[n] != '\r' {
		return errProtocol
	}
	return err
}

// receiveLong is receiveBulk for one that takes time, and for which there may be no room.
func receiveLong(l *lane, cmd *command, n int) error {
	_ = l.net.SetReadDeadline(time.Now().Add(l.timeout + transfer(n)))
	var b bytes.Buffer
	if n <= believed {
		b.Grow(n + 2 + bytes.MinRead)
	}
	_, err := io.CopyN(&b, l.reader, int64(n)+2)
	if err != nil {
		return err
	}
	if !bytes.HasSuffix(b.Bytes(), []byte("\r\n")) {
		return errProtocol
	}
	cmd.reply = b.Bytes()[:n]
	return nil
}
