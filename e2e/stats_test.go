package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
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
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
)

// open are the settings that show the statistics to everybody.
var open = hosts.Settings{"stats": map[string]any{"insecure": true}}

func read(path string) call { return call{method: http.MethodGet, path: path, header: http.Header{}} }

// figures are stats.json.
type figures struct {
	GeneratedAt, Since, LastDuplicate string
	Totals                            map[string]int64
	Endpoints                         []struct {
		Method, Host, Path, LastDuplicate string
		Duplicates                        int64
	}
	OtherDuplicates int64
	Minutes, Hours  []int64
	Memory          struct {
		Bytes, AtLeast int64
		Exact, Warning bool
		Sampled        float64
		MeasuredAt     string
	}
	Store struct {
		Kind, Error string
		Healthy     bool
	}
	Settings map[string]string
}

func (s *site) stats() figures {
	s.t.Helper()
	a := s.do(read("/_idem/stats.json"))
	if a.status != 200 || a.header.Get("Content-Type") != "application/json" || a.header.Get("Cache-Control") != "no-store" {
		s.t.Fatalf("stats.json: %d %v\n%s", a.status, a.header, a.body)
	}
	var f figures
	err := json.Unmarshal(a.body, &f)
	if err != nil {
		s.t.Fatalf("stats.json: %v\n%s", err, a.body)
	}
	return f
}

// total checks one of the totals.
func (f figures) total(t *testing.T, name string, want int64) {
	t.Helper()
	got, known := f.Totals[name]
	if got != want || !known {
		t.Errorf("%s is %d, want %d; all: %v", name, got, want, f.Totals)
	}
}

// counted waits until done is true of the statistics. What never comes ends in the test's time-out.
func (s *site) counted(done func(f figures) bool) figures {
	s.t.Helper()
	f := s.stats()
	for !done(f) {
		time.Sleep(20 * time.Millisecond)
		f = s.stats()
	}
	return f
}

func TestStatsCount(t *testing.T) {
	everywhere(t, func(t *testing.T, e *env) {
		arrived, proceed := make(chan struct{}), make(chan struct{})
		slow := gated(arrived, proceed)
		s := e.serve(t, hosts.Settings{"stats": open["stats"], "required": true, "inFlight": "reject", "maxResponseBodyBytes": 100}, func(w http.ResponseWriter, r *http.Request) {
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
				created(w, r)
			}
		})
		begin := time.Now().Truncate(time.Second)
		before := s.stats()
		for name := range before.Totals {
			before.total(t, name, 0)
		}
		if before.Since != "" || before.LastDuplicate != "" || len(before.Endpoints) != 0 || before.Endpoints == nil {
			t.Errorf("before the first request: %+v", before)
		}
		for range 3 {
			s.do(post("/pay", "k"))
		}
		s.do(post("/pay", "k").with(func(c *call) { c.body = "{}" }))
		s.do(post("/pay", "a b"))
		s.do(post("/pay", ""))
		s.do(post("/pay", "k").with(func(c *call) { c.method = http.MethodGet }))
		for range 2 {
			s.do(post("/large", "k"))
			s.send(post("/broken", "k"))
		}
		var running sync.WaitGroup
		running.Go(func() { s.send(post("/slow", "k")) })
		<-arrived
		s.wantProblem(s.do(post("/slow", "k")), 409, "in-flight", "conflict")
		close(proceed)
		running.Wait()

		f := s.stats()
		for name, want := range map[string]int64{"protected": 12, "firstRuns": 4, "replays": 2, "replaysLocal": 2, "replaysStore": 0, "conflicts": 1,
			"mismatches": 1, "invalid": 2, "unknown": 1, "unkept": 1, "observed": 0, "unobserved": 0, "passed": 0, "unavailable": 0,
			"degraded": 0, "storeErrors": 0, "unknownOutcomes": 1, "duplicates": 5, "saved": 5} {
			f.total(t, name, want)
		}
		if len(f.Totals) != 19 {
			t.Errorf("%d totals: %v", len(f.Totals), f.Totals)
		}
		want := "POST " + s.Name + " /pay 2, POST " + s.Name + " /broken 1, POST " + s.Name + " /large 1, POST " + s.Name + " /slow 1"
		if got := f.ranking(); got != want {
			t.Errorf("endpoints %s, want %s", got, want)
		}
		for _, text := range []string{f.Since, f.LastDuplicate, f.GeneratedAt, f.Endpoints[0].LastDuplicate, f.Memory.MeasuredAt} {
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
		kind := "memory"
		if e.redis != nil {
			kind = "redis"
		}
		if f.Store.Kind != kind || !f.Store.Healthy || f.Store.Error != "" {
			t.Errorf("store %+v", f.Store)
		}
		if f.Settings["header"] != "X-Request-Id" || f.Settings["stats.maxEndpoints"] != "1000" {
			t.Errorf("settings %v", f.Settings)
		}
	})
}

