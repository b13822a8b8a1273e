package behaviour

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// total checks one of the totals.
func total(f rig.Figures, t *testing.T, name string, want int64) {
	t.Helper()
	got, known := f.Totals[name]
	if got != want || !known {
		t.Errorf("%s is %d, want %d; all: %v", name, got, want, f.Totals)
	}
}

func TestStatsCount(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		arrived, proceed := make(chan struct{}), make(chan struct{})
		slow := rig.Gated(arrived, proceed)
		s := e.Serve(t, hosts.Settings{"stats": rig.OpenStats["stats"], "required": true, "inFlight": "reject", "maxResponseBodyBytes": 100}, func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/slow":
				slow(w, r)
			case "/large":
				_, _ = w.Write(make([]byte, 101))
			case "/broken":
				_, _ = w.Write([]byte("half"))
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			default:
				rig.Created(w, r)
			}
		})
		begin := time.Now().Truncate(time.Second)
		before := s.Stats()
		for name := range before.Totals {
			total(before, t, name, 0)
		}
		if before.Since != "" || before.LastDuplicate != "" || len(before.Endpoints) != 0 || before.Endpoints == nil {
			t.Errorf("before the first request: %+v", before)
		}
		for range 3 {
			s.Do(rig.Post("/pay", "k"))
		}
		s.Do(rig.Post("/pay", "k").With(func(c *rig.Call) { c.Body = "{}" }))
		s.Do(rig.Post("/pay", "a b"))
		s.Do(rig.Post("/pay", ""))
		s.Do(rig.Post("/pay", "k").With(func(c *rig.Call) { c.Method = http.MethodGet }))
		for range 2 {
			s.Do(rig.Post("/large", "k"))
			s.Send(rig.Post("/broken", "k"))
		}
		var running sync.WaitGroup
		running.Go(func() { s.Send(rig.Post("/slow", "k")) })
		<-arrived
		s.WantProblem(s.Do(rig.Post("/slow", "k")), 409, "in-flight", "conflict")
		close(proceed)
		running.Wait()

		f := s.Stats()
		for name, want := range map[string]int64{"protected": 12, "firstRuns": 4, "replays": 2, "replaysLocal": 2, "replaysStore": 0, "conflicts": 1,
			"mismatches": 1, "invalid": 2, "unknown": 1, "unkept": 1, "observed": 0, "unobserved": 0, "passed": 0, "unavailable": 0,
			"degraded": 0, "storeErrors": 0, "unknownOutcomes": 1, "settled": 0, "duplicates": 5, "saved": 4} {
			total(f, t, name, want)
		}
		if len(f.Totals) != 20 {
			t.Errorf("%d totals: %v", len(f.Totals), f.Totals)
		}
		want := "POST " + s.Name + " /pay 2, POST " + s.Name + " /broken 1, POST " + s.Name + " /large 1, POST " + s.Name + " /slow 1"
		if got := ranking(f); got != want {
			t.Errorf("endpoints %s, want %s", got, want)
		}
		for path, want := range map[string]map[string]int64{"/pay": {"replaysLocal": 2, "mismatches": 1}, "/broken": {"unknown": 1, "unknownOutcomes": 1}, "/large": {"unkept": 1}, "/slow": {"conflicts": 1}} {
			for _, endpoint := range f.Endpoints {
				if endpoint.Path == path && !maps.Equal(endpoint.Outcomes, want) {
					t.Errorf("outcomes of %s: %v, want %v", path, endpoint.Outcomes, want)
				}
			}
		}
		for _, text := range []string{f.Since, f.LastDuplicate, f.GeneratedAt, f.Endpoints[0].LastDuplicate, f.Endpoints[0].LastSeen, f.Memory.MeasuredAt, f.Problems["unknownOutcomes"].Last} {
			at, err := time.Parse(time.RFC3339, text)
			if err != nil || at.Before(begin) || at.After(time.Now()) {
				t.Errorf("time %q: %v", text, err)
			}
		}
		sum := func(counts []int64) (sum int64) {
			for _, n := range counts {
				sum += n
			}
			return sum
		}
		if len(f.Minutes) != 60 || len(f.Hours) != 168 || sum(f.Minutes) != 5 || sum(f.Hours) != 5 {
			t.Errorf("minutes %v, hours %v", f.Minutes, f.Hours)
		}
		for name, want := range map[string]int64{"unknownOutcomes": 1, "mismatches": 1, "unavailable": 0, "degraded": 0} {
			p, known := f.Problems[name]
			if !known || p.LastHour != want || sum(p.Minutes) != want || sum(p.Hours) != want || len(p.Minutes) != 60 || len(p.Hours) != 168 || (p.Last == "") != (want == 0) {
				t.Errorf("problem %s: %+v, want %d", name, p, want)
			}
		}
		kind := "memory"
		if e.Redis != nil {
			kind = "redis"
		}
		if f.Store.Kind != kind || !f.Store.Healthy || f.Store.Error != "" {
			t.Errorf("store %+v", f.Store)
		}
		if f.Settings["key"] != "X-Request-Id" || f.Settings["stats.maxEndpoints"] != "1000" {
			t.Errorf("settings %v", f.Settings)
		}
	})
}

