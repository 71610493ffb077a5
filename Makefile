# PairDB. `make help` lists the targets; needs the Rust toolchain, a C compiler and make.

SHELL := /bin/bash
.DEFAULT_GOAL := help

CARGO    ?= cargo
PAIRDB   := target/release/pairdb
DATA_DIR ?= data/node
LISTEN   ?= 127.0.0.1:8080
PEER     ?= 127.0.0.1:7946
ADMIN    ?= 127.0.0.1:9091
RUNS     ?= 20
SEED     ?=
SEEDS    ?= 200
MINUTES  ?= 10
WORK_SECONDS ?= 120
NODES    ?=
ARGS     ?=
BUF      := target/buf/bin/buf
BUF_VERSION := 1.75.0

PEERS    := benches/peers/target/release/pairdb-peers

.PHONY: help run build test test-integration test-python demo bench bench-peers bench-peers-full peers crash sim ci fmt fmt-check lint docs deny proto-lint

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build the release binary
	$(CARGO) build --release --locked --bin pairdb

run: build ## Start a node on ./data/node (LISTEN=, ADMIN=, DATA_DIR= change it)
	@mkdir -p $(DATA_DIR)
	@echo
	@echo "PairDB: clients $(LISTEN), admin http://$(ADMIN), data in $(DATA_DIR)"
	@echo "In another terminal, type:"
	@echo
	@echo "    export PAIRDB_ENDPOINT=http://$(LISTEN)"
	@echo "    $(PAIRDB) put greeting hello"
	@echo "    $(PAIRDB) get greeting"
	@echo "    $(PAIRDB) status"
	@echo "    curl http://$(ADMIN)/health/ready"
	@echo
	@echo "Ctrl-C stops the node; its data stays."
	@echo
	@exec $(PAIRDB) serve --data-dir $(DATA_DIR) --listen $(LISTEN) --peer-listen $(PEER) \
		--admin-listen $(ADMIN) $(ARGS)

test: ## Run the tests
	$(CARGO) test --locked

# In target/, once: needs Python 3 with venv, and the network.
PYTHON := target/python/bin/python
PYTHON_STUBS := target/python/stubs/pairdb/v1/kv_pb2.py

test-python: ## Export a tenant with examples/python and compare; skipped where it cannot be set up
	@$(MAKE) --no-print-directory $(PYTHON_STUBS) || \
		echo "SKIPPED: examples/python needs python3 with venv and the network; not tested"
	@if [ -f $(PYTHON_STUBS) ]; then \
		$(CARGO) test --locked --test python -- --ignored --nocapture; fi

$(PYTHON_STUBS): proto/pairdb/v1/common.proto proto/pairdb/v1/kv.proto \
		proto/pairdb/v1/replica.proto examples/python/requirements.txt
	python3 -m venv target/python
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r examples/python/requirements.txt
	mkdir -p target/python/stubs
	$(PYTHON) -m grpc_tools.protoc -I proto --python_out=target/python/stubs \
		--grpc_python_out=target/python/stubs $(filter %.proto,$^)

test-integration: ## Clusters of real processes, killed and paused for WORK_SECONDS=120 under load
	VERIFY_SECONDS=$(WORK_SECONDS) $(CARGO) test --locked --test cluster -- --nocapture
	@$(MAKE) --no-print-directory test-python

demo: build ## Import 171,075 cities, make a conflict, kill the node, prove nothing is lost
	@PAIRDB=$(PAIRDB) scripts/demo.sh

bench: ## Run the benchmarks (ARGS= goes to them); see benches/README.md
	$(CARGO) bench --locked --bench '*' -- $(ARGS)

bench-peers: peers ## Beside RocksDB and fjall, short set, < 15 min once built (ARGS=)
	$(PEERS) --out target/bench-peers $(ARGS)

bench-peers-full: peers ## The same, long set: hours
	$(PEERS) --full --out target/bench-peers-full $(ARGS)

# RocksDB's build needs a C++ compiler and libclang, and takes a quarter of an hour or more.
peers:
	@if ! command -v g++ >/dev/null || ! command -v clang >/dev/null; then \
		apt-get update -qq && apt-get install -y -qq g++ clang libclang-dev; fi
	cd benches/peers && $(CARGO) build --release --locked

crash: ## Kill a real node RUNS=20 times and compare (SEED= repeats a run)
	RUNS=$(RUNS) $(if $(SEED),SEED=$(SEED)) $(CARGO) test --locked --test crash -- --nocapture

sim: ## Simulate SEEDS=200 clusters and their faults (NODES=, FIRST=, MINUTES=10); SEED= repeats one
	$(if $(SEED),SEED=$(SEED),SEEDS=$(SEEDS)) $(if $(FIRST),FIRST=$(FIRST)) MINUTES=$(MINUTES) \
		$(if $(NODES),NODES=$(NODES)) $(if $(CHANGES),CHANGES=$(CHANGES)) $(if $(AIM),AIM=$(AIM)) \
		$(if $(HISTORY),HISTORY=$(HISTORY)) $(if $(LOG),LOG=$(LOG)) \
		$(CARGO) test --locked --test sim -- \
		--exact $(if $(SEED),one_seed --ignored,no_seed_breaks_a_promise) --nocapture

ci: fmt-check lint docs test ## All that must be green before a merge

fmt: ## Format the sources
	$(CARGO) fmt --all

fmt-check:
	$(CARGO) fmt --all --check

lint: ## Clippy on all targets, warnings are errors
	$(CARGO) clippy --locked --all-targets -- -D warnings

docs: ## Build the API documentation, warnings are errors
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --lib

deny: ## Check dependencies against deny.toml (needs cargo-deny)
	$(CARGO) deny --locked check bans licenses sources

proto-lint: $(BUF) ## Lint the protocol files (needs Python 3; fetches buf into target/)
	$(BUF) lint proto
	$(BUF) format --diff --exit-code proto

$(BUF):
	python3 -m venv target/buf
	target/buf/bin/pip install --quiet --disable-pip-version-check buf-bin==$(BUF_VERSION)
