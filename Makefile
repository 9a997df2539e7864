# The front door: each target works as the very first command. Decides what runs in which environment; the work is in
# tools/, tests/ and benchmarks/. An active virtual environment is used, else .venv is made.
SHELL := /bin/bash
PYTHON ?= python3
TORCH ?= torch==2.13.0
WORKERS ?= 2
# An active environment other than .venv here. Make can't have a space in a target, so .venv is named relatively.
ACTIVE := $(if $(subst |$(CURDIR)/.venv|,,|$(VIRTUAL_ENV)|),$(VIRTUAL_ENV))
UNUSABLE := $(if $(word 2,$(ACTIVE)),its path has a space,$(if $(ACTIVE),$(if $(wildcard $(ACTIVE)/pyvenv.cfg),,no virtual environment is there)))
ENV := $(if $(UNUSABLE),unusable,$(or $(ACTIVE),.venv))
PY := "$(ENV)/bin/python"
STAMP := .stamp-setup$(if $(ACTIVE),$(subst /,-,$(ENV)))
BUILT := $(STAMP)-built
CSRC := $(wildcard csrc/*/*.cpp csrc/*/*.cu csrc/*/*.h)
FORMATTED := $(CSRC) $(wildcard tests/native/*.cpp tests/native/*.h tools/*.cu)

.PHONY: help setup demo demo-warp test bench models lint format kernels gpu-report sanitize weekly ci clean
help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

setup: $(BUILT)  ## environment, torch (TORCH=torch==2.13.0 unless one is there), this package built in place
demo: $(BUILT)  ## TGAN learns a real clip, is sampled and scored: runs/demo/report.html (ARGS="--help" for options)
	$(PY) -m vgkernels_models demo $(ARGS)
demo-warp: $(BUILT)  ## warp a real clip by its optical flow: runs/demo-warp/report.html (ARGS="--help" for options)
	$(PY) -m vgkernels_models.warp_demo $(ARGS)
test: $(BUILT)  ## the whole test suite on the native kernels, files side by side (ARGS="-k name", WORKERS=2)
	VGKERNELS_REQUIRE_NATIVE=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)
bench: $(BUILT)  ## ops against their PyTorch peers (ARGS="flow_warp --threads 1")
	$(PY) -m benchmarks $(ARGS)
models: $(BUILT)  ## the tiny presets trained and scored, three seeds each; hours. Results in benchmarks/results/models
	$(PY) -m benchmarks.models $(ARGS)
lint: $(STAMP)  ## ruff, clang-format, mypy; changes nothing
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	"$(ENV)/bin/clang-format" --dry-run -Werror $(FORMATTED)
	$(PY) -m mypy
format: $(STAMP)  ## rewrites the sources as lint wants them
	$(PY) -m ruff check --fix-only --quiet .
	$(PY) -m ruff format .
	"$(ENV)/bin/clang-format" -i $(FORMATTED)
# No environment is needed; one that is there has nvdisasm.
KERNELS_PY = $(if $(wildcard $(ENV)/bin/python),$(PY),"$(PYTHON)")
kernels:  ## every .cu alone by nvcc for sm_80, 90, 100, 120: warnings as errors, tools/kernel_budgets.json held
	$(KERNELS_PY) tools/compile_kernels.py
	$(KERNELS_PY) tools/kernel_budgets.py
gpu-report:  ## settle on a GPU what the emulator can't, in 8 minutes: runs/gpu-report (ARGS=--dry-run: on the emulator)
	PYTHON="$(or $(wildcard $(ENV)/bin/python),$(PYTHON))" tools/gpu_report.sh $(ARGS) runs/gpu-report
sanitize: $(BUILT)  ## the test suite on a CPU library with ASan and UBSan (ARGS="tests/test_flow_warp.py")
	PYTHON=$(PY) WORKERS=$(WORKERS) tools/sanitized_suite.sh $(ARGS)
weekly: $(BUILT)  ## the long form of all tests, sanitized, mutated; hours. Keeps what came of it in docs/proof.md
	@mkdir -p runs; rm -f runs/weekly.xml runs/sanitized.xml runs/launched.txt; failed=0; run() { echo "=== $$*"; "$$@" || failed=1; }; \
	run env VG_WEEKLY=1 VGKERNELS_REQUIRE_NATIVE=1 VGKERNELS_LAUNCHED="$(CURDIR)/runs/launched.txt" \
	  $(PY) -m pytest -n $(WORKERS) --dist loadfile --junitxml=runs/weekly.xml; \
	run env PYTHON=$(PY) WORKERS=$(WORKERS) tools/sanitized_suite.sh; \
	run $(PY) tools/launched_kernels.py runs/launched.txt; \
	run $(PY) tools/mutations.py --fresh; \
	run env PYTHON=$(PY) tools/gpu_report.sh --dry-run runs/gpu-report; \
	run $(PY) tools/proof.py record weekly runs/weekly.xml; \
	run $(PY) tools/proof.py record sanitized runs/sanitized.xml; \
	run $(PY) tools/proof.py table; \
	exit $$failed
ci:  ## what CI runs
	bash .ci/run
clean:  ## build products, caches and runs; the environment stays
	rm -rf build runs *.egg-info .stamp-* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f vgkernels/*.so vgkernels/_build_info.json
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

NEEDS_COMPILER = command -v "$(firstword $(CXX))" >/dev/null || { echo "make: no C++ compiler $(firstword $(CXX)) (Debian,\
  Ubuntu: apt install g++); without one: pip install . is pure Python" >&2; exit 1; }

# Metadata or pins changed: install again. Only a kernel changed: compile what is older than its sources.
$(STAMP): $(ENV)/pyvenv.cfg pyproject.toml setup.py constraints.txt tools/setup.sh
	@$(NEEDS_COMPILER)
	@bash tools/setup.sh "$(ENV)" "$(TORCH)"
	@touch $@
$(BUILT): $(STAMP) $(CSRC)
	@$(PY) setup.py --quiet build_ext --inplace
	@touch $@

unusable/pyvenv.cfg:
	$(error VIRTUAL_ENV=$(VIRTUAL_ENV) can't be used ($(UNUSABLE)): deactivate it (unset VIRTUAL_ENV))
.venv/pyvenv.cfg:
	@$(NEEDS_COMPILER)
	@command -v "$(PYTHON)" >/dev/null || \
	  { echo "make: there is no interpreter $(PYTHON): name one with PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "make: Python >= 3.10 is needed; name one with PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "make: python3-venv is missing (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
