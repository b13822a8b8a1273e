// Package redisclient is everything that talks to Redis: connections, commands, and on top of them keys, statistics and notes.
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

// errUnreachable is wrapped by the error for a command that may have been sent and had no reply.
var errUnreachable = errors.New("no reply")

var errProtocol = errors.New("the reply is not one that Redis gives")

// maxReply is the longest reply that is taken, in bytes: Redis' own bound on a string.
const maxReply = 512 << 20

// maxPreallocated is the longest reply, in bytes, for which memory is allocated before it has arrived. A garbled length must
// not take all memory.
const maxPreallocated = 4 << 20

// shortReply is the longest reply, in bytes, that gets no additional time.
const shortReply = 4 << 10

// minConns is the least number of connections that a client may have, unless Options allow fewer. Otherwise it is one per CPU. Commands
// of concurrent requests share a connection and its flushes: more connections would only make those smaller.
const minConns = 2

// Options say which Redis, and how to speak to it. Two clients with equal options are interchangeable.
type Options struct {
	Address      string // host:port, or UnixScheme and a path; those of several sentinels or nodes of a cluster have commas between them
	Username     string // empty: the default user
	Password     string // empty: no login, unless PasswordFile is set
	PasswordFile string // read at every connect, so that a changed secret needs no restart
	DB           int
	TLS          TLS
	Sentinel     Sentinel
	Cluster      bool // the addresses are those of nodes of a Redis Cluster

	DialTimeout, ReadTimeout, WriteTimeout time.Duration

	PoolSize       int // upper bound on connections, of which there is one per CPU, at least two; 0 = no further bound
	MinIdleConns   int // connections opened in advance
	MaxActiveConns int // a further upper bound on connections; 0 = none

	WaitReplicas int // replicas that must have a claim or an answer; 0 = the master is enough
}

// Dataset identifies the data in Redis: its addresses, its master's name, whether it is a cluster, and its database. The other
// options do not matter.
func (o *Options) Dataset() string {
	addresses := strings.Split(o.Address, ",")
	sort.Strings(addresses)
	return fmt.Sprintf("%s %q %t %d", strings.Join(addresses, ","), o.Sentinel.MasterName, o.Cluster, o.DB)
}

// Client sends commands to one Redis server. Commands that come while its connections are busy are sent together, in one
// write, when one is free. Many goroutines may send at once. The front of a cluster is a client that stands for the whole cluster:
// nothing is sent over it.
type Client struct {
	opts   Options
	conns  chan *pooledConn // not in use; receiving one is the permission to use it
	master *master          // the master that the sentinels name; nil: the server is at opts.Address

	breaker *breaker
	state   func() int32 // of the breaker. Yaegi finds a function in a field in half the time that a method takes
	health  *health      // shared by the nodes of a cluster
	node    bool         // the server is a node of a cluster
	cluster *Cluster     // of which it is a node or the front; else nil
	checked atomic.Bool  // check has been called
	backlog *Backlog     // set by attach; nil for the nodes of a cluster

	confirmer   *Client // side client for commands that wait for replicas; nil: none do
	bulk        *Client // side client for long commands
	main        *Client // the client that this one is a side of; nil: none
	appendsWAIT bool    // this is a side for commands that wait for replicas

	lock, unlock func()        // guard everything below
	queue        []*command    // to be sent
	spare        int           // senders that are idle or not started; at most as many as connections
	idle         int           // senders that wait for wake
	wake         chan struct{} // has room for all that are idle
	closed       bool
	rewrites     bool // commands go through rewrite before they are sent
	noEVALSHA    bool // scripts are sent with EVAL, because EVALSHA is forbidden
	samples      int  // batches that are to be measured
}

// pooledConn is a place for a connection. Only the goroutine that received it from Client.conns uses it.
type pooledConn struct {
	conn    redis.Conn    // nil while it is not connected
	net     net.Conn      // below conn
	timeout time.Duration // for a reply
	reader  *bufio.Reader
	address string // of the last connection, or the last attempt at one
	unread  bool   // replies that nobody waits for may still arrive: the connection must not be used again
}

