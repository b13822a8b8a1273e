package examples

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"gopkg.in/yaml.v3"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/launch"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
)

// documents returns the parts of a YAML file as JSON has them.
func documents(t *testing.T, text string) []map[string]any {
	t.Helper()
	var all []map[string]any
	decoder := yaml.NewDecoder(strings.NewReader(text))
	for {
		var part, plain map[string]any
		err := decoder.Decode(&part)
		if err == io.EOF { //nolint:errorlint // the decoder returns it as it is
			return all
		}
		data, jsonErr := json.Marshal(part)
		if err != nil || jsonErr != nil || json.Unmarshal(data, &plain) != nil {
			t.Fatalf("%v, %v in\n%s", err, jsonErr, text)
		}
		all = append(all, plain)
	}
}

// strict closes the objects of a schema: an API server drops what its schema does not name.
func strict(schema map[string]any) {
	for _, name := range []string{"items", "additionalProperties"} {
		child, ok := schema[name].(map[string]any)
		if ok {
			strict(child)
		}
	}
	properties, ok := schema["properties"].(map[string]any)
	if !ok {
		return
	}
	if schema["x-kubernetes-preserve-unknown-fields"] == nil {
		schema["additionalProperties"] = false
	}
	for _, property := range properties {
		strict(property.(map[string]any))
	}
}

// traefikCRDs returns the definitions of Traefik's own kinds, from its module.
func traefikCRDs(t *testing.T) []map[string]any {
	t.Helper()
	var module struct{ Dir string }
	out := rig.Run(t, t.TempDir(), "go", "mod", "download", "-json", "github.com/traefik/traefik/v3@v"+launch.TraefikVersion)
	err := json.Unmarshal([]byte(out), &module)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(module.Dir, "docs", "content", "reference", "dynamic-configuration", "kubernetes-crd-definition-v1.yml"))
	if err != nil {
		t.Fatal(err)
	}
	return documents(t, string(text))
}

// traefikSchemas returns the schema of each of Traefik's kinds.
func traefikSchemas(t *testing.T) map[string]*jsonschema.Schema {
	t.Helper()
	schemas := map[string]*jsonschema.Schema{}
	for _, crd := range traefikCRDs(t) {
		spec := crd["spec"].(map[string]any)
		kind := spec["names"].(map[string]any)["kind"].(string)
		schema := spec["versions"].([]any)[0].(map[string]any)["schema"].(map[string]any)["openAPIV3Schema"].(map[string]any)
		strict(schema)
		schema["properties"].(map[string]any)["metadata"] = true // Kubernetes has a schema for it
		compiler := jsonschema.NewCompiler()
		err := compiler.AddResource(kind, schema)
		if err != nil {
			t.Fatal(err)
		}
		schemas[kind], err = compiler.Compile(kind)
		if err != nil {
			t.Fatal(err)
		}
	}
	return schemas
}

// TestExampleKubernetesFitsTheCRDs checks the example against Traefik's schema, and that the check finds mistakes.
func TestExampleKubernetesFitsTheCRDs(t *testing.T) {
	schemas := traefikSchemas(t)
	text := rig.ReadRoot(t, "examples/kubernetes/idem.yml")
	checked := 0
	for _, object := range documents(t, text) {
		if schema := schemas[object["kind"].(string)]; schema != nil {
			checked++
			err := schema.Validate(object)
			if err != nil {
				t.Errorf("%s: %v", object["kind"], err)
			}
		}
	}
	if checked != 2 {
		t.Errorf("%d objects have a schema of Traefik's, want the Middleware and the IngressRoute", checked)
	}
	for _, mistake := range [][2]string{{"kind: Rule", "kind: Ruler"}, {"match:", "matches:"}, {"plugin:", "plugins:"}, {"port: 8000", "port: [8000]"}} {
		failed := false
		for _, object := range documents(t, strings.Replace(text, mistake[0], mistake[1], 1)) {
			if schema := schemas[object["kind"].(string)]; schema != nil && schema.Validate(object) != nil {
				failed = true
			}
		}
		if !failed {
			t.Errorf("%q instead of %q fits the schema", mistake[1], mistake[0])
		}
	}
}

