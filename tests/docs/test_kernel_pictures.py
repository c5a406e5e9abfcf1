"""The pictures of docs/cuda-kernels.md follow the rules of the kernels."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install '.[train]'")

ROOT = Path(__file__).parents[2]
DRAW = runpy.run_path(str(ROOT / "tools/draw_kernel_pictures.py"))


def test_the_permutation_is_the_kernels_own():
    source = (ROOT / "cuda/attention/tile.h").read_text(encoding="utf-8")
    (formula,) = re.findall(r"constexpr int key_at\(int position\) \{\s*return (.*?);", source, re.DOTALL)
    expected = [eval(" ".join(formula.replace("/", "//").split()), {"position": position}) for position in range(64)]
    assert [DRAW["key_at"](position) for position in range(64)] == expected
    assert sorted(expected) == list(range(64))
    for thread in range(4):
        keys = sorted(key for position, key in enumerate(expected[:32]) if DRAW["owner"](position) == thread)
        assert keys == list(range(8 * thread, 8 * thread + 8))


@pytest.mark.parametrize("name", ["rotating", "in_order"])
def test_no_two_blocks_add_to_one_tile_at_a_time(name):
    rows = DRAW[name](*((7, 5) if name == "rotating" else (6,)))
    visited = [[tile for tile in row if tile is not None] for row in rows]
    if name == "in_order":
        assert visited == [list(range(j, 6)) for j in range(6)]
        for now in zip(*rows, strict=True):
            added_to = [tile for tile in now if tile is not None]
            assert len(set(added_to)) == len(added_to)
    else:
        assert all(sorted(row) == list(range(5)) for row in visited)


def test_the_pictures_are_those_that_the_program_draws():
    for name, figure in (("permuted-keys", DRAW["permuted_keys"]()), ("turns", DRAW["turns"]())):
        texts = {text.get_text() for axes in figure.axes for text in axes.texts}
        held = (ROOT / f"docs/pictures/{name}.svg").read_text(encoding="utf-8")
        assert all(f"<!-- {text} -->" in held for text in texts)
