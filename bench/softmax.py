"""`fusestep bench softmax`: the masked softmax with dropout against torch's three calls and the floor of its bytes."""

from __future__ import annotations

from dataclasses import dataclass

import fusestep.nn.functional as F
import torch
from torch import Tensor

from .cases import Case, Shape
from .floor import Pass, bytes_per_element, floor
from .functions import Function, both, forward
from .peers import FUNCTION
from .rows import OURS, Row, timing_row
from .session import Session
from .timing import Contestant, measure

TORCH = "torch masked_fill, softmax, dropout"
FORWARD, BOTH = "masked softmax, forward", "masked softmax, forward + backward"
MASKS = ("causal", "boolean")
RATES = (0.0, 0.1)
SHAPES: tuple[Shape, ...] = ((8, 12, 256, 256), (4, 12, 1024, 1024))
QUICK_SHAPES: tuple[Shape, ...] = ((2, 12, 256, 256),)


@dataclass(frozen=True)
class Problem:
    """Scores of a model's attention, float32, with a mask and dropout of the weights."""

    shape: Shape  # (B, H, Sq, Sk)
    mask: str
    p: float

    @property
    def case(self) -> Case:
        title = f"{self.shape} {self.mask}, p = {self.p:g}"
        return Case(title, title, [self.shape])

    def functions(self) -> tuple[Function, Function]:
        """Ours, and torch's. torch's causal mask is made once, not in each call."""
        batch, _, queries, keys = self.shape
        generator = torch.Generator().manual_seed(1)
        if self.mask == "causal":
            present = torch.ones(queries, keys, dtype=torch.bool).tril()
        else:  # one for each sequence; three of four keys
            present = torch.rand(batch, 1, queries, keys, generator=generator) > 0.25
        absent = ~present

        def ours(scores: Tensor) -> Tensor:
            if self.mask == "causal":
                return F.masked_softmax(scores, causal=True, dropout_p=self.p)
            return F.masked_softmax(scores, mask=present, dropout_p=self.p)

        def theirs(scores: Tensor) -> Tensor:
            weights = torch.softmax(scores.masked_fill(absent, -torch.inf), -1)
            return torch.nn.functional.dropout(weights, self.p)

        return ours, theirs


def problems(shapes: tuple[Shape, ...]) -> list[Problem]:
    return [Problem(shape, mask, p) for shape in shapes for mask in MASKS for p in RATES]


def run(shapes: tuple[Shape, ...], session: Session) -> list[Row]:
    """Two rows for each shape, mask and rate: the forward pass, and both passes.

    The floor counts all scores, also where a causal mask leaves half of them out, and does not count the mask.
    """
    slow, rows = session.effort.slow_rounds, []
    for problem in problems(shapes):
        generator = torch.Generator().manual_seed(0)
        scores, grad, out, grad_scores = (torch.randn(problem.shape, generator=generator) for _ in range(4))
        first = Pass(read=([scores],), written=([out],))
        second = Pass(read=([grad], [out]), written=([grad_scores],))
        ours, theirs = problem.functions()
        for operation, make_step, moved in (
            (FORWARD, forward(scores), (first,)),
            (BOTH, both(grad, scores), (first, second)),
        ):
            session.say(f"{operation}, {problem.case.title}")
            contestants = [
                Contestant(OURS, make_step(ours)),
                floor(*moved),
                Contestant(TORCH, make_step(theirs), slow),
                *session.peers.contestants(FUNCTION, theirs, make_step, max_rounds=slow),
            ]
            timings = measure(contestants, session.effort)
            rows.append(timing_row("softmax", operation, problem.case, bytes_per_element(*moved), timings))
    return rows
