# make run     the default experiment, from nothing to the table (sets up .venv first)
# make test    all tests
# make lint    style of Python and Snakemake files
# make bench   the benchmarks (benchmarks/README.md): minutes, on an idle machine
#
#   make run CONFIG=workflow/experiments/digits.yaml     another experiment
#   make run ARGS=-n                                     anything else for snakemake: here, what would be done
#   make test ARGS='-m "not slow"'                       or for pytest

PYTHON ?= python3.11
CONFIG ?= config.yaml
CORES ?= all
ARGS ?=

BIN := .venv/bin
STAMP := .venv/installed
# `python` in the rules is the one of .venv.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup run test lint bench
.DEFAULT_GOAL := run

setup: $(STAMP)

# setuptools is pinned too, so that nothing outside the lock takes part.
$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

run: $(STAMP)
	snakemake $(ARGS) --cores $(CORES) --workflow-profile workflow/profiles/workstation --configfile $(CONFIG)
	@python -m lowrank_speech.workflow.results $(CONFIG)

test: $(STAMP)
	python -m pytest $(ARGS)

lint: $(STAMP)
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	snakemake --lint

bench: $(STAMP) $(patsubst %,bench-%,factorise constraint layer)

bench-%: $(STAMP)
	python benchmarks/$*.py $(ARGS)
