package rig

// What tests of answers that are sent while they come have in common.

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// Other is s with connections of its own: on one connection a server takes requests in turn.
func (s *Site) Other() *Site { return SiteOf(s.T, s.Site, s.Backend) }

// Begin sends c and returns when the header of its answer is there, which has to come soon.
func (s *Site) Begin(c Call) *http.Response {
	s.T.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s.T.Cleanup(cancel)
	late := time.AfterFunc(20*time.Second, cancel) // what comes after the header may take longer
	response, err := s.HTTP.Do(s.Request(c).WithContext(ctx))
	late.Stop()
	if err != nil {
		s.T.Fatal(err)
	}
	s.T.Cleanup(func() { _ = response.Body.Close() })
	return response
}

// ReadBytes reads n bytes of response.
func ReadBytes(t *testing.T, response *http.Response, n int) []byte {
	t.Helper()
	part := make([]byte, n)
	_, err := io.ReadFull(response.Body, part)
	if err != nil {
		t.Fatalf("a part of %d bytes: %v", n, err)
	}
	return part
}

// WritePart sends n bytes of an answer now.
func WritePart(w http.ResponseWriter, n int) {
	_, _ = w.Write(bytes.Repeat([]byte("x"), n))
	_ = http.NewResponseController(w).Flush()
}

// StalledBytes is what a client that stalls takes of an answer over HTTP/2 until its body is read.
const StalledBytes = 64 << 10

// Stalls are clients that take little of an answer until its body is read, HTTP/1.1 and HTTP/2.
func (s *Site) Stalls() map[string]*Site {
	one, two := s.Other(), s.Other()
	transport, _ := one.HTTP.Transport.(*http.Transport)
	transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		connection, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.Addr)
		if tcp, is := connection.(*net.TCPConn); is {
			_ = tcp.SetReadBuffer(StalledBytes)
		}
		return connection, err
	}
	transport, _ = two.HTTP.Transport.(*http.Transport)
	transport.Protocols = &http.Protocols{}
	transport.Protocols.SetUnencryptedHTTP2(true)
	transport.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: StalledBytes, MaxReceiveBufferPerConnection: StalledBytes}
	return map[string]*Site{"HTTP1": one, "HTTP2": two}
}
