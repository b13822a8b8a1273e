# Three commands do everything: make demo, make quick, make test. CONTRIBUTING.md tells more.
TRAEFIK_VERSION ?= 3.7.12
GOLANGCI_VERSION := v2.12.2
BUILT := .build/traefik-$(TRAEFIK_VERSION)
OLDEST := .build/traefik-3.0.0
NEW_REDIS := $(CURDIR)/.build/redis-of-debian/redis-server
NEW_VALKEY := $(CURDIR)/.build/valkey-of-debian/valkey-server
# What the plugin does wherever it runs, and with every Redis: also tested under the race detector, and in the oldest Traefik.
EVERYWHERE := ./outages ./behaviour ./redis ./faults ./clients ./store
# What measures time or memory.
ALONE := ./bench ./load
# All else that is tested, but for the soak.
REST = $(filter-out $(addprefix %/,$(notdir $(EVERYWHERE) $(ALONE)) soak),$(shell cd e2e && go list ./...))
# Inputs, not seconds: at the end of a time, go test may fail without a finding (go.dev/issue/75804).
FUZZTIME ?= 150000x
SOAK ?= 10m
MODULE := $(shell sed -n 's/^module //p' go.mod)
LINT := $(CURDIR)/.build/golangci-lint-$(GOLANGCI_VERSION)
# Its cache names files by the path of the checkout that filled it: one cache for each.
export GOLANGCI_LINT_CACHE := $(CURDIR)/.build/lint-cache

.PHONY: demo quick test fuzz soak traefik redis valkey vendor module lint elsewhere bench bench-quick screenshots tools

demo: ## a real Traefik with the plugin and a sample backend; REDIS=host:port keeps keys in that Redis, or memory; TRAEFIK=path is run
	@echo "building the demo"
	@cd e2e && go build -o ../.build/demo ./cmd/demo
	@.build/demo -redis "$(REDIS)"

quick: ## for whoever edits: what needs neither Traefik nor Docker, in some two minutes
	go test ./...
	cd e2e && HOSTS=compiled,yaegi go test -p 2 ./internal/... ./behaviour ./faults ./bench

# In CI the tests of all hosts run with Valkey, the system's Redis, and the newest one.
# What waits more than it computes runs two test binaries at a time. What measures has the machine to itself.
test: tools traefik $(OLDEST) $(if $(CI),$(NEW_REDIS) $(NEW_VALKEY)) lint elsewhere ## all tests, but for fuzzing and the soak
	go test -race ./...
	cd e2e && REDIS_SERVER=$(if $(CI),$(NEW_VALKEY)) HOSTS=compiled go test -race -p 2 -timeout 20m $(EVERYWHERE)
	cd e2e && HOSTS=yaegi,traefik TRAEFIK_BIN=$(CURDIR)/$(BUILT) go test -p 2 -timeout 30m $(EVERYWHERE)
	cd e2e && TRAEFIK_BIN=$(CURDIR)/$(BUILT) go test -p 2 -timeout 30m $(REST)
	cd e2e && TRAEFIK_BIN=$(CURDIR)/$(BUILT) go test -p 1 -timeout 30m $(ALONE)
	cd e2e && REDIS_SERVER=$(if $(CI),$(NEW_REDIS)) TRAEFIK_BIN=$(CURDIR)/$(OLDEST) HOSTS=traefik go test -p 2 -timeout 20m $(EVERYWHERE)

fuzz: ## every fuzz target with FUZZTIME inputs
	@for module in . e2e; do \
		cd $(CURDIR)/$$module; \
		for file in $$(grep -rl '^func Fuzz' --include='*_test.go' --exclude-dir=vendor --exclude-dir=e2e .); do \
			for target in $$(sed -n 's/^func \(Fuzz[A-Za-z]*\).*/\1/p' $$file); do \
				echo "$$target"; \
				go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x ./$$(dirname $$file) || exit 1; \
			done; \
		done; \
	done

soak: tools traefik ## mixed traffic, reloads, restarts of Redis for SOAK; what is left at the end
	cd e2e && SOAK=$(SOAK) TRAEFIK_BIN=$(CURDIR)/$(BUILT) go test -v -count 1 -timeout 0 ./soak

traefik: $(BUILT) ## Traefik from its module, about 8 minutes the first time

.build/traefik-%:
	@mkdir -p .build
	@cd e2e && go run ./cmd/traefik -version $* -o $(CURDIR)/$@