func ranking(f rig.Figures) string {
	var all []string
	for _, e := range f.Endpoints {
		all = append(all, fmt.Sprintf("%s %s %s %d", e.Method, e.Host, e.Path, e.Duplicates))
	}
	return strings.Join(all, ", ")
}

// TestStatsAreShared has one Redis, three processes' worth of plugins, and one that comes when the others have gone.
func TestStatsAreShared(t *testing.T) {
	redis := rig.SharedRedis(t)
	settings := (&rig.Env{Redis: redis}).Settings(rig.OpenStats)
	all := hosts.All()
	for range 2 {
		t.Run("together", func(t *testing.T) {
			for i, host := range all {
				s := rig.Serve(t, host, rig.Created, settings)
				s.Do(rig.Post("/pay", "k"))
				s.Do(rig.Post("/pay", fmt.Sprint(i)))
				s.Do(rig.Post("/pay", fmt.Sprint(i)))
			}
		})
	}
	s := rig.Serve(t, hosts.Compiled, rig.Created, settings)
	n := int64(len(all))
	f := s.Counted(func(f rig.Figures) bool { return f.Totals["protected"] == 6*n })
	total(f, t, "duplicates", 2*n)
	total(f, t, "firstRuns", 4*n)

	// Another prefix, other numbers.
	total(rig.Serve(t, hosts.Compiled, rig.Created, (&rig.Env{Redis: redis}).Settings(rig.OpenStats)).Stats(), t, "protected", 0)
}

// TestStatsReachRedis without being asked for, and have an end.
func TestStatsReachRedis(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		redis := rig.SharedRedis(t)
		e := &rig.Env{Host: host, Redis: redis}
		settings := e.Settings(hosts.Settings{"stats": map[string]any{"ttl": "48h"}})
		prefix := settings["redis"].(map[string]any)["keyPrefix"].(string)
		redis.Do("HSET", prefix+":stats", "m 1", "7", "h 1", "7", "e POST old.test /gone", "7 1", "e POST old.test /broken", "0 0 1 0 0 7", "M mismatches 1", "7", "H degraded 1", "7", "p old", "7 1", "endpoints", "2")
		t.Run("site", func(t *testing.T) {
			s := rig.Serve(t, host, rig.Created, settings)
			s.Do(rig.Post("/pay", "k"))
			s.Do(rig.Post("/pay", "k"))
		})
		for redis.Do("HGET", prefix+":stats", "t replaysLocal") != "1" {
			time.Sleep(20 * time.Millisecond)
		}
		left, _ := strconv.Atoi(redis.Do("TTL", prefix+":stats"))
		if left > 48*3600 || left < 47*3600 {
			t.Errorf("the statistics live for %d s", left)
		}
		all := redis.Do("HKEYS", prefix+":stats")
		for _, old := range []string{"m 1", "h 1", "M mismatches 1", "H degraded 1", "e POST old.test /gone", "e POST old.test /broken", "p old"} {
			if strings.Contains(all+"\n", old+"\n") {
				t.Errorf("%s is still there:\n%s", old, all)
			}
		}
		if got := redis.Do("HGET", prefix+":stats", "endpoints"); got != "1" {
			t.Errorf("%s endpoints, want 1", got)
		}
	})
}

