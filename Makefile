# One command for each job; `make help` lists them.
# A target creates .venv when it is missing, upgrades pip (dependency groups
# need 25.1), installs what it needs, and remembers that in a stamp file, so a
# second call starts at once. A change of pyproject.toml installs again.

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

needs-demo := -e '.[experiments]'
needs-test := -e '.[experiments]' --group test
needs-check := -e '.[experiments]' --group dev
needs-docs := -e '.[experiments]' --group docs
needs-package := --group package
needs-notebooks := -e '.[experiments]' --group notebooks
needs-fix := -e . --group lint

# Half of the time of the tests is LLVM, so it compiles them with little effort here;
# what XLA fuses and calls is the same. Nightly and in CI's matrix they run as users do.
LITTLE_EFFORT := --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_parallel_codegen_split_count=1

# The tests measure on the CPU; those that need an accelerator are marked `gpu`.
PYTEST := JAX_PLATFORMS=cpu XLA_FLAGS="$$XLA_FLAGS $(LITTLE_EFFORT)" $(BIN)/pytest
PYTEST_DEVICES := JAX_PLATFORMS=cpu XLA_FLAGS="$$XLA_FLAGS $(LITTLE_EFFORT) --xla_force_host_platform_device_count=8" $(BIN)/pytest
# One test of each floor that is quick to compile; `make test` has all of them.
QUICK := tests/trees tests/roles tests/test_checks.py tests/test_public_api.py \
  tests/linalg/test_coefficients.py tests/linalg/test_polar.py tests/geometry/test_norms.py \
  tests/matrices/test_views.py tests/matrices/test_map_errors.py tests/attention/test_specs.py \
  tests/conformance/test_completeness.py tests/optimizers/test_chains.py

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo docs links package test quick test-one-device test-devices check lint notebooks fix clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.ready-demo ## set up and run the main experiment
	$(BIN)/python -m manifold_optax.experiments mlp --resume

docs: $(VENV)/.ready-docs ## build the site into build/docs; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going --fresh-env -b html docs build/docs
	@echo "Open build/docs/index.html"

links: $(VENV)/.ready-docs ## ask every address that the site names; needs a network
	$(BIN)/python -m sphinx --fresh-env -b linkcheck docs build/links

package: $(VENV)/.ready-package ## build and check wheel and source archive into dist/
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

test: test-one-device test-devices ## set up and pass the tests

quick: $(VENV)/.ready-test ## a verdict in 90 seconds: names, checks, views, roles, the contract
	$(PYTEST) -n $(WORKERS) --dist load -m "not slow and not gpu and not devices" $(QUICK)

test-one-device: $(VENV)/.ready-test
	$(PYTEST) -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow and not gpu and not devices"

test-devices: $(VENV)/.ready-test
	$(PYTEST_DEVICES) -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "devices and not slow and not gpu" tests/sharding tests/programs

check: lint test ## lint, layers, types, then the tests

lint: $(VENV)/.ready-check
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/pyright

notebooks: $(VENV)/.ready-notebooks ## execute the notebooks and write them with their outputs
	$(BIN)/python notebooks/execute.py

fix: $(VENV)/.ready-fix ## repair and format the code
	$(BIN)/ruff check --fix; status=$$?; $(BIN)/ruff format && exit $$status

clean: ## remove .venv, caches and builds; results in runs/ stay
	rm -rf $(VENV) build dist *.egg-info .coverage .coverage.* .hypothesis \
	  .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.ready-%: pyproject.toml $(VENV)/.ready
	@echo "Installing what 'make $*' needs into $(VENV); the first time takes some minutes."
	$(PIP) install --quiet $(needs-$*)
	@touch $@

$(VENV)/.ready:
	@if [ ! -x $(BIN)/python ]; then \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    found=$$($(PYTHON) --version 2>&1 | head -n 1); \
	    echo "error: Python 3.11 or newer is needed; '$(PYTHON)' gives '$$found'." >&2; \
	    echo "       Name another one: make <target> PYTHON=python3.12" >&2; \
	    exit 1; }; \
	  echo "Creating $(VENV) with $$($(PYTHON) --version)."; \
	  $(PYTHON) -m venv $(VENV) || { \
	    rm -rf $(VENV); \
	    echo "error: '$(PYTHON) -m venv' failed; on Debian and Ubuntu install python3-venv." >&2; \
	    exit 1; }; \
	fi
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(VENV) holds $$($(BIN)/python --version), 3.11 or newer is needed: make clean" >&2; \
	  exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip --upgrade
	$(PIP) install --quiet --upgrade 'pip>=25.1'
	@touch $@
