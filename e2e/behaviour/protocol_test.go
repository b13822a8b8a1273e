package behaviour

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

func TestEventsArriveOneByOneAndAreReplayed(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		for _, contentType := range []string{"text/event-stream", "application/x-ndjson"} {
			received := make(chan struct{})
			s := e.Serve(t, nil, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", contentType)
				w.WriteHeader(200)
				w.(http.Flusher).Flush()
				for i := range 5 {
					<-received // the header, and then each event, before the next is sent
					fmt.Fprintf(w, "data: %d\n\n", i)
					w.(http.Flusher).Flush()
				}
			})
			response, err := s.HTTP.Do(s.Request(rig.Post("/", "k")))
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
			again := s.Do(rig.Post("/", "k"))
			s.Want(again, 200, "replayed")
			if string(again.Body) != body.String() || again.Header.Get("Content-Type") != contentType {
				t.Errorf("replayed %q of type %q, want %q", again.Body, again.Header.Get("Content-Type"), body.String())
			}
			s.Calls(1)
		}
	})
}

func TestUpgradesPassUntouched(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"methods": "GET,POST"}, func(w http.ResponseWriter, r *http.Request) {
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
		s.Calls(2)
	})
}

func TestGRPCPassesUntouchedWithTrailers(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		b := rig.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
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
		settings := e.Settings(nil)
		s := rig.SiteOf(t, e.Host.Serve(t, strings.Replace(b.URL, "http:", "h2c:", 1), settings), b)
		var h2c http.Protocols
		h2c.SetUnencryptedHTTP2(true)
		s.HTTP.Transport.(*http.Transport).Protocols = &h2c
		for range 2 {
			body, messages := io.Pipe()
			request := s.Request(rig.Post("/Service/Method", "k", "Te", "trailers").With(func(c *rig.Call) {
				c.Reader = body
				c.Header.Set("Content-Type", "application/grpc+proto")
			}))
			// Both directions are open at once.
			go func() { _, _ = messages.Write([]byte("ping1")) }()
			response, err := s.HTTP.Do(request)
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
		s.Calls(2)
	})
}

func TestInformationalAnswersPass(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, nil, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "</style.css>; rel=preload")
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Del("Link")
			rig.Created(w, r)
		})
		informed := func(c rig.Call) (rig.Answer, []string) {
			var mu sync.Mutex
			var got []string
			request := s.Request(c)
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
			response, err := s.HTTP.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			body, err := io.ReadAll(response.Body)
			mu.Lock()
			defer mu.Unlock()
			return rig.Answer{Status: response.StatusCode, Header: response.Header, Body: body, Err: err}, got
		}
		s.HTTP.Transport.(*http.Transport).ExpectContinueTimeout = rig.Never
		first, got := informed(rig.Post("/", "k", "Expect", "100-continue"))
		s.Want(first, 201, "first")
		if strings.Join(got, ", ") != "100, 103 </style.css>; rel=preload" {
			t.Errorf("informational answers %q", got)
		}
		if first.Header.Get("Link") != "" {
			t.Errorf("a header of the early hints is in the final answer: %v", first.Header)
		}
		again, got := informed(rig.Post("/", "k", "Expect", "100-continue"))
		s.WantReplay(first, again)
		if strings.Join(got, ", ") != "100" {
			t.Errorf("informational answers of a replay: %q", got)
		}
		s.Calls(1)
	})
}

func TestHead(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"methods": "GET,HEAD"}, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "5")
			_, _ = io.WriteString(w, "hello")
		})
		for _, method := range []string{"HEAD", "GET"} {
			c := rig.Call{Method: method, Path: "/", Header: http.Header{"X-Request-Id": {"k"}}}
			first := s.Do(c)
			s.Want(first, 200, "first")
			again := s.Do(c)
			s.WantReplay(first, again)
			if again.Header.Get("Content-Length") != "5" {
				t.Errorf("%s: Content-Length %q", method, again.Header.Get("Content-Length"))
			}
		}
		s.Calls(2)
	})
}

// TestTrailers: the first caller gets them; a replay, which has a length, has none.
func TestTrailers(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, nil, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Trailer", "X-Sum")
			w.WriteHeader(asked(r))
			_, _ = io.WriteString(w, "hello")
			w.Header().Set("X-Sum", "5")
		})
		for _, status := range []int{200, 500} {
			c := rig.Post(fmt.Sprintf("/%d", status), "k")
			response, err := s.HTTP.Do(s.Request(c))
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			body, err := io.ReadAll(response.Body)
			if err != nil || string(body) != "hello" || response.Header.Get("X-Sum") != "" || response.Trailer.Get("X-Sum") != "5" {
				t.Errorf("first: %q, header %v, trailer %v, %v", body, response.Header, response.Trailer, err)
			}
			again := s.Do(c)
			s.Want(again, status, "replayed")
			if string(again.Body) != "hello" || again.Header.Get("Trailer") != "" {
				t.Errorf("replay %q %v", again.Body, again.Header)
			}
		}
	})
}

// TestFastProxyHoldsWhatBroke has calls that break after the backend had them, where Traefik reports nothing of its
// connections and answers with a status that frees keys. Each backend sends a byte before it breaks off: without one, the
// fast proxy of Traefik 3.7.12 may wait for ever (docs/guarantees.md, limits).
func TestFastProxyHoldsWhatBroke(t *testing.T) {
	hosts.NotIn30(t)
	for name, broken := range map[string]string{"cut": "HTTP/1.1 201 Created\r\n", "garbage": "this is not HTTP\r\n\r\n", "hints": "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"} {
		t.Run(name, func(t *testing.T) {
			b := rig.NewRawBackend(t, func(conn net.Conn, _ int64, _ *http.Request) bool {
				fmt.Fprint(conn, broken)
				return false
			})
			s := rig.SiteOf(t, rig.StartExperimental(t, "fastProxy: {}, ", rig.FreeAddress(t), b.URL, `statusHeader: Decision, retryableStatuses: "500-504"`), nil)
			first := s.Do(rig.Post("/", "k"))
			if first.Status < 500 || first.Header.Get("Decision") != "unknown" {
				t.Errorf("first answer %d %q, want Traefik's own, unknown", first.Status, first.Header.Get("Decision"))
			}
			s.WantProblem(s.Do(rig.Post("/", "k")), 409, "outcome-unknown", "unknown")
			b.Calls(t, 1)
		})
	}
}
