# The habits of every day. All can be set: make test PYTEST="pytest -x -k engine" JOBS=0
PYTHON ?= python
PYTEST ?= $(PYTHON) -m pytest
JOBS ?= 2

.PHONY: help setup format check test clients slow gpu bench ci clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup:  ## install this checkout, editable, with the test tools
	$(PYTHON) -m pip install -e '.[test]'

format:  ## rewrite files as `check` wants them
	$(PYTHON) -m ruff format . && $(PYTHON) -m ruff check --fix .

check:  ## lint, format and types: seconds
	$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check . && $(PYTHON) -m mypy

test: export OMP_NUM_THREADS ?= 1
test: export QWEN3_CLIENTS := $(if $(QWEN3_CLIENTS),$(abspath $(QWEN3_CLIENTS)))
test: check  ## check, then every fast test: minutes on two cores
	$(PYTEST) -n $(JOBS) --dist loadfile -m "not slow and not gpu"

clients:  ## the real clients that drive the server; then: make test QWEN3_CLIENTS=.clients
	$(PYTHON) tools/client_envs.py .clients

slow:  ## the tests that take long; they need no GPU
	$(PYTEST) -m "slow and not gpu"

gpu:  ## the tests that need a CUDA device
	$(PYTEST) -m gpu

bench:  ## start-up and speed of the embedded model here, as a dated file in benchmarks/
	$(PYTHON) tools/bench_start.py

ci:  ## what CI runs: a fresh environment, install, test
	bash .ci/run

clean:  ## remove caches and build outputs (never models)
	rm -rf build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
