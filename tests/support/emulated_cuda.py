"""A pytest plugin that puts the module with emulated CUDA kernels (tests/cuda) in the place of fusestep._core.

Then every tensor in CPU memory counts as one on a device, and the tests written for the CPU run the kernels of cuda/:
`PYTHONPATH=tests/support python -m pytest -p emulated_cuda tests/ops/test_norm_clip.py`. test_cuda_emulated.py does so.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import sys
from pathlib import Path


def module_file() -> Path | None:
    """The emulated module, where the build made one (FUSESTEP_EMULATE_CUDA=ON)."""
    spec = importlib.util.find_spec("fusestep")
    for folder in spec.submodule_search_locations if spec else ():
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            file = Path(folder) / "_emulated_cuda" / f"_core{suffix}"
            if file.exists():
                return file
    return None


def counters() -> ctypes.CDLL:
    """The emulation's own functions (emulation.cpp): uploads, live allocations, captures."""
    library = ctypes.CDLL(str(module_file()))
    for name in ("emulation_live_allocations", "emulation_uploads"):
        getattr(library, name).restype = ctypes.c_longlong
    return library


def install() -> None:
    file = module_file()
    if file is None:
        raise ImportError("fusestep was built without FUSESTEP_EMULATE_CUDA")
    loader = importlib.machinery.ExtensionFileLoader("fusestep._core", str(file))
    spec = importlib.util.spec_from_file_location("fusestep._core", file, loader=loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fusestep._core"] = module
    loader.exec_module(module)


def pytest_configure(config):
    install()
    import tolerances

    tolerances.WEIGHTS_ARE_STORED = {"float16", "bfloat16"}
