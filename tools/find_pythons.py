"""Prints the Pythons of this machine that a wheel can be built for: one a line, the newest of each version.

Looks on PATH, among pyenv's versions and among uv's. A Python counts if it runs and has venv, pip and its C headers.
The one that runs this program is among them only where there is no other: `make wheel` builds for it anyway, but not
from the source distribution alone.

    python tools/find_pythons.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

MINORS = range(10, 15)  # requires-python, and the classifiers of pyproject.toml
PROBE = (
    "import ensurepip, os, sys, sysconfig, venv;"
    "assert os.path.exists(os.path.join(sysconfig.get_path('include'), 'Python.h'));"
    "print(*sys.version_info[:2], sys.executable)"
)


def candidates(minor: int) -> list[Path]:
    """Where Python 3.`minor` may be, the newest of each folder first."""
    on_path = shutil.which(f"python3.{minor}")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    uv = Path.home() / ".local/share/uv/python"
    managed = [*pyenv.glob(f"3.{minor}.*/bin/python3"), *uv.glob(f"cpython-3.{minor}.*/bin/python3")]
    managed.sort(key=lambda path: [int(part) if part.isdigit() else 0 for part in str(path).split(".")], reverse=True)
    return [Path(on_path), *managed] if on_path else managed


def executable(python: Path, minor: int) -> str | None:
    """The interpreter behind `python`, or None if no wheel can be built for it."""
    # pyenv's shims exist for versions that are not switched on; they fail when they are run.
    done = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, check=False)
    found = done.stdout.split(maxsplit=2)
    return found[2].strip() if done.returncode == 0 and found[:2] == ["3", str(minor)] else None


def main() -> int:
    others = [
        next((path for path in (executable(python, minor) for python in candidates(minor)) if path), None)
        for minor in MINORS
        if minor != sys.version_info.minor
    ]
    print(*(filter(None, others) if any(others) else [sys.executable]), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
