package redis

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// TestAProxyRefusesWhatIsLong in words of its own, as some hosted Redis do, and passes everything else on.
func TestAProxyRefusesWhatIsLong(t *testing.T) {
	const limit = 1 << 20
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		server := redistest.Start(t)
		proxy := rig.Listen(t, func(conn net.Conn) {
			forward(conn, server.Addr, func(command []string) bool {
				size := len(strings.Join(command, ""))
				if size > limit {
					fmt.Fprintf(conn, "-ERR max request size exceeded. Limit: %d bytes, Actual: %d bytes\r\n", limit, size)
				}
				return size <= limit
			})
		})
		b := rig.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(w, strings.Repeat("x", limit))
		})
		on := func(addr string) *rig.Site {
			return rig.SiteOf(t, host.Serve(t, b.URL, hosts.Settings{"statusHeader": "Decision", "onStoreError": "reject", "scope": []any{"Authorization"}, "inFlight": "reject", "lease": "10m", "maxResponseBodyBytes": 2 * limit,
				"redis": patient(map[string]any{"endpoints": addr})}), b)
		}
		over, straight := on(proxy), on(server.Addr)
		first := over.Do(rig.Post("/", "k"))
		over.Want(first, 200, "first")
		again := straight.Do(rig.Post("/", "k"))
		for strings.Contains(string(again.Body), ":in-flight") { // what is never told ends in the test's time-out
			time.Sleep(10 * time.Millisecond)
			again = straight.Do(rig.Post("/", "k"))
		}
		straight.WantProblem(again, 409, "response-not-kept", "unkept")
		over.WantReplay(first, over.Do(rig.Post("/", "k")))
		over.WantLine("an answer could not be written to Redis and is given up", proxy, "max request size exceeded")
		over.Calls(1)
	})
}
