// Package redigoprobe uses redigo the way the plugin does. It is run compiled, over redigo as published, and
// interpreted, over the patched copy: both must see the same replies.
package redigoprobe

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"
)

const (
	notInteger = "error ERR value is not an integer or out of range"
	noScript   = "error NOSCRIPT No matching script. Please use EVAL."
	timeout    = 10 * time.Second
)

type probe struct {
	conn     redis.Conn
	key      string
	problems []string
}

// Run talks to the Redis server at addr over one connection, about keys that begin with name, and returns what was
// not as it must be.
func Run(addr, name string) []string {
	netConn, err := net.Dial("tcp", addr)
	if err != nil {
		return []string{err.Error()}
	}
	p := &probe{conn: redis.NewConn(netConn, timeout, timeout), key: name}
	p.replies()
	p.errorsKeepTheirText()
	p.transaction()
	p.pipeline()
	p.timeouts()
	p.garbage()
	return p.problems
}

// replies asks for each kind of reply.
func (p *probe) replies() {
	p.do("status OK", "SET", p.key, "v")
	p.do("status PONG", "PING")
	p.do("status string", "TYPE", p.key)
	p.do("bulk v", "GET", p.key)
	p.do("nil", "GET", p.key+":none")
	p.do("integer 1", "INCR", p.key+":n")
	p.do("integer -2", "DECRBY", p.key+":n", 3)
	p.do(notInteger, "INCR", p.key)
	p.do(noScript, "EVALSHA", strings.Repeat("a", 40), 1, p.key)
	p.do("array [bulk v, nil]", "MGET", p.key, p.key+":none")
	p.do("array []", "LRANGE", p.key+":none", 0, -1)
	p.do("array [integer 1, status FINE, error BAD outer, array [error BAD inner, bulk b]]", "EVAL",
		"return {1, redis.status_reply('FINE'), redis.error_reply('BAD outer'), {redis.error_reply('BAD inner'), 'b'}}", 0)

	large := []byte(strings.Repeat("\x00\r\n-ERR +OK", 10_000)) // larger than any buffer on the way
	p.do("status OK", "SET", p.key+":large", large)
	p.do("bulk "+string(large), "GET", p.key+":large")

	// What looks like another kind of reply is still a bulk reply.
	p.do("status OK", "SET", p.key, "-ERR no")
	p.do("bulk -ERR no", "GET", p.key)
	p.usable("error replies")
}

// errorsKeepTheirText looks at an error again after others have come over the same connection.
func (p *probe) errorsKeepTheirText() {
	_, first := p.conn.Do("EVALSHA", strings.Repeat("a", 40), 0)
	_, second := p.conn.Do("INCR", p.key)
	p.do("status OK", "SET", p.key, "v")
	p.want("the first error", noScript, nil, first)
	p.want("the second error", notInteger, nil, second)
	if first == nil || !strings.HasPrefix(first.Error(), "NOSCRIPT ") {
		p.problems = append(p.problems, "an error cannot be told by its prefix")
	}
}

func (p *probe) transaction() {
	p.do("status OK", "MULTI")
	p.do("status QUEUED", "INCR", p.key)
	p.do("status QUEUED", "SET", p.key, "w")
	p.do("status QUEUED", "GET", p.key+":none")
	p.do("array ["+notInteger+", status OK, nil]", "EXEC")
}

