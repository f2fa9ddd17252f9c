# Everything runs in one virtual environment, .venv. Stamp files record what is installed in it: the dependencies of the
# service (make serve), those plus the ones of training and tests (make test, make demo), or the service's plus MkDocs
# (make docs).

# Use the first Python that runs, is 3.11 or later, and can create a virtual environment. A pyenv shim may exist but fail
# to run.
PYTHONS := python3.11 python3.12 python3.13 python3.14 python3
IS_USABLE := import ensurepip, sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in $(PYTHONS); do if $$p -c '$(IS_USABLE)' >/dev/null 2>&1; then echo $$p; break; fi; done)
NO_PYTHON := No Python 3.11 or later was found (tried $(PYTHONS)). Install one with its venv module \
	(Debian, Ubuntu: apt install python3 python3-venv; macOS: brew install python), or name one: make PYTHON=/path/to/python
TORCH ?= $(shell grep '^torch==' constraints.txt)
HOST ?= $(or $(CTR_HOST),127.0.0.1)
PORT ?= $(or $(CTR_PORT),8000)
BUNDLE ?= $(or $(CTR_BUNDLE),deploy/demo)
# Use more workers than CPUs, because many tests wait for a server.
TEST_WORKERS ?= $(shell expr $$(nproc) + 1)
USERS ?= 100
RUN_TIME ?= 60s

BIN := .venv/bin
KERNEL_SOURCES := $(wildcard kernel/*.cpp kernel/*.h)
UVICORN_VERSIONS := $(shell sed -n 's/.*"uvicorn>=\([0-9.]*\),.*/\1/p' pyproject.toml; sed -n 's/^uvicorn==//p' constraints.txt)
SERVICE_STAMP := .venv/.service-installed
ALL_STAMP := .venv/.all-installed
DOCS_STAMP := .venv/.docs-installed
COMPOSE := $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)

.PHONY: serve install kernel test parallel-tests test-full parallel-tests-full test-uvicorn test-isa lint demo demo-bundle pipeline bench load soak overload reload latency peers loop-demo up image compose-test docs clean

serve: $(SERVICE_STAMP)
	CTR_BUNDLE=$(BUNDLE) CTR_HOST=$(HOST) CTR_PORT=$(PORT) exec $(BIN)/ctr-serve --print-curl

install: $(ALL_STAMP)

# Builds the kernel again, for example after you have installed a compiler.
kernel: $(SERVICE_STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	$(BIN)/python -c 'import kernel, onnxruntime; kernel.register(onnxruntime.SessionOptions())'

# Runs lint in parallel with the tests that may share the machine, then the tests that measure time, one at a time.
test: $(ALL_STAMP)
	$(MAKE) --jobs 2 lint parallel-tests
	$(BIN)/pytest -m "timing and not full"

parallel-tests: $(ALL_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(TEST_WORKERS) --dist worksteal -m "not timing and not full"

# Also runs the tests marked `full`, and tests 25 times as many examples of each property.
test-full: $(ALL_STAMP)
	$(MAKE) --jobs 2 lint parallel-tests-full
	$(BIN)/pytest -m timing --hypothesis-profile full

parallel-tests-full: $(ALL_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(TEST_WORKERS) --dist worksteal -m "not timing" --hypothesis-profile full

# Tests the lowest supported version of uvicorn and the pinned one, because service/http/protocol.py overrides a private
# method of uvicorn.
test-uvicorn: $(ALL_STAMP)
	set -e; for version in $(UVICORN_VERSIONS); do \
		$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .uvicorn/$$version uvicorn==$$version; \
		echo "uvicorn $$version"; \
		PYTHONPATH=$(CURDIR)/.uvicorn/$$version OMP_NUM_THREADS=1 $(BIN)/pytest tests/service/http tests/service/processes; \
	done

# Runs the tests marked `numeric` once under each instruction set that this CPU has.
test-isa: $(ALL_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.instruction_sets -n auto --dist worksteal

lint: $(ALL_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports

# Runs the whole pipeline on generated data: generate, prepare, train, export and verify. `demo` then serves the bundle,
# and `demo-bundle` writes it to deploy/demo.
demo: BUNDLE = bundles/demo
demo: pipeline
	CTR_BUNDLE=$(BUNDLE) CTR_HOST=$(HOST) CTR_PORT=$(PORT) exec $(BIN)/ctr-serve --print-curl

demo-bundle: BUNDLE = deploy/demo
demo-bundle: pipeline
	$(BIN)/python -m model.experiments.report runs/demo --out experiments/generated/results/stec

pipeline: $(ALL_STAMP)
	$(BIN)/python -m model.data.synthetic.generate --data data
	$(BIN)/ctr-prepare experiments/generated/stec.toml --data data
	$(BIN)/ctr-train experiments/generated/stec.toml --data data --out runs/demo
	$(BIN)/ctr-export runs/demo $(BUNDLE) --data data
	$(BIN)/ctr-verify $(BUNDLE)

bench: $(ALL_STAMP)
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.serving_graph

# Requires a running service (make serve). Sends USERS requests/s for RUN_TIME.
load: $(ALL_STAMP)
	$(BIN)/locust -f loadtest/ctr.py --headless --host http://$(HOST):$(PORT) --bundle $(BUNDLE) \
		--users $(USERS) --spawn-rate 20 --run-time $(RUN_TIME) --candidates 100

# Each scenario starts its own server and writes loadtest/results/<name>.md. The exit code is 1 if a target fails.
soak overload reload latency: $(ALL_STAMP)
	$(BIN)/python -m loadtest.scenarios.$@

# First, serves simulated traffic, collects its events, joins them with the request log, and compares every row of the
# joined log with the simulation. Then retrains a model after each of seven simulated days, with ctr-cycle, while a server
# answers requests without pause. The files are in runs/loop-demo, and the picture is runs/loop-demo/week/week.png.
loop-demo: $(ALL_STAMP)
	$(BIN)/python -m loadtest.loop.demo
	$(BIN)/python -m loadtest.loop.week

# Compares the service with other servers. Installs each of them in its own environment in .peers.
peers: $(ALL_STAMP)
	$(BIN)/python -m loadtest.peers.compare

# Builds the website in build/site, and fails on any warning. `python -m docs.scripts.generate` updates its tables.
docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo 'build/site/index.html'

up:
	$(COMPOSE) up --build

# Set BUILD_FLAGS to pass options to docker build, for example --network host.
image:
	docker build $(BUILD_FLAGS) --tag stec-ctr .

compose-test: $(ALL_STAMP) image
	$(BIN)/python -m deploy.compose_test $(COMPOSE)

clean:
	rm -rf .venv .uvicorn build *.egg-info kernel/_stec*.so

$(BIN)/python:
	$(or $(PYTHON),$(error $(NO_PYTHON))) -m venv .venv

$(SERVICE_STAMP): pyproject.toml constraints.txt $(KERNEL_SOURCES) | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu]'
	touch $@

$(DOCS_STAMP): $(SERVICE_STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

# torch is installed first and separately, so that TORCH can select a build other than the pinned one.
$(ALL_STAMP): pyproject.toml constraints.txt $(KERNEL_SOURCES) | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check '$(TORCH)'
	grep -v '^torch==' constraints.txt > .venv/constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c .venv/constraints.txt -e '.[cpu,train,loadtest,dev]'
	touch $@ $(SERVICE_STAMP)
