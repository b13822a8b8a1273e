package examples

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/launch"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// script puts a program called traefik in a folder of its own, and returns the folder.
func script(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	err := os.WriteFile(filepath.Join(dir, "traefik"), []byte("#!/bin/sh\n"+text), 0o755)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// runningDemo is a demo in a process group of its own, as a terminal has it.
type runningDemo struct {
	t     *testing.T
	cmd   *exec.Cmd
	curls []string
	out   hosts.Buffer
	done  chan struct{} // closed when it has ended and all its output is read
}

// startDemo starts the demo with the folder path before all others on the PATH.
func startDemo(t *testing.T, path string, args ...string) *runningDemo {
	t.Helper()
	d := &runningDemo{t: t, cmd: exec.Command(rig.Build(t, "../cmd/demo"), args...), done: make(chan struct{})}
	d.cmd.Env = append(os.Environ(), "PATH="+path+string(os.PathListSeparator)+os.Getenv("PATH"), "TMPDIR="+t.TempDir())
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	d.cmd.Stderr = &d.out
	stdout, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	err = d.cmd.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.signalAll(syscall.SIGKILL) })
	ready := make(chan struct{})
	go func() {
		defer close(d.done)
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			fmt.Fprintln(&d.out, lines.Text())
			curl := strings.TrimPrefix(lines.Text(), "  ")
			if strings.HasPrefix(curl, "curl ") {
				d.curls = append(d.curls, curl)
			}
			if strings.HasPrefix(lines.Text(), "Ctrl-C") {
				close(ready)
			}
		}
		_ = d.cmd.Wait() // its state is in cmd
	}()
	select {
	case <-ready:
	case <-d.done:
	}
	return d
}

// signalAll sends sig to the demo and all that it started. It reports whether there was anybody.
func (d *runningDemo) signalAll(sig syscall.Signal) bool {
	return !errors.Is(syscall.Kill(-d.cmd.Process.Pid, sig), syscall.ESRCH)
}

// ended waits for the end, which must leave no process and no file.
func (d *runningDemo) ended(code int) {
	d.t.Helper()
	<-d.done
	if got := d.cmd.ProcessState.ExitCode(); got != code {
		d.t.Errorf("the demo ended with %d, want %d:\n%s", got, code, d.out.String())
	}
	if d.signalAll(0) {
		d.t.Errorf("the demo left a process:\n%s", d.out.String())
	}
	for _, variable := range d.cmd.Env {
		dir, isDir := strings.CutPrefix(variable, "TMPDIR=")
		left, _ := filepath.Glob(filepath.Join(dir, "idem-demo*"))
		if isDir && len(left) > 0 {
			d.t.Errorf("the demo left %s", left)
		}
	}
}

// bash runs a line that the demo printed.
func (d *runningDemo) bash(line string) string {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	output, err := exec.CommandContext(ctx, "bash", "-c", line).Output()
	if err != nil {
		d.t.Fatalf("%s\n%v\n%s\n%s", line, err, output, d.out.String())
	}
	return string(output)
}

// reply is what curl -i printed.
type reply struct{ head, body string }

func (d *runningDemo) reply(line string) reply {
	d.t.Helper()
	head, body, ok := strings.Cut(d.bash(line), "\r\n\r\n")
	if !ok {
		d.t.Fatalf("%s: no header in %q", line, head)
	}
	return reply{head: head + "\r\n", body: body}
}

func (d *runningDemo) wants(what string, r reply, fragments ...string) {
	d.t.Helper()
	for _, fragment := range fragments {
		if !strings.Contains(r.head, fragment) {
			d.t.Errorf("%s: no %q in\n%s%s", what, fragment, r.head, r.body)
		}
	}
}

