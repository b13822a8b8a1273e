package redisclient

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
)

// inScripts are the replies that the scripts can have, up to where a bulk string begins.
var inScripts = regexp.MustCompile(`^(\$(-1|\d{1,5})|:(0|-?[1-9]\d{0,17})|-[^\r\n]+)\r\n`)

// FuzzReply reads replies one after the other, and compares each with what redigo reads.
func FuzzReply(f *testing.F) {
	for _, stream := range []string{
		":1\r\n:0\r\n:-5\r\n$-1\r\n$5\r\nhello\r\n-ERR no\r\n", "$0\r\n\r\n:7\r\n", "$3\r\na\r\n\r\n:1\r\n", "$3\r\nabcd\r\n", "$5\r\nhell5\r\r-",
		"+OK\r\n", "*1\r\n$1\r\na\r\n", "what?\r\n", "\r\n", ":\r\n", "-\r\n", "$-7\r\n", "$+3\r\nabc\r\n", "$10\r\nabc", ":1\n", ":1\r", "$99999999\r\nshort", ":99999999999999999999\r\n",
	} {
		f.Add([]byte(stream))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		ours := bufio.NewReader(bytes.NewReader(stream))
		theirs := redis.NewConn(readerConn{Reader: bytes.NewReader(stream)}, 0, 0)
		left := stream
		for inScripts.Match(left) { // of any other reply it is enough that it does no harm
			cmd := &command{reply: []byte("of before")}
			err := receive(ours, cmd)
			want, wantErr := theirs.Receive()
			if (err != nil) != (theirs.Err() != nil) {
				t.Fatalf("%.100q: error %v, redigo's %v", left, err, theirs.Err())
			}
			if err != nil {
				return
			}
			size := bytes.IndexByte(left, '\n') + 1
			switch v := want.(type) {
			case nil:
				if wantErr != nil {
					if cmd.err == nil || cmd.err.Error() != wantErr.Error() {
						t.Fatalf("%.100q: error reply %v, redigo's %v", left, cmd.err, wantErr)
					}
				} else if cmd.err != nil {
					t.Fatalf("%.100q: %v, and not nil", left, cmd.err)
				}
				if wantErr == nil && cmd.line != nilLine {
					t.Fatalf("%.100q: %+v, want nil", left, cmd)
				}
			case int64:
				if cmd.line != fmt.Sprintf(":%d\r\n", v) || cmd.err != nil {
					t.Fatalf("%.100q: %+v, want %d", left, cmd, v)
				}
			case []byte:
				if !bytes.Equal(cmd.reply, v) || cmd.line[0] != '$' || cmd.err != nil {
					t.Fatalf("%.100q: %+v, want %q", left, cmd, v)
				}
				size += len(v) + 2
			default:
				t.Fatalf("%.100q: redigo reads a %T", left, want)
			}
			left = left[size:]
		}
		cmd := &command{}
		err := receive(ours, cmd)
		rest, _ := io.ReadAll(ours)
		if err == nil && (len(rest) >= len(left) || !bytes.HasSuffix(left, rest)) {
			t.Errorf("%.100q: after a reply there is %.100q", left, rest)
		}
		if err == nil && !strings.ContainsRune("$:-", rune(left[0])) {
			t.Errorf("%.100q is taken for a reply: %+v", left, cmd)
		}
	})
}

// readerConn is a connection from which a stream can be read, and nothing else done.
type readerConn struct {
	io.Reader
	net.Conn
}

func (c readerConn) Read(p []byte) (int, error) { return c.Reader.Read(p) }
func (c readerConn) Close() error               { return nil }

func (c readerConn) SetReadDeadline(time.Time) error { return nil }
