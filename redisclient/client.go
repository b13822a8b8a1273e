// Package redisclient is everything that talks to Redis: connections, commands, and the store of keys on top of them.
package redisclient

import (
	"bufio"
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gomodule/redigo/redis"
)

var errProtocol = errors.New("the reply is not one that Redis gives")

// noNumber is the number of a reply that is no integer. No script returns it.
const noNumber = -1

// maxReply is the longest reply that is taken, in bytes: Redis' own bound on a string.
const maxReply = 512 << 20

// leastConns is how many connections a client opens at the most on a machine with fewer CPUs; else it is one per CPU.
// Commands of concurrent requests share connections and their flushes: every further one would only make those smaller.
const leastConns = 2

// Options say which Redis, and how to speak to it. Two clients with equal options are interchangeable.
type Options struct {
	Address      string // host:port
	Username     string // empty: the default user
	Password     string // empty: no login, unless PasswordFile is set
	PasswordFile string // read at every connect, so that a changed secret needs no restart
	DB           int

	DialTimeout, ReadTimeout, WriteTimeout time.Duration

	PoolSize       int // connections at the most, if that is less than one per CPU, or two; 0 = so many
	MinIdleConns   int // connections opened in advance
	MaxActiveConns int // connections at the most; 0 = PoolSize alone counts
}

// Client sends commands to one Redis server. Commands that come while a connection is busy are sent together, in one
// write, when it is free. Many goroutines may send at once.
type Client struct {
	opts  Options
	lanes chan *lane // those that nobody uses now; receiving one is the permission to use it

	breaker breaker
	backlog backlog

	mu      sync.Mutex // guards everything below
	pending *batch     // what the next free lane takes; nil if nobody waits for one
	closed  bool
}

// lane is a place for a connection. Whoever took it out of Client.lanes has it alone.
type lane struct {
	conn   redis.Conn // nil while it is not connected
	net    net.Conn   // below conn
	reader *bufio.Reader
	unread bool // replies may be on their way that nobody waits for any more: the connection is of no more use
}

// batch is what goes over a lane in one write. The goroutine that began it sends it, the others wait for it.
type batch struct {
	commands []*command
	done     chan struct{} // closed when every command has its reply
}

// command is a command and its reply.
type command struct {
	head, tail string // as Redis' protocol has it
	body       []byte // between head and tail, if there is anything that should not be copied

	reply  []byte // a bulk string; nil for a nil
	number int64  // an integer; noNumber if the reply is none
	err    error  // an error reply, or why there is no reply
}

// New returns a client. It connects when there is something to send, not before; Close frees it.
func New(opts Options) *Client {
	n := runtime.GOMAXPROCS(0)
	if n < leastConns {
		n = leastConns
	}
	for _, limit := range []int{opts.PoolSize, opts.MaxActiveConns} {
		if limit > 0 && limit < n {
			n = limit
		}
	}
	c := &Client{opts: opts, lanes: make(chan *lane, n)}
	c.backlog.debts = list.New()
	for i := 0; i < n; i++ {
		c.lanes <- &lane{}
	}
	if opts.MinIdleConns > 0 {
		go c.warm(n)
	}
	return c
}

// Close closes idle connections now, and busy ones when their commands are done. Who still has something to send can do
// so, over a connection that lasts no longer: a request may outlive the configuration that it came under.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	for i := len(c.lanes); i > 0; i-- {
		l := <-c.lanes
		giveBack(c, l)
	}
}

// send carries out cmd and returns when it has its reply. If a connection turns out to be broken (Redis was restarted, or
// closed it for idleness) all its commands are sent once more over a new one: so it may only be used for commands
// that can be repeated.
func send(c *Client, cmd *command) {
	c.mu.Lock()
	b := c.pending
	first := b == nil
	if first {
		b = &batch{done: make(chan struct{})}
		c.pending = b
	}
	b.commands = append(b.commands, cmd)
	c.mu.Unlock()
	if first {
		lead(c, b)
	} else {
		<-b.done
	}
}

// lead waits for a lane, closes the batch and carries it out.
func lead(c *Client, b *batch) {
	l := <-c.lanes
	defer finishBatch(c, l, b)
	c.mu.Lock()
	c.pending = nil
	c.mu.Unlock()
	if c.breaker.state.Load() == down { // it was found so while this batch waited for a lane
		fail(b, notSent(c))
		return
	}
	reused := l.conn != nil
	err := exchange(c, l, b)
	if err != nil && reused && !errors.Is(err, os.ErrDeadlineExceeded) {
		disconnect(l)
		err = exchange(c, l, b)
	}
	if err != nil {
		trip(c, down, err)
		fail(b, fmt.Errorf("%w: %w", errNoReply, err))
	}
}

