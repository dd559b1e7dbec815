# The verbs of this project; `make` lists them. Each sets up what it needs, and takes no time where that is done.
PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help venv demo test check bench fuzz lock clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: .venv/.tests ## set up .venv with everything that tests and checks need

demo: .venv/.demo ## run the router on sandbox providers and send it the first requests (DEMO_ARGS=--once to end after them)
	@$(BIN)/pixelroute demo $(DEMO_ARGS)

test: .venv/.tests ## run all tests (TESTS=path to run some, JOBS=n processes)
	@$(BIN)/pytest -n $(JOBS) --dist loadgroup --durations 10 $(TESTS)

check: .venv/.tests ## format, lint, types and import rules
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --strict pricing router
	@$(BIN)/lint-imports --no-logo

bench: .venv/.tests ## CPU per request and added latency, beside a bare pass-through
	@$(BIN)/python -m tests.benchmarks

fuzz: .venv/.tests ## 2,000 requests made up per operation of our OpenAPI document, against a running router; 15 minutes
	@SCHEMATHESIS_CASES=2000 $(BIN)/pytest -s tests/integration/test_openapi.py

lock: .venv/.tests ## pin the newest versions that pyproject.toml allows
	@.ci/lock

clean: ## remove what the other verbs have made
	rm -rf .venv tests/js/node_modules build dist .mypy_cache .ruff_cache .import_linter_cache .hypothesis demo-pictures

.venv/.demo: requirements.txt pyproject.toml .ci/packages .ci/venv
	@.ci/venv demo

.venv/.tests: tests/requirements.txt tests/clients/openai-1.txt tests/clients/openai-2.txt tests/js/package-lock.json pyproject.toml .ci/packages .ci/venv
	@.ci/venv tests
