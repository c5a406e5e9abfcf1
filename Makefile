# Each target sets up what it needs, from nothing: a virtual environment, pinned dependencies, the built package.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One build folder for all three builds below: what they share, the kernels of the CPU, is compiled once. So they must
# give the compiler the same flags, and be built by the same Python (no isolation).
BUILD := build/cmake
BUILD_SETTINGS := -C build-dir=$(BUILD) -C cmake.define.FUSESTEP_WERROR=ON
SOURCES := $(shell find cpp cuda python bench tests/cuda -type f -not -path '*/__pycache__/*' -not -path 'bench/results/*')

.PHONY: train test bench gpu cuda wheel docs lint format clean

train: $(BUILD)/.installed
	$(BIN)/fusestep train $(ARGS)

test: $(BUILD)/.installed
	$(BIN)/python tools/check_symbols.py $(BUILD)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal $(ARGS)

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

# The wheel with the CUDA backend, by the nvcc of NVIDIA's packages: no GPU and no driver are needed. Warnings are errors,
# the machine code is what it should be, and the module imports without a driver.
cuda: $(VENV)/.cuda-ready
	rm -rf dist/cuda
	FUSESTEP_NVCC_FROM_PYPI=1 $(BIN)/python -m build --wheel --no-isolation --outdir dist/cuda $(BUILD_SETTINGS) \
	    -C cmake.define.FUSESTEP_EMULATE_CUDA=OFF
	$(BIN)/python tools/check_sass.py $$(find $(BUILD)/cuda -name '*.cu.o')
	tools/check_wheel.sh dist/cuda/fusestep-*.whl '80-real, 90a-real, 80-virtual'

# The wheel without CUDA, and a proof of it: installed beside NumPy alone, imported and used.
wheel: $(VENV)/.ready
	rm -f dist/*.whl
	$(BIN)/python -m build --wheel --no-isolation --outdir dist $(BUILD_SETTINGS) \
	    -C cmake.define.FUSESTEP_CUDA=OFF -C cmake.define.FUSESTEP_EMULATE_CUDA=OFF
	tools/check_wheel.sh dist/fusestep-*.whl

# The documentation, into build/docs; every warning is an error. It reads the built package: half of fusestep.ops is made
# when it is imported.
docs: $(BUILD)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt mkdocs-material 'mkdocstrings[python]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

lint: $(BUILD)/.installed
	$(BIN)/python tools/check_rooms.py
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'cpp/*.h' 'cpp/*.cpp' 'cuda/*.h' 'cuda/*.cu' 'tests/cpp/*.cpp' 'tests/cuda/emulation/*' 'bench/*.cpp')
	$(BIN)/mypy

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'cpp/*.h' 'cpp/*.cpp' 'cuda/*.h' 'cuda/*.cu' 'tests/cpp/*.cpp' 'tests/cuda/emulation/*' 'bench/*.cpp')

clean:
	rm -rf build dist $(VENV)

$(VENV)/.ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --constraint constraints.txt build scikit-build-core pybind11 cmake ninja
	touch $@

# nvcc, and what reads its machine code: 300 MB that nothing but `make cuda` needs.
$(VENV)/.cuda-ready: $(VENV)/.ready
	$(BIN)/pip install --constraint constraints.txt nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime \
	    nvidia-cuda-cccl nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm
	touch $@

# Editable, so that a change of a Python file counts at once; a change of anything else builds what depends on it. The
# kernels of cuda/ are built for emulation only: `make cuda` and `make gpu` compile them for devices.
$(BUILD)/.installed: $(VENV)/.ready CMakeLists.txt $(SOURCES)
	$(BIN)/pip install --constraint constraints.txt --no-build-isolation --editable '.[train,bench,test,lint]' \
	    $(BUILD_SETTINGS) -C cmake.define.FUSESTEP_CUDA=OFF \
	    -C cmake.define.FUSESTEP_EMULATE_CUDA=ON
	touch $@
