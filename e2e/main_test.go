package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
)

func TestMain(m *testing.M) { hosts.Main(m) }

// env is a host and a kind of store for one behaviour test.
type env struct {
	host  hosts.Host
	redis *redistest.Server // nil: keys in memory
}

// everywhere runs test on every host with every kind of store.
func everywhere(t *testing.T, test func(t *testing.T, e *env)) {
	t.Helper()
	for _, host := range hosts.All() {
		t.Run(host.String()+"/memory", func(t *testing.T) { test(t, &env{host: host}) })
		t.Run(host.String()+"/redis", func(t *testing.T) {
			test(t, &env{host: host, redis: sharedRedis(t)})
		})
	}
}

// onEveryHost runs test on every host, for what has nothing to do with the kind of store.
func onEveryHost(t *testing.T, test func(t *testing.T, host hosts.Host)) {
	t.Helper()
	for _, host := range hosts.All() {
		t.Run(host.String(), func(t *testing.T) { test(t, host) })
	}
}

var prefixCount atomic.Int64

// settings are the plugin's settings for this environment, with more laid over them. Every call has keys of its own.
func (e *env) settings(more hosts.Settings) hosts.Settings {
	settings := hosts.Settings{"statusHeader": "Decision"}
	if e.redis != nil {
		settings["lease"] = "1m"
		settings["redis"] = map[string]any{
			"endpoints": []any{e.redis.Addr},
			"keyPrefix": fmt.Sprintf("t%d", prefixCount.Add(1)),
			// A busy machine must not look like an outage.
			"dialTimeout": "20s", "readTimeout": "20s", "writeTimeout": "20s",
		}
	}
	for key, value := range more {
		settings[key] = value
	}
	return settings
}

// withTimeouts returns settings with these time-outs of Redis: for leases that are to end while a test waits.
func withTimeouts(each string, settings hosts.Settings) hosts.Settings {
	redis, inRedis := settings["redis"].(map[string]any)
	if inRedis {
		redis["dialTimeout"], redis["readTimeout"], redis["writeTimeout"] = each, each, each
	}
	return settings
}

// serve puts the plugin before a backend on this environment's host.
func (e *env) serve(t *testing.T, more hosts.Settings, backend http.HandlerFunc) *site {
	t.Helper()
	return serve(t, e.host, backend, e.settings(more))
}

// site is a site under test with its client and its backend.
type site struct {
	*hosts.Site
	t       *testing.T
	client  *http.Client
	backend *backend
}

func serve(t *testing.T, host hosts.Host, handler http.HandlerFunc, chain ...hosts.Settings) *site {
	t.Helper()
	b := newBackend(t, handler)
	return siteOf(t, host.Serve(t, b.URL, chain...), b)
}

func siteOf(t *testing.T, s *hosts.Site, b *backend) *site {
	client := s.Client()
	t.Cleanup(client.CloseIdleConnections)
	return &site{Site: s, t: t, client: client, backend: b}
}

// backend is a server that counts its calls.
type backend struct {
	*httptest.Server
	calls atomic.Int64

	mu    sync.Mutex // guards byKey
	byKey map[string]int
}

func newBackend(t *testing.T, handler http.HandlerFunc) *backend {
	t.Helper()
	b := &backend{byKey: map[string]int{}}
	b.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if hosts.IsProbe(r) {
			return
		}
		b.calls.Add(1)
		b.mu.Lock()
		b.byKey[r.Header.Get("X-Request-ID")]++
		b.mu.Unlock()
		handler(w, r)
	}))
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	b.Config.Protocols = &protocols
	b.Config.ErrorLog = quiet
	b.Start()
	t.Cleanup(b.Close)
	return b
}

// answer is a response that was read to its end.
type answer struct {
	status int
	header http.Header
	body   []byte
	err    error // of the request or of reading the body
}

// call is a request under construction.
type call struct {
	method, path, body string
	header             http.Header
	reader             io.Reader // instead of body: sent in chunks
}

func post(path, key string, more ...string) call {
	c := call{method: http.MethodPost, path: path, body: `{"amount":10}`, header: http.Header{"Content-Type": {"application/json"}}}
	if key != "" {
		c.header.Set("X-Request-ID", key)
	}
	for i := 0; i+1 < len(more); i += 2 {
		c.header.Add(more[i], more[i+1])
	}
	return c
}

func (c call) with(change func(c *call)) call {
	c.header = c.header.Clone()
	change(&c)
	return c
}

