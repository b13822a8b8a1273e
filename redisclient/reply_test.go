package redisclient

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/gomodule/redigo/redis"
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

// TestNoLengthOfAnyReplyIsBelieved has the beginnings of replies that redigo reads.
func TestNoLengthOfAnyReplyIsBelieved(t *testing.T) {
	for name, stream := range map[string]string{
		"a bulk string that is too long": "$99999999999\r\n",
		"a bulk string":                  "$536870912\r\nand no more",
		"an array that is too long":      "*99999999\r\n",
		"arrays in arrays":               strings.Repeat("*1048576\r\n", 1000),
		"many arrays in arrays":          strings.Repeat("*1\r\n", 1<<20),
		"bulk strings in an array":       "*1048576\r\n" + strings.Repeat("$536870912\r\n", 1000),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		reply, err := redis.NewConn(readerConn{Reader: strings.NewReader(stream)}, 0, 0).Receive()
		runtime.ReadMemStats(&after)
		if err == nil || reply != nil {
			t.Errorf("%s: %v, %v", name, reply, err)
		}
		if took := after.TotalAlloc - before.TotalAlloc; took > 16<<20 {
			t.Errorf("%s: %d bytes of a reply took %d MiB of memory", name, len(stream), took>>20)
		}
	}
}

// TestALongReplyOfAnyKind is longer than room is made for in advance.
func TestALongReplyOfAnyKind(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", maxPreallocated/16+1)
	stream := fmt.Sprintf("*3\r\n%s*0\r\n*-1\r\n+OK\r\n", bulk(long))
	conn := redis.NewConn(readerConn{Reader: strings.NewReader(stream)}, 0, 0)
	reply, err := conn.Receive()
	if want := []interface{}{[]byte(long), []interface{}{}, nil}; err != nil || !reflect.DeepEqual(reply, want) {
		t.Errorf("error %v, or another reply", err)
	}
	reply, err = conn.Receive()
	if reply != "OK" || err != nil {
		t.Errorf("the next reply is %v, %v", reply, err)
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