// command is a command and its reply.
type command struct {
	wire   string // as Redis' protocol has it
	script *script
	isWAIT bool    // it is the WAIT for replicas
	sample *sample // it is the PING that ends this measurement

	// Set before it is sent again.
	asking bool // ASKING is sent before it
	resent bool // it was sent before, and may have been carried out then

	done chan struct{} // receives a value when the reply is there

	// Set before done.
	line  string // the first line of the reply
	reply []byte // a bulk string
	err   error  // an error reply, or why there is no reply

	from *Client // the client that got the error; set by send after done
}

// New returns a client; Close frees it. It connects when there is something to send, or in advance if opts want that. Clients of the
// same Redis and prefix share a backlog: each writes what others could not.
func New(opts Options, b *Backlog) *Client {
	c := build(opts, newHealth())
	if opts.Cluster {
		c.cluster = newCluster(opts, c)
	}
	attach(b, c)
	if !opts.Cluster {
		go c.warm()
	}
	return c
}

// build returns a client that is not connected to anything yet.
func build(opts Options, h *health) *Client {
	n := runtime.GOMAXPROCS(0)
	if n < minConns {
		n = minConns
	}
	for _, limit := range []int{opts.PoolSize, opts.MaxActiveConns} {
		if limit > 0 && limit < n {
			n = limit
		}
	}
	c := newClient(opts, n)
	c.breaker = &breaker{}
	c.state = c.breaker.state.Load
	c.health = h
	if opts.Sentinel.MasterName != "" {
		c.master = newMaster(opts)
	}
	c.bulk = newSide(c, bulkConns, false)
	if opts.WaitReplicas > 0 {
		c.confirmer = newSide(c, n, true)
		c.confirmer.bulk = newSide(c, bulkConns, true)
	}
	return c
}

// newClient returns a client with room for n connections.
func newClient(opts Options, n int) *Client {
	var mu sync.Locker = &sync.Mutex{}
	c := &Client{opts: opts, conns: make(chan *pooledConn, n), wake: make(chan struct{}, n), spare: n, lock: mu.Lock, unlock: mu.Unlock}
	for i := 0; i < n; i++ {
		c.conns <- &pooledConn{}
	}
	return c
}

// newSide returns a client of main's server for commands that take long, so that nothing else waits behind them. It has up to
// n connections, or uses main's if their number is limited. It shares main's breaker.
func newSide(main *Client, n int, appendsWAIT bool) *Client {
	c := newClient(main.opts, n)
	limit := main.opts.PoolSize
	if main.opts.MaxActiveConns > 0 || (limit > 0 && limit < 2*(cap(main.conns)+bulkConns)) {
		c.conns = main.conns
	}
	c.main = main
	c.appendsWAIT = appendsWAIT
	c.rewrites = appendsWAIT
	c.breaker = main.breaker
	c.state = main.state
	c.master = main.master
	return c
}

// sides returns the side clients of c, and theirs.
func sides(c *Client) []*Client {
	var all []*Client
	for _, side := range []*Client{c.bulk, c.confirmer} {
		if side != nil {
			all = append(append(all, side), sides(side)...)
		}
	}
	return all
}

// Close closes idle connections now, and busy ones when their commands are done. A closed client can still send, over a
// connection that is closed afterwards: a request may outlive the configuration that it came under.
func (c *Client) Close() {
	retire(c)
	for _, side := range sides(c) {
		retire(side)
	}
	if !c.node {
		c.health.closed.Store(true)
		c.health.onClose()
	}
	if c.master != nil {
		c.master.close()
	}
	c.closeIdle()
	if isFront(c) {
		closeNodes(c.cluster)
	}
}

// retire lets the senders of c end when there is nothing left to send.
func retire(c *Client) {
	c.lock()
	defer c.unlock()
	c.closed = true
	for ; c.idle > 0; c.idle-- {
		c.spare--
		c.wake <- struct{}{}
	}
}

// closeIdle closes the connections that are not in use.
func (c *Client) closeIdle() {
	for _, side := range sides(c) {
		side.closeIdle()
	}
	for i := len(c.conns); i > 0; i-- {
		pc := <-c.conns
		disconnect(pc)
		c.conns <- pc
	}
}

