package redisclient

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
)

// TestALengthIsNotBelieved has the beginning of a reply that says to be as long as any may be.
func TestALengthIsNotBelieved(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err := receive(bufio.NewReader(strings.NewReader("$536870912\r\nand no more")), &command{})
	runtime.ReadMemStats(&after)
	if !errors.Is(err, io.EOF) {
		t.Errorf("error %v, want %v", err, io.EOF)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 16<<20 {
		t.Errorf("11 bytes of a reply took %d MiB of memory", took>>20)
	}
}

// TestAHugeReply is longer than room is made for in advance.
func TestAHugeReply(t *testing.T) {
	want := bytes.Repeat([]byte("0123456789abcdef"), maxPreallocated/16+1)
	stream := fmt.Sprintf("$%d\r\n%s\r\n:1\r\n", len(want), want)
	r := bufio.NewReader(strings.NewReader(stream))
	cmd, next := &command{}, &command{}
	err := receive(r, cmd)
	if err != nil || !bytes.Equal(cmd.reply, want) {
		t.Errorf("%d bytes, %v, want %d", len(cmd.reply), err, len(want))
	}
	err = receive(r, next)
	if err != nil || next.line != oneLine {
		t.Errorf("the next reply is %+v, %v", next, err)
	}
}

// receive reads a reply as a sender does.
func receive(r *bufio.Reader, cmd *command) error {
	var err error
	cmd.err = nil
	cmd.line, err = r.ReadString('\n')
	if err != nil || cmd.line == nilLine || cmd.line == oneLine {
		return err
	}
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	return receiveRest(&pooledConn{net: here, reader: r}, cmd)
}
