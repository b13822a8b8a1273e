package clients

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// offers are how clients offer to go on with another protocol, in the lines Connection and Upgrade. A server may ignore them.
var offers = [][2]string{
	{"Upgrade, HTTP2-Settings", "h2c"},
	{"Upgrade", "TLS/1.2"},
	{"keep-alive, upgrade, http2-settings", "H2C"},
	{"close, Upgrade", "h2c, TLS/1.3"},
	{"Upgrade", "h2c, websocket"},
	{"Upgrade", "h2c-14"},
	{"Upgrade", "h2c/1"},
	{"Upgrade", "HTTP/2.0"},
	{"Upgrade", ""},
	{"keep-alive", "websocket"},
}

// offerless is created for a request that comes without an offer.
func offerless(t *testing.T) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" || r.Header.Get("HTTP2-Settings") != "" || strings.Contains(strings.ToLower(r.Header.Get("Connection")), "upgrade") {
			t.Errorf("the backend got %v", r.Header)
		}
		rig.Created(w, r)
	}
}

// takesH2C reports whether the site takes up an offer of h2c before any middleware sees it, as the entry points of Traefik 3.0 do.
func takesH2C(s *rig.Site) bool {
	s.T.Helper()
	conn, err := net.Dial("tcp", s.Addr)
	if err != nil {
		s.T.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "OPTIONS / HTTP/1.1\r\nHost: %s\r\nX-Site-Probe: yes\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n", s.Name)
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		s.T.Fatal(err)
	}
	defer response.Body.Close()
	return response.StatusCode == http.StatusSwitchingProtocols
}

func TestOffersOfAnotherProtocolAreDropped(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"required": true}, offerless(t))
		taken, calls := takesH2C(s), 0
		for i, offer := range offers {
			withSettings := strings.Contains(strings.ToLower(offer[0]), "http2-settings")
			if taken && withSettings {
				continue
			}
			calls++
			c := rig.Post("/", fmt.Sprintf("k%d", i), "Connection", offer[0], "Upgrade", offer[1])
			if withSettings {
				c.Header.Set("HTTP2-Settings", "AAMAAABkAAQCAAAAAAIAAAAA")
			}
			first := s.Do(c)
			s.Want(first, 201, "first")
			s.WantReplay(first, s.Do(c))
			s.WantReplay(first, s.Do(rig.Post("/", fmt.Sprintf("k%d", i)))) // the same request
			c.Header.Del("X-Request-Id")
			s.WantProblem(s.Do(c), 400, "missing-key", "missing")
		}
		s.Calls(int64(calls))
	})
}

// TestNothingPassesWithoutARequiredKey: but with one, what cannot be recorded passes untouched.
func TestNothingPassesWithoutARequiredKey(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"required": true}, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Upgrade") == "websocket" {
				w.Header().Set("Upgraded", "yes")
			}
			rig.Created(w, r)
		})
		for _, header := range [][]string{
			{"Connection", "Upgrade", "Upgrade", "websocket"},
			{"Connection", "Upgrade", "Upgrade", "irc/6.9"},
			{"Content-Type", "application/grpc"},
			{"Content-Type", "application/grpc+proto", "Te", "trailers"},
		} {
			request := func(key string) rig.Call {
				c := rig.Post("/", key, header...)
				c.Header.Set("Content-Type", c.Header.Values("Content-Type")[len(c.Header.Values("Content-Type"))-1])
				return c
			}
			s.WantProblem(s.Do(request("")), 400, "missing-key", "missing")
			s.WantProblem(s.Do(request("not a key")), 400, "invalid-key", "invalid")
			for range 2 {
				s.Want(s.Do(request("k")), 201, "")
			}
		}
		s.Calls(8)
	})
}

func TestAnUpgradeWithARequiredKeyPassesUntouched(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"required": true}, func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		})
		for range 2 {
			conn, err := net.Dial("tcp", s.Addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Request-ID: k\r\nContent-Length: 0\r\n\r\n", s.Name)
			response, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil || response.StatusCode != 101 {
				t.Fatalf("upgrade: %v %+v", err, response)
			}
		}
		s.Calls(2)
	})
}

// javaClient posts twice with the HttpClient of the JDK as it is by default, which offers h2c, and prints what it gets.
const javaClient = `
import java.net.URI;
import java.net.http.*;

public class Pay {
	public static void main(String[] args) throws Exception {
		HttpClient client = HttpClient.newHttpClient();
		for (int i = 0; i < 2; i++) {
			HttpRequest.Builder request = HttpRequest.newBuilder(URI.create("http://" + args[0] + "/pay")).header("Host", args[1])
				.POST(HttpRequest.BodyPublishers.ofString("{\"amount\":10}"));
			if (args.length > 2) {
				request.header("X-Request-ID", args[2]);
			}
			HttpResponse<String> response = client.send(request.build(), HttpResponse.BodyHandlers.ofString());
			System.out.println(response.statusCode() + " " + response.headers().firstValue("Decision").orElse("") + " " + response.body().lines().findFirst().orElse(""));
		}
	}
}
`

// needTool skips the test where a client is missing, but not in CI.
func needTool(t *testing.T, name string) {
	t.Helper()
	_, err := exec.LookPath(name)
	if err != nil && os.Getenv("CI") == "" {
		t.Skipf("no %s", name)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestClientsThatOfferHTTP2 has real ones.
func TestClientsThatOfferHTTP2(t *testing.T) {
	hosts.NotIn30(t)
	source := filepath.Join(t.TempDir(), "Pay.java")
	err := os.WriteFile(source, []byte(javaClient), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	clients := map[string]func(s *rig.Site, key string) *exec.Cmd{
		"java": func(s *rig.Site, key string) *exec.Cmd {
			args := []string{"-Djdk.httpclient.allowRestrictedHeaders=host", source, s.Addr, s.Name}
			if key != "" {
				args = append(args, key)
			}
			return exec.Command("java", args...)
		},
		"curl": func(s *rig.Site, key string) *exec.Cmd {
			one := []string{"--http2", "-s", "-d", `{"amount":10}`, "-H", "Host: " + s.Name, "-H", "X-Request-ID: " + key, "-w", "\n%{http_code} %header{decision}\n", "http://" + s.Addr + "/pay"}
			return exec.Command("curl", append(append(one, "--next"), one...)...)
		},
	}
	for name, client := range clients {
		t.Run(name, func(t *testing.T) {
			needTool(t, name)
			rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
				s := rig.Serve(t, host, offerless(t), hosts.Settings{"statusHeader": "Decision", "required": true})
				run := func(key string) string {
					output, err := client(s, key).CombinedOutput()
					if err != nil {
						t.Fatalf("%v\n%s", err, output)
					}
					return string(output)
				}
				output := run("k")
				if strings.Count(output, "201 first") != 1 || strings.Count(output, "201 replayed") != 1 {
					t.Errorf("with a key:\n%s", output)
				}
				output = run("")
				if strings.Count(output, "400 missing") != 2 {
					t.Errorf("without a key:\n%s", output)
				}
				s.Calls(1)
			})
		})
	}
}