// send sends cmd and returns when its reply is there. If a connection turns out to be broken (Redis was restarted, or
// closed it for idleness), all its commands are sent once more over a new one: so send is only for commands that can be
// repeated.
func send(c *Client, cmd *command) {
	if c.state() == down {
		leaveUnsent(c, cmd)
		return
	}
	cmd.done = make(chan struct{}, 1)
	c.lock()
	c.queue = append(c.queue, cmd)
	if c.spare > 0 {
		wakeSender(c)
	}
	c.unlock()
	<-cmd.done
	if cmd.err != nil {
		cmd.from = c
	}
}

// leaveUnsent gives cmd the error for a command while the server is down.
func leaveUnsent(c *Client, cmd *command) {
	cmd.err = notSent(c)
	cmd.from = c
}

// wakeSender wakes an idle sender, or starts one, to send what is in the queue. The caller holds the lock.
func wakeSender(c *Client) {
	c.spare--
	if c.idle > 0 {
		c.idle--
		c.wake <- struct{}{}
		return
	}
	go startSender(&sender{client: c})
}

// startSender is sendAll. Under Yaegi, a goroutine keeps the variables of the function that started it alive, and those of its
// callers: a sender would keep the request that came first, for as long as the client lives. What is started by a variable keeps
// only those of the function that has set it.
var startSender func(s *sender)

func init() { startSender = sendAll }

