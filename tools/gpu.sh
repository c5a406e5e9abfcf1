#!/usr/bin/env bash
# Everything that needs a GPU, in one go and without a network: builds with what is installed (torch, pybind11,
# scikit-build-core, nvcc), tests on the device, looks for memory errors, races and uninitialised reads, and measures.
# The figures go to bench/results/, under the device's name. `make gpu`; PYTHON=... chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

"$python" -m pip install --quiet --no-index --no-deps --no-build-isolation --target "$place/site" . \
    --config-settings cmake.define.FUSESTEP_CUDA=ON --config-settings build-dir=build/gpu
export PYTHONPATH="$place/site"

"$python" -m fusestep info
"$python" -m pytest -q -m gpu tests
"$python" -m pytest -q tests/ops/test_bits.py tests/ops/test_ops_optim.py  # AVX-512 too, where this CPU has it

sanitizer=$(command -v compute-sanitizer || true)
if [ -n "$sanitizer" ]; then
    for tool in memcheck racecheck initcheck; do
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" --error-exitcode 1 "$python" tools/gpu_smoke.py
    done
else
    echo "gpu: compute-sanitizer was not found, nothing was sanitized"
fi

name=$("$python" -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-"))')
"$python" bench/gpu.py "bench/results/$name.json"
