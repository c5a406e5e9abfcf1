#!/usr/bin/env bash
# Installs a wheel into an empty virtual environment with NumPy alone, and uses it from there.
#   tools/check_wheel.sh WHEEL [CUDA ARCHITECTURES]
# CUDA ARCHITECTURES: those that the wheel must have kernels for, as `fusestep info` prints them.
# PYTHON: the interpreter; the one that the wheel is for.
set -euo pipefail
wheel=$(realpath "$1")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
begin=${EPOCHREALTIME/[.,]/}
"$place/venv/bin/pip" install --quiet "$wheel"
echo "check_wheel: $(basename "$wheel") and NumPy installed in $(( (${EPOCHREALTIME/[.,]/} - begin) / 1000 )) ms"
cd "$place"
venv/bin/python - <<'PYTHON'
import importlib.metadata
import statistics
import subprocess
import sys

import numpy as np

# Time of the processor, not of the clock: what else runs on the machine does not count.
MEASURE = """
import time, numpy
begin = time.process_time()
import fusestep
print(time.process_time() - begin)
"""
times = [float(subprocess.check_output([sys.executable, "-c", MEASURE])) for _ in range(5)]
seconds = statistics.median(times)
assert seconds < 0.05, f"import fusestep took {1e3 * seconds:.0f} ms beyond NumPy's"

import fusestep

assert "torch" not in sys.modules
assert fusestep.__version__ == importlib.metadata.version("fusestep")

param, grad = np.ones(1000, np.float32), np.full(1000, 0.5, np.float32)
exp_avg, exp_avg_sq = np.zeros(1000, np.float32), np.zeros(1000, np.float32)
norm = fusestep.ops.adamw_([param], [grad], [exp_avg], [exp_avg_sq], step=1, lr=0.1, weight_decay=0.0, max_grad_norm=1e9)
assert np.isclose(norm, np.sqrt(1000 * 0.25), rtol=1e-12)
assert np.allclose(param, 0.9, rtol=1e-6)
print(f"check_wheel: imported in {1e3 * seconds:.1f} ms and used with NumPy {np.__version__} alone")
PYTHON
venv/bin/fusestep info | tee info
grep --quiet "^cuda architectures .*${2:-}" info
