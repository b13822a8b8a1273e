package launch

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

const traefikModule = "github.com/traefik/traefik/v3"

// BuildTraefik builds this version of Traefik from its module into the file path, and tells screen how far it is. root is the
// folder of the plugin. The error has what Go says of the failure.
func BuildTraefik(ctx context.Context, root, version, path string, screen io.Writer) error {
	dir, err := traefikSources(ctx, root, version)
	if err != nil {
		return err
	}
	flags := []string{"-trimpath", "-ldflags", "-s -w -X " + traefikModule + "/pkg/version.Version=" + version}
	fmt.Fprintf(screen, "building Traefik %s from its module: about 8 minutes the first time\n", version)
	list := append([]string{"list", "-deps", "-f", "{{if .Stale}}{{.ImportPath}}{{end}}"}, flags...)
	stale, err := run(goCommand(ctx, dir, append(list, traefikModule+"/cmd/traefik")...))
	if err != nil {
		return err
	}
	build := append([]string{"build", "-v", "-o", path}, flags...)
	p := &progress{screen: screen, total: bytes.Count(stale, []byte("\n")), begun: time.Now()}
	return p.follow(goCommand(ctx, dir, append(build, traefikModule+"/cmd/traefik")...))
}

// traefikSources returns the folder to build this version in: e2e/traefik, whose go.mod says what Traefik's own leaves out, or
// for another version where Go keeps its module.
func traefikSources(ctx context.Context, root, version string) (string, error) {
	dir := filepath.Join(root, "e2e", "traefik")
	required, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		return "", err
	}
	if bytes.Contains(required, []byte(traefikModule+" v"+version+"\n")) || bytes.Contains(required, []byte(traefikModule+" v"+version+" ")) {
		return dir, nil
	}
	output, err := run(goCommand(ctx, dir, "mod", "download", "-json", traefikModule+"@v"+version))
	var module struct{ Dir, Error string }
	if len(output) > 0 && json.Unmarshal(output, &module) == nil && module.Error != "" {
		return "", errors.New(module.Error)
	}
	return module.Dir, err
}

// goCommand is a Go command in dir that ends with ctx.
func goCommand(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopTimeout
	return cmd
}

// run returns what cmd prints. The error has what it complains about.
func run(cmd *exec.Cmd) ([]byte, error) {
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	output, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("go %s: %w\n%s", cmd.Args[1], err, complaint(strings.Split(complaints.String(), "\n")))
	}
	return output, err
}

// complaint is lines without those that only tell of downloads, and no more than the last forty.
func complaint(lines []string) string {
	var left []string
	for _, line := range lines {
		if line != "" && !strings.HasPrefix(line, "go: downloading ") {
			left = append(left, line)
		}
	}
	return strings.Join(left[max(0, len(left)-40):], "\n")
}

// progress tells of a build in one line, which ends with the minutes that are left.
type progress struct {
	screen io.Writer
	total  int // packages to build
	begun  time.Time

	built int
	told  time.Time
}

// A line of go build -v that is the path of a package.
var packagePath = regexp.MustCompile(`^[\w.~-]+(/[\w.~-]+)*$`)

// follow runs a go build -v. The error has all that it prints but the paths of packages.
func (p *progress) follow(cmd *exec.Cmd) error {
	output, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	err = cmd.Start()
	if err != nil {
		return err
	}
	var others []string
	lines := bufio.NewScanner(output)
	for lines.Scan() {
		if packagePath.MatchString(lines.Text()) {
			p.built++
			p.tell(time.Now())
		} else {
			others = append(others, lines.Text())
		}
	}
	_, _ = io.Copy(io.Discard, output) // a line was too long; Wait tells what matters
	err = cmd.Wait()
	if p.built > 0 {
		fmt.Fprintln(p.screen)
	}
	if err != nil {
		return fmt.Errorf("go build: %w\n%s", err, complaint(others))
	}
	return nil
}

// tell writes the line anew on a terminal, at most twice a second. Elsewhere, such as in a log, it adds one each minute.
func (p *progress) tell(now time.Time) {
	line := fmt.Sprintf("%d of %d packages built, %s", p.built, max(p.total, p.built), p.left(now))
	switch {
	case isTerminal(p.screen) && now.Sub(p.told) >= time.Second/2:
		fmt.Fprintf(p.screen, "\r%-60s", line)
	case !isTerminal(p.screen) && now.Sub(p.told) >= time.Minute:
		fmt.Fprintln(p.screen, line)
	default:
		return
	}
	p.told = now
}

// left is how long the rest will take if it goes on like this.
func (p *progress) left(now time.Time) string {
	rest := now.Sub(p.begun) * time.Duration(max(p.total-p.built, 0)) / time.Duration(p.built)
	minutes := int(math.Ceil(rest.Minutes()))
	if minutes <= 1 {
		return "about a minute left"
	}
	return fmt.Sprintf("about %d minutes left", minutes)
}

func isTerminal(w io.Writer) bool {
	file, isFile := w.(*os.File)
	if !isFile {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
