"""Cross-entropy."""

from __future__ import annotations

import math

import pytest
import torch
from fusestep.losses import cross_entropy
from torch import nn


def test_cross_entropy_by_hand():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]], dtype=torch.float64)
    hard = cross_entropy(logits, torch.tensor([1, 0]))
    # Two logarithms and a mean: a few roundings.
    assert float(hard) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, rel=1e-15)
    soft = cross_entropy(logits, torch.tensor([[0.25, 0.75], [1.0, 0.0]], dtype=torch.float64))
    expected = (0.25 * math.log(4) + 0.75 * math.log(4 / 3) + math.log(2)) / 2
    assert float(soft) == pytest.approx(expected, rel=1e-15)
    one_hot = nn.functional.one_hot(torch.tensor([1, 0]), 2).double()
    assert float(cross_entropy(logits, one_hot)) == pytest.approx(float(hard), rel=1e-15)


def test_cross_entropy_with_leading_dimensions():
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 3, 5, dtype=torch.float64), torch.randint(0, 5, (2, 3))
    flat = cross_entropy(logits.reshape(6, 5), targets.reshape(6))
    assert torch.equal(cross_entropy(logits, targets), flat)


def test_cross_entropy_refuses():
    logits = torch.zeros(2, 3, 5)
    with pytest.raises(ValueError, match=r"cross_entropy: targets: expected hard labels of shape \(2, 3\), got \(6,\)"):
        cross_entropy(logits, torch.zeros(6, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"expected soft labels of shape \(2, 3, 5\), got \(2, 3\)"):
        cross_entropy(logits, torch.zeros(2, 3))
    with pytest.raises(TypeError, match=r"expected int64 hard labels or floating soft labels, got torch.int32"):
        cross_entropy(logits, torch.zeros(2, 3, dtype=torch.int32))
