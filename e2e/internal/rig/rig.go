// Package rig is what tests of the plugin have in common: sites on every host, backends, requests and what is expected of
// their answers, and whatever can stand between the plugin and Redis.
package rig

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
)

// Env is a host and a kind of store for one behaviour test.
type Env struct {
	Host  hosts.Host
	Redis *redistest.Server // nil: keys in memory
}

// Everywhere runs test on every host with every kind of store.
func Everywhere(t *testing.T, test func(t *testing.T, e *Env)) {
	t.Helper()
	for _, host := range hosts.All() {
		t.Run(host.String()+"/memory", func(t *testing.T) { test(t, &Env{Host: host}) })
		t.Run(host.String()+"/redis", func(t *testing.T) {
			test(t, &Env{Host: host, Redis: SharedRedis(t)})
		})
	}
}

// OnEveryHost runs test on every host, for what has nothing to do with the kind of store.
func OnEveryHost(t *testing.T, test func(t *testing.T, host hosts.Host)) {
	t.Helper()
	for _, host := range hosts.All() {
		t.Run(host.String(), func(t *testing.T) { test(t, host) })
	}
}

// PrefixCount makes key prefixes and names that nobody else has.
var PrefixCount atomic.Int64

// Settings are the plugin's settings for this environment, with more laid over them. Every call has keys of its own.
func (e *Env) Settings(more hosts.Settings) hosts.Settings {
	settings := hosts.Settings{"statusHeader": "Decision"}
	if e.Redis != nil {
		settings["lease"] = "1m"
		settings["redis"] = map[string]any{
			"endpoints": []any{e.Redis.Addr},
			"keyPrefix": fmt.Sprintf("t%d", PrefixCount.Add(1)),
			// A busy machine must not look like an outage.
			"dialTimeout": "20s", "readTimeout": "20s", "writeTimeout": "20s",
		}
	}
	for key, value := range more {
		settings[key] = value
	}
	return settings
}

// WithTimeouts returns settings with these time-outs of Redis: for leases that are to end while a test waits.
func WithTimeouts(each string, settings hosts.Settings) hosts.Settings {
	redis, inRedis := settings["redis"].(map[string]any)
	if inRedis {
		redis["dialTimeout"], redis["readTimeout"], redis["writeTimeout"] = each, each, each
	}
	return settings
}

// Serve puts the plugin before a backend on this environment's host.
func (e *Env) Serve(t *testing.T, more hosts.Settings, backend http.HandlerFunc) *Site {
	t.Helper()
	return Serve(t, e.Host, backend, e.Settings(more))
}

// Site is a site under test with its client and its backend.
type Site struct {
	*hosts.Site
	T       *testing.T
	HTTP    *http.Client
	Backend *Backend
}

// Serve puts the plugin, once for each of the settings in chain, before a backend on host.
func Serve(t *testing.T, host hosts.Host, handler http.HandlerFunc, chain ...hosts.Settings) *Site {
	t.Helper()
	b := NewBackend(t, handler)
	return SiteOf(t, host.Serve(t, b.URL, chain...), b)
}

// SiteOf is the site s, with b behind it.
func SiteOf(t *testing.T, s *hosts.Site, b *Backend) *Site {
	client := s.Client()
	t.Cleanup(client.CloseIdleConnections)
	return &Site{Site: s, T: t, HTTP: client, Backend: b}
}

// Backend is a server that counts its calls.
type Backend struct {
	*httptest.Server
	Calls atomic.Int64

	Mu    sync.Mutex // guards ByKey
	ByKey map[string]int
}

// NewBackend starts a backend that answers with handler.
func NewBackend(t *testing.T, handler http.HandlerFunc) *Backend {
	t.Helper()
	b := &Backend{ByKey: map[string]int{}}
	b.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if hosts.IsProbe(r) {
			return
		}
		b.Calls.Add(1)
		b.Mu.Lock()
		b.ByKey[r.Header.Get("X-Request-ID")]++
		b.Mu.Unlock()
		handler(w, r)
	}))
	b.Config.Protocols = hosts.Protocols()
	b.Config.ErrorLog = Quiet
	b.Start()
	t.Cleanup(b.Close)
	return b
}

// Answer is a response that was read to its end.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
	Err    error // of the request or of reading the body
}

// Call is a request under construction.
type Call struct {
	Method, Path, Body string
	Header             http.Header
	Reader             io.Reader // instead of body: sent in chunks
}