func (p *probe) pipeline() {
	p.send("SET", p.key, "v")
	p.send("INCR", p.key)
	p.send("GET", p.key)
	p.send("GET", p.key+":none")
	p.send("EXISTS", p.key)
	if err := p.conn.Flush(); err != nil {
		p.problems = append(p.problems, "Flush: "+err.Error())
	}
	p.receive("status OK")
	p.receive(notInteger)
	p.receive("bulk v")
	p.receive("nil")
	reply, err := redis.ReceiveWithTimeout(p.conn, timeout)
	p.want("ReceiveWithTimeout", "integer 1", reply, err)

	// Do returns the first error among the replies to what was sent before it, and its own reply.
	p.send("GET", p.key+":none")
	p.send("INCR", p.key)
	p.send("EVALSHA", strings.Repeat("a", 40), 0)
	reply, err = p.conn.Do("GET", p.key)
	p.want("Do after a sent error", notInteger, nil, err)
	p.want("Do after a sent error", "bulk v", reply, nil)
	p.send("GET", p.key+":none")
	p.do("bulk v", "GET", p.key)

	p.send("PING")
	p.send("INCR", p.key)
	p.do("array [status PONG, "+notInteger+"]", "")
	p.usable("a pipeline")
}

// timeouts leaves the connection broken, and then closed.
func (p *probe) timeouts() {
	_, err := redis.DoWithTimeout(p.conn, 20*time.Millisecond, "BLPOP", p.key+":none", 0)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		p.problems = append(p.problems, fmt.Sprintf("DoWithTimeout: %v, not a time-out", err))
	}
	if p.conn.Err() == nil {
		p.problems = append(p.problems, "a connection that timed out has no Err")
	}
	_ = p.conn.Close()
	if _, err := p.conn.Do("PING"); err == nil || p.conn.Err() == nil {
		p.problems = append(p.problems, "a closed connection has no error")
	}
}

// garbage is an answer that is not Redis': an error that breaks the connection, unlike those that Redis sends.
func (p *probe) garbage() {
	near, far := net.Pipe()
	go answer(far, "?\r\n")
	conn := redis.NewConn(near, timeout, timeout)
	_, err := conn.Do("PING")
	if err == nil || !strings.Contains(err.Error(), "unexpected response line") || conn.Err() == nil {
		p.problems = append(p.problems, fmt.Sprintf("garbage: error %v, Err %v", err, conn.Err()))
	}
	_ = far.Close()
}

func answer(conn net.Conn, reply string) {
	command := make([]byte, 100)
	_, _ = conn.Read(command)
	_, _ = conn.Write([]byte(reply))
}

func (p *probe) do(want, command string, args ...interface{}) {
	reply, err := p.conn.Do(command, args...)
	if strings.HasPrefix(want, "error ") {
		reply = nil // Do returns the error twice
	}
	p.want("Do "+command, want, reply, err)
}

func (p *probe) send(command string, args ...interface{}) {
	if err := p.conn.Send(command, args...); err != nil {
		p.problems = append(p.problems, "Send: "+err.Error())
	}
}

func (p *probe) receive(want string) {
	reply, err := p.conn.Receive()
	p.want("Receive", want, reply, err)
}

func (p *probe) want(what, want string, reply interface{}, err error) {
	got := show(reply)
	if err != nil {
		got = "error " + err.Error()
		if reply != nil {
			got += " with " + show(reply)
		}
	}
	if got != want {
		p.problems = append(p.problems, fmt.Sprintf("%s: %s: got %.200s, want %.200s", p.key, what, got, want))
	}
}

func (p *probe) usable(after string) {
	if err := p.conn.Err(); err != nil {
		p.problems = append(p.problems, "the connection is broken after "+after+": "+err.Error())
	}
}

// show tells the kind of a reply and its value. It looks for errors as the plugin has to: with a type assertion, as
// `case error` of a type switch finds none under Yaegi, and not on nil, where the assertion panics.
func show(reply interface{}) string {
	if reply == nil {
		return "nil"
	}
	if err, ok := reply.(error); ok {
		return "error " + err.Error()
	}
	switch r := reply.(type) {
	case string:
		return "status " + r
	case []byte:
		return "bulk " + string(r)
	case int64:
		return "integer " + strconv.FormatInt(r, 10)
	case []interface{}:
		elements := make([]string, len(r))
		for i, element := range r {
			elements[i] = show(element)
		}
		return "array [" + strings.Join(elements, ", ") + "]"
	}
	return fmt.Sprintf("something else: %T", reply)
}
