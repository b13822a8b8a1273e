package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
)

func TestEventsArriveOneByOneAndAreReplayed(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		for _, contentType := range []string{"text/event-stream", "application/x-ndjson"} {
			received := make(chan struct{})
			s := e.serve(t, nil, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", contentType)
				w.WriteHeader(200)
				w.(http.Flusher).Flush()
				for i := range 5 {
					<-received // the header, and then each event, before the next is sent
					fmt.Fprintf(w, "data: %d\n\n", i)
					w.(http.Flusher).Flush()
				}
			})
			response, err := s.client.Do(s.request(post("/", "k")))
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			lines := bufio.NewReader(response.Body)
			var body strings.Builder
			for range 5 {
				received <- struct{}{}
				for range 2 {
					line, err := lines.ReadString('\n')
					if err != nil {
						t.Fatal(err)
					}
					body.WriteString(line)
				}
			}
			_, err = lines.ReadString('\n')
			if !errors.Is(err, io.EOF) {
				t.Fatalf("the stream ends with %v", err)
			}
			again := s.do(post("/", "k"))
			s.want(again, 200, "replayed")
			if string(again.body) != body.String() || again.header.Get("Content-Type") != contentType {
				t.Errorf("replayed %q of type %q, want %q", again.body, again.header.Get("Content-Type"), body.String())
			}
			s.calls(1)
		}
	})
}

func TestUpgradesPassUntouched(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		s := e.serve(t, hosts.Settings{"methods": "GET,POST"}, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Upgrade") != "websocket" {
				http.Error(w, "no upgrade", 400)
				return
			}
			conn, buffered, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			line, _ := buffered.ReadString('\n')
			fmt.Fprintf(conn, "echo %s", line)
		})
		for range 2 {
			conn, err := net.Dial("tcp", s.Addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprintf(conn, "GET /ws HTTP/1.1\r\nHost: %s\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nX-Request-ID: k\r\n"+
				"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", s.Name)
			reader := bufio.NewReader(conn)
			response, err := http.ReadResponse(reader, nil)
			if err != nil || response.StatusCode != 101 || response.Header.Get("Decision") != "" {
				t.Fatalf("upgrade: %v %+v", err, response)
			}
			fmt.Fprintf(conn, "hello\n")
			line, err := reader.ReadString('\n')
			if err != nil || line != "echo hello\n" {
				t.Errorf("through the upgraded connection: %q, %v", line, err)
			}
		}
		s.calls(2)
	})
}

func TestGRPCPassesUntouchedWithTrailers(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/grpc")
			w.Header().Set("Trailer", "Grpc-Status")
			buffer := make([]byte, 5)
			for { // answers each message before the next one is read
				_, err := io.ReadFull(r.Body, buffer)
				if err != nil {
					break
				}
				_, _ = w.Write(buffer)
				w.(http.Flusher).Flush()
			}
			w.Header().Set("Grpc-Status", "0")
		})
		settings := e.settings(nil)
		s := siteOf(t, e.host.Serve(t, strings.Replace(b.URL, "http:", "h2c:", 1), settings), b)
		var h2c http.Protocols
		h2c.SetUnencryptedHTTP2(true)
		s.client.Transport.(*http.Transport).Protocols = &h2c
		for range 2 {
			body, messages := io.Pipe()
			request := s.request(post("/Service/Method", "k", "Te", "trailers").with(func(c *call) {
				c.reader = body
				c.header.Set("Content-Type", "application/grpc+proto")
			}))
			// Both directions are open at once.
			go func() { _, _ = messages.Write([]byte("ping1")) }()
			response, err := s.client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			buffer := make([]byte, 5)
			for i := 1; i <= 3; i++ {
				_, err = io.ReadFull(response.Body, buffer)
				if err != nil || string(buffer) != fmt.Sprintf("ping%d", i) {
					t.Fatalf("message %d: %q, %v", i, buffer, err)
				}
				if i < 3 {
					_, _ = fmt.Fprintf(messages, "ping%d", i+1)
				}
			}
			_ = messages.Close()
			_, err = io.Copy(io.Discard, response.Body)
			_ = response.Body.Close()
			if err != nil || response.Trailer.Get("Grpc-Status") != "0" || response.Header.Get("Decision") != "" {
				t.Errorf("trailer %v, header %v, %v", response.Trailer, response.Header, err)
			}
		}
		s.calls(2)
	})
}