func (f figures) ranking() string {
	var all []string
	for _, e := range f.Endpoints {
		all = append(all, fmt.Sprintf("%s %s %s %d", e.Method, e.Host, e.Path, e.Duplicates))
	}
	return strings.Join(all, ", ")
}

// TestStatsAreShared has one Redis, three processes' worth of plugins, and one that comes when the others have gone.
func TestStatsAreShared(t *testing.T) {
	redis := sharedRedis(t)
	settings := (&env{redis: redis}).settings(open)
	all := hosts.All()
	for range 2 {
		t.Run("together", func(t *testing.T) {
			for i, host := range all {
				s := serve(t, host, created, settings)
				s.do(post("/pay", "k"))
				s.do(post("/pay", fmt.Sprint(i)))
				s.do(post("/pay", fmt.Sprint(i)))
			}
		})
	}
	s := serve(t, hosts.Compiled, created, settings)
	n := int64(len(all))
	f := s.counted(func(f figures) bool { return f.Totals["protected"] == 6*n })
	f.total(t, "duplicates", 2*n)
	f.total(t, "firstRuns", 4*n)

	// Another prefix, other numbers.
	serve(t, hosts.Compiled, created, (&env{redis: redis}).settings(open)).stats().total(t, "protected", 0)
}

// TestStatsReachRedis without being asked for, and have an end.
func TestStatsReachRedis(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		redis := sharedRedis(t)
		e := &env{host: host, redis: redis}
		settings := e.settings(hosts.Settings{"stats": map[string]any{"ttl": "48h"}})
		prefix := settings["redis"].(map[string]any)["keyPrefix"].(string)
		redis.Do("HSET", prefix+":stats", "m 1", "7", "h 1", "7", "e POST old.test /gone", "7 1", "p old", "7 1", "endpoints", "1")
		t.Run("site", func(t *testing.T) {
			s := serve(t, host, created, settings)
			s.do(post("/pay", "k"))
			s.do(post("/pay", "k"))
		})
		for redis.Do("HGET", prefix+":stats", "t replaysLocal") != "1" {
			time.Sleep(20 * time.Millisecond)
		}
		left, _ := strconv.Atoi(redis.Do("TTL", prefix+":stats"))
		if left > 48*3600 || left < 47*3600 {
			t.Errorf("the statistics live for %d s", left)
		}
		all := redis.Do("HKEYS", prefix+":stats")
		for _, old := range []string{"m 1", "h 1", "e POST old.test /gone", "p old"} {
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
	everywhere(t, func(t *testing.T, e *env) {
		settings := e.settings(hosts.Settings{"stats": map[string]any{"insecure": "true", "maxEndpoints": "3"}})
		s := serve(t, e.host, created, settings)
		for range 2 {
			for i := range 20 {
				s.do(post("/"+strconv.Itoa(i), "k"))
			}
			s.stats()
		}
		f := s.stats()
		f.total(t, "duplicates", 20)
		if len(f.Endpoints) != 3 || f.OtherDuplicates != 17 {
			t.Errorf("%d endpoints, %d other duplicates", len(f.Endpoints), f.OtherDuplicates)
		}
		// Those that are known are still counted.
		s.do(post(f.Endpoints[1].Path, "k"))
		if f = s.stats(); f.Endpoints[0].Duplicates != 2 || f.OtherDuplicates != 17 {
			t.Errorf("endpoints %s, %d other duplicates", f.ranking(), f.OtherDuplicates)
		}
		if e.redis != nil {
			prefix := settings["redis"].(map[string]any)["keyPrefix"].(string)
			if n := strings.Count("\n"+e.redis.Do("HKEYS", prefix+":stats"), "\ne "); n != 4 {
				t.Errorf("%d endpoints in Redis, want 3 and one for the others", n)
			}
		}
		if metrics := string(s.do(read("/_idem/metrics")).body); strings.Count(metrics, "\ntraefik_idem_endpoint_duplicates_total{") != 4 || !strings.Contains(metrics, `{method="",host="",path="other"} 17`) {
			t.Errorf("metrics:\n%s", metrics)
		}
	})
}

// TestStatsOfAnOutage: what was counted while Redis was away is added once, whatever became of the flushes.
func TestStatsOfAnOutage(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		e, server := restartable(t, host)
		settings := e.settings(open)
		redis := settings["redis"].(map[string]any)
		for _, name := range []string{"dialTimeout", "readTimeout", "writeTimeout"} {
			redis[name] = "100ms"
		}
		s := serve(t, host, created, settings)
		counters := s.metrics()
		grows := func() {
			t.Helper()
			now := s.metrics()
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
				s.do(post("/pay", fmt.Sprint("k", sent)))
				s.do(post("/pay", fmt.Sprint("k", sent)))
				sent += 2
			}
		}
		check := func(healthy bool) {
			t.Helper()
			grows()
			f := s.counted(func(f figures) bool { return f.Store.Healthy == healthy })
			f.total(t, "protected", sent)
			f.total(t, "duplicates", sent/2)
			if (f.Store.Error == "") != healthy {
				t.Errorf("store %+v", f.Store)
			}
			if page := string(s.do(read("/_idem/")).body); strings.Contains(page, "Redis cannot be used") == healthy {
				t.Errorf("healthy: %t, and the page\n%s", healthy, page)
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
		f := s.counted(func(f figures) bool { return f.Store.Healthy })
		f.total(t, "protected", 10)
		grows()
		duplicates()
		grows()
		if got := counters[`traefik_idem_duplicates_total`]; got != float64(sent/2) {
			t.Errorf("the metrics say %v duplicates, want %d", got, sent/2)
		}
	})
}

