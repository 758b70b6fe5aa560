# make demo · make test · make fuzz · make bench · make lint: each makes .venv on a fresh machine.
# A stamp in .venv stands for each step, so that a second run installs nothing.

PYTHON ?= python3
VENV := .venv
SHARED ?= ../shared
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
BUILT := CMakeLists.txt $(wildcard native/* recipes/*)

.PHONY: install demo test fuzz bench sanitize no-floats lint format clean

install: $(VENV)/.subtone

# torch by its exact version first: a bare one brings gigabytes of GPU libraries.
$(VENV)/.environment: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed; name one: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "pip>=25"
	$(PIP) torch
	$(PIP) scikit-build-core cmake ninja
	touch $@

$(VENV)/.subtone: $(VENV)/.environment $(BUILT)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation -e '.[dev]'
	touch $@

demo: install
	$(BIN)/subtone demo

# A process for each core; `make test PYTEST_ARGS=-n0` runs one test after the other.
test: install
	$(BIN)/python -m pytest -n auto $(PYTEST_ARGS)

# The drawn tests on draws of today; what fails belongs into its test as an @example.
fuzz: install
	SUBTONE_DRAWS=fuzz $(BIN)/python -m pytest -n auto -m hypothesis $(PYTEST_ARGS)

bench: install runs/bench.subtone
	$(BIN)/subtone bench model $(SHARED)/models/quartznet15x5-en.nemo $(SHARED)/data/librispeech/dev-clean-300 \
		runs/bench.subtone --limit 8

runs/bench.subtone: | install
	mkdir -p runs
	$(BIN)/subtone quantize $(SHARED)/models/quartznet15x5-en.nemo recipes/ptq-w8.toml --out runs/bench
	$(BIN)/subtone pack runs/bench $@

sanitize: install
	PATH="$(CURDIR)/$(BIN):$$PATH" native/check_memory.sh

no-floats: install
	PATH="$(CURDIR)/$(BIN):$$PATH" native/check_no_floats.sh

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build runs/bench runs/bench.subtone