func TestStatsAreBounded(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		settings := e.Settings(hosts.Settings{"stats": map[string]any{"insecure": "true", "maxEndpoints": "3"}})
		s := rig.Serve(t, e.Host, rig.Created, settings)
		for range 2 {
			for i := range 20 {
				s.Do(rig.Post("/p"+strconv.Itoa(i), "k"))
			}
			s.Stats()
		}
		f := s.Stats()
		total(f, t, "duplicates", 20)
		if len(f.Endpoints) != 3 || f.OtherDuplicates != 17 {
			t.Errorf("%d endpoints, %d other duplicates", len(f.Endpoints), f.OtherDuplicates)
		}
		// Those that are known are still counted.
		s.Do(rig.Post(f.Endpoints[1].Path, "k"))
		if f = s.Stats(); f.Endpoints[0].Duplicates != 2 || f.OtherDuplicates != 17 {
			t.Errorf("endpoints %s, %d other duplicates", ranking(f), f.OtherDuplicates)
		}
		if e.Redis != nil {
			prefix := settings["redis"].(map[string]any)["keyPrefix"].(string)
			if n := strings.Count("\n"+e.Redis.Do("HKEYS", prefix+":stats"), "\ne "); n != 4 {
				t.Errorf("%d endpoints in Redis, want 3 and one for the others", n)
			}
		}
		if metrics := string(s.Do(rig.Get("/_idem/metrics")).Body); strings.Count(metrics, "\ntraefik_idem_endpoint_duplicates_total{") != 4 || !strings.Contains(metrics, `{method="",host="",path="other"} 17`) {
			t.Errorf("metrics:\n%s", metrics)
		}
	})
}

// TestStatsOfAnOutage: what was counted while Redis was away is added once, whatever became of the flushes.
func TestStatsOfAnOutage(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		e, server := rig.Restartable(t, host)
		settings := e.Settings(rig.OpenStats)
		redis := settings["redis"].(map[string]any)
		for _, name := range []string{"dialTimeout", "readTimeout", "writeTimeout"} {
			redis[name] = "100ms"
		}
		s := rig.Serve(t, host, rig.Created, settings)
		counters := metrics(s)
		grows := func() {
			t.Helper()
			now := metrics(s)
			for name, value := range counters {
				if now[name] < value {
					t.Errorf("%s falls from %v to %v", name, value, now[name])
				}
			}
			counters = now
		}
		sent := int64(0)
		duplicates := func() {
			for range 5 {
				s.Do(rig.Post("/pay", fmt.Sprint("k", sent)))
				s.Do(rig.Post("/pay", fmt.Sprint("k", sent)))
				sent += 2
			}
		}
		check := func(healthy bool) {
			t.Helper()
			grows()
			f := s.Counted(func(f rig.Figures) bool { return f.Store.Healthy == healthy })
			total(f, t, "protected", sent)
			total(f, t, "duplicates", sent/2)
			if (f.Store.Error == "") != healthy {
				t.Errorf("store %+v", f.Store)
			}
			for strings.Contains(string(s.Do(rig.Get("/_idem/")).Body), "Redis cannot be used") == healthy {
				time.Sleep(20 * time.Millisecond) // with such time-outs, a busy machine is an outage; a page that is never right ends in the test's time-out
			}
			grows()
		}
		duplicates()
		check(true)
		server.Pause()
		duplicates()
		check(false)
		server.Resume()
		check(true)
		duplicates()
		check(true)
		// Redis comes back empty: the metrics go on, the shared numbers begin again with what it had not got.
		server.Kill()
		duplicates()
		check(false)
		server.Restart()
		f := s.Counted(func(f rig.Figures) bool { return f.Store.Healthy })
		total(f, t, "protected", 10)
		grows()
		duplicates()
		grows()
		if got := counters[`traefik_idem_duplicates_total`]; got != float64(sent/2) {
			t.Errorf("the metrics say %v duplicates, want %d", got, sent/2)
		}
	})
}

// metrics parses what the metrics page says with Prometheus' own code, and returns the counters' values.
func metrics(s *rig.Site) map[string]float64 {
	s.T.Helper()
	a, families := s.Metrics()
	problems, err := promlint.New(bytes.NewReader(a.Body)).Lint()
	if err != nil || len(problems) > 0 {
		s.T.Errorf("promlint: %v %v", err, problems)
	}
	counters := map[string]float64{}
	for name, family := range families {
		if !strings.HasPrefix(name, "traefik_idem_") || family.GetHelp() == "" {
			s.T.Errorf("metric %s, help %q", name, family.GetHelp())
		}
		for _, metric := range family.GetMetric() {
			id := name
			for _, label := range metric.GetLabel() {
				id += "|" + label.GetValue()
			}
			if family.GetType() == dto.MetricType_COUNTER {
				counters[id] = metric.GetCounter().GetValue()
			}
		}
	}
	return counters
}

