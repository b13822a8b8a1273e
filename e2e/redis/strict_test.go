package redis

import (
	"crypto/sha1"
	"encoding/hex"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// renamer stands between the plugin and Redis, and gives each key that a command names another name. What a script touches
// without having named it keeps its name.
type renamer struct {
	addr string
	down atomic.Bool

	mu      sync.Mutex
	scripts map[string]bool // digests of those that were sent
}

// declared begins the names that keys get.
const declared = "declared:"

func newRenamer(t *testing.T, target string) *renamer {
	t.Helper()
	r := &renamer{scripts: map[string]bool{}}
	r.addr = rig.Listen(t, func(conn net.Conn) {
		forward(conn, target, func(command []string) bool {
			if r.down.Load() {
				_ = conn.Close()
				return false
			}
			r.rename(command)
			return true
		})
	})
	return r
}

// rename changes the names of keys in a command. Those in MEMORY USAGE come from a reply to SCAN, and are changed already.
func (r *renamer) rename(command []string) {
	switch command[0] {
	case "EVAL", "EVALSHA":
		digest := command[1]
		if command[0] == "EVAL" {
			sum := sha1.Sum([]byte(command[1]))
			digest = hex.EncodeToString(sum[:])
		}
		r.mu.Lock()
		r.scripts[digest] = true
		r.mu.Unlock()
		keys, _ := strconv.Atoi(command[2])
		for i := 3; i < 3+keys; i++ {
			command[i] = declared + command[i]
		}
	case "SCAN":
		command[3] = declared + command[3]
	case "AUTH", "MEMORY", "PING": // PING measures, once a second
	default: // one that begins with its key
		command[1] = declared + command[1]
	}
}

// TestScriptsTouchOnlyTheirKeys runs every script, by a user who may touch nothing but keys that commands name.
func TestScriptsTouchOnlyTheirKeys(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(hosts.Root(), "redisclient", "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	scripts := 0
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		scripts += len(regexp.MustCompile("(newScript\\('.*|\\w+Script = )`").FindAll(source, -1))
	}
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		server.Do("ACL", "SETUSER", "shop", "on", ">secret", "resetkeys", "~"+declared+"*", "+@all")
		r := newRenamer(t, server.Addr)
		b := rig.NewBackend(t, func(w http.ResponseWriter, req *http.Request) {
			switch req.URL.Path {
			case "/free":
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			case "/unknown":
				panic(http.ErrAbortHandler)
			case "/slow": // until its lease is renewed
				rig.LogCommands(server)
				for rig.ScriptsForKeys(server) == 0 {
					time.Sleep(10 * time.Millisecond)
				}
			}
			rig.Created(w, req)
		})
		s := rig.SiteOf(t, host.Serve(t, b.URL, hosts.Settings{"statusHeader": "Decision", "lease": "1m", "stats": rig.AdminStats["stats"],
			"redis": patient(map[string]any{"endpoints": r.addr, "username": "shop", "password": "secret"})}), b) // with such time-outs a lease of a minute is renewed at once
		s.WantRun("k")
		s.Want(s.Do(rig.Post("/free", "free")), 503, "released")
		s.Want(s.Do(rig.Post("/slow", "slow")), 201, "first")
		s.Send(rig.Post("/unknown", "unknown"))
		s.Settle("PUT", s.Find(rig.Post("/unknown", "unknown")).ID, `{"status":201,"body":"paid"}`)
		s.Settle("DELETE", s.Find(rig.Post("/", "k")).ID, "")
		s.Keys("unknown")
		r.down.Store(true)
		for s.Do(rig.Post("/", rig.UnusedKey())).Header.Get("Decision") != "first;degraded" {
			time.Sleep(10 * time.Millisecond)
		}
		r.down.Store(false)
		s.AwaitLog("answers of the outage were written to Redis")
		f := s.Counted(func(f rig.Figures) bool { return f.Memory.Bytes > 0 })
		if !f.Store.Healthy {
			t.Errorf("the store is not well: %s", f.Store.Error)
		}
		if refused := server.Do("ACL", "LOG"); refused != "" {
			t.Errorf("a key was touched that no command names: %s", refused)
		}
		for _, name := range strings.Fields(server.Do("KEYS", "*")) {
			if !strings.HasPrefix(name, declared+"idem:") {
				t.Errorf("there is a key %s", name)
			}
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.scripts) != scripts {
			t.Errorf("%d scripts were sent, and there are %d", len(r.scripts), scripts)
		}
	})
}