func (s *site) request(c call) *http.Request {
	body := c.reader
	if body == nil {
		body = strings.NewReader(c.body)
	}
	request, err := http.NewRequest(c.method, s.URL(c.path), body)
	if err != nil {
		s.t.Fatal(err)
	}
	request.Header = c.header.Clone()
	if host := c.header.Get("Host"); host != "" {
		request.Host = host
	}
	return request
}

// send sends c and reads the answer; the error is part of it.
func (s *site) send(c call) answer {
	response, err := s.client.Do(s.request(c))
	if err != nil {
		return answer{err: err}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return answer{status: response.StatusCode, header: response.Header, body: body, err: err}
}

// do is send for a request that has to be answered.
func (s *site) do(c call) answer {
	s.t.Helper()
	a := s.send(c)
	if a.err != nil {
		s.t.Fatalf("%s %s: %v", c.method, c.path, a.err)
	}
	return a
}

// calls checks how often the backend was called.
func (s *site) calls(want int64) {
	s.t.Helper()
	if got := s.backend.calls.Load(); got != want {
		s.t.Errorf("the backend was called %d times, want %d", got, want)
	}
}

// awaitLog waits for text in the host's log, which a Traefik process writes to a pipe. Text that never comes ends in
// the test's time-out.
func (s *site) awaitLog(text string) {
	s.t.Helper()
	for !strings.Contains(s.Logs(), text) {
		time.Sleep(10 * time.Millisecond)
	}
}

// awaitStore is awaitRedis for a middleware that rejects meanwhile.
func (s *site) awaitStore() {
	s.t.Helper()
	for s.do(post("/back", fmt.Sprintf("back-%d", unique.Add(1)))).status == 503 {
		time.Sleep(10 * time.Millisecond)
	}
}

// awaitRedis returns when requests are decided with Redis again. One that never is ends in the test's time-out.
func (s *site) awaitRedis() {
	s.t.Helper()
	for strings.HasSuffix(s.do(post("/back", fmt.Sprintf("back-%d", unique.Add(1)))).header.Get("Decision"), ";degraded") {
		time.Sleep(10 * time.Millisecond)
	}
}

// want checks status and decision of an answer.
func (s *site) want(a answer, status int, decision string) {
	s.t.Helper()
	if a.err != nil {
		s.t.Fatalf("no answer: %v", a.err)
	}
	if a.status != status || a.header.Get("Decision") != decision {
		s.t.Errorf("answer %d %q, want %d %q\n%.1000s", a.status, a.header.Get("Decision"), status, decision, a.body)
	}
}

// wantProblem checks an answer of the plugin's own.
func (s *site) wantProblem(a answer, status int, slug, decision string) {
	s.t.Helper()
	s.want(a, status, decision)
	var problem map[string]any
	err := json.Unmarshal(a.body, &problem)
	if err != nil {
		s.t.Errorf("the problem is no JSON: %v\n%s", err, a.body)
		return
	}
	if problem["type"] != "urn:traefik-idem:problem:"+slug || problem["status"] != float64(status) || problem["title"] == "" || problem["detail"] == "" {
		s.t.Errorf("problem %s, want type …:%s and status %d", a.body, slug, status)
	}
	if a.header.Get("Content-Type") != "application/problem+json" {
		s.t.Errorf("a problem of type %q", a.header.Get("Content-Type"))
	}
	for name := range problem {
		switch name {
		case "type", "title", "status", "detail", "originalStatus":
		default:
			s.t.Errorf("a problem with the member %q: %s", name, a.body)
		}
	}
}

// wantReplay checks that again is first's answer once more.
func (s *site) wantReplay(first, again answer) {
	s.t.Helper()
	s.wantReplayAs(first, again, "replayed")
}

// wantReplayAs is wantReplay for another decision, such as that of a replay while Redis is out of reach.
func (s *site) wantReplayAs(first, again answer, decision string) {
	s.t.Helper()
	s.want(again, first.status, decision)
	if !bytes.Equal(first.body, again.body) {
		s.t.Errorf("replayed body %.200q, want %.200q", again.body, first.body)
	}
	if again.header.Get("Idempotent-Replayed") != "true" {
		s.t.Errorf("no Idempotent-Replayed: %v", again.header)
	}
}

// created answers 201 with a body that no other call gets.
func created(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(http.StatusCreated)
	fmt.Fprintf(w, "payment %d", unique.Add(1))
}

var unique atomic.Int64

// gated is created for a request that tells when it has arrived, and is held until there is something to receive.
func gated(arrived chan<- struct{}, proceed <-chan struct{}) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-proceed
		created(w, r)
	}
}
