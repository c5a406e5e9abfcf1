"""The source distribution holds every file of the repository but measurements.

That wheels are built from it alone, in an empty folder, is proven where there is time for it: make wheel, release.yml.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
needs_backend = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("build", "scikit_build_core", "pybind11")),
    reason="needs build, scikit-build-core and pybind11",
)
pytestmark = [needs_backend, pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no git checkout")]


def build(kind, source, folder, *settings):
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", folder, source, *settings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


def test_it_holds_every_file_of_the_repository(sdist):
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    tracked = {path for path in listed.splitlines() if (ROOT / path).is_file()}
    with tarfile.open(sdist) as archive:
        held = {member.name.partition("/")[2] for member in archive if member.isfile()}
    missing = {path for path in tracked - held if not path.startswith("bench/results/")}
    assert missing == set()
    assert not [path for path in held if path.startswith(("build/", "dist/", ".venv/", ".git/"))]
