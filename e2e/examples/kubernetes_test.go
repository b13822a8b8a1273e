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
	"regexp"
	"slices"
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

// definitions returns the CRDs of Traefik's own kinds, from its module, and those of the Gateway API that it is built with.
func definitions(t *testing.T) []map[string]any {
	t.Helper()
	traefik := moduleDir(t, "github.com/traefik/traefik/v3@v"+launch.TraefikVersion)
	all := crds(t, filepath.Join(traefik, "docs", "content", "reference", "dynamic-configuration", "kubernetes-crd-definition-v1.yml"))
	required, err := os.ReadFile(filepath.Join(traefik, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`sigs\.k8s\.io/gateway-api (v\S+)`).FindSubmatch(required)
	if version == nil {
		t.Fatal("Traefik does not require the Gateway API")
	}
	dir := moduleDir(t, "sigs.k8s.io/gateway-api@"+string(version[1]))
	paths, _ := filepath.Glob(filepath.Join(dir, "config", "crd", "standard", "*.yaml"))
	for _, path := range paths {
		all = append(all, crds(t, path)...)
	}
	return all
}

// moduleDir returns the folder with a module's files.
func moduleDir(t *testing.T, module string) string {
	t.Helper()
	var found struct{ Dir string }
	out := rig.Run(t, t.TempDir(), "go", "mod", "download", "-json", module)
	err := json.Unmarshal([]byte(out), &found)
	if err != nil {
		t.Fatal(err)
	}
	return found.Dir
}

// crds returns the definitions of kinds in a file.
func crds(t *testing.T, path string) []map[string]any {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(documents(t, string(text)), func(object map[string]any) bool { return object["kind"] != "CustomResourceDefinition" })
}

// schemas returns the schema of each kind, without surprises: names that it does not have are mistakes.
func schemas(t *testing.T) map[string]*jsonschema.Schema {
	t.Helper()
	compiled := map[string]*jsonschema.Schema{}
	for _, crd := range definitions(t) {
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
		compiled[kind], err = compiler.Compile(kind)
		if err != nil {
			t.Fatal(err)
		}
	}
	return compiled
}

// kubernetesExample are the objects of the middleware and of a route to it.
func kubernetesExample(t *testing.T, route string) string {
	t.Helper()
	return rig.ReadRoot(t, "examples/kubernetes/idem.yml") + "\n---\n" + rig.ReadRoot(t, "examples/kubernetes/"+route)
}

// TestExampleKubernetesFitsTheCRDs checks the examples against the schemas of their kinds, and that the check finds mistakes.
func TestExampleKubernetesFitsTheCRDs(t *testing.T) {
	schemas := schemas(t)
	for route, example := range map[string]struct {
		kinds    []string
		mistakes [][2]string
	}{
		"ingressroute.yml": {[]string{"Middleware", "IngressRoute"}, [][2]string{
			{"kind: Rule", "kind: Ruler"}, {"match:", "matches:"}, {"plugin:", "plugins:"}, {"port: 8000", "port: [8000]"},
		}},
		"gateway.yml": {[]string{"Middleware", "GatewayClass", "Gateway", "HTTPRoute"}, [][2]string{
			{"type: ExtensionRef", "type: Extension"}, {"extensionRef:", "extension:"}, {"protocol: HTTP", "protocol: [HTTP]"}, {"matches:", "match:"},
			{"type: PathPrefix", "type: Prefix"}, {"controllerName:", "controller:"},
		}},
	} {
		text := kubernetesExample(t, route)
		var checked []string
		for _, object := range documents(t, text) {
			kind := object["kind"].(string)
			if schema := schemas[kind]; schema != nil {
				checked = append(checked, kind)
				err := schema.Validate(object)
				if err != nil {
					t.Errorf("%s of %s: %v", kind, route, err)
				}
			}
		}
		if !slices.Equal(checked, example.kinds) {
			t.Errorf("%s has schemas for %q, want %q", route, checked, example.kinds)
		}
		for _, mistake := range example.mistakes {
			failed := false
			for _, object := range documents(t, strings.Replace(text, mistake[0], mistake[1], 1)) {
				if schema := schemas[object["kind"].(string)]; schema != nil && schema.Validate(object) != nil {
					failed = true
				}
			}
			if !failed {
				t.Errorf("%s: %q instead of %q fits the schema", route, mistake[1], mistake[0])
			}
		}
	}
}

// apiServer is as much of a Kubernetes API server as Traefik's providers ask for: lists of objects, which never change, and
// a place for the status of each.
type apiServer struct {
	*httptest.Server
	statuses chan string // of HTTPRoutes, as Traefik writes them
}

func cluster(t *testing.T, objects []map[string]any) *apiServer {
	t.Helper()
	kinds := map[string]string{"configmaps": "ConfigMap", "endpointslices": "EndpointSlice", "namespaces": "Namespace",
		"nodes": "Node", "secrets": "Secret", "services": "Service"}
	for _, crd := range definitions(t) {
		names := crd["spec"].(map[string]any)["names"].(map[string]any)
		kinds[names["plural"].(string)] = names["kind"].(string)
	}
	api := &apiServer{statuses: make(chan string, 100)}
	api.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/version" {
			_, _ = io.WriteString(w, `{"major":"1","minor":"34","gitVersion":"v1.34.0"}`)
			return
		}
		if r.Method == http.MethodPut && path.Base(r.URL.Path) == "status" {
			body, _ := io.ReadAll(r.Body) // it is compared with what is wanted
			if strings.Contains(r.URL.Path, "/httproutes/") {
				api.statuses <- string(body)
			}
			_, _ = w.Write(body)
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
	t.Cleanup(api.Close)
	return api
}

// TestExampleKubernetes has a real Traefik read the example from an API server, with the secrets.
func TestExampleKubernetes(t *testing.T) {
	s, _ := serveKubernetes(t, "ingressroute.yml", "")
	paysOnce(s)
	ops := http.Header{"Authorization": {"Basic b3BzOnN0YXRpc3RpY3M="}} // ops:statistics
	s.Want(s.Do(rig.Call{Method: http.MethodGet, Path: "/_idem/stats.json", Header: ops}), 200, "")
	s.Want(s.Do(rig.Call{Method: http.MethodGet, Path: "/_idem/stats.json"}), 401, "")
}

// TestExampleGatewayAPI has a real Traefik read the same middleware through a route of the Gateway API, and tell that route's
// status.
func TestExampleGatewayAPI(t *testing.T) {
	s, api := serveKubernetes(t, "gateway.yml", ", kubernetesGateway: {endpoint: %q, token: none}")
	paysOnce(s)
	var route struct {
		Status struct {
			Parents []struct {
				Conditions []struct{ Type, Status string }
			}
		}
	}
	err := json.Unmarshal([]byte(<-api.statuses), &route)
	if err != nil || len(route.Status.Parents) != 1 {
		t.Fatalf("%v, status of the route: %+v", err, route)
	}
	states := map[string]string{}
	for _, condition := range route.Status.Parents[0].Conditions {
		states[condition.Type] = condition.Status
	}
	if states["Accepted"] != "True" || states["ResolvedRefs"] != "True" {
		t.Errorf("the route is %v, want it accepted, with all that it names", states)
	}
}

// serveKubernetes starts a real Traefik that reads the example from an API server, with this route and a further provider.
func serveKubernetes(t *testing.T, route, provider string) (*rig.Site, *apiServer) {
	t.Helper()
	redis := redistest.Start(t, "--requirepass", "change-me")
	addr, dir := rig.FreeAddress(t), t.TempDir()
	_, entry, _ := strings.Cut(addr, ":")
	text := kubernetesExample(t, route)
	text = strings.Replace(text, "redis.shop.svc:6379", redis.Addr, 1)
	text = strings.Replace(text, "        password: urn", "        dialTimeout: 10s\n        readTimeout: 10s\n        password: urn", 1)
	text = strings.Replace(text, "port: 8000 # that of an entry point", "port: "+entry+" #", 1)
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
spec: {ports: [{port: 8000, targetPort: ` + port + `, protocol: TCP}]}`, `
kind: EndpointSlice
apiVersion: discovery.k8s.io/v1
metadata: {name: payments-1, namespace: shop, labels: {kubernetes.io/service-name: payments}}
addressType: IPv4
ports: [{name: "", port: ` + port + `, protocol: TCP}]
endpoints: [{addresses: [` + host + `], conditions: {ready: true, serving: true}}]`} {
		objects = append(objects, documents(t, text)...)
	}
	api := cluster(t, objects)
	if provider != "" {
		provider = fmt.Sprintf(provider, api.URL)
	}
	static := fmt.Sprintf(`
log: {level: DEBUG}
entryPoints: {web: {address: %q}}
providers: {kubernetesCRD: {endpoint: %q, token: none}%s}
experimental: {localPlugins: {idem: {moduleName: github.com/example/traefik-idem}}}
`, addr, api.URL, provider)
	rig.WriteFile(t, filepath.Join(dir, "traefik.yml"), static)
	return rig.SiteOf(t, hosts.Run(t, dir, "traefik.yml", addr, "shop.example"), nil), api
}
