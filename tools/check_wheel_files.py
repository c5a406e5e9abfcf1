"""Checks what a Linux wheel holds, without installing it.

    python tools/check_wheel_files.py WHEEL MEGABYTES

It must be smaller than MEGABYTES, run on other Linux distributions (a manylinux tag), bring no library along, and link
nothing but the C and C++ runtime: a bundled CUDA or OpenMP runtime would be a second one beside torch's.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

RUNTIME = re.compile(r"(libc|libm|libgcc_s|libstdc\+\+|libpthread|libdl|librt|ld-linux-[\w-]+)\.so\.\d+")
NEEDED_FILES = ("fusestep/__init__.py", "fusestep/py.typed", "fusestep/_core.pyi", "fusestep/bench/__init__.py")
METADATA = ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")


def linked(library: bytes) -> list[str]:
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(library)
        file.flush()
        output = subprocess.run(["readelf", "--dynamic", file.name], check=True, capture_output=True, text=True).stdout
    return re.findall(r"\(NEEDED\).*\[(.+)\]", output)


def complaints(wheel: Path, megabytes: float) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        libraries = {name: archive.read(name) for name in names if ".so" in Path(name).name}
    found = []
    size = wheel.stat().st_size / 1e6
    if size >= megabytes:
        found.append(f"has {size:.1f} MB, expected less than {megabytes:g}")
    if "manylinux" not in wheel.name:
        found.append("has no manylinux tag: auditwheel did not repair it")
    if [Path(name).name.partition(".")[0] for name in libraries] != ["_core"]:
        found.append(f"expected one library, fusestep/_core, and found {', '.join(libraries) or 'none'}")
    for name, library in libraries.items():
        found += [f"{name} links {other}" for other in linked(library) if not RUNTIME.fullmatch(other)]
    found += [f"{name} is missing" for name in NEEDED_FILES if name not in names]
    found += [f"{name} is missing" for name in METADATA if not any(n.endswith(f".dist-info/{name}") for n in names)]
    strays = [n for n in names if not re.match(r"fusestep/|fusestep-[^/]+\.dist-info/", n) or "__pycache__" in n]
    found += [f"{name} does not belong there" for name in strays]
    return found


def main() -> int:
    wheel = Path(sys.argv[1])
    failures = complaints(wheel, float(sys.argv[2]))
    for failure in failures:
        print(f"check_wheel_files: {wheel.name}: {failure}")
    if not failures:
        size = f"{wheel.stat().st_size / 1e6:.2f} MB"
        print(f"check_wheel_files: {wheel.name}: {size}, links the C and C++ runtime alone")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
