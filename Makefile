PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

# stdout has to end with pytest's summary
MAKEFLAGS += --no-print-directory
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help demo test lint types tests bench clean

help:
	@echo 'make demo    train and decode a small model'
	@echo 'make test    lint, types, then every test'
	@echo 'make lint    ruff: check and format --check'
	@echo 'make types   mypy, strict, of the packages and the examples'
	@echo 'make tests   tests, properties, doctests and the quickstart; PYTEST_ARGS= and WORKERS= are passed on'
	@echo 'make bench   benchmarks against other libraries; BENCH_ARGS=--quick takes two minutes'
	@echo 'make clean   remove caches and builds (not $(VENV))'
	@echo 'HYPOTHESIS_PROFILE=dev|ci|nightly says how many examples the properties try.'

demo: $(VENV)/.dev
	$(BIN)/python -m pytorch_hmm demo

test: lint types tests

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

tests: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# order-only: the interpreter behind the link may be newer than the stamp
$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip  # uv's have none
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,bench]'
	@touch $@
