package clients

import (
	"crypto/tls"
	"io"
	"net/http"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

func TestHTTP2Clients(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, nil, rig.Created)
		var h2c http.Protocols
		h2c.SetUnencryptedHTTP2(true)
		s.HTTP.Transport.(*http.Transport).Protocols = &h2c
		first := s.Do(rig.Post("/", "k"))
		s.Want(first, 201, "first")
		s.WantReplay(first, s.Do(rig.Post("/", "k")))
		s.Calls(1)
	})
}

// TestEntryPointsAndClients has one key from clients of every kind, at plain and at HTTPS entry points, with and without
// experimental.fastProxy.
func TestEntryPointsAndClients(t *testing.T) {
	for name, experimental := range map[string]string{"proxy": "", "fastProxy": "fastProxy: {}, "} {
		t.Run(name, func(t *testing.T) {
			if name == "fastProxy" {
				hosts.NotIn30(t)
			}
			secure, b := rig.FreeAddress(t), rig.NewBackend(t, rig.Created)
			plain := rig.StartExperimental(t, experimental, secure, b.URL, "statusHeader: Decision")
			web := plain.Addr
			var first rig.Answer
			for i, kind := range []struct {
				addr, scheme string
				protocol     int // major version of HTTP
			}{{web, "http", 1}, {web, "http", 2}, {secure, "https", 1}, {secure, "https", 2}} {
				s := rig.SiteOf(t, hosts.At(kind.addr, plain.Name, plain.Logs), b)
				transport := s.HTTP.Transport.(*http.Transport)
				transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
				var protocols http.Protocols
				protocols.SetHTTP1(kind.protocol == 1)
				protocols.SetHTTP2(kind.protocol == 2)
				protocols.SetUnencryptedHTTP2(kind.protocol == 2 && kind.scheme == "http")
				transport.Protocols = &protocols
				request := s.Request(rig.Post("/", "k"))
				request.URL.Scheme = kind.scheme
				response, err := s.HTTP.Do(request)
				if err != nil {
					t.Fatalf("%v: %v", kind, err)
				}
				body, err := io.ReadAll(response.Body)
				_ = response.Body.Close()
				if response.ProtoMajor != kind.protocol {
					t.Errorf("%v: answered over %s", kind, response.Proto)
				}
				a := rig.Answer{Status: response.StatusCode, Header: response.Header, Body: body, Err: err}
				if i == 0 {
					first = a
					s.Want(first, 201, "first")
				} else {
					s.WantReplay(first, a)
				}
			}
			rig.SiteOf(t, plain, b).Calls(1)
		})
	}
}
