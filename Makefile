# The default target lists the others. Nothing outside this folder is changed.
PYTHON ?= python3
VENV ?= .venv
READY := $(VENV)/.ready
RIVALS := docs/benchmarks/rivals
ROUNDS ?= 3
.DEFAULT_GOAL := help
.PHONY: help demo test lint types unit bench bench-quick bench-rivals venv clean

help: ## this list
	@echo "make TARGET, where TARGET is one of"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' Makefile

demo: $(READY) ## restore the sample model and show what came of it
	@[ ! -f out/saferestore.json ] || rm -rf out
	@rm -rf out.partial
	$(VENV)/bin/saferestore restore sample_data/base sample_data/tuned --task sample_data/records/task.jsonl -o out
	@echo; ls -l out; echo; echo "Open out/report.html in a browser for the whole report."

test: lint types unit ## lint, types and all tests

lint: $(READY) ## ruff
	$(VENV)/bin/ruff check .

types: $(READY) ## pyright
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

unit: $(READY) ## pytest, a process a core
	$(VENV)/bin/pytest -n auto

bench: $(READY) ## every method on 54 pairs of three families: harm against drift (a day; goes on where it stopped)
	$(VENV)/bin/python docs/benchmarks/frontier.py --pairs build/frontier
	$(VENV)/bin/python docs/benchmarks/robustness.py --pairs build/frontier

bench-quick: $(READY) ## the same with six methods and few rows on the sample; writes build/frontier-quick.md
	$(VENV)/bin/python docs/benchmarks/frontier.py --quick

bench-rivals: $(READY) .venv-rivals/.ready ## beside kronfluence, bergson and curvlinops (an environment of their own)
	$(VENV)/bin/python $(RIVALS)/run.py --theirs .venv-rivals/bin/python --rounds $(ROUNDS)

venv: $(READY) ## the virtual environment only

$(READY): pyproject.toml constraints.txt .ci/venv
	PYTHON=$(PYTHON) .ci/venv $(VENV)
	@touch $@

.venv-rivals/.ready: $(RIVALS)/requirements.txt $(RIVALS)/venv
	PYTHON=$(PYTHON) $(RIVALS)/venv .venv-rivals
	@touch $@

clean: ## remove what make made: environments, out, caches
	@[ ! -f out/saferestore.json ] || rm -rf out
	rm -rf out.partial $(VENV) .venv-rivals .pytest_cache .ruff_cache build dist *.egg-info
