PYTHON ?= python3
BIN := .venv/bin

.PHONY: aspirin test test-slow mutations check clean

aspirin: .venv/installed  ## pretrain, stabilize and evaluate aspirin on the data set that ships
	$(BIN)/python -m experiments.aspirin $(ARGS)

test: .venv/installed  ## check style and types, run the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(ARGS)

test-slow: .venv/installed  ## the heavier checks
	$(BIN)/python -m pytest -m slow $(ARGS)

mutations: .venv/installed  ## faults that some test has to find, one at a time
	$(BIN)/python tests/mutations.py $(ARGS)

check: .venv/installed  ## fix the style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build *.egg-info

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "error: stablejax needs Python 3.11 to 3.13, this is %d.%d: set PYTHON=python3.12, for one" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@
