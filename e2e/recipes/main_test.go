package recipes

import (
	"testing"

	"github.com/example/traefik-idem/e2e/internal/hosts"
)

func TestMain(m *testing.M) { hosts.Main(m) }
