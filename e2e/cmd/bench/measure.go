package main

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/example/traefik-idem/e2e/internal/launch"
)

const (
	connections = 32
	threads     = 2 // of wrk
	warmUp      = time.Second
	startKeys   = 100                   // that are made before memory is measured for the first time
	progress    = 100000                // keys after which to tell how many there are
	tick        = 10 * time.Millisecond // the unit of /proc/<pid>/stat
)

//go:embed testdata/load.lua
var loadScript []byte

//go:embed testdata/noop.go
var noopPlugin []byte

const (
	noopModule   = "github.com/example/noop"
	noopManifest = "displayName: No-op\ntype: middleware\nimport: " + noopModule + "\nbasePkg: noop\nsummary: Calls the next handler.\ntestData: {}\n"
)

// sample is what one run of a variant gave.
type sample struct {
	requests   int
	broken     int           // answers that were broken off
	rate       float64       // requests per second
	p50, p99   time.Duration // of the slower one, if there are two loads
	p999       time.Duration // of a load at a constant rate
	traefikCPU time.Duration // per request, of all Traefiks
	redisCPU   time.Duration // per request
	rss        int64         // bytes, of all Traefiks, after the last one
	rssBefore  int64         // after the first hundred, if keys were made before the measurement
}

// bench is what all measurements have in common.
type bench struct {
	root, traefik, self string // paths of the plugin, Traefik and this program
	dir                 string // for files
	duration            time.Duration
	loads               int // that there were, so that each has its own keys
}

// stand is the processes of one measurement.
type stand struct {
	*bench
	v         variant
	processes []*launch.Process // in the order of their start
	traefiks  []*launch.Process
	redis     *servers     // or nil
	addresses []string     // of Traefiks
	backend   string       // URL
	rssBefore int64        // see sample
	client    *http.Client // of loads at a constant rate, which share its connections
}

