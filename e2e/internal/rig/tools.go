package rig

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
)

// Tool returns where one of the programs called names is. Without one the test is skipped, except in CI.
func Tool(t *testing.T, names ...string) string {
	t.Helper()
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err == nil {
			return path
		}
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("this test needs %s, and in CI it must be there", names[0])
	}
	t.Skipf("this test needs %s, which is not installed", names[0])
	return ""
}

// NeedCurl skips the test where there is no curl, except in CI, where nothing may be skipped.
func NeedCurl(t *testing.T) {
	t.Helper()
	for _, tool := range []string{"curl", "bash"} {
		_, err := exec.LookPath(tool)
		if err != nil && os.Getenv("CI") != "" {
			t.Fatalf("this test needs %s, and in CI it must be there: %v", tool, err)
		}
		if err != nil {
			t.Skipf("this test needs %s, which is not installed", tool)
		}
	}
}

// ReadRoot returns a file of the repository.
func ReadRoot(t *testing.T, name string) string {
	t.Helper()
	return ReadFile(t, filepath.Join(hosts.Root(), name))
}

// ReadFile returns what is in a file.
func ReadFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// FreeAddress returns an address where nobody listens.
func FreeAddress(t *testing.T) string { return hosts.FreeAddress(t) }

// WriteFile writes text to a new file.
func WriteFile(t testing.TB, path, text string) {
	t.Helper()
	err := os.WriteFile(path, []byte(text), 0o600)
	if err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != 200 {
		t.Fatalf("%s: %d %v", url, response.StatusCode, err)
	}
	return string(body)
}

// Run runs a program in dir and returns what it prints; the test fails if it fails.
func Run(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	cmd := Command(t, dir, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(cmd.Args, " "), err, out, stderr.String())
	}
	return string(out)
}

// Build builds the command in the folder pkg, and returns the path of its program.
func Build(t testing.TB, pkg string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), filepath.Base(pkg))
	Run(t, ".", "go", "build", "-o", path, pkg)
	return path
}

// Command is a program that runs in dir, without a workspace, and ends with the test.
func Command(t testing.TB, dir, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	cmd.Env = append(cmd.Environ(), "GOWORK=off")
	return cmd
}
