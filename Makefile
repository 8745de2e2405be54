# Everything that is done by hand. `make help` lists it.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
BIN := $(VENV)/bin
# Passed on by demo, unit, test, nightly and bench.
ARGS ?=

# The first Python that fits and can make a virtual environment. Looked for only when needed; name
# another with `make demo PYTHON=/path/to/python`.
FITS := import sys, ensurepip, venv; sys.exit(not sys.version_info >= (3, 11))
USABLE := import sys, pip; sys.exit(not sys.version_info >= (3, 11))
PYTHON ?= $(shell for each in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	if "$$each" -c '$(FITS)' >/dev/null 2>&1; then echo "$$each"; break; fi; done)

# Empty when there is no environment, or its Python is gone: then it is made anew.
HEALTHY := $(shell "$(BIN)/python" -c '$(USABLE)' 2>/dev/null && echo yes)
PIP = "$(BIN)/python" -m pip --quiet --disable-pip-version-check
# A part of the tests covers a part of the code, so the floor is for all of them.
COVERAGE = --cov=topics --cov=pipeline --cov=sinks --cov=dashboards --cov-report=term:skip-covered \
	$(if $(ARGS),,--cov-fail-under=60)
# Two files of tests at a time: most of what they do is wait. ARGS="-n 0" takes one by one.
PARALLEL = -n 2 --dist loadfile --no-loadscope-reorder
# The tests that need neither a server nor a process. tests/test_tidy.py keeps the list true.
UNIT = batching boards_parity both_folds cases cluster_text compat compat_families compose \
	demo_telemetry explain exporter fleet fleet_replay folds gateway_parts github_payloads \
	invariants jobs_properties keys ledger macros masking metrics missed odd_bodies origins \
	peer_hooks plot policies prober_desk providers quirks reading relay_parts replay rooms \
	rounds routes said settings simulate sink_rows stall_world stalls stranded telemetry \
	telemetry_pools telemetry_reconcilers telemetry_runners telemetry_schedulers ticks tidy \
	verify verify_fleets windows
# What tries dashboards, alerts, and the stack and cluster that they are asked of.
DASHBOARDS = macros plot dashboards boards_families boards_parity boards_pipeline \
	boards_prometheus boards_runners boards_twice alerts grafana_alerts runbooks compose \
	compose_live cluster cluster_replicas cluster_schema cluster_text

.PHONY: help demo unit test dashboards-check nightly hooks lint format bench docs constraints clean FORCE

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.demo ## Show everything at work on this machine; options in ARGS="...".
	@"$(BIN)/runnerstream" demo $(ARGS)

unit: export HYPOTHESIS_PROFILE = unit
unit: $(VENV)/.dev ## The tests that need no server, with few generated examples.
	"$(BIN)/python" -m pytest --quiet $(UNIT:%=tests/test_%.py) $(ARGS)

test: lint ## Lint, types, and all tests with coverage; options of pytest in ARGS="...".
	"$(BIN)/python" -m pytest $(PARALLEL) --durations=15 $(COVERAGE) $(ARGS)

dashboards-check: $(VENV)/.dev ## What is tried of dashboards, alerts and their stack, and a table of it.
	"$(BIN)/python" -m pytest --quiet $(DASHBOARDS:%=tests/test_%.py) $(ARGS)

nightly: export HYPOTHESIS_PROFILE = nightly
nightly: lint ## The same tests with ten times as many generated examples, and a small soak.
	"$(BIN)/python" -m pytest $(PARALLEL) $(COVERAGE) $(ARGS)

lint: $(VENV)/.dev ## Style, formatting and types only.
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"

hooks: ## Make git run the lint before each commit.
	@hook="$$(git rev-parse --git-path hooks)/pre-commit"; \
	if [ -e "$$hook" ] && ! grep -q 'make.* lint' "$$hook"; then \
		echo "make: $$hook exists and is not ours; let it call make lint" >&2; \
		exit 1; \
	fi; \
	mkdir -p "$$(dirname "$$hook")"; \
	printf '#!/bin/sh\n# Written by make hooks; delete it to be rid of it.\nexec make --no-print-directory lint\n' > "$$hook"; \
	chmod +x "$$hook"; \
	echo "git runs make lint before each commit now ($$hook)"

format: $(VENV)/.dev ## Mend what style and formatting can mend by themselves.
	"$(BIN)/ruff" check --fix-only .
	"$(BIN)/ruff" format .

bench: $(VENV)/.dev ## Measure throughput and latency; options in ARGS="...".
	"$(BIN)/python" -m benchmarks $(ARGS)

docs: $(VENV)/.dev ## Write the generated parts of docs/ again.
	"$(BIN)/python" docs/generate.py

constraints: ## Resolve all dependencies anew and write constraints.txt.
	@$(need_python)
	@rm -rf build/constraints && mkdir -p build
	"$(PYTHON)" -m venv build/constraints
	build/constraints/bin/python -m pip install --quiet --disable-pip-version-check \
		'.[local,rocksdb,plot,dev]'
	@sed '/^[^#]/,$$d' constraints.txt > build/constraints.new
	@build/constraints/bin/python -m pip freeze --disable-pip-version-check \
		--exclude runnerstream >> build/constraints.new
	@mv build/constraints.new constraints.txt && rm -rf build/constraints

clean: ## Delete the environment and what tools leave behind.
	@if [ -f "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi
	rm -rf build .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache ./*.egg-info
	find topics pipeline sinks dashboards tests benchmarks docs examples -name __pycache__ -type d -prune \
		-exec rm -rf {} +

# Editable, so that only another dependency makes it install again. What tests need includes what
# the demo needs.
$(VENV)/.demo: EXTRAS = local
$(VENV)/.demo: pyproject.toml constraints.txt $(if $(HEALTHY),,FORCE)
	@$(install)
	@touch "$(VENV)/.demo"

$(VENV)/.dev: EXTRAS = local,rocksdb,plot,dev
$(VENV)/.dev: pyproject.toml constraints.txt $(if $(HEALTHY),,FORCE)
	@$(install)
	@touch "$(VENV)/.demo" "$(VENV)/.dev"

FORCE:

define need_python
	if [ -z '$(PYTHON)' ]; then \
		echo 'make: no Python >= 3.11 with venv found; looked for python3.11 to python3.14, python3, python.' >&2; \
		echo 'make: install one (on Debian and Ubuntu with python3-venv), or name it: make PYTHON=/path/to/python' >&2; \
		exit 1; \
	elif ! '$(PYTHON)' -c '$(FITS)' 2>/dev/null; then \
		echo 'make: $(PYTHON) is not a Python >= 3.11 that can make virtual environments' >&2; \
		exit 1; \
	fi
endef

define install
	if ! "$(BIN)/python" -c '$(USABLE)' 2>/dev/null; then \
		$(need_python); \
		if [ -d "$(VENV)" ] && [ ! -f "$(VENV)/pyvenv.cfg" ]; then \
			echo 'make: $(VENV) exists and is no virtual environment; choose another with VENV=' >&2; \
			exit 1; \
		fi; \
		echo "Making $(VENV) with $$('$(PYTHON)' --version)." >&2; \
		'$(PYTHON)' -m venv --clear "$(VENV)" || exit 1; \
	fi; \
	echo 'Installing .[$(EXTRAS)] as pinned in constraints.txt; the first time takes about half a minute.' >&2; \
	$(PIP) install --constraint constraints.txt --editable '.[$(EXTRAS)]'
endef
