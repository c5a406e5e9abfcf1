"""`python -m fusestep.bench.precision`: what it writes of its runs, and that it goes on where it was."""

from __future__ import annotations

import json
import math
import sys

import pytest
from fusestep.bench import precision

pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install '.[bench]'")
FASTER = {"fp32": 2.0, "bf16, plain": 2.2}


def train(variant: str, seed: int, steps: int) -> list[tuple[int, float]]:
    """In place of a training."""
    return [(step, FASTER.get(variant, 2.01) + seed / 1000) for step in range(1, steps + 1)]


@pytest.fixture
def command(monkeypatch, capsys):
    monkeypatch.setattr(precision, "train", train)

    def call(*arguments) -> str:
        monkeypatch.setattr(sys, "argv", ["precision", *map(str, arguments)])
        capsys.readouterr()
        assert precision.main() == 0
        return capsys.readouterr().out

    return call


def test_the_table_the_runs_and_the_picture(command, tmp_path):
    out = command(tmp_path, "--steps", 4, "--processes", 1)
    table = (tmp_path / "precision.md").read_text()
    assert out.endswith(table)
    rows = dict(line.strip("| ").split(" | ", 1) for line in table.splitlines()[2:])
    assert list(rows) == list(precision.VARIANTS)
    assert rows["fp32"] == "2.0020 | 2.0010 to 2.0030, 3 seeds | +0.00%"
    assert rows["bf16, plain"] == "2.2020 | 2.2010 to 2.2030, 3 seeds | +9.99%"
    runs = json.loads((tmp_path / "precision.json").read_text())["runs"]
    assert len(runs) == 3 * len(precision.VARIANTS)
    assert (tmp_path / "precision.png").stat().st_size > 10_000


def test_it_goes_on_where_it_was(command, tmp_path, monkeypatch):
    command(tmp_path, "--steps", 4, "--processes", 1, "--variants", "fp32", "--seeds", 1, 2)
    monkeypatch.setitem(FASTER, "fp32", math.nan)  # what is there is not made again
    out = command(tmp_path, "--steps", 4, "--processes", 1, "--variants", "fp32", "bf16, plain", "--seeds", 1, 2)
    assert "fp32, seed" not in out
    runs = json.loads((tmp_path / "precision.json").read_text())["runs"]
    assert [(run["variant"], run["seed"]) for run in runs] == [(v, s) for v in ("fp32", "bf16, plain") for s in (1, 2)]
    assert all(math.isfinite(loss) for run in runs for _, loss in run["evaluations"])


def test_a_folder_of_other_runs_is_refused(command, tmp_path, capsys):
    command(tmp_path, "--steps", 4, "--processes", 1, "--variants", "fp32", "--seeds", 1)
    with pytest.raises(SystemExit):
        command(tmp_path, "--steps", 5)
    assert "is of 4 steps a run: choose another folder" in capsys.readouterr().err


@pytest.mark.exhaustive
@pytest.mark.parametrize("variant", precision.VARIANTS)
def test_every_way_trains(variant):
    evaluations = precision.train(variant, 1, 4)
    steps, losses = zip(*evaluations, strict=True)
    assert steps == (1, 2, 3, 4)
    assert losses[-1] < losses[0] < 7  # a model that has seen nothing: ln 256 is 5.5
