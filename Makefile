# Everything lives in .venv; nothing else is touched. `make` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
IMAGES ?=
DATA ?= clipfleet-data
PORT ?= 8000

.PHONY: help install demo test lint docs clean

help:
	@echo "make demo      set up, start, index sample images, search them; stays up"
	@echo "               IMAGES=~/Pictures indexes yours, PORT=8001 listens elsewhere"
	@echo "make test      set up, then lint, types, import rules and every test"
	@echo "make install   set up only"
	@echo "make docs      set up, then the guides and the reference as a site: site/index.html"
	@echo "make clean     remove what the targets above made (not your data)"

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "clipfleet needs Python 3.11 or newer; try make PYTHON=python3.12"; exit 1; }
	@echo "Setting up $(VENV); torch alone is some 200 MB, so the first time takes minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --progress-bar on -c constraints.txt -e '.[dev,server]'
	@touch $@

demo: install
	$(BIN)/clipfleet demo --data "$(DATA)" --port $(PORT) $(if $(IMAGES),--images "$(IMAGES)")

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=tests:.:benchmarks $(BIN)/mypy --explicit-package-bases tests training benchmarks examples docs
	$(BIN)/lint-imports --no-logo

test: lint
	$(BIN)/python -m pytest

docs: install
	$(BIN)/python docs/openapi.py
	$(BIN)/zensical build --clean --strict

clean:
	rm -rf $(VENV) .cache site docs/http.md build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