// sender is the state of a goroutine of sendAll that endSender needs after a panic.
type sender struct {
	client   *Client
	pc       *pooledConn
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
	full := false
	for {
		runtime.Gosched() // commands of goroutines that are about to send go along
		c.lock()
		commands := c.queue
		c.queue = nil
		rewrites := c.rewrites
		if len(commands) == 0 {
			if c.closed {
				c.spare++
				c.unlock()
				c.closeIdle()
				return
			}
			if full { // under Yaegi, the variables of this function would keep the last commands in memory
				c.spare++
				c.unlock()
				return
			}
			c.idle++
			c.spare++
			c.unlock()
			<-c.wake
			continue
		}
		c.unlock()
		s.commands = commands
		all := commands
		if rewrites {
			all = rewrite(c, commands)
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
		if long || len(out) > maxBuffered {
			full = full || totalSize(commands) > maxKept
			out = nil
			commands = splitBatch(c, commands)
			if len(commands) == 0 {
				s.commands = nil
				continue
			}
			s.commands = commands
			all = commands
			if rewrites {
				all = rewrite(c, commands)
			}
			long = true
		}
		pc := <-c.conns
		s.pc = pc
		err = nil
		if c.state() == down { // since these commands were queued
			fail(commands, notSent(c))
			all = nil
		}
		reused := pc.conn != nil
		for attempt := 0; attempt < 2 && len(all) > 0; attempt++ {
			err = nil
			if pc.conn == nil {
				err = connect(c, pc)
			}
			if err == nil {
				pc.unread = true
				now := time.Now()
				_ = pc.net.SetDeadline(now.Add(c.opts.ReadTimeout))
				if c.opts.WriteTimeout != c.opts.ReadTimeout {
					_ = pc.net.SetWriteDeadline(now.Add(c.opts.WriteTimeout))
				}
				if long {
					err = writeLong(pc.net, all, now.Add(c.opts.WriteTimeout), now.Add(c.opts.ReadTimeout))
				} else {
					_, err = pc.net.Write(out)
				}
				for _, cmd := range all {
					if err == nil {
						line, broken := pc.reader.ReadString('\n')
						err = broken
						cmd.line = line
						cmd.err = nil // of a first attempt
						if line != nilLine && line != oneLine && err == nil {
							err = receiveRest(pc, cmd)
						}
					}
				}
				pc.unread = err != nil
			}
			if err == nil || !retryOnNewConn(c, pc, reused, err) {
				break
			}
			disconnect(pc)
			for _, cmd := range commands {
				cmd.resent = true
			}
		}
		if err != nil {
			failUnanswered(c, pc, commands, err)
		} else if c.appendsWAIT && len(all) > 0 {
			failUnconfirmed(c, all)
		}
		if pc.unread {
			disconnect(pc)
		}
		s.pc = nil
		c.conns <- pc
		s.commands = nil
		for _, cmd := range commands {
			cmd.done <- struct{}{}
		}
	}
}

// rewrite returns what is sent for commands: with EVAL where EVALSHA is forbidden, with ASKING before those that need it, with a
// PING at the end if the batch is to be measured, and with one WAIT at the end if c waits for replicas. One is enough: it covers
// all writes before it.
func rewrite(c *Client, commands []*command) []*command {
	all := make([]*command, 0, len(commands)+1)
	c.lock()
	useEVAL := c.noEVALSHA
	sampling := c.samples > 0
	c.unlock()
	for _, cmd := range commands {
		if useEVAL {
			cmd.wire = withEVAL(cmd.wire)
		}
		if cmd.asking {
			all = append(all, &command{wire: asking})
		}
		all = append(all, cmd)
	}
	if sampling {
		sample := takeSample(c, all)
		if sample != nil {
			all = append(all, sample)
		}
	}
	if c.appendsWAIT {
		timeout := strconv.FormatInt((c.opts.ReadTimeout/2+transferTime(totalSize(commands))).Milliseconds()+1, 10)
		all = append(all, &command{wire: "*3\r\n" + bulk("WAIT") + bulk(strconv.Itoa(c.opts.WaitReplicas)) + bulk(timeout), isWAIT: true})
	}
	return all
}

// Commands of more than longBytes go through Client.bulk, one after the other, so that nothing small waits behind them. The
// others are sent together, up to maxBuffered bytes, which is also the size of the buffer that a sender keeps. A sender that had
// more than maxKept bytes of commands at once does not wait for more.
const (
	longBytes   = 32 << 10
	maxBuffered = 64 << 10
	maxKept     = 256 << 10
	bulkConns   = 2 // connections for long commands
)

// splitBatch returns the part of commands, which are long or many, that c sends now. It gives long ones to c.bulk, and puts
// the rest back into the queue.
func splitBatch(c *Client, commands []*command) []*command {
	var first, long []*command
	size := 0
	n := 0
	for ; n < len(commands); n++ {
		cmd := commands[n]
		if c.bulk != nil && len(cmd.wire) > longBytes {
			long = append(long, cmd)
		} else {
			size += len(cmd.wire)
			if len(first) > 0 && size > maxBuffered {
				break
			}
			first = append(first, cmd)
		}
	}
	if n < len(commands) {
		putBack(c, commands[n:])
	}
	if len(long) > 0 {
		enqueue(c.bulk, long)
	}
	return first
}

// putBack puts commands, which were in c's queue, at its front. It copies them, so that those before them are not kept in memory.
func putBack(c *Client, commands []*command) {
	c.lock()
	defer c.unlock()
	rest := append([]*command{}, commands...)
	c.queue = append(rest, c.queue...)
	if c.spare > 0 {
		wakeSender(c)
	}
}

// enqueue puts commands at the end of c's queue: they are younger than what is in it, unless another sender was faster.
func enqueue(c *Client, commands []*command) {
	c.lock()
	defer c.unlock()
	c.queue = append(c.queue, commands...)
	if c.spare > 0 {
		wakeSender(c)
	}
}

// totalSize is how many bytes commands have.
func totalSize(commands []*command) int {
	size := 0
	for _, cmd := range commands {
		size += len(cmd.wire)
	}
	return size
}

// minBytesPerSecond is the lowest speed that a connection to Redis must have. Long commands and replies get more time by it.
const minBytesPerSecond = 1 << 20

// transferTime is how long n bytes may take.
func transferTime(n int) time.Duration {
	return time.Duration(n) * time.Second / minBytesPerSecond
}

// writeLong writes commands that are long or many, piece by piece, because no buffer has room for all of them. The deadlines
// for writing and for the replies are those given plus the time for the transfer.
func writeLong(conn net.Conn, commands []*command, writeBy, replyBy time.Time) error {
	transfer := transferTime(totalSize(commands))
	_ = conn.SetWriteDeadline(writeBy.Add(transfer))
	_ = conn.SetReadDeadline(replyBy.Add(transfer))
	pieces := bufio.NewWriterSize(conn, maxBuffered)
	for _, cmd := range commands {
		_, _ = pieces.WriteString(cmd.wire) // Flush returns its error
	}
	return pieces.Flush()
}

// ErrTooLarge is the error for a command that is too long, while Redis takes others: it is longer than proto-max-bulk-len, or
// than can be transferred in time.
var ErrTooLarge = errors.New("it is too large for Redis, or for the way there")

// failUnanswered gives an error to commands that had no reply over pc. A long command may be too long; any other failure trips
// the breaker. The server is probed over pc itself: no other may ever be free while this one is held.
func failUnanswered(c *Client, pc *pooledConn, commands []*command, err error) {
	if c.main != nil && c.bulk == nil && c.state() != down {
		disconnect(pc)
		state, _ := probeOver(c.main, pc)
		if state != down {
			fail(commands, fmt.Errorf("%w: %w", ErrTooLarge, err))
			return
		}
	}
	trip(c, down, err)
	fail(commands, fmt.Errorf("%w: %w", errUnreachable, err))
}

// endSender ends a panic of a sender: its commands fail, and another sender takes its place.
func endSender(s *sender) {
	p := recover()
	if p == nil {
		return
	}
	log.Printf("level=error msg=\"sending to Redis failed\" cause=%q", p)
	if s.pc != nil {
		disconnect(s.pc)
		s.client.conns <- s.pc
	}
	fail(s.commands, errUnreachable)
	for _, cmd := range s.commands {
		cmd.done <- struct{}{}
	}
	go startSender(&sender{client: s.client})
}

// retryOnNewConn reports whether commands that failed on pc with err should be sent again over a new connection: because
// the old one was dead, or because another server is the master now.
func retryOnNewConn(c *Client, pc *pooledConn, reused bool, err error) bool {
	if c.master != nil && c.master.movedFrom(pc.address) {
		return true
	}
	return reused && !errors.Is(err, os.ErrDeadlineExceeded)
}

// putConn makes pc free for others. It closes the connection if the client is closed, or if replies to other commands may still
// arrive on it.
func putConn(c *Client, pc *pooledConn) {
	c.lock()
	closed := c.closed
	c.unlock()
	if closed || pc.unread {
		disconnect(pc)
	}
	c.conns <- pc
}

func fail(commands []*command, err error) {
	for _, cmd := range commands {
		cmd.err = err
	}
}

func disconnect(pc *pooledConn) {
	if pc.conn != nil {
		_ = pc.conn.Close()
		pc.conn = nil
	}
	pc.unread = false
}

// receiveRest reads what follows the first line of a reply, if anything does. The scripts return only bulk strings, integers
// and errors.
func receiveRest(pc *pooledConn, cmd *command) error {
	if cmd.line[0] == '$' {
		return receiveBulk(pc, cmd)
	}
	return receiveLine(cmd)
}

// receiveLine reads a reply of one line: an integer, an error, or what ASKING and PING get.
func receiveLine(cmd *command) error {
	line := cmd.line
	if len(line) < 4 || line[len(line)-2] != '\r' {
		return errProtocol
	}
	if cmd.wire == asking && line == "+OK\r\n" {
		return nil
	}
	if cmd.sample != nil {
		cmd.sample.end()
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
func receiveBulk(pc *pooledConn, cmd *command) error {
	line := cmd.line
	n, err := strconv.Atoi(strings.TrimSuffix(line[1:], "\r\n"))
	switch {
	case err != nil:
	case n < 0:
	case n > maxReply:
	case n > shortReply:
		return receiveLong(pc, cmd, n)
	default:
		reply := make([]byte, n+2)
		_, err = io.ReadFull(pc.reader, reply)
		switch {
		case err != nil:
			return err
		case string(reply[n:]) != "\r\n":
			return errProtocol
		}
		cmd.reply = reply[:n]
		return nil
	}
	return errProtocol
}

// receiveLong is receiveBulk for a string that takes time, and that may be longer than there is memory for.
func receiveLong(pc *pooledConn, cmd *command, n int) error {
	_ = pc.net.SetReadDeadline(time.Now().Add(pc.timeout + transferTime(n)))
	var b bytes.Buffer
	if n <= maxPreallocated {
		b.Grow(n + 2 + bytes.MinRead)
	}
	_, err := io.CopyN(&b, pc.reader, int64(n)+2)
	if err != nil {
		return err
	}
	if !bytes.HasSuffix(b.Bytes(), []byte("\r\n")) {
		return errProtocol
	}
	cmd.reply = b.Bytes()[:n]
	return nil
}
