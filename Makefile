# Everything runs in .venv, made here with nothing but Python 3.11 or newer, venv and make.
#   make demo      the main job on a trillion-parameter model
#   make test      the fast tests          make lint      format, lint, types, import arrows
#   make weights   fetch SmolLM2-135M, or FETCH_ARGS=gemma-3-270m; make clean removes what make made
#   make fuzz      random models, plans and policies against every promise of bits, without end
#   make oracle    fresh tiny models against Hugging Face transformers, tensor-core sums against mmasim
#                  (fetches torch)
# Override the interpreter with `make PYTHON=/path/to/python test`.

usable = $(1) -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
PYTHON ?= $(shell for candidate in python3.11 python3.12 python3.13 python3; do \
	$(call usable,$$candidate) && echo $$candidate && break; done)

VENV := .venv
BIN := $(VENV)/bin
DEMO := $(BIN)/lpu compare kimi-k2 --system lpx-9 --batch 1 --context 8192
# Very quiet: the first run installs some 80 packages, and their names are not the result.
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

.PHONY: demo test test-slow test-long fuzz oracle weights lint clean
# One process a core; files stay whole, because their tests share what they compile.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile
.DEFAULT_GOAL := test

# The second comparison shows a model that does not fit: exit code 1 is its honest answer.
demo: $(VENV)/.installed
	$(DEMO) --policy int4 --top 10 --check 2
	$(DEMO) --policy fp8 --top 3 || [ $$? -eq 1 ]

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow and not long" $(PYTEST_ARGS)

# Tests that take seconds each, and those that need what `make weights` fetches.
test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m "slow and not long" $(PYTEST_ARGS)

# What other tests claim, in many more cases.
test-long: $(VENV)/.installed-dev
	$(PYTEST) -m long $(PYTEST_ARGS)

# Fresh random models of every family against Hugging Face transformers, and a million blocks of every
# kind of tensor-core sum against mmasim (which compiles a small file: it needs a C++ compiler, and
# ninja on the path). torch is a large download; the much smaller build for CPUs is taken where pip's own settings lead to it.
oracle: $(VENV)/.installed-oracle
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PYTEST) -m slow tests/models/oracle/test_live.py \
	  tests/lpu_jax/numerics/oracle $(PYTEST_ARGS)

# A line for ten triples; the first broken promise ends it with a line that runs its triple again.
fuzz: $(VENV)/.installed-dev
	PYTHONPATH=tests $(BIN)/python -m fuzz $(FUZZ_ARGS)

weights: $(VENV)/.installed
	$(BIN)/python -m models.weights.fetch $(FETCH_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/.made:
	@test -n '$(PYTHON)' && $(call usable,$(PYTHON)) || { \
	  echo "make: Python 3.11 or newer with the venv module is needed, found '$(PYTHON)';" \
	    "name one with make PYTHON=/path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade 'pip>=25.1' # the first with --group
	@touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml constraints.txt
	@echo "Installing lpu_jax into $(VENV) (once, a minute or two) ..."
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.made pyproject.toml constraints.txt
	@echo "Installing lpu_jax and its test tools into $(VENV) (once, a minute or two) ..."
	$(PIP) install -c constraints.txt -e . --group dev
	@touch $(VENV)/.installed $@

$(VENV)/.installed-oracle: $(VENV)/.installed-dev
	@echo "Installing torch, transformers and mmasim into $(VENV) (once, some minutes) ..."
	$(PIP) install -c constraints.txt --group oracle
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find lpu_jax models sharding tests -name __pycache__ -type d -prune -exec rm -rf {} +
