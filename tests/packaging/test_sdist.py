"""The source distribution holds every file but measurements, and a wheel can be built from it alone."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
needs_backend = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("build", "scikit_build_core", "pybind11")),
    reason="needs build, scikit-build-core and pybind11",
)
pytestmark = [needs_backend, pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no git checkout")]


def build(kind, source, folder, *settings, **environment):
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", folder, source, *settings]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=900)
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


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_a_wheel_is_built_from_it_in_an_empty_folder(sdist, tmp_path):
    source, wheels, place = tmp_path / "source", tmp_path / "wheels", tmp_path / "installed"
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    next(tmp_path.glob("fusestep-*")).rename(source)
    # Not optimized: quick to compile. What optimized kernels compute is not the question here.
    settings = ["-C", "cmake.build-type=Debug", "-C", "cmake.define.FUSESTEP_CUDA=OFF"]
    wheel = build("wheel", source, wheels, *settings, CXXFLAGS="-O0 -g0")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    code = "import fusestep; print(fusestep.__file__); print(fusestep.ops.grad_norm([__import__('numpy').ones(9)]))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {[str(place), *sys.path]!r}\n{code}"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(place / "fusestep/__init__.py"), "3.0"]
