# dicomai: `make demo` shows it at work, `make test` checks it. Python >= 3.11 and make are all that is needed.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON ?= python3
# Paths are relative to this folder, whose own path may hold spaces.
BIN := .venv/bin
STAMP := .venv/installed
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-input --constraint constraints.txt
# Any seed will do, but all workers of a run need the same one, and a person who looks for a failure has to know it.
PYTHONHASHSEED := $(or $(PYTHONHASHSEED),$(shell echo $$RANDOM))
export PYTHONHASHSEED
PYTEST := echo "PYTHONHASHSEED=$(PYTHONHASHSEED)"; $(BIN)/python -m pytest --quiet
WORKERS ?= 2

.PHONY: help setup demo test rest check acceptance gpu bench soak fuzz hooks clean postgresql peers viewers

help: ## say what there is to make
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20

setup: $(STAMP) ## make the environment in .venv; at once when it is up to date

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON): install Python 3.11 or later." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$$($(PYTHON) --version) is too old: make PYTHON=python3.11 (or later)." >&2; exit 2; }
	@echo "Making the environment in .venv (some minutes the first time) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv \
		|| { rm -rf .venv; echo "Python's venv module is missing: install python3-venv." >&2; exit 2; }
	@$(PIP) torch hatchling editables
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

demo: setup ## a study through a node: received, segmented, sent on, shown
	@$(BIN)/dicomai demo

test: setup postgresql ## everything that needs Python packages and PostgreSQL only
	@$(PYTEST) --numprocesses $(WORKERS) --dist worksteal tests/unit tests/integration

rest: setup postgresql ## what `make test` has and `make check` has not
	@$(PYTEST) --numprocesses $(WORKERS) -m slow tests/unit
	@$(PYTEST) --numprocesses $(WORKERS) --dist worksteal tests/integration

check: setup ## linters, types, import contracts and the fast tests
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/mypy & types=$$!; wrong=0; \
	$(PYTEST) --numprocesses $(WORKERS) -m "not slow" tests/unit || wrong=1; wait $$types || wrong=1; exit $$wrong

acceptance: setup peers viewers postgresql ## against DCMTK, Orthanc, OHIF in Chromium and validators
	@$(PYTEST) --numprocesses $(WORKERS) --dist loadfile --ignore tests/acceptance/test_start.py tests/acceptance
	@$(PYTEST) tests/acceptance/test_start.py # which looks at how quick it is, by itself

gpu: setup ## the tests that need a CUDA device, on one
	@$(PYTEST) tests/gpu

bench: setup peers viewers ## every figure that the documentation quotes
	@for script in benchmarks/*.py; do if [ -e "$$script" ]; then $(BIN)/python "$$script"; fi; done

soak: setup peers ## 1,500 studies by eight senders, a hundred kills and twenty power cuts while they send; 1,000 results out
	@$(BIN)/python -m tests.soak
	@export KILLS=100 CUTS=20; $(PYTEST) --capture no tests/acceptance/test_kill_receiving.py tests/acceptance/test_power_cut.py
	@export RESULTS=1000; $(PYTEST) --capture no tests/acceptance/test_many_results.py

fuzz: setup ## a million hostile inputs (INPUTS=, SEED=, ONLY=, or REPLAY=FILE that a finding named)
	@$(BIN)/python -m tests.fuzz $(if $(INPUTS),--inputs $(INPUTS)) $(if $(SEED),--seed $(SEED)) \
		$(if $(ONLY),--only $(ONLY)) $(if $(REPLAY),--replay '$(REPLAY)')

hooks: setup ## have `git commit` run the linters first
	@$(BIN)/pre-commit install

# As root (containers, CI) what is missing comes from Debian; elsewhere an embedded PostgreSQL is used.
postgresql:
	@if [ "$$(id -u)" = 0 ] && ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then \
		.ci/apt-install postgresql || echo "PostgreSQL could not be installed; its tests look for another." >&2; fi

peers:
	@.ci/apt-install --when-missing storescu:dcmtk Orthanc:orthanc \
		/usr/share/orthanc/plugins/libOrthancDicomWeb.so:orthanc-dicomweb /usr/sbin/sshd:openssh-server

viewers:
	@.ci/apt-install --when-missing chromium:chromium npm:npm openssl:openssl plastimatch:plastimatch
	@.ci/fetch-ohif

clean: ## remove what was built, the environment too
	@rm -rf .venv .cache build dist demo-output .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
