// Package redisclient is everything that talks to Redis: connections, commands, and the store of keys on top of them.
package redisclient

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/gomodule/redigo/redis"
)

// ErrPoolExhausted is the error for a command that found all of Options.MaxActiveConns connections busy for the
// length of Options.ReadTimeout.
var ErrPoolExhausted = errors.New("all connections to Redis are busy")

var errClosed = errors.New("the Redis client is closed")

// Options say which Redis, and how to speak to it. Two clients with equal options are interchangeable.
type Options struct {
	Address      string // host:port
	Username     string // empty: the default user
	Password     string // empty: no login, unless PasswordFile is set
	PasswordFile string // read at every connect, so that a changed secret needs no restart
	DB           int

	DialTimeout, ReadTimeout, WriteTimeout time.Duration

	PoolSize       int // idle connections kept at the most; 0 = 10 per CPU
	MinIdleConns   int // connections opened in advance
	MaxActiveConns int // connections at the most; 0 = no bound
}

// Client sends commands to one Redis server over a pool of connections. All methods may be called by many goroutines
// at once.
type Client struct {
	opts Options

	mu     sync.Mutex // guards everything below
	idle   []redis.Conn
	active int     // connections open, idle ones included
	queue  []*turn // those who wait for a connection, first come first
	closed bool
}

// turn is a place in the queue for a connection. (A slice of channels cannot be ranged over under Yaegi.)
type turn struct {
	come chan struct{} // closed when it is this one's turn
}

// New returns a client. It connects when there is something to send, not before; Close frees it.
func New(opts Options) *Client {
	if opts.PoolSize == 0 {
		opts.PoolSize = 10 * runtime.GOMAXPROCS(0)
	}
	c := &Client{opts: opts}
	if opts.MinIdleConns > 0 {
		go c.warm()
	}
	return c
}

// Close closes idle connections now, and busy ones when their command is done.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, conn := range c.idle {
		_ = conn.Close()
	}
	c.active -= len(c.idle)
	c.idle = nil
	for _, t := range c.queue {
		close(t.come)
	}
	c.queue = nil
}

// Do sends one command and returns Redis' reply; an error reply is returned as an error. If a connection from the
// pool turns out to be broken (Redis was restarted, or closed it for idleness) the command is sent once more over a
// new one: so it may only be used for commands that can be repeated.
func (c *Client) Do(cmd string, args ...interface{}) (interface{}, error) {
	conn, reused, err := c.get()
	if err != nil {
		return nil, fmt.Errorf("redis %s: %w", c.opts.Address, err)
	}
	reply, err := conn.Do(cmd, args...)
	if reused && conn.Err() != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		_ = conn.Close()
		conn, err = c.dial()
		if err != nil {
			c.put(nil)
			return nil, fmt.Errorf("redis %s: %w", c.opts.Address, err)
		}
		reply, err = conn.Do(cmd, args...)
	}
	c.put(conn)
	if err != nil {
		return nil, fmt.Errorf("redis %s: %s: %w", c.opts.Address, cmd, err)
	}
	return reply, nil
}

// script is a Lua script that Redis knows by its digest once it has run.
type script struct {
	source, sha1 string
}

// run executes s over one key by its digest, which is one round trip, and by its source when Redis has forgotten it.
func (c *Client) run(s *script, key string, args ...interface{}) (interface{}, error) {
	all := append([]interface{}{s.sha1, 1, key}, args...)
	reply, err := c.Do("EVALSHA", all...)
	if err != nil && strings.Contains(err.Error(), ": NOSCRIPT ") {
		all[0] = s.source
		reply, err = c.Do("EVAL", all...)
	}
	return reply, err
}

// get returns a connection, and whether it has been used before. Whoever gets one gives it back with put.
func (c *Client) get() (redis.Conn, bool, error) {
	deadline := time.Now().Add(c.opts.ReadTimeout)
	c.mu.Lock()
	for {
		if c.closed {
			c.mu.Unlock()
			return nil, false, errClosed
		}
		last := len(c.idle) - 1
		if last >= 0 {
			conn := c.idle[last]
			c.idle[last] = nil
			c.idle = c.idle[:last]
			c.mu.Unlock()
			return conn, true, nil
		}
		if c.opts.MaxActiveConns == 0 || c.active < c.opts.MaxActiveConns {
			c.active++
			c.mu.Unlock()
			conn, err := c.dial()
			if err != nil {
				c.put(nil)
			}
			return conn, false, err
		}
		t := &turn{come: make(chan struct{})}
		c.queue = append(c.queue, t)
		c.mu.Unlock()
		inTime := t.await(time.Until(deadline))
		c.mu.Lock()
		if !inTime && !c.leave(t) {
			inTime = true // the turn came at the last moment
		}
		if !inTime {
			c.mu.Unlock()
			return nil, false, ErrPoolExhausted
		}
	}
}

// put gives a connection back; nil, or one that is broken, makes room for another.
func (c *Client) put(conn redis.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case conn == nil:
		c.active--
	case c.closed || conn.Err() != nil || len(c.idle) >= c.opts.PoolSize:
		_ = conn.Close()
		c.active--
	default:
		c.idle = append(c.idle, conn)
	}
	if len(c.queue) > 0 {
		close(c.queue[0].come)
		c.queue = c.queue[1:]
	}
}

// leave takes t out of the queue; false if it is not there any more, because its turn has come.
func (c *Client) leave(t *turn) bool {
	for i, other := range c.queue {
		if other == t {
			c.queue = append(c.queue[:i], c.queue[i+1:]...)
			return true
		}
	}
	return false
}

// await waits for the turn to come, at most d. (A select statement would share its cases under Yaegi.)
func (t *turn) await(d time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	chosen, _, _ := reflect.Select([]reflect.SelectCase{
		{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(t.come)},
		{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(ctx.Done())},
	})
	return chosen == 0
}

// dial connects and logs in. redigo's own Dial is not used, since it logs in through a select statement.
func (c *Client) dial() (redis.Conn, error) {
	dialer := &net.Dialer{Timeout: c.opts.DialTimeout}
	netConn, err := dialer.DialContext(context.Background(), "tcp", c.opts.Address)
	if err != nil {
		return nil, err
	}
	conn := redis.NewConn(netConn, c.opts.ReadTimeout, c.opts.WriteTimeout)
	err = c.login(conn)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
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

// warm opens connections in advance. Failures are left to the first command, which reports them.
func (c *Client) warm() {
	defer func() {
		if p := recover(); p != nil {
			log.Printf("level=error msg=\"opening connections to Redis failed\" cause=%q", p)
		}
	}()
	for {
		c.mu.Lock()
		enough := c.closed || c.active >= c.opts.MinIdleConns
		if !enough {
			c.active++
		}
		c.mu.Unlock()
		if enough {
			return
		}
		conn, err := c.dial()
		c.put(conn)
		if err != nil {
			return
		}
	}
}
