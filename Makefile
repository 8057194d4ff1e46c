# nlc. `make` alone says what there is; each target makes what it needs first.

# the first Python that is new enough and can make an environment
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
# more words for pip, such as where to find a CPU build of torch
PIP_ARGS ?=
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	--constraint constraints.txt $(PIP_ARGS)
# two tests at a time with one thread each is fastest on two cores
export OMP_NUM_THREADS ?= 1
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) -q
# how long `make demo` trains
MINUTES ?= 2
DEMO ?= gated_deltanet
# the Python that measures on a GPU; any other than ours must have all packages already
GPU_PYTHON ?= $(BIN)/python

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all check format golden golden-kernels docs bench bench-gpu clean

help:
	@echo 'nlc: from a spec of levels, memories and rules to a trained model'
	@echo
	@echo '  make demo      check a spec, compile it, train it for $(MINUTES) minutes, generate text'
	@echo '  make test      run the tests (a few minutes on two cores)'
	@echo '  make test-all  run the tests and the slow cases'
	@echo '  make check     formatting, lint, types and layers'
	@echo '  make format    put the Python files into their canonical format'
	@echo '  make golden    write the golden files anew, for a change that is meant'
	@echo '  make golden-kernels   write anew what kernels take of each GPU'
	@echo '  make docs      write the generated pages in docs/ anew'
	@echo '  make bench     measure speed against plain loops and published references'
	@echo '  make bench-gpu measure kernels on a GPU against fla, titans-pytorch and SDPA, in 8 minutes'
	@echo '  make install   only make $(VENV) and install nlc into it'
	@echo '  make clean     remove what was built, but not $(VENV) and runs/'
	@echo
	@echo 'Every target first makes $(VENV) with the pinned packages, if it is not there yet.'
	@echo 'Variables: MINUTES=2 DEMO=SPEC (demo), WORKERS=2 (test), GPU_PYTHON=... (bench-gpu),'
	@echo '           PYTHON=..., PIP_ARGS=...'

# ---- the environment ---------------------------------------------------------------------------

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo 'nlc needs Python 3.11 or later with venv; none was found'; \
		echo 'name one:  make PYTHON=/path/to/python3.11 ...'; exit 2; }
	@echo '==> making $(VENV) with $(PYTHON)'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo '==> installing nlc and its pinned packages into $(VENV) (torch is large)'
	@$(INSTALL) setuptools
	@$(INSTALL) --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo '==> installing the packages for tests and checks'
	@$(INSTALL) --no-build-isolation --editable '.[test,dev]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	@echo '==> installing the packages that the benchmarks compare with'
	@$(INSTALL) --no-build-isolation --editable '.[bench]'
	@touch $@

install: $(VENV)/.installed
	@echo 'nlc is installed: $(BIN)/nlc --help'

# ---- what one does with it ---------------------------------------------------------------------

# say a command, and run it
show = echo; echo '==> $(1)'; $(BIN)/$(1)

demo: $(VENV)/.installed
	@$(call show,nlc check $(DEMO))
	@$(call show,nlc graph $(DEMO))
	@$(call show,nlc compile $(DEMO) --out build/demo)
	@n=1; while [ -e runs/demo-$$n ]; do n=$$((n + 1)); done; run=runs/demo-$$n; \
	echo; echo "==> nlc train $(DEMO) --minutes $(MINUTES) --out $$run"; \
	$(BIN)/nlc train $(DEMO) --minutes $(MINUTES) --out $$run --sample 0 && \
	echo && echo "==> nlc generate $$run --prompt 'The '" && \
	$(BIN)/nlc generate $$run --prompt 'The ' --tokens 400 && \
	echo && echo "The package is in build/demo, the trained model with all that was measured in $$run." && \
	echo "A spec of your own:  $(BIN)/nlc new tiny"

test: $(VENV)/.installed-dev
	@echo '==> running the tests, $(WORKERS) at a time'
	@$(PYTEST)

test-all: $(VENV)/.installed-dev
	@echo '==> running all tests, the slow ones too, $(WORKERS) at a time'
	@HYPOTHESIS_PROFILE=search $(PYTEST) -m 'slow or not slow'

check: $(VENV)/.installed-dev build/tree
	@echo '==> format'
	@$(BIN)/ruff format --check .
	@echo '==> lint'
	@$(BIN)/ruff check .
	@echo '==> types'
	@cd build/tree && ../../$(BIN)/mypy --config-file ../../pyproject.toml \
		--cache-dir ../../.mypy_cache -p nlc
	@echo '==> layers'
	@$(BIN)/python -m pytest -q tests/unit/test_layers.py

format: $(VENV)/.installed-dev
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

golden: $(VENV)/.installed-dev
	@echo '==> writing the golden files anew; git diff shows what changed'
	@$(PYTEST) --update-golden tests/golden tests/errors

golden-kernels: $(VENV)/.installed-dev
	@echo '==> compiling kernels for every machine; git diff shows what changed'
	@$(PYTEST) --update-golden -m slow tests/kernels -k what_kernels

docs: $(VENV)/.installed-dev
	@$(BIN)/python docs/generate.py

bench: $(VENV)/.installed-bench
	@$(BIN)/python -m bench

# nlc is taken from this folder, so that nothing need be installed where GPU_PYTHON has what it needs
bench-gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(VENV)/.installed-bench) build/tree
	@PYTHONPATH="build/tree$${PYTHONPATH:+:$$PYTHONPATH}" $(GPU_PYTHON) -W ignore -m bench.gpu

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

# a wheel's layout in links, since mypy does not follow the package map of pyproject.toml
.PHONY: build/tree
build/tree:
	@rm -rf build/tree && mkdir -p build/tree/nlc
	@for f in nlc/*; do ln -s ../../../$$f build/tree/nlc/; done
	@for f in codegen grammar specs; do ln -s ../../../$$f build/tree/nlc/$$f; done
