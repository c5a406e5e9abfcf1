"""CONTRIBUTING.md's recipe for a new optimizer, followed: ADADELTA is added to a copy of the tree, built, and tested.

What is added is in recipe/. No test and no other source of the copy is changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed: the build needs it")

ROOT = Path(__file__).parents[2]
RECIPE = Path(__file__).parent / "recipe"

# Whose cases come from tests/support/cases.py, so that the new row makes tests of its own in them.
TESTS = [
    "tests/ops/test_ops_optim.py",
    "tests/ops/test_ops_16bit.py",
    "tests/ops/test_ops_8bit.py",
    "tests/ops/test_bits.py",
    "tests/ops/test_reference.py",
    "tests/torch/test_torch_optim.py",
    "tests/torch/test_torch_state_dict.py",
    "tests/torch/test_torch_bad_input.py",
]

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no git checkout"),
]


def run(*command, cwd, **environment):
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # cmake and ninja among them
    environment = {**os.environ, "PATH": tools, **environment}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    return done.stdout


def insert(path, before, text):
    source = path.read_text(encoding="utf-8")
    assert source.count(before) == 1, f"{path} has no single {before!r}"
    path.write_text(source.replace(before, text + before), encoding="utf-8")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of this tree with one optimizer more, built."""
    tree = tmp_path_factory.mktemp("recipe")
    for path in run("git", "ls-files", cwd=ROOT).splitlines():
        if (ROOT / path).is_file():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, tree / path)

    shutil.copyfile(RECIPE / "adadelta.h", tree / "cpp/math/optim/adadelta.h")
    insert(tree / "cpp/math/optim/all.h", '#include "math/optim/adagrad.h"\n', '#include "math/optim/adadelta.h"\n')
    insert(tree / "cpp/math/optim/all.h", ">;\n\nnamespace detail", ", Adadelta")
    shutil.copyfile(RECIPE / "reference.py", tree / "python/fusestep/reference/adadelta.py")
    shutil.copyfile(RECIPE / "optim.py", tree / "python/fusestep/optim/adadelta.py")
    insert(tree / "tests/support/cases.py", "BY_NAME = ", (RECIPE / "cases_row.py").read_text(encoding="utf-8") + "\n")
    # Their places in the two lists of exports.
    insert(
        tree / "python/fusestep/reference/__init__.py",
        "from .adagrad import adagrad\n",
        "from .adadelta import adadelta as adadelta\n",
    )
    insert(
        tree / "python/fusestep/optim/__init__.py",
        "from .adagrad import Adagrad\n",
        "from .adadelta import Adadelta as Adadelta\n",
    )

    # -O1: half of the time, and the bits are the same.
    where = ["-Dpybind11_DIR=" + pybind11.get_cmake_dir(), "-DPython_EXECUTABLE=" + sys.executable]
    settings = ["-DSKBUILD_PROJECT_VERSION=0", "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG"]
    run("cmake", "-S", ".", "-B", "build", "-G", "Ninja", "-DFUSESTEP_CUDA=OFF", *where, *settings, cwd=tree)
    run("cmake", "--build", "build", cwd=tree)
    (module,) = (tree / "build").glob("_core.*.so")
    shutil.copy(module, tree / "python/fusestep")
    return tree


def test_it_is_tested_like_the_others(tree):
    # -S: the hook by which this checkout is installed must not answer for the copy.
    paths = [str(tree / "python"), str(tree / "tests/support"), sysconfig.get_path("purelib")]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    python = [sys.executable, "-S"]
    where = run(*python, "-c", "import fusestep._core; print(fusestep._core.__file__)", cwd=tree, **environment)
    assert where.startswith(str(tree))
    said = run(*python, "-m", "pytest", "-q", "-k", "adadelta", *TESTS, cwd=tree, **environment)
    passed = int(said.rpartition(" passed")[0].rpartition("\n")[2].split()[-1].strip("= "))
    assert passed > 100, said
    assert "failed" not in said
    assert "error" not in said
