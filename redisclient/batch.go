package redisclient

import (
	"errors"
	"fmt"
	"os"

	"github.com/gomodule/redigo/redis"
)

// Command is one command of a batch.
type Command struct {
	Name string
	Args []interface{}
}

// Batch sends commands in one go and returns their replies in the same order; an error reply stands as an error in its
// place. An error means that the commands may or may not have been carried out. As with Do, only commands that can be
// repeated may be sent.
func (c *Client) Batch(commands []Command) ([]interface{}, error) {
	conn, reused, err := c.get()
	if err != nil {
		return nil, fmt.Errorf("redis %s: %w", c.opts.Address, err)
	}
	replies, err := exchange(conn, commands)
	if reused && err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		_ = conn.Close()
		conn, err = c.dial()
		if err != nil {
			c.put(nil)
			return nil, fmt.Errorf("redis %s: %w", c.opts.Address, err)
		}
		replies, err = exchange(conn, commands)
	}
	c.put(conn)
	if err != nil {
		return nil, fmt.Errorf("redis %s: batch: %w", c.opts.Address, err)
	}
	return replies, nil
}

// exchange sends commands over conn and reads their replies. An error is one of the connection.
func exchange(conn redis.Conn, commands []Command) ([]interface{}, error) {
	for _, command := range commands {
		err := conn.Send(command.Name, command.Args...)
		if err != nil {
			return nil, err
		}
	}
	err := conn.Flush()
	if err != nil {
		return nil, err
	}
	replies := make([]interface{}, len(commands))
	for i := range replies {
		reply, err := conn.Receive()
		if conn.Err() != nil {
			return nil, conn.Err()
		}
		replies[i] = reply
		if err != nil {
			replies[i] = err
		}
	}
	return replies, nil
}