// finishBatch wakes those who wait for b, whatever became of it.
func finishBatch(c *Client, l *lane, b *batch) {
	giveBack(c, l)
	close(b.done)
}

// giveBack lets others have the lane, without a connection on which they could get somebody else's replies.
func giveBack(c *Client, l *lane) {
	c.mu.Lock()
	closed := c.closed
	c.mu.Unlock()
	if closed || l.unread {
		disconnect(l)
	}
	c.lanes <- l
}

func fail(b *batch, err error) {
	for _, cmd := range b.commands {
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

// exchange writes the whole batch and reads its replies. It is written with a few calls of the standard library, since
// redigo, which does this byte by byte, takes many times as long under Yaegi.
func exchange(c *Client, l *lane, b *batch) error {
	if l.conn == nil {
		err := dial(c, l)
		if err != nil {
			return err
		}
	}
	requests := make(net.Buffers, 0, len(b.commands))
	for _, cmd := range b.commands {
		requests = append(requests, []byte(cmd.head))
		if cmd.tail != "" {
			requests = append(requests, cmd.body, []byte(cmd.tail))
		}
	}
	l.unread = true
	_ = l.net.SetWriteDeadline(time.Now().Add(c.opts.WriteTimeout))
	_, err := requests.WriteTo(l.net)
	_ = l.net.SetReadDeadline(time.Now().Add(c.opts.ReadTimeout))
	for _, cmd := range b.commands {
		if err == nil {
			err = receive(l.reader, cmd)
		}
	}
	l.unread = err != nil
	return err
}

// receive reads one reply: nil, a bulk string, an integer or an error, which is all that the scripts return.
func receive(r *bufio.Reader, cmd *command) error {
	line, err := r.ReadString('\n')
	cmd.reply = nil
	cmd.number = noNumber
	cmd.err = nil
	switch {
	case err != nil:
		return err
	case line == "$-1\r\n":
		return nil
	case line == ":1\r\n":
		cmd.number = 1
		return nil
	}
	return receiveLong(r, cmd, line)
}

// receiveLong reads what receive does not see at a glance.
func receiveLong(r *bufio.Reader, cmd *command, line string) error {
	if len(line) < 4 || line[len(line)-2] != '\r' {
		return errProtocol
	}
	value := line[1 : len(line)-2]
	if line[0] == '-' {
		cmd.err = errors.New(value)
		return nil
	}
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return errProtocol
	}
	if line[0] == ':' {
		cmd.number = n
		return nil
	}
	if line[0] != '$' || n < 0 || n > maxReply {
		return errProtocol
	}
	cmd.reply = make([]byte, n+2)
	_, err = io.ReadFull(r, cmd.reply)
	if err == nil && string(cmd.reply[n:]) != "\r\n" {
		err = errProtocol
	}
	cmd.reply = cmd.reply[:n]
	return err
}

// dial connects l and logs in. redigo's own Dial is not used, since it logs in through a select statement.
func dial(c *Client, l *lane) error {
	dialer := &net.Dialer{Timeout: c.opts.DialTimeout}
	netConn, err := dialer.DialContext(context.Background(), "tcp", c.opts.Address)
	if err != nil {
		return err
	}
	conn := redis.NewConn(netConn, c.opts.ReadTimeout, c.opts.WriteTimeout)
	err = c.login(conn)
	if err != nil {
		_ = conn.Close()
		return err
	}
	l.conn = conn
	l.net = netConn
	l.reader = bufio.NewReader(netConn)
	return nil
}

func (c *Client) login(conn redis.Conn) error {
	password := c.opts.Password
	if c.opts.PasswordFile != "" {
		data, err := os.ReadFile(c.opts.PasswordFile)
		if err != nil {
			return err
		}
		password = strings.TrimRight(string(data), "\r\n")
	}
	if password != "" {
		args := []interface{}{password}
		if c.opts.Username != "" {
			args = []interface{}{c.opts.Username, password}
		}
		_, err := conn.Do("AUTH", args...)
		if err != nil {
			return fmt.Errorf("AUTH: %w", err)
		}
	}
	if c.opts.DB != 0 {
		_, err := conn.Do("SELECT", c.opts.DB)
		if err != nil {
			return fmt.Errorf("SELECT %d: %w", c.opts.DB, err)
		}
	}
	return nil
}

// warm opens connections in advance, n at the most. A failure is left to the first command, which reports it.
func (c *Client) warm(n int) {
	defer func() {
		if p := recover(); p != nil {
			log.Printf("level=error msg=\"opening connections to Redis failed\" cause=%q", p)
		}
	}()
	for i := 0; i < n && i < c.opts.MinIdleConns; i++ {
		c.warmOne()
	}
}

// warmOne connects the next free lane.
func (c *Client) warmOne() {
	l := <-c.lanes
	defer giveBack(c, l)
	if l.conn == nil {
		_ = dial(c, l)
	}
}
