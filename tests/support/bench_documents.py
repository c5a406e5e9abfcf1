"""Documents of `fusestep bench --json`, made by hand."""

from __future__ import annotations

from fusestep.bench import command

MACHINE = {
    "date": "2026-01-01",
    "cpu": "A CPU",
    "cpus": 2,
    "architecture": "x86_64",
    "memory_gib": 8.0,
    "transparent_hugepages": None,
    "threads": 2,
    "thread_source": "own pool",
    "simd": "avx2",
    "python": "3.11",
    "versions": {"fusestep": "0.1.0", "torch": "2.6"},
}


def document(*results, quick=False, **machine):
    return {
        "schema": command.SCHEMA,
        "what": "optim",
        "quick": quick,
        "machine": {**MACHINE, **machine},
        "contestants": {},
        "results": list(results),
    }
