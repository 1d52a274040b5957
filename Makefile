# `make demo` and `make test` start from nothing: they make the virtual environment and install what they need.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUNS   ?= runs

.PHONY: help demo docs test test-all stress lint format clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

# The constraints pin torch to one version: asked for without it, pip may fetch gigabytes of CUDA libraries.
$(VENV)/.lab: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torchreaper and what its lab needs into $(VENV) (a few minutes, once)"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lab]'
	@touch $@

$(VENV)/.dev: $(VENV)/.lab
	@echo "installing the test tools into $(VENV)"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lab,dev]'
	@touch $@

demo: $(VENV)/.lab  ## RePr and standard training side by side on real images: table and figures, under 2 minutes
	@# One thread: on pictures of 8x8 pixels a second one costs more than it gives.
	$(BIN)/reaper compare recipes/demo.yaml --threads 1 --out $(RUNS)

test: $(VENV)/.dev  ## the tests; about 17 minutes on 2 cores
	@# A process a core, each with one thread.
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal -m "not slow and not sweep and not stress and not gpu"

docs: $(VENV)/.dev  ## the documentation, into site/; open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test-all: $(VENV)/.dev  ## all tests, the long ones too
	$(BIN)/pytest

stress: $(VENV)/.dev  ## faults, fuzzing and long runs, and the table of docs/reliability.md anew; hours
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal -m stress --keep-counts tests/stress; \
	status=$$?; $(BIN)/python -m tests.stress.recording && exit $$status

lint: $(VENV)/.dev  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the virtual environment and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
