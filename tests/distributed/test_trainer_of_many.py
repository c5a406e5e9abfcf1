"""The trainer over several processes: as a single one, exact when resumed, and with errors that all of them hear of."""

from __future__ import annotations

import json

import pytest
import trainer_checks as checks
from fusestep.data import RandomBatches, SequentialBatches
from fusestep.training import checkpoint
from small_runs import one_thread  # noqa: F401  # for every test of this file
from worlds import World

SECONDS = 150  # for some whole runs, on a machine with fewer cores than processes


@pytest.fixture(scope="module")
def pair():
    with World(2) as world:
        yield world


@pytest.fixture(scope="module")
def single():
    """(losses of a single process, how far they move when the rows of each batch are permuted)."""
    expected, _ = checks.train()
    moved = [checks.train(permuted=seed)[0] for seed in range(4)]
    return expected, max(abs(a - b) for losses in moved for a, b in zip(losses, expected, strict=True))


def assert_as_single(losses, single):
    expected, noise = single
    assert 0.0 < noise < 1e-10
    # Sums in another order, as in a naive comparison: twice what such an order is worth.
    assert max(abs(a - b) for a, b in zip(losses, expected, strict=True)) <= 2 * noise


by_engine = pytest.mark.parametrize("wrapped", [None, "DDP", "FSDP2"], ids=["ours", "the user's DDP", "FSDP2"])


@by_engine
def test_the_losses_of_a_single_process(world, single, wrapped):
    results = world.run(checks.train_as, wrapped, seconds=SECONDS)
    assert all(result == results[0] for result in results)  # losses and bits: every process has the same
    assert_as_single(results[0][0], single)


@pytest.mark.parametrize("wrapped", [None, "FSDP2"], ids=["ours", "FSDP2"])
def test_resume_is_the_straight_run_bit_for_bit(world, wrapped, tmp_path):
    bits = world.run(checks.resumes_bit_for_bit, wrapped, str(tmp_path), seconds=SECONDS)
    assert all(part == bits[0] for part in bits)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == list(
        range(1, 9)
    )
    assert len(checkpoint.read(tmp_path / "checkpoints" / "step-00000008")["ranks"]) == world.size


def test_random_numbers_are_a_function_of_seed_rank_and_step(world):
    rows = world.run(checks.draws)
    assert all(again == first for _, first, _, again in rows)
    different = {tuple(row) for rank in rows for row in rank[:3]}
    assert len(different) == 3 * world.size
    assert rows == world.run(checks.draws)


@pytest.mark.parametrize("wrapped", [None, "DDP"], ids=["ours", "the user's DDP"])
def test_gradients_are_exchanged_once_an_update(pair, wrapped):
    pair.run(checks.communicates_once_an_update, wrapped)


def test_another_number_of_processes_goes_on(pair, single, tmp_path):
    """Written by two, read by one and by two; written by one, read by two."""
    losses = list(single[0][: checks.STEPS])
    pair.run(checks.writes, str(tmp_path / "two"), 4)
    checks.writes(str(tmp_path / "one"), 4)
    parts = {
        "two to one": checks.goes_on_from(tmp_path / "two", 8),
        "two to two": pair.run(checks.goes_on_from, str(tmp_path / "two"), 8)[0],
        "one to two": pair.run(checks.goes_on_from, str(tmp_path / "one"), 8)[0],
    }
    pair.run(checks.writes, str(tmp_path / "sharded"), 4, "FSDP2")
    parts |= {
        "shards to one": checks.goes_on_from(tmp_path / "sharded", 8),
        "shards to two": pair.run(checks.goes_on_from, str(tmp_path / "sharded"), 8)[0],
        "one to shards": pair.run(checks.goes_on_from, str(tmp_path / "one"), 8, "FSDP2")[0],
    }
    for part in parts.values():
        assert max(abs(a - b) for a, b in zip(part[:4], losses[4:], strict=True)) <= 2 * single[1]


