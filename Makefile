# Each target sets itself up: on a machine with only Python 3.11 or newer, the first
# call makes an environment and installs what the target needs.
WORKDIR ?= runs/demo
export WORKDIR  # recipes read it as a shell variable: spaces and quotes survive

# The environment is .venv. Where PYTHON is given and .venv has another version, the
# environment is .venv-X.Y, so that one checkout can be tested on several versions.
VERSION := import sys; print("%d.%d" % sys.version_info[:2])
ifdef PYTHON
  WANTED := $(shell $(PYTHON) -c '$(VERSION)' 2> /dev/null)
  PRESENT := $(shell .venv/bin/python -c '$(VERSION)' 2> /dev/null)
  VENV ?= .venv$(if $(filter-out $(WANTED),$(PRESENT)),-$(WANTED))
endif
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: try demo test fast lint docs notebooks clean

# Draws with the weights that ship, then says what it sees in its own pictures.
PROMPTS ?= duck;pizza;octopus;ghost;crescent moon;woman farmer dark skin tone
export PROMPTS
FLOWTOK = $(BIN)/python -m flowtok_jax.main --checkpoint=emoji

try: $(VENV)/run
	$(FLOWTOK) --mode=sample --workdir=runs/try --prompts="$$PROMPTS"
	$(FLOWTOK) --mode=caption --images="$$(ls -d runs/try/samples/* | tail -1)/0*.png"

demo: $(VENV)/run
	$(BIN)/python -m flowtok_jax.main --config=configs/demo.py --workdir="$$WORKDIR"

# Files of tests go to as many processes as there are cores, up to four (3 to 6 GB each).
PYTEST = $(BIN)/python -m pytest -n auto --maxprocesses=4 --dist=loadfile

test: lint
	$(PYTEST)

# A selection of the tests, for a second version of Python (see .ci/run).
fast: $(VENV)/dev
	$(PYTEST) -m 'fast and not slow and not gpu and not tpu'

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck launch/*.sh .ci/run

# mkdocs-material announces its end of life and its successor at every build.
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Executes them top to bottom and stores their outputs: 10 to 20 minutes on two cores.
notebooks: $(VENV)/dev
	$(BIN)/python notebooks/execute.py $(NOTEBOOKS)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is missing or too old; expected Python 3.11 or newer: make PYTHON=python3.x"; exit 2; }
	$(PYTHON) -m venv $(VENV)

INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -r

$(VENV)/run: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(INSTALL) $<
	@touch $@

$(VENV)/dev: requirements-dev.txt pyproject.toml | $(VENV)/bin/python
	$(INSTALL) $<
	@touch $@ $(VENV)/run

$(VENV)/docs: requirements-docs.txt pyproject.toml | $(VENV)/bin/python
	$(INSTALL) $<
	@touch $@ $(VENV)/run

clean:
	rm -rf .venv .venv-* site
