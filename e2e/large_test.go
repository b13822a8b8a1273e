package e2e

// Answers that are large for the way to Redis.

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
)

// largeAnswers answers with as many bytes as the path has letters x, in MiB; with few else.
func largeAnswers(w http.ResponseWriter, r *http.Request) {
	n := strings.Count(r.URL.Path, "x") << 20
	if n == 0 {
		created(w, r)
		return
	}
	_, _ = io.Copy(io.Discard, r.Body)
	w.WriteHeader(http.StatusCreated)
	_, _ = w.Write(bytes.Repeat([]byte("0123456789abcdef"), n/16))
}

// overLink serves two sites that share Redis, and no memory: one over w, one straight. An answer may have 30 MiB.
func overLink(t *testing.T, host hosts.Host, w *weather, server *redistest.Server, onStoreError string) (over, straight *site) {
	t.Helper()
	b := newBackend(t, largeAnswers)
	on := func(addr, timeout string) *site {
		return siteOf(t, host.Serve(t, b.URL, hosts.Settings{"statusHeader": "Decision", "onStoreError": onStoreError, "localCacheBytes": 0, "scope": []any{"Authorization"},
			"maxResponseBodyBytes": 30 << 20, "inFlight": "reject", "lease": "10m", "ttl": "10m", "maxTTL": "10m",
			"redis": map[string]any{"endpoints": addr, "keyPrefix": "p", "dialTimeout": timeout, "readTimeout": timeout, "writeTimeout": timeout}}), b)
	}
	return on(w.proxy.Listen, "3s"), on(server.Addr, "20s")
}

// megabytes is a path that is answered with so many of them.
func megabytes(n int) string { return "/" + strings.Repeat("x", n) }

// TestALargeAnswerHasTimeToArrive takes longer than the time-outs, on its way to Redis and back.
func TestALargeAnswerHasTimeToArrive(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		w := newWeather(t, server.Addr)
		w.bad("bandwidth", "upstream", map[string]any{"rate": 5_000})
		w.bad("bandwidth", "downstream", map[string]any{"rate": 5_000})
		over, straight := overLink(t, host, w, server, "reject")
		first := over.do(post(megabytes(28), "k"))
		over.want(first, 201, "first")
		straight.wantReplay(first, straight.unless409(post(megabytes(28), "k")))
		over.wantReplay(first, over.do(post(megabytes(28), "k")))
		over.wantRun("small")
		if n := over.lines("Redis is out of reach", w.proxy.Listen); n != 0 {
			t.Error("a large answer is taken for an outage")
		}
	})
}

// TestAnAnswerThatRedisDoesNotTake is too long for the way there, or for Redis. Redis is well all the same.
func TestAnAnswerThatRedisDoesNotTake(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		for name, begin := range map[string]func(w *weather, server *redistest.Server){
			"slow link": func(w *weather, _ *redistest.Server) { w.bad("bandwidth", "upstream", map[string]any{"rate": 100}) },
			"proto-max-bulk-len": func(_ *weather, server *redistest.Server) {
				server.Do("CONFIG", "SET", "proto-max-bulk-len", "1048576")
			},
			"client-query-buffer-limit": func(_ *weather, server *redistest.Server) {
				server.Do("CONFIG", "SET", "client-query-buffer-limit", "1048576")
			},
		} {
			t.Run(name, func(t *testing.T) {
				server := redistest.Start(t)
				w := newWeather(t, server.Addr)
				over, straight := overLink(t, host, w, server, "degrade")
				over.wantRun("warm")
				begin(w, server)
				first := over.do(post(megabytes(4), "k"))
				over.want(first, 201, "first")
				over.wantReplay(first, over.do(post(megabytes(4), "k")))
				a := straight.do(post(megabytes(4), "k"))
				for strings.Contains(string(a.body), ":in-flight") { // until Redis has been told
					time.Sleep(10 * time.Millisecond)
					a = straight.do(post(megabytes(4), "k"))
				}
				straight.wantProblem(a, 409, "response-not-kept", "unkept")
				over.wantRun("small")
				over.calls(3)
				if n := over.lines("Redis is out of reach", w.proxy.Listen); n != 0 {
					t.Error("an answer that is too large is taken for an outage")
				}
				over.wantLine("the end of a request could not be stored", "it is too large for Redis")
			})
		}
	})
}

// TestAWriteBackThatRedisDoesNotTakeIsGivenUp has it before others that were answered in the same outage.
func TestAWriteBackThatRedisDoesNotTakeIsGivenUp(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		w := newWeather(t, server.Addr)
		over, straight := overLink(t, host, w, server, "degrade")
		over.wantRun("warm")
		server.Kill()
		large := over.do(post(megabytes(4), "large"))
		over.want(large, 201, "first;degraded")
		small := over.do(post("/", "small"))
		server.Restart()
		server.Do("CONFIG", "SET", "proto-max-bulk-len", "1048576")
		over.awaitRedis()
		straight.awaitRedis()
		over.awaitLog("an answer could not be written to Redis and is given up")
		for redisKeys(server, "idem1K") == 0 { // what is never written ends in the test's time-out
			time.Sleep(10 * time.Millisecond)
		}
		straight.wantProblem(straight.do(post(megabytes(4), "large")), 409, "response-not-kept", "unkept")
		straight.wantReplay(small, straight.do(post("/", "small")))
		over.wantReplay(large, over.do(post(megabytes(4), "large")))
		over.wantLine("is given up", w.proxy.Listen)
		if n := over.lines("Redis is out of reach", w.proxy.Listen); n != 1 {
			t.Errorf("%d outages, want the one that there was", n)
		}
	})
}

// TestManyLargeAnswersAtOnce holds up no small request.
func TestManyLargeAnswersAtOnce(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		w := newWeather(t, server.Addr)
		over, straight := overLink(t, host, w, server, "reject")
		over.wantRun("warm")
		w.bad("bandwidth", "upstream", map[string]any{"rate": 2_000})
		w.bad("bandwidth", "downstream", map[string]any{"rate": 2_000})
		answers := make(chan answer, 96)
		for range 48 {
			go func() { answers <- over.send(post(megabytes(1), unusedKey())) }()
			go func() { answers <- over.send(post("/", unusedKey())) }()
		}
		for range 96 {
			over.want(<-answers, 201, "first")
		}
		for range 48 {
			go func() { answers <- straight.send(post(megabytes(1), unusedKey())) }()
		}
		for range 48 {
			straight.want(<-answers, 201, "first")
		}
		over.noneTwice()
		if n := over.lines("Redis is out of reach", w.proxy.Listen); n != 0 {
			t.Error("large answers are taken for an outage")
		}
	})
}
