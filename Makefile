# The two commands are `make demo` and `make test`; each sets up .venv first if needed.

PY := .venv/bin/python

# Any Python can start the set-up, which then looks for one that fits the environment.
LAUNCHERS := $(PYTHON) python3 python3.12 python3.11 python3.10 python
LAUNCH = for p in $(LAUNCHERS); do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null && break; p=; done; \
	test -n "$$p" || { echo 'No Python found. Remedy: install Python 3.10, 3.11 or 3.12.' >&2; exit 1; }; "$$p"

ifdef PYTHON
export PYTHON
endif

# Demo and tests are CPU work on every machine: mmcv is built without CUDA operators.
CPU := CUDA_VISIBLE_DEVICES=
# Two processes with two threads each, on two cores, slow depthwise convolutions down by a
# factor of hundreds. One thread each keeps the tests' time the same on a busy machine.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

CPP_FILES := $(shell find overlock_mm/ops/csrc tests/ops -name '*.h' -o -name '*.c*pp' -o -name '*.cu*')

.DEFAULT_GOAL := help
.PHONY: help env demo gallery test test-upstream test-gpu test-asan lint format bench bench-gpu bench-networks clean clean-env

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: ## Set up .venv: 3 min, the first time on a machine 13 min (2 cores)
	@$(LAUNCH) tools/setup_env.py

demo: env ## Train and test three small models on drawn images: 15 to 30 min (2 cores)
	$(CPU) $(PY) tools/run_demo.py --work-dir work_dirs/demo

gallery: env ## Make docs/gallery.md anew from the models of `make demo`: 5 min (2 cores)
	$(CPU) $(PY) tools/make_gallery.py --work-dir work_dirs/demo

test: lint ## Lint, type check and all tests
	$(CPU) $(ONE_THREAD) $(PY) -m pytest --durations=15

# An older torch, numpy and setuptools go with them: requirements/upstream.
test-upstream: ## All tests on the original OpenMMLab distributions, in .upstream
	@$(LAUNCH) tools/upstream_checkout.py .upstream
	$(MAKE) -C .upstream env
	cd .upstream && $(CPU) $(ONE_THREAD) .venv/bin/python -m pytest --durations=15

test-gpu: env ## Tests that need a GPU, also under compute-sanitizer where it is installed
	$(PY) -m pytest -m gpu
	@if command -v compute-sanitizer >/dev/null; then \
		compute-sanitizer --error-exitcode 1 $(PY) -m pytest -m 'gpu and not slow' tests/ops; \
	else echo 'compute-sanitizer is not installed: not run.'; fi

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

bench-gpu: env ## The same on a GPU
	$(PY) -m benchmarks run --device cuda

bench-networks: env ## Measure whole networks beside others on the CPU: 30 min (2 cores); docs/networks.md
	$(CPU) $(PY) -m benchmarks networks --device cpu

lint: env ## Ruff (rules and format), clang-format and mypy: 20 s
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	.venv/bin/clang-format --dry-run --Werror $(CPP_FILES)
	$(PY) -m mypy

format: env ## Let ruff and clang-format repair what they can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	.venv/bin/clang-format -i $(CPP_FILES)

clean: ## Remove what tools have cached, and build outputs
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find overlock_mm configs tools tests -name __pycache__ -type d -prune -exec rm -rf {} +

clean-env: ## Remove .venv and .upstream (the wheel cache stays)
	rm -rf .venv .upstream
