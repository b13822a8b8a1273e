// Package hosts runs the plugin in the three ways it has to work: compiled, interpreted by Yaegi as Traefik loads it,
// and inside a real Traefik. To a test they are alike: a name to send HTTP requests to.
package hosts

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/traefik/yaegi/interp"
	"github.com/traefik/yaegi/stdlib"

	idem "github.com/example/traefik-idem"
	"github.com/example/traefik-idem/e2e/internal/decode"
	"github.com/example/traefik-idem/e2e/internal/launch"
)

// Settings are a plugin configuration as it stands in a dynamic configuration file.
type Settings map[string]any

// Site is one router with the plugin before a backend.
type Site struct {
	Addr string // host:port to connect to
	Name string // host name to ask for

	logs func() string
}

// At returns the site called name at addr, of a host that somebody else runs.
func At(addr, name string, logs func() string) *Site {
	return &Site{Addr: addr, Name: name, logs: logs}
}

// URL returns the address of path on the site. It must be asked for with the site's Client.
func (s *Site) URL(path string) string { return "http://" + s.Name + path }

// Logs returns what the host has logged since the site was asked for, also for other sites. What came before can be about
// other servers at the same ports.
func (s *Site) Logs() string { return s.logs() }

// Client returns a client that finds the site, and follows no redirects.
func (s *Site) Client() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "tcp", s.Addr)
			},
			DisableCompression:  true,
			MaxIdleConnsPerHost: 100,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Host is a way to run the plugin.
type Host interface {
	String() string
	// Serve puts chain, which are plugin configurations from the outside in, before the backend. The site is gone when
	// the test ends.
	Serve(t testing.TB, backend string, chain ...Settings) *Site
	// Refusal returns the error of a configuration that must not be accepted, and "" if it is.
	Refusal(t testing.TB, settings Settings) string
}

// All are the hosts to test on, the three ways the plugin runs: those that HOSTS names, such as compiled,yaegi. Where it is
// empty, every one.
func All() []Host {
	return slices.DeleteFunc([]Host{Compiled, Yaegi, Traefik}, func(h Host) bool { return !chosen(h.String()) })
}

func chosen(host string) bool {
	names := os.Getenv("HOSTS")
	return names == "" || slices.Contains(strings.Split(names, ","), host)
}

// need skips a test of a host that is not to be tested on.
func need(t testing.TB, host string) {
	t.Helper()
	if !chosen(host) {
		t.Skipf("this test needs the host %s, and HOSTS is %s", host, os.Getenv("HOSTS"))
	}
}

var siteCount atomic.Int64

func newName() string { return fmt.Sprintf("site%d.test", siteCount.Add(1)) }

// Root returns the folder of the plugin's source.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..", "..")
}

// Builder builds one middleware.
type Builder func(ctx context.Context, next http.Handler, settings Settings, name string) (http.Handler, error)

// inProcess serves with handlers of this process: the plugin before Go's reverse proxy, set up as Traefik's is.
type inProcess struct {
	name string
	load func(t testing.TB) Builder
	logs *Buffer
}

func (h *inProcess) String() string { return h.name }

func (h *inProcess) Serve(t testing.TB, backend string, chain ...Settings) *Site {
	t.Helper()
	need(t, h.name)
	name, logs := newName(), h.logs.fromHere()
	build := h.load(t)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	next := Proxy(t, backend)
	for i := len(chain) - 1; i >= 0; i-- {
		var err error
		next, err = build(ctx, next, chain[i], fmt.Sprintf("%s-%d@file", name, i))
		if err != nil {
			t.Fatalf("%s: New: %v", h.name, err)
		}
	}
	server := httptest.NewUnstartedServer(next)
	server.Config.Protocols = Protocols()
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // net/http reports each answer that was broken off
	server.Start()
	t.Cleanup(server.Close)
	return &Site{Addr: server.Listener.Addr().String(), Name: name, logs: logs}
}

func (h *inProcess) Refusal(t testing.TB, settings Settings) string {
	t.Helper()
	need(t, h.name)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	_, err := h.load(t)(ctx, http.NotFoundHandler(), settings, "idem@file")
	if err == nil {
		return ""
	}
	return err.Error()
}

// Protocols are those that servers of tests speak.
func Protocols() *http.Protocols {
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	return &p
}

// upstreamTimeout is how long all hosts wait for a backend's header before they answer 504. It is longer than any test holds a request,
// also on a machine that stands still for seconds.
const upstreamTimeout = 10 * time.Second

// Proxy answers for a backend that fails as Traefik does: pkg/proxy/httputil.
func Proxy(t testing.TB, backend string) http.Handler {
	target, err := url.Parse(backend)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DisableCompression: true, ResponseHeaderTimeout: upstreamTimeout}
	if target.Scheme == "h2c" {
		target.Scheme = "http"
		var p http.Protocols
		p.SetUnencryptedHTTP2(true)
		transport.Protocols = &p
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host
		},
		Transport: transport,
		ErrorLog:  log.New(io.Discard, "", 0),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			status := http.StatusInternalServerError
			netErr, isNet := err.(net.Error) //nolint:errorlint // near enough to what Traefik does
			switch {
			case r.Context().Err() != nil:
				status = 499
			case isNet && netErr.Timeout():
				status = http.StatusGatewayTimeout
			case isNet || err == io.EOF: //nolint:errorlint // likewise
				status = http.StatusBadGateway
			}
			w.WriteHeader(status)
			_, _ = io.WriteString(w, http.StatusText(status))
		},
	}
}

