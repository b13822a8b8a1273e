package redisclient

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrReplicas is the error for a write that the master has, but too few replicas had in time.
var ErrReplicas = errors.New("too few replicas have it")

// sendToReplicas is send for a command whose write Options.WaitReplicas replicas must have too. A claim is sent to the master
// first, so that refused claims do not wait for replicas. Once granted it is sent again through c.confirmer, whose
// connections wait with WAIT. The script writes the claim again there, because WAIT only covers writes of its connection.
func sendToReplicas(c *Client, cmd *command) {
	switch {
	case c.confirmer == nil:
		send(c, cmd)
	case cmd.script.needsReplicas:
		send(c.confirmer, cmd)
	default:
		send(c, cmd)
		if cmd.script == claimScript && cmd.err == nil && cmd.line == nilLine {
			cmd.resent = true
			send(c.confirmer, cmd)
		}
	}
}

// failUnconfirmed gives an error to each command that has written something, a granted claim or a kept record, if the WAIT at
// the end says that too few replicas had it within half of the time for a reply.
func failUnconfirmed(c *Client, all []*command) {
	wait := all[len(all)-1]
	err := wait.err
	replicas, broken := strconv.Atoi(strings.Trim(wait.line, ":\r\n"))
	switch {
	case err == nil && (broken != nil || replicas < c.opts.WaitReplicas):
		err = fmt.Errorf("%w: %d of %d", ErrReplicas, replicas, c.opts.WaitReplicas)
	case err != nil && isForbidden(err):
		err = fmt.Errorf("%w: %w", ErrReplicas, withoutArguments(err))
	}
	for _, cmd := range all {
		if !cmd.isWAIT && cmd.err == nil && (cmd.line == nilLine || cmd.line == oneLine) {
			cmd.err = err
		}
	}
}