func TestMetrics(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, rig.OpenStats, rig.Created)
		metrics(s)
		s.Do(rig.Post("/pay", "k"))
		s.Do(rig.Post("/pay", "k"))
		counters := metrics(s)
		for name, want := range map[string]float64{
			"traefik_idem_requests_total|first": 1, "traefik_idem_requests_total|replayed_local": 1, "traefik_idem_duplicates_total": 1,
			"traefik_idem_backend_calls_saved_total": 1, "traefik_idem_endpoint_duplicates_total|POST|" + s.Name + "|/pay": 1,
		} {
			if counters[name] != want {
				t.Errorf("%s is %v, want %v: %v", name, counters[name], want, counters)
			}
		}
	})
}

func TestObservedDuplicatesAreCounted(t *testing.T) {
	rig.Everywhere(t, func(t *testing.T, e *rig.Env) {
		s := e.Serve(t, hosts.Settings{"mode": "observe", "stats": rig.OpenStats["stats"]}, rig.Created)
		for i := range 3 {
			s.Do(rig.Post("/pay", "k"))
			s.Counted(func(f rig.Figures) bool { return f.Totals["protected"] == int64(i+1) }) // it is counted beside the request
		}
		s.Do(rig.Post("/pay", "k").With(func(c *rig.Call) { c.Body = "{}" }))
		s.Do(rig.Post("/pay", "not valid"))
		f := s.Counted(func(f rig.Figures) bool { return f.Totals["protected"] == 5 })
		for name, want := range map[string]int64{"firstRuns": 1, "observed": 2, "duplicates": 2, "saved": 0, "mismatches": 1, "invalid": 1} {
			total(f, t, name, want)
		}
		if got, want := ranking(f), "POST "+s.Name+" /pay 2"; got != want {
			t.Errorf("endpoints %s, want %s", got, want)
		}
		s.Calls(5)
	})
}

// TestObservingIsBounded lets Redis hang: no more than a fixed number of requests is waited for in the background.
func TestObservingIsBounded(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		e, server := rig.Restartable(t, host)
		settings := e.Settings(hosts.Settings{"mode": "observe", "lease": "2m", "stats": rig.OpenStats["stats"]})
		settings["redis"].(map[string]any)["readTimeout"] = "1m" // the first that has waited for so long would let the others go
		s := rig.Serve(t, host, rig.Created, settings)
		server.Pause()
		for i := range 200 {
			s.Want(s.Do(rig.Post("/pay", strconv.Itoa(i))), 201, "observed")
		}
		server.Resume()
		f := s.Counted(func(f rig.Figures) bool { return f.Totals["protected"] == 200 })
		total(f, t, "firstRuns", 128)
		total(f, t, "unobserved", 72)
		s.Calls(200)
	})
}

func basic(name, password string) func(c *rig.Call) {
	return func(c *rig.Call) {
		c.Header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(name+":"+password)))
	}
}

