# From a fresh clone, with nothing but Python 3.11 or newer:
#
#   make venv     .venv with the project and its tools
#   make demo     the quickstart on this machine: no GPU, no download of data
#   make test     every test but the two kinds below            PYTEST_WORKERS=N for N processes (2)
#   make long     the tests that take a quarter of a minute or more: drills with kills, sweeps, all methods, browsers, exports
#   make quick    the tests not marked slow
#   make slurm    the tests on a real SLURM of four nodes, started here (root and Debian's packages; minutes)
#   make bench    what the machine and our code are worth, part by part (minutes): ONLY="driver start" for some parts
#   make gpu      the tests and the benchmark of a CUDA card (minutes), into JSON=gpu.json; with PYTHON=... by an interpreter
#                 that has torch, pyarrow, pydantic, PyYAML, Pillow, scikit-learn and pytest, and without .venv
#   make check    ruff, mypy and the direction of imports
#   make clean    remove caches and build products; .venv and stores of results stay
#
# PYTHON=... chooses the interpreter of .venv; which build of torch pip fetches is up to pip's own settings.

PYTHONS := $(or $(PYTHON),python3.13 python3.12 python3.11 python3)
PYTEST_WORKERS ?= 2
PYTEST := .venv/bin/python -m pytest -q
SHARED := -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder  # in the order of tests/conftest.py: slow first

.PHONY: help venv demo test long quick slurm bench gpu check lint types arrows clean

help:
	@sed -n 's/^#   make/make/p' Makefile

venv: .venv/.stamp

# Each candidate is run, not just looked up: version managers put names on PATH that do not start.
.venv/.stamp: pyproject.toml
	@test -x .venv/bin/pip || { \
	  for python in $(PYTHONS); do \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && found=$$python && break; \
	  done; \
	  test -n "$$found" || { \
	    echo "Python 3.11 or newer is needed; tried: $(PYTHONS). Name one: make venv PYTHON=/path/to/python" >&2; \
	    exit 1; }; \
	  "$$found" -m venv --clear .venv; }
	@echo "Installing the project and its tools into .venv (a few minutes the first time: torch is large)"
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: venv
	.venv/bin/pdd

# Several tests at once on few cores: one thread each, or they fight.
test long quick slurm bench gpu arrows: export OMP_NUM_THREADS = 1
test long quick slurm bench gpu arrows: export MKL_NUM_THREADS = 1

test: venv
	$(PYTEST) $(SHARED) -m "not slurm and not long"

long: venv
	$(PYTEST) $(SHARED) -m long

quick: venv
	$(PYTEST) $(SHARED) -m "not slow"

slurm: venv
	$(PYTEST) -m slurm

bench: venv
	.venv/bin/python -m tests.benchmarks $(ONLY) --json bench.json

gpu: $(if $(PYTHON),,venv)
	$(or $(PYTHON),.venv/bin/python) -m tests.gpu --json $(or $(JSON),gpu.json) $(GPU_OPTIONS)

check: lint types arrows

lint: venv
	.venv/bin/ruff check
	.venv/bin/ruff format --check

types: venv
	.venv/bin/mypy

arrows: venv
	$(PYTEST) tests/test_arrows.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find jobs workers orchestrator tests -name __pycache__ -type d -prune -exec rm -rf {} +
