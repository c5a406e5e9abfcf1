"""The messages that docs/troubleshooting.md explains are those of the sources."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = re.findall(r"^\| (`.*?) \| ", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
FILES = [
    path
    for folder in ("python", "cpp", "cuda")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".cpp", ".h", ".cu")
]


@pytest.fixture(scope="module")
def sources():
    """All text, strings that go on in the next line joined, escapes as they print."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in FILES)
    return re.sub(r'"\s*\n\s*f?"', "", text).replace('\\"', '"')


@pytest.mark.parametrize("row", ROWS)
def test_a_message_is_one_of_ours(row, sources):
    fragments = re.findall(r"`([^`]+)`", row)
    assert fragments
    for fragment in fragments:
        assert fragment in sources, fragment


def test_there_are_rows():
    assert len(ROWS) >= 20