// metrics parses what the metrics page says with Prometheus' own code, and returns the counters' values.
func (s *site) metrics() map[string]float64 {
	s.t.Helper()
	a := s.do(read("/_idem/metrics"))
	if a.status != 200 || a.header.Get("Content-Type") != "text/plain; version=0.0.4; charset=utf-8" || a.header.Get("Cache-Control") != "no-store" {
		s.t.Fatalf("metrics: %d %v", a.status, a.header)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(a.body))
	if err != nil {
		s.t.Fatalf("the metrics do not parse: %v\n%s", err, a.body)
	}
	problems, err := promlint.New(bytes.NewReader(a.body)).Lint()
	if err != nil || len(problems) > 0 {
		s.t.Errorf("promlint: %v %v", err, problems)
	}
	counters := map[string]float64{}
	for name, family := range families {
		if !strings.HasPrefix(name, "traefik_idem_") || family.GetHelp() == "" {
			s.t.Errorf("metric %s, help %q", name, family.GetHelp())
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
	everywhere(t, func(t *testing.T, e *env) {
		s := e.serve(t, open, created)
		s.metrics()
		s.do(post("/pay", "k"))
		s.do(post("/pay", "k"))
		counters := s.metrics()
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
	everywhere(t, func(t *testing.T, e *env) {
		s := e.serve(t, hosts.Settings{"mode": "observe", "stats": open["stats"]}, created)
		for i := range 3 {
			s.do(post("/pay", "k"))
			s.counted(func(f figures) bool { return f.Totals["protected"] == int64(i+1) }) // it is counted beside the request
		}
		s.do(post("/pay", "k").with(func(c *call) { c.body = "{}" }))
		s.do(post("/pay", "not valid"))
		f := s.counted(func(f figures) bool { return f.Totals["protected"] == 5 })
		for name, want := range map[string]int64{"firstRuns": 1, "observed": 2, "duplicates": 2, "saved": 0, "mismatches": 1, "invalid": 1} {
			f.total(t, name, want)
		}
		if got, want := f.ranking(), "POST "+s.Name+" /pay 2"; got != want {
			t.Errorf("endpoints %s, want %s", got, want)
		}
		s.calls(5)
	})
}

// TestObservingIsBounded lets Redis hang: no more than a fixed number of requests is waited for in the background.
func TestObservingIsBounded(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		e, server := restartable(t, host)
		settings := e.settings(hosts.Settings{"mode": "observe", "lease": "2m", "stats": open["stats"]})
		settings["redis"].(map[string]any)["readTimeout"] = "1m" // the first that has waited for so long would let the others go
		s := serve(t, host, created, settings)
		server.Pause()
		for i := range 200 {
			s.want(s.do(post("/pay", strconv.Itoa(i))), 201, "observed")
		}
		server.Resume()
		f := s.counted(func(f figures) bool { return f.Totals["protected"] == 200 })
		f.total(t, "firstRuns", 128)
		f.total(t, "unobserved", 72)
		s.calls(200)
	})
}

func basic(name, password string) func(c *call) {
	return func(c *call) {
		c.header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(name+":"+password)))
	}
}

