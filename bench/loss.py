"""`fusestep bench loss`: cross-entropy over a large vocabulary, and with the output layer, against torch's."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable

import fusestep
import fusestep._core as _core
import fusestep.nn.functional as F
import torch
from torch import Tensor

from .cases import Case
from .floor import Pass, bytes_per_element, floor
from .functions import Function
from .memory import peak_growth
from .peers import FUNCTION
from .rows import OURS, YARDSTICK, Bar, Row, check_row, timing_row
from .session import Session
from .timing import Contestant, measure

TORCH = "torch F.cross_entropy"
OVER, NEW = "cross-entropy over the logits, forward + backward", "cross-entropy, forward + backward"
LINEAR = "linear + cross-entropy, forward + backward"
WIDTH = 768  # of the hidden states before the output layer

BARS = (
    Bar(OVER, "float32", TORCH, 1 / 8),
    Bar(NEW, "float32", TORCH, 1 / 3),
)


def logits_shape(quick: bool) -> tuple[int, int]:
    return (256, 8192) if quick else (2048, 50257)


def run(shape: tuple[int, int], session: Session) -> list[Row]:
    """shape: (tokens, vocabulary)."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        case = Case(name, f"{shape} {name}", [shape])
        for operation in (NEW, OVER):
            session.say(f"{operation}, {case.title}")
            contestants, moved = _cross_entropies(shape, dtype, operation, session)
            timings = measure(contestants, session.effort)
            rows.append(timing_row("loss", operation, case, bytes_per_element(moved), timings, BARS))
    return rows + _linear(shape, session)


def _cross_entropies(
    shape: tuple[int, int], dtype: torch.dtype, operation: str, session: Session
) -> tuple[list[Contestant], Pass]:
    """The contestants, and what has to move: each logit is read, its gradient written."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, shape[1], shape[:1], generator=generator)
    leaf = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
    logits = leaf.clone()  # as what comes out of a layer
    # Of logits that have been written over, the time is the same: it does not depend on the values.
    over, torchs = operation == OVER, leaf.clone() if operation == OVER else logits

    def ours() -> object:
        return torch.autograd.grad(F.cross_entropy(logits, labels, overwrite_logits=over), logits)

    def torch_loss(logits: Tensor, labels: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits, labels)

    def make_step(function: Function) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(torchs, labels), torchs)

    values, slow = logits.detach(), session.effort.slow_rounds
    moved = Pass(updated=([values],)) if over else Pass(read=([values],), written=([torch.empty_like(values)],))
    contestants = [
        Contestant(OURS, ours),
        floor(moved),
        Contestant(TORCH, make_step(torch_loss), slow),
        *session.peers.contestants(FUNCTION, torch_loss, make_step, max_rounds=slow),
    ]
    return contestants, moved


def _linear(shape: tuple[int, int], session: Session) -> list[Row]:
    case = Case("linear", f"hidden ({shape[0]}, {WIDTH}), {shape[1]} classes", [shape])
    session.say(f"{LINEAR}, {case.title}")
    slow = session.effort.slow_rounds
    contestants = [Contestant(name, _linear_step(shape, name), slow) for name in (OURS, TORCH)]
    contestants.append(Contestant(YARDSTICK, lambda: _core.fma_peak(256), slow))
    timing = timing_row("loss", LINEAR, case, None, measure(contestants, session.effort))
    growth = {name: _growth(shape, name, session.threads) for name in (OURS, TORCH)}
    what = f"peak memory growth of {LINEAR}, {case.title}"
    theirs = growth[TORCH]
    return [timing, check_row("loss", what, "bytes", growth[OURS], theirs or 0, {TORCH: theirs})]


def _linear_step(shape: tuple[int, int], name: str) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(shape[0], WIDTH, generator=generator).requires_grad_()
    weight = (torch.randn(shape[1], WIDTH, generator=generator) / WIDTH**0.5).requires_grad_()
    labels = torch.randint(0, shape[1], shape[:1], generator=generator)

    def loss() -> Tensor:
        if name == OURS:
            return F.linear_cross_entropy(hidden, weight, labels)
        return torch.nn.functional.cross_entropy(torch.nn.functional.linear(hidden, weight), labels)

    return lambda: torch.autograd.grad(loss(), (hidden, weight))


def _growth(shape: tuple[int, int], name: str, threads: int) -> int | None:
    """Measured in a process of its own: in this one an allocator may hold memory of earlier contestants."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_growth_here, (shape, name, threads))


def _growth_here(shape: tuple[int, int], name: str, threads: int) -> int | None:
    torch.set_num_threads(threads)
    fusestep.set_num_threads(threads)
    return peak_growth(_linear_step(shape, name))
