# MASS: every target sets up what it needs. A bare `make` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What the built parts (C pool, launcher, protobuf code) are made from.
SOURCES := pyproject.toml setup.py $(wildcard proto/mass/v1/*.proto) \
	$(wildcard allocator/*.c) $(wildcard allocator/*.h) allocator/build.py
BUILD_NEEDS := "setuptools>=77" "cffi>=1.17" "grpcio-tools>=1.80"

.DEFAULT_GOAL := help
.PHONY: help run demo test env check lint types imports proto proto-breaking c-warnings wheel-test \
	test-c test-vm e2e sim sim-memory bench bench-oom bench-sizing clean prerequisites

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

prerequisites:
	@command -v $(PYTHON) >/dev/null || { echo "mass: $(PYTHON) is missing; on Debian: apt-get install python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "mass: Python 3.11 or newer is needed, this is $$($(PYTHON) -V); on Debian 12: apt-get install python3"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "mass: Python's venv is missing; on Debian: apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' || { echo "mass: Python's headers are missing; on Debian: apt-get install python3-dev"; exit 1; }
	@command -v $${CC:-gcc} >/dev/null || { echo "mass: a C compiler is missing; on Debian: apt-get install gcc libc6-dev"; exit 1; }
	@command -v git >/dev/null || { echo "mass: git is missing; on Debian: apt-get install git"; exit 1; }

# A stamp is newer than all it was made from, so a second run has nothing to do.
$(VENV)/.stamp-run: $(SOURCES) | prerequisites
	@echo "mass: setting up $(VENV) (once, a minute or two)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(BUILD_NEEDS)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[controller]'
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-run
	@echo "mass: adding what the tests and checks need"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[dev]'
	@touch $@

run: $(VENV)/.stamp-run ## controller and agent on this machine, with a live view
	@$(BIN)/mass dev $(ARGS)

demo: $(VENV)/.stamp-run ## a small workload, told as it happens, in less than a minute
	@$(BIN)/mass demo

env: $(VENV)/.stamp-dev ## the development environment in .venv

test: env ## all tests
	@$(BIN)/python -m pytest $(ARGS)

test-c: env ## the tests of the C parts only
	@$(BIN)/python -m pytest tests/allocator $(ARGS)

test-vm: env ## cgroup v2 on a real kernel, in a virtual machine (needs qemu-system-x86, busybox-static)
	@$(BIN)/python -m pytest tests/vm $(ARGS)

e2e: env ## the tests with real processes only
	@$(BIN)/python -m pytest tests/e2e $(ARGS)

sim: env ## a simulated cluster: SEED=7 STEPS=1000 tells one story, SEEDS=5000 looks for bad ones
	@PYTHONPATH=tests $(BIN)/python -m sim --seed $(or $(SEED),1) --steps $(or $(STEPS),300) \
		--seeds $(or $(SEEDS),1)

sim-memory: env ## memory policies on a simulated node; ARGS='--policies --families all --seeds 10'
	@$(BIN)/python benchmarks/sim_memory.py $(ARGS)

check: lint types imports proto c-warnings wheel-test ## every static check, and the wheel

lint: env ## ruff
	@$(BIN)/ruff check .

types: env ## mypy, strict
	@$(BIN)/mypy

imports: env ## the direction of imports
	@PYTHONPATH=client $(BIN)/lint-imports

proto: env ## buf: style of the .proto files, and no breaking change since the last release
	@cd proto && ../$(BIN)/buf lint
	@$(BIN)/python tests/support/proto_breaking.py $(BIN)/buf

c-warnings: env ## the C parts with every warning an error, and the specification's own line
	@for file in allocator/*.c; do \
		$${CC:-gcc} -std=c11 -O2 -Wall -Wextra -Wconversion -pedantic -Werror \
			-c -o /dev/null $$file || exit 1; done
	@cd allocator && gcc -shared -o memory_allocator.so -fPIC memory_allocator.c -lpthread \
		&& nm -D memory_allocator.so | grep -c -E ' T (allocate|reallocate|free)_memory$$| T reset_memory_pool$$' \
		| grep -qx 4 && rm memory_allocator.so

wheel-test: env ## build the wheel and try it from an empty folder, in an environment of its own
	@$(BIN)/python tests/support/try_wheel.py

bench-oom: env ## memory-hungry tasks on one small node, beside GNU parallel: ARGS="--seeds 1,2"
	@$(BIN)/python benchmarks/oom.py $(ARGS)

bench: env ## figures: table and JSON, one benchmark at a time
	@for file in $(filter-out %/oom.py %_predictor.py %_yardstick.py,$(wildcard benchmarks/[a-z]*.py)); do echo "== $$file"; $(BIN)/python $$file || exit 1; done

bench-sizing: env ## learned sizing on traces: DATA=DIR_OR_CSV, ARGS="--feedback trace --input files"
	@$(BIN)/python benchmarks/sizing.py $(DATA) $(ARGS)

clean: ## remove what was built
	rm -rf $(VENV) build dist *.egg-info client/mass/v1/*_pb2* allocator/_pool*.so allocator/_pool.c \
		allocator/mass-launcher .pytest_cache .mypy_cache .ruff_cache .hypothesis
