# The two commands a newcomer needs are `make demo` and `make test`; both install what they need (Debian, as root).

# Outside the checkout, so that RocksDB is built once for all checkouts.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/cairn/target
export CAIRN_VENV ?= $(HOME)/.cache/cairn/venv
export CAIRN_NODE ?= $(HOME)/.cache/cairn/node
# ccache makes a second cold build of RocksDB a matter of a minute.
export CC ?= ccache gcc
export CXX ?= ccache g++
ifeq ($(origin CC),default)
CC = ccache gcc
endif
ifeq ($(origin CXX),default)
CXX = ccache g++
endif

CARGO_FLAGS = --release --workspace --locked

.PHONY: help demo test test-ceph test-s3s round-trip build deps oracles fmt lint doc bench fuzz

help:
	@echo 'make demo    install, build, back up and restore a real disk image, and print what happened'
	@echo 'make test    install, build, run all tests'
	@echo 'make test-ceph     the scenarios on S3 against a Ceph RGW (needs ceph-mon ceph-osd radosgw)'
	@echo 'make test-s3s      the same against s3s-fs (needs the program)'
	@echo 'make round-trip IMAGES="DAY1 DAY2..."    raw images of one disk: delta by delta in, and out in every form'
	@echo 'make lint    formatting, clippy and documentation, as CI runs them'
	@echo 'make bench   stage benchmarks'
	@echo 'make fuzz    every fuzz target for FUZZ_SECONDS (60)'

deps:
	@scripts/install-deps

oracles: deps
	@scripts/install-oracles

build: deps
	cargo build $(CARGO_FLAGS)

demo: build
	@scripts/demo

test: build oracles
	cargo test $(CARGO_FLAGS) --all-targets
	cargo test $(CARGO_FLAGS) --doc

test-ceph: build oracles
	@scripts/test-ceph

test-s3s: build oracles
	@scripts/test-s3s

round-trip: build
	@scripts/round-trip $(ROUND_TRIP_FLAGS) $(IMAGES)

fmt:
	cargo fmt --all

lint: deps
	cargo fmt --all --check
	cargo clippy $(CARGO_FLAGS) --all-targets -- -D warnings
	cargo check --release --locked -p repo-cli --no-default-features
	RUSTDOCFLAGS='-D warnings' cargo doc $(CARGO_FLAGS) --no-deps

bench: build
	cargo run --release --locked -p repo-benches

fuzz: deps
	@scripts/fuzz $(or $(FUZZ_SECONDS),60)
