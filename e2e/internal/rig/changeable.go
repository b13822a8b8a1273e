package rig

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
)

// Changeable is a site whose middleware comes and goes, in this process or in a Traefik that has no other site.
type Changeable struct {
	*Site
	Traefik *hosts.Process                // nil: this process
	Put     func(settings hosts.Settings) // in place of the one that is there, as at a reload
	Remove  func()
}

// NewChangeable returns a site on host before a backend that answers with handler. It is there after the first Put.
func NewChangeable(t *testing.T, host hosts.Host, handler http.HandlerFunc) *Changeable {
	t.Helper()
	b := NewBackend(t, handler)
	if host == hosts.Traefik {
		return changeableInTraefik(t, b)
	}
	return changeableHere(t, hosts.Builders(t)[host.String()], b, host.Serve(t, b.URL).Logs)
}

func changeableInTraefik(t *testing.T, b *Backend) *Changeable {
	t.Helper()
	const id, name = "changeable", "changeable.test"
	p := hosts.StartTraefik(t)
	s := &Changeable{Traefik: p, Site: SiteOf(t, hosts.At(p.Addr, name, p.Logs), b)}
	length := 100
	s.Put = func(settings hosts.Settings) {
		length++ // by which the new configuration is known
		settings["maxKeyLength"] = length
		p.Write(t, name, hosts.Dynamic(name, b.URL, settings))
		for !s.Served() || KeyLength(t, p, id) != length {
			time.Sleep(10 * time.Millisecond)
		}
	}
	s.Remove = func() {
		p.Write(t, name, map[string]any{})
		for s.Served() {
			time.Sleep(10 * time.Millisecond)
		}
	}
	return s
}

// changeableHere serves with handlers of this process that take turns.
func changeableHere(t *testing.T, builder hosts.Builder, b *Backend, logs func() string) *Changeable {
	t.Helper()
	current := make(chan http.Handler, 1)
	current <- http.NotFoundHandler()
	swap := func(next http.Handler) {
		<-current
		current <- next
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := <-current
		current <- h
		h.ServeHTTP(w, r)
	}))
	server.Config.Protocols = hosts.Protocols()
	server.Config.ErrorLog = Quiet
	server.Start()
	t.Cleanup(server.Close)
	end := func() {}
	t.Cleanup(func() { end() })
	proxy := hosts.Proxy(t, b.URL)
	s := &Changeable{Site: SiteOf(t, hosts.At(server.Listener.Addr().String(), "changeable.test", logs), b)}
	name := fmt.Sprintf("%s-%d@file", t.Name(), PrefixCount.Add(1))
	s.Put = func(settings hosts.Settings) {
		end() // as Traefik does before it builds the new one
		var ctx context.Context
		ctx, end = context.WithCancel(context.Background())
		h, err := builder(ctx, proxy, settings, name)
		if err != nil {
			t.Fatal(err)
		}
		swap(h)
	}
	s.Remove = func() {
		end()
		swap(http.NotFoundHandler())
	}
	return s
}
