# Everything runs from .venv, which the first target that needs it creates from PyPI: no root, nothing outside
# this folder. Once .venv exists no target uses the network. Needs python3.11 or newer, make, g++ and perl.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
JOBS ?= auto
VENV := .venv
BIN := $(VENV)/bin
RUN := $(VENV)/.installed-run
DEV := $(VENV)/.installed-dev
FLOW := $(VENV)/.installed-flow
UNIT ?=
BOARD ?= ulx3s-85f
SEEDS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo m3vit test test-full sim lint format bench verilog synth bitstream wheel clean

help:  ## Show this help
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## *\(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "python 3.11 or newer with venv is needed; set PYTHON=/path/to/python" >&2; exit 3; }
	@echo "creating $(VENV) from PyPI; this takes a minute or two"
	@$(PYTHON) -m venv $(VENV)

$(RUN): pyproject.toml | $(BIN)/python
	@$(BIN)/python -m pip install --quiet --editable '.[sim,report]'
	@touch $@

$(DEV): pyproject.toml | $(BIN)/python
	@$(BIN)/python -m pip install --quiet --editable '.[sim,report,dev,flow]'
	@touch $@ $(RUN) $(FLOW)

$(FLOW): pyproject.toml | $(BIN)/python
	@$(BIN)/python -m pip install --quiet --editable '.[flow]'
	@touch $@

demo: $(RUN)  ## Classify real images with the generated Verilog, compare every tensor (build/demo/report.html)
	$(BIN)/edgemoe demo -o build/demo

test: $(DEV)  ## Run the tests (minutes)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow"

test-full: $(DEV)  ## Run all tests, the slow ones too
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

sim: $(DEV)  ## Run the cocotb benches of the units and of the core on Verilator
	$(BIN)/python -m pytest sim -n $(JOBS) --dist worksteal

lint: $(DEV)  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(DEV)  ## Rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

m3vit: $(RUN)  ## Run M3ViT-tiny whole through the gateware, both tasks (needs the released weights)
	$(BIN)/python examples/m3vit/run.py -o build/m3vit

bench: $(DEV)  ## Measure everything again, the routed board too: docs/results.md and .json (hours)
	$(BIN)/python -m benchmarks

verilog: $(RUN)  ## Write the Verilog of the nano accelerator to build/verilog
	$(BIN)/edgemoe verilog --hardware nano -o build/verilog

synth: $(FLOW)  ## Area and clock of the units on ECP5, into docs/area.md (an hour): UNIT=gelu for one
	$(BIN)/python docs/area.py $(UNIT)

bitstream: $(FLOW)  ## Build a board's bitstream into build/BOARD: BOARD=ulx3s-85f|ulx3s-25f|ulx3s-12f, SEEDS=3
	$(BIN)/edgemoe build --board $(BOARD) --seeds $(SEEDS) -o build/$(BOARD)

wheel: $(DEV)  ## Build the wheel into dist/
	$(BIN)/python -m hatchling build -t wheel

clean:  ## Delete what was built (not .venv)
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
