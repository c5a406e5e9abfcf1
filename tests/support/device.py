"""The device that the tests of CUDA run on, and where they cannot run.

FUSESTEP_TEST_DEVICE=cpu, together with the plugin emulated_cuda, tries the tests themselves on a machine without a
device, at small sizes: `FUSESTEP_TEST_DEVICE=cpu PYTHONPATH=tests/support python -m pytest -p emulated_cuda
tests/cuda/test_gpu_attention.py`. test_gpu_harness.py does so.
"""

from __future__ import annotations

import os

import fusestep
import pytest
import torch

DEVICE = os.environ.get("FUSESTEP_TEST_DEVICE", "cuda")
EMULATED = DEVICE == "cpu"

_INFO = fusestep.info()
_REASON = (
    "this build has no CUDA backend"
    if not _INFO["cuda_architectures"]
    else "there is no CUDA device"
    if not _INFO["cuda_devices"]
    else "this torch has no CUDA"
)
NEEDS_A_DEVICE = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not _INFO["cuda_devices"] or not (EMULATED or torch.cuda.is_available()),
        reason=_REASON,
    ),
]