// Compiled is the plugin as a Go package.
var Compiled Host = &inProcess{name: "compiled", logs: captureLog(), load: func(testing.TB) Builder { return buildCompiled }}

func buildCompiled(ctx context.Context, next http.Handler, settings Settings, name string) (http.Handler, error) {
	config := idem.CreateConfig()
	err := decode.Settings(settings, config)
	if err != nil {
		return nil, err
	}
	return idem.New(ctx, next, config, name)
}

// captureLog keeps what the compiled plugin logs: errors through the log package, the rest to stdout.
func captureLog() *Buffer {
	b := &Buffer{}
	log.SetOutput(b)
	r, w, err := os.Pipe()
	if err != nil {
		panic(err)
	}
	stdout, copied := os.Stdout, make(chan struct{})
	os.Stdout = w
	go func() {
		_, _ = io.Copy(io.MultiWriter(b, stdout), r)
		close(copied)
	}()
	atExit = append(atExit, func() { // the last lines are the test's verdict
		os.Stdout = stdout
		_ = w.Close()
		<-copied
	})
	return b
}

// yaegi is the one interpreter of this process, as there is one in Traefik.
var yaegi struct {
	once  sync.Once
	build Builder
	err   error
	logs  Buffer
}

// Yaegi is the plugin interpreted.
var Yaegi Host = &inProcess{name: "yaegi", logs: &yaegi.logs, load: loadYaegi}

func loadYaegi(t testing.TB) Builder {
	yaegi.once.Do(func() {
		dir, err := os.MkdirTemp("", "idem-gopath")
		if err != nil {
			yaegi.err = err
			return
		}
		defer func() { _ = os.RemoveAll(dir) }()
		yaegi.err = LinkPlugin(filepath.Join(dir, "src"))
		if yaegi.err == nil {
			yaegi.build, yaegi.err = Interpret(dir, &yaegi.logs)
		}
	})
	if yaegi.err != nil {
		t.Fatalf("the plugin does not load under Yaegi: %v", yaegi.err)
	}
	return yaegi.build
}

// Builders are the ways to build the plugin's handler in this process, by the names of the hosts to test on.
func Builders(t testing.TB) map[string]Builder {
	t.Helper()
	builders := map[string]Builder{}
	for _, host := range All() {
		h, is := host.(*inProcess)
		if is {
			builders[h.name] = h.load(t)
		}
	}
	return builders
}

// LinkPlugin puts the plugin's source under src, a GOPATH's.
func LinkPlugin(src string) error {
	link := filepath.Join(src, filepath.FromSlash(launch.Module))
	err := os.MkdirAll(filepath.Dir(link), 0o755)
	if err != nil {
		return err
	}
	return os.Symlink(Root(), link)
}

// Interpret loads the plugin from goPath as Traefik's pkg/plugins does.
func Interpret(goPath string, output io.Writer) (Builder, error) {
	i := interp.New(interp.Options{GoPath: goPath, Env: os.Environ(), Stdout: output, Stderr: output})
	err := i.Use(stdlib.Symbols)
	if err != nil {
		return nil, err
	}
	_, err = i.Eval(`import "github.com/example/traefik-idem"`)
	if err != nil {
		return nil, err
	}
	fnNew, err := i.Eval(`idem.New`)
	if err != nil {
		return nil, err
	}
	fnCreateConfig, err := i.Eval(`idem.CreateConfig`)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, next http.Handler, settings Settings, name string) (http.Handler, error) {
		config := fnCreateConfig.Call(nil)[0]
		err := decode.Settings(settings, config.Interface())
		if err != nil {
			return nil, err
		}
		results := fnNew.Call([]reflect.Value{reflect.ValueOf(ctx), reflect.ValueOf(next), config, reflect.ValueOf(name)})
		if results[1].Interface() != nil {
			err, isError := results[1].Interface().(error)
			if !isError {
				return nil, fmt.Errorf("the error that New returned is a %T", results[1].Interface())
			}
			return nil, err
		}
		return results[0].Interface().(http.Handler), nil
	}, nil
}

// Buffer is a bytes.Buffer for many writers.
type Buffer struct {
	mu     sync.Mutex // guards buffer
	buffer bytes.Buffer
}

// Write implements io.Writer.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

// String returns all that was written.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

// fromHere returns a function that returns what is written from now on.
func (b *Buffer) fromHere() func() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	from := b.buffer.Len()
	return func() string { return b.String()[from:] }
}

// probeHeader marks requests that only ask whether a site is there. Backends in tests do not count them.
const probeHeader = "X-Site-Probe"

// IsProbe reports whether r only asks whether the site is there.
func IsProbe(r *http.Request) bool { return r.Header.Get(probeHeader) != "" }

// Served reports whether the site answers with something else than Traefik's 404.
func (s *Site) Served() bool {
	request, _ := http.NewRequest(http.MethodOptions, s.URL("/"), nil)
	request.Header.Set(probeHeader, "yes")
	client := s.Client()
	defer client.CloseIdleConnections()
	response, err := client.Do(request)
	if err != nil {
		return false
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return err == nil && (response.StatusCode != http.StatusNotFound || !strings.Contains(string(body), "404 page not found"))
}
