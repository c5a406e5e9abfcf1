"""Penalties of the weights as terms of the loss, against their formulas in float64 and against weight decay."""

from __future__ import annotations

import fusestep.optim
import pytest
import torch
from fusestep.losses import l1_penalty, l2_penalty


def weights(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in ((7, 5), (3,), ())]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_values_and_gradients(dtype):
    tensors = weights(dtype)
    flat = torch.cat([t.detach().double().flatten() for t in tensors])
    accumulated = torch.float64 if dtype == torch.float64 else torch.float32
    bound = (flat.numel() + 4) * torch.finfo(accumulated).eps  # of a sum of positive terms, in any order
    for penalty, value, slope in (
        (l1_penalty, 0.3 * flat.abs().sum(), torch.sign),
        (l2_penalty, 0.3 * flat.square().sum(), lambda w: 2 * w),
    ):
        result = penalty(iter(tensors), 0.3)
        assert (result.shape, result.dtype) == ((), accumulated)
        assert float(result.detach()) == pytest.approx(float(value), rel=bound)
        for tensor, gradient in zip(tensors, torch.autograd.grad(result, tensors), strict=True):
            expected = 0.3 * slope(tensor.detach().double())
            # Two factors in the wider type, one rounding to the parameter's.
            error = (gradient.double() - expected).abs()
            assert gradient.dtype == dtype
            assert bool((error <= (torch.finfo(dtype).eps + 2 * torch.finfo(accumulated).eps) * expected.abs()).all())


def test_l2_penalty_is_the_weight_decay_of_sgd():
    results = []
    for decay in (0.0, 0.25):
        (parameter,) = weights(torch.float64)[:1]
        optimizer = fusestep.optim.SGD([parameter], lr=0.5, weight_decay=decay)
        loss = parameter.sin().sum()
        (loss if decay else loss + l2_penalty(parameter, 0.125)).backward()
        optimizer.step()
        results.append(parameter.detach())
    torch.testing.assert_close(results[0], results[1], rtol=8 * torch.finfo(torch.float64).eps, atol=1e-16)


@pytest.mark.parametrize("penalty", [l1_penalty, l2_penalty])
def test_penalties_refuse(penalty):
    name = penalty.__name__
    with pytest.raises(ValueError, match=rf"{name}: strength: expected a finite number >= 0, got -1"):
        penalty(torch.ones(2), -1)
    with pytest.raises(TypeError, match=rf"{name}: strength: expected a number, got True"):
        penalty(torch.ones(2), True)
    with pytest.raises(ValueError, match=rf"{name}: parameters: expected at least one tensor, got none"):
        penalty([], 0.1)
