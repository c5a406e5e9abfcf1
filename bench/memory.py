"""How much memory a step takes on top of what is there before it."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def peak_growth(step: Callable[[], object]) -> int | None:
    """Bytes by which the resident memory of this process peaks during step() above what it is before.

    The kernel keeps the peak itself (VmHWM), so nothing short-lived is missed; "5" in clear_refs sets it back to the
    present value. The kernel counts in batches of about 64 pages a thread: differences below 256 KiB a thread mean
    nothing. None where there is no such thing to ask.
    """
    try:
        _return_free_memory()
        _CLEAR_REFS.write_text("5")
        before = _peak()
        step()
        return _peak() - before
    except OSError:
        return None


def _return_free_memory() -> None:
    """Give free heap memory back, else a step could hide its temporaries in what an earlier one has freed."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)


def _peak() -> int:
    kib = re.search(r"VmHWM:\s+(\d+)", _STATUS.read_text())
    if kib is None:
        raise OSError("no VmHWM in /proc/self/status")
    return int(kib[1]) * 1024
