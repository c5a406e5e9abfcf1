"""fusestep.nn.functional.cross_entropy against torch's, and the penalties."""

from __future__ import annotations

import fusestep.nn.functional as F
import pytest
import torch
from fusestep.losses import l1_penalty, l2_penalty
from torch.autograd import gradcheck


def draw(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype).requires_grad_()


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_gradients(reduction):
    labels = torch.tensor([1, 0, -100, 4])

    def loss(x):
        return F.cross_entropy(x, labels, reduction=reduction, label_smoothing=0.1, z_loss=0.01)

    assert gradcheck(loss, draw(4, 5))


def test_over_the_logits():
    labels, x = torch.tensor([1, 0, -100, 4]), draw(4, 5)
    (want,) = torch.autograd.grad(torch.nn.functional.cross_entropy(x, labels) * 3, x)
    logits = x * 1.0
    (got,) = torch.autograd.grad(F.cross_entropy(logits, labels, overwrite_logits=True) * 3, x)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(logits.detach() * 3, want)
    with pytest.raises(RuntimeError, match="cross_entropy: input: expected a tensor that may be changed in place"):
        F.cross_entropy(x, labels, overwrite_logits=True)


def test_what_the_kernel_does_not_take_is_torchs():
    x, labels = draw(3, 5, 2), torch.tensor([[0, 1], [2, 3], [4, -100]])
    weight = torch.rand(5, dtype=torch.float64)
    got = F.cross_entropy(x, labels, weight, z_loss=0.0)
    assert torch.equal(got, torch.nn.functional.cross_entropy(x, labels, weight))
    soft = torch.rand(4, 5, dtype=torch.float64).softmax(-1)
    y = draw(4, 5)
    assert torch.equal(F.cross_entropy(y, soft), torch.nn.functional.cross_entropy(y, soft))


def test_penalties_by_hand():
    parameters = [torch.tensor([1.0, -2.0]), torch.tensor([[3.0]], dtype=torch.bfloat16)]
    assert float(l1_penalty(parameters)) == 6
    assert float(l2_penalty(iter(parameters))) == 14
    with pytest.raises(ValueError, match="l1_penalty: parameters: expected at least one tensor"):
        l1_penalty([])
