"""A name that does not exist is refused, with the nearest that does: also where C++ reads it."""

from __future__ import annotations

import fusestep.optim
import pytest
import torch
from fusestep.nn import functional as F


def step(**options):
    param = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    param.grad = torch.ones_like(param)
    fusestep.optim.AdamW([param], max_grad_norm=1.0, **options).step()


def attend(**options):
    x = torch.ones(1, 1, 2, 4)
    F.attention(x, x, x, **options)


def lose(**options):
    F.cross_entropy(torch.ones(2, 3), torch.tensor([0, 1]), **options)


@pytest.mark.parametrize(
    ("call", "options", "nearest"),
    [
        (step, {"on_nonfinite": "skipp"}, "skip"),
        (step, {"on_nonfinite": "RAISE"}, "raise"),
        (step, {"rounding": "stocastic"}, "stochastic"),
        (step, {"rounding": "kahn"}, "kahan"),
        (step, {"state_dtype": "8bits"}, "8bit"),
        (attend, {"causal": "bottom-right"}, "bottom_right"),
        (lose, {"reduction": "means"}, "mean"),
    ],
)
def test_the_nearest_name(call, options, nearest):
    (name,) = options
    with pytest.raises((ValueError, TypeError), match=rf"{name}: expected .*Did you mean '{nearest}'\?$"):
        call(**options)


def test_nothing_is_near():
    with pytest.raises(ValueError, match=r"on_nonfinite: expected .*, got 7$"):
        step(on_nonfinite=7)
