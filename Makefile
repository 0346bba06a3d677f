# Needs Python >= 3.11, make and a C compiler. `make help` lists the tasks.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)

# What the installed package is made of: where none of it has changed, nothing is built again.
SOURCES := Makefile pyproject.toml CMakeLists.txt $(shell find csrc src -type f -not -path '*/__pycache__/*')

ifdef UV
MAKE_VENV = $(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
INSTALL = $(UV) pip install --quiet --python $(BIN)/python
REINSTALL = $(INSTALL) --reinstall-package chainrule '.[ner]'
WHEEL = $(UV) build --quiet --wheel
else
MAKE_VENV = $(PYTHON) -m venv $(VENV)
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check
REINSTALL = $(INSTALL) '.[ner]'
WHEEL = $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
endif

.DEFAULT_GOAL := help
.PHONY: help demo test test-peers lint format bench bench-peers ulp wheel clean

help: ## list the tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/installed ## train on the bundled corpus, score it, tag a sentence
	$(BIN)/chainrule ner demo

test: $(VENV)/installed $(VENV)/with-test ## run the tests against the installed package
	$(BIN)/python -m pytest -q

test-peers: $(VENV)/installed $(VENV)/with-test .venv-peers/installed ## bridges, C package, and derivatives beside PyTorch (long)
	$(INSTALL) 'chainrule[sklearn,torch]'
	$(BIN)/python -m pytest -q tests/test_interop_sklearn.py tests/test_interop_torch.py tests/test_embed.py tests/test_c_api.py
	.venv-peers/bin/python -m pip install --quiet pytest hypothesis
	CHAINRULE_GRAPHS=2000 .venv-peers/bin/python -m pytest -q tests/peers

lint: $(VENV)/installed $(VENV)/with-dev ## ruff, mypy, clang-format: what a change must pass
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror csrc/*.c csrc/*.h examples/c/*.c tests/c/*.c

format: $(VENV)/with-dev ## bring Python and C into shape
	$(BIN)/ruff check --fix-only src tests benchmarks examples
	$(BIN)/ruff format src tests benchmarks examples
	$(BIN)/clang-format -i csrc/*.c csrc/*.h examples/c/*.c tests/c/*.c

bench: $(VENV)/installed $(VENV)/with-test ## time kernels and training steps
	env -u OPENBLAS_CORETYPE OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -q benchmarks

bench-peers: .venv-peers/installed ## the whole table beside PyTorch, JAX and others (long)
	.venv-peers/bin/python benchmarks/suite.py $(BENCH)

ulp: $(VENV)/with-cmake ## error of the elementwise functions over all float32 inputs (long)
	$(BIN)/cmake -S . -B build/ulp -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DCHAINRULE_ULP=ON
	$(BIN)/cmake --build build/ulp --target ulp
	build/ulp/ulp $(STRIDE)

wheel: $(BIN)/python ## build a wheel into dist/
	$(WHEEL)

clean: ## remove what was built
	rm -rf $(VENV) .venv-peers build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3"; exit 1; }
	$(MAKE_VENV)

$(VENV)/installed: $(SOURCES) | $(BIN)/python
	$(REINSTALL)
	@touch $@

$(VENV)/with-test: pyproject.toml | $(VENV)/installed
	$(INSTALL) 'chainrule[test]'
	@touch $@

$(VENV)/with-dev: pyproject.toml | $(VENV)/with-test
	$(INSTALL) 'chainrule[dev]'
	@touch $@

# Apart from .venv, because they are large. PyTorch's CPU build is enough, where pip is set up for it.
PEERS ?= torch==2.13.0 jax[cpu] scikit-learn thinc matplotlib
.venv-peers/installed: $(SOURCES)
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet $(PEERS)
	.venv-peers/bin/python -m pip install --quiet .

$(VENV)/with-cmake: pyproject.toml | $(BIN)/python
	$(INSTALL) cmake ninja
	@touch $@
