"""`fusestep bench clip`: clipping by the global norm and a step of AdamW, against torch's two calls and the floor."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable

import fusestep
import fusestep.ops
import fusestep.optim
import numpy as np
import torch

from .cases import Case, Storage
from .floor import bytes_per_element, floor, step_passes
from .memory import peak_growth
from .peers import CLIP_ADAMW, LR
from .rows import OURS, Bar, Row, check_row, timing_row
from .session import Session
from .timing import Contestant, measure

OPERATION = CLIP_ADAMW
TORCH = "torch clip_grad_norm_ + fused"
STATES = ("exp_avg", "exp_avg_sq")
# Below the norm of the gradients, so that torch starts by clipping. It leaves gradients of this norm behind; from then
# on everybody's coefficient is about 1, which costs the same: nobody skips the multiplication.
MAX_NORM = 0.25
MIB = 2**20

BARS = (
    Bar(OPERATION, "gpt2", TORCH, 0.60),
    Bar(OPERATION, "small", TORCH, 0.08),
)


def contestants(storage: Storage, session: Session) -> list[Contestant]:
    """torch's clip_grad_norm_ and fused AdamW, our AdamW with max_grad_norm, and the floor of both passes."""
    fused = torch.optim.AdamW(storage.params, lr=LR, fused=True)
    ours = fusestep.optim.AdamW(storage.params, lr=LR, max_grad_norm=MAX_NORM)
    for optimizer in (fused, ours):
        storage.lend_states(optimizer, STATES, counts_steps=True)

    def clip_and_step() -> None:
        torch.nn.utils.clip_grad_norm_(storage.params, MAX_NORM, foreach=True)
        fused.step()

    return [
        Contestant(OURS, ours.step),
        floor(*step_passes(storage, len(STATES), clipping=True)),
        Contestant(TORCH, clip_and_step),
        *session.peers.contestants(CLIP_ADAMW, storage, MAX_NORM, max_rounds=session.effort.slow_rounds),
    ]


def run(cases: Iterable[Case], norm_elements: int, session: Session) -> list[Row]:
    """A timing row and a memory row for each case, then the accuracy and the determinism of the norm."""
    rows = []
    for case in cases:
        session.say(f"{OPERATION}, {case.title}")
        storage = Storage(case, num_states=len(STATES))
        everybody = contestants(storage, session)
        num_bytes = bytes_per_element(*step_passes(storage, len(STATES), clipping=True))
        rows.append(timing_row("clip", OPERATION, case, num_bytes, measure(everybody, session.effort), BARS))
        rows.append(memory_row(case, everybody))
    session.say(f"norm of {norm_elements:,} elements")
    rows += norm_rows(norm_elements)
    return rows


def memory_row(case: Case, warm: Iterable[Contestant]) -> Row:
    """What a step allocates once everything that is kept between steps is there."""
    growth = {c.name: peak_growth(c.step) for c in warm if c.name in (OURS, TORCH)}
    mib = {name: None if size is None else size / MIB for name, size in growth.items()}
    what = f"extra memory of {OPERATION}, {case.title}"
    return check_row("clip", what, "MiB", mib[OURS], 1.0, {TORCH: mib[TORCH]})


def norm_rows(elements: int) -> list[Row]:
    """The norm's relative error against float64, and whether its bits depend on the number of threads."""
    grad = torch.randn(elements, generator=torch.Generator().manual_seed(0))
    exact = float64_norm(grad.numpy())
    param = torch.nn.Parameter(torch.empty_like(grad))  # never touched, so it takes no memory
    param.grad = grad
    # An infinite ceiling leaves the gradient as it is.
    theirs = float(torch.nn.utils.clip_grad_norm_([param], math.inf, foreach=True))

    before = fusestep.get_num_threads()
    counts = (1, 2, max(4, os.cpu_count() or 1))
    norms = []
    for threads in counts:
        fusestep.set_num_threads(threads)
        norms.append(fusestep.ops.grad_norm([grad]))
    fusestep.set_num_threads(before)

    def error(norm: float) -> float:
        return abs(norm - exact) / exact

    what = f"relative error of the norm, {elements:,} elements"
    worst = max(map(error, norms))
    bits = f"distinct norms with {', '.join(map(str, counts))} threads"
    return [
        check_row("clip", what, "", worst, 1e-6, {"torch clip_grad_norm_": error(theirs)}),
        check_row("clip", bits, "", len(set(norms)), 1, {}),
    ]


def float64_norm(x: np.ndarray) -> float:
    """The 2-norm in float64, in pieces small enough not to need a second copy of x; the pieces are summed exactly."""
    pieces = (x[i : i + 2**20].astype(np.float64) for i in range(0, x.size, 2**20))
    return math.sqrt(math.fsum(float(piece @ piece) for piece in pieces))
