# The default target lists the others. Nothing outside this folder is changed.
PYTHON ?= python3
VENV ?= .venv
READY := $(VENV)/.ready
.DEFAULT_GOAL := help
.PHONY: help demo test lint types unit bench bench-quick venv clean

help: ## this list
	@echo "make TARGET, where TARGET is one of"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-11s %s\n", $$1, $$2}' Makefile

demo: $(READY) ## restore the sample model and show what came of it
	@[ ! -f out/saferestore.json ] || rm -rf out
	$(VENV)/bin/saferestore restore sample_data/base sample_data/tuned --task sample_data/records/task.jsonl -o out
	@echo; ls -l out; echo; echo "Open out/report.html in a browser for the whole report."

test: lint types unit ## lint, types and all tests

lint: $(READY) ## ruff
	$(VENV)/bin/ruff check .

types: $(READY) ## pyright
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

unit: $(READY) ## pytest, a process a core
	$(VENV)/bin/pytest -n auto

bench: $(READY) ## every method on three sample pairs: harm against drift (hours; goes on where it stopped)
	$(VENV)/bin/python docs/benchmarks/frontier.py --pairs build/pairs

bench-quick: $(READY) ## the same with six methods and few rows on the sample; writes build/frontier-quick.md
	$(VENV)/bin/python docs/benchmarks/frontier.py --quick

venv: $(READY) ## the virtual environment only

$(READY): pyproject.toml constraints.txt .ci/venv
	PYTHON=$(PYTHON) .ci/venv $(VENV)
	@touch $@

clean: ## remove what make made: .venv, out, caches
	@[ ! -f out/saferestore.json ] || rm -rf out
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist *.egg-info
