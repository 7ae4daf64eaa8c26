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

.DEFAULT_GOAL := help
.PHONY: help env demo test lint format clean clean-env

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: ## Set up .venv: 3 min, the first time on a machine 13 min (2 cores)
	@$(LAUNCH) tools/setup_env.py

demo: env ## Train and test a small detector on drawn images: 12 min (2 cores)
	$(CPU) $(PY) tools/run_demo.py --work-dir work_dirs/demo

test: lint ## Lint, type check and all tests
	$(CPU) $(ONE_THREAD) $(PY) -m pytest --durations=15

lint: env ## Ruff (rules and format) and mypy: 20 s
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: env ## Let ruff repair what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean: ## Remove what tools have cached, and build outputs
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find overlock_mm configs tools tests -name __pycache__ -type d -prune -exec rm -rf {} +

clean-env: ## Remove .venv (the wheel cache stays)
	rm -rf .venv
