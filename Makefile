# Everything a reader types. On Windows, with conda or in an environment of your own: see README.md.

PYTHON ?= python3
LAB_ARGS ?=
DEMO_ARGS ?=
PYTEST_ARGS ?=
# The chapters, and for each explorer a notebook that holds it.
CHAPTERS ?= $(sort $(wildcard chapters/*.ipynb chapters/solutions/*.ipynb tests/notebooks/*.ipynb))

BIN := .venv/bin
# Holds the two files that .venv was installed from, so a new date alone (a checkout, a copy) installs nothing again.
STAMP := .venv/installed-from
# Inside a container everybody is root, and JupyterLab refuses root; it listens on this machine only and asks for its token.
ROOT_ARGS := $(shell [ "$$(id -u)" = 0 ] && echo --allow-root)

.DEFAULT_GOAL := help
.PHONY: help setup lab demo test style chapters clean distclean

help:  ## show this list
	@echo "usage: make TARGET [PYTHON=python3.13]"
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP)  ## create .venv and install everything that the course needs, once

lab: setup  ## draw the data and open JupyterLab on the chapters (LAB_ARGS="--no-browser --port=9000")
	$(BIN)/minidet data shapes data/shapes
	JUPYTER_CONFIG_PATH="$(CURDIR)/minidet/explore/jupyter:$$JUPYTER_CONFIG_PATH" \
		$(BIN)/jupyter lab --ip=127.0.0.1 --LabApp.default_url=/lab/tree/chapters $(ROOT_ARGS) $(LAB_ARGS)

demo: setup  ## train a small YOLOX on drawn pictures and show what it finds (minutes on two CPU cores)
	$(BIN)/minidet demo $(DEMO_ARGS)

test: setup  ## check the style, run every test, then every chapter against its stored outputs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet . || { echo "Run 'make style' to format these files."; exit 1; }
	$(BIN)/python -m pytest $(PYTEST_ARGS)
	$(if $(CHAPTERS),$(BIN)/python -m pytest --nbval --nbval-current-env --nbval-cell-timeout=300 $(CHAPTERS))

style: setup  ## format the code and mend what ruff can mend
	$(BIN)/ruff check --fix --exit-zero --quiet .
	$(BIN)/ruff format .

# Without the state of widgets: it holds every script and picture again, and readers without a kernel get the pictures.
chapters: setup  ## run the chapters and store their outputs (CHAPTERS=chapters/00_start_here.ipynb for one)
	$(if $(CHAPTERS),$(BIN)/jupyter nbconvert --to notebook --execute --inplace \
		--ExecutePreprocessor.store_widget_state=False $(CHAPTERS))

clean:  ## delete caches and build leftovers; data, runs and .venv stay
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
	rm -rf .pytest_cache .ruff_cache .hypothesis build dist ./*.egg-info

distclean: clean  ## delete .venv too
	rm -rf .venv

# The stamp is written last: an installation that fails or is interrupted starts again next time.
$(STAMP): pyproject.toml constraints.txt
	@if cat pyproject.toml constraints.txt | cmp -s - $@; then touch $@; else $(MAKE) --no-print-directory install; fi

.PHONY: install
install:
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(MAKE) --no-print-directory environment
	@echo "Installing into .venv: PyTorch comes along, so this takes a few minutes and a few GB, once."
	$(BIN)/python -m pip install -c constraints.txt -e ".[notebooks,test]"
	@cat pyproject.toml constraints.txt > $(STAMP)
	@echo "Ready. Next: make demo, or make lab."

.PHONY: environment
environment:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2> /dev/null || { \
		echo "'$(PYTHON)' is not a Python 3.10 or newer. Install one, or name one: make setup PYTHON=/path/to/python3.13"; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2> /dev/null || { \
		echo "'$(PYTHON)' cannot make virtual environments. On Debian or Ubuntu: apt install python3-venv. Or use conda: see README.md."; exit 1; }
	"$(PYTHON)" -m venv --clear .venv
