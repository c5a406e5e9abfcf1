"""Refuses subinterpreters, as soon as it is imported.

From Python 3.12 on, Python itself refuses the core in one. Before, the core would wait for a lock that its own thread
holds.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 12):
    import _xxsubinterpreters as interpreters  # type: ignore[import-not-found]  # CPython's own

    if interpreters.get_current() != interpreters.get_main():
        raise ImportError("fusestep: expected the main interpreter, got a subinterpreter. Use threads or processes.")
