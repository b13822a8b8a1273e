package redisclient

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrReplicas is the error for a step that the master has taken and fewer replicas than Options.WaitReplicas have by then.
var ErrReplicas = errors.New("too few replicas have it")

// withOthers returns commands with what is to be sent along: ASKING before those that need it, and one WAIT behind all if
// one of them is to wait for replicas. One will do: each would wait for itself in turn.
func withOthers(c *Client, commands []*command) []*command {
	all := make([]*command, 0, len(commands)+1)
	wait := false
	for _, cmd := range commands {
		if cmd.asking {
			all = append(all, &command{wire: asking})
		}
		all = append(all, cmd)
		wait = wait || cmd.wait
	}
	if wait && c.opts.WaitReplicas > 0 {
		timeout := strconv.FormatInt(c.opts.ReadTimeout.Milliseconds()/2+1, 10)
		all = append(all, &command{wire: "*3\r\n" + bulk("WAIT") + bulk(strconv.Itoa(c.opts.WaitReplicas)) + bulk(timeout), waits: true})
	}
	return all
}

// judge gives an error to each command that has written something, which is to say that it is a claim that was granted or a
// record that was kept, if the WAIT behind it did not find that at enough replicas within half of the time for a reply.
func judge(c *Client, all []*command) {
	wait := all[len(all)-1]
	if !wait.waits {
		return
	}
	err := wait.err
	replicas, broken := strconv.Atoi(strings.Trim(wait.line, ":\r\n"))
	if err == nil && (broken != nil || replicas < c.opts.WaitReplicas) {
		err = fmt.Errorf("%w: %d of %d", ErrReplicas, replicas, c.opts.WaitReplicas)
	}
	for _, cmd := range all {
		if cmd.wait && cmd.err == nil && (cmd.line == nilLine || cmd.line == oneLine) {
			cmd.err = err
		}
	}
}
