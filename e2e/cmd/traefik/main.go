// Command traefik builds a version of Traefik from its module: make traefik.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/example/traefik-idem/e2e/internal/launch"
)

func main() {
	version := flag.String("version", launch.TraefikVersion, "the `version` to build")
	path := flag.String("o", "", "the `file` to write, an absolute path")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	root, err := launch.Root()
	if err == nil {
		err = launch.BuildTraefik(ctx, root, *version, *path, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "Traefik cannot be built:", err)
		os.Exit(1)
	}
}
