"""Spectral norms of blocks' Jacobians, against the singular values of the whole matrices."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import small_runs
import torch
from fusestep.diagnostics import block_jacobians, model_health
from fusestep.nn.init import init_weights_
from small_runs import one_thread  # noqa: F401  # for every test of this file
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by forward mode itself


def matrix(block: nn.Module, h: torch.Tensor) -> torch.Tensor:
    out = block(h)
    return torch.autograd.functional.jacobian(block, h).reshape(out.numel(), h.numel())


def test_singular_values_of_blocks_of_any_shape():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Linear(5, 9), nn.Tanh()), nn.Linear(9, 3), nn.Sequential(nn.LayerNorm(3), nn.Dropout(0.5))
    ).double()
    x = torch.randn(4, 5).double()
    model.train()
    report = block_jacobians(model, x, tolerance=1e-6, max_iterations=5000)
    assert model.training
    model.eval()
    assert [block.name for block in report] == ["0", "1", "2"]
    h = x
    for block, module in zip(report, model, strict=True):
        values = torch.linalg.svdvals(matrix(module, h))
        # ||J'J v - s^2 v|| <= r s^2, ||v|| = 1: an eigenvalue of J'J lies within r s^2 of s^2. Here it is the largest.
        assert block.residual <= 1e-6
        assert block.spectral_norm == pytest.approx(float(values[0]), rel=1e-6)
        assert block.forward == "jvp"
        # One draw of u: E ||J'u||^2 = ||J||_F^2, and its standard deviation sqrt(2 sum s^4); four of them.
        squares = values.square()
        expected = float(squares.sum()) / len(matrix(module, h))
        spread = 4 * math.sqrt(2 * float(squares.square().sum())) / len(matrix(module, h))
        assert block.mean_gain**2 == pytest.approx(expected, abs=spread)
        h = module(h)
    assert report.spectral_product == pytest.approx(math.prod(b.spectral_norm for b in report), rel=1e-15)


def test_the_gpt_by_forward_mode_and_by_differences():
    """fusestep's attention has no forward mode: J v is then a quotient of differences, and the report says so."""
    tokens = next(iter(small_runs.data()[0]))[0]
    for dtype, tolerance in ((torch.float32, 1e-2), (torch.float64, 1e-3)):
        reports = {}
        for kernels in ("fusestep", "torch"):
            model = small_runs.model(0, replace(small_runs.SHAPE, kernels=kernels)).to(dtype)
            reports[kernels] = block_jacobians(model, tokens, tolerance=tolerance)
        for ours, exact in zip(reports["fusestep"], reports["torch"], strict=True):
            assert (ours.forward, exact.forward) == ("differences", "jvp")
            assert ours.name == exact.name
            assert max(ours.residual, exact.residual) <= tolerance
            assert ours.spectral_norm == pytest.approx(exact.spectral_norm, rel=2 * tolerance)
    # The matrix itself. From below: power iteration nears the largest singular value by way of those just below it.
    model.eval()
    h = model.blocks[0](model.tokens(tokens[:1])).detach()
    largest = float(torch.linalg.svdvals(matrix(model.blocks[1], h))[0])
    norm = block_jacobians(model, tokens[:1], blocks=["blocks.1"], tolerance=1e-3)[0].spectral_norm
    assert (1 - 1e-3) * largest <= norm <= (1 + 1e-12) * largest


def test_a_block_that_passes_nothing_on():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.init.constant_(model[0].bias, -100.0)
    report = block_jacobians(model, torch.randn(5, 3))
    assert [block.spectral_norm > 0.0 for block in report] == [True, False, True]
    assert report.spectral_product == 0.0


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(width), nn.Sequential(nn.Linear(width, width), nn.ReLU())

    def forward(self, x):
        return x + self.inner(self.norm(x))


DEPTH, WIDTH = 24, 32


def test_sigmoids_against_residuals_and_normalisation():
    """The chain rule's product of Jacobians: over a deep stack of sigmoids it vanishes; with a way round each block, a
    normalisation and rectifiers it does not. Deep down, the gradient itself does as the product says.
    """
    torch.manual_seed(0)
    batch = torch.randn(16, WIDTH), torch.randint(0, WIDTH, (16,))
    sigmoids = nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Sigmoid()) for _ in range(DEPTH)))
    residuals = nn.Sequential(*(Residual(WIDTH) for _ in range(DEPTH)))
    for model in (sigmoids, residuals):
        init_weights_(model)
    vanishing, steady = (block_jacobians(model, batch[0], tolerance=0.05) for model in (sigmoids, residuals))
    # A sigmoid's slope is a quarter at most: here every block shrinks even the vector that it stretches most.
    assert max(block.spectral_norm for block in vanishing) < 1.0
    assert vanishing.spectral_product < 1e-6
    # x + f(x) has the identity in its Jacobian.
    assert min(block.mean_gain for block in steady) > 0.9
    assert 0.1 < steady.gain_product < 1e4

    health = model_health(sigmoids, batch)
    norms = [layer.grad_norm for layer in health]
    assert health[0].flag == "vanishing"
    assert norms[0] < 1e-9 * norms[-1]
    assert all(shallow < deep for shallow, deep in zip(norms, norms[2:], strict=False))
    health = model_health(residuals, batch)
    assert {layer.flag for layer in health} == {"ok"}
    norms = [layer.grad_norm for layer in health if "inner" in layer.name]
    assert 0.1 < norms[0] / norms[-1] < 100


def test_jacobians_refuse():
    model = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="block_jacobians: blocks: expected names of modules of the model, got '7'"):
        block_jacobians(model, torch.randn(2, 3), blocks=["7"])
    with pytest.raises(ValueError, match=r"block_jacobians: blocks: expected an nn.ModuleList or nn.Sequential"):
        block_jacobians(nn.Linear(3, 3), torch.randn(2, 3))
    with pytest.raises(ValueError, match="block_jacobians: blocks: expected modules that are called with a floating"):
        block_jacobians(nn.Sequential(nn.Embedding(3, 3)), torch.tensor([1]))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        block_jacobians(model, torch.randn(2, 5))
