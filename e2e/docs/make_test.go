package docs

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/launch"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// plainTools are the programs that macOS has too, and with which any use is the same there.
var plainTools = []string{"sh", "git", "make", "cat", "mkdir", "rm", "mv", "chmod", "gofmt", "dirname", "basename", "uname", "tr", "cut"}

// strictTools are programs of which GNU's can do more. The patterns are arguments that only GNU's takes: options, and in
// scripts of sed what POSIX leaves undefined.
var strictTools = map[string]string{
	"sed":   `--*|-i|-r|-z|-s|*'\t'*|*'\+'*|*'\?'*|*'\|'*|*'\w'*|*'\s'*|*'\b'*`,
	"grep":  `--*|-[a-zA-Z]*[PZz]*|-P*|-Z*|-z*`,
	"xargs": `--*|-r|-d*`,
}

// TestMakeNeedsNothingOfGNU runs the recipes with which people begin where sed, grep and xargs are as strict as on macOS, and no
// other program is there. Go itself, which is the same everywhere, is only written down.
func TestMakeNeedsNothingOfGNU(t *testing.T) {
	t.Parallel()
	bin, log := t.TempDir(), filepath.Join(t.TempDir(), "log")
	program := func(name, script string) {
		t.Helper()
		err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script), 0o755)
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range plainTools {
		err := os.Symlink(rig.Tool(t, name), filepath.Join(bin, name))
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, refused := range strictTools {
		program(name, "for a in \"$@\"; do case $a in "+refused+") echo \"not everywhere: "+name+" $a\" >>"+log+"; exit 2 ;; esac; done\nexec "+rig.Tool(t, name)+" \"$@\"\n")
	}
	program("go", `echo "go $*" >>`+log+`
[ "$1" = install ] && : >"$GOBIN/golangci-lint" && chmod +x "$GOBIN/golangci-lint"
while [ $# -gt 1 ]; do
	if [ "$1" = -o ]; then mkdir -p "$(dirname "$2")"; echo '#!/bin/sh' >"$2"; chmod +x "$2"; fi
	shift
done
`)
	clone := filepath.Join(t.TempDir(), "clone")
	rig.Run(t, hosts.Root(), "git", "clone", "--quiet", ".", clone)
	rig.WriteFile(t, filepath.Join(clone, "Makefile"), rig.ReadRoot(t, "Makefile")) // as it is, not as it was committed
	for _, c := range []struct {
		target, want string
	}{
		{"quick", "go test ./..."},
		{"demo", "go build -o ../.build/demo ./cmd/demo"},
		{"traefik", "go run ./cmd/traefik -version " + launch.TraefikVersion},
		{"lint", "go vet ./..."},
		{"elsewhere", "go vet ./..."},
		{"module NEW=github.com/somebody-else/edge-idempotency", ""},
	} {
		rig.WriteFile(t, log, "")
		cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "make"), strings.Fields(c.target)...)
		cmd.Dir = clone
		cmd.Env = []string{"PATH=" + bin, "HOME=" + t.TempDir()}
		out, err := cmd.CombinedOutput()
		did, _ := os.ReadFile(log)
		if err != nil || strings.Contains(string(did), "not everywhere") || !strings.Contains(string(did), c.want) {
			t.Errorf("make %s: %v\n%s\nIt did:\n%s", c.target, err, out, did)
		}
	}
}
