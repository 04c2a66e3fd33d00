# Every command of the project. Begin with `make dev` and `make test`.
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

install: $(INSTALLED)  ## Make .venv with the packages to develop and test

# A .pth file adds the import roots, so that import names are the same as on Lambda (taskchat, chat, mcp_tools).
$(INSTALLED): $(LOCKS)
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed: taskchat needs Python 3.11 or later."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$$($(PYTHON) --version) is too old: taskchat needs 3.11 or later (choose one with PYTHON=python3.13)."; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version) (once per change of the locks)"
	@$(PYTHON) -m venv --clear $(VENV) || \
		{ echo "Could not make $(VENV). On Debian and Ubuntu, install the package python3-venv first. Then run make again."; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-uv.txt || \
		{ echo "Could not download packages: is the network there?"; exit 1; }
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes --requirement requirements-dev.txt || \
		{ echo "Could not download packages: is the network there?"; exit 1; }
	@printf '%s\n' "$(CURDIR)/shared" "$(CURDIR)/functions" "$(CURDIR)" > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/taskchat.pth"
	@touch $@

.PHONY: dev chat

dev: install  ## Run everything on this machine: database, model, API and a page (PORT=8000)
	@$(BIN)/python -m dev.server

# Pass the message through the environment, not through a shell, so that a `$` in it stays a `$`.
override MESSAGE := $(value MESSAGE)
export MESSAGE CONVERSATION

chat: install  ## Chat at a prompt; one turn: make chat MESSAGE="add buy milk" [CONVERSATION=<id>]
	@$(BIN)/python -m dev.chat

.PHONY: test thorough migrate

# Each worker has its own database, pooler and model. Tests wait a third of their time, so two cores have work for three.
WORKERS := --numprocesses 3 --dist loadfile --no-loadscope-reorder

LONG_TESTS := $(patsubst %,tests/test_%.py,crash stateful stream_crash stream_random fuzz outages one_key reconcile)
# Tests of the page, the pages to read, the commands and the template. Lambda's version of Python makes no difference to them.
LOCAL_TESTS := tests/browser $(patsubst %,tests/test_%.py,add_a_route alarms audit_log authorization chat_prompt clients clients_page \
	conformance deploy_page deploying dev docs doctor evals guide migrations neon node openapi operations page_deployment page_files \
	prompt reader reference register release_before rollback runbook scaling standin_model supply_chain template template_rules trace \
	tutorial version) tests/tasks/test_sentences.py tests/tasks/test_dated_sentences.py tests/tasks/test_first_sentences.py

test: install  ## Run every test that needs no container (BRIEF=1: of what Lambda runs, without those of make thorough)
	@$(BIN)/pytest $(WORKERS) $(if $(BRIEF),$(addprefix --ignore=,$(LONG_TESTS) $(LOCAL_TESTS)))

thorough: install  ## Run the crash, outage, random and fuzz tests at full length
	@THOROUGH=1 $(BIN)/pytest $(WORKERS) $(LONG_TESTS)

.PHONY: screenshots
screenshots: install  ## Take the pictures of the chat page in docs/page anew, in a real Chromium
	@SCREENSHOTS=1 $(BIN)/pytest -q tests/browser/test_pictures.py

migrate: install  ## Migrate the schema at MIGRATION_DATABASE_URL, and create the role that DATABASE_URL names
	@$(BIN)/alembic upgrade head

.PHONY: reconcile audit-log trace

# Without an ENV of the caller's, the commands read what `make dev` wrote.
DEPLOYED = $(if $(filter command line environment,$(origin ENV)),--env $(ENV))
OPERATE = $(DEPLOYED) $(ARGS)

reconcile: install  ## Find each audit line without its record, and the reverse: make reconcile [ENV=prod] [ARGS=...]
	@$(BIN)/python -m operations.reconcile $(OPERATE)

audit-log: install  ## Show tool calls: make audit-log [ENV=prod] ARGS="--person ... --tool ... --since ... --json"
	@$(BIN)/python -m operations.audit_log $(OPERATE)

trace: install  ## Draw a turn's waterfall from the logs: make trace TURN=<id> [ENV=prod] [ARGS=...]
	@test -n "$(TURN)" || { echo "Name the turn: make trace TURN=<id>. Each answer has it as turn_id, and so have the log lines."; exit 1; }
	@$(BIN)/python -m operations.trace --turn "$(TURN)" $(OPERATE)

# The SAM CLI has its own environment, because it pins the versions of half of the layer's packages. The same lock has
# Lambda's runtime client for Python, which `make smoke` puts beside the artifact.
SAM_VENV := .venv-sam
SAM_INSTALLED := $(SAM_VENV)/.installed
SAM := SAM_CLI_TELEMETRY=0 $(SAM_VENV)/bin/sam
FOR_LAMBDA := --link-mode copy --only-binary :all: --python-version 3.13 --python-platform x86_64-manylinux_2_28
ENV ?= dev
# The processor that samconfig.toml names for ENV, or the template's default.
ARCHITECTURE ?= $(or $(shell sed -n '/^\[$(ENV)\.deploy/,/^\[/s/^ *"Architecture=\(.*\)".*/\1/p' samconfig.toml),x86_64)

$(SAM_INSTALLED): requirements-sam.txt | $(INSTALLED)
	@echo "Making $(SAM_VENV) with the SAM CLI (once per change of its lock)"
	@$(UV) venv --quiet --clear --python $(BIN)/python $(SAM_VENV)
	@$(UV) pip install --quiet --python $(SAM_VENV)/bin/python --require-hashes --requirement $< || \
		{ echo "Could not download packages: is the network there?"; exit 1; }
	@$(UV) pip install --quiet --target $(SAM_VENV)/awslambdaric $(FOR_LAMBDA) --verify-hashes --constraint $< awslambdaric
	@touch $@

# Compiles the bytecode, and runs it in `make smoke`. pyenv may put a python3.13 on the PATH that refuses to run, so try
# each candidate.
PYTHON313 ?= $(shell for python in python3.13 "$$(dirname "$$(command -v python3.13)")"/../versions/3.13.*[0-9]/bin/python3.13; \
	do "$$python" -c 'import sys; print(sys.executable)' 2>/dev/null && break; done)

.PHONY: build smoke sam-local inspector conformance clients examples guide audit bench deploy check

build: install $(SAM_INSTALLED)  ## Build the functions and the layer with sam, and check their size
	@test -n "$(PYTHON313)" || \
		{ echo "There is no python3.13, Lambda's own: install it, or name it with PYTHON313=/path/to/python3.13"; exit 1; }
	@UV="$(abspath $(UV))" PYTHON313="$(PYTHON313)" ARCHITECTURE="$(ARCHITECTURE)" \
		$(SAM) build --parameter-overrides Architecture=$(ARCHITECTURE)
	@$(BIN)/python -m dev.artifact

smoke: build  ## Run the built artifact in Lambda's emulator, on the events in events/
	@$(BIN)/python -m dev.smoke --python "$(PYTHON313)" --sam $(SAM_VENV)

sam-local: build  ## Run the built artifact with sam local (needs a container engine)
	@$(BIN)/python -m dev.sam_local --sam $(SAM_VENV)/bin/sam

inspector: install  ## Call the tools over HTTP with the MCP Inspector
	@rm -rf .dev/inspector
	@TASKCHAT_DEV_DIR=.dev/inspector $(BIN)/python -m dev.inspector

conformance: install  ## Run the public MCP conformance suite against the MCP endpoint
	@rm -rf .dev/conformance/state .dev/conformance/results
	@TASKCHAT_DEV_DIR=.dev/conformance/state $(BIN)/python -m dev.conformance

clients: install  ## Hold conversations with the clients of AG-UI and the AI SDK
	@rm -rf .dev/clients/state
	@TASKCHAT_DEV_DIR=.dev/clients/state $(BIN)/python -m dev.clients

# The generator of the Python client and the client's own packages, in an environment of their own.
CLIENTS_VENV := .venv-clients
CLIENTS_INSTALLED := $(CLIENTS_VENV)/.installed
$(CLIENTS_INSTALLED): requirements-clients.txt | $(INSTALLED)
	@$(UV) venv --quiet --clear --python $(BIN)/python $(CLIENTS_VENV)
	@$(UV) pip install --quiet --python $(CLIENTS_VENV)/bin/python --require-hashes --requirement $< || \
		{ echo "Could not download packages: is the network there?"; exit 1; }
	@touch $@

examples: install $(CLIENTS_INSTALLED)  ## Lint the description, generate clients from it, and run each of examples/
	@rm -rf .dev/examples/state
	@TASKCHAT_DEV_DIR=.dev/examples/state $(BIN)/python -m dev.examples $(CLIENTS_VENV)/bin

guide: install  ## Follow docs/your-own-tools.md in a copy, and run the engine's tests there
	@$(BIN)/python -m dev.guide

.PHONY: evals
# make exports the variables of its command line, so MODEL reaches the server as it does with `make dev`.
evals: install  ## Measure a model on the cases in evals/: make evals [REPEAT=3] [ONLY=dates] [BUDGET_TOKENS=…] (docs/evals.md)
	@TASKCHAT_DEV_DIR=.dev/evals/state $(BIN)/python -m evals

AUDIT_VENV := .venv-audit
AUDIT_INSTALLED := $(AUDIT_VENV)/.installed
$(AUDIT_INSTALLED): requirements-audit.txt | $(INSTALLED)
	@$(UV) venv --quiet --clear --python $(BIN)/python $(AUDIT_VENV)
	@$(UV) pip install --quiet --python $(AUDIT_VENV)/bin/python --require-hashes --requirement $< || \
		{ echo "Could not download packages: is the network there?"; exit 1; }
	@touch $@

audit: install $(AUDIT_INSTALLED)  ## Look for secrets in the history, and for vulnerable or withdrawn packages in the locks
	@$(BIN)/python -m dev.supply_chain $(AUDIT_VENV)/bin/pip-audit

# The bench runs Lambda's Python version and imports the built artifact before other packages.
BENCH_VENV := .venv-bench
BENCH_INSTALLED := $(BENCH_VENV)/.installed
$(BENCH_INSTALLED): requirements-dev.txt | $(INSTALLED)
	@test -n "$(PYTHON313)" || { echo "There is no python3.13: name it with PYTHON313=/path/to/python3.13"; exit 1; }
	@echo "Making $(BENCH_VENV) with $$("$(PYTHON313)" --version) (once per change of its lock)"
	@$(UV) venv --quiet --clear --python "$(PYTHON313)" $(BENCH_VENV)
	@$(UV) pip install --quiet --python $(BENCH_VENV)/bin/python --require-hashes --requirement $< || \
		{ echo "Could not download packages: is the network there?"; exit 1; }
	@cp $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/taskchat.pth \
		$$($(BENCH_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
	@touch $@

bench: build $(BENCH_INSTALLED)  ## Measure everything and write docs/performance.md (QUICK=1: a short run, into .dev/bench)
	@$(BENCH_VENV)/bin/python -m bench --python "$(PYTHON313)" --sam $(SAM_VENV) $(if $(QUICK),--quick)

deploy: build  ## Build, and deploy with samconfig.toml: make deploy ENV=dev|prod
	@grep -q '^\[$(ENV)\.deploy\.' samconfig.toml || { echo "samconfig.toml has no [$(ENV).deploy.parameters]."; exit 1; }
	@$(SAM) deploy --config-env $(ENV) $(if $(CI),--no-confirm-changeset)

.PHONY: rollback prune doctor page
rollback: install  ## Send all requests to the versions before the last deployment: make rollback ENV=dev|prod
	@$(BIN)/python -m operations.rollback $(ENV)

prune: install  ## Show the functions' old versions, or delete them: make prune ENV=dev|prod [DELETE=1]
	@$(BIN)/python -m operations.prune $(ENV) $(if $(DELETE),--delete)

page: install  ## Show the chat page as files in .dev/page, or upload it: make page [ENV=prod]
	@$(BIN)/python -m operations.page $(DEPLOYED)

doctor: install  ## Check a deployment, a line for each part: make doctor [ENV=prod] [URL=https://…]
	@$(BIN)/python -m operations.doctor $(DEPLOYED) $(if $(URL),--url $(URL))

check: install $(SAM_INSTALLED) $(AUDIT_INSTALLED)  ## Check lint, format, types, imports, templates, workflows, secrets and locks
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@AWS_DEFAULT_REGION=eu-west-1 $(SAM) validate --lint
	@AWS_DEFAULT_REGION=eu-west-1 $(SAM) validate --lint --template deploy/deployer.yaml
	@$(AUDIT_VENV)/bin/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(AUDIT_VENV)/bin/zizmor --offline --quiet .github/workflows
	@$(BIN)/python -m dev.supply_chain
	@$(MAKE) --no-print-directory check-template check-locks

COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header

# $(call compile_locks,DIRECTORY,OPTIONS)
define compile_locks
$(COMPILE) $(2) pyproject.toml --output-file $(1)/shared/requirements.txt
$(COMPILE) $(2) pyproject.toml --group dev --constraints shared/requirements.txt --output-file $(1)/requirements-dev.txt
$(COMPILE) $(2) --group sam --output-file $(1)/requirements-sam.txt
$(COMPILE) $(2) --group audit --output-file $(1)/requirements-audit.txt
$(COMPILE) $(2) --group template --output-file $(1)/requirements-template.txt
$(COMPILE) $(2) --group clients --output-file $(1)/requirements-clients.txt
$(COMPILE) $(2) --group uv --output-file $(1)/requirements-uv.txt
endef

# The public rules that `make check` holds template.yaml against, in an environment of their own.
TEMPLATE_VENV := .venv-template
TEMPLATE_INSTALLED := $(TEMPLATE_VENV)/.installed
$(TEMPLATE_INSTALLED): requirements-template.txt | $(INSTALLED)
	@echo "Making $(TEMPLATE_VENV) with the public rules for templates (once per change of its lock)"
	@$(UV) venv --quiet --clear --python $(BIN)/python $(TEMPLATE_VENV)
	@$(UV) pip install --quiet --python $(TEMPLATE_VENV)/bin/python --require-hashes --requirement $< || \
		{ echo "Could not download packages: is the network there?"; exit 1; }
	@touch $@

.PHONY: check-template
check-template: install $(TEMPLATE_INSTALLED)  ## Check the template against the rules of cfn-lint and checkov
	@$(BIN)/python -m dev.template_rules $(TEMPLATE_VENV)/bin

.PHONY: openapi reference check-locks
.SILENT: check-locks

openapi: install  ## Write docs/openapi.json and docs/export.schema.json, after a change of the contract
	@$(BIN)/python -m dev.openapi
	@$(BIN)/python -m dev.export_schema

reference: install  ## Write the reference pages of docs/ from the code (settings, routes, events, metrics, problems)
	@$(BIN)/python -m dev.reference

lock: install  ## Refresh the locked versions of all dependencies, or of one: make lock PACKAGE=openai
	$(call compile_locks,.,$(if $(PACKAGE),--upgrade-package $(PACKAGE),--upgrade))
	$(if $(PACKAGE),,$(MAKE) --no-print-directory lock-npm)

# A lock has no addresses: npm takes each package from the registry that the reader has set, and checks its hash.
.PHONY: lock-npm
lock-npm: install  ## Lock the packages of each package.json anew, after a change of it
	@for lock in $$(git ls-files '*package-lock.json'); do (cd "$${lock%/*}" && rm package-lock.json && \
		PATH="$(abspath $(BIN)):$$PATH" npm install --package-lock-only --omit-lockfile-registry-resolved --ignore-scripts \
		--no-audit --no-fund --silent); done

# Without --upgrade, compiling changes no lock that still fits pyproject.toml.
check-locks: install
	rm -rf .dev/locks && mkdir -p .dev/locks/shared
	cp requirements-*.txt .dev/locks && cp shared/requirements.txt .dev/locks/shared
	$(call compile_locks,.dev/locks,)
	for lock in requirements-*.txt shared/requirements.txt; do cmp "$$lock" ".dev/locks/$$lock" || \
		{ echo "$$lock does not fit pyproject.toml: run make lock"; exit 1; }; done

clean:  ## Remove everything that make built, installed or stored
	rm -rf .venv .venv-* .aws-sam .dev .mypy_cache .ruff_cache .pytest_cache $$(readlink .dev/postgres/elsewhere)
