"""What a run or a measurement was made on. Nothing that names the machine or its owner."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
from pathlib import Path

import fusestep._core as _core


def describe() -> dict[str, object]:
    """CPU, memory, instruction set, threads and versions, ready for JSON."""
    core = _core.info()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "memory_gib": _memory_gib(),
        # Big arrays on 4 KiB pages are slower for everybody; whether they get huge ones is the system's setting.
        "transparent_hugepages": _chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
        "threads": core["threads"],
        "thread_source": core["thread_source"],
        "simd": core["simd"],
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("fusestep", "torch", "numpy", "nanobind")},
    }


def _cpu_model() -> str:
    try:
        model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        model = None
    return model[1].strip() if model else platform.processor() or "unknown"


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _chosen(path: str) -> str | None:
    """The word in brackets of a setting such as `always [madvise] never`."""
    try:
        chosen = re.search(r"\[(\w+)\]", Path(path).read_text())
    except OSError:
        return None
    return chosen[1] if chosen else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
