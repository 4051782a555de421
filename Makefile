# Everything lives in .venv; nothing else is touched. `make` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
IMAGES ?=
DATA ?= clipfleet-data
PORT ?= 8000
# Tests wait for other processes most of the time: more of them at once than there are cores.
WORKERS ?= 3
RESULTS := .cache/tests
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder -q
COVER = $(BIN)/coverage run $(wordlist 2,99,$(PYTEST))
COVERED = $(BIN)/coverage combine -q -a && for part in api workers common clipfleet; do \
    echo "$$part: $$($(BIN)/coverage report --include="$$part/*" --format=total) % of lines"; done
PIP := $(BIN)/pip install --disable-pip-version-check --progress-bar on -c constraints.txt

.PHONY: help install demo fast test test-all coverage chaos lint metrics docs clean

help:
	@echo "make demo      set up, start, index sample images, search them; stays up"
	@echo "               IMAGES=~/Pictures indexes yours, PORT=8001 listens elsewhere"
	@echo "make test      set up, then lint, types, import rules and the fast tier: before each push"
	@echo "make fast      the unit tests alone: while you edit"
	@echo "make test-all  make test, then the full tier: parts killed, a Milvus server, all guides"
	@echo "make coverage  both tiers with line coverage"
	@echo "make chaos     the long storm: 200 kills and 20 forgotten seconds over 20,000 images"
	@echo "make install   set up only, with what the tests need"
	@echo "make metrics   figures about the code: lines, functions, docstrings, comments"
	@echo "make docs      set up, then the guides and the reference as a site: site/index.html"
	@echo "make clean     remove what the targets above created (not your data)"

install: $(VENV)/with-tests

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "clipfleet needs Python 3.11 or newer; try make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml setup.py constraints.txt | $(VENV)/bin/pip
	@echo "Setting up $(VENV); torch is 200 MB, with CUDA (PyPI has it so for Linux) 4 GB: it takes minutes."
	$(PIP) -e '.[embedded]'
	@touch $@

$(VENV)/with-tests: pyproject.toml setup.py constraints.txt | $(VENV)/bin/pip
	@echo "Setting up $(VENV) with what the tests need; the first time takes minutes."
	$(PIP) -e '.[dev,server]'
	@touch $@ $(VENV)/installed

demo: $(VENV)/installed
	$(BIN)/clipfleet demo --data "$(DATA)" --port $(PORT) $(if $(IMAGES),--images "$(IMAGES)")

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=tests:.:benchmarks $(BIN)/mypy --explicit-package-bases tests training benchmarks examples docs scripts
	$(BIN)/python scripts/sync_client.py --check
	$(BIN)/python scripts/check_words.py api workers common clipfleet scripts benchmarks \
		training examples tests
	$(BIN)/lint-imports --no-logo

fast: install
	$(PYTEST) tests/unit

test: lint
	$(PYTEST) -m "not full" --junitxml=$(RESULTS)/fast.xml

test-all: test
	$(PYTEST) -m full --junitxml=$(RESULTS)/full.xml; code=$$?; \
	    $(BIN)/python tests/summary.py $(RESULTS)/fast.xml $(RESULTS)/full.xml; exit $$code

# Processes that end by SIGKILL, as the chaos tests want it, take their lines with them.
coverage: install
	mkdir -p $(RESULTS) && $(BIN)/coverage erase
	$(COVER) -m "not full" && $(COVERED)
	$(COVER) -m full && $(COVERED)

# 200 kills and 20 times a Valkey without its last seconds, over 20,000 images: half an hour or more.
chaos: install
	CLIPFLEET_STORM_KILLS=200 $(BIN)/python -m pytest tests/chaos/test_storm.py -q -s

metrics: install
	$(BIN)/python scripts/metrics.py

docs: install
	$(BIN)/python docs/openapi.py
	$(BIN)/zensical build --clean --strict

clean:
	rm -rf $(VENV) .cache site docs/http.md build dist *.egg-info .mypy_cache .pytest_cache \
	    .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.*
