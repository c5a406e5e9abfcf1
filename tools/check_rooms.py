"""Proves that every folder of C++ and CUDA sources includes only what its rule allows.

The rules are the table "Where things are" of CONTRIBUTING.md: a row whose last column names folders or headers is the
rule of that row's folder. A folder may always include itself. The rule of the innermost folder counts; a row may also
name one file, whose rule then adds to its folder's.

    python tools/check_rooms.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROW = re.compile(r"^\| `(?P<place>(?:cpp|cuda)/[\w/.]*)` \|[^|]*\|\s*(?P<allowed>[^|\n]*?)\s*\|$", re.MULTILINE)
INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)
SOURCES = (".h", ".cpp", ".cu", ".cuh")


def rules() -> dict[str, list[str]]:
    """What each place may include, both as paths from the root: "cpp/math/" -> ["cpp/math/"]."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    return {row["place"]: [row["place"], *re.findall(r"`([^`]+)`", row["allowed"])] for row in ROW.finditer(text)}


def path_of(include: str) -> str | None:
    """Includes are written from cpp/ or from the root. None: of a toolkit or of the tests."""
    for folder in ("cpp/", ""):
        if (ROOT / folder / include).exists():
            return folder + include
    return None


def allowed_for(file: str, table: dict[str, list[str]]) -> list[str]:
    room = max((place for place in table if place.endswith("/") and file.startswith(place)), key=len, default=None)
    if room is None:
        sys.exit(f"check_rooms: {file} is in no folder that CONTRIBUTING.md has a rule for")
    return table[room] + table.get(file, [])


def main() -> int:
    table = rules()
    files = [p.relative_to(ROOT).as_posix() for top in ("cpp", "cuda") for p in sorted((ROOT / top).rglob("*"))]
    files = [file for file in files if file.endswith(SOURCES)]
    failures = [
        f"{file} includes {path}; its folder may include {', '.join(allowed)}"
        for file in files
        for allowed in [allowed_for(file, table)]
        for path in map(path_of, INCLUDE.findall((ROOT / file).read_text()))
        if path is not None and not path.startswith(tuple(allowed))
    ]
    for failure in failures:
        print(f"check_rooms: {failure}")
    if not failures:
        print(f"check_rooms: {len(files)} files include only what their folders may")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
