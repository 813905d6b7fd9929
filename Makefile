# Every target sets up .venv by itself; a bare machine needs Python 3.11 or newer, make and git.
PYTHON ?= $(shell for name in python3.11 python3 python3.12 python3.13 python3.14; do \
  $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
# What jax runs on: cpu, cuda or tpu.
EXTRA ?= cpu
ifneq ($(words $(filter cpu cuda tpu,$(EXTRA))) $(words $(EXTRA)),1 1)
$(error EXTRA=$(EXTRA) is nothing jax runs on here: say EXTRA=cpu, EXTRA=cuda or EXTRA=tpu)
endif
READY := .venv/ready-$(EXTRA)
DEMO_RUN ?= runs/demo

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## train a tiny base model on this machine, minutes, and write its report
	.venv/bin/nanocode run --preset demo --run-dir $(DEMO_RUN)

test: lint ## all checks and tests
	.venv/bin/python -m pytest -q

test-fast: $(READY) ## the tests that take seconds
	.venv/bin/python -m pytest -q -m "not slow"

test-cluster: $(READY) ## the tests on a real Kubernetes control plane; builds it once, about 10 minutes, with Go
	.venv/bin/python -m pytest -q -rs -m cluster tests/cluster

cluster-up: $(READY) ## a Kubernetes cluster with simulated v6e nodes on this machine, to play with
	@.venv/bin/python -m tests.cluster up

cluster-down: $(READY) ## end it
	@.venv/bin/python -m tests.cluster down

lint: $(READY) ## ruff, mypy and the import layers
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo

bench: $(READY) ## measure this machine: throughput, loader, corpus, checkpoints
	.venv/bin/python -m tests.bench

clean: ## remove the environment and every cache, but no run
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# Written last, so that an interrupted set-up is done again.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "nanocode needs Python 3.11 or newer: install it, or set PYTHON=/path/to/python"; exit 1; }
	@test -x .venv/bin/pip || "$(PYTHON)" -m venv .venv || \
	  { rm -rf .venv; echo "cannot make a virtual environment: on Debian, apt-get install python3-venv"; exit 1; }
	@echo "setting up .venv, about a minute ..."
	@.venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,$(EXTRA)]"
	@touch $@

.PHONY: help demo test test-fast test-cluster cluster-up cluster-down lint bench clean
