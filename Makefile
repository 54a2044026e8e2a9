# Needs GNU make and Python 3.10 or newer, nothing else. `make` alone lists the targets.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Only what is installed is used: no model hub is asked in the demos and the tests.
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1
# Threads of OpenMP that wait for one another sleep, so that processes can share cores (benchmarks/shared_cores.py).
export OMP_WAIT_POLICY ?= passive

EXTRAS_demo := demo,s3,dg
EXTRAS_ray := demo,s3,dg,ray
EXTRAS_test := demo,s3,dg,test
EXTRAS_bench := demo,s3,dg,test,bench
EXTRAS_lint := demo,s3,dg,test,lint

# What takes part in a run is measured alone: one after the other.
BENCHMARKS := duplicate_scoring kmeans embedding text_encoders scale peers shared_cores dagster_records ray_engine kmeans_scale dagster_at_scale object_store
# One process more than two cores have, for some tests only wait for a daemon.
PYTEST_ARGS ?= -n 3 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install demo ui report proof screenshots test lint format bench constraints clean
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

install: $(VENV)/.installed-demo .env ## virtual environment with everything the demos and the UI need

demo: install $(if $(ENGINE),$(VENV)/.installed-$(ENGINE)) ## both demos end to end, offline; a second time nothing is recomputed; ENGINE=ray: on a local Ray
	$(OFFLINE) DAGSTER_HOME="$(CURDIR)" $(BIN)/python examples/demo.py $(if $(ENGINE),--engine $(ENGINE))

ui: install ## Dagster's UI and daemon on the pipelines of semdedup_assets/defs
	DAGSTER_HOME="$(CURDIR)" $(BIN)/dagster dev -w workspace.yaml

report: $(VENV)/.installed-test ## every analysis on the demos' data, as docs/redundancy-report.md; some minutes
	$(OFFLINE) $(BIN)/python examples/redundancy_report.py

proof: $(VENV)/.installed-test ## is training on what is kept worth more? docs/proof.md anew; half an hour
	$(OFFLINE) $(BIN)/python examples/proof_of_value.py

screenshots: demo $(VENV)/.installed-test ## the README's pictures of the UI anew; needs Chromium
	$(OFFLINE) $(BIN)/python -m semdedup_assets_tests.screenshots

# Two processes with several threads each on the same cores take ten times as long.
test: $(VENV)/.installed-test ## all tests; PYTEST_ARGS="-k greedy" for some
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed-lint ## ruff, mypy (strict), import-linter
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-lint ## let ruff repair and format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.installed-bench ## the benchmarks, each with its conditions; some two hours on two cores
	for script in $(BENCHMARKS); do \
		echo "== $$script"; $(OFFLINE) $(BIN)/python benchmarks/$$script.py --json benchmarks/$$script.json || exit 1; done

constraints: $(VENV)/.installed-lint ## renew constraints/constraints.txt; UV_ARGS=--upgrade for the newest versions
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --all-extras --no-annotate \
		--custom-compile-command "make constraints" $(UV_ARGS) pyproject.toml -o constraints/constraints.txt

clean: ## remove the environment and caches; results, and Dagster's record of them in .dagster/, stay
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	rmdir logs .logs_queue 2>/dev/null || true
	find semdedup_assets semdedup_assets_tests examples benchmarks -name __pycache__ -type d -prune \
		-exec rm -rf {} + 2>/dev/null || true

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo "error: Python 3.10 or newer is needed, and '$(PYTHON)' is not ($$($(PYTHON) --version 2>&1))." >&2; \
		echo "Name one that is: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Made once, then the user's own. It tells `dagster` commands where dagster.yaml lies.
.env:
	cp .env.example .env

# A stamp for each set of extras: installing again is skipped until a requirement changes.
$(VENV)/.installed-%: pyproject.toml constraints/constraints.txt | $(BIN)/python
	@echo "Installing semdedup-assets[$(EXTRAS_$*)] into $(VENV): several GB and some minutes the first time."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
		-c constraints/constraints.txt -e ".[$(EXTRAS_$*)]"
	@touch $@
