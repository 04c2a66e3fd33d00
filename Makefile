# Every command of the project. `make dev` and `make test` are all a newcomer needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
UV := $(BIN)/uv
LOCKS := requirements-uv.txt requirements-dev.txt

.DEFAULT_GOAL := help
.PHONY: help install lock clean
.DELETE_ON_ERROR:

help:  ## List the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(INSTALLED)  ## Make .venv with everything to develop and test

# The import roots go in through a .pth file: the same names as on Lambda (taskchat, chat, mcp_tools), and no path hacks.
$(INSTALLED): $(LOCKS) Makefile
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed: taskchat needs Python 3.11 or later."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$$($(PYTHON) --version) is too old: taskchat needs 3.11 or later (choose one with PYTHON=python3.13)."; exit 1; }
	@echo "Making .venv with $$($(PYTHON) --version) (once per change of the locks)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-uv.txt || \
		{ echo "Could not download packages: is the network there?"; exit 1; }
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes --requirement requirements-dev.txt || \
		{ echo "Could not download packages: is the network there?"; exit 1; }
	@printf '%s\n' "$(CURDIR)/shared" "$(CURDIR)/functions" "$(CURDIR)" > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/taskchat.pth"
	@touch $@

COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --upgrade

lock: install  ## Refresh the locked versions of all dependencies
	$(COMPILE) pyproject.toml --output-file shared/requirements.txt
	$(COMPILE) pyproject.toml --group dev --constraints shared/requirements.txt --output-file requirements-dev.txt
	$(COMPILE) --group sam --output-file requirements-sam.txt
	$(COMPILE) --group uv --output-file requirements-uv.txt

clean:  ## Remove everything that was built, installed or stored for development
	rm -rf $(VENV) .aws-sam .dev .mypy_cache .ruff_cache .pytest_cache
