package docs

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	idem "github.com/example/traefik-idem"
	"github.com/example/traefik-idem/e2e/internal/decode"
	"github.com/example/traefik-idem/e2e/internal/hosts"
)

// TestTestdataHasEverySetting compares testdata/middleware.yml with the struct, and builds the middleware from it.
func TestTestdataHasEverySetting(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(hosts.Root(), "testdata", "middleware.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		HTTP struct {
			Middlewares map[string]struct{ Plugin map[string]hosts.Settings }
		}
	}
	err = yaml.Unmarshal(data, &file)
	if err != nil {
		t.Fatal(err)
	}
	settings := file.HTTP.Middlewares["idem"].Plugin["idem"]
	for _, host := range hosts.All() {
		if refusal := host.Refusal(t, settings); refusal != "" {
			t.Errorf("%s: %s", host, refusal)
		}
	}
	decoded := idem.CreateConfig()
	err = decode.Settings(settings, decoded)
	if err != nil {
		t.Fatal(err)
	}
	var compare func(prefix string, there map[string]any, got, byDefault reflect.Value)
	compare = func(prefix string, there map[string]any, got, byDefault reflect.Value) {
		for i := range got.NumField() {
			name, _, _ := strings.Cut(got.Type().Field(i).Tag.Get("json"), ",")
			if name == "" { // what is left over when a configuration is decoded
				continue
			}
			value, ok := there[name]
			nested, isMap := value.(map[string]any)
			if s, isSettings := value.(hosts.Settings); isSettings {
				nested, isMap = s, true
			}
			switch {
			case !ok:
				t.Errorf("%s%s is missing", prefix, name)
			case isMap:
				compare(prefix+name+".", nested, got.Field(i), byDefault.Field(i))
			case got.Field(i).Kind() != reflect.Slice && got.Field(i).Interface() != byDefault.Field(i).Interface():
				t.Errorf("%s%s is %v, the default is %v", prefix, name, got.Field(i), byDefault.Field(i))
			}
			delete(there, name)
		}
		for name := range there {
			t.Errorf("%s%s is no setting", prefix, name)
		}
	}
	compare("", settings, reflect.ValueOf(decoded).Elem(), reflect.ValueOf(idem.CreateConfig()).Elem())
}
