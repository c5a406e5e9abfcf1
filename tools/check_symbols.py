"""Proves that no code compiled for one instruction set can be picked up by another.

The linker keeps one copy of a function that several objects emit (inline functions, templates). If an object compiled
for AVX-512 emits one that others share, its copy may win, and a CPU without AVX-512 dies of it. So the objects of one
instruction set may define, for others to see, nothing but functions in their own namespace.

    python tools/check_symbols.py BUILD_DIR
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ISAS = (
    "scalar",
    "avx2",
    "avx512",
    "neon",
    "amx_bf16_on_scalar",
    "avx512_bf16_on_avx2",
    "avx512_bf16",
    "amx_bf16",
)


def foreign_symbols(isa: str, object_file: Path) -> list[str]:
    """Symbols that `object_file` defines for others and that are not in fusestep::<isa>."""
    # Mangled names say the namespace plainly: _ZN8fusestep4avx2... is fusestep::avx2::...
    output = subprocess.run(
        ["nm", "--defined-only", "--extern-only", str(object_file)], check=True, capture_output=True, text=True
    ).stdout
    # DW.ref.*: addresses of the C++ runtime's own functions, the same in every object.
    allowed = (f"_ZN8fusestep{len(isa)}{isa}", "DW.ref.")
    return [line for line in output.splitlines() if not line.split()[-1].startswith(allowed)]


def main() -> int:
    build_dir = Path(sys.argv[1])
    objects = [(isa, path) for isa in ISAS for path in sorted(build_dir.glob(f"CMakeFiles/fusestep_{isa}.dir/**/*.o"))]
    if len({isa for isa, _ in objects}) < 2:
        print(f"check_symbols: expected objects of several instruction sets under {build_dir}, found {len(objects)}")
        return 2
    failures = [(path, symbol) for isa, path in objects for symbol in foreign_symbols(isa, path)]
    for path, symbol in failures:
        print(f"check_symbols: {path}: {symbol}")
    if not failures:
        print(f"check_symbols: {len(objects)} objects emit nothing that another instruction set could pick up")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