func TestWhoMaySeeTheStatistics(t *testing.T) {
	file := filepath.Join(t.TempDir(), "users")
	writeFile(t, file, "# who may look\n\nfile:from:file\r\nhashed:{SHA256}"+hex.EncodeToString(sum256("s3cret"))+"\n")
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		closed := serve(t, host, created, hosts.Settings{})
		for _, path := range []string{"/_idem/", "/_idem", "/_idem/stats.json", "/_idem/metrics", "/_idem/nothing"} {
			for _, c := range []call{read(path), read(path).with(basic("a", "b")), post(path, "k")} {
				a := closed.do(c)
				if a.status != 403 || !strings.Contains(string(a.body), "stats.users") || !strings.Contains(string(a.body), "stats.insecure") {
					t.Errorf("%s %s: %d %s", c.method, path, a.status, a.body)
				}
			}
		}
		closed.calls(0)

		s := serve(t, host, created, hosts.Settings{"stats": map[string]any{
			"users":     "plain:pass word, short:{SHA}" + base64.StdEncoding.EncodeToString(sum1("pässword")),
			"usersFile": file,
		}})
		for _, path := range []string{"/_idem/", "/_idem", "/_idem/stats.json", "/_idem/metrics", "/_idem/nothing"} {
			for name, c := range map[string]call{
				"no login":       read(path),
				"wrong password": read(path).with(basic("plain", "password")),
				"wrong name":     read(path).with(basic("other", "pass word")),
				"another's":      read(path).with(basic("short", "pass word")),
				"the digest":     read(path).with(basic("hashed", hex.EncodeToString(sum256("s3cret")))),
				"no password":    read(path).with(basic("plain", "")),
				"bearer":         read(path).with(func(c *call) { c.header.Set("Authorization", "Bearer plain:pass word") }),
			} {
				a := s.do(c)
				if a.status != 401 || !strings.HasPrefix(a.header.Get("WWW-Authenticate"), "Basic realm=") || a.header.Get("Cache-Control") != "no-store" {
					t.Errorf("%s: %s: %d %v", path, name, a.status, a.header)
				}
			}
		}
		for name, password := range map[string]string{"plain": "pass word", "short": "pässword", "file": "from:file", "hashed": "s3cret"} {
			if a := s.do(read("/_idem/stats.json").with(basic(name, password))); a.status != 200 {
				t.Errorf("%s: %d %s", name, a.status, a.body)
			}
		}
		for _, secret := range []string{"s3cret", "pass word", "from:file"} {
			if page := s.do(read("/_idem/").with(basic("plain", "pass word"))); strings.Contains(string(page.body), secret) {
				t.Errorf("%s is on the page", secret)
			}
		}
		s.calls(0)
	})
}

func sum256(text string) []byte { sum := sha256.Sum256([]byte(text)); return sum[:] }
func sum1(text string) []byte   { sum := sha1.Sum([]byte(text)); return sum[:] }

