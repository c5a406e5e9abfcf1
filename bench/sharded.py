"""`fusestep bench sharded`: clipping and a step of AdamW over two processes under FSDP2, ours against torch's.

This process is one of the two. The other one does what it is told, so that both take the same steps in the same order.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import fusestep
import fusestep.optim
import torch

from .cases import Case
from .clip import MAX_NORM, OPERATION, STATES
from .rows import OURS, Row, check_row, timing_row
from .session import Session
from .timing import Contestant, measure

PROCESSES = 2
TORCH = "torch clip_grad_norm_ + fused"
TORCH_FOREACH = "torch clip_grad_norm_ + foreach"
TIMEOUT = timedelta(minutes=2)


def contestants(case: Case) -> list[Contestant]:
    """The parameters as fully_shard leaves them; all contestants work on the same ones, and the same states."""
    from torch.distributed.fsdp import fully_shard

    module = torch.nn.ParameterList([torch.full(shape, 0.1) for shape in case.shapes])
    fully_shard(module)
    params = list(module.parameters())
    states = [[torch.zeros_like(p).detach() for p in params] for _ in STATES]
    for p in params:
        p.grad = torch.full_like(p, 1e-3).detach()
    ours = fusestep.optim.AdamW(params, max_grad_norm=MAX_NORM)
    fused, foreach = torch.optim.AdamW(params, fused=True), torch.optim.AdamW(params, foreach=True)
    for optimizer in (ours, fused, foreach):
        for i, p in enumerate(params):
            optimizer.state[p] = {name: state[i] for name, state in zip(STATES, states, strict=True)}
            optimizer.state[p]["step"] = torch.zeros(())

    def after_clipping(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        def step() -> None:
            torch.nn.utils.clip_grad_norm_(params, MAX_NORM, foreach=True)
            optimizer.step()

        return step

    return [
        Contestant(OURS, ours.step),
        Contestant(TORCH, after_clipping(fused)),
        Contestant(TORCH_FOREACH, after_clipping(foreach)),
    ]


def run(case: Case, session: Session) -> list[Row]:
    """A timing row, and the number of collectives in a step. The session's threads are those of both together."""
    from torch.distributed.tensor.debug import CommDebugMode

    session.say(f"{OPERATION} over {PROCESSES} processes, {case.title}")
    before = torch.get_num_threads(), fusestep.info()["threads"]
    with _both(case, session.threads) as everybody:
        collectives = {}
        for contestant in everybody:
            with CommDebugMode() as communication:
                contestant.step()
            collectives[contestant.name] = float(communication.get_total_counts())
        # The load of others is not known: the other process would count as one of them.
        timings = replace(measure(everybody, session.effort), other_load=None)
    torch.set_num_threads(before[0])
    fusestep.set_num_threads(before[1])
    ours = collectives.pop(OURS)
    return [
        timing_row("sharded", f"{OPERATION}, {PROCESSES} processes", case, None, timings),
        check_row("sharded", "collectives of a step with clipping", "collectives", ours, 1, dict(collectives)),
    ]


@contextmanager
def _both(case: Case, threads: int) -> Iterator[list[Contestant]]:
    """The contestants of both processes: a step of one of them is taken by both."""
    context = multiprocessing.get_context("spawn")
    each = max(1, threads // PROCESSES)
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        pipe, other = context.Pipe()
        process = context.Process(target=_follow, args=(store, case, each, other), daemon=True)
        process.start()
        other.close()
        try:
            _join(0, store, each)
            yield [_led(i, contestant, pipe) for i, contestant in enumerate(contestants(case))]
        finally:
            pipe.close()
            _leave()
            process.join(10)
            process.kill()


def _led(number: int, contestant: Contestant, pipe: Connection) -> Contestant:
    def step() -> None:
        pipe.send(number)
        contestant.step()

    return Contestant(contestant.name, step)


def _follow(store: str, case: Case, threads: int, pipe: Connection) -> None:
    """The other process: takes the steps that it is told to take, until nobody tells it any more."""
    _join(1, store, threads)
    everybody = contestants(case)
    try:
        while True:
            everybody[pipe.recv()].step()
    except EOFError:
        _leave()


def _join(rank: int, store: str, threads: int) -> None:
    torch.set_num_threads(threads)
    fusestep.set_num_threads(threads)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES, timeout=TIMEOUT
    )


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
