package redisclient

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrReplicas is the error for a step that the master has taken and fewer replicas than Options.WaitReplicas have by then.
var ErrReplicas = errors.New("too few replicas have it")

// sendToReplicas is send for a step that Options.WaitReplicas are to have as well. Nobody else's steps wait along with it:
// only when the master has granted a claim is it sent once more, over a connection whose turn it is to wait. There it finds
// its own work and writes it again, since Redis waits for what the same connection wrote, and for nothing else.
func sendToReplicas(c *Client, cmd *command) {
	switch {
	case c.confirmer == nil:
		send(c, cmd)
	case cmd.script == finishScript:
		send(c.confirmer, cmd)
	default:
		send(c, cmd)
		if cmd.script == claimScript && cmd.err == nil && cmd.line == nilLine {
			send(c.confirmer, cmd)
		}
	}
}

// withOthers returns commands as they are to be sent, and what is to be sent along: ASKING before those that need it, and one
// WAIT behind all if c waits for replicas. One will do: each would wait for itself in turn.
func withOthers(c *Client, commands []*command) []*command {
	all := make([]*command, 0, len(commands)+1)
	c.lock()
	whole := c.whole
	c.unlock()
	for _, cmd := range commands {
		if whole {
			cmd.wire = inFull(cmd.wire)
		}
		if cmd.asking {
			all = append(all, &command{wire: asking})
		}
		all = append(all, cmd)
	}
	if c.waits {
		size := 0
		for _, cmd := range commands {
			size += len(cmd.wire)
		}
		timeout := strconv.FormatInt((c.opts.ReadTimeout/2+transfer(size)).Milliseconds()+1, 10)
		all = append(all, &command{wire: "*3\r\n" + bulk("WAIT") + bulk(strconv.Itoa(c.opts.WaitReplicas)) + bulk(timeout), waits: true})
	}
	return all
}

// judge gives an error to each command that has written something, which is to say that it is a claim that was granted or a
// record that was kept, if the WAIT behind all did not find that at enough replicas within half of the time for a reply.
func judge(c *Client, all []*command) {
	wait := all[len(all)-1]
	err := wait.err
	replicas, broken := strconv.Atoi(strings.Trim(wait.line, ":\r\n"))
	if err == nil && (broken != nil || replicas < c.opts.WaitReplicas) {
		err = fmt.Errorf("%w: %d of %d", ErrReplicas, replicas, c.opts.WaitReplicas)
	}
	for _, cmd := range all {
		if !cmd.waits && cmd.err == nil && (cmd.line == nilLine || cmd.line == oneLine) {
			cmd.err = err
		}
	}
}
