# The everyday commands. Everything is installed into .venv (and .bench), nothing elsewhere.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q
DIGITS := examples/digits
# Tests run in so many processes, each file in one of them: `make test JOBS=0` for one alone.
JOBS   ?= auto
# Which benchmark `make bench` runs.
BENCH  ?= int8
# Only tests use it: the maths is held to give the same on NumPy and PyTorch. `make test TORCH=`
# goes without (PyPI's build for Linux is large), and those tests are skipped.
TORCH  ?= torch
# Tests of transformers build small models with the one, and hold GGUF files against the other;
# they are skipped without (MODELS=).
MODELS ?= transformers gguf

# onnxruntime reports its use otherwise; packlight sets it for its own processes.
export ORT_DISABLE_TELEMETRY := 1

# The stamp of the development tools holds what was asked for: other wishes install again.
WISHES := $(strip $(TORCH) $(MODELS))

# Targets share one environment: with -j, two installations must not run in it at once.
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help venv demo page test lint format types check bench clean

help: ## this list
	@echo "make TARGET [PYTHON=python3.12]"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "packlight needs Python 3.11 or later: make ... PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "could not make $(VENV): is python3-venv installed?" >&2; exit 1; }

# Stamps: installed again only when what is to be installed has changed.
$(VENV)/core.stamp: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing packlight into $(VENV)"
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/core.stamp
	@echo "installing the development tools into $(VENV)"
	@$(PIP) install -c constraints.txt -e '.[dev]' $(WISHES)
	@echo "$(WISHES)" > $@
ifneq ($(WISHES),$(strip $(shell cat $(VENV)/dev.stamp 2>/dev/null)))
.PHONY: $(VENV)/dev.stamp
endif

venv: $(VENV)/core.stamp ## the environment with the command packlight, without development tools

demo: $(VENV)/core.stamp ## compresses the model shipped in examples/digits into packed/, and verifies it
	@$(BIN)/packlight compress $(DIGITS)/digits.onnx --data $(DIGITS)/digits.npz \
	  --max-drop 1% --out packed --force
	@echo; echo "What packlight verify says of that folder, here or on any other machine:"; echo
	@$(BIN)/packlight verify packed --original $(DIGITS)/digits.onnx

web/node_modules/page.stamp: web/package-lock.json
	@command -v npm >/dev/null || { echo "the page is built with npm, which comes with Node.js 20.19 or later" >&2; exit 1; }
	@cd web && npm ci --ignore-scripts --silent
	@touch $@

page: web/node_modules/page.stamp ## the page of packlight serve, from web/ (needs npm)
	@cd web && npm run --silent build

test: $(VENV)/dev.stamp ## all tests (TORCH= MODELS= installs no PyTorch, and skips those with it)
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

lint: $(VENV)/dev.stamp ## ruff: rules and formatting; the same of the page, once it was built
	@$(BIN)/ruff check -q .
	@$(BIN)/ruff format -q --check . || { echo "formatting differs: make format" >&2; exit 1; }
	@test ! -d web/node_modules || npm --prefix web run --silent check

format: $(VENV)/dev.stamp ## formats the code and mends what ruff can mend
	@$(BIN)/ruff check -q --fix .
	@$(BIN)/ruff format -q .
	@test ! -d web/node_modules || npm --prefix web run --silent format

types: $(VENV)/dev.stamp ## mypy, strict
	@$(BIN)/mypy --no-error-summary

check: lint types test ## what continuous integration runs

.bench/bench.stamp: pyproject.toml benchmarks/requirements.txt
	@echo "installing the benchmark's peers into .bench"
	@$(PYTHON) -m venv .bench
	@.bench/bin/python -m pip --disable-pip-version-check -q install \
	  -c constraints.txt -r benchmarks/requirements.txt -e .
	@touch $@

bench: .bench/bench.stamp ## a benchmark: BENCH=int8|fewbits|mixed|size|rounding|entropy|budget|prune|prune_kinds|llm|llm_vllm|llm_depth|llm_speed|llm_rotation (OPTIONS="...")
	@.bench/bin/python benchmarks/$(BENCH).py $(OPTIONS)

clean: ## removes environments, caches and what the demo wrote
	@rm -rf $(VENV) .bench packed build dist web/node_modules src/packlight/serve/page
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find src tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} +