func TestStatsPaths(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		s := serve(t, host, created, hosts.Settings{"stats": open["stats"], "methods": "GET,POST"})
		for _, method := range []string{"GET", "HEAD"} {
			for path, kind := range map[string]string{"/_idem/": "text/html", "/_idem/?a=b": "text/html", "/_idem/stats.json": "application/json", "/_idem/metrics": "text/plain", "/%5Fidem/": "text/html"} {
				a := s.do(read(path).with(func(c *call) { c.method = method }))
				length, _ := strconv.Atoi(a.header.Get("Content-Length"))
				if a.status != 200 || !strings.HasPrefix(a.header.Get("Content-Type"), kind) || a.header.Get("Cache-Control") != "no-store" || length == 0 {
					t.Errorf("%s %s: %d %v", method, path, a.status, a.header)
				}
				if want := length; method == "GET" && len(a.body) != want || method == "HEAD" && len(a.body) != 0 {
					t.Errorf("%s %s: %d bytes of %d", method, path, len(a.body), want)
				}
			}
			a := s.do(read("/_idem").with(func(c *call) { c.method = method }))
			if a.status != 308 || a.header.Get("Location") != "_idem/" {
				t.Errorf("%s /_idem: %d %v", method, a.status, a.header)
			}
		}
		for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "PATCH"} {
			a := s.do(post("/_idem/", "k").with(func(c *call) { c.method = method }))
			if a.status != 405 || a.header.Get("Allow") != "GET, HEAD" {
				t.Errorf("%s: %d %v", method, a.status, a.header)
			}
		}
		for _, path := range []string{"/_idem/x", "/_idem/stats.json/", "/_idem/a%2Fb", "/_idem/stats%2Ejson/x", "/_idem/%00", "/_idem/Metrics"} {
			if a := s.do(read(path)); a.status != 404 && a.status != 400 { // 400: Traefik refuses such a path itself
				t.Errorf("%s: %d", path, a.status)
			}
		}
		s.calls(0)
		// None of these is under the prefix: the backend gets them, as it would without the plugin.
		for i, path := range []string{"/_IDEM/", "/_idemx", "/_idem.", "/x/_idem/", "/"} {
			if a := s.do(read(path)); a.status != 201 {
				t.Errorf("%s: %d", path, a.status)
			}
			s.calls(int64(i + 1))
		}
	})
}

