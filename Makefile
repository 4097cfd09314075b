# make run     the default experiment, from nothing to the table (sets up .venv first)
# make test    all tests (files of tests go to as many processes as there are cores)
# make test-k2 the tests that need k2, under Python 3.9 with the one k2 of the package index (sets up .venv-k2 first)
# make lint    style of Python and Snakemake files
# make bench   the benchmarks (benchmarks/README.md), on an idle machine; make bench-layer: one of them
#
#   make run CONFIG=workflow/experiments/digits.yaml     another experiment
#   make run ARGS=-n                                     anything else for snakemake: here, what would be done
#   make test ARGS='-m "not slow"'                       or for pytest

PYTHON ?= python3.11
CONFIG ?= config.yaml
CORES ?= all
WORKERS ?= auto
ARGS ?=

BIN := .venv/bin
STAMP := .venv/installed
# `python` in the rules is the one of .venv.
export PATH := $(CURDIR)/$(BIN):$(PATH)

# The first of these that runs: PYTHON39 as given, python3.9, pyenv's newest 3.9. (pyenv's shims exist and may not run.)
PYTHON39 ?= $(shell for python in python3.9 \
    "$$(pyenv prefix "$$(pyenv versions --bare 2>&1 | grep '^3\.9\.[0-9]*$$' | tail -n 1)" 2>&1)/bin/python"; do \
    "$$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 9))' 2>/dev/null && { echo "$$python"; break; }; done)
K2_STAMP := .venv-k2/installed

.PHONY: setup run test test-k2 lint bench
.DEFAULT_GOAL := run

setup: $(STAMP)

# setuptools is pinned too, so that nothing outside the lock takes part.
$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

run: $(STAMP)
	@python -m lowrank_speech.workflow.launch "$(CONFIG)" $(ARGS) --cores $(CORES) --workflow-profile workflow/profiles/workstation

test: $(STAMP)
	OMP_NUM_THREADS=1 python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

# Without such a Python, or where its packages cannot be had, it says "test-k2: skipped" and why; .ci/run fails on that.
test-k2:
	@test -n "$(PYTHON39)" || { echo "test-k2: skipped: no Python 3.9 was found; name one with PYTHON39="; exit 0; }; \
	$(MAKE) --no-print-directory $(K2_STAMP) || { echo "test-k2: skipped: no .venv-k2, see above"; exit 0; }; \
	.venv-k2/bin/python -c 'import k2' && .venv-k2/bin/python -m pytest tests/with_k2 $(ARGS)

# Exactly these packages, so that nothing else takes part: --no-deps.
$(K2_STAMP): envs/k2-test.txt
	"$(PYTHON39)" -m venv --clear .venv-k2
	.venv-k2/bin/python -m pip install --quiet --no-deps --requirement $<
	touch $@

lint: $(STAMP)
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	snakemake --lint

bench: $(STAMP) $(patsubst %,bench-%,factorise constraint layer front_end ctc loader memory trainer inference planning)

bench-%: $(STAMP)
	python $(firstword $(wildcard benchmarks/$*.py benchmarks/bench_$*.py)) $(ARGS)
