package behaviour

import (
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/rig"
)

// TestTrailersAreWhatTheBackendSends has trailers of every kind, of answers that go each way, over HTTP/1.1 and HTTP/2: the first
// client gets the same header and the same trailers as without a key.
func TestTrailersAreWhatTheBackendSends(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		backend := rig.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
			n, declared := asked(r), strings.HasPrefix(r.URL.Path, "/declared")
			status, _ := strconv.Atoi(strings.Split(r.URL.Path, "/")[2])
			header := w.Header()
			if declared {
				header.Set("Content-Length", strconv.Itoa(n))
			}
			header.Set("Content-Type", "text/plain")
			header.Set("Trailer", "Server-Timing, X-Sum, X-Same")
			header.Set("Server-Timing", "queue;dur=1") // a header, and later a trailer
			header.Set("X-Same", "1")
			w.WriteHeader(status)
			rig.WritePart(w, n)
			header.Set("Server-Timing", "db;dur=2")
			header.Set("X-Sum", "5")
			if r.URL.RawQuery == "late" {
				header.Set(http.TrailerPrefix+"X-Late", "6")
			}
		})
		for _, scheme := range []string{"http", "h2c"} {
			s := rig.SiteOf(t, e.Host.Serve(t, strings.Replace(backend.URL, "http:", scheme+":", 1), e.Settings(nil)), backend)
			for _, major := range []int{1, 2} {
				client := s.Other()
				if major == 2 {
					transport, _ := client.HTTP.Transport.(*http.Transport)
					transport.Protocols = &http.Protocols{}
					transport.Protocols.SetUnencryptedHTTP2(true)
				}
				for i, path := range []string{"/declared/201/10", "/declared/201/20000", "/declared/201/100000", "/declared/500/10", "/declared/201/2000000",
					"/open/201/10", "/open/500/10", "/open/201/2000000", "/open/500/2000000", "/declared/201/10?late", "/open/201/10?late", "/open/500/10?late"} {
					plain, _ := headerAndTrailer(client, rig.Post(path, ""))
					keyed, decision := headerAndTrailer(client, rig.Post(path, fmt.Sprintf("%s%d-%d", scheme, major, i)))
					if !reflect.DeepEqual(plain, keyed) || decision == "" {
						t.Errorf("from %s to HTTP/%d, %s (%s):\n%v with a key, and without\n%v", scheme, major, path, decision, keyed, plain)
					}
				}
			}
		}
	})
}

// headerAndTrailer sends c, and returns what is of interest of the answer's header and trailer, and the decision.
func headerAndTrailer(s *rig.Site, c rig.Call) (got [2]http.Header, decision string) {
	s.T.Helper()
	c.Body = "" // Traefik now and then breaks off a stream that answers a body which it streams itself
	response, err := s.HTTP.Do(s.Request(c))
	if err != nil {
		s.T.Fatal(err)
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	if err != nil {
		s.T.Errorf("%s: %v", c.Path, err)
	}
	for i, header := range []http.Header{response.Header, response.Trailer} {
		got[i] = http.Header{}
		for name, values := range header {
			switch name {
			case "Date", "Decision", "Trailer", "Content-Length": // an answer that goes when it has ended may have a length
			default:
				got[i][name] = values
			}
		}
	}
	return got, response.Header.Get("Decision")
}