// cluster is as much of a Kubernetes API server as Traefik's CRD provider asks for: lists of objects, which never change.
func cluster(t *testing.T, objects []map[string]any) *httptest.Server {
	t.Helper()
	kinds := map[string]string{"configmaps": "ConfigMap", "endpointslices": "EndpointSlice", "namespaces": "Namespace",
		"nodes": "Node", "secrets": "Secret", "services": "Service"}
	for _, crd := range traefikCRDs(t) {
		names := crd["spec"].(map[string]any)["names"].(map[string]any)
		kinds[names["plural"].(string)] = names["kind"].(string)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/version" {
			_, _ = io.WriteString(w, `{"major":"1","minor":"34","gitVersion":"v1.34.0"}`)
			return
		}
		if r.URL.Query().Get("watch") != "" {
			if r.URL.Query().Get("sendInitialEvents") != "" { // a newer way to list
				w.WriteHeader(http.StatusUnprocessableEntity)
				_, _ = io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422}`)
				return
			}
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return
		}
		group, resource := path.Split(r.URL.Path)
		kind, known := kinds[resource]
		if !known {
			http.NotFound(w, r)
			return
		}
		items := []any{}
		for _, object := range objects {
			if object["kind"] == kind {
				items = append(items, object)
			}
		}
		version := strings.TrimPrefix(strings.TrimPrefix(strings.Trim(group, "/"), "apis/"), "api/")
		_ = json.NewEncoder(w).Encode(map[string]any{"kind": kind + "List", "apiVersion": version,
			"metadata": map[string]any{"resourceVersion": "1"}, "items": items})
	}))
	t.Cleanup(server.Close)
	return server
}

// TestExampleKubernetes has a real Traefik read the example from an API server, with the secrets.
func TestExampleKubernetes(t *testing.T) {
	redis := redistest.Start(t, "--requirepass", "change-me")
	text := rig.ReadRoot(t, "examples/kubernetes/idem.yml")
	text = strings.Replace(text, "redis.shop.svc:6379", redis.Addr, 1)
	text = strings.Replace(text, "        password: urn", "        dialTimeout: 10s\n        readTimeout: 10s\n        password: urn", 1)
	objects := documents(t, text)
	for _, object := range objects {
		if values, isSecret := object["stringData"].(map[string]any); isSecret { // an API server does this
			data := map[string]any{}
			for name, value := range values {
				data[name] = []byte(value.(string))
			}
			object["data"], object["type"] = data, "Opaque"
			delete(object, "stringData")
		}
	}
	host, port, _ := strings.Cut(strings.TrimPrefix(paymentsServer(t).URL, "http://"), ":")
	for _, text := range []string{`
kind: Service
apiVersion: v1
metadata: {name: payments, namespace: shop}
spec: {ports: [{port: 8000, targetPort: ` + port + `}]}`, `
kind: EndpointSlice
apiVersion: discovery.k8s.io/v1
metadata: {name: payments-1, namespace: shop, labels: {kubernetes.io/service-name: payments}}
addressType: IPv4
ports: [{name: "", port: ` + port + `, protocol: TCP}]
endpoints: [{addresses: [` + host + `], conditions: {ready: true, serving: true}}]`} {
		objects = append(objects, documents(t, text)...)
	}
	addr, dir := rig.FreeAddress(t), t.TempDir()
	static := fmt.Sprintf(`
log: {level: DEBUG}
entryPoints: {web: {address: %q}}
providers: {kubernetesCRD: {endpoint: %q, token: none}}
experimental: {localPlugins: {idem: {moduleName: github.com/example/traefik-idem}}}
`, addr, cluster(t, objects).URL)
	err := os.WriteFile(filepath.Join(dir, "traefik.yml"), []byte(static), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	s := rig.SiteOf(t, hosts.Run(t, dir, "traefik.yml", addr, "shop.example"), nil)
	paysOnce(s)
	ops := http.Header{"Authorization": {"Basic b3BzOnN0YXRpc3RpY3M="}} // ops:statistics
	s.Want(s.Do(rig.Call{Method: http.MethodGet, Path: "/_idem/stats.json", Header: ops}), 200, "")
	s.Want(s.Do(rig.Call{Method: http.MethodGet, Path: "/_idem/stats.json"}), 401, "")
}
