# Each target makes its own virtual environment first; PYTHON picks the interpreter (CPython >= 3.11).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DURATION ?= 300
WORKERS ?= 2

.PHONY: demo test accelerate pure test-accelerated fuzz cache-check lint types check bench bench-far profile regress
.PHONY: driver-suites driver-suites-languages reference clean fuzz-protocol chaos soak
.DEFAULT_GOAL := help

help: ## This list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(BIN)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "pgnear needs CPython >= 3.11; set PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[demo,test,bench]'
	@touch $@

demo: $(BIN)/.installed ## A PostgreSQL, some data and a pgnear in front of them
	@exec $(BIN)/pgnear demo $(ARGS)

test: $(BIN)/.installed ## The whole test suite, in WORKERS processes (ARGS='-k name' for a part of it, in one)
	$(BIN)/python -m pytest $(if $(ARGS),$(ARGS),-n $(WORKERS) --dist loadfile)

accelerate: $(BIN)/.installed ## Compile the hot path in place (needs a C compiler); the sources stay what they are
	PATH=$(CURDIR)/$(BIN):$$PATH ACCELERATE=1 $(BIN)/python setup.py --quiet build_ext --inplace

pure: ## Remove what accelerate made
	rm -f pgnear__mypyc*.so pooler/*.so pooler/*/*.so protocol/*.so

test-accelerated: accelerate ## The whole test suite on the compiled hot path, which is removed afterwards
	$(BIN)/python -m pytest $(ARGS); status=$$?; $(MAKE) pure; exit $$status

fuzz: $(BIN)/.installed ## Scripts of many clients, pooled beside private, for DURATION seconds (ARGS='--replay FILE')
	$(BIN)/python -m tests.fuzz --duration $(DURATION) $(ARGS)

fuzz-protocol: $(BIN)/.installed ## Bytes nobody would send, at framing, login and sessions, for DURATION seconds (atheris: pip install .[fuzz])
	$(BIN)/python -m tests.fuzz_protocol --duration $(DURATION) $(ARGS)

chaos: $(BIN)/.installed ## A bank's transfers while one thing after another breaks; writes docs/chaos.md
	$(BIN)/python -m tests.chaos --report docs/chaos.md $(ARGS)

soak: DURATION = 600
soak: $(BIN)/.installed ## Mixed load and faults at random for DURATION seconds (600); in the end nothing is kept
	$(BIN)/python -m tests.chaos --soak --duration $(DURATION) $(ARGS)

cache-check: $(BIN)/.installed ## Writers and readers of versions through faults, for DURATION seconds: status 1 on a stale answer
	$(BIN)/python -m tests.consistency --duration $(DURATION) $(ARGS)

lint: $(BIN)/.installed ## ruff and the import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(BIN)/.installed ## mypy --strict
	$(BIN)/mypy

check: lint types test ## Everything that CI runs

bench: $(BIN)/.installed ## Everything that bench/RESULTS.md says (ARGS=--goals: six minutes; ARGS=--quick: one)
	$(BIN)/python -m bench $(ARGS)

bench-far: $(BIN)/.installed ## Round trips and time of a far-away database: direct, PgBouncer, pgnear; some four minutes
	$(BIN)/python -m bench.far $(ARGS)

profile: $(BIN)/.installed ## A flame graph of pgnear under load (ARGS='--load forward --mode extended')
	$(BIN)/python -m bench.profile $(ARGS)

regress: $(BIN)/.installed ## PostgreSQL's own regression suite, directly and through pgnear; writes docs/regress.md
	$(BIN)/python -m tests.suites.regress $(ARGS)

driver-suites: $(BIN)/.installed ## asyncpg's, pg8000's and psycopg2's own tests, likewise, and others by name; writes docs/driver-suites.md
	$(BIN)/python -m tests.suites.drivers $(ARGS)

driver-suites-languages: $(BIN)/.installed ## The same of drivers of C, C++, ODBC, JavaScript, Go, PHP, Ruby, Perl, Java, Rust; writes docs/driver-suites-languages.md
	$(BIN)/python -m tests.suites.languages $(ARGS)

reference: $(BIN)/.installed ## Regenerate the configuration table, the example file and the JSON schema
	$(BIN)/python -m config.reference
	$(BIN)/python -m protocol.reference

clean: ## Remove what the other targets made
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
