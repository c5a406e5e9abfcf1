"""Uses an installed fusestep with NumPy alone: what every wheel must pass, on every platform.

python tools/use_with_numpy.py
"""

from __future__ import annotations

import importlib.metadata
import statistics
import subprocess
import sys

import fusestep
import numpy as np

# Time of the processor, not of the clock: what else runs on the machine does not count.
MEASURE = """
import time, numpy
begin = time.process_time()
import fusestep
print(time.process_time() - begin)
"""


def import_seconds() -> float:
    """What `import fusestep` costs beyond `import numpy`."""
    return statistics.median(float(subprocess.check_output([sys.executable, "-c", MEASURE])) for _ in range(5))


def main() -> None:
    assert "torch" not in sys.modules
    assert fusestep.__version__ == importlib.metadata.version("fusestep")

    param, grad = np.ones(1000, np.float32), np.full(1000, 0.5, np.float32)
    exp_avg, exp_avg_sq = np.zeros(1000, np.float32), np.zeros(1000, np.float32)
    norm = fusestep.ops.adamw_(
        [param], [grad], [exp_avg], [exp_avg_sq], step=1, lr=0.1, weight_decay=0.0, max_grad_norm=1e9
    )
    assert np.isclose(norm, np.sqrt(1000 * 0.25), rtol=1e-12)
    assert np.allclose(param, 0.9, rtol=1e-6)

    # Equal scores: attention is the mean of the values.
    query, key = np.zeros((1, 2, 3, 16), np.float32), np.ones((1, 2, 5, 16), np.float32)
    value = np.random.default_rng(0).standard_normal((1, 2, 5, 16), dtype=np.float32)
    out, _ = fusestep.ops.attention(query, key, value)
    assert np.allclose(out, value.mean(axis=2, keepdims=True), atol=1e-6)

    seconds = import_seconds()
    assert seconds < 0.05, f"import fusestep took {1e3 * seconds:.0f} ms beyond NumPy's"
    simd = fusestep.info()["simd"]
    print(f"use_with_numpy: imported in {1e3 * seconds:.1f} ms, used with NumPy {np.__version__} alone, on {simd}")


if __name__ == "__main__":
    main()