// measure sets a variant up from nothing, runs it, and checks that the backend was called as often as it had to be.
func (b *bench) measure(ctx context.Context, v variant) (sample, error) {
	dir, err := os.MkdirTemp(b.dir, "run")
	if err != nil {
		return sample{}, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	s := &stand{bench: b, v: v}
	defer s.stop()
	err = s.start(ctx, dir)
	if err != nil {
		return sample{}, err
	}
	err = s.prepare(ctx)
	if err != nil {
		return sample{}, s.explain(err)
	}
	result, err := s.run(ctx)
	if err != nil {
		return sample{}, s.explain(err)
	}
	result.rssBefore = s.rssBefore
	return result, nil
}

// explain adds the beginnings of what the Traefiks have logged to err.
func (s *stand) explain(err error) error {
	const most = 2000
	for _, p := range s.traefiks {
		text, _ := os.ReadFile(p.Log)
		err = fmt.Errorf("%w\nTraefik's log: %.*s", err, most, text)
	}
	return err
}

// start starts all processes and returns when they serve.
func (s *stand) start(ctx context.Context, dir string) error {
	var endpoints []string
	if s.v.redis {
		var err error
		s.redis, err = startServers(dir, s.v.cluster)
		if err != nil {
			return err
		}
		endpoints = s.redis.addresses()
	}
	address, err := launch.FreeAddress("")
	if err != nil {
		return err
	}
	s.backend = "http://" + address
	backend, err := s.launch(ctx, dir, "backend", s.self, "backend", "-listen", address,
		"-size", strconv.Itoa(or(s.v.reply, smallReply)), "-delay", s.v.delay.String())
	if err != nil {
		return err
	}
	err = backend.Await(ctx, func(ctx context.Context) error { return launch.OK(ctx, s.backend) })
	if err != nil {
		return err
	}
	for i := range or(s.v.traefiks, 1) {
		err = s.startTraefik(ctx, filepath.Join(dir, "traefik"+strconv.Itoa(i)), endpoints)
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *stand) launch(ctx context.Context, dir, name, binary string, args ...string) (*launch.Process, error) {
	p, err := launch.Start(ctx, dir, name, binary, args...)
	if err == nil {
		s.processes = append(s.processes, p)
	}
	return p, err
}

// stop ends all processes.
func (s *stand) stop() {
	for i := len(s.processes) - 1; i >= 0; i-- {
		s.processes[i].Stop()
	}
	if s.redis != nil {
		s.redis.stop()
	}
}

func (s *stand) startTraefik(ctx context.Context, dir string, redis []string) error {
	noopFolder := filepath.Join(dir, "plugins-local", "src", filepath.FromSlash(noopModule))
	err := os.MkdirAll(noopFolder, 0o755)
	if err != nil {
		return err
	}
	address, err := launch.FreeAddress("")
	if err != nil {
		return err
	}
	static := settings{
		"global":      settings{"checkNewVersion": false, "sendAnonymousUsage": false},
		"log":         settings{"level": "ERROR", "noColor": true},
		"entryPoints": settings{"web": settings{"address": address}},
		"providers":   settings{"file": settings{"filename": "dynamic.yml", "watch": false}},
	}
	switch s.v.kind { // a Traefik has the plugin that it is measured with, and no other
	case "noop":
		static["experimental"] = settings{"localPlugins": settings{"noop": settings{"moduleName": noopModule}}}
	case "idem":
		static["experimental"] = settings{"localPlugins": settings{"idem": settings{"moduleName": launch.Module}}}
	}
	staticText, err := yaml.Marshal(static)
	if err != nil {
		return err
	}
	dynamicText, err := yaml.Marshal(s.v.dynamic(s.backend, redis))
	if err != nil {
		return err
	}
	for path, text := range map[string][]byte{
		filepath.Join(dir, "traefik.yml"):         staticText,
		filepath.Join(dir, "dynamic.yml"):         dynamicText,
		filepath.Join(noopFolder, ".traefik.yml"): []byte(noopManifest),
		filepath.Join(noopFolder, "noop.go"):      noopPlugin,
	} {
		err = os.WriteFile(path, text, 0o600)
		if err != nil {
			return err
		}
	}
	err = launch.LinkPlugin(dir, cmp.Or(s.v.source, s.root))
	if err != nil {
		return err
	}
	p, err := s.launch(ctx, dir, "traefik", s.traefik, "--configFile=traefik.yml")
	if err != nil {
		return err
	}
	s.traefiks = append(s.traefiks, p)
	s.addresses = append(s.addresses, address)
	return p.Await(ctx, func(ctx context.Context) error { return launch.OK(ctx, "http://"+address+"/p0/") })
}

// dynamic returns Traefik's dynamic configuration.
func (v *variant) dynamic(backend string, redis []string) settings {
	routers := settings{}
	for i := range or(v.routers, 1) {
		rule := "PathPrefix(`/`)"
		if v.routers > 1 {
			rule = fmt.Sprintf("PathPrefix(`/p%d/`)", i)
		}
		router := settings{"rule": rule, "service": "backend"}
		if v.kind != "" {
			router["middlewares"] = []string{"measured"}
		}
		routers["r"+strconv.Itoa(i)] = router
	}
	http := settings{
		"routers":  routers,
		"services": settings{"backend": settings{"loadBalancer": settings{"servers": []any{settings{"url": backend}}}}},
	}
	middleware := settings{}
	maps.Copy(middleware, v.settings)
	if v.redis {
		middleware["redis"] = settings{"endpoints": redis}
	}
	if v.redis && v.kind == "idem" {
		middleware["onStoreError"] = "reject" // what Redis did not do is not measured as if it did
	}
	if v.cluster {
		middleware["redis"] = settings{"endpoints": redis, "cluster": true}
	}
	switch v.kind {
	case "":
	case "rateLimit":
		http["middlewares"] = settings{"measured": settings{v.kind: middleware}}
	default:
		http["middlewares"] = settings{"measured": settings{"plugin": settings{v.kind: middleware}}}
	}
	return settings{"http": http}
}

// prepare runs until the measurement can begin: keys are there, connections are open, and duplicates are duplicates.
func (s *stand) prepare(ctx context.Context) error {
	each := s.v.each
	if s.v.keys > 0 {
		err := s.fill(ctx)
		if err != nil {
			return err
		}
		each = sameKey // makes no more keys
	}
	for {
		_, err := s.load(ctx, each, warmUp)
		if err != nil || s.v.each != sameKey {
			return err
		}
		calls, err := s.calls(ctx)
		if err != nil || calls >= or(s.v.paths, 1) { // the key has run on every path
			return err
		}
	}
}

// fill makes as many keys as the variant wants, and sees to it that they are kept.
func (s *stand) fill(ctx context.Context) error {
	err := s.sendUntil(ctx, startKeys)
	if err != nil {
		return err
	}
	s.rssBefore, err = sum(pids(s.traefiks), rss)
	if err != nil {
		return err
	}
	first := s.loads + 1
	err = s.sendUntil(ctx, s.v.keys)
	if err != nil || s.v.evicts {
		return err
	}
	return s.oldest(ctx, first)
}

// sendUntil sends first requests until there were n.
func (s *stand) sendUntil(ctx context.Context, n int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := s.load(ctx, 1, time.Hour)
		ended <- err
	}()
	told := 0
	for {
		select {
		case err := <-ended:
			return fmt.Errorf("there are not all keys yet: %w", err)
		case <-time.After(10 * time.Millisecond):
		}
		calls, err := s.callsNow(ctx)
		if err != nil {
			return err
		}
		if calls >= n {
			cancel()
			<-ended
			return nil
		}
		if calls >= told+progress {
			told = calls
			fmt.Printf("%s: %d keys\n", s.v.name, calls)
		}
	}
}

// oldest returns an error unless the first key of a load is still kept.
func (s *stand) oldest(ctx context.Context, load int) error {
	body := `{"pad":"` + strings.Repeat("x", smallBody-10) + `"}`
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.addresses[0]+"/p0/", strings.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("X-Request-ID", fmt.Sprintf("%d-1-100000001", load)) // by load.lua. wrk does not send what thread 0 begins with
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	_ = response.Body.Close()
	if response.Header.Get("Idempotent-Replayed") != "true" {
		return fmt.Errorf("of %d keys, the oldest is not kept: it is answered with %s, and that is no replay", s.v.keys, response.Status)
	}
	return nil
}

// run measures.
func (s *stand) run(ctx context.Context) (sample, error) {
	callsBefore, err := s.calls(ctx)
	if err != nil {
		return sample{}, err
	}
	traefiks, redis := pids(s.traefiks), []int(nil)
	if s.redis != nil {
		redis = s.redis.pids()
	}
	traefikBefore, err := sum(traefiks, ticks)
	if err != nil {
		return sample{}, err
	}
	redisBefore, err := sum(redis, ticks)
	if err != nil {
		return sample{}, err
	}
	got, err := s.load(ctx, s.v.each, s.duration)
	if err != nil {
		return sample{}, err
	}
	traefikAfter, err := sum(traefiks, ticks)
	if err != nil {
		return sample{}, err
	}
	redisAfter, err := sum(redis, ticks)
	if err != nil {
		return sample{}, err
	}
	memory, err := sum(traefiks, rss)
	if err != nil {
		return sample{}, err
	}
	callsAfter, err := s.calls(ctx)
	if err != nil {
		return sample{}, err
	}
	err = s.v.check(got, callsAfter-callsBefore)
	if err != nil {
		return sample{}, err
	}
	perRequest := func(ticks int64) time.Duration { return time.Duration(ticks) * tick / time.Duration(got.requests) }
	return sample{
		requests:   got.requests,
		broken:     got.broken,
		rate:       got.rate,
		p50:        got.p50,
		p99:        got.p99,
		p999:       got.p999,
		traefikCPU: perRequest(traefikAfter - traefikBefore),
		redisCPU:   perRequest(redisAfter - redisBefore),
		rss:        memory,
	}, nil
}

// check compares how often clients were answered with how often the backend was called: each first request must have
// reached it, and no duplicate.
func (v *variant) check(got load, calls int) error {
	least, most := 0, 0
	if v.each != sameKey {
		// wrk breaks off what is under way when its time is over, and the threads' last keys are not all used up.
		least, most = got.requests/v.each, (got.requests+got.broken+connections)/v.each+2*threads
	}
	if got.requests == 0 || calls < least || calls > most {
		return fmt.Errorf("%d requests were answered with %d calls of the backend; right would be %d to %d", got.requests, calls, least, most)
	}
	return nil
}

// calls returns how often the backend was called, once that changes no more.
func (s *stand) calls(ctx context.Context) (int, error) {
	for last := -1; ; {
		n, err := s.callsNow(ctx)
		if err != nil || n == last {
			return n, err
		}
		last = n
		time.Sleep(100 * time.Millisecond)
	}
}

func (s *stand) callsNow(ctx context.Context) (int, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.backend+callsPath, nil)
	if err != nil {
		return 0, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(text))
}

