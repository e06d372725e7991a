PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := src tests benchmarks examples docs/hooks.py
DATA ?= ../shared/data

.PHONY: help demo test test-quick tour check release-check bench figures format docs clean

help:  ## List these commands.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP)  ## Train on the demo data (ten clients, a few minutes) and show what sharing gains.
	$(BIN)/trifed demo

# Tests start many processes: without bytecode each would compile the package anew.
test test-quick: export PYTHONDONTWRITEBYTECODE =

test: $(STAMP)  ## Check style and types, then run all tests. They build the documentation too.
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy & types=$$!; $(BIN)/pytest -q -n 3 --dist loadfile --no-loadscope-reorder -m "not tour"; tests=$$?; \
	    wait $$types && exit $$tests

test-quick: $(STAMP)  ## Check style, then run the tests that are not marked slow. Takes under three minutes.
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/pytest -q -n 3 --dist loadfile --no-loadscope-reorder -m "not slow"

tour: $(STAMP)  ## Take inputs as users bring them through all commands, with every kind of model. Takes two minutes.
	$(BIN)/pytest -q -n 3 --dist loadfile tests/tasks/tour

check: test  ## Do the same as make test.

release-check:  ## Build the release in dist/, install it with every extra as users do, and use it. Takes ten minutes.
	$(PYTHON) tests/release_check.py

bench: $(STAMP)  ## Compare speed and memory with plain PEFT and Flower, and draw it (BENCH="--repetitions 5" and more).
	$(BIN)/python benchmarks/speed/against.py --data $(DATA) $(BENCH)
	$(BIN)/python benchmarks/speed/page.py

figures: $(STAMP)  ## Draw every picture of README and docs from committed results. Trains nothing.
	$(BIN)/python benchmarks/figures.py

format: $(STAMP)  ## Format the code and fix what ruff can fix by itself.
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

docs: $(STAMP)  ## Build the documentation site in site/. Fails on any warning.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# torch is installed first and by itself: pip may choose a build with several GB of CUDA for a dependency.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11) and "trifed needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,dev,docs]'
	touch $(STAMP)

clean:  ## Remove the virtual environment, the site and all caches.
	rm -rf $(VENV) build site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
