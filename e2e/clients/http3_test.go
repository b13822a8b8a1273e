package clients

import (
	"context"
	"crypto/tls"
	"net/http"
	"strings"
	"testing"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// TestHTTP3 has a client of HTTP/3, whose server in Traefik is not net/http's. It sends whole requests, ones without a length, and
// ones whose answer breaks off.
func TestHTTP3(t *testing.T) {
	secure := rig.FreeAddress(t)
	b := rig.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/broken" {
			rig.Created(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/plain")
		_, _ = w.Write([]byte("the beginning"))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	plain := rig.StartExperimental(t, "", secure, b.URL, "statusHeader: Decision")
	s := rig.SiteOf(t, hosts.At(secure, plain.Name, plain.Logs), b)
	transport := &http3.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		Dial: func(ctx context.Context, _ string, config *tls.Config, quicConfig *quic.Config) (*quic.Conn, error) {
			return quic.DialAddrEarly(ctx, secure, config, quicConfig)
		},
	}
	t.Cleanup(func() { _ = transport.Close() })
	s.HTTP.Transport = overTLS{transport}
	for name, c := range map[string]rig.Call{
		"whole":     rig.Post("/pay", "k1"),
		"no length": rig.Post("/pay", "k2").With(func(c *rig.Call) { c.Reader = strings.NewReader(c.Body) }),
		"nothing":   rig.Post("/pay", "k3").With(func(c *rig.Call) { c.Body = "" }),
	} {
		first := s.Do(c)
		if first.Status != 201 || first.Header.Get("Decision") != "first" {
			t.Errorf("%s: %d %v", name, first.Status, first.Header)
		}
		if c.Reader != nil {
			c.Reader = strings.NewReader(c.Body)
		}
		s.WantReplay(first, s.Do(c))
	}
	first := s.Send(rig.Post("/broken", "k4"))
	t.Run("the client sees the break", func(t *testing.T) {
		hosts.NotIn30(t)
		if first.Err == nil {
			t.Errorf("the client does not see that the answer breaks off: %d %q", first.Status, first.Body)
		}
	})
	s.WantProblem(s.Do(rig.Post("/broken", "k4")), 409, "outcome-unknown", "unknown")
	s.Calls(4)
}

// overTLS sends each request as one to https.
type overTLS struct{ *http3.Transport }

func (o overTLS) RoundTrip(r *http.Request) (*http.Response, error) {
	r.URL.Scheme = "https"
	return o.Transport.RoundTrip(r)
}
