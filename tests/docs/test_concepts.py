"""Each name in docs/concepts.md exists: what has a concept, and the test that holds it."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [
    [cell.strip() for cell in line.strip("|\n ").split(" | ")]
    for line in (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| concept")
]
ELSEWHERE = ("the library ",)  # how the cell begins of a concept that other libraries have, and no test here holds


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_what_a_row_names_exists(row):
    where = row[2]
    for name in re.findall(r"`(fusestep(?:\.\w+)+)`", where):
        parent, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(parent), attribute), name
    for path in re.findall(r"`(examples/\S+)`", where):
        assert (ROOT / path).is_file(), path
    if where.startswith(ELSEWHERE):
        assert len(row) == 3 or not row[3]
        return
    file, _, test = row[3].strip("`").partition("::")
    text = (ROOT / file).read_text(encoding="utf-8")
    assert f"def {test}(" in text if test else "def test_" in text


def test_every_text_has_its_rows():
    assert len(ROWS) >= 60
