# Two commands for a fresh machine with Python 3.11 or newer: `make demo` and `make test`.

# The first of these that runs and is new enough; name another with `make PYTHON=…`.
PYTHON ?= $(firstword $(foreach p,python3 python3.11 python3.12 python3.13,\
            $(shell $(p) -c 'import sys; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)))
BIN := .venv/bin

.PHONY: setup demo test test-long lint bench lock clean

setup: .venv/.ready  ## make .venv from the lock file; does nothing when it is up to date

.venv/.ready: requirements-dev.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "avex-batch needs Python 3.11 or newer, and none was found: make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "installing the locked packages (about 3 GB with torch; some minutes)"
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: setup  ## twelve synthetic clips through both architectures, without a download
	$(BIN)/python examples/demo.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# By the alphabet: files with few tests have the slowest ones, and at the end one of two processes would have none left.
test: lint  ## everything CI runs
	$(BIN)/pytest -m "not long" --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-long: setup  ## minutes and gigabytes: 24 h recordings, large uploads
	$(BIN)/pytest -m long --numprocesses 2 --dist loadfile

# Each benchmark in its small form, one after the other, about a minute each: that they work, and a first impression.
# Figures come from a quiet machine and the full form: benchmarks/README.md.
bench: setup
	$(BIN)/python benchmarks/ceiling.py --small
	$(BIN)/python benchmarks/against_peers.py --case effnet-8h --small
	$(BIN)/python benchmarks/against_peers.py --case ray-8h --small
	$(BIN)/python benchmarks/against_peers.py --case beats-1h --small
	$(BIN)/python benchmarks/against_peers.py --case clips --small
	$(BIN)/python benchmarks/goals.py --case effnet --small
	$(BIN)/python benchmarks/steady_state.py --small
	$(BIN)/python benchmarks/growth.py --small
	$(BIN)/python benchmarks/cores.py --small
	$(BIN)/python benchmarks/start_up.py --small
	$(BIN)/python benchmarks/s3_latency.py --small
	$(BIN)/python benchmarks/overlap.py --small
	$(BIN)/python benchmarks/models.py --small
	$(BIN)/python benchmarks/hand_over.py --small
	$(BIN)/python benchmarks/driver_memory.py --small
	$(BIN)/python benchmarks/gpu.py --case parity --device simulated --small
	$(BIN)/python benchmarks/gpu.py --case memory --device simulated --small
	$(BIN)/python benchmarks/gpu.py --case parts --device simulated --small
	$(BIN)/python benchmarks/gpu.py --case fed --device simulated --cores 2 --small
	$(BIN)/python benchmarks/listing.py --small
	$(BIN)/python benchmarks/resume.py --windows 100000
	$(BIN)/python benchmarks/scale.py --small
	$(BIN)/python benchmarks/planning.py --small
	$(BIN)/python benchmarks/pool.py --small
	$(BIN)/python benchmarks/search.py --small
	$(BIN)/python benchmarks/probe.py --small
	$(BIN)/python benchmarks/detect.py --small
	$(BIN)/python benchmarks/report.py --small
	$(BIN)/python benchmarks/export.py --small

# Universal: for Linux, macOS and every Python from 3.11 on. They name no host; hashes pin the content. The first is what
# runs (the image), the second what it is tested with, in the same versions.
COMPILE := .venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
    --no-header pyproject.toml
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet uv
	$(COMPILE) --extra cluster --extra report --extra lancedb --extra av --extra dev -o requirements-dev.lock
	$(COMPILE) --extra cluster --constraint requirements-dev.lock -o requirements.lock
	rm -r .venv-lock

clean:
	rm -rf .venv demo
