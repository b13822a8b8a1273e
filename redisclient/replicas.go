package redisclient

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrReplicas is the error for a step that the master has taken and fewer replicas than Options.WaitReplicas have by then.
var ErrReplicas = errors.New("too few replicas have it")

// sendAndWait carries out commands as send does, one right after the other, and has the error ErrReplicas for the last one
// if it has written something and not enough replicas have that within half of the time for a reply. It does not wait if
// Options.WaitReplicas is 0.
func sendAndWait(c *Client, commands ...*command) {
	last := commands[len(commands)-1]
	if c.state() == down {
		last.err = notSent(c)
		return
	}
	c.mu.Lock()
	b := c.pending
	first := b == nil
	if first {
		b = &batch{done: make(chan struct{})}
		c.pending = b
	}
	for _, cmd := range commands {
		b.commands = append(b.commands, cmd)
		b.out = append(b.out, cmd.wire...)
	}
	if c.opts.WaitReplicas > 0 && b.wait == nil { // one for all of them: each would wait for itself in turn
		timeout := strconv.FormatInt(c.opts.ReadTimeout.Milliseconds()/2+1, 10)
		b.wait = &command{wire: "*3\r\n" + bulk("WAIT") + bulk(strconv.Itoa(c.opts.WaitReplicas)) + bulk(timeout)}
	}
	c.mu.Unlock()
	if first {
		lead(c, b)
	} else {
		<-b.done
	}
	if b.wait != nil {
		judge(c, b.wait, last)
	}
	if last.err != nil {
		last.from = c
	}
}

// judge gives cmd an error if it has written something, which is to say that it is a claim that was granted or a record
// that was kept, and WAIT did not find it at enough replicas.
func judge(c *Client, wait, cmd *command) {
	wrote := cmd.err == nil && (cmd.line == nilLine || cmd.line == oneLine)
	if !wrote {
		return
	}
	if wait.err != nil {
		cmd.err = wait.err
		return
	}
	replicas, err := strconv.Atoi(strings.Trim(wait.line, ":\r\n"))
	if err != nil || replicas < c.opts.WaitReplicas {
		cmd.err = fmt.Errorf("%w: %d of %d", ErrReplicas, replicas, c.opts.WaitReplicas)
	}
}
