# From a bare checkout to a result: `make compare`. Everything lands in .venv; delete it to start again.

VENV   ?= .venv
MODELS ?= resnet34 efficientnet_b0
# More arguments for the command: make compare ARGS="--budget 120", make test ARGS="-k duel", make bench ARGS=--benchmark-json
ARGS   ?=
# 12 swaps DALI's CUDA 13 build for its CUDA 12 build.
CUDA   ?= 13
# The first interpreter that runs and is new enough; choose another one with PYTHON=...
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$name" && break; done)

BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed-cuda$(CUDA)
# One test process a core. The tests of a file share fixtures, so they run in the same process; in their order, because
# the files of few tests, which would come last, are the longest.
PYTEST := $(BIN)/python -m pytest tests --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder \
	--benchmark-disable --timeout 300

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install compare bench smoke gpu doctor test test-all test-night fuzz lint format docs texts clean

help:
	@echo 'make compare   install, then measure $(MODELS) side by side (MODELS="a b", ARGS="--budget 120")'
	@echo 'make bench     run the benchmark matrix under pytest; results go to .benchmarks/'
	@echo 'make smoke     run each benchmark of the matrix once, without timing it'
	@echo 'make gpu       measure a GPU machine in 12 minutes (PART=training, ARGS="--cifar DIR"; DEVICE=cpu is a trial)'
	@echo 'make doctor    describe this machine and what would spoil a measurement on it'
	@echo 'make test      run the tests, except the slow ones'
	@echo 'make test-all  run all tests but those of the night'
	@echo 'make test-night run the tests that take minutes each: every command of README and docs, kills, a power cut'
	@echo 'make fuzz      draw damaged files for every reader for about ten minutes (EXAMPLES=200 of each)'
	@echo 'make lint      check with ruff, mypy and the import rules'
	@echo 'make format    let ruff rewrite what it can'
	@echo 'make docs      build the documentation into docs/_build'
	@echo 'make texts     write the tree, the figures in the texts from the records, and the table of image files'
	@echo 'make install   only create the environment (CUDA=12 for a driver older than CUDA 13)'
	@echo 'make clean     remove the environment and every cache; measured results stay'

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo 'make: no Python 3.11 or newer found; install one, or say where it is: make PYTHON=/path/to/python3' >&2; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); \
		echo 'make: "$(PYTHON) -m venv" failed. On Debian and Ubuntu: apt install python3-venv. Or use another Python: make PYTHON=...' >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null || { rm -rf $(VENV); \
		echo 'make: "$(PYTHON)" creates environments without pip. On Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
	@test ! -e $(VENV)/.installed-cuda12 || $(BIN)/python -m pip uninstall --yes nvidia-dali-cuda120
	@echo 'make: installing into $(VENV) (about 5 GB the first time)'
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[dev]'
	@# pip compiles one file after another; all cores do it in a fraction of the time.
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
ifeq ($(CUDA),12)
	$(BIN)/python -m pip uninstall --yes nvidia-dali-cuda130
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --force-reinstall --no-deps nvidia-dali-cuda120
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt nvidia-dali-cuda120
endif
	@rm -f $(VENV)/.installed-cuda*
	@touch $@

install: $(STAMP)

compare: $(STAMP)
	$(BIN)/bench compare $(MODELS) $(ARGS)

bench: $(STAMP)
	$(BIN)/python -m pytest bench $(ARGS)

smoke: $(STAMP)
	$(BIN)/python -m pytest bench --benchmark-disable $(ARGS)

# With GPU_PYTHON set, nothing is installed: a GPU machine may have no network.
gpu: $(if $(GPU_PYTHON),,$(STAMP))
	PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" $(or $(GPU_PYTHON),$(BIN)/python) -P -m bench.gpu run --device $(or $(DEVICE),auto) $(if $(PART),--parts $(PART)) $(ARGS)

doctor: $(STAMP)
	$(BIN)/bench doctor $(ARGS)

test: $(STAMP)
	$(PYTEST) -m 'not slow and not night' $(ARGS)

test-all: $(STAMP)
	$(PYTEST) -m 'not night' $(ARGS)

test-night: $(STAMP)
	$(BIN)/python -m pytest tests -m night -rP --timeout 0 -o faulthandler_timeout=0 $(ARGS)

fuzz: $(STAMP)
	FUZZ_EXAMPLES=$(or $(EXAMPLES),200) $(BIN)/python -m pytest tests/fuzz --numprocesses auto --maxprocesses 8 --dist load --timeout 0 $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	$(BIN)/python -m sphinx --builder html --fail-on-warning --quiet docs docs/_build

texts: $(STAMP)
	$(BIN)/python tests/test_readme.py
	$(BIN)/python tests/test_figures.py
	$(BIN)/python tests/test_odd_files.py

clean:
	rm -rf $(VENV) build dist docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
