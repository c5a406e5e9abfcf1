"""Text, batches and the baseline."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path

import pytest
import torch
from fusestep.data import (
    RandomBatches,
    SequentialBatches,
    TextError,
    read_text,
    split_text,
    unigram_loss,
)


def ramp(length: int):
    return (torch.arange(length) % 256).to(torch.uint8)


def generator(seed: int = 0):
    return torch.Generator().manual_seed(seed)


def test_default_text_is_what_python_carries():
    text = read_text()
    assert len(text) > 300_000
    assert b"assert" in text
    assert text == read_text()


def test_files_are_joined(tmp_path):
    (tmp_path / "a").write_bytes(b"one\xff")
    (tmp_path / "b").write_bytes(b"two")
    assert read_text([tmp_path / "a", str(tmp_path / "b")]) == b"one\xfftwo"


def test_missing_file(tmp_path):
    with pytest.raises(TextError, match=r"read_text: files: expected a text file, got '.*gone', which does not"):
        read_text([tmp_path / "gone"])


def test_unreadable_file(tmp_path):
    with pytest.raises(TextError, match=r"expected a readable file, got '.*': Is a directory"):
        read_text([tmp_path])


def test_forbidden_file(tmp_path, monkeypatch):
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # the tests may run as root, who is not forbidden anything
    with pytest.raises(TextError, match=r"expected a readable file, got '.*secret': Permission denied"):
        read_text([tmp_path / "secret"])


def test_empty_file(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(TextError, match=r"got '.*empty', which is empty"):
        read_text([tmp_path / "empty"])


def test_split_holds_out_the_end():
    train, val = split_text(bytes(range(100)), 0.1)
    assert train.tolist() == list(range(90))
    assert val.tolist() == list(range(90, 100))
    with pytest.raises(TextError, match="split_text: text"):
        split_text(b"")
    with pytest.raises(ValueError, match="split_text: val_fraction"):
        split_text(b"abc", 1.0)


@pytest.mark.parametrize("length", [60, 61, 69, 70, 100])
def test_an_epoch_deals_every_window_once(length):
    batches = RandomBatches(ramp(length), 2, 10, generator())
    assert batches.windows == length // 10 - 1
    assert len(batches) == batches.windows // 2
    for _ in range(20):
        starts = []
        for inputs, targets in batches:
            assert inputs.shape == targets.shape == (2, 10)
            assert inputs.dtype == targets.dtype == torch.int64
            assert torch.equal(inputs + 1, targets)  # the ramp: one byte later
            starts += inputs[:, 0].tolist()
        assert len(starts) == len(set(starts)) == 2 * len(batches)
        assert len({start % 10 for start in starts}) == 1  # one grid, with an offset of its own
        assert max(starts) + 10 < length


def test_epochs_differ_and_seeds_repeat():
    def draw(seed: int, epochs: int) -> list:
        batches = RandomBatches(ramp(200), 4, 8, generator(seed))
        return [inputs.tolist() for _ in range(epochs) for inputs, _ in batches]

    assert draw(1, 2) == draw(1, 2)
    assert draw(1, 2) != draw(2, 2)
    whole = draw(1, 2)
    assert whole[: len(whole) // 2] != whole[len(whole) // 2 :]


@pytest.mark.parametrize("taken", range(12))
def test_resumes_in_the_middle_of_an_epoch(taken):
    def stream(batches):
        while True:
            yield from batches

    batches = RandomBatches(ramp(100), 2, 10, generator(3))  # 4 batches an epoch
    running = stream(batches)
    for _ in range(taken):
        next(running)
    file = io.BytesIO()
    torch.save(batches.state_dict(), file)
    expected = [next(running)[0] for _ in range(10)]

    file.seek(0)
    resumed = RandomBatches(ramp(100), 2, 10, generator(99))
    resumed.load_state_dict(torch.load(file, weights_only=True))
    running = stream(resumed)
    assert all(torch.equal(next(running)[0], inputs) for inputs in expected)


def test_state_of_other_data_is_refused():
    state = RandomBatches(ramp(100), 2, 10, generator()).state_dict()
    with pytest.raises(ValueError, match=r"load_state_dict: batch_size: expected 3, got 2"):
        RandomBatches(ramp(100), 3, 10, generator()).load_state_dict(state)


def test_sequential_batches_cover_the_text_in_the_same_way_each_time():
    batches = SequentialBatches(ramp(211), 4, 10)  # 21 windows
    first = [inputs for inputs, _ in batches]
    assert len(batches) == len(first) == 6
    assert all(torch.equal(a, b) for a, (b, _) in zip(first, batches, strict=True))
    assert sorted(torch.cat(first)[:, 0].tolist()) == list(range(0, 210, 10))
    assert first[0][:, 0].tolist() == [0, 60, 120, 180]  # spread


@pytest.mark.parametrize("kind", [RandomBatches, SequentialBatches])
def test_wrong_batches_are_refused(kind):
    rest = [generator()] if kind is RandomBatches else []
    name = kind.__name__
    with pytest.raises(TextError, match=rf"{name}: data: expected at least \d+ bytes .*, got 9. Give more text"):
        kind(ramp(9), 1, 10, *rest)
    with pytest.raises(ValueError, match=f"{name}: batch_size: expected an integer >= 1, got 0"):
        kind(ramp(99), 0, 10, *rest)
    with pytest.raises(TypeError, match=f"{name}: context: expected an integer, got 1.5"):
        kind(ramp(99), 1, 1.5, *rest)
    with pytest.raises(TypeError, match=f"{name}: data: expected a 1-dim uint8 tensor"):
        kind(torch.zeros(99), 1, 10, *rest)


def test_shortest_text_for_a_batch():
    assert len(RandomBatches(ramp(30), 2, 10, generator())) == 1
    with pytest.raises(TextError, match=r"expected at least 30 bytes for one batch of 2 x 10, got 29"):
        RandomBatches(ramp(29), 2, 10, generator())


def test_unigram_loss():
    train = torch.tensor([0] * 3 + [1] * 1, dtype=torch.uint8)
    counts = {0: 4, 1: 2}  # each byte seen once more, of 4 + 256
    expected = -(math.log(counts[0] / 260) + math.log(counts[1] / 260) + math.log(1 / 260)) / 3
    # A sum of three logarithms, each correct to a rounding or two.
    assert unigram_loss(train, torch.tensor([0, 1, 7], dtype=torch.uint8)) == pytest.approx(expected, rel=1e-15)


def test_unigram_loss_of_the_default_text():
    assert 3.0 < unigram_loss(*split_text(read_text())) < 3.5
