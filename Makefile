# Everything from a fresh clone: `make demo` goes the road to R1, `make test` tests all of it; `make help`
# lists the rest.

PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SETUP_SECONDS := $(VENV)/.setup-seconds
ORACLE := .venv-oracle
CUDA := .venv-cuda
ON_CPU = CUPY_ON_CPU=1 $(CUDA)/bin/python
SOURCES := setup.cfg pyproject.toml constraints.txt

# Two workers with one thread each (tests/conftest.py): more threads than cores would wait for each other.
WORKERS ?= 2
GPU ?= cuda13
SEED ?= $(shell date +%s)
SEED := $(SEED)
PYTEST = seconds=$$(cat $(SETUP_SECONDS) 2>/dev/null); rm -f $(SETUP_SECONDS); SETUP_SECONDS=$$seconds \
    $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations 10

.DEFAULT_GOAL := help
.PHONY: help demo demo-text parallel-demo test test-all test-cuda gpu-check lint bench mutation oracle clean

help:  ## these lines
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):[^#]*## */\1\t/' | expand -t 12

$(INSTALLED): $(SOURCES)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
	    f"$(PYTHON) is Python {v[0]}.{v[1]} but 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	@echo "setting up $(VENV) (once, about a minute)"
	@start=$$(date +%s) && \
	    { test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); } && \
	    $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,mpi]' && \
	    echo $$(( $$(date +%s) - start )) > $(SETUP_SECONDS)
	@touch $@

demo demo-text: export TEXT := $(TEXT)
demo: $(INSTALLED)  ## a base, R1-Zero, R1's five stages and a student; report in runs/demo; again: goes on
	$(BIN)/python -m posttrain demo --out runs/demo $(if $(TEXT),--text "$$TEXT")

demo-text: $(INSTALLED)  ## train a small DeepSeek on English text (or TEXT=path); report in runs/demo-text
	$(BIN)/python -m train demo --out runs/demo-text $(if $(TEXT),--text "$$TEXT")

test: $(INSTALLED)  ## the tests (or TESTS=path), the same random examples each time
	@$(PYTEST) $(TESTS)

test-all: $(INSTALLED)  ## slow tests too, new random examples; the seed is printed, SEED=n repeats it
	@echo "random examples drawn with SEED=$(SEED)"
	@$(PYTEST) -m 'not oracle' --hypothesis-profile random --hypothesis-seed $(SEED) $(TESTS)

lint: $(INSTALLED)  ## style, formatting, directions of imports, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy

bench: $(ORACLE)/.installed  ## speed and memory beside peers and the limits of this machine
	$(ORACLE)/bin/python -m benchmarks

# One thread a rank; where there are fewer cores than ranks they take turns.
parallel-demo: $(INSTALLED)  ## four processes train as one, by DualPipe, and write runs/parallel/report.html
	$(BIN)/mpiexec -n 4 $(BIN)/python -m train --pipeline dualpipe --num-hidden-layers 4 --micro-batch 2 \
	    --tokens 100000 --out runs/parallel $(if $(TEXT),--text "$(TEXT)")

mutation: $(INSTALLED)  ## one slip at a time in every derivative: do the tests notice? (half an hour)
	nice $(BIN)/python -m tests.mutation --workers $(WORKERS)

$(ORACLE)/.installed: $(SOURCES)
	@echo "setting up $(ORACLE) with torch, transformers, jax and others (once, some minutes)"
	@test -x $(ORACLE)/bin/python || $(PYTHON) -m venv $(ORACLE)
	@$(ORACLE)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,oracle,bench]'
	@touch $@

$(CUDA)/.installed: $(SOURCES)
	@echo "setting up $(CUDA) with CuPy and NVIDIA's compiler (once, about a minute)"
	@test -x $(CUDA)/bin/python || $(PYTHON) -m venv $(CUDA)
	@$(CUDA)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,mpi,emulator]'
	@touch $@

# Kernels are compiled once and kept in ~/.cache/cupy_on_cpu: the first run takes some minutes more.
test-cuda: $(CUDA)/.installed  ## everything on CuPy arrays, without a GPU: the kernels are run on the CPU
	$(ON_CPU) -m pytest -n $(WORKERS) --dist worksteal --durations 5 tests/cupy_on_cpu tests/cuda
	CUPY_ON_CPU_SHUFFLE=1 CUPY_ON_CPU_GUARD=1 $(ON_CPU) -m pytest -n $(WORKERS) --dist worksteal \
	    --durations 5 tests/cuda/test_kernels.py tests/cuda/test_mutants.py tests/cuda/test_bfloat16.py \
	    tests/cuda/test_quantize.py

gpu-check: $(INSTALLED)  ## for people with a GPU (GPU=cuda12 for an older driver): tests, benchmark, gpu-report.md
	@if command -v nvidia-smi > /dev/null && ! $(BIN)/python -c 'import cupy' 2> /dev/null; then \
	    $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,$(GPU)]'; fi
	$(BIN)/python -m benchmarks.gpu

oracle: $(ORACLE)/.installed  ## the same numbers from torch and transformers, in an environment of their own
	$(ORACLE)/bin/python -m pytest -m oracle $(TESTS)

clean:  ## remove environments, caches and compiled kernels; runs/ stays
	rm -rf .venv .venv-oracle .venv-cuda build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
