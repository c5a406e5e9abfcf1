"""A user's program is clean under mypy --strict and pyright, and its mistakes are found by both."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests/packaging/user_script.py"
MISTAKES = ROOT / "tests/packaging/user_mistakes.py"


def run(command, **environment):
    environment = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


def test_the_script_runs(tmp_path):
    done = run([sys.executable, SCRIPT, tmp_path / "run"], OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="needs mypy: pip install '.[lint]'")
def test_mypy_strict():
    # The project's settings, which are strict, so that it finds what `make types` has found out about torch.
    done = run([sys.executable, "-m", "mypy", SCRIPT, MISTAKES], MYPYPATH=str(ROOT / "python"))
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="needs pyright: pip install '.[typing]'")
def test_pyright(tmp_path):
    for program in (SCRIPT, MISTAKES):
        shutil.copy(program, tmp_path)
    settings = {
        "extraPaths": [str(ROOT / "python")],
        "enableTypeIgnoreComments": False,
        "reportUnnecessaryTypeIgnoreComment": "error",
    }
    project = tmp_path / "pyrightconfig.json"
    project.write_text(json.dumps(settings))
    done = run([sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--project", project])
    assert done.returncode == 0, done.stdout + done.stderr
