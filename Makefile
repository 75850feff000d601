# make test | test-all | fuzz SECONDS=600 | mutants | versions | support | demo | lint | format |
# docs | docs-tables | clean
# Each makes its own virtual environment where none is there.

VENV := .venv
PYTHON := $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
RUN := $(VENV)/bin/python
READY := $(VENV)/ready

# $(call step,NAME,COMMAND): a failure says which step it was.
step = $(2) || { code=$$?; echo "make $@: $(1) failed with exit code $$code" >&2; exit $$code; }

.PHONY: test test-all fuzz mutants versions support demo lint format docs docs-tables clean

# The fast suite. test-all adds every combination of parameters, more drawn examples, and generated
# code where the fast suite runs a rewritten graph as it is.
test: $(READY)
	@$(call step,the fast suite,$(RUN) -m pytest -n 2 --dist worksteal -m "not exhaustive" $(PYTEST_ARGS))

test-all: $(READY)
	@$(call step,the whole suite,$(RUN) -m pytest -n 2 --dist worksteal --codegen $(PYTEST_ARGS))

# Random programs until the time is over; a case file for each that fails.
SECONDS := 600
fuzz: $(READY)
	$(RUN) -m tests.fuzz --seconds $(SECONDS) $(FUZZ_ARGS)

# Faults planted in the package: each must be caught. Writes the table of docs/fuzzing.md.
mutants: $(READY)
	$(RUN) -m tests.fuzz --mutants --docs docs/fuzzing.md

# A part of the suite with each version of torch, in environments of their own (6 GB each), one
# after the other. VERSIONS_ARGS="--only 2.12 --remove" runs one and deletes its environment.
versions: $(READY)
	$(RUN) -m tests.versions --write docs/measured/versions.md $(VERSIONS_ARGS)

# Each pipeline with each feature. Needs torchao beside the development tools.
support: $(READY)
	$(RUN) -m tests.support --write docs/measured/support.md $(SUPPORT_ARGS)

demo: $(READY)
	@echo "importing torch and diffusers ..."
	$(RUN) -m examples.demo $(DEMO_ARGS)

lint: $(READY)
	@$(call step,ruff check,$(RUN) -m ruff check .)
	@$(call step,ruff format --check,$(RUN) -m ruff format --check .)
	@$(call step,mypy,$(RUN) -m mypy)
	@$(call step,lint-imports,$(VENV)/bin/lint-imports)

format: $(READY)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# The site, into site/: a broken link or an unknown name is an error.
docs: docs-tables $(VENV)/ready-docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

# The parts of the documents that come from the code.
docs-tables: $(READY)
	$(RUN) -m examples.write_docs

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and none was found on the PATH" >&2; exit 1; }
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@echo "installing torch and the development tools into $(VENV): some minutes, once"
	$(RUN) -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/ready-docs: $(READY)
	$(RUN) -m pip install -q -c constraints.txt -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) site demo-output .mypy_cache .pytest_cache .ruff_cache
