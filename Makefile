# `make demo` and `make test` do all the set-up; both create and reuse .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

DEMO_OUTPUT ?= demo-output
# Two at a time: most of the tests wait for processes of their own.
PYTEST_FLAGS ?= -n 2 --dist loadfile

.PHONY: demo test conformance coverage check docs format lock clean

# Installed anew when the project's requirements change.
$(VENV)/.demo: EXTRA := demo
$(VENV)/.installed: EXTRA := dev
$(VENV)/.demo $(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRA)]'
	touch $@

demo: $(VENV)/.demo  ## A real model to a healthy fleet, then a bad release that stops
	$(BIN)/slmops demo --output $(DEMO_OUTPUT) --replace $(DEMO_FLAGS)

test: $(VENV)/.installed  ## All tests
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

conformance: $(VENV)/.installed  ## The public TUF conformance suite, checked out at SUITE, on the agent's client
	test -n "$(SUITE)" || { echo "say where it is checked out: make conformance SUITE=path" >&2; exit 2; }
	test -x $(SUITE)/env/bin/pytest || { $(PYTHON) -m venv $(SUITE)/env && $(SUITE)/env/bin/python -m pip install --quiet -e $(SUITE); }
	$(SUITE)/env/bin/pytest $(SUITE)/tuf_conformance --entrypoint $(CURDIR)/$(BIN)/slmops-tuf-client

coverage: $(VENV)/.installed  ## All tests, and what they ran: the domain whole, 90 % of everything
	$(BIN)/python -m pytest --cov=slmops --cov-report=
	$(BIN)/coverage report --include='src/slmops/domain/*' --fail-under=99
	$(BIN)/coverage report --skip-covered --fail-under=90

check: $(VENV)/.installed  ## Format, lint, import rules, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: $(VENV)/.installed  ## Write the reference pages anew from the code
	$(BIN)/python -m slmops.cli.reference docs
	$(BIN)/python -m slmops.control.openapi docs/openapi.json

format: $(VENV)/.installed  ## Rewrite to the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(VENV)/.installed  ## Write today's versions to constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable | sed -e '/^slmops/d' -e 's/+cpu$$//' > constraints.txt

clean:
	rm -rf $(VENV) demo-output
