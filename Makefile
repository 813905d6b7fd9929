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
# In the cloud. DRY_RUN=1 prints the commands instead of running them; NAME is the run's, where there are several.
CLOUD = .venv/bin/python -m deploy.gcp $(if $(filter-out 0,$(DRY_RUN)),--dry-run)
NAMED = $(if $(NAME),--name $(NAME))
WHICH_PRESET = echo "which preset? make deploy-demo, deploy-d12, deploy-d20 or deploy-d24; DRY_RUN=1 only prints"; exit 2
# Container images: of tpu, cuda, cpu and controller.
TARGETS ?= tpu controller
IMAGES = "$(PYTHON)" -m deploy.images --builder "$(BUILDER)" --repository "$(IMAGE_REPOSITORY)" --tag "$(IMAGE_TAG)" \
  --targets "$(TARGETS)" $(if $(filter-out 0,$(DRY_RUN)),--dry-run)

# Two groups at a time (tests/conftest.py): much of the time is spent waiting.
PYTEST = .venv/bin/python -m pytest -q
TWO = -n 2 --dist loadgroup --no-loadscope-reorder

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## train a tiny agent on this machine, about half an hour, and write its report
	.venv/bin/nanocode run --preset demo --run-dir $(DEMO_RUN)

test: lint ## all checks and tests
	$(PYTEST) $(TWO) -m "not image"

test-fast: $(READY) ## the tests that take seconds
	$(PYTEST) $(TWO) -m "not slow and not image"

test-image: $(READY) ## build the controller's and the cpu image without an engine, and look at them (Debian, root)
	$(PYTEST) -rs -s -m image tests/images

test-cluster: $(READY) ## the tests on a real Kubernetes control plane; builds it once, about 10 minutes, with Go
	$(PYTEST) -rs -m cluster tests/cluster

cluster-up: $(READY) ## a Kubernetes cluster with simulated v6e nodes and a bucket on this machine, to play with
	@.venv/bin/python -m tests.cluster up

cluster-down: $(READY) ## end it
	@.venv/bin/python -m tests.cluster down

lint: $(READY) ## ruff, mypy and the import layers
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo
	.venv/bin/hadolint deploy/images/Dockerfile.*

bench: $(READY) ## measure this machine: throughput, loader, corpus, checkpoints
	.venv/bin/python -m tests.bench

gcp-setup: $(READY) ## cloud: what the project in deploy.env needs; DRY_RUN=1 prints every command
	@$(CLOUD) setup

deploy-demo deploy-d12 deploy-d20 deploy-d24: deploy-%: $(READY)
	@$(CLOUD) deploy $(NAMED) $(if $(YES),--yes) $*

deploy:
	@$(WHICH_PRESET)
deploy-%:
	@$(WHICH_PRESET)

deploy-d24: ## cloud: begin a run, or change one; also deploy-demo, deploy-d12, deploy-d20; NAME=, DRY_RUN=1

undeploy status suspend resume cancel: $(READY)
	@$(CLOUD) $@ $(NAMED)

status: ## cloud: how far runs are; NAME=
undeploy: ## cloud: end a run, release its slices, keep its data; NAME=
suspend: ## cloud: stop a run, saved; then `make resume`; NAME=
resume: ## cloud: go on
cancel: ## cloud: stop a run for good; NAME=

logs: $(READY) ## cloud: what a stage says, over attempts and hosts: STAGE=pretrain, NAME=
	@test -n "$(STAGE)" || { echo "which stage? make logs STAGE=pretrain"; exit 2; }
	@$(CLOUD) logs $(NAMED) $(STAGE)

chat: $(READY) ## talk to the agent of a run: RUN=gs://bucket/name, or a folder
	@test -n "$(RUN)" || { echo "which run? make chat RUN=gs://bucket/name"; exit 2; }
	@.venv/bin/nanocode chat $(RUN)

image: ## build the images of TARGETS; BUILDER=docker|podman|buildah|cloudbuild, DRY_RUN=1 prints the commands
	@$(IMAGES) build

push: ## the same, and push them to IMAGE_REPOSITORY, or where deploy.env says
	@$(IMAGES) push

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

.PHONY: help demo test test-fast test-image test-cluster cluster-up cluster-down lint bench image push clean gcp-setup \
  deploy deploy-demo deploy-d12 deploy-d20 deploy-d24 undeploy status suspend resume cancel logs chat