func TestWhoMaySeeTheStatistics(t *testing.T) {
	file := filepath.Join(t.TempDir(), "users")
	rig.WriteFile(t, file, "# who may look\n\nfile:from:file\r\nhashed:{SHA256}"+hex.EncodeToString(sum256("s3cret"))+"\n")
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		closed := rig.Serve(t, host, rig.Created, hosts.Settings{})
		for _, path := range []string{"/_idem/", "/_idem", "/_idem/stats.json", "/_idem/metrics", "/_idem/nothing"} {
			for _, c := range []rig.Call{rig.Get(path), rig.Get(path).With(basic("a", "b")), rig.Post(path, "k")} {
				a := closed.Do(c)
				if a.Status != 403 || !strings.Contains(string(a.Body), "stats.users") || !strings.Contains(string(a.Body), "stats.insecure") {
					t.Errorf("%s %s: %d %s", c.Method, path, a.Status, a.Body)
				}
			}
		}
		closed.Calls(0)

		s := rig.Serve(t, host, rig.Created, hosts.Settings{"stats": map[string]any{
			"users":     "plain:pass word, short:{SHA}" + base64.StdEncoding.EncodeToString(sum1("pässword")),
			"usersFile": file,
		}})
		for _, path := range []string{"/_idem/", "/_idem", "/_idem/stats.json", "/_idem/metrics", "/_idem/nothing"} {
			for name, c := range map[string]rig.Call{
				"no login":       rig.Get(path),
				"wrong password": rig.Get(path).With(basic("plain", "password")),
				"wrong name":     rig.Get(path).With(basic("other", "pass word")),
				"another's":      rig.Get(path).With(basic("short", "pass word")),
				"the digest":     rig.Get(path).With(basic("hashed", hex.EncodeToString(sum256("s3cret")))),
				"no password":    rig.Get(path).With(basic("plain", "")),
				"bearer":         rig.Get(path).With(func(c *rig.Call) { c.Header.Set("Authorization", "Bearer plain:pass word") }),
			} {
				a := patiently(s, c)
				if a.Status != 401 || !strings.HasPrefix(a.Header.Get("WWW-Authenticate"), "Basic realm=") || a.Header.Get("Cache-Control") != "no-store" {
					t.Errorf("%s: %s: %d %v", path, name, a.Status, a.Header)
				}
			}
		}
		for name, password := range map[string]string{"plain": "pass word", "short": "pässword", "file": "from:file", "hashed": "s3cret"} {
			if a := patiently(s, rig.Get("/_idem/stats.json").With(basic(name, password))); a.Status != 200 {
				t.Errorf("%s: %d %s", name, a.Status, a.Body)
			}
		}
		for _, secret := range []string{"s3cret", "pass word", "from:file"} {
			if page := s.Do(rig.Get("/_idem/").With(basic("plain", "pass word"))); strings.Contains(string(page.Body), secret) {
				t.Errorf("%s is on the page", secret)
			}
		}
		s.Calls(0)
	})
}

func sum256(text string) []byte { sum := sha256.Sum256([]byte(text)); return sum[:] }
func sum1(text string) []byte   { sum := sha1.Sum([]byte(text)); return sum[:] }

func TestStatsPaths(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		s := rig.Serve(t, host, rig.Created, hosts.Settings{"stats": rig.OpenStats["stats"], "methods": "GET,POST"})
		for _, method := range []string{"GET", "HEAD"} {
			for path, kind := range map[string]string{"/_idem/": "text/html", "/_idem/?a=b": "text/html", "/_idem/stats.json": "application/json", "/_idem/metrics": "text/plain", "/%5Fidem/": "text/html"} {
				a := s.Do(rig.Get(path).With(func(c *rig.Call) { c.Method = method }))
				length, _ := strconv.Atoi(a.Header.Get("Content-Length"))
				if a.Status != 200 || !strings.HasPrefix(a.Header.Get("Content-Type"), kind) || a.Header.Get("Cache-Control") != "no-store" || length == 0 {
					t.Errorf("%s %s: %d %v", method, path, a.Status, a.Header)
				}
				if want := length; method == "GET" && len(a.Body) != want || method == "HEAD" && len(a.Body) != 0 {
					t.Errorf("%s %s: %d bytes of %d", method, path, len(a.Body), want)
				}
			}
			for _, path := range []string{"/_idem/", "/_idem/stats.json", "/_idem/metrics"} {
				a := s.Do(rig.Get(path).Headers("Accept-Encoding", "gzip").With(func(c *rig.Call) { c.Method = method }))
				if a.Status != 200 || a.Header.Get("Content-Encoding") != "gzip" || a.Header.Get("Vary") != "Accept-Encoding" {
					t.Errorf("%s %s, compressed: %d %v", method, path, a.Status, a.Header)
				}
				if unzipped, err := gzip.NewReader(bytes.NewReader(a.Body)); method == "GET" && err != nil {
					t.Errorf("%s: %v", path, err)
				} else if method == "GET" {
					text, err := io.ReadAll(unzipped)
					if err != nil || !strings.Contains(string(text), "idem") {
						t.Errorf("%s: %v %.100s", path, err, text)
					}
				}
			}
			a := s.Do(rig.Get("/_idem").With(func(c *rig.Call) { c.Method = method }))
			if a.Status != 308 || a.Header.Get("Location") != "_idem/" {
				t.Errorf("%s /_idem: %d %v", method, a.Status, a.Header)
			}
		}
		for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "PATCH"} {
			a := s.Do(rig.Post("/_idem/", "k").With(func(c *rig.Call) { c.Method = method }))
			if a.Status != 405 || a.Header.Get("Allow") != "GET, HEAD" {
				t.Errorf("%s: %d %v", method, a.Status, a.Header)
			}
		}
		for _, path := range []string{"/_idem/x", "/_idem/stats.json/", "/_idem/a%2Fb", "/_idem/stats%2Ejson/x", "/_idem/%00", "/_idem/Metrics"} {
			if a := s.Do(rig.Get(path)); a.Status != 404 && a.Status != 400 { // 400: Traefik refuses such a path itself
				t.Errorf("%s: %d", path, a.Status)
			}
		}
		s.Calls(0)
		// None of these is under the prefix: the backend gets them, as it would without the plugin.
		for i, path := range []string{"/_IDEM/", "/_idemx", "/_idem.", "/x/_idem/", "/"} {
			if a := s.Do(rig.Get(path)); a.Status != 201 {
				t.Errorf("%s: %d", path, a.Status)
			}
			s.Calls(int64(i + 1))
		}
	})
}

