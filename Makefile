# The two commands: `make demo` and `make test`. Windows: see README.md for the same without make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo setup test test-all lint bench bench-loop bench-bulk bench-courtesy browser wheel clean help

help:  ## This list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/demo.stamp  ## Set up and run the demonstration: Label Studio, 24 photographs, boxes.
	$(BIN)/spica demo

setup: $(VENV)/dev.stamp  ## Create .venv with everything: all extras and the development tools.

test: setup browser  ## Set up everything, browser included, and run all checks and tests.
	$(MAKE) --no-print-directory -j 2 lint wheel
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test-all: setup browser  ## The same with every case: every architecture, twenty kills; before a release.
	$(MAKE) --no-print-directory -j 2 lint wheel
	$(BIN)/python -m pytest -m '' -n 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

lint: setup  ## Style, types, and the arrows of the design.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pip check

wheel: setup  ## Build the wheel and try it in an environment of its own, without development tools.
	$(BIN)/python scripts/check_wheel.py

bench: setup  ## Measure the speed of every way and architecture, and accuracy; one to two hours, the training included.
	$(BIN)/python -m benchmarks.speed --results benchmarks/RESULTS.md $(BENCH)

bench-loop: setup  ## Measure what learning from corrections saves; about an hour.
	$(BIN)/python -m benchmarks.loop --results benchmarks/RESULTS-loop.md $(BENCH)

bench-bulk: setup  ## Measure the bulk job at scale, with a real network, and its courtesy; about half an hour.
	$(BIN)/python -m benchmarks.bulk --results benchmarks/RESULTS-bulk.md $(BENCH)

bench-courtesy: setup  ## Only how long an opened image waits beside a job; a few minutes.
	$(BIN)/python -m benchmarks.bulk --only courtesy $(BENCH)

browser:  ## Chromium for the browser tests, from the system's packages.
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	  { command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || \
	  { echo "Install Chromium or Chrome, then run make test again." >&2; exit 1; }

clean:  ## Remove .venv and caches; the demonstration's data stays.
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache dist

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Spica needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(VENV)/bin/python pyproject.toml constraints.txt
	@test -f $(VENV)/dev.stamp || echo "Installing Spica and Label Studio into .venv (a minute or two, once) ..."
	@test -f $(VENV)/dev.stamp || $(PIP) -e '.[label-studio]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing everything into .venv (several minutes, once) ..."
	$(PIP) -e '.[all,dev]'
	@touch $@ $(VENV)/demo.stamp
