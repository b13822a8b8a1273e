package redisclient

import (
	"errors"
	"strings"
)

// This file reads what errors mean, most of them replies of Redis.

// serverErrors has the words in error replies that concern the whole server and not one key, with the state that each means. In
// Redis 6 and before, the error of a command in a script is in the middle of the reply.
var serverErrors = map[string]int32{
	"OOM ":         refusing,
	"READONLY ":    refusing,
	"LOADING ":     refusing,
	"MASTERDOWN ":  refusing,
	"MISCONF ":     refusing,
	"NOREPLICAS ":  refusing,
	"CLUSTERDOWN ": refusing,
	"BUSY ":        refusing,

	"NOAUTH ":    down,
	"WRONGPASS ": down,
	"DENIED ":    down,

	"max number of clients": down,
}

// forbidden are the words in error replies about a command that the server lacks or the user may not use, also within a
// script: by Redis 7.0, by later ones, and by Valkey.
var forbidden = []string{
	"NOPERM ", "The user executing the script", "ACL failure in script",
	"unknown command", "Unknown Redis command called from ", "Unknown command called from ",
}

// stateFrom returns the state that an error reply tells of its server; fine if it is not known to concern the whole server.
func stateFrom(reply error) int32 {
	if isForbidden(reply) {
		return refusing
	}
	for words, state := range serverErrors {
		if strings.Contains(reply.Error(), words) {
			return state
		}
	}
	return fine
}

// isForbidden reports whether an error reply says that the server lacks a command, or the user may not use it.
func isForbidden(reply error) bool {
	for _, words := range forbidden {
		if strings.Contains(reply.Error(), words) {
			return true
		}
	}
	return false
}

// lacksEVALSHA reports whether an error reply says that EVALSHA is forbidden.
func lacksEVALSHA(reply error) bool {
	return isForbidden(reply) && strings.Contains(strings.ToLower(reply.Error()), "evalsha")
}

// isUnknownScript reports whether an error reply says that the server does not know a script by its digest.
func isUnknownScript(reply error) bool {
	return strings.Contains(reply.Error(), "NOSCRIPT ")
}

// isReplica reports whether an error reply says that the server is not the master any more, or ceased to be while the command
// waited for replicas. In Redis 6 and before, the error of a command in a script is in the middle of the reply.
func isReplica(reply error) bool {
	return strings.Contains(reply.Error(), "READONLY ") || strings.HasPrefix(reply.Error(), "UNBLOCKED ")
}

// isRedirection reports whether an error reply says that a key is at another node.
func isRedirection(reply error) bool {
	return strings.HasPrefix(reply.Error(), "MOVED ") || strings.HasPrefix(reply.Error(), "ASK ")
}

// isAboutKey reports whether an error reply concerns one key alone: it is at another node, or another application has it.
func isAboutKey(reply error) bool {
	return isRedirection(reply) || strings.Contains(reply.Error(), "WRONGTYPE ")
}

// isServerError reports whether err concerns the server or the connection to it, and not one command. That a command is forbidden may
// concern the keys of one prefix alone.
func isServerError(err error) bool {
	return IsUnreachable(err) || (stateFrom(err) != fine && !isForbidden(err))
}

// IsUnreachable reports whether err says that the server gave no reply, or was not asked.
func IsUnreachable(err error) bool {
	return errors.Is(err, ErrDown) || errors.Is(err, errUnreachable)
}

// WasFree reports whether an error of Claim says that no other owner has the key: the claim was granted but too few replicas
// have it, or the master refuses to write it.
func WasFree(err error) bool {
	for _, words := range []string{"OOM ", "MISCONF ", "NOREPLICAS "} {
		if strings.Contains(err.Error(), words) {
			return !errors.Is(err, ErrDown)
		}
	}
	return errors.Is(err, ErrReplicas)
}

// withoutArguments returns an error reply without the arguments of a command that the server does not know: they may be a password
// or a key.
func withoutArguments(reply error) error {
	words, _, found := strings.Cut(reply.Error(), ", with args beginning with")
	if !found {
		return reply
	}
	return errors.New(words)
}
