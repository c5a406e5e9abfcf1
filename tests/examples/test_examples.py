"""Every program of examples/ runs, in small."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
HERE = [path for path in EXAMPLES if not path.stem.endswith("_with_trl")]  # test_trl_examples.py runs those


@pytest.mark.parametrize("example", HERE, ids=lambda path: path.stem)
def test_an_example_runs(example, tmp_path):
    arguments = ["--steps", "3"]
    if example.stem == "several_processes":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            arguments += ["--port", str(free.getsockname()[1])]
    command = [sys.executable, str(example), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_there_are_examples():
    assert len(EXAMPLES) >= 10


def test_the_list_names_each_of_them():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"({example.name})" in text for example in EXAMPLES)
