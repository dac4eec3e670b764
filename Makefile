# Every target sets up its own environment in .venv first; the second run finds it there.
#   make PYTHON=python3.12 ...        the Python to build .venv with (3.11 or newer)
#   make TORCH_INDEX=<url> ...        (when .venv is new) package index to take torch from, such as one of https://download.pytorch.org/whl

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The first is the one that the versions in constraints.txt were tested with.
CANDIDATES := $(or $(PYTHON),python3.11 python3.12 python3.13 python3)
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
PYTEST := $(BIN)/python -m pytest

.PHONY: help install quickstart test test-full lint test-gpu clean

help:
	@printf '%s\n' \
	  'make quickstart   install, start a one-node cluster, generate with the bundled models, shut down' \
	  'make test         the quick tests' \
	  'make test-full    the slow matrix' \
	  'make lint         ruff: style and format' \
	  'make test-gpu     the checks that need a CUDA device' \
	  'make install      only the environment in .venv' \
	  'make clean        remove .venv and build folders'

quickstart: $(STAMP)
	@$(BIN)/moespac quickstart --json

test: $(STAMP)
	@$(PYTEST) -m 'not slow and not gpu' tests

test-full: $(STAMP)
	@$(PYTEST) -m 'slow and not gpu' tests

test-gpu: $(STAMP)
	@$(PYTEST) -m gpu tests/gpu

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

install: $(STAMP)

clean:
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

# The stamp is written last: an interrupted or failed installation is taken up again by the next run.
$(STAMP): pyproject.toml constraints.txt setup.py kernels/cpu/build.py $(wildcard kernels/cpu/*.cpp kernels/cpu/*.h kernels/cpu/*.inc)
	@say() { printf '\n==> %s\n' "$$*"; }
	ready() { "$$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
	if ! ready $(BIN)/python; then
	  found=
	  for candidate in $(CANDIDATES); do
	    if ready "$$candidate"; then found=$$candidate; break; fi
	  done
	  if [ -z "$$found" ]; then
	    echo 'moespac needs Python 3.11 or newer with venv; tried: $(CANDIDATES).' >&2
	    echo 'Install it (Debian, Ubuntu: apt install python3.11 python3.11-venv), or name it: make PYTHON=/path/to/python3.11' >&2
	    exit 1
	  fi
	  say "making $(VENV) with $$found ($$("$$found" -c 'import platform; print(platform.python_version())'))"
	  "$$found" -m venv --clear $(VENV)
	fi
	torch_is_there() { $(PIP) show torch 2>/dev/null | grep -q '^Version: $(TORCH_VERSION)\(+\|$$\)'; }
	if [ -n '$(TORCH_INDEX)' ]; then
	  say 'installing torch $(TORCH_VERSION) from $(TORCH_INDEX)'
	  $(PIP) install --index-url '$(TORCH_INDEX)' --no-deps 'torch==$(TORCH_VERSION)'
	elif ! torch_is_there && [ ! -e /proc/driver/nvidia/version ] && ! command -v nvidia-smi >/dev/null; then
	  # The usual index has the CUDA build, several GB that a machine without a GPU has no use for.
	  say 'no NVIDIA driver: installing the CPU build of torch $(TORCH_VERSION)'
	  $(PIP) install --no-deps 'torch==$(TORCH_VERSION)+cpu' 2>/dev/null \
	    || $(PIP) install --no-deps --index-url $(TORCH_CPU_INDEX) 'torch==$(TORCH_VERSION)' \
	    || { echo 'torch could not be installed; name an index that has it: make TORCH_INDEX=<url>' >&2; exit 1; }
	fi
	say 'installing moespac and what it needs'
	$(PIP) install -c constraints.txt -e '.[dev]'
	touch $@
