"""Builds and loads nanobind_overhead/, the empty kernel bound with nanobind."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

_SOURCE = Path(__file__).parent / "nanobind_overhead"
_NAME = "nanobind_overhead"


class NotAvailable(Exception):
    """nanobind, CMake or a compiler is missing; the message says which."""


def load() -> ModuleType:
    """Build what has changed since the last time, and import it. Raises NotAvailable."""
    if importlib.util.find_spec("nanobind") is None:
        raise NotAvailable("nanobind is not installed (pip install nanobind)")
    cmake = _program("cmake")
    if cmake is None:
        raise NotAvailable("cmake was not found (pip install cmake)")

    import nanobind  # type: ignore[import-untyped]

    # CMake's cache belongs to one source folder and one Python.
    place = hashlib.sha256(f"{_SOURCE}\n{sys.executable}\n{nanobind.__version__}".encode()).hexdigest()[:16]
    build = _cache() / f"nanobind-{place}"
    configure = [
        cmake,
        "-S", str(_SOURCE),
        "-B", str(build),
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dnanobind_DIR={nanobind.cmake_dir()}",
    ]  # fmt: skip
    ninja = _program("ninja")
    if ninja is not None:
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    _run(configure)
    _run([cmake, "--build", str(build)])
    return _import(build / f"{_NAME}{sysconfig.get_config_var('EXT_SUFFIX')}")


def _program(name: str) -> str | None:
    """The one of this environment if it has it: it need not be activated."""
    return shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fusestep"


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except subprocess.CalledProcessError as error:
        tail = "\n".join(error.stdout.splitlines()[-15:])
        raise NotAvailable(f"building {_SOURCE.name} failed (it needs a C++ compiler):\n{tail}") from error


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(_NAME, path)
    if spec is None or spec.loader is None:
        raise NotAvailable(f"building {_SOURCE.name} left no {path.name}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