// Post is a POST request with a key, if it is not empty, and with more headers: names and values in turn.
func Post(path, key string, more ...string) Call {
	c := Call{Method: http.MethodPost, Path: path, Body: `{"amount":10}`, Header: http.Header{"Content-Type": {"application/json"}}}
	if key != "" {
		c.Header.Set("X-Request-ID", key)
	}
	for i := 0; i+1 < len(more); i += 2 {
		c.Header.Add(more[i], more[i+1])
	}
	return c
}

// With returns c after a change.
func (c Call) With(change func(c *Call)) Call {
	c.Header = c.Header.Clone()
	change(&c)
	return c
}

// Request makes c a request to the site.
func (s *Site) Request(c Call) *http.Request {
	body := c.Reader
	if body == nil {
		body = strings.NewReader(c.Body)
	}
	request, err := http.NewRequest(c.Method, s.URL(c.Path), body)
	if err != nil {
		s.T.Fatal(err)
	}
	request.Header = c.Header.Clone()
	if host := c.Header.Get("Host"); host != "" {
		request.Host = host
	}
	return request
}

// Send sends c and reads the answer; the error is part of it.
func (s *Site) Send(c Call) Answer {
	response, err := s.HTTP.Do(s.Request(c))
	if err != nil {
		return Answer{Err: err}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return Answer{Status: response.StatusCode, Header: response.Header, Body: body, Err: err}
}

// Do is send for a request that has to be answered.
func (s *Site) Do(c Call) Answer {
	s.T.Helper()
	a := s.Send(c)
	if a.Err != nil {
		s.T.Fatalf("%s %s: %v", c.Method, c.Path, a.Err)
	}
	return a
}

// DoWhile sends c again as long as its answer has this status. The test's time-out ends it at last.
func (s *Site) DoWhile(status int, c Call) Answer {
	s.T.Helper()
	a := s.Do(c)
	for a.Status == status {
		time.Sleep(20 * time.Millisecond)
		a = s.Do(c)
	}
	return a
}

// Calls checks how often the backend was called.
func (s *Site) Calls(want int64) {
	s.T.Helper()
	if got := s.Backend.Calls.Load(); got != want {
		s.T.Errorf("the backend was called %d times, want %d", got, want)
	}
}

// AwaitLog waits for text in the host's log, which a Traefik process writes to a pipe. Text that never comes ends in
// the test's time-out.
func (s *Site) AwaitLog(text string) {
	s.T.Helper()
	for !strings.Contains(s.Logs(), text) {
		time.Sleep(10 * time.Millisecond)
	}
}

// AwaitStore is AwaitRedis for a middleware that rejects meanwhile.
func (s *Site) AwaitStore() {
	s.T.Helper()
	for s.Do(Post("/back", fmt.Sprintf("back-%d", Unique.Add(1)))).Status == 503 {
		time.Sleep(10 * time.Millisecond)
	}
}

// AwaitRedis returns when requests are decided with Redis again. One that never is ends in the test's time-out.
func (s *Site) AwaitRedis() {
	s.T.Helper()
	for strings.HasSuffix(s.Do(Post("/back", fmt.Sprintf("back-%d", Unique.Add(1)))).Header.Get("Decision"), ";degraded") {
		time.Sleep(10 * time.Millisecond)
	}
}

// Want checks status and decision of an answer.
func (s *Site) Want(a Answer, status int, decision string) {
	s.T.Helper()
	if a.Err != nil {
		s.T.Fatalf("no answer: %v", a.Err)
	}
	if a.Status != status || a.Header.Get("Decision") != decision {
		s.T.Errorf("answer %d %q, want %d %q\n%.1000s", a.Status, a.Header.Get("Decision"), status, decision, a.Body)
	}
}

// WantProblem checks an answer of the plugin's own.
func (s *Site) WantProblem(a Answer, status int, slug, decision string) {
	s.T.Helper()
	s.Want(a, status, decision)
	var problem map[string]any
	err := json.Unmarshal(a.Body, &problem)
	if err != nil {
		s.T.Errorf("the problem is no JSON: %v\n%s", err, a.Body)
		return
	}
	if problem["type"] != "urn:traefik-idem:problem:"+slug || problem["status"] != float64(status) || problem["title"] == "" || problem["detail"] == "" {
		s.T.Errorf("problem %s, want type …:%s and status %d", a.Body, slug, status)
	}
	if a.Header.Get("Content-Type") != "application/problem+json" {
		s.T.Errorf("a problem of type %q", a.Header.Get("Content-Type"))
	}
	if caching := a.Header.Values("Cache-Control"); len(caching) != 1 || caching[0] != "no-store" {
		s.T.Errorf("a problem with Cache-Control %q", caching)
	}
	instance, keyed := problem["instance"].(string)
	if keyed != (slug != "invalid-key" && slug != "missing-key" && slug != "missing-caller") || (keyed && !publicID.MatchString(instance)) {
		s.T.Errorf("the instance of %s is %q", slug, instance)
	}
	want := map[string]any{"type": "idempotency_error", "code": slug, "message": problem["detail"]}
	if !reflect.DeepEqual(problem["error"], want) {
		s.T.Errorf("the error of a problem is %v, want %v", problem["error"], want)
	}
	for name := range problem {
		switch name {
		case "type", "title", "status", "detail", "instance", "originalStatus", "error":
		default:
			s.T.Errorf("a problem with the member %q: %s", name, a.Body)
		}
	}
}

// publicID is what a problem shows of a key.
var publicID = regexp.MustCompile(`^urn:traefik-idem:key:[0-9a-f]{16}$`)

// WantReplay checks that again is first's answer once more.
func (s *Site) WantReplay(first, again Answer) {
	s.T.Helper()
	s.WantReplayAs(first, again, "replayed")
}

// WantReplayAs is WantReplay for another decision, such as that of a replay while Redis is out of reach.
func (s *Site) WantReplayAs(first, again Answer, decision string) {
	s.T.Helper()
	s.Want(again, first.Status, decision)
	if !bytes.Equal(first.Body, again.Body) {
		s.T.Errorf("replayed body %.200q, want %.200q", again.Body, first.Body)
	}
	if again.Header.Get("Idempotent-Replayed") != "true" {
		s.T.Errorf("no Idempotent-Replayed: %v", again.Header)
	}
}

// Created answers 201 with a body that no other call gets.
func Created(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(http.StatusCreated)
	fmt.Fprintf(w, "payment %d", Unique.Add(1))
}

// Unique counts what is to be the only one of its kind in this process.
var Unique atomic.Int64

// Gated is created for a request that tells when it has arrived, and is held until there is something to receive.
func Gated(arrived chan<- struct{}, proceed <-chan struct{}) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-proceed
		Created(w, r)
	}
}

