"""``fusestep diagnose``: every diagnostic on a run, in words, figures and a picture."""

from __future__ import annotations

import json
import struct

import pytest
from fusestep.cli import diagnose, main
from small_runs import one_thread  # noqa: F401  # for every test of this file

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by forward mode itself

TINY = ["--steps", "4", "--batch-size", "2", "--context", "8", "--eval-every", "4"]
NAMES = {"gradient_check", "variances", "overfit", "rate_range", "health", "jacobians", "dead_units"}


@pytest.fixture
def run_dir(tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(b"the quick brown fox jumps over the lazy dog. " * 40)
    path = tmp_path / "run"
    assert main(["train", "--text", str(text), "--run-dir", str(path), *TINY]) == 0
    return path


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(diagnose, "OVERFIT_STEPS", 40)
    monkeypatch.setattr(diagnose, "RATE_STEPS", 25)
    monkeypatch.setattr(diagnose, "JACOBIAN_ITERATIONS", 3)
    monkeypatch.setattr(diagnose, "ELEMENTS", 1)


def size_of_png(path):
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", header[16:24])


def test_a_run_is_examined_and_left_as_it_is(capsys, run_dir, quick):
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["diagnose", str(run_dir)]) == 0
    out, _ = capsys.readouterr()
    assert "Gradients by layer, after update 4" in out
    assert "Variances by layer, before the first update" in out
    assert "the model fits one batch" in out
    found = json.loads((run_dir / "diagnosis.json").read_text())
    assert set(found) == NAMES
    assert found["gradient_check"]["passed"]
    assert found["overfit"]["succeeded"]
    assert found["health"]["rows"][0]["update_ratio"] > 0
    assert len(found["jacobians"]["rows"]) == 4  # the blocks of the GPT
    width, height = size_of_png(run_dir / "diagnosis.png")
    assert width > 1500
    assert height > 1000
    assert all(path.read_bytes() == content for path, content in before.items())
    # A new run takes the place of all.
    assert (
        main(["train", "--overwrite", "--run-dir", str(run_dir), "--text", str(run_dir.parent / "text.txt"), *TINY])
        == 0
    )
    assert not (run_dir / "diagnosis.json").exists()
    assert not (run_dir / "diagnosis.png").exists()


def test_a_wrong_backward_pass_is_named(capsys, monkeypatch, run_dir, quick):
    from fusestep.models import gpt

    correct = gpt.GPT.forward

    class Wrong:
        """The model, whose gradients point the other way."""

        def __call__(self, model, *arguments):
            logits = correct(model, *arguments)
            return 2 * logits.detach() - logits

    wrong = Wrong()
    monkeypatch.setattr(gpt.GPT, "forward", lambda model, *arguments: wrong(model, *arguments))
    capsys.readouterr()
    assert main(["diagnose", str(run_dir)]) == 0
    out, _ = capsys.readouterr()
    assert "culprit: the backward pass" in out
    found = json.loads((run_dir / "diagnosis.json").read_text())
    assert not found["gradient_check"]["passed"]
    assert not found["overfit"]["succeeded"]


def fail(capsys, *arguments):
    capsys.readouterr()
    assert main(["diagnose", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line


def test_what_cannot_be_diagnosed(capsys, tmp_path, run_dir):
    assert fail(capsys, tmp_path / "none") == (
        f"fusestep: diagnose: there is no run in '{tmp_path / 'none'}' (config.json is missing)"
    )
    assert "--device: expected cpu, got cuda:7" in fail(capsys, run_dir, "--device", "cuda:7")
    (run_dir.parent / "text.txt").write_bytes(b"another text " * 100)
    assert fail(capsys, run_dir) == "fusestep: diagnose: RUN: the text is not the one that the run was trained on"
    (run_dir / "config.json").write_text("{")
    assert "cannot use" in fail(capsys, run_dir)
    assert not (run_dir / "diagnosis.json").exists()


def test_a_run_that_died_before_its_first_checkpoint(capsys, run_dir, quick):
    import shutil

    shutil.rmtree(run_dir / "checkpoints")
    assert main(["diagnose", str(run_dir)]) == 0
    assert "Gradients by layer, before the first update" in capsys.readouterr().out