func TestInformationalAnswersPass(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		s := e.serve(t, nil, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "</style.css>; rel=preload")
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Del("Link")
			created(w, r)
		})
		informed := func(c call) (answer, []string) {
			var mu sync.Mutex
			var got []string
			request := s.request(c)
			request = request.WithContext(httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
				Got100Continue: func() {
					mu.Lock()
					defer mu.Unlock()
					got = append(got, "100")
				},
				Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
					mu.Lock()
					defer mu.Unlock()
					if code == 103 {
						got = append(got, "103 "+header.Get("Link"))
					}
					return nil
				},
			}))
			response, err := s.client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			body, err := io.ReadAll(response.Body)
			mu.Lock()
			defer mu.Unlock()
			return answer{status: response.StatusCode, header: response.Header, body: body, err: err}, got
		}
		s.client.Transport.(*http.Transport).ExpectContinueTimeout = hour
		first, got := informed(post("/", "k", "Expect", "100-continue"))
		s.want(first, 201, "first")
		if strings.Join(got, ", ") != "100, 103 </style.css>; rel=preload" {
			t.Errorf("informational answers %q", got)
		}
		if first.header.Get("Link") != "" {
			t.Errorf("a header of the early hints is in the final answer: %v", first.header)
		}
		again, got := informed(post("/", "k", "Expect", "100-continue"))
		s.wantReplay(first, again)
		if strings.Join(got, ", ") != "100" {
			t.Errorf("informational answers of a replay: %q", got)
		}
		s.calls(1)
	})
}

func TestHTTP2Clients(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		s := e.serve(t, nil, created)
		var h2c http.Protocols
		h2c.SetUnencryptedHTTP2(true)
		s.client.Transport.(*http.Transport).Protocols = &h2c
		first := s.do(post("/", "k"))
		s.want(first, 201, "first")
		s.wantReplay(first, s.do(post("/", "k")))
		s.calls(1)
	})
}

func TestHead(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		s := e.serve(t, hosts.Settings{"methods": "GET,HEAD"}, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "5")
			_, _ = io.WriteString(w, "hello")
		})
		for _, method := range []string{"HEAD", "GET"} {
			c := call{method: method, path: "/", header: http.Header{"X-Request-Id": {"k"}}}
			first := s.do(c)
			s.want(first, 200, "first")
			again := s.do(c)
			s.wantReplay(first, again)
			if again.header.Get("Content-Length") != "5" {
				t.Errorf("%s: Content-Length %q", method, again.header.Get("Content-Length"))
			}
		}
		s.calls(2)
	})
}

// TestTrailers: the first caller gets them; a replay, which has a length, has none.
func TestTrailers(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		s := e.serve(t, nil, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "X-Sum")
			_, _ = io.WriteString(w, "hello")
			w.Header().Set("X-Sum", "5")
		})
		response, err := s.client.Do(s.request(post("/", "k")))
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil || string(body) != "hello" || response.Trailer.Get("X-Sum") != "5" {
			t.Errorf("first: %q, trailer %v, %v", body, response.Trailer, err)
		}
		again := s.do(post("/", "k"))
		s.want(again, 200, "replayed")
		if string(again.body) != "hello" || again.header.Get("Trailer") != "" {
			t.Errorf("replay %q %v", again.body, again.header)
		}
	})
}