// TestPathsThatTraefikChanges lists paths that Traefik's entry points clean, or refuse, before they route them. The plugin
// sees what is left: nobody gets in without a login, and the backend gets only what it would get without the plugin.
func TestPathsThatTraefikChanges(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for _, path := range []string{"/_idem/../x", "//_idem/", "/./_idem/", "/x/../_idem/", "/_idem//stats.json", "/_idem%2Fstats.json", "/_idem%2fmetrics", "/%2F_idem/",
			"/_idem/%2e%2e/x", "/_idem/..%2Fx", "/_idem%5Cmetrics", "/_idem;x/", "/_idem%3B/", "/_idem/.", "/_idem/stats.json%00", "/%5fidem%2F"} {
			var seen, without string
			with := rig.Serve(t, host, func(w http.ResponseWriter, r *http.Request) { seen = r.RequestURI; rig.Created(w, r) },
				hosts.Settings{"stats": map[string]any{"users": "a:b"}})
			plain := rig.Serve(t, host, func(w http.ResponseWriter, r *http.Request) { without = r.RequestURI; rig.Created(w, r) },
				hosts.Settings{"stats": map[string]any{"path": ""}})
			status := rawGet(t, with, path)
			plainStatus := rawGet(t, plain, path)
			if status == 200 {
				t.Errorf("%s opens the page to everybody", path)
			}
			if seen != "" && seen != without {
				t.Errorf("%s reaches the backend as %q, without the plugin as %q", path, seen, without)
			}
			if seen == "" && status != 401 && status != plainStatus {
				t.Errorf("%s: %d, without the plugin %d", path, status, plainStatus)
			}
		}
	})
}

// rawGet sends path as it is and returns the status.
func rawGet(t *testing.T, s *rig.Site, path string) int {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path, s.Name)
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	return response.StatusCode
}

// TestHostileNames has a client put into method, host and path what breaks pages and formats.
func TestHostileNames(t *testing.T) {
	for name, build := range hosts.Builders(t) {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			h, err := build(ctx, http.HandlerFunc(rig.Created), hosts.Settings{"endpoints": "* /", "stats": rig.OpenStats["stats"]}, t.Name())
			if err != nil {
				t.Fatal(err)
			}
			server := httptest.NewServer(h)
			defer server.Close()
			s := &rig.Site{Site: &hosts.Site{Addr: server.Listener.Addr().String(), Name: "stats.test"}, T: t}
			s.HTTP = s.Client()
			defer s.HTTP.CloseIdleConnections()
			evil := []string{"<script>alert(1)</script>", `"><img src=x onerror=alert(1)>`, "a\nb\r\nc", `quote"back\slash`, "\xff\xfe", "{{.Nonce}}", "${x}", "line\u2028", "'", "/" + strings.Repeat("x", 8192), "</script>", "<!--"}
			for i, text := range evil {
				for range 2 {
					r := rig.Keyed("POST", "k"+strconv.Itoa(i))
					r.Host = "host" + text
					r.Method = "POST" + text
					r.URL.Path = "/path" + text
					h.ServeHTTP(httptest.NewRecorder(), r)
				}
			}
			f := s.Stats()
			total(f, t, "duplicates", int64(len(evil)))
			if len(f.Endpoints) != len(evil) {
				t.Errorf("%d endpoints, want %d", len(f.Endpoints), len(evil))
			}
			for _, e := range f.Endpoints {
				if len(e.Method) > 40 || len(e.Host) > 260 || len(e.Path) > 520 || !utf8.ValidString(e.Path+e.Host+e.Method) || strings.ContainsAny(e.Path+e.Host+e.Method, "\r\n \x00") {
					t.Errorf("endpoint %q %q %q", e.Method, e.Host, e.Path)
				}
			}
			if got := len(metrics(s)); got != len(evil)+18 {
				t.Errorf("%d counters, want %d", got, len(evil)+18)
			}
			page := string(s.Do(rig.Get("/_idem/")).Body)
			_, table, _ := strings.Cut(page, `<tbody id="rows">`)
			table, _, _ = strings.Cut(table, "</tbody>")
			for _, bad := range []string{"<script", "<img", "</script", "<!--"} {
				if strings.Contains(table, bad) {
					t.Errorf("%s is in the table", bad)
				}
			}
			if strings.Count(page, "<script") != 1 || len(page) > 100_000 {
				t.Errorf("%d scripts, %d bytes", strings.Count(page, "<script"), len(page))
			}
		})
	}
}

