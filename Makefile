# make train, make test: everything else is python -m gridlstm.<name>. No step needs more than Python 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

# One process for each core; at the end, idle processes take over tests of others. For one process: ARGS="-n 0".
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

.PHONY: help train test test-slow test-gpu lint generated docs list bench clean

help:
	@echo "make train [ARGS=\"model=grid2d task=enwik8\"]   install into $(VENV) and train; a minute by default"
	@echo "make test                                     lint, types and the tests (without those marked slow)"
	@echo "make test-slow                                the tests marked slow"
	@echo "make test-gpu                                 the tests that need a GPU; docs/performance.md has what measures it"
	@echo "make lint                                     ruff and mypy"
	@echo "make generated                                write docs/models.md, docs/configuration.md, conf/models.txt and the parameters on record"
	@echo "make docs                                     build the documentation into site/; a broken link is an error"
	@echo "make list                                     models that fit each task, their parameters and FLOPs"
	@echo "make bench                                    speed of the sweeps; takes half an hour"

# The stamp is remade when the requirements change.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gridlstm needs Python 3.11 or newer; give one, for example make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

train: $(VENV)/installed
	@$(BIN)/python train.py $(ARGS)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(PYTEST) -m "not slow and not gpu" $(ARGS)

test-slow: $(VENV)/installed
	$(PYTEST) -m "slow and not gpu" $(ARGS)

# In one process, because the tests share the GPU.
test-gpu: $(VENV)/installed
	$(BIN)/python -m pytest -m gpu $(ARGS)

generated: $(VENV)/installed
	@$(BIN)/python -m gridlstm.list --write
	@PYTHONPATH=. $(BIN)/python -m tests.test_models

# Search in the site needs a server: .venv/bin/mkdocs serve. The variable hides the theme's notice of its successor.
docs: $(VENV)/installed
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open site/index.html"

list: $(VENV)/installed
	@$(BIN)/python -m gridlstm.list $(ARGS)

bench: $(VENV)/installed
	@$(BIN)/python -m gridlstm.bench $(ARGS)

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache
