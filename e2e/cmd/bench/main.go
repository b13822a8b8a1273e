// Command bench measures a real Traefik with the plugin from this repository under load: how much of the throughput of
// plain proxying is left, and what a request costs. Linux only. It needs redis-server and wrk.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"

	"github.com/example/traefik-idem/e2e/internal/launch"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "backend" {
		fmt.Fprintln(os.Stderr, "backend:", runBackend(os.Args[2:]))
		os.Exit(1)
	}
	rounds := flag.Int("rounds", 5, "how `often` each variant is measured")
	duration := flag.Duration("duration", 5*time.Second, "how `long` each time, in whole seconds")
	only := flag.String("only", "", "measure only variants whose name matches this `regexp`, and what they are compared with")
	skip := flag.String("skip", "", "do not measure variants whose name matches this `regexp`, unless others are compared with them")
	markdown := flag.String("markdown", "", "also write the report to this `file`")
	traefik := flag.String("traefik", "", "`path` of Traefik; empty: the one on the PATH or in .build/")
	against := flag.String("against", "", "measure the plugin of this `revision` of the repository as well, in turn, and compare the two")
	list := flag.Bool("list", false, "only print the names of the variants")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	selected, err := choose(*only, *skip)
	if err == nil && *list {
		for _, v := range selected {
			fmt.Println(v.name)
		}
		return
	}
	if err == nil && (*rounds < 1 || *duration < time.Second || *duration%time.Second != 0) {
		err = fmt.Errorf("%d rounds of %v are not possible", *rounds, *duration)
	}
	if err == nil {
		err = run(ctx, selected, *rounds, *duration, *traefik, *against, *markdown)
	}
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// choose returns the variants whose name matches only and not skip, and those that they are compared with.
func choose(only, skip string) ([]variant, error) {
	wants, err := regexp.Compile(only)
	if err != nil {
		return nil, err
	}
	skips, err := regexp.Compile(skip)
	if err != nil {
		return nil, err
	}
	wanted := map[string]bool{}
	all := variants()
	for _, v := range all {
		if wants.MatchString(v.name) && (skip == "" || !skips.MatchString(v.name)) {
			wanted[v.name], wanted[v.base], wanted[v.noop] = true, true, true
		}
	}
	selected := slices.DeleteFunc(all, func(v variant) bool { return !wanted[v.name] })
	if len(selected) == 0 {
		return nil, errors.New("no variant is chosen")
	}
	return selected, nil
}

// run measures everything in rounds, so that what disturbs the machine meanwhile disturbs all variants alike.
func run(ctx context.Context, selected []variant, rounds int, duration time.Duration, traefik, against, markdown string) error {
	root, err := launch.Root()
	if err != nil {
		return err
	}
	if traefik == "" {
		traefik, err = launch.Traefik(ctx, root)
	} else {
		traefik, err = filepath.Abs(traefik)
	}
	if err != nil {
		return err
	}
	for _, tool := range []string{traefik, "redis-server", "wrk"} {
		_, err = exec.LookPath(tool)
		if err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "idem-bench")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	err = os.WriteFile(filepath.Join(dir, "load.lua"), loadScript, 0o600)
	if err != nil {
		return err
	}

	if against != "" {
		source := filepath.Join(dir, "against")
		remove, err := checkOut(ctx, root, against, source)
		if err != nil {
			return err
		}
		defer remove()
		selected = withEarlier(selected, against, source)
	}
	b := &bench{root: root, traefik: traefik, self: self, dir: dir, duration: duration}
	r := &report{rounds: rounds, duration: duration, variants: selected, against: against, samples: map[string][]sample{}}
	done, all := 0, 0
	for _, v := range selected {
		if v.once {
			all++
		} else {
			all += rounds
		}
	}
	began := time.Now()
	for round := range rounds {
		for _, v := range selected {
			if v.once && round > 0 {
				continue
			}
			s, err := b.measure(ctx, v)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				return fmt.Errorf("%s: %w", v.name, err)
			}
			r.samples[v.name] = append(r.samples[v.name], s)
			done++
			fmt.Printf("%d of %d, %v  %-45s %7.0f/s  p50 %v  p99 %v  p99.9 %v  Traefik %v  Redis %v\n", done, all, time.Since(began).Round(time.Second), v.name, s.rate, s.p50, s.p99, s.p999, s.traefikCPU, s.redisCPU)
		}
	}
	text := r.text(machine(ctx, traefik))
	fmt.Print("\n", text)
	if markdown == "" {
		return nil
	}
	return os.WriteFile(markdown, []byte(text), 0o644)
}

// checkOut puts the files of a revision of the repository at root into dir, which is not there yet, until remove is called.
func checkOut(ctx context.Context, root, revision, dir string) (remove func(), err error) {
	output, err := exec.CommandContext(ctx, "git", "-C", root, "worktree", "add", "--detach", dir, revision).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("git cannot check out %s: %w\n%s", revision, err, output)
	}
	return func() { // also when ctx has ended
		output, err := exec.Command("git", "-C", root, "worktree", "remove", "--force", dir).CombinedOutput()
		if err != nil {
			fmt.Fprintf(os.Stderr, "bench: the worktree of %s is left in %s: %v\n%s", revision, dir, err, output)
		}
	}, nil
}
