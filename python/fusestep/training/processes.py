"""Several processes that train one model: who they are, what they agree on, what they share after an update.

The engine is torch.distributed. With a single process, nothing here does anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fusestep._refusal import refuse
from fusestep.training import sharding


class ProcessError(RuntimeError):
    """Another process has failed or ended, or the processes were given different things."""


@contextlib.contextmanager
def job() -> Iterator[Processes]:
    """Joins the processes that ``torchrun`` started, if it did, until the end of the block."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    dist.init_process_group()  # gloo for the CPU, NCCL for CUDA
    try:
        yield Processes()
    finally:
        dist.destroy_process_group()


class Processes:
    """The processes of torch.distributed's default group; one process alone where there is no such group.

    ``rank`` is this one's number, ``count`` how many there are, ``first`` whether this is the one that writes and
    prints. Every method is called by all of them.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        there = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if there else 0
        self.count = dist.get_world_size() if there else 1
        self.first = self.rank == 0
        self.seed: int | None = None  # from which every step's random states follow; None: a single process
        self._device = device

    def sum(self, *numbers: float) -> tuple[float, ...]:
        """The sums over all processes, each of the same bits in all of them."""
        if self.count == 1:
            return numbers
        sums = torch.tensor(numbers, dtype=torch.float64, device=self._device)
        dist.all_reduce(sums)
        return tuple(sums.tolist())

    def gather(self, value: Any) -> list[Any]:
        """What each process gave, by rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Ends when all processes are at its end. What one of them raises inside is raised in all.

        Raises ProcessError, which names the other process, where this one has nothing to raise itself.
        """
        own: Exception | None = None
        try:
            yield
        except Exception as problem:
            own = problem
        problems = self.gather(None if own is None else str(own))
        if own is not None:
            raise own
        for rank, text in enumerate(problems):
            if text is not None:
                raise ProcessError(f"rank {rank}: {text}")

    def check_same(self, operation: str, facts: Mapping[str, str]) -> None:
        """Raises ProcessError, on all processes, naming the first of ``facts`` that is not the same on all."""
        everywhere = self.gather(dict(facts))
        for name in dict.fromkeys(name for theirs in everywhere for name in theirs):
            values = [theirs.get(name, "none") for theirs in everywhere]
            if len(set(values)) > 1:
                other = next(rank for rank, value in enumerate(values) if value != values[0])
                got = f"{values[0]} on rank 0 and {values[other]} on rank {other}"
                refuse(operation, name, f"the same on all {self.count} processes", got, error=ProcessError)

    def share_seed(self, seed: int | None) -> None:
        """Chooses the seed of the run: ``seed``, or else what rank 0's default generator was seeded with."""
        if self.count > 1 and self.seed is None:
            self.seed = self.gather(torch.initial_seed())[0] if seed is None else seed

    def begin_step(self, step: int) -> None:
        """Seeds torch's generators for the update ``step``, in each process differently: what is drawn is a function of
        (seed, rank, step), whatever was drawn before.
        """
        if self.seed is None:
            return
        digest = hashlib.sha256(f"{self.seed} {step}".encode()).digest()
        # 31 bits, as the CPU's generator heeds no more than 32. The ranks of one step never meet.
        torch.manual_seed(int.from_bytes(digest[:4], "little") // 2 + self.rank)

    def data_parallel(self, model: nn.Module) -> nn.Module:
        """``model``, so that a backward pass averages the gradients of all processes.

        On the CPU in the order of the ranks: the bits of the mean do not depend on where in a message it travels, which
        DDP changes after the first update of a session.
        """
        if self.count == 1 or isinstance(model, DistributedDataParallel) or sharding.is_sharded(model):
            return model
        # Buffers that are no state are constants: a broadcast of them in every pass would be for nothing.
        state = model.state_dict().keys()
        constants = [name for name, _ in model.named_buffers() if name not in state]
        ignore = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
        ignore(model, constants)  # type: ignore[no-untyped-call]
        parallel = DistributedDataParallel(model)
        if self._device is None or self._device.type == "cpu":
            parallel.register_comm_hook(None, _mean_in_the_order_of_ranks)
        return parallel

    @contextlib.contextmanager
    def noticing_losses(self, operation: str) -> Iterator[None]:
        """Turns the error of a broken connection into a ProcessError that says so."""
        try:
            yield
        except RuntimeError as problem:
            lost = isinstance(problem, dist.DistError) or "onnection" in str(problem) or "gloo" in str(problem)
            if self.count == 1 or isinstance(problem, ProcessError) or not lost:
                raise
            expected, got = (
                f"all {self.count} to answer",
                "the end of a connection: another one has failed or was ended",
            )
            remedy = "Resume from the last checkpoint."
            try:
                refuse(operation, "processes", expected, got, remedy, ProcessError)
            except ProcessError as error:
                raise error from problem


def accumulating(model: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
    """While it is entered, a backward pass leaves the exchange of gradients to the ``last`` one of the update."""
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    sharding.exchange_gradients(model, last)
    return contextlib.nullcontext()


def _mean_in_the_order_of_ranks(_, bucket):  # type: ignore[no-untyped-def]  # DDP refuses annotations that are text
    """((g0 + g1) + g2 + ...) / N, by as many bytes as an all-reduce sends: each process adds up one N-th of it."""
    buffer, count = bucket.buffer(), dist.get_world_size()
    share = -(-len(buffer) // count)
    sent = buffer.new_zeros(count * share)
    sent[: len(buffer)] = buffer
    parts = torch.empty_like(sent)
    dist.all_to_all_single(parts, sent)
    total, *others = parts.view(count, share).unbind()
    for other in others:
        total += other
    total /= count
    dist.all_gather(list(sent.view(count, share).unbind()), total)
    buffer.copy_(sent[: len(buffer)])
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(buffer)
    return done