// Headers is what every request of c has besides, each name as it is.
func (c Call) Headers(lines ...string) Call {
	return c.With(func(c *Call) {
		for i := 0; i+1 < len(lines); i += 2 {
			c.Header[lines[i]] = []string{lines[i+1]}
		}
	})
}

// Quiet logs nothing.
var Quiet = log.New(io.Discard, "", 0)

// WantRun checks that a key runs once.
func (s *Site) WantRun(key string) {
	s.T.Helper()
	s.WantRunOf(Post("/", key))
}

// WantRunOf checks that c runs once.
func (s *Site) WantRunOf(c Call) {
	s.T.Helper()
	first := s.Do(c)
	s.Want(first, 201, "first")
	s.WantReplay(first, s.Do(c))
}

// Until waits until what is reached, and fails the test after limit.
func Until(t *testing.T, what string, limit time.Duration, reached func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !reached(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s", what, limit)
		}
	}
}

// Never is a time-out that no test is meant to reach.
const Never = time.Hour

// Keyed is a request to a handler, with a key.
func Keyed(method, key string) *http.Request {
	r := httptest.NewRequest(method, "/pay", strings.NewReader("body"))
	r.Header.Set("X-Request-ID", key)
	return r
}

// Closed reports whether c is closed.
func Closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Lines counts those of the log that have all these words.
func (s *Site) Lines(words ...string) int {
	n := 0
	for line := range strings.Lines(s.Logs()) {
		has := true
		for _, word := range words {
			has = has && strings.Contains(line, word)
		}
		if has {
			n++
		}
	}
	return n
}

// WantLine waits for a line of the log that has all these words, and checks that it is the only one.
func (s *Site) WantLine(words ...string) {
	s.T.Helper()
	for s.Lines(words...) == 0 { // one that never comes ends in the test's time-out
		time.Sleep(10 * time.Millisecond)
	}
	if n := s.Lines(words...); n != 1 {
		s.T.Errorf("%d lines with %q, want one", n, words)
	}
}

// UnusedKey returns an idempotency key that no other call gets.
func UnusedKey() string { return fmt.Sprintf("key-%d", Unique.Add(1)) }

// NoneTwice checks that the backend was called once at the most for each key.
func (s *Site) NoneTwice() {
	s.T.Helper()
	s.Backend.Mu.Lock()
	defer s.Backend.Mu.Unlock()
	for key, calls := range s.Backend.ByKey {
		if calls > 1 {
			s.T.Errorf("the backend was called %d times for key %s", calls, key)
		}
	}
}
