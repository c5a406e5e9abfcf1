"""`fusestep bench` beside other libraries: who takes part, who is named with a reason, and that a step is AdamW's."""

from __future__ import annotations

import importlib.util
import os

import numpy as np
import pytest
import torch
from fusestep.bench import cases, clip, optim, peers, rows
from fusestep.bench.floor import Pass, bytes_per_element, floor
from fusestep.bench.peers import Peer, Peers


def step():
    pass


def test_who_is_measured_is_counted_and_who_is_not_has_a_reason():
    def fails(*_):
        raise RuntimeError("no such device\nand more")

    def slow(*_):
        raise peers.LeftOut("a step takes 9 s")

    found = Peers(
        peers=(
            Peer("here", "numpy", "numpy", {"op": lambda: step}),
            Peer("absent", "no-such-package", "no_such_package", {"op": lambda: step}),
            Peer("fails", "numpy", "numpy", {"op": fails}),
            Peer("slow", "numpy", "numpy", {"op": slow}),
            Peer("gpu", "numpy", "numpy", {"op": lambda: step}, needs_cuda=True),
            Peer("other", "numpy", "numpy"),
        )
    )
    assert [contestant.name for contestant in found.contestants("op", max_rounds=3)] == ["here"]
    assert found.contestants("another operation") == []
    described = found.describe()
    assert described["here"] == {"version": np.__version__, "rows": 1, "left_out": None}
    assert described["absent"] == {"version": None, "rows": 0, "left_out": "not installed"}
    assert described["fails"]["left_out"] == "does not run here: RuntimeError: no such device"
    assert described["slow"]["left_out"] == "a step takes 9 s"
    assert described["other"]["left_out"] == "has none of the operations that were measured"
    assert described["gpu"]["left_out"] == "needs a CUDA device"


def test_quick_runs_compile_nothing():
    described = Peers(quick=True).describe()
    assert described[peers.COMPILED]["left_out"] == "compiles for longer than a quick run takes"


def test_a_step_that_takes_too_long_is_left_out(monkeypatch):
    monkeypatch.setattr(peers, "SLOWEST_SECONDS", -1.0)
    found = Peers(peers=(Peer("here", "numpy", "numpy", {"op": lambda: step}),))
    assert found.contestants("op") == []
    assert found.describe()["here"]["left_out"] == "a step takes 0 s"


def test_every_operation_of_a_peer_is_one_that_is_measured():
    asked = {peers.ADAMW, peers.CLIP_ADAMW, peers.EIGHT_BIT, peers.FUNCTION}
    assert {operation for peer in peers.PEERS for operation in peer.steps} <= asked
    assert {peers.ADAMW, peers.EIGHT_BIT} <= set(optim.TITLES)
    assert clip.OPERATION == peers.CLIP_ADAMW


@pytest.mark.skipif(importlib.util.find_spec("optax") is None, reason="optax is not installed")
def test_optax_takes_a_step():
    storage = cases.Storage(cases.Case("flat", "tiny", [(50,), (3, 2)]), num_states=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # XLA takes every CPU
    try:
        found = Peers(peers=tuple(peer for peer in peers.PEERS if peer.name == "optax"))
        assert len(found.contestants(peers.ADAMW, storage)) == 1, found.describe()
        assert len(found.contestants(peers.CLIP_ADAMW, storage, 1.0)) == 1, found.describe()
    finally:
        torch.set_num_threads(threads)


# --- the floor ---
@pytest.mark.parametrize(
    ("title", "num_bytes"),
    [
        ("AdamW, 8-bit moments", 16),
        ("AdamW, bf16", 14),
        ("AdamW, bf16, stochastic rounding", 14),
        ("AdamW, bf16, Kahan summation", 18),
        ("AdamW, bf16, master weights", 20),
        ("AdamW, bf16, 8-bit moments", 10),
    ],
)
def test_bytes_of_each_precision_follow_from_its_arrays(title, num_bytes, session):
    (precision,) = (precision for precision in optim.PRECISIONS if precision.title == title)
    case = cases.Case("flat", "tiny", [(513,)])
    (row,) = optim.run([case], session, entries=(), precisions=[precision])
    assert row["bytes_per_element"] == num_bytes
    assert row["contestants"].keys() >= {rows.OURS, "floor", optim.FUSED}


@pytest.fixture
def session():
    from fusestep.bench.session import Session
    from fusestep.bench.timing import Effort

    return Session(Effort(rounds=3, seconds=0.1, slow_rounds=2), 2, lambda what: None, Peers(peers=()))


def test_the_floor_keeps_what_it_updates_and_reads_and_zeroes_what_it_writes():
    for numel in (1, 63, 64, 1000, 40_000):
        random = torch.Generator().manual_seed(numel)
        updated = torch.randint(0, 256, (numel * 4,), dtype=torch.uint8, generator=random).view(torch.float32)
        codes = torch.randint(0, 256, (numel,), dtype=torch.uint8, generator=random)
        read, written = torch.randn(numel, generator=random).bfloat16(), torch.full((numel,), 7, dtype=torch.int64)
        before = [tensor.clone() for tensor in (updated, codes, read)]
        moved = Pass(([updated], [codes]), ([read],), ([written.view(torch.float64)],))
        assert bytes_per_element(moved) == 2 * 4 + 2 * 1 + 2 + 8
        floor(moved).step()
        for tensor, kept in zip((updated, codes, read), before, strict=True):
            assert torch.equal(tensor.view(torch.uint8), kept.view(torch.uint8))  # NaN's bits too
        # Whole vectors of at most 64 bytes: what is left over is less than one.
        assert written[: numel - 8].count_nonzero() == 0


@pytest.mark.parametrize("start", [1, 3, 4, 8, 16, 31])
def test_the_floor_takes_arrays_at_any_address(start):
    """Also in the middle of a vector: written to as if they were aligned, such arrays would end the process."""
    import fusestep._core as _core

    arrays = [torch.full((2000 + start,), 5, dtype=torch.uint8)[start:] for _ in range(3)]
    _core.stream_floor([[arrays[0]]], [[arrays[1]]], [[arrays[2]]])
    assert (arrays[0] == 5).all()
    assert (arrays[1] == 5).all()
    assert arrays[2][:1920].count_nonzero() == 0


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        (([[1.0, 2.0]], [[1.0]]), "2 elements"),
        (([[1.0]], [[1.0], [1.0]]), None),
    ],
)
def test_the_floor_refuses_arrays_of_another_length(lists, message):
    import fusestep._core as _core

    updated, read = ([[torch.tensor(values)] for values in group] for group in lists)
    if message is None:
        _core.stream_floor(updated, read)
        return
    with pytest.raises(ValueError, match=message):
        _core.stream_floor(updated, read)
