package outages

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
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// largeAnswers answers with as many bytes as the path has letters x, in MiB; with few else.
func largeAnswers(w http.ResponseWriter, r *http.Request) {
	n := strings.Count(r.URL.Path, "x") << 20
	if n == 0 {
		rig.Created(w, r)
		return
	}
	_, _ = io.Copy(io.Discard, r.Body)
	w.WriteHeader(http.StatusCreated)
	_, _ = w.Write(bytes.Repeat([]byte("0123456789abcdef"), n/16))
}

// overLink serves two sites that share Redis, and no memory: one over w, one straight. An answer may have 30 MiB.
func overLink(t *testing.T, host hosts.Host, w *rig.Weather, server *redistest.Server, onStoreError string) (over, straight *rig.Site) {
	t.Helper()
	b := rig.NewBackend(t, largeAnswers)
	on := func(addr, timeout string) *rig.Site {
		return rig.SiteOf(t, host.Serve(t, b.URL, hosts.Settings{"statusHeader": "Decision", "onStoreError": onStoreError, "localCacheBytes": 0, "scope": []any{"Authorization"},
			"maxResponseBodyBytes": 30 << 20, "inFlight": "reject", "lease": "10m", "ttl": "10m", "maxTTL": "10m",
			"redis": map[string]any{"endpoints": addr, "keyPrefix": "p", "dialTimeout": timeout, "readTimeout": timeout, "writeTimeout": timeout}}), b)
	}
	return on(w.Proxy.Listen, "3s"), on(server.Addr, "20s")
}

// megabytes is a path that is answered with so many of them.
func megabytes(n int) string { return "/" + strings.Repeat("x", n) }

// TestALargeAnswerHasTimeToArrive takes longer than the time-outs, on its way to Redis and back.
func TestALargeAnswerHasTimeToArrive(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		w := rig.NewWeather(t, server.Addr)
		w.Bad("bandwidth", "upstream", map[string]any{"rate": 5_000})
		w.Bad("bandwidth", "downstream", map[string]any{"rate": 5_000})
		over, straight := overLink(t, host, w, server, "reject")
		first := over.Do(rig.Post(megabytes(28), "k"))
		over.Want(first, 201, "first")
		straight.WantReplay(first, unless409(straight, rig.Post(megabytes(28), "k")))
		over.WantReplay(first, over.Do(rig.Post(megabytes(28), "k")))
		over.WantRun("small")
		if n := over.Lines("Redis is out of reach", w.Proxy.Listen); n != 0 {
			t.Error("a large answer is taken for an outage")
		}
	})
}

// TestAnAnswerThatRedisDoesNotTake is too long for the way there, or for Redis. Redis is well all the same.
func TestAnAnswerThatRedisDoesNotTake(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for name, begin := range map[string]func(w *rig.Weather, server *redistest.Server){
			"slow link": func(w *rig.Weather, _ *redistest.Server) { w.Bad("bandwidth", "upstream", map[string]any{"rate": 100}) },
			"proto-max-bulk-len": func(_ *rig.Weather, server *redistest.Server) {
				server.Do("CONFIG", "SET", "proto-max-bulk-len", "1048576")
			},
			"client-query-buffer-limit": func(_ *rig.Weather, server *redistest.Server) {
				server.Do("CONFIG", "SET", "client-query-buffer-limit", "1048576")
			},
		} {
			t.Run(name, func(t *testing.T) {
				server := redistest.Start(t)
				w := rig.NewWeather(t, server.Addr)
				over, straight := overLink(t, host, w, server, "degrade")
				over.WantRun("warm")
				begin(w, server)
				first := over.Do(rig.Post(megabytes(4), "k"))
				over.Want(first, 201, "first")
				over.WantReplay(first, over.Do(rig.Post(megabytes(4), "k")))
				a := straight.Do(rig.Post(megabytes(4), "k"))
				for strings.Contains(string(a.Body), ":in-flight") { // until Redis has been told
					time.Sleep(10 * time.Millisecond)
					a = straight.Do(rig.Post(megabytes(4), "k"))
				}
				straight.WantProblem(a, 409, "response-not-kept", "unkept")
				over.WantRun("small")
				over.Calls(3)
				if n := over.Lines("Redis is out of reach", w.Proxy.Listen); n != 0 {
					t.Error("an answer that is too large is taken for an outage")
				}
				over.WantLine("the end of a request could not be stored", "it is too large for Redis")
			})
		}
	})
}

// TestAWriteBackThatRedisDoesNotTakeIsGivenUp has it before others that were answered in the same outage.
func TestAWriteBackThatRedisDoesNotTakeIsGivenUp(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t, "--proto-max-bulk-len", "1048576")
		w := rig.NewWeather(t, server.Addr)
		over, straight := overLink(t, host, w, server, "degrade")
		over.WantRun("warm")
		server.Kill()
		large := over.Do(rig.Post(megabytes(4), "large"))
		over.Want(large, 201, "first;degraded")
		small := over.Do(rig.Post("/", "small"))
		server.Restart()
		over.AwaitRedis()
		straight.AwaitRedis()
		over.AwaitLog("an answer could not be written to Redis and is given up")
		over.AwaitLog(`"answers of the outage were written to Redis" redis="` + w.Proxy.Listen)
		straight.WantProblem(straight.Do(rig.Post(megabytes(4), "large")), 409, "response-not-kept", "unkept")
		straight.WantReplay(small, straight.Do(rig.Post("/", "small")))
		over.WantReplay(large, over.Do(rig.Post(megabytes(4), "large")))
		over.WantLine("is given up", w.Proxy.Listen)
		if n := over.Lines("Redis is out of reach", w.Proxy.Listen); n != 1 {
			t.Errorf("%d outages, want the one that there was", n)
		}
	})
}

// TestManyLargeAnswersAtOnce holds up no small request.
func TestManyLargeAnswersAtOnce(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		w := rig.NewWeather(t, server.Addr)
		over, straight := overLink(t, host, w, server, "reject")
		over.WantRun("warm")
		w.Bad("bandwidth", "upstream", map[string]any{"rate": 2_000})
		w.Bad("bandwidth", "downstream", map[string]any{"rate": 2_000})
		answers := make(chan rig.Answer, 96)
		for range 48 {
			go func() { answers <- over.Send(rig.Post(megabytes(1), rig.UnusedKey())) }()
			go func() { answers <- over.Send(rig.Post("/", rig.UnusedKey())) }()
		}
		for range 96 {
			over.Want(<-answers, 201, "first")
		}
		for range 48 {
			go func() { answers <- straight.Send(rig.Post(megabytes(1), rig.UnusedKey())) }()
		}
		for range 48 {
			straight.Want(<-answers, 201, "first")
		}
		over.NoneTwice()
		if n := over.Lines("Redis is out of reach", w.Proxy.Listen); n != 0 {
			t.Error("large answers are taken for an outage")
		}
	})
}
