# The two commands are `make demo` and `make test`; each sets up .venv first if needed.

PY := .venv/bin/python

# Demo and tests are CPU work on every machine.
CPU := CUDA_VISIBLE_DEVICES=
# Two processes with two threads each, on two cores, slow depthwise convolutions down by a
# factor of hundreds. One thread each keeps the tests' time the same on a busy machine.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# A worker for each core; each takes tests from the slower one when its own are done.
PYTEST := $(ONE_THREAD) $(PY) -m pytest --numprocesses=auto --dist=worksteal --durations=20

CPP_FILES := $(shell find overlock_mm/ops/csrc tests benchmarks -name '*.h' -o -name '*.c*pp' -o -name '*.cu*')

.DEFAULT_GOAL := help
.PHONY: help env demo gallery test test-fast test-newest test-upstream test-install test-gpu test-gpu-sanitizers test-asan lint format docs bench bench-gpu gpu-report bench-networks clean clean-env

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: ## Set up .venv: 3 min; MMCV=compiled compiles mmcv too: 13 min (2 cores)
	@PYTHON='$(PYTHON)' MMCV='$(MMCV)' tools/dev/setup_env.sh

demo: env ## Train and test three small models on drawn images: 15 min (2 cores)
	$(CPU) $(PY) tools/dev/run_demo.py --work-dir work_dirs/demo

gallery: env ## Regenerate docs/gallery.md from the models of `make demo`: 5 min (2 cores)
	$(CPU) $(PY) tools/dev/make_gallery.py --work-dir work_dirs/demo

test: lint ## Lint, type check and all tests: 15 min (2 cores)
	$(CPU) $(PYTEST)

test-fast: env ## The quick tests, for the current change: 3 min (2 cores)
	$(CPU) $(PYTEST) -m 'not slow'

test-newest: ## All tests on the newest releases of torch and of the stack, in .newest
test-upstream: ## All tests on the original OpenMMLab distributions and torch 2.6, in .upstream
test-newest test-upstream: test-%:
	python3 tools/dev/stack_checkout.py $*
	$(MAKE) -C .$* env
	cd .$* && $(CPU) $(PYTEST)

test-install: env ## The README's installation, and an exported file, in new environments: 6 min
	$(CPU) OVERLOCK_TEST_INSTALL=1 $(PY) -m pytest -s tests/docs/test_installation.py

# By hand on a machine without OpenMMLab: the operators and their tests need only torch. Most of
# the time Triton compiles, so four processes share the tests, which small cards have memory for.
test-gpu: env ## Tests that need a GPU: first a few that show whether it works at all, then the others
	$(PY) -m pytest -x -m 'gpu and smoke' tests/ops
	$(PY) -m pytest -n 4 --dist=worksteal -m 'gpu and not smoke and not large and not sanitizer'
	$(PY) -m pytest -m 'gpu and large' tests/ops

test-gpu-sanitizers: env ## The kernels of the GPU under compute-sanitizer
	$(PY) -m pytest -m sanitizer tests/ops

# Sanitizers need GCC's libraries before all others in the process. Leaks are not looked for:
# Python itself keeps memory to its end.
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g
ASAN_LIBRARIES = $(foreach lib,libasan.so libubsan.so libstdc++.so.6,$(shell g++ -print-file-name=$(lib)))

test-asan: env ## Tests of the CPU extension under address and undefined-behaviour sanitizers
	CFLAGS='$(SANITIZE)' LDFLAGS='$(SANITIZE)' FORCE_CUDA=0 \
		$(PY) setup.py -q build --build-base build/asan --build-lib build/asan/lib
	rm -rf build/asan/lib/tests && cp -r tests build/asan/lib
	cd build/asan/lib && LD_PRELOAD='$(ASAN_LIBRARIES)' ASAN_OPTIONS=detect_leaks=0 \
		UBSAN_OPTIONS=print_stacktrace=1 $(CPU) $(ONE_THREAD) $(abspath $(PY)) -m pytest \
		-c $(CURDIR)/pyproject.toml --rootdir . -k 'not reference' \
		tests/ops/test_cpu_backends.py tests/ops/test_border_rule.py

bench: env ## Measure the operators on the CPU; writes benchmarks/results and docs/benchmarks.md
	$(CPU) $(PY) -m benchmarks run --device cpu

# Each command takes its share of the minutes; started again, it resumes where it ended.
TIER ?= 8
bench-gpu: env ## Operators and networks on a GPU in TIER=3, 8 or 30 minutes (8 if not given)
	$(PY) -m benchmarks run --device cuda --tier $(TIER)
	$(PY) -m benchmarks networks --device cuda --tier $(TIER)

gpu-report: env ## Compile the GPU kernels and describe their code, without a GPU: 20 min (2 cores)
	$(CPU) $(PY) -m benchmarks gpu-code

bench-networks: env ## Measure whole networks beside others in all runtimes on the CPU; docs/networks.md
	$(CPU) $(PY) -m benchmarks networks --device cpu

docs: env ## Build the documentation site into build/site
	$(PY) -m mkdocs build --quiet

lint: env docs ## Ruff, clang-format, mypy, import-linter, wording and the site: 30 s
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	.venv/bin/clang-format --dry-run --Werror $(CPP_FILES)
	$(PY) -m mypy
	.venv/bin/lint-imports --no-cache
	$(PY) tools/dev/check_english.py

format: env ## Let ruff and clang-format repair what they can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	.venv/bin/clang-format -i $(CPP_FILES)

clean: ## Remove what tools have cached, and build outputs
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find overlock_mm configs tools tests -name __pycache__ -type d -prune -exec rm -rf {} +

clean-env: ## Remove the environments (the caches of uv and of compiled wheels stay)
	rm -rf .venv .uv .newest .upstream
