PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Arguments for pip that only the installation of torch gets, such as another index.
TORCH_ARGS ?=
JOBS ?= 2
# Two workers with one thread each keep two cores busier than one worker with two. One that dies ends the run:
# xdist may wait for ever for those it starts in its place.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --max-worker-restart=0

.DEFAULT_GOAL := help
.PHONY: help install test test-all lint types imports format demo bench clean build/tree

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# torch comes first and by its exact version, so that no dependency drags in another build of it.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt $(TORCH_ARGS) torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[zoo,onnx,test]'
	touch $@

install: $(VENV)/.installed  ## make .venv and install srrc into it, editable

test: $(VENV)/.installed  ## run the tests (under 20 minutes on 2 cores)
	$(PYTEST)

test-all: $(VENV)/.installed  ## run the tests, the slow ones too
	$(PYTEST) -m ''

lint: $(VENV)/.installed types imports  ## check format, style, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(VENV)/.installed  ## put the code into its format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The tools read the tree as it looks once installed: the four rooms under one package.
build/tree: $(VENV)/.installed
	rm -rf $@ && mkdir -p $@/srrc
	ln -s $(CURDIR)/srrc/* $(CURDIR)/passes $(CURDIR)/backends $(CURDIR)/models_zoo $@/srrc/

types: build/tree
	cd build/tree && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml -p srrc

imports: build/tree
	cd build/tree && PYTHONPATH=. $(abspath $(BIN))/lint-imports --config $(CURDIR)/pyproject.toml --no-cache --no-logo

demo: $(VENV)/.installed  ## one answer under eager, inductor and srr, side by side
	$(BIN)/srrc demo

bench: $(VENV)/.installed  ## measure every variant of SmolLM2-135M; the README's figures come from here
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	$(BIN)/srrc bench smollm2-135m --json build/bench.json

clean:  ## remove what was built here; the fetched models stay in the user's cache
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
