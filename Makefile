# vdbridge: `make` alone lists what there is. Each target does its own set-up.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS   += --no-print-directory

GO        ?= go
VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
FUZZTIME  ?= 20s
SOAK      ?= 10m
DEMO_SIZE ?= full
RUN       ?=

.DEFAULT_GOAL := help
.PHONY: help setup build test test-quick test-vm test-soak test-mutations bench demo demo-cluster deb lint fuzz clean

help: ## list the targets
	@echo "vdbridge $(VERSION). Targets:"; echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'
	@echo; echo "Variables: DEMO_SIZE=full|small  FUZZTIME=20s  SOAK=10m  RUN='regular expression of test names'"

setup: ## install the Debian packages that tests and the demo use (needs root only if some are missing)
	@scripts/setup.sh

build: ## build bin/vdbridge, one static binary
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-X main.version=$(VERSION)' -o bin/vdbridge ./cmd/vdbridge

test: setup build ## everything that must pass: lint, all tests with the race detector, foreign programs, real kernels
	@GO='$(GO)' RUN='$(RUN)' scripts/test.sh

test-quick: ## unit tests only: no race detector, no guests, missing tools are skipped
	@$(GO) test $$($(GO) list ./... | grep -Ev '/test/(vm|cluster)')

test-vm: setup build ## tests with a real kernel and a real domain (User-Mode Linux guests, Samba AD; needs root)
	@VDBRIDGE_REQUIRE_TOOLS=1 VDBRIDGE_ADDC=1 VDBRIDGE_KILLS=10 VDBRIDGE_VM=all VDBRIDGE_BIN='$(CURDIR)/bin/vdbridge' $(GO) test -count=1 -v -timeout 30m $(if $(RUN),-run '$(RUN)') ./test/vm/... ./test/cluster ./test/krb5

test-soak: setup build ## the whole chain under load and verification for SOAK=10m
	@VDBRIDGE_REQUIRE_TOOLS=1 VDBRIDGE_BIN='$(CURDIR)/bin/vdbridge' VDBRIDGE_SOAK='$(SOAK)' $(GO) test -count=1 -v -timeout 0 -run Soak ./test/soak
	@VDBRIDGE_REQUIRE_TOOLS=1 VDBRIDGE_BIN='$(CURDIR)/bin/vdbridge' VDBRIDGE_SOAK='$(SOAK)' $(GO) test -count=1 -v -timeout 0 ./test/history

test-mutations: setup ## break the code on purpose, and show that the histories of test/history find it (RUN='name')
	@VDBRIDGE_REQUIRE_TOOLS=1 $(GO) run ./test/history/mutate $(if $(RUN),-run '$(RUN)')

bench: setup build ## measure beside other programs; writes docs/benchmarks.md
	@GO='$(GO)' scripts/bench.sh

demo: setup build ## the main job on real disks, step by step (DEMO_SIZE=small is quicker)
	@$(GO) run ./test/demo -size '$(DEMO_SIZE)' -bin bin/vdbridge

demo-cluster: setup build ## two real kernels with one shared disk: OCFS2 on both, and one of them fenced
	@$(GO) run ./test/demo/cluster -bin bin/vdbridge

deb: ## build a Debian package in build/
	@GO='$(GO)' VERSION='$(VERSION)' scripts/deb.sh build

lint: ## gofmt, go vet, staticcheck, shell scripts
	@GO='$(GO)' scripts/lint.sh

fuzz: ## run every fuzz target for FUZZTIME=20s
	@GO='$(GO)' scripts/fuzz.sh '$(FUZZTIME)'

clean: ## remove what was built
	rm -rf bin build coverage.out