// TestTheMemoryFigure compares it with what Redis says of each key, and then hides the keys among a million others.
func TestTheMemoryFigure(t *testing.T) {
	server := redistest.Start(t, "--enable-debug-command", "yes")
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		server.Do("FLUSHALL")
		e := &rig.Env{Host: host, Redis: server}
		settings := e.Settings(rig.OpenStats)
		prefix := settings["redis"].(map[string]any)["keyPrefix"].(string)
		writer := rig.Serve(t, host, rig.Created, settings)
		for i := range 30 {
			writer.Do(rig.Post("/pay", strconv.Itoa(i)))
		}
		writer.Do(rig.Post("/pay", "1"))
		for server.Do("HGET", prefix+":stats", "t replaysLocal") != "1" || server.Do("EXISTS", prefix+":keys") != "1" { // all is counted, and notes have begun
			time.Sleep(20 * time.Millisecond)
		}
		server.Do("SET", "foreign", strings.Repeat("x", 5000))
		server.Do("SET", prefix+"x:foreign", strings.Repeat("x", 5000))
		measure := func() int64 {
			var want int64
			for _, key := range strings.Fields(server.Do("KEYS", prefix+":*")) {
				bytes, _ := strconv.ParseInt(server.Do("MEMORY", "USAGE", key, "SAMPLES", "0"), 10, 64)
				want += bytes
			}
			return want
		}
		// A note each second may change the size meanwhile.
		is := func(bytes, before, after int64) bool {
			return min(before, after) <= bytes && bytes <= max(before, after)
		}
		before := measure()
		f := writer.Stats()
		if after := measure(); !f.Memory.Exact || !is(f.Memory.Bytes, before, after) || f.Memory.AtLeast != f.Memory.Bytes || f.Memory.Sampled != 1 || f.Memory.Warning {
			t.Errorf("memory %+v, want %d to %d", f.Memory, before, after)
		}
		page := string(writer.Do(rig.Get("/_idem/")).Body)
		if want := `Measured <time datetime="` + f.Memory.MeasuredAt + `"`; !strings.Contains(page, want) {
			t.Errorf("no %s on the page:\n%s", want, page)
		}
		// It is not measured again at once.
		server.Do("SET", prefix+":req:big", strings.Repeat("x", 11<<20))
		if again := writer.Stats().Memory; again != f.Memory {
			t.Errorf("measured again: %+v", again)
		}

		server.Do("DEBUG", "POPULATE", "1000000", "foreign")
		server.Do("CONFIG", "RESETSTAT")
		redis := settings["redis"].(map[string]any)
		redis["dialTimeout"] = "19s" // other settings, other connections, other statistics in memory
		other := rig.Serve(t, host, rig.Created, settings)
		before = measure()
		f = other.Stats()
		t.Logf("among a million: %+v", f.Memory)
		want := measure()
		switch {
		case f.Memory.Exact && (!is(f.Memory.Bytes, before, want) || !f.Memory.Warning):
			t.Errorf("memory %+v, want %d to %d", f.Memory, before, want)
		case !f.Memory.Exact && (f.Memory.AtLeast > max(before, want) || f.Memory.Sampled <= 0 || f.Memory.Sampled >= 1 || f.Memory.Bytes < f.Memory.AtLeast):
			t.Errorf("memory %+v, all is %d", f.Memory, want)
		}
		total(f, t, "duplicates", 1)
		t.Log(server.Do("INFO", "commandstats"))
	})
}

