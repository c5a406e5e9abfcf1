"""`import fusestep` is fast, needs NumPy alone, and knows its version from one place."""

from __future__ import annotations

import importlib.metadata
import re
import runpy
import subprocess
import sys
from pathlib import Path

import fusestep
import pytest

ROOT = Path(__file__).parents[2]
HEAVY = [
    "torch",
    "matplotlib",
    "tqdm",
    "safetensors",
    "jinja2",
    "rich",
    "transformers",
    "peft",
    "lightning",
    "scipy",
    "pandas",
]


def test_import_costs_less_than_50_ms_beyond_numpy():
    import_seconds = runpy.run_path(str(ROOT / "tools/use_with_numpy.py"))["import_seconds"]
    assert import_seconds() < 0.05


@pytest.mark.parametrize("name", ["fusestep", "fusestep.ops", "fusestep.schedules", "fusestep.reference"])
def test_nothing_heavy_is_imported(name):
    code = f"import sys, {name}; print(*(m for m in {HEAVY} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_version_has_one_source():
    declared = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert [fusestep.__version__] == declared == [importlib.metadata.version("fusestep")]
    assert fusestep.info()["version"] == fusestep.__version__
    written = subprocess.run(
        ["grep", "-rlF", f'"{fusestep.__version__}"', "python", "cpp", "cuda", "CMakeLists.txt", "--include=*.py",
         "--include=*.h", "--include=*.cpp", "--include=*.txt"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert written.stdout == ""
