# make demo · make test · make bench · make lint: each makes .venv on a fresh machine.
# A stamp in .stamps stands for each step, so that a second run installs nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
BUILT := CMakeLists.txt $(wildcard native/* recipes/*)

.PHONY: install demo test bench lint format clean

install: .stamps/subtone

# torch by its exact version first: a bare one brings gigabytes of GPU libraries.
.stamps/environment: constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "pip>=25"
	$(PIP) torch
	$(PIP) scikit-build-core cmake ninja
	mkdir -p .stamps && touch $@

.stamps/subtone: .stamps/environment $(BUILT)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation -e '.[dev]'
	touch $@

demo: install
	$(BIN)/subtone demo

test: install
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: install
	$(BIN)/subtone bench model ../shared/models/quartznet15x5-en.nemo ../shared/data/librispeech/dev-clean-300 --limit 20

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .stamps build
