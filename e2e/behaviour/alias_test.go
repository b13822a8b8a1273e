package behaviour

import (
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// TestAnAliasIsNoKey sends headers that a backend which makes variables of them, as CGI, WSGI and PHP do, takes for the
// key's. To the plugin they are none: where a key is required, the request is refused.
func TestAnAliasIsNoKey(t *testing.T) {
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		s := rig.Serve(t, host, rig.Created, hosts.Settings{"statusHeader": "Decision", "required": true})
		for _, name := range []string{"X_Request_ID", "X-Request_ID", "X_Request-ID", "x_request_id", "X.REQUEST~ID", "x-request.id"} {
			s.WantProblem(s.Do(rig.Post("/", "").Headers(name, "k")), 400, "missing-key", "missing")
		}
		s.Calls(0)
		s.Want(s.Do(rig.Post("/", "k").Headers("X_Request_ID", "other")), 201, "first")
	})
}
