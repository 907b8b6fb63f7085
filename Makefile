# Everything runs in an environment of its own, made on first use.  PYTHON chooses the interpreter it is made with.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
SOURCES := ddq_search search_spaces hardware_models reports tests

.PHONY: demo test check venv format wheel

# The main job on embedded data: search, front, report, export, proof.
demo: $(STAMP)
	$(PY) -m ddq_search demo --out runs/demo

test: $(STAMP)
	$(PY) -m pytest

# What CI runs.
check: $(STAMP)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m pytest

format: $(STAMP)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

wheel: $(STAMP)
	$(PY) -m build --wheel

venv: $(STAMP)

$(STAMP): pyproject.toml
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { \
	  echo "cannot make $(VENV): install Python 3.11 or newer with its venv module, or set PYTHON" >&2; exit 1; }
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(VENV) has $$($(PY) --version), 3.11 or newer is needed: remove it and set PYTHON" >&2; exit 1; }
	@echo "installing into $(VENV); PyTorch is large, this takes some minutes"
	$(PY) -m pip install --disable-pip-version-check --quiet -e '.[dev]'
	@touch $(STAMP)
