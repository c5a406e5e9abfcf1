"""The order in which blocks of attention's backward pass add: a program of C++ alone, tests/cpp/test_turns.cpp."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="needs a C++ compiler")
def test_every_block_has_its_turn(tmp_path):
    program = tmp_path / "turns"
    emulation = ROOT / "tests/cuda/emulation"
    compile_ = [*shlex.split(os.environ.get("CXX", "c++")), "-std=c++20", "-O1", f"-I{ROOT}", f"-I{ROOT / 'cpp'}"]
    sources = [ROOT / "tests/cpp/test_turns.cpp", emulation / "emulation.cpp"]
    subprocess.run([*compile_, f"-I{emulation}", *sources, "-o", program], check=True)
    result = subprocess.run([program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
