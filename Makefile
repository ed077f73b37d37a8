# Every target sets up .venv by itself when it needs one; the second time that costs nothing.
#
#   make serve ARGS="--port 8123 --num-gpus 4"     passes flags on
#   make serve PYTHON=/opt/python3.12/bin/python3  uses that Python (3.11 or newer)
#   make serve PIP_ARGS="..."                      passes flags on to pip (a mirror, a build of torch)

.SUFFIXES:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory
SHELL := /bin/sh
# What a caller's shell may hold and what would lead pip and Python to somewhere other than .venv.
unexport PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV PYTHONHOME PYTHONPATH VIRTUAL_ENV

PYTHON ?=
ARGS ?=
JOBS ?= 2
SEED ?=
SECONDS ?=
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
SERVE := $(VENV)/.stamp-serve
DEV := $(VENV)/.stamp-dev
PACKAGES := gateway worker shared
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --progress-bar off \
	-c constraints.txt $(PIP_ARGS)

.PHONY: serve test test-all check fmt bench chaos train-embedded web clean help

serve: $(SERVE) ## serve pictures at 127.0.0.1:8000 (ARGS="--port 8123 --num-gpus 4")
	@exec $(BIN)/replicast serve $(ARGS)

test: $(DEV) ## every test but the slow ones and those that need a GPU (ARGS="-k pool", JOBS=4 files at once)
	@exec $(BIN)/python -m pytest -m "not slow and not gpu" --numprocesses $(JOBS) --dist loadfile $(ARGS)

test-all: $(DEV) ## every test, the slow ones too; GPU tests where there is a GPU
	@exec $(BIN)/python -m pytest $(ARGS)

check: $(DEV) ## format, lint, types, import direction, house rules and docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q --tb=short tests/house

fmt: $(DEV) ## format and mend what ruff can mend by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(DEV) ## the gateway's own cost, as ratios (ARGS are the bench's own)
	@exec $(BIN)/python -m tests.bench $(ARGS)

chaos: $(DEV) ## faults by a seed against a live server (SEED=7 SECONDS=420 ARGS="--gateway")
	@exec $(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) $(if $(SECONDS),--seconds $(SECONDS)) $(ARGS)

train-embedded: $(SERVE) ## train the built-in model again, into worker/embedded (resumes from .train)
	@exec $(BIN)/python -m worker.embedded.train --out worker/embedded/shapes --work .train $(ARGS)

web: ## the page: plain files with nothing to build; checks that they are there
	@test -f gateway/web/index.html || { echo "gateway/web/index.html is missing: the page is part of the sources" >&2; exit 1; }
	@echo "The page is plain static files in gateway/web: nothing to build."

clean: ## remove .venv, caches, build outputs and unfinished training
	rm -rf $(VENV) .train build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .cache
	find $(PACKAGES) tests -type d -name __pycache__ -prune -exec rm -rf {} +

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

# --- the virtual environment -------------------------------------------------------------------------
# A stamp stands for a finished installation and is older than nothing it was made from.

$(SERVE): pyproject.toml constraints.txt
	@$(call install,.[worker],3 to 5 minutes the first time (torch is large))
	@touch $@

$(DEV): pyproject.toml constraints.txt
	@$(call install,.[dev],3 to 5 minutes the first time (torch is large))
	@touch $(SERVE) $@

# The oldest Python we support comes first: the pins are tried there.
define install
set -e; \
fits() { "$$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }; \
if ! $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
  found=; \
  for each in $(or $(PYTHON),python3.11 python3.12 python3.13 python3.14 python3 python); do \
    if fits "$$each"; then found=$$each; break; fi; \
  done; \
  if [ -z "$$found" ]; then \
    echo "Replicast needs Python 3.11 or newer with its venv module, and $(if $(PYTHON),$(PYTHON) is not that,none was found)." >&2; \
    echo "Install one (Debian, Ubuntu: python3 and python3-venv) or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; \
    exit 1; \
  fi; \
  echo "making $(VENV) with $$found" >&2; \
  "$$found" -m venv --clear $(VENV); \
fi; \
echo "installing $(1) into $(VENV): $(2)" >&2; \
$(PIP) hatchling editables; \
$(PIP) --no-build-isolation -e '$(1)'
endef
