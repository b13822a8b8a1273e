module github.com/example/traefik-idem/e2e

go 1.25

require (
	github.com/example/traefik-idem v0.0.0
	github.com/gomodule/redigo v1.9.3
	github.com/mitchellh/mapstructure v1.5.0
	github.com/traefik/yaegi v0.16.1
	gopkg.in/yaml.v3 v3.0.1
)

require github.com/BurntSushi/toml v1.6.0

replace github.com/example/traefik-idem => ../
