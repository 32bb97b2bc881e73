# Every target works from a fresh checkout and is quick the second time: the stamp files in the
# virtual environment are renewed only when pyproject.toml or constraints.txt change.

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= logical
SHARE  ?= 1

BIN     := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test browser docs crash slurm-test clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.demo ## install, audit the digits network; the last line names the report
	$(BIN)/krepes run digits

test: $(VENV)/.test ## lint, format, types, layers, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest -n $(JOBS) --maxprocesses 8 --dist worksteal

browser: $(VENV)/.browser ## open the report in an installed Chromium
	$(BIN)/pytest -m browser tests/browser

docs: $(VENV)/.docs ## build the documentation; a broken link is an error
	$(BIN)/mkdocs build --quiet --strict --site-dir build/docs

crash: $(VENV)/.test ## campaigns of kills, harm and races; SHARE=0.1 draws a tenth of their cases
	SHARE=$(SHARE) CRASH_RESULTS=$(CRASH_RESULTS) $(BIN)/pytest -m crash \
		-n $(JOBS) --maxprocesses 8 --dist worksteal tests/crash tests/engine tests/runner

slurm-test: $(VENV)/.test ## (root, Debian) a real Slurm of one node: every result equals threads
	apt-get install -y --no-install-recommends slurm-wlm munge
	$(INSTALL) -e '.[hpc]'
	$(BIN)/python benchmarks/fetch.py adult --to .cache/data
	$(BIN)/python tests/slurm/run.py

clean: ## remove the virtual environment, builds and caches; workspaces stay
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -rf .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e .
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[test]'
	@touch $(VENV)/.demo $@

$(VENV)/.browser: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[browser]'
	@touch $(VENV)/.test $(VENV)/.demo $@

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[docs]'
	@touch $(VENV)/.demo $@
