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
	pc := <-c.conns
	defer putConn(c, pc)
	if c.state() == down {
		return nil, fmt.Errorf("redis %s: %w", c.opts.Address, notSent(c))
	}
	reused := pc.conn != nil
	replies, err := exchangeAny(c, pc, commands)
	if err != nil && retryOnNewConn(c, pc, reused, err) {
		disconnect(pc)
		replies, err = exchangeAny(c, pc, commands)
	}
	if err != nil {
		trip(c, down, err)
		return nil, fmt.Errorf("redis %s: %w: %w", c.opts.Address, errUnreachable, err)
	}
	return replies, nil
}

// exchangeAny sends commands over pc and reads replies of any kind. An error is one of the connection.
func exchangeAny(c *Client, pc *pooledConn, commands []Command) ([]interface{}, error) {
	if pc.conn == nil {
		err := connect(c, pc)
		if err != nil {
			return nil, err
		}
	}
	pc.unread = true
	for _, command := range commands {
		err := pc.conn.Send(command.Name, command.Args...)
		if err != nil {
			return nil, err
		}
	}
	err := pc.conn.Flush()
	if err != nil {
		return nil, err
	}
	replies := make([]interface{}, len(commands))
	for i := range replies {
		reply, err := pc.conn.Receive()
		if pc.conn.Err() != nil {
			return nil, pc.conn.Err()
		}
		replies[i] = reply
		if err != nil {
			replies[i] = err
		}
	}
	pc.unread = false
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

// elements returns the elements of an array reply; none for any other reply.
func elements(reply interface{}) []interface{} {
	if reply == nil { // Yaegi panics at the assertion
		return nil
	}
	all, _ := reply.([]interface{})
	return all
}

// array returns the elements of the reply to a command, which is to be an array.
func array(command string, reply interface{}) ([]interface{}, error) {
	all := elements(reply)
	if all == nil {
		return nil, unexpected(command, reply)
	}
	return all, nil
}

// pairs returns an array of names and values as a map.
func pairs(reply interface{}) map[string]interface{} {
	m := map[string]interface{}{}
	all := elements(reply)
	for i := 0; i+1 < len(all); i += 2 {
		m[text(all[i])] = all[i+1]
	}
	return m
}

// integer returns an integer reply; -1 for any other reply.
func integer(reply interface{}) int64 {
	if reply == nil { // Yaegi panics at the assertion
		return -1
	}
	n, ok := reply.(int64)
	if !ok {
		return -1
	}
	return n
}

// text returns a bulk reply as a string; empty for any other reply.
func text(reply interface{}) string {
	if reply == nil { // Yaegi panics at the assertion
		return ""
	}
	bytes, _ := reply.([]byte)
	return string(bytes)
}

func unexpected(command string, reply interface{}) error {
	return fmt.Errorf("redis: unexpected reply to %s: %T", command, reply)
}
