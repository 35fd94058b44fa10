# Each target sets itself up: on a machine with only Python 3.11 or newer, the first
# call makes .venv and installs what the target needs.
PYTHON ?= python3
BIN := .venv/bin
WORKDIR ?= runs/demo

.PHONY: demo test lint clean

demo: .venv/run
	$(BIN)/python -m flowtok_jax.main --config=configs/demo.py --workdir=$(WORKDIR)

test: lint
	$(BIN)/python -m pytest

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck launch/*.sh

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is too old: Python 3.11 or newer is needed; make PYTHON=python3.x"; exit 2; }
	$(PYTHON) -m venv .venv

.venv/run: requirements.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

.venv/dev: requirements-dev.txt requirements.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@ .venv/run

clean:
	rm -rf .venv
