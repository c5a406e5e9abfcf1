#!/usr/bin/env bash
# Installs a wheel into an empty virtual environment with NumPy alone, and uses it from there.
#   tools/check_wheel.sh WHEEL [CUDA ARCHITECTURES]
# CUDA ARCHITECTURES: those that the wheel must have kernels for, as `fusestep info` prints them.
set -euo pipefail
wheel=$(realpath "$1")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet "$wheel"
cd "$place"
venv/bin/python - <<'PYTHON'
import sys
import time

import numpy as np

begin = time.perf_counter()
import fusestep

seconds = time.perf_counter() - begin
assert seconds < 0.05, f"import fusestep took {1e3 * seconds:.0f} ms beyond NumPy's"
assert "torch" not in sys.modules

param, grad = np.ones(1000, np.float32), np.full(1000, 0.5, np.float32)
exp_avg, exp_avg_sq = np.zeros(1000, np.float32), np.zeros(1000, np.float32)
norm = fusestep.ops.adamw_([param], [grad], [exp_avg], [exp_avg_sq], step=1, lr=0.1, weight_decay=0.0, max_grad_norm=1e9)
assert np.isclose(norm, np.sqrt(1000 * 0.25), rtol=1e-12)
assert np.allclose(param, 0.9, rtol=1e-6)
print(f"check_wheel: imported in {1e3 * seconds:.1f} ms and used with NumPy {np.__version__} alone")
PYTHON
venv/bin/fusestep info | tee info
grep --quiet "^cuda architectures .*${2:-}" info
