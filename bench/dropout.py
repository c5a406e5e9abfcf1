"""`fusestep bench dropout`: dropout and dropout + residual against torch's."""

from __future__ import annotations

from collections.abc import Callable

import fusestep.nn.functional as F
import torch
from torch import Tensor

from .cases import Case
from .rows import OURS, Bar, Row, timing_row
from .timing import Contestant, Effort, measure

TORCH = "torch F.dropout"
P = 0.1
FORWARD, IN_PLACE, BOTH = "dropout", "dropout in place", "dropout, forward + backward"
ADD, ADD_BOTH = "dropout + residual", "dropout + residual, forward + backward"

BARS = (
    Bar(FORWARD, "elements", TORCH, 1 / 10),
    Bar(IN_PLACE, "elements", TORCH, 1 / 20),
)


def elements_case(quick: bool) -> Case:
    return Case("elements", "1M elements", [(2**20,)]) if quick else Case("elements", "4M elements", [(2**22,)])


def run(case: Case, effort: Effort, say: Callable[[str], None]) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    x, residual, grad = (torch.randn(case.shapes[0], generator=generator) for _ in range(3))
    theirs, ours = torch.nn.functional.dropout, F.dropout

    def torch_add(x: Tensor, residual: Tensor) -> Tensor:
        return residual + theirs(x, P)

    def our_add(x: Tensor, residual: Tensor) -> Tensor:
        return F.dropout_add(x, residual, P)

    def both(function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], object]:
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        return lambda: torch.autograd.grad(function(*leaves), leaves, grad)

    # Zeros stay zeros, and would be as fast as anything: torch's own time does not depend on the values either.
    in_place = x.clone()
    # Operation, ours, torch's, bytes an element: what is read and written when the mask costs nothing.
    operations: list[tuple[str, Callable[[], object], Callable[[], object], int]] = [
        (FORWARD, lambda: ours(x, P), lambda: theirs(x, P), 8),
        (IN_PLACE, lambda: ours(in_place, P, inplace=True), lambda: theirs(in_place, P, inplace=True), 8),
        (BOTH, both(lambda x: ours(x, P), x), both(lambda x: theirs(x, P), x), 16),
        (ADD, lambda: our_add(x, residual), lambda: torch_add(x, residual), 12),
        (ADD_BOTH, both(our_add, x, residual), both(torch_add, x, residual), 20),
    ]
    rows = []
    for operation, our_step, torch_step, num_bytes in operations:
        say(f"{operation}, {case.title}")
        contestants = [Contestant(OURS, our_step), Contestant(TORCH, torch_step, effort.slow_rounds)]
        rows.append(timing_row("dropout", operation, case, num_bytes, measure(contestants, effort), BARS))
    return rows
