package rig

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"github.com/example/traefik-idem/e2e/internal/hosts"
)

// Front stands between the plugin and Redis.
type Front struct {
	Addr     string
	Target   atomic.Value // string: address that new connections lead to
	Swallow  atomic.Bool  // commands do not reach Redis, and have no reply
	Mute     atomic.Bool  // commands reach Redis, replies are dropped
	Commands atomic.Int64 // chunks that came from the plugin
	Gate     sync.RWMutex // held by a test: commands wait
}

// NewFront puts a front before the Redis at target.
func NewFront(t *testing.T, target string) *Front {
	t.Helper()
	f := &Front{}
	f.Target.Store(target)
	f.Addr = Listen(t, func(conn net.Conn) {
		server, err := net.Dial("tcp", f.Target.Load().(string))
		if err != nil {
			return
		}
		defer server.Close()
		go func() {
			buffer := make([]byte, 64<<10)
			for {
				n, err := server.Read(buffer)
				if err != nil {
					_ = conn.Close()
					return
				}
				if !f.Mute.Load() {
					_, _ = conn.Write(buffer[:n])
				}
			}
		}()
		buffer := make([]byte, 64<<10)
		for {
			n, err := conn.Read(buffer)
			if err != nil {
				return
			}
			f.Commands.Add(1)
			f.Gate.RLock()
			f.Gate.RUnlock() //nolint:staticcheck // it is a gate
			if !f.Swallow.Load() {
				_, _ = server.Write(buffer[:n])
			}
		}
	})
	return f
}

// RawBackend is a server that is free to break HTTP: serve gets each connection after a whole request was read from it.
type RawBackend struct {
	URL      string
	requests atomic.Int64
	Header   atomic.Value // of the last request, http.Header
}

// NewRawBackend starts one. serve also gets the number of the request, and says whether the connection goes on.
func NewRawBackend(t *testing.T, serve func(conn net.Conn, n int64, r *http.Request) (keep bool)) *RawBackend {
	t.Helper()
	b := &RawBackend{}
	b.URL = "http://" + Listen(t, func(conn net.Conn) {
		reader := bufio.NewReader(conn)
		for {
			r, err := http.ReadRequest(reader)
			if err != nil {
				return
			}
			_, err = io.Copy(io.Discard, r.Body)
			if err != nil {
				return
			}
			if hosts.IsProbe(r) {
				fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				continue
			}
			b.Header.Store(r.Header)
			if !serve(conn, b.requests.Add(1), r) {
				return
			}
		}
	})
	return b
}

// Listen serves each connection to the address that it returns, and closes it then.
func Listen(t *testing.T, serve func(conn net.Conn)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	return listener.Addr().String()
}

// Calls checks how often the backend was called.
func (b *RawBackend) Calls(t *testing.T, want int64) {
	t.Helper()
	if got := b.requests.Load(); got != want {
		t.Errorf("the backend was called %d times, want %d", got, want)
	}
}

// RawSite is a site before b.
func RawSite(t *testing.T, e *Env, b *RawBackend, more hosts.Settings) *Site {
	t.Helper()
	return SiteOf(t, e.Host.Serve(t, b.URL, e.Settings(more)), nil)
}

// Weather is what stands between the plugin and a Redis.
type Weather struct {
	T     *testing.T
	Proxy *toxiproxy.Proxy
}

// NewWeather puts a weather before the Redis at upstream.
func NewWeather(t *testing.T, upstream string) *Weather {
	t.Helper()
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	w := &Weather{T: t, Proxy: toxiproxy.NewProxy(server, "redis", "127.0.0.1:0", upstream)}
	err := w.Proxy.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Proxy.Stop)
	return w
}

// Bad has the weather do harm: toxiproxy's toxics, and garble.
func (w *Weather) Bad(toxic, stream string, attributes map[string]any) {
	w.T.Helper()
	data, _ := json.Marshal(map[string]any{"type": toxic, "stream": stream, "attributes": attributes})
	_, err := w.Proxy.Toxics.AddToxicJson(bytes.NewReader(data))
	if err != nil {
		w.T.Error(err)
	}
}

// Fair ends all harm. Connections that have suffered it are broken.
func (w *Weather) Fair() { w.Proxy.Toxics.ResetToxics(w.T.Context()) }

// Cut breaks all connections.
func (w *Weather) Cut() {
	listen := w.Proxy.Listen
	w.Proxy.Stop()
	w.Proxy.Listen = listen
	err := w.Proxy.Start()
	if err != nil {
		w.T.Error(err)
	}
}
