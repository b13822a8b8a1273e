package bench

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// needWrk skips the test where there is no wrk, except in CI, where nothing may be skipped.
func needWrk(t *testing.T) {
	t.Helper()
	_, err := exec.LookPath("wrk")
	if err != nil && os.Getenv("CI") != "" {
		t.Fatalf("this test needs wrk, and in CI it must be there: %v", err)
	}
	if err != nil {
		t.Skip("this test needs wrk, which is not installed")
	}
}

// TestBenchCommand measures briefly, so that the load benchmark does not rot. How fast anything is decides nothing.
func TestBenchCommand(t *testing.T) {
	needWrk(t)
	redistest.Path(t) // or skip
	dir := t.TempDir()
	report := filepath.Join(dir, "report.md")
	temporary := filepath.Join(dir, "tmp")
	err := os.Mkdir(temporary, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	bench := exec.Command(rig.Build(t, "../cmd/bench"), "-rounds", "1", "-duration", "1s", "-markdown", report, "-traefik", hosts.Binary(t), "-against", "HEAD",
		"-only", "^duplicate, local cache(, 1 MB)?$|^first, Redis Cluster$|^first, Redis, 500/s$|^Redis, distinct keys: 1000$")
	bench.Env = append(os.Environ(), "TMPDIR="+temporary)
	output, err := bench.CombinedOutput()
	if err != nil {
		t.Fatalf("bench: %v\n%s", err, output)
	}
	text, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []string{
		`(?m)^\| no middleware \| \d+ \|  \|`,
		`(?m)^\| duplicate, local cache \| \d+ \| \d+\.\d\d \(\d+\.\d\d–\d+\.\d\d\) \|  \| \d+\.\d ms \| \d+\.\d ms \|`,
		`(?m)^\| duplicate, local cache, 1 MB \| \d+ \| \d+\.\d\d`,
		`(?m)^\| first, Redis Cluster \| \d+ \| \d+\.\d\d`,
		`(?m)^\| duplicate, local cache \| \d+ \| \d+ \| \d+\.\d\d \(\d+\.\d\d–\d+\.\d\d\) \| \d+\.\d ms \| \d+\.\d ms \| \d+ µs \| \d+ µs \|$`,
		`(?m)^\| no middleware, 500/s \| \d+\.\d\d ms \| \d+\.\d\d ms \| \d+\.\d\d ms \|  \|  \|  \| \d+ µs \| 0 µs \|$`,
		`(?m)^\| first, Redis, 500/s (\| \d+\.\d\d ms ){3}(\| -?\d+\.\d\d ms ){3}\| \d+ µs \| \d+ µs \|$`,
		`(?m)^\| first, Redis, 500/s (\| \d+\.\d\d ms ){4}\| \d+\.\d\d \(\d+\.\d\d–\d+\.\d\d\) (\| \d+\.\d\d ms ){2}\| \d+ µs \| \d+ µs \|$`,
		`(?m)^\| distinct keys \| 1000 \| Redis \| \d+ \|`,
		`(?m)^\| Redis \| 32 MiB \| 1000 \| \d+ MiB \| \d+ MiB \| -?\d+ MiB \| 96 MiB \|`,
		`(?m)^\| Traefik \| \d+\.\d+\.\d+, go`,
	} {
		if !regexp.MustCompile(row).Match(text) {
			t.Errorf("no line %s in the report:\n%s", row, text)
		}
	}
	if strings.Contains(string(text), "unknown") {
		t.Errorf("the report does not know the machine:\n%s", text)
	}
	left, err := os.ReadDir(temporary)
	if err != nil || len(left) > 0 {
		t.Errorf("files left behind: %v, %v", left, err)
	}
}
