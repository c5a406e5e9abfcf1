"""Proves that the source distribution is complete: with it alone, the same wheel can be built.

Every file of this tree that the build read (ninja's log of dependencies, CMake's own inputs) and every file that the
wheel took over must be in the archive, byte for byte.

    python tools/check_sdist.py SDIST BUILD_DIR WHEEL
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOT_OURS = ("build/", "dist/", ".venv/")
WHEEL_FOLDERS = {"fusestep/bench/": "bench/", "fusestep/": "python/fusestep/"}  # as in tool.scikit-build.wheel.packages


def members(sdist: Path) -> dict[str, bytes]:
    with tarfile.open(sdist) as archive:
        files = [member for member in archive if member.isfile()]
        return {member.name.partition("/")[2]: archive.extractfile(member).read() for member in files}


def read_by_the_build(build_dir: Path) -> set[str]:
    """Paths from the root."""
    found = set()
    for tool in (["deps"], ["inputs", "all"], ["query", "build.ninja"]):
        done = subprocess.run(["ninja", "-C", build_dir, "-t", *tool], check=True, capture_output=True, text=True)
        for line in done.stdout.splitlines():
            path = (build_dir / line.strip(" |")).resolve()
            # The log also holds what is no longer built; a file that is gone was not read this time.
            if path.is_file() and path.is_relative_to(ROOT):
                found.add(path.relative_to(ROOT).as_posix())
    return {path for path in found if not path.startswith(NOT_OURS)}


def sources_of(wheel: Path) -> dict[str, bytes]:
    """What the wheel holds, under the paths that it has in this tree."""
    found = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            folder = next((folder for folder in WHEEL_FOLDERS if name.startswith(folder)), None)
            if folder and not name.endswith(".so"):
                found[WHEEL_FOLDERS[folder] + name.removeprefix(folder)] = archive.read(name)
    return found


def main() -> int:
    sdist, build_dir, wheel = (Path(argument).resolve() for argument in sys.argv[1:])
    held = members(sdist)
    needed = {path: (ROOT / path).read_bytes() for path in read_by_the_build(build_dir)} | sources_of(wheel)
    failures = [
        f"{path} is {'another file' if path in held else 'missing'}"
        for path, content in sorted(needed.items())
        if held.get(path) != content
    ]
    failures += [f"{path} does not belong there" for path in held if path.startswith(NOT_OURS)]
    for failure in failures:
        print(f"check_sdist: {sdist.name}: {failure}")
    if not failures:
        print(f"check_sdist: {sdist.name} holds all {len(needed)} files that the wheel was made of")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
