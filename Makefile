# Everything here sets up what it needs: a virtual environment in .venv, and the native library.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test lint types native-test pytest clean

# A change of the build files, or of any native source, builds and installs again.
$(STAMP): pyproject.toml CMakeLists.txt $(wildcard native/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

demo: $(STAMP)
	$(BIN)/python benchmarks/demo.py

test: lint types native-test pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# The C++ tests: every kernel this CPU can run against the scalar one, and that against plain code.
native-test: $(STAMP)
	$(BIN)/cmake -S . -B build/native -DFPTQ_DEV=ON
	$(BIN)/cmake --build build/native --parallel 2
	$(BIN)/ctest --test-dir build/native --output-on-failure

pytest: $(STAMP)
	$(BIN)/python -m pytest -q

clean:
	rm -rf $(VENV) build
