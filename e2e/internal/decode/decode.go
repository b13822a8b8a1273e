// Package decode reads plugin configurations as Traefik does.
package decode

import (
	"strings"

	"github.com/mitchellh/mapstructure"
)

// Settings puts settings into config, which points to a plugin's Config.
func Settings(settings map[string]any, config any) error {
	decoder, err := mapstructure.NewDecoder(&mapstructure.DecoderConfig{
		DecodeHook:       mapstructure.StringToSliceHookFunc(","),
		WeaklyTypedInput: true,
		Result:           config,
	})
	if err != nil {
		return err
	}
	return decoder.Decode(settings)
}

// Labels turns lines such as traefik.http.a.b=c into nested maps, as Traefik's Docker provider does.
func Labels(text string) map[string]any {
	root := map[string]any{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		node := root
		path := strings.Split(strings.TrimPrefix(name, "traefik."), ".")
		for _, part := range path[:len(path)-1] {
			next, ok := node[part].(map[string]any)
			if !ok {
				next = map[string]any{}
				node[part] = next
			}
			node = next
		}
		node[path[len(path)-1]] = value
	}
	return root
}
