"""Every public function of fusestep.nn under torch.autocast: its dtypes are those of torch's, and a model trains."""

from __future__ import annotations

import fusestep.nn as fnn
import fusestep.nn.functional as F
import pytest
import torch
from fusestep.models import GPT, GPTConfig
from torch import nn

LOW = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
by_low = pytest.mark.parametrize("low", LOW)
by_dtype = pytest.mark.parametrize("dtype", DTYPES)
SDPA = nn.functional.scaled_dot_product_attention


def draw(*shape, dtype=torch.float32, seed=0, grad=True):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(grad)


# ours, torch's own, and the shapes of the inputs. None of torch's drop anything: dtypes are compared.
FUNCTIONS = {
    "attention": (F.attention, SDPA, [(2, 3, 4, 8)] * 3),
    "scaled_dot_product_attention": (F.scaled_dot_product_attention, SDPA, [(2, 3, 4, 8)] * 3),
    "scaled_dot_product_attention, broadcast": (F.scaled_dot_product_attention, SDPA, [(5, 8), (3, 4, 8), (3, 4, 8)]),
    "dropout": (lambda x: F.dropout(x, 0.5), lambda x: nn.functional.dropout(x, 0.5), [(3, 5)]),
    "Dropout": (fnn.Dropout(0.5), nn.Dropout(0.5), [(3, 5)]),
    "dropout_add": (
        lambda x, residual: F.dropout_add(x, residual, 0.5),
        lambda x, residual: residual + nn.functional.dropout(x, 0.5),
        [(3, 5)] * 2,
    ),
}


@by_low
@by_dtype
@pytest.mark.parametrize("name", FUNCTIONS)
def test_dtypes_are_torchs(name, dtype, low):
    ours, theirs, shapes = FUNCTIONS[name]
    inputs = [draw(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]
    with torch.autocast("cpu", low):
        out = ours(*inputs)
        assert out.dtype == theirs(*inputs).dtype
    for x, gradient in zip(inputs, torch.autograd.grad(out.sum(), inputs), strict=True):
        assert gradient.dtype == x.dtype


@by_low
@by_dtype
@pytest.mark.parametrize("masked", ["boolean", "float32", "low"])
def test_masks(masked, dtype, low):
    query, key, value = (draw(2, 3, 4, 8, dtype=dtype, seed=i) for i in range(3))
    mask = draw(4, 4, seed=3, grad=False)
    mask = {"boolean": mask > -1, "float32": mask, "low": mask.to(low)}[masked]
    if dtype == torch.float64 and masked == "low":
        return  # what is computed in float64 takes no mask of 16 bits, under autocast or not
    with torch.autocast("cpu", low):
        out = F.attention(query, key, value, mask=mask, causal=True)
        swapped = F.scaled_dot_product_attention(query, key, value, mask)
    inside = dtype if dtype == torch.float64 else low
    expected = F.attention(*(x.to(inside) for x in (query, key, value)), mask=mask, causal=True)
    assert torch.equal(out, expected)
    assert torch.equal(swapped, F.attention(*(x.to(inside) for x in (query, key, value)), mask=mask))


@by_low
@by_dtype
def test_a_softmax_keeps_its_dtype(dtype, low):
    """torch's own goes up to float32. This one computes in float32 whatever comes in, and stores as what came in."""
    scores = draw(3, 4, 5, dtype=dtype)
    with torch.autocast("cpu", low):
        out = F.masked_softmax(scores, causal=True)
    assert torch.equal(out, F.masked_softmax(scores, causal=True))


@by_low
@pytest.mark.parametrize("residual_is_low", [False, True])
def test_dropout_add_after_a_linear_layer(residual_is_low, low):
    """A low x beside a float32 residual, and the reverse: torch's promotion of residual + dropout(x)."""
    layer, x = nn.Linear(8, 8), draw(3, 8)
    with torch.autocast("cpu", low):
        hidden = layer(x)
        assert hidden.dtype == low
        first, second = (x, hidden) if residual_is_low else (hidden, x)
        out = F.dropout_add(first, second, 0.5, seed=1)
        assert out.dtype == torch.float32
    # The kept ones are scaled in float32: with p = 0.5 by 2, which is exact in every dtype.
    assert torch.equal(out, second + F.dropout(first, 0.5, seed=1))
    out.sum().backward()
    assert layer.weight.grad.dtype == x.grad.dtype == torch.float32


@by_low
@pytest.mark.parametrize("need_weights", [False, True])
def test_multihead_attention(need_weights, low):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(16, 4, batch_first=True)
    ours = fnn.MultiheadAttention(16, 4, batch_first=True)
    ours.load_state_dict(theirs.state_dict())
    x = draw(2, 5, 16)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.autocast("cpu", low):
        out, weights = ours(x, x, x, key_padding_mask=padding, need_weights=need_weights)
        expected, _ = theirs(x, x, x, key_padding_mask=padding)
    assert out.dtype == expected.dtype
    # Two roundings to `low` apart at most, of values below 1.
    torch.testing.assert_close(out.float(), expected.float(), rtol=0, atol=4 * torch.finfo(low).eps)
    out.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in ours.parameters())
    assert (weights is not None) == need_weights


@by_low
@pytest.mark.parametrize("kernels", ["fusestep", "torch"])
def test_a_gpt_trains(kernels, low):
    """The default dropout, so that every residual is added to what was dropped, in float32 beside `low`."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(context=16, layers=2, heads=2, width=32, kernels=kernels))
    assert model.config.dropout > 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scaler = torch.amp.GradScaler("cpu", enabled=low == torch.float16)
    tokens = torch.arange(17).repeat(8, 1)
    losses = []
    for _ in range(30):
        with torch.autocast("cpu", low):
            logits = model(tokens[:, :-1])
            loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        scaler.scale(loss).backward()
        assert all(p.grad.dtype == p.dtype == torch.float32 for p in model.parameters())
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
