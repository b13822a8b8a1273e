// Command demo runs a real Traefik with the plugin from this repository before a sample payments backend, and shows a page with
// buttons and curl lines to try. Keys are in a Redis that it starts if there is a redis-server on the PATH, else in Traefik's
// memory; with -redis host:port they are in that Redis, with -redis memory in memory.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/example/traefik-idem/e2e/internal/launch"
)

// inMemory is the value of -redis for keys in Traefik's memory.
const inMemory = "memory"

func main() {
	redis := flag.String("redis", "", "keep keys in the Redis at this `host:port`, or in memory; empty: in one that the demo starts, if there is a redis-server")
	flag.Parse()
	log.SetFlags(0)
	log.SetOutput(os.Stdout)
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	err := demo(ctx, *redis)
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// demo runs until ctx is over or Traefik ends.
func demo(ctx context.Context, redis string) error {
	if redis != "" && redis != inMemory {
		err := launch.Ping(redis)
		if err != nil {
			return fmt.Errorf("no Redis at %s: %w", redis, err)
		}
	}
	root, err := launch.Root()
	if err != nil {
		return err
	}
	binary, err := launch.Traefik(ctx, root)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "idem-demo")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()

	var own *redisServer
	if redis == "" {
		own, err = startRedis(ctx, dir)
		if err != nil {
			return err
		}
	}
	store := "Redis at " + redis
	switch {
	case own != nil:
		defer own.stop()
		redis = own.address
		store = "Redis, started by the demo"
	case redis == "" || redis == inMemory:
		redis = ""
		store = "Traefik's memory"
	}
	service, err := startBackend()
	if err != nil {
		return err
	}
	defer service.close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: desk(service, own, store)}
	defer server.Close()
	go func() { _ = server.Serve(listener) }()

	entry, err := launch.FreeAddress("127.0.0.1:8080")
	if err != nil {
		return err
	}
	err = writeFiles(dir, root, entry, "http://"+service.address, "http://"+listener.Addr().String(), redis)
	if err != nil {
		return err
	}
	traefik, err := launch.Start(ctx, dir, "traefik", binary, "--configFile=traefik.yml")
	if err != nil {
		return err
	}
	defer traefik.Stop()
	err = traefik.Await(ctx, func(ctx context.Context) error { return launch.OK(ctx, "http://"+entry+"/") })
	if err != nil {
		return err
	}

	fmt.Printf("\nTry it    http://%s/demo/\nTraefik   http://%s\nstats     http://%s/_idem/\nsettle    http://%s/_idem/login (name admin, password demo)\nbackend   http://%s\nkeys in   %s\nlog       %s\n", entry, entry, entry, entry, service.address, store, traefik.Log)
	printLines("http://" + entry)
	select {
	case <-ctx.Done():
		fmt.Println("\nstopping")
		return nil
	case <-traefik.Ended:
		return traefik.OwnEnd(ctx)
	}
}

// printLines prints what to paste. The keys are new at every start, since a Redis may still hold those of the last one.
func printLines(base string) {
	start := strconv.FormatInt(time.Now().UnixMilli(), 36)
	pay := func(options, key, amount string) string {
		return fmt.Sprintf(`curl -sS %s%s/api/payments/ -H 'Content-Type: application/json' -H 'Idempotency-Key: %s-%s' -d '{"amount": %s}'`,
			options, base, key, start, amount)
	}
	for _, line := range []struct{ say, curl string }{
		{"A first call. The backend takes a second:", pay("-i ", "first", "10")},
		{"The same again. The kept answer comes at once, with Idempotent-Replayed: true:", pay("-i ", "first", "10")},
		{"The same key with another body. 422:", pay("-i ", "first", "99")},
		{"Two at once. The second waits for the first, and both get one answer:",
			pay("", "twin", "20") + " & " + pay("", "twin", "20") + " & wait"},
		{"How often the backend was really called:", "curl -sS " + base + "/"},
	} {
		fmt.Printf("\n%s\n  %s\n", line.say, line.curl)
	}
	fmt.Print("\nCtrl-C stops everything.\n\n")
}

const staticConfiguration = `
global: {checkNewVersion: false, sendAnonymousUsage: false}
log: {level: INFO, noColor: true}
entryPoints:
  web: {address: %q}
providers:
  file: {filename: dynamic.yml, watch: false}
experimental:
  localPlugins:
    idem: {moduleName: %q}
`

const dynamicConfiguration = `
http:
  routers:
    demo:
      rule: PathPrefix("/")
      entryPoints: [web]
      middlewares: [idem]
      service: payments
    page:
      rule: PathPrefix("/demo/")
      entryPoints: [web]
      service: page
  services:
    payments:
      loadBalancer:
        servers: [{url: %q}]
    page:
      loadBalancer:
        servers: [{url: %q}]
  middlewares:
    idem:
      plugin:
        idem:
          header: Idempotency-Key
          endpoints: [POST /api/payments/]
          ttl: 60s
          statusHeader: Idempotency-Status
          redis: {endpoints: %q}
          stats: {insecure: true, admins: "admin:demo"}
`

// writeFiles fills dir with all that Traefik reads.
func writeFiles(dir, root, entry, backend, page, redis string) error {
	err := launch.LinkPlugin(dir, root)
	if err != nil {
		return err
	}
	err = os.WriteFile(filepath.Join(dir, "traefik.yml"), fmt.Appendf(nil, staticConfiguration, entry, launch.Module), 0o600)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "dynamic.yml"), fmt.Appendf(nil, dynamicConfiguration, backend, page, redis), 0o600)
}
