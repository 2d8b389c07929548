# One front door. Each target makes .venv and installs by itself; a second run is quick.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# What km is made of on POSIX; the second look, as Windows sees the tree, passes over it.
POSIX_SHIM := (bulk|detached|first|link|pump|relay|slabs|spool|start|starter|strict|tap|terminal|turns)

.PHONY: help install demo test check bench torture soak clean
help:
	@echo "make demo    two real MCP servers through km, km-server stopped in between, counts that must agree"
	@echo "make test    every test but the heavy ones"
	@echo "make check   ruff, mypy --strict, import-linter"
	@echo "make bench   ratios against the limits named in docs/measurements.md"
	@echo "make torture everything killed again and again under traffic; ARGS='--seed 7 --rounds 300'"
	@echo "make soak    the same day again and again: does kmd grow? ARGS='--minutes 60'"
	@echo "make clean   remove $(VENV)"

install: $(STAMP)
	@$(BIN)/python -m tests.support.node
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Kilometers needs Python 3.11 or newer; set PYTHON=…")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	@$(BIN)/python -m tests.support.demo

test: install
	@$(BIN)/python -m pytest -m 'not heavy' $(ARGS)

check: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/mypy --platform win32 --follow-imports=silent --no-warn-unreachable --exclude '^kmd/shim/$(POSIX_SHIM)\.py$$' kmd kmctl tests/windows
	@$(BIN)/lint-imports

bench: $(STAMP)
	@$(BIN)/python -m tests.support.bench $(ARGS)

torture: $(STAMP)
	@$(BIN)/python -m tests.support.torture_main $(ARGS)

soak: $(STAMP)
	@$(BIN)/python -m tests.support.soak $(ARGS)

clean:
	rm -rf $(VENV)
