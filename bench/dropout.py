"""`fusestep bench dropout`: dropout and dropout + residual against torch's."""

from __future__ import annotations

from dataclasses import dataclass

import fusestep.nn.functional as F
import torch
from torch import Tensor

from .cases import Case
from .floor import Pass, bytes_per_element, floor
from .functions import Function, MakeStep, both, forward
from .peers import FUNCTION
from .rows import OURS, Bar, Row, timing_row
from .session import Session
from .timing import Contestant, measure

TORCH = "torch F.dropout"
P = 0.1
FORWARD, IN_PLACE, BOTH = "dropout", "dropout in place", "dropout, forward + backward"
ADD, ADD_BOTH = "dropout + residual", "dropout + residual, forward + backward"

BARS = (
    Bar(FORWARD, "elements", TORCH, 1 / 10),
    Bar(IN_PLACE, "elements", TORCH, 1 / 20),
)


@dataclass(frozen=True)
class Operation:
    """What is called, on what, and what has to move where the mask costs nothing."""

    title: str
    ours: Function
    theirs: Function
    make_step: MakeStep
    moved: tuple[Pass, ...]


def elements_case(quick: bool) -> Case:
    return Case("elements", "1M elements", [(2**20,)]) if quick else Case("elements", "4M elements", [(2**22,)])


def operations(case: Case) -> list[Operation]:
    generator = torch.Generator().manual_seed(0)
    x, residual, grad = (torch.randn(case.shapes[0], generator=generator) for _ in range(3))
    # Zeros stay zeros, and would be as fast as anything: torch's own time does not depend on the values either.
    in_place = x.clone()
    out, grad_x = [torch.empty_like(x)], [torch.empty_like(x)]

    def torch_dropout(x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(x, P)

    def torch_in_place(x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(x, P, inplace=True)

    def torch_add(x: Tensor, residual: Tensor) -> Tensor:
        return residual + torch.nn.functional.dropout(x, P)

    def our_dropout(x: Tensor) -> Tensor:
        return F.dropout(x, P)

    def our_in_place(x: Tensor) -> Tensor:
        return F.dropout(x, P, inplace=True)

    def our_add(x: Tensor, residual: Tensor) -> Tensor:
        return F.dropout_add(x, residual, P)

    plain = Pass(read=([x],), written=(out,))
    backward = Pass(read=([grad],), written=(grad_x,))  # that of the residual is the result's own
    add = Pass(read=([x], [residual]), written=(out,))
    return [
        Operation(FORWARD, our_dropout, torch_dropout, forward(x), (plain,)),
        Operation(IN_PLACE, our_in_place, torch_in_place, forward(in_place), (Pass(updated=([in_place],)),)),
        Operation(BOTH, our_dropout, torch_dropout, both(grad, x), (plain, backward)),
        Operation(ADD, our_add, torch_add, forward(x, residual), (add,)),
        Operation(ADD_BOTH, our_add, torch_add, both(grad, x, residual), (add, backward)),
    ]


def run(case: Case, session: Session) -> list[Row]:
    slow, rows = session.effort.slow_rounds, []
    for operation in operations(case):
        session.say(f"{operation.title}, {case.title}")
        contestants = [
            Contestant(OURS, operation.make_step(operation.ours)),
            floor(*operation.moved),
            Contestant(TORCH, operation.make_step(operation.theirs), slow),
            *session.peers.contestants(FUNCTION, operation.theirs, operation.make_step, max_rounds=slow),
        ]
        timings, moved = measure(contestants, session.effort), bytes_per_element(*operation.moved)
        rows.append(timing_row("dropout", operation.title, case, moved, timings, BARS))
    return rows