// try runs all that the demo told the user to run.
func (d *runningDemo) try() {
	d.t.Helper()
	if len(d.curls) != 5 {
		d.t.Fatalf("%d curl lines, want 5:\n%s", len(d.curls), d.out.String())
	}
	first := d.reply(d.curls[0])
	d.wants("first call", first, " 201 Created\r\n", "\r\nIdempotency-Status: first\r\n")
	again := d.reply(d.curls[1])
	d.wants("duplicate", again, " 201 Created\r\n", "\r\nIdempotent-Replayed: true\r\n", "\r\nIdempotency-Status: replayed\r\n")
	if again.body != first.body || !strings.Contains(first.body, `"amount":10`) {
		d.t.Errorf("duplicate: %q, want %q", again.body, first.body)
	}
	other := d.reply(d.curls[2])
	d.wants("another body", other, " 422 Unprocessable Entity\r\n")
	if !strings.Contains(other.body, "urn:traefik-idem:problem:key-reused") {
		d.t.Errorf("another body: %s", other.body)
	}
	twins := strings.SplitAfter(d.bash(d.curls[3]), "\n")
	if len(twins) != 3 || twins[0] != twins[1] || !strings.Contains(twins[0], `"amount":20`) {
		d.t.Errorf("two at once: %q, want the same line twice", twins)
	}
	page := d.bash(d.curls[4])
	if !strings.HasPrefix(page, "calls of the backend: 2\n") {
		d.t.Errorf("the backend's page: %s", page)
	}
	found := regexp.MustCompile(`(?m)^stats +(http://\S+/_idem/)$`).FindStringSubmatch(d.out.String())
	if found == nil {
		d.t.Fatalf("no word of the statistics:\n%s", d.out.String())
	}
	if statistics := d.bash("curl -sS " + found[1] + "stats.json"); !strings.Contains(statistics, `"duplicates":2,`) {
		d.t.Errorf("statistics: %s", statistics)
	}
	login := regexp.MustCompile(`(?m)^settle +(http://\S+/_idem/login) \(name (\S+), password (\S+)\)$`).FindStringSubmatch(d.out.String())
	if login == nil {
		d.t.Fatalf("no word of who may settle keys:\n%s", d.out.String())
	}
	if status := d.bash("curl -sS -o /dev/null -w '%{http_code}' -u " + login[2] + ":" + login[3] + " " + login[1]); status != "303" {
		d.t.Errorf("the login of an admin: %s, want 303", status)
	}
	calls := regexp.MustCompile(`(?m)^backend: call (\d+)  POST /api/payments/ `).FindAllStringSubmatch(d.out.String(), -1)
	if len(calls) != 2 || calls[0][1] != "1" || calls[1][1] != "2" {
		d.t.Errorf("the backend logged %q, want its calls 1 and 2", calls)
	}
}

func TestDemoInMemory(t *testing.T) {
	rig.NeedCurl(t)
	// A Traefik 2 on the PATH must not be used. Without a Traefik that was built here the demo would build one.
	path := script(t, "echo 'Version:      2.11.0'\n")
	_, err := os.Stat(filepath.Join(hosts.Root(), ".build", "traefik-"+launch.TraefikVersion))
	if err != nil {
		path = ownTraefik(t)
	}
	d := startDemo(t, path, "-redis", "memory")
	d.try()
	d.signalAll(syscall.SIGINT) // as a terminal does
	d.ended(0)
}

func TestDemoInRedis(t *testing.T) {
	rig.NeedCurl(t)
	redis := redistest.Start(t)
	d := startDemo(t, ownTraefik(t), "-redis", redis.Addr)
	d.try()
	if keys := redis.Do("KEYS", "idem:req:*"); strings.Count(keys, "idem:req:") != 2 {
		t.Errorf("keys in Redis: %q, want 2", keys)
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM) // to the demo alone
	d.ended(0)
}

// ownTraefik returns a folder in which the Traefik under test is called traefik, if one was given.
func ownTraefik(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	path := os.Getenv("TRAEFIK_BIN")
	if path != "" {
		err := os.Symlink(path, filepath.Join(dir, "traefik"))
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestDemoWhenTraefikEnds(t *testing.T) {
	d := startDemo(t, script(t, "if [ \"$1\" = version ]; then echo 'Version:      v3.9.9'; exit; fi\necho 'no more of this'\nexit 3\n"))
	d.ended(1)
	if !strings.Contains(d.out.String(), "no more of this") {
		t.Errorf("Traefik's log is not shown:\n%s", d.out.String())
	}
}

func TestDemoWithoutRedis(t *testing.T) {
	const addr = "127.0.0.1:1"
	d := startDemo(t, t.TempDir(), "-redis", addr)
	d.ended(1)
	if !strings.Contains(d.out.String(), "no Redis at "+addr) {
		t.Errorf("the error names no address:\n%s", d.out.String())
	}
	locked := redistest.Start(t, "--requirepass", "secret")
	d = startDemo(t, t.TempDir(), "-redis", locked.Addr)
	d.ended(1)
	if !bytes.Contains([]byte(d.out.String()), []byte("NOAUTH")) {
		t.Errorf("the error does not tell what Redis says:\n%s", d.out.String())
	}
}
