package redisclient

import "fmt"

// Command is one command of a batch.
type Command struct {
	Name string
	Args []interface{}
}

// Batch sends commands in one go and returns their replies in the same order; an error reply is an error in its
// place. If Batch returns an error, the commands may or may not have been carried out; it wraps ErrDown if nothing was sent.
// If the connection turns out to be broken, all commands are sent once more over a new one: so only commands that can be
// repeated may be sent.
func (c *Client) Batch(commands []Command) ([]interface{}, error) {
	slot := <-c.conns
	defer giveBack(c, slot)
	if c.state() == down {
		return nil, fmt.Errorf("redis %s: %w", c.opts.Address, notSent(c))
	}
	reused := slot.conn != nil
	replies, err := exchangeAny(c, slot, commands)
	if err != nil && retryOnNewConn(c, slot, reused, err) {
		disconnect(slot)
		replies, err = exchangeAny(c, slot, commands)
	}
	if err != nil {
		trip(c, down, err)
		return nil, fmt.Errorf("redis %s: %w: %w", c.opts.Address, errUnreachable, err)
	}
	return replies, nil
}

// exchangeAny sends commands over slot and reads replies of any kind. An error is one of the connection.
func exchangeAny(c *Client, slot *connSlot, commands []Command) ([]interface{}, error) {
	if slot.conn == nil {
		err := dial(c, slot)
		if err != nil {
			return nil, err
		}
	}
	slot.unread = true
	for _, command := range commands {
		err := slot.conn.Send(command.Name, command.Args...)
		if err != nil {
			return nil, err
		}
	}
	err := slot.conn.Flush()
	if err != nil {
		return nil, err
	}
	replies := make([]interface{}, len(commands))
	for i := range replies {
		reply, err := slot.conn.Receive()
		if slot.conn.Err() != nil {
			return nil, slot.conn.Err()
		}
		replies[i] = reply
		if err != nil {
			replies[i] = err
		}
	}
	slot.unread = false
	return replies, nil
}

// do sends commands and returns the reply to the last. An error reply is returned as an error.
func (c *Client) do(commands ...Command) (interface{}, error) {
	replies, err := c.Batch(commands)
	if err != nil {
		return nil, err
	}
	last := replies[len(replies)-1]
	err = errorIn(last)
	if err != nil {
		return nil, err
	}
	return last, nil
}

// errorIn returns reply if it is an error reply, else nil.
func errorIn(reply interface{}) error {
	if reply == nil { // Yaegi panics at the assertion
		return nil
	}
	err, failed := reply.(error)
	if !failed {
		return nil
	}
	return err
}