// load is what wrk, or the load at a constant rate, reports.
type load struct {
	requests int // that were answered
	broken   int // that were not: connections closed in the middle
	rate     float64
	p50, p99 time.Duration
	p999     time.Duration // at a constant rate
}

// load sends requests to all Traefiks for so long.
func (s *stand) load(ctx context.Context, each int, duration time.Duration) (load, error) {
	if s.v.rate > 0 {
		return s.steadyLoad(ctx, each, duration)
	}
	n := len(s.addresses)
	results, errs := make([]load, n), make([]error, n)
	var all sync.WaitGroup
	for i, address := range s.addresses {
		prefix := "same-"
		if each != sameKey {
			s.loads++
			prefix = fmt.Sprintf("%d-", s.loads)
		}
		all.Go(func() {
			results[i], errs[i] = wrk(ctx, s.dir, threads/n, or(s.v.connections, connections)/n, duration, address,
				prefix, strconv.Itoa(each), strconv.Itoa(or(s.v.body, smallBody)), strconv.Itoa(or(s.v.paths, 1)))
		})
	}
	all.Wait()
	err := errors.Join(errs...)
	var total load
	for _, l := range results {
		total.requests += l.requests
		total.broken += l.broken
		total.rate += l.rate
		total.p50 = max(total.p50, l.p50)
		total.p99 = max(total.p99, l.p99)
	}
	// Of a body that does not fit into one write, Go's transport looks for more after its end, while the backend may have
	// answered already and Go's server have closed the body. The transport takes that for a failure, and the answer is
	// broken off: one of some hundreds or thousands. The plugin gives the transport a body of its own.
	allowed := 0
	if s.v.kind == "" && s.v.body > 4<<10 {
		allowed = total.requests / 20
	}
	if err == nil && total.broken > allowed {
		err = fmt.Errorf("%d answers were broken off, %d were not", total.broken, total.requests)
	}
	return total, err
}