def test_shards_of_four_go_on_as_two_and_as_one(pair, single, tmp_path):
    losses = single[0][4 : checks.STEPS]
    with World(4) as four:
        four.run(checks.writes, str(tmp_path), 4, "FSDP2", seconds=SECONDS)
    assert len(checkpoint.read(checkpoint.find(tmp_path / "checkpoints"))["ranks"]) == 4
    for part in (
        pair.run(checks.goes_on_from, str(tmp_path), 8, "FSDP2", seconds=SECONDS)[0],
        checks.goes_on_from(tmp_path, 8),
    ):
        assert max(abs(a - b) for a, b in zip(part[:4], losses, strict=True)) <= 2 * single[1]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "model",
            "Trainer.fit: parameter 'tokens.weight': expected the same on all 2 processes, got "
            "torch.float64 (256, 16) on rank 0 and torch.float64 (256, 24) on rank 1.",
        ),
        (
            "optimizer",
            "Trainer.fit: optimizer: expected the same on all 2 processes, got AdamW on rank 0 and SGD on rank 1.",
        ),
        ("config", "Trainer.fit: config: expected the same on all 2 processes, got TrainConfig("),
        ("step", "Trainer.fit: step: expected the same on all 2 processes, got 4 on rank 0 and 2 on rank 1."),
    ],
)
def test_processes_that_disagree(pair, tmp_path, what, message):
    if what == "step":
        pair.run(checks.writes, str(tmp_path), 4)
    said = pair.run(checks.refused, what, str(tmp_path))
    assert said[0] == said[1]
    assert said[0].startswith(message)


@pytest.mark.parametrize("wrapped", [None, "FSDP2"], ids=["ours", "FSDP2"])
def test_an_infinite_loss_of_one_is_skipped_by_all(pair, wrapped, tmp_path):
    results = pair.run(checks.one_loss_is_infinite, wrapped, str(tmp_path), seconds=SECONDS)
    assert results[0] == results[1]  # every bit of the model
    (event,) = map(json.loads, (tmp_path / "nonfinite.jsonl").read_text().splitlines())
    assert event["step"] == 3
    assert [(batch["rank"], batch["loss"] == "inf") for batch in event["batches"]] == [
        (0, False), (0, False), (1, True), (1, False),
    ]  # fmt: skip
    assert all(len(batch["indices"]) == checks.GLOBAL_BATCH // 2 for batch in event["batches"])
    assert event["gradients"]["sick"]["not finite"]


@pytest.mark.parametrize("wrapped", [None, "FSDP2"], ids=["ours", "FSDP2"])
def test_an_infinite_loss_of_one_ends_the_run_of_all(pair, wrapped):
    message = "Trainer.fit: loss: expected a finite number, got inf at step 3. Lower the rate"
    assert all(
        said.startswith(message) for said in pair.run(checks.ended_by_an_infinite_loss, wrapped, seconds=SECONDS)
    )


def test_an_error_of_one_is_an_error_of_all(pair, tmp_path):
    pair.run(checks.writes, str(tmp_path), 4)
    first, second = pair.run(checks.refused, "checkpoint", str(tmp_path))
    assert second.startswith(f"own: checkpoint '{tmp_path}/checkpoints/missing': path: expected a checkpoint")
    assert first == second.replace("own: ", "rank 1: ")


def test_the_shares_are_the_batch(rng):
    import torch

    text = torch.arange(200, dtype=torch.uint8)
    for make in (
        lambda **share: RandomBatches(text, 6, 5, torch.Generator().manual_seed(1), **share),
        lambda **share: SequentialBatches(text[:86], 6, 5, **share),
    ):
        whole, shares = list(make()), [list(make(rank=rank, processes=3)) for rank in range(3)]
        assert all(len(share) == len(whole) for share in shares)
        for batch, *parts in zip(whole, *shares, strict=True):
            for tensor, *pieces in zip(batch, *parts, strict=True):
                rows = sorted(row for piece in pieces for row in piece.tolist())
                assert rows == sorted(tensor.tolist())


@pytest.mark.parametrize(
    ("share", "message"),
    [
        ({"rank": 2, "processes": 2}, "rank: expected one of the 2 processes, from 0, got 2"),
        ({"rank": 0, "processes": 4}, "batch_size: expected a multiple of the 4 processes, got 6"),
        ({"rank": -1, "processes": 2}, "rank: expected an integer >= 0, got -1"),
    ],
)
def test_bad_shares(share, message):
    import torch

    with pytest.raises(ValueError, match=message):
        RandomBatches(torch.arange(200, dtype=torch.uint8), 6, 5, torch.Generator(), **share)
