package redisclient

import "fmt"

// Command is one command of a batch.
type Command struct {
	Name string
	Args []interface{}
}

// Batch sends commands in one go and returns their replies in the same order; an error reply stands as an error in its
// place. An error means that the commands may or may not have been carried out. If the connection turns out to be
// broken all are sent once more over a new one: so only commands that can be repeated may be sent. ErrDown is wrapped if
// nothing was sent.
func (c *Client) Batch(commands []Command) ([]interface{}, error) {
	l := <-c.lanes
	defer giveBack(c, l)
	if c.state() == down {
		return nil, fmt.Errorf("redis %s: %w", c.opts.Address, notSent(c))
	}
	reused := l.conn != nil
	replies, err := exchangeAny(c, l, commands)
	if err != nil && worthAnother(c, l, reused, err) {
		disconnect(l)
		replies, err = exchangeAny(c, l, commands)
	}
	if err != nil {
		trip(c, down, err)
		return nil, fmt.Errorf("redis %s: %w: %w", c.opts.Address, errUnreachable, err)
	}
	return replies, nil
}

// exchangeAny sends commands over l and reads replies of any kind. An error is one of the connection.
func exchangeAny(c *Client, l *lane, commands []Command) ([]interface{}, error) {
	if l.conn == nil {
		err := dial(c, l)
		if err != nil {
			return nil, err
		}
	}
	l.unread = true
	for _, command := range commands {
		err := l.conn.Send(command.Name, command.Args...)
		if err != nil {
			return nil, err
		}
	}
	err := l.conn.Flush()
	if err != nil {
		return nil, err
	}
	replies := make([]interface{}, len(commands))
	for i := range replies {
		reply, err := l.conn.Receive()
		if l.conn.Err() != nil {
			return nil, l.conn.Err()
		}
		replies[i] = reply
		if err != nil {
			replies[i] = err
		}
	}
	l.unread = false
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

// errorIn returns the error that a reply is, nil if it is none.
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