// wrk runs wrk with the script in dir, whose arguments are args.
func wrk(ctx context.Context, dir string, threads, connections int, duration time.Duration, address string, args ...string) (load, error) {
	command := append([]string{"-t", strconv.Itoa(threads), "-c", strconv.Itoa(connections), "-d", strconv.Itoa(int(duration.Seconds())) + "s",
		"--timeout", "30s", "-s", filepath.Join(dir, "load.lua"), "http://" + address, "--"}, args...)
	output, err := exec.CommandContext(ctx, "wrk", command...).CombinedOutput()
	if err != nil {
		return load{}, fmt.Errorf("wrk: %w\n%s", err, output)
	}
	_, line, _ := strings.Cut(string(output), "\nresult ")
	var l load
	var took, p50, p99, bad int
	_, err = fmt.Sscan(line, &l.requests, &took, &p50, &p99, &l.broken, &bad)
	if err != nil || took == 0 {
		return load{}, fmt.Errorf("wrk's result is not understood: %w\n%s", err, output)
	}
	if bad > 0 {
		return load{}, fmt.Errorf("%d requests had no answer, or not the backend's\n%s", bad, output)
	}
	l.rate = float64(l.requests) / (time.Duration(took) * time.Microsecond).Seconds()
	l.p50, l.p99 = time.Duration(p50)*time.Microsecond, time.Duration(p99)*time.Microsecond
	return l, nil
}

func pids(processes []*launch.Process) []int {
	var all []int
	for _, p := range processes {
		all = append(all, p.PID)
	}
	return all
}

// sum adds up what a function tells of processes.
func sum(pids []int, of func(pid int) (int64, error)) (int64, error) {
	var total int64
	for _, pid := range pids {
		n, err := of(pid)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

// ticks returns how long a process has been on a CPU.
func ticks(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field, the name, may have spaces in it. The 14th and 15th are user and system time.
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat is not understood: %s", pid, text)
	}
	user, err := strconv.ParseInt(fields[11], 10, 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseInt(fields[12], 10, 64)
	return user + system, err
}

// rss returns how much memory a process has, in bytes.
func rss(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	var size, resident int64
	_, err = fmt.Sscan(string(text), &size, &resident)
	return resident * int64(os.Getpagesize()), err
}
