# Everything a person does here. Two of these are enough on a fresh machine: `make quickstart` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
QUICKSTART := .quickstart
ROOT_ONLY := $(shell test "$$(id -u)" = 0 || echo ' and not node')
export PYTHONUNBUFFERED := 1
# Two cores are plenty for small models; more threads than cores are slower.
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup quickstart check docs test e2e bench generate lock cluster-up cluster-down cluster-status clean

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

setup: $(READY) ## Make the virtual environment from the locked versions

$(READY): requirements/dev.txt requirements/uv.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"got Python {sys.version.split()[0]}, expected 3.11 or newer; set PYTHON=python3.12, for example")'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "Python has no venv module; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "setup: virtual environment in .venv (some 6 GB with torch; downloads are cached)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

quickstart: $(READY) ## Run a real chain on this machine: 22.7M -> 4.4M -> 0.24M parameters
	$(BIN)/python examples/quickstart/prepare.py --into $(QUICKSTART)
	$(BIN)/distillchain run examples/quickstart/chain.yaml

check: $(READY) docs ## Quick loop: format, lint, types, imports, generated files, site, unit tests
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --config pyproject.toml
	@$(MAKE) --no-print-directory generated-is-current
	$(BIN)/pytest -q -n 2 -m "not cluster and not node and not models and not shared"

docs: $(READY) ## Build the site of docs/ into site/, without a warning
	$(BIN)/zensical build --strict --clean

.PHONY: generated-is-current
generated-is-current: $(READY)
	@diff -u crds/distillchain.io_distillationchains.yaml <($(BIN)/python -m distillchain_api.crd) || { echo "crds/ is not current; run: make generate"; exit 1; }
	@for page in resource failures; do diff -u docs/$$page.md <($(BIN)/python -m distillchain_api.reference $$page) || { echo "docs/$$page.md is not current; run: make generate"; exit 1; }; done

generate: $(READY) ## Rewrite what is generated: CRD, reference pages, golden manifests
	$(BIN)/python -m distillchain_api.crd > crds/distillchain.io_distillationchains.yaml
	for page in resource failures; do $(BIN)/python -m distillchain_api.reference $$page > docs/$$page.md; done
	DISTILLCHAIN_UPDATE_GOLDEN=1 $(BIN)/pytest -q tests/operator/test_jobs.py

test: check ## All tests: real API server, real S3, and (as root) real containers
	$(BIN)/python -m cluster.build
	$(BIN)/pytest -m "(cluster or node or models or shared)$(ROOT_ONLY)"

e2e: $(READY) ## Only the end-to-end tests on the whole node (root)
	$(BIN)/pytest -m node

bench: $(READY) ## The SST-2 chain on the data and checkpoints beside the project
	$(BIN)/python bench/sst2.py

cluster-up: $(READY) ## Start a Kubernetes with S3, CRD and operator on this machine (root)
	$(BIN)/python -m cluster up

cluster-down: $(READY) ## Stop and remove it
	$(BIN)/python -m cluster down

cluster-status: $(READY) ## Say whether it runs
	$(BIN)/python -m cluster status

cluster-up cluster-down cluster-status test: export PYTHONPATH := tests

lock: $(READY) ## Choose versions anew within pyproject.toml's bounds
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra dev pyproject.toml -o requirements/dev.txt
	grep -A99 '^uv==' requirements/dev.txt | sed '2,$${/^[a-z]/,$$d}' > requirements/uv.txt

clean: ## Remove what the checkout made (caches outside it stay)
	rm -rf .venv site .cache $(QUICKSTART) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
