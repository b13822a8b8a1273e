package redisclient

import (
	"errors"
	"fmt"
	"strconv"
)

// ErrReplicas is the error for a step that the master has taken and fewer replicas than Options.WaitReplicas have by then.
var ErrReplicas = errors.New("too few replicas have it")

// sendAndWait carries out commands as send does, one right after the other, and has the error ErrReplicas for the last one
// if it has written something and not enough replicas have that within half of the time for a reply. It does not wait if
// Options.WaitReplicas is 0.
func sendAndWait(c *Client, commands ...*command) {
	c.mu.Lock()
	b := c.pending
	first := b == nil
	if first {
		b = &batch{done: make(chan struct{})}
		c.pending = b
	}
	b.commands = append(b.commands, commands...)
	if c.opts.WaitReplicas > 0 {
		waitLast(c, b)
	}
	c.mu.Unlock()
	if first {
		lead(c, b)
	} else {
		<-b.done
	}
	if b.wait != nil {
		judge(c, b.wait, commands[len(commands)-1])
	}
}

// waitLast puts one WAIT behind all commands of b. It is for all of them: each would wait for itself in turn.
func waitLast(c *Client, b *batch) {
	if b.wait == nil {
		timeout := strconv.FormatInt(c.opts.ReadTimeout.Milliseconds()/2+1, 10)
		b.wait = &command{head: "*3\r\n" + bulk("WAIT") + bulk(strconv.Itoa(c.opts.WaitReplicas)) + bulk(timeout)}
	}
	kept := make([]*command, 0, len(b.commands)+1)
	for _, cmd := range b.commands {
		if cmd != b.wait {
			kept = append(kept, cmd)
		}
	}
	b.commands = append(kept, b.wait)
}

// judge gives cmd an error if it has written something, which is to say that it is a claim that was granted or a record
// that was kept, and WAIT did not find it at enough replicas.
func judge(c *Client, wait, cmd *command) {
	wrote := cmd.err == nil && cmd.reply == nil && (cmd.number == noNumber || cmd.number == 1)
	switch {
	case !wrote:
	case wait.err != nil:
		cmd.err = wait.err
	case wait.number < int64(c.opts.WaitReplicas):
		cmd.err = fmt.Errorf("%w: %d of %d", ErrReplicas, wait.number, c.opts.WaitReplicas)
	}
}