// TestPathsThatTraefikChanges lists paths that Traefik's entry points clean, or refuse, before they route them. The plugin
// sees what is left: nobody gets in without a login, and the backend gets only what it would get without the plugin.
func TestPathsThatTraefikChanges(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		for _, path := range []string{"/_idem/../x", "//_idem/", "/./_idem/", "/x/../_idem/", "/_idem//stats.json", "/_idem%2Fstats.json", "/_idem%2fmetrics", "/%2F_idem/",
			"/_idem/%2e%2e/x", "/_idem/..%2Fx", "/_idem%5Cmetrics", "/_idem;x/", "/_idem%3B/", "/_idem/.", "/_idem/stats.json%00", "/%5fidem%2F"} {
			var seen, without string
			with := serve(t, host, func(w http.ResponseWriter, r *http.Request) { seen = r.RequestURI; created(w, r) },
				hosts.Settings{"stats": map[string]any{"users": "a:b"}})
			plain := serve(t, host, func(w http.ResponseWriter, r *http.Request) { without = r.RequestURI; created(w, r) },
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
func rawGet(t *testing.T, s *site, path string) int {
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
			h, err := build(ctx, http.HandlerFunc(created), hosts.Settings{"endpoints": "* /", "stats": open["stats"]}, t.Name())
			if err != nil {
				t.Fatal(err)
			}
			server := httptest.NewServer(h)
			defer server.Close()
			s := &site{Site: &hosts.Site{Addr: server.Listener.Addr().String(), Name: "stats.test"}, t: t}
			s.client = s.Client()
			defer s.client.CloseIdleConnections()
			evil := []string{"<script>alert(1)</script>", `"><img src=x onerror=alert(1)>`, "a\nb\r\nc", `quote"back\slash`, "\xff\xfe", "{{.Nonce}}", "${x}", "line\u2028", "'", "/" + strings.Repeat("x", 8192), "</script>", "<!--"}
			for i, text := range evil {
				for range 2 {
					r := keyed("POST", "k"+strconv.Itoa(i))
					r.Host = "host" + text
					r.Method = "POST" + text
					r.URL.Path = "/path" + text
					h.ServeHTTP(httptest.NewRecorder(), r)
				}
			}
			f := s.stats()
			f.total(t, "duplicates", int64(len(evil)))
			if len(f.Endpoints) != len(evil) {
				t.Errorf("%d endpoints, want %d", len(f.Endpoints), len(evil))
			}
			for _, e := range f.Endpoints {
				if len(e.Method) > 40 || len(e.Host) > 260 || len(e.Path) > 520 || !utf8.ValidString(e.Path+e.Host+e.Method) || strings.ContainsAny(e.Path+e.Host+e.Method, "\r\n \x00") {
					t.Errorf("endpoint %q %q %q", e.Method, e.Host, e.Path)
				}
			}
			if got := len(s.metrics()); got != len(evil)+17 {
				t.Errorf("%d counters, want %d", got, len(evil)+17)
			}
			page := string(s.do(read("/_idem/")).body)
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
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		server.Do("FLUSHALL")
		e := &env{host: host, redis: server}
		settings := e.settings(open)
		prefix := settings["redis"].(map[string]any)["keyPrefix"].(string)
		writer := serve(t, host, created, settings)
		for i := range 30 {
			writer.do(post("/pay", strconv.Itoa(i)))
		}
		writer.do(post("/pay", "1"))
		for server.Do("HGET", prefix+":stats", "t firstRuns") != "30" {
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
		f := writer.stats()
		if want := measure(); !f.Memory.Exact || f.Memory.Bytes != want || f.Memory.AtLeast != want || f.Memory.Sampled != 1 || f.Memory.Warning {
			t.Errorf("memory %+v, want %d", f.Memory, want)
		}
		page := string(writer.do(read("/_idem/")).body)
		if want := `Measured <time datetime="` + f.Memory.MeasuredAt + `"`; !strings.Contains(page, want) {
			t.Errorf("no %s on the page:\n%s", want, page)
		}
		// It is not measured again at once.
		server.Do("SET", prefix+":req:big", strings.Repeat("x", 11<<20))
		if again := writer.stats().Memory; again != f.Memory {
			t.Errorf("measured again: %+v", again)
		}

		server.Do("DEBUG", "POPULATE", "1000000", "foreign")
		server.Do("CONFIG", "RESETSTAT")
		redis := settings["redis"].(map[string]any)
		redis["dialTimeout"] = "19s" // other settings, other connections, other statistics in memory
		f = serve(t, host, created, settings).stats()
		t.Logf("among a million: %+v", f.Memory)
		want := measure()
		switch {
		case f.Memory.Exact && (f.Memory.Bytes != want || !f.Memory.Warning):
			t.Errorf("memory %+v, want %d", f.Memory, want)
		case !f.Memory.Exact && (f.Memory.AtLeast > want || f.Memory.Sampled <= 0 || f.Memory.Sampled >= 1 || f.Memory.Bytes < f.Memory.AtLeast):
			t.Errorf("memory %+v, all is %d", f.Memory, want)
		}
		f.total(t, "duplicates", 1)
		t.Log(server.Do("INFO", "commandstats"))
	})
}

// TestStatsSettingsAreChecked names the setting, and never a password.
func TestStatsSettingsAreChecked(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad")
	writeFile(t, bad, "ok:pass\nsecretword\n")
	empty := filepath.Join(t.TempDir(), "empty")
	writeFile(t, empty, "# nobody\n")
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
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
		off := serve(t, host, created, hosts.Settings{"stats": map[string]any{"path": "", "insecure": true}})
		off.want(off.do(read("/_idem/")), 201, "")
		moved := serve(t, host, created, hosts.Settings{"stats": map[string]any{"path": "/admin/duplicates/", "insecure": true}})
		if a := moved.do(read("/admin/duplicates/stats.json")); a.status != 200 {
			t.Errorf("moved: %d", a.status)
		}
		moved.want(moved.do(read("/_idem/")), 201, "")
	})
}

// TestMemoryThatMayNotBeMeasured has a Redis user who may not scan: all but the figure is there.
func TestMemoryThatMayNotBeMeasured(t *testing.T) {
	onEveryHost(t, func(t *testing.T, host hosts.Host) {
		for _, command := range []string{"scan", "memory"} {
			server := redistest.Start(t)
			server.Do("ACL", "SETUSER", "idem", "on", ">secret", "~*", "+@all", "-"+command)
			settings := (&env{host: host, redis: server}).settings(open)
			redis := settings["redis"].(map[string]any)
			redis["username"], redis["password"] = "idem", "secret"
			s := serve(t, host, created, settings)
			s.do(post("/pay", "k"))
			f := s.stats()
			f.total(t, "firstRuns", 1)
			if !f.Store.Healthy || f.Memory.Exact || f.Memory.MeasuredAt != "" {
				t.Errorf("without %s: store %+v, memory %+v", command, f.Store, f.Memory)
			}
			if page := string(s.do(read("/_idem/")).body); !strings.Contains(page, "It cannot be measured: ") || strings.Contains(page, "secret") {
				t.Errorf("without %s: the page\n%s", command, page)
			}
		}
	})
}