// TestStatsSettingsAreChecked names the setting, and never a password.
func TestStatsSettingsAreChecked(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad")
	rig.WriteFile(t, bad, "ok:pass\nsecretword\n")
	empty := filepath.Join(t.TempDir(), "empty")
	rig.WriteFile(t, empty, "# nobody\n")
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for want, stats := range map[string]map[string]any{
			`stats.path: "idem"`:                 {"path": "idem"},
			`stats.path: "/"`:                    {"path": "/"},
			`stats.path: "/a/../b"`:              {"path": "/a/../b"},
			`stats.path: "//a"`:                  {"path": "//a"},
			`stats.path: "/a b"`:                 {"path": "/a b"},
			`stats.ttl: "soon"`:                  {"ttl": "soon"},
			`stats.ttl: "1s"`:                    {"ttl": "1s"},
			`stats.maxEndpoints: "0"`:            {"maxEndpoints": 0},
			`stats.maxEndpoints: "10001"`:        {"maxEndpoints": "10001"},
			`stats.users: ":…"`:                  {"users": "secretword"},
			`stats.users: "name:…"`:              {"users": "name:{SHA256}secretword"},
			`stats.users: "short:…"`:             {"users": "ok:pass,short:{SHA}c2VjcmV0d29yZA=="},
			`stats.users: "none:…"`:              {"users": "none:"},
			`stats.usersFile: "/does/not/exist"`: {"usersFile": "/does/not/exist"},
			`stats.usersFile: "` + bad:           {"usersFile": bad},
			`stats.usersFile: "` + empty:         {"usersFile": empty},
			`stats.insecure: "true"`:             {"insecure": true, "users": "a:b"},
		} {
			refusal := host.Refusal(t, hosts.Settings{"stats": stats})
			if !strings.Contains(refusal, want) || !strings.Contains(refusal, "allowed: ") {
				t.Errorf("%v: %q", stats, refusal)
			}
			if strings.Contains(refusal, "secretword") || strings.Contains(refusal, "c2VjcmV0") {
				t.Errorf("%v: a password in %q", stats, refusal)
			}
		}
		off := rig.Serve(t, host, rig.Created, hosts.Settings{"stats": map[string]any{"path": "", "insecure": true}})
		off.Want(off.Do(rig.Get("/_idem/")), 201, "")
		moved := rig.Serve(t, host, rig.Created, hosts.Settings{"stats": map[string]any{"path": "/admin/duplicates/", "insecure": true}})
		if a := moved.Do(rig.Get("/admin/duplicates/stats.json")); a.Status != 200 {
			t.Errorf("moved: %d", a.Status)
		}
		moved.Want(moved.Do(rig.Get("/_idem/")), 201, "")
	})
}

// TestMemoryThatMayNotBeMeasured has a Redis user who may not scan: all but the figure is there.
func TestMemoryThatMayNotBeMeasured(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		for _, command := range []string{"scan", "memory"} {
			server := redistest.Start(t)
			server.Do("ACL", "SETUSER", "idem", "on", ">secret", "~*", "+@all", "-"+command)
			settings := (&rig.Env{Host: host, Redis: server}).Settings(rig.OpenStats)
			redis := settings["redis"].(map[string]any)
			redis["username"], redis["password"] = "idem", "secret"
			s := rig.Serve(t, host, rig.Created, settings)
			s.Do(rig.Post("/pay", "k"))
			f := s.Stats()
			total(f, t, "firstRuns", 1)
			if !f.Store.Healthy || f.Memory.Exact || f.Memory.MeasuredAt != "" {
				t.Errorf("without %s: store %+v, memory %+v", command, f.Store, f.Memory)
			}
			if page := string(s.Do(rig.Get("/_idem/")).Body); !strings.Contains(page, "It cannot be measured: ") || strings.Contains(page, "secret") {
				t.Errorf("without %s: the page\n%s", command, page)
			}
		}
	})
}
