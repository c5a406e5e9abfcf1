"""fusestep.nn.functional.dropout, dropout_add and fusestep.nn.Dropout as PyTorch operations."""

from __future__ import annotations

import inspect

import fusestep.nn as fnn
import fusestep.nn.functional as F
import pytest
import torch
from fusestep import ops
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

P = 0.3
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def draw(*shape, dtype=torch.float32, grad=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_(grad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernels_results_come_out(dtype):
    x, residual = draw(3, 50, dtype=dtype), draw(3, 50, dtype=dtype, seed=1)
    assert torch.equal(F.dropout(x, P, seed=7, offset=2), ops.dropout(x, P, seed=7, offset=2))
    expected = ops.dropout_add(x, residual, P, seed=7, offset=2)
    assert torch.equal(F.dropout_add(x, residual, P, seed=7, offset=2), expected)
    assert x.dtype == dtype


def test_drops_and_scales():
    kept = F.dropout(torch.ones(1000, 1000), 0.25, seed=1)
    # 0.25 is a multiple of 2^-16: the survivors are scaled by 4/3 itself.
    assert set(kept.unique().tolist()) == {0.0, float(torch.tensor(4 / 3))}
    # Six standard deviations of a binomial of 1e6 with 3/4.
    assert abs(int((kept > 0).sum()) - 750_000) < 6 * (1e6 * 0.25 * 0.75) ** 0.5


def test_gradients_are_derivatives_twice():
    x, residual = draw(5, 9, dtype=torch.float64, grad=True), draw(5, 9, dtype=torch.float64, grad=True, seed=1)
    for function, inputs in (
        (lambda x: F.dropout(x, P, seed=3).square(), [x]),
        (lambda x: F.dropout(x * 1.0, P, inplace=True, seed=3).square(), [x]),
        (lambda x, residual: F.dropout_add(x, residual, P, seed=3).square(), [x, residual]),
        (lambda x, residual: F.dropout_add(x.T, residual.T, P, seed=3).square(), [x, residual]),
    ):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


ALL = {
    "dropout": lambda x: F.dropout(x, 1.0),
    "dropout, an integer": lambda x: F.dropout(x, 1),
    "dropout in place": lambda x: F.dropout(x * 1.0, 1.0, inplace=True),
    "module": lambda x: fnn.Dropout(1.0)(x),
    "dropout_add": lambda x: F.dropout_add(x, torch.zeros_like(x), 1.0),
    "masked_softmax": lambda x: F.masked_softmax(x, dropout_p=1.0),
    "attention": lambda x: F.attention(x, x, x, dropout_p=1.0),
    "scaled_dot_product_attention": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=1.0),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ALL)
def test_all_is_dropped_with_p_1(name, dtype):
    """As in torch: zeros, and zero gradients."""
    x = draw(2, 3, 40, 8, dtype=dtype, grad=True)
    out = ALL[name](x)
    assert out.dtype == dtype
    assert torch.equal(out, torch.zeros_like(x))
    (gradient,) = torch.autograd.grad(out, x, torch.ones_like(out))
    assert torch.equal(gradient, torch.zeros_like(x))


def test_the_residual_is_left_with_p_1():
    x, residual = draw(9, grad=True), draw(9, grad=True, seed=1)
    out = F.dropout_add(x, residual, 1.0)
    assert torch.equal(out, residual)
    gradients = torch.autograd.grad(out.sum(), [x, residual])
    assert torch.equal(gradients[0], torch.zeros(9))
    assert torch.equal(gradients[1], torch.ones(9))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("residual_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_two_dtypes_are_promoted_as_torch_does(dtype, residual_dtype, compiled):
    """And each gradient has the dtype of its tensor."""

    def ours(x, residual):
        return F.dropout_add(x, residual, P, seed=7)

    torch.compiler.reset()  # it compiles one function for a few dtypes at most
    run = torch.compile(ours, backend="aot_eager", fullgraph=True) if compiled else ours
    x, residual = draw(3, 50, dtype=dtype, grad=True), draw(3, 50, dtype=residual_dtype, grad=True, seed=1)
    out = run(x, residual)
    assert out.dtype == (residual + x).dtype
    assert torch.equal(out, ops.dropout_add(x.detach(), residual.detach(), P, seed=7))
    upstream = draw(3, 50, dtype=out.dtype, seed=2)
    gradients = torch.autograd.grad(out, [x, residual], upstream)
    assert torch.equal(gradients[0], ops.dropout(upstream, P, seed=7).to(dtype))
    assert torch.equal(gradients[1], upstream.to(residual_dtype))
    assert gradients[0].dtype == dtype


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("p", [0.0, P])
def test_without_dropout_nothing_is_done(training, p):
    if training and p > 0:
        return
    x, residual = draw(9), draw(9, seed=1)
    state = torch.get_rng_state()
    assert F.dropout(x, p, training) is x
    assert F.dropout(x, p, training, inplace=True) is x
    assert torch.equal(F.dropout_add(x, residual, p, training), residual + x)
    assert torch.equal(torch.get_rng_state(), state)


def test_layouts_are_kept_and_elements_counted_by_shape():
    x = draw(6, 50).T
    out = F.dropout(x, P, seed=1)
    assert out.stride() == x.stride()
    assert torch.equal(out, F.dropout(x.contiguous(), P, seed=1))
    assert torch.equal(F.dropout_add(x, x, P, seed=1), F.dropout_add(x.contiguous(), x, P, seed=1))
    expanded = draw(1, 50).expand(6, 50)
    assert torch.equal(F.dropout(expanded, P, seed=1), F.dropout(expanded.contiguous(), P, seed=1))


def test_in_place_is_in_place_and_autograd_knows():
    x = draw(7)
    expected = F.dropout(x, P, seed=1)
    version = x._version
    assert F.dropout(x, P, inplace=True, seed=1) is x
    assert torch.equal(x, expected)
    assert x._version == version + 1

    leaf = draw(7, grad=True)
    hidden = leaf * 2
    assert F.dropout(hidden, P, inplace=True, seed=1) is hidden
    (grad,) = torch.autograd.grad(hidden.sum(), leaf)
    assert torch.equal(grad, F.dropout(torch.ones(7), P, seed=1) * 2)

    saved = leaf.exp()  # its derivative needs the value that is overwritten
    F.dropout(saved, P, inplace=True, seed=1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.sum().backward()

    before = leaf.detach().clone()
    with pytest.raises(RuntimeError, match="dropout: x: expected a tensor that may be changed in place, got a leaf"):
        F.dropout(leaf, P, inplace=True)
    assert torch.equal(leaf, before)
    with torch.no_grad():
        F.dropout(leaf, P, inplace=True)


def test_nothing_is_kept_for_backward():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda x: x):
        F.dropout_add(draw(5, grad=True), F.dropout(draw(5, grad=True), P), P)
    assert not kept


def test_seeds_come_from_torchs_generator():
    x = draw(1000)
    torch.manual_seed(0)
    first, second = F.dropout(x, P), F.dropout(x, P)
    torch.manual_seed(0)
    assert torch.equal(F.dropout_add(x, torch.zeros_like(x), P), first)
    assert not torch.equal(first, second)
    assert torch.equal(F.dropout(x, P, seed=torch.tensor(-1)), F.dropout(x, P, seed=2**64 - 1))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_drops_the_same_twice(reentrant):
    x = draw(1000, grad=True)
    results = []
    for run in (F.dropout, lambda x, p: checkpoint(F.dropout, x, p, use_reentrant=reentrant)):
        torch.manual_seed(0)
        out = run(x, P)
        results.append((out, torch.autograd.grad(out.sum(), x)[0]) if not reentrant else backward(out, x))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def backward(out, x):
    """Reentrant checkpoints know .backward() alone."""
    x.grad = None
    out.sum().backward()
    return out, x.grad


def test_proper_operators():
    for dtype in (torch.float32, torch.bfloat16):
        x, residual = draw(4, 6, dtype=dtype, grad=True), draw(4, 6, dtype=dtype, grad=True)
        opcheck(torch.ops.fusestep.dropout.default, (x, P, torch.tensor(3), 1))
        opcheck(torch.ops.fusestep.dropout_add.default, (x, residual, P, torch.tensor(3), 1))
        opcheck(torch.ops.fusestep.dropout_add.default, (x, residual.detach().double(), P, torch.tensor(3), 1))
        strided = x.detach().T.requires_grad_()
        opcheck(
            torch.ops.fusestep.dropout_add.default, (strided, residual.detach().T.contiguous(), P, torch.tensor(3), 1)
        )


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # by inductor itself
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_whole(backend):
    def function(x, residual, seed):
        x = F.dropout(x * 2, P, inplace=True, seed=seed)
        return F.dropout_add(F.dropout(x, P, seed=seed, offset=1), residual, P, seed=seed, offset=2)

    x, residual = draw(8, 16, grad=True), draw(8, 16, grad=True, seed=1)
    compiled = torch.compile(function, backend=backend, fullgraph=True)
    for seed in (1, 2, torch.tensor(3)):
        ours, plain = compiled(x, residual, seed), function(x, residual, seed)
        assert torch.equal(ours, plain)  # products with powers of two between the kernels: nothing to round
        for a, b in zip(*(torch.autograd.grad(out.sum(), [x, residual]) for out in (ours, plain)), strict=True):
            assert torch.equal(a, b)


def test_module():
    module = fnn.Dropout(P)
    assert repr(module) == f"Dropout(p={P}, inplace=False)"
    torch_parameters = inspect.signature(torch.nn.Dropout).parameters
    assert list(inspect.signature(fnn.Dropout).parameters) == list(torch_parameters)
    x = draw(100)
    torch.manual_seed(0)
    out = module(x)
    torch.manual_seed(0)
    assert torch.equal(out, F.dropout(x, P))
    assert module.eval()(x) is x
    inplace = fnn.Dropout(P, inplace=True)
    assert inplace(x) is x


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: F.dropout(x, 1.5), ValueError, r"dropout: p: expected a probability in \[0, 1\], got 1.5"),
        (lambda x: F.dropout(x, float("nan")), ValueError, "dropout: p: expected a probability"),
        (lambda x: F.dropout(x, "1"), TypeError, "dropout: p: expected a number"),
        (lambda x: F.dropout(x, -0.1, training=False), ValueError, "dropout: p: expected"),
        (lambda x: F.dropout(x.long(), P), TypeError, "dropout: x: expected"),
        (lambda x: F.dropout(x, P, seed=-1), ValueError, "dropout: seed: expected"),
        (lambda x: F.dropout(x, P, seed=True), TypeError, "dropout: seed: expected an integer"),
        (lambda x: F.dropout(x, P, offset=2**32), ValueError, "dropout: offset: expected"),
        (lambda x: F.dropout(x.expand(3, 4), P, inplace=True), ValueError, "dropout: "),
        (lambda x: F.dropout_add(x, x[:2], P), ValueError, "dropout_add: residual: expected"),
        (lambda x: F.dropout_add(x, x.long(), P), TypeError, "dropout_add: residual: expected"),
        (lambda x: fnn.Dropout(1.5), ValueError, r"Dropout: p: expected a probability in \[0, 1\], got 1.5"),
    ],
)
def test_what_cannot_be_taken_is_named(call, error, message):
    x = draw(4)
    before = x.clone()
    with pytest.raises(error, match=message):
        call(x)
    assert torch.equal(x, before)
