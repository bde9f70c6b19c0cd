# make demo: the whole pipeline on the embedded base model; make test: every check. Both install what they need.
PYTHON ?= python3
# Relative, because the folder's path may hold blanks.
BIN := .venv/bin
# A stage's command is `python stages/…`: dvc must find the environment's python first.
export PATH := $(CURDIR)/$(BIN):$(PATH)
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test format share setup-cache clean

demo: .venv/installed
	$(BIN)/dvc repro
	$(BIN)/python -m sqlora summary

# The report's pages are tested in a headless Chromium (Debian: apt-get install chromium); without one these tests skip.
test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses 2 --dist loadfile

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Sends every committed run to the default remote: make share; the first time: make share REMOTE=s3://bucket/folder
share: .venv/installed
	$(BIN)/python -m sqlora share $(if $(REMOTE),"$(REMOTE)")

# Chooses how artifacts/ shares its bytes with DVC's cache: make setup-cache, or make setup-cache LINK=copy
setup-cache: .venv/installed
	$(BIN)/python -m sqlora setup-cache $(if $(LINK),--type "$(LINK)")

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else \
		"error: $(PYTHON) is Python %d.%d; sqlora needs 3.11 to 3.13. Name another: make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet -r requirements.txt
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(PIP) install --quiet -r requirements-dev.txt
	@touch $@

clean:
	rm -rf .venv .sqlora artifacts
