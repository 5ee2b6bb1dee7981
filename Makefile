# Two commands matter: `make run` and `make test`. Both set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help run test lint docs news bench wheel clean setup

help:  ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' Makefile

setup: $(VENV)/.ready-run

$(VENV)/.ready-run: pyproject.toml .ci/venv.sh
	@PYTHON="$(PYTHON)" sh .ci/venv.sh run

$(VENV)/.ready-dev: pyproject.toml .ci/venv.sh
	@PYTHON="$(PYTHON)" sh .ci/venv.sh dev

run: $(VENV)/.ready-run  ## build what is missing and run a container in the foreground (no root, no image)
	@exec $(BIN)/anbox up

test: $(VENV)/.ready-dev  ## the whole suite; as root it installs the system tools it needs first
	@sh .ci/tools.sh
	@sh .ci/node.sh
	@$(BIN)/python .ci/suite.py

lint: $(VENV)/.ready-dev  ## ruff, mypy strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .

docs: $(VENV)/.ready-dev  ## API pages into docs/_build/api; a warning is an error
	$(BIN)/pydoctor --quiet

news: $(VENV)/.ready-dev  ## check the news fragments
	$(BIN)/python .ci/news.py

wheel: $(VENV)/.ready-dev  ## build the wheel, install it in a fresh venv and try the commands there
	sh .ci/wheel.sh

bench: $(VENV)/.ready-dev  ## measure ours beside its peers (QUICK=1 ends within 90 s)
	-@$(BIN)/python -m pip install --quiet uvloop matplotlib
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick)

clean:  ## remove what the other targets made
	rm -rf $(VENV) build dist docs/_build .mypy_cache .ruff_cache .coverage .coverage.* _trial_temp* .hypothesis
