# make run     run the default experiment, from raw data to the results table (sets up .venv first)
# make test    run all tests, one process per core
# make test-k2 run the tests that need k2, under Python 3.9 with the only k2 in the package index (sets up .venv-k2 first)
# make lint    check the style of Python and Snakemake files
# make bench   run the benchmarks (benchmarks/README.md); the machine should be idle. make bench-layer runs one of them
# make bench-gpu run the measurements on a GPU, nine minutes per call (OUT=folder; REHEARSE=1: at small size on the CPU)
#
#   make run CONFIG=workflow/experiments/digits.yaml     another experiment
#   make run ARGS=-n                                     further arguments for snakemake; -n: a dry run
#   make test ARGS='-m "not slow"'                       further arguments for pytest

PYTHON ?= python3.11
CONFIG ?= config.yaml
CORES ?= all
WORKERS ?= auto
ARGS ?=

BIN := .venv/bin
STAMP := .venv/installed
# The rules use the `python` of .venv.
export PATH := $(CURDIR)/$(BIN):$(PATH)

# PYTHON39 if it is set, else the first that runs: python3.9, pyenv's newest 3.9. (A pyenv shim may exist and not run.)
PYTHON39 ?= $(shell for python in python3.9 \
    "$$(pyenv prefix "$$(pyenv versions --bare 2>&1 | grep '^3\.9\.[0-9]*$$' | tail -n 1)" 2>&1)/bin/python"; do \
    "$$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 9))' 2>/dev/null && { echo "$$python"; break; }; done)
K2_STAMP := .venv-k2/installed

.PHONY: setup run test test-k2 lint bench bench-gpu
.DEFAULT_GOAL := run

setup: $(STAMP)

# setuptools is pinned too, so that the build uses only packages from the lock.
$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

run: $(STAMP)
	@python -m lowrank_speech.workflow.launch "$(CONFIG)" $(ARGS) --cores $(CORES) --workflow-profile workflow/profiles/workstation

test: $(STAMP)
	OMP_NUM_THREADS=1 python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

# Prints "test-k2: skipped" and the reason if Python 3.9 or its packages are missing; .ci/run fails if it is the packages.
test-k2:
	@test -n "$(PYTHON39)" || { echo "test-k2: skipped: no Python 3.9 was found; set PYTHON39 to one"; exit 0; }; \
	$(MAKE) --no-print-directory $(K2_STAMP) || { echo "test-k2: skipped: could not create .venv-k2, see above"; exit 0; }; \
	.venv-k2/bin/python -c 'import k2' && .venv-k2/bin/python -m pytest tests/with_k2 $(ARGS)

# --no-deps: install exactly these packages.
$(K2_STAMP): envs/k2-test.txt
	"$(PYTHON39)" -m venv --clear .venv-k2
	.venv-k2/bin/python -m pip install --quiet --no-deps --requirement $<
	touch $@

lint: $(STAMP)
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	snakemake --lint

bench: $(STAMP) $(patsubst %,bench-%,factorise constraint layer front_end ctc lfmmi loader padding memory trainer inference lm decoding lid_scoring planning)

# Uses the Python that is there, see benchmarks/gpu.sh; .venv need not exist.
bench-gpu:
	benchmarks/gpu.sh $(if $(REHEARSE),--rehearse) $(or $(OUT),gpu-results) $(ARGS)

bench-%: $(STAMP)
	python $(firstword $(wildcard benchmarks/$*.py benchmarks/bench_$*.py)) $(ARGS)
