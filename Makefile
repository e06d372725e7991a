PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check format docs clean

demo: $(STAMP)            ## ten sites, one small model, four methods side by side
	$(BIN)/trifed demo

test: $(STAMP)            ## lint, types and tests
	$(BIN)/ruff format --check src tests benchmarks docs/generate.py
	$(BIN)/ruff check src tests benchmarks docs/generate.py
	$(BIN)/mypy
	$(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder

check: test               ## the same

format: $(STAMP)
	$(BIN)/ruff format src tests benchmarks docs/generate.py
	$(BIN)/ruff check --fix src tests benchmarks docs/generate.py

docs: $(STAMP)            ## the reference in docs/reference, from the docstrings
	$(BIN)/python docs/generate.py

# torch first and by itself: asked for as a dependency, pip may take a build with several GB of CUDA.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11) and "trifed needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
