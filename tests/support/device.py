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


def captured(step):
    """`step`, which works on the same tensors every time, as a CUDA graph to be replayed. Under emulation: itself."""
    if EMULATED:
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