redis: $(NEW_REDIS) ## the newest Redis of Debian, with the libraries that it needs

valkey: $(NEW_VALKEY) ## the newest Valkey of Debian, likewise

# They run beside an older system: with a loader and a C library of their own. Needs a Debian with apt.
$(NEW_REDIS) $(NEW_VALKEY): APT = -o Dir::Etc::sourcelist=$(@D)/sources.list -o Dir::Etc::sourceparts=- \
	-o Dir::State::lists=$(@D)/lists -o Dir::Cache=$(@D)/cache
$(NEW_REDIS) $(NEW_VALKEY):
	@mkdir -p $(@D)/lists/partial $(@D)/cache/archives/partial
	@echo 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian sid main' >$(@D)/sources.list
	apt-get $(APT) -q update
	cd $(@D) && apt-get $(APT) -q -o APT::Sandbox::User=root download $(@F) $(@F:server=tools) libc6 libatomic1 libgcc-s1 libjemalloc2 \
		liblzf1 libssl3t64 libstdc++6 libsystemd0 libcap2 libzstd1 zlib1g
	cd $(@D) && for deb in *.deb; do dpkg -x $$deb unpacked; done
	@printf '#!/bin/sh\nexec %s --library-path %s %s "$$@"\n' $(@D)/unpacked/usr/lib*/ld-linux-*.so.* \
		$(@D)/unpacked/usr/lib/*-linux-gnu $(@D)/unpacked/usr/bin/$(@F) >$@
	@chmod +x $@ && $@ --version

vendor: ## vendor/ = go mod vendor + patches/redigo.patch
	go mod vendor
	git apply --directory=vendor/github.com/gomodule/redigo patches/redigo.patch

module: ## moves the module to the path of whoever publishes it: make module NEW=github.com/you/traefik-idem
	@test -n "$(NEW)" || { echo "make module NEW=github.com/you/traefik-idem"; exit 1; }
	@mkdir -p .build
	for file in $$(git grep -lF $(MODULE) -- ':!vendor'); do \
		sed 's|$(MODULE)|$(NEW)|g' "$$file" >.build/moved && cat .build/moved >"$$file" || exit 1; \
	done
	gofmt -w $$(git ls-files '*.go' ':!vendor')

lint: $(LINT)
	@test -z "$$(gofmt -l $$(git ls-files '*.go' ':!vendor'))" || { gofmt -l $$(git ls-files '*.go' ':!vendor'); exit 1; }
	go vet ./...
	cd e2e && go vet ./...
	$(LINT) run
	cd e2e && $(LINT) run

elsewhere: ## compiles for macOS and for arm64 what can only be tested there
	GOOS=darwin GOARCH=arm64 go vet ./...
	cd e2e && GOOS=darwin GOARCH=arm64 go vet ./...
	GOOS=linux GOARCH=arm64 go vet ./...
	cd e2e && GOOS=linux GOARCH=arm64 go vet ./...

$(LINT):
	@echo "building golangci-lint $(GOLANGCI_VERSION)"
	@mkdir -p .build
	@GOBIN=$(CURDIR)/.build go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	@mv .build/golangci-lint $@

tools: ## what the tests need beyond Go; in CI nothing may be missing
	@for tool in redis-server curl wrk chromium npm prometheus promtool=prometheus java=default-jdk-headless $(if $(CI),dockerd=docker.io docker-compose); do \
		command -v $${tool%=*} >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
			apt-get update -q && apt-get install -y -q $${tool#*=}; } || \
			echo "$${tool%=*} is missing and cannot be installed here: the tests that need it are skipped"; \
	done

screenshots: tools traefik ## pictures of the statistics page for the README
	cd e2e && SCREENSHOTS=$(CURDIR)/docs/images TRAEFIK_BIN=$(CURDIR)/$(BUILT) go test -count 1 -run Screenshots ./clients

bench: tools traefik ## all of docs/dev/benchmarks.md, which it writes: about an hour; AGAINST=revision only compares the load with it
	cd e2e && go build -o ../.build/bench ./cmd/bench && ../.build/bench -traefik ../$(BUILT) \
		$(if $(AGAINST),-against $(AGAINST) -skip ': [0-9]+$$',-markdown ../docs/dev/benchmarks.md)

bench-quick: tools ## speed and allocations of the handler, compiled and interpreted
	cd e2e && go test -run '^$$' -bench . -benchmem ./bench