// startExperimental starts a Traefik with experimental settings, a plain entry point and an HTTPS one at the address secure,
// and a middleware with these settings in front of url.
func startExperimental(t *testing.T, experimental, secure, url, settings string) *hosts.Site {
	t.Helper()
	web, dir := freeAddress(t), t.TempDir()
	for file, text := range map[string]string{
		"traefik.yml": fmt.Sprintf(`
entryPoints: {web: {address: %q}, websecure: {address: %q, http: {tls: {}}}}
providers: {file: {filename: dynamic.yml}}
experimental: {%slocalPlugins: {idem: {moduleName: github.com/example/traefik-idem}}}
`, web, secure, experimental),
		"dynamic.yml": fmt.Sprintf(`
http:
  routers: {shop: {rule: Host("shop.test"), service: shop, middlewares: [idem]}}
  services: {shop: {loadBalancer: {servers: [{url: %q}]}}}
  middlewares: {idem: {plugin: {idem: {%s}}}}
`, url, settings),
	} {
		err := os.WriteFile(filepath.Join(dir, file), []byte(strings.ReplaceAll(text, `"shop.test"`, "`shop.test`")), 0o600)
		if err != nil {
			t.Fatal(err)
		}
	}
	return hosts.Run(t, dir, "traefik.yml", web, "shop.test")
}

// TestFastProxyHoldsWhatBroke has calls that break after the backend had them, where Traefik reports nothing of its
// connections and answers with a status that frees keys.
func TestFastProxyHoldsWhatBroke(t *testing.T) {
	for name, broken := range map[string]string{"reset": "", "garbage": "this is not HTTP\r\n\r\n", "hints": "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"} {
		t.Run(name, func(t *testing.T) {
			b := newRawBackend(t, func(conn net.Conn, _ int64, _ *http.Request) bool {
				fmt.Fprint(conn, broken)
				return false
			})
			s := siteOf(t, startExperimental(t, "fastProxy: {}, ", freeAddress(t), b.URL, `statusHeader: Decision, retryableStatuses: "500-504"`), nil)
			first := s.do(post("/", "k"))
			if first.status < 500 || first.header.Get("Decision") != "unknown" {
				t.Errorf("first answer %d %q, want Traefik's own, unknown", first.status, first.header.Get("Decision"))
			}
			s.wantProblem(s.do(post("/", "k")), 409, "outcome-unknown", "unknown")
			b.calls(t, 1)
		})
	}
}

// TestEntryPointsAndClients has one key from clients of every kind, at plain and at HTTPS entry points, with and without
// experimental.fastProxy.
func TestEntryPointsAndClients(t *testing.T) {
	for name, experimental := range map[string]string{"proxy": "", "fastProxy": "fastProxy: {}, "} {
		t.Run(name, func(t *testing.T) {
			secure, b := freeAddress(t), newBackend(t, created)
			plain := startExperimental(t, experimental, secure, b.URL, "statusHeader: Decision")
			web := plain.Addr
			var first answer
			for i, kind := range []struct {
				addr, scheme string
				protocol     int // major version of HTTP
			}{{web, "http", 1}, {web, "http", 2}, {secure, "https", 1}, {secure, "https", 2}} {
				s := siteOf(t, hosts.At(kind.addr, plain.Name, plain.Logs), b)
				transport := s.client.Transport.(*http.Transport)
				transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
				var protocols http.Protocols
				protocols.SetHTTP1(kind.protocol == 1)
				protocols.SetHTTP2(kind.protocol == 2)
				protocols.SetUnencryptedHTTP2(kind.protocol == 2 && kind.scheme == "http")
				transport.Protocols = &protocols
				request := s.request(post("/", "k"))
				request.URL.Scheme = kind.scheme
				response, err := s.client.Do(request)
				if err != nil {
					t.Fatalf("%v: %v", kind, err)
				}
				body, err := io.ReadAll(response.Body)
				_ = response.Body.Close()
				if response.ProtoMajor != kind.protocol {
					t.Errorf("%v: answered over %s", kind, response.Proto)
				}
				a := answer{response.StatusCode, response.Header, body, err}
				if i == 0 {
					first = a
					s.want(first, 201, "first")
				} else {
					s.wantReplay(first, a)
				}
			}
			siteOf(t, plain, b).calls(1)
		})
	}
}
