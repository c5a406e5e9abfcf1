"""Clipping inside the step against torch.nn.utils and torch's step; fusestep.nn.utils against torch's."""

from __future__ import annotations

import inspect
import math

import fusestep.optim
import numpy as np
import pytest
import torch
from fusestep.nn import utils
from tolerances import U, norm_error
from torch.nn import Parameter
from torch_pairs import (
    COMMON,
    SHAPES,
    STEPS,
    assert_as_exact_as_torch,
    assert_same_bits,
    make_grads,
    make_params,
    ours,
    snapshot,
    theirs,
    train,
)

NORM_TYPES = (1.0, 2.0, math.inf)


def true_norm(tensors, norm_type=2.0):
    """To a few roundings: the sum is exact."""
    values = [abs(x) for t in tensors for x in t.double().flatten().tolist()]
    if norm_type == math.inf:
        return max(values)
    return math.sqrt(math.fsum(x * x for x in values)) if norm_type == 2 else math.fsum(values)


def norm_tolerance(tensors, norm_type=2.0, dtype=torch.float64):
    """Of a norm in float64, then rounded to `dtype`; and the three roundings of true_norm."""
    numel = sum(t.numel() for t in tensors)
    return norm_error(numel, norm_type) + 3 * U["float64"] + (0.0 if dtype is torch.float64 else U[str(dtype)[6:]])


def torch_clip(params, clipping):
    norm_type = clipping.get("norm_type", 2.0)
    params = [p for p in params if p.numel()]  # torch has no maximum of an empty tensor
    if "max_grad_value" in clipping:
        torch.nn.utils.clip_grad_value_(params, clipping["max_grad_value"])
    elif "clip_factor" in clipping:
        if true_norm([p.grad for p in params], norm_type) > clipping["max_grad_norm"]:
            for p in params:
                p.grad.mul_(clipping["clip_factor"])
    else:
        torch.nn.utils.clip_grad_norm_(params, clipping["max_grad_norm"], norm_type)


CLIPPINGS = (
    {"max_grad_norm": 1.0},
    {"max_grad_norm": 1.0, "norm_type": 1.0},
    {"max_grad_norm": 0.5, "norm_type": math.inf},
    {"max_grad_norm": 15.0},  # bites in some of the steps only
    {"max_grad_norm": 15.0, "clip_factor": 0.125},
    {"max_grad_norm": math.inf},  # only measures
    {"max_grad_value": 0.5},
)


@pytest.mark.parametrize("clipping", CLIPPINGS, ids=str)
@pytest.mark.parametrize("row, options", **COMMON)
def test_agrees_with_torch(row, options, clipping):
    """One norm over the parameters of both groups."""
    results = []
    for dtype in (torch.float32, torch.float64):
        for cls in (ours(row), theirs(row)):
            params = make_params(dtype)
            groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.05}]
            if cls is ours(row):
                optimizer = cls(groups, **options, **clipping)
                train(optimizer, params)
            else:
                optimizer = cls(groups, **options)
                train(optimizer, params, before=lambda _, params=params: torch_clip(params, clipping))
            results.append(snapshot(optimizer, params))
    assert_as_exact_as_torch(*results)


@pytest.mark.parametrize("rewrite", [False, True])
@pytest.mark.parametrize("clipping", CLIPPINGS, ids=str)
def test_norm_and_gradients(clipping, rewrite):
    params = make_params()
    optimizer = fusestep.optim.RMSprop(params, **clipping, rewrite_grads=rewrite)
    assert optimizer.grad_norm is None
    for step in range(1, 4):
        train(optimizer, params, range(step, step + 1))
        expected = make_grads(step, params)
        if "max_grad_norm" in clipping:
            exact = true_norm(expected, clipping.get("norm_type", 2.0))
            tolerance = norm_tolerance(expected, clipping.get("norm_type", 2.0))
            assert optimizer.grad_norm == pytest.approx(exact, rel=tolerance)
        else:
            assert optimizer.grad_norm is None
        if not rewrite:
            assert all(torch.equal(p.grad, g) for p, g in zip(params, expected, strict=True))
            continue
        wide = [Parameter(p.detach().double()) for p in params]
        for p, g in zip(wide, expected, strict=True):
            p.grad = g.double()
        torch_clip(wide, clipping)
        for p, w in zip(params, wide, strict=True):
            # the factor rounded to float32, then the product
            np.testing.assert_allclose(p.grad, w.grad, rtol=2.0**-23, atol=0)


def test_a_norm_without_clipping():
    """on_nonfinite="skip" and "raise" look at the norm, so it is there to be seen."""
    params = make_params()
    optimizer = fusestep.optim.AdamW(params, on_nonfinite="skip")
    train(optimizer, params, range(1, 2))
    grads = make_grads(1, params)
    assert optimizer.grad_norm == pytest.approx(true_norm(grads), rel=norm_tolerance(grads))


@pytest.mark.parametrize("row, options", **COMMON)
def test_clipping_that_begins_after_the_warm_up(row, options):
    results = []
    for together in (True, False):
        params = make_params()
        optimizer = ours(row)(params, **options)
        train(optimizer, params, range(1, 4))
        assert optimizer.grad_norm is None
        if together:
            optimizer.max_grad_norm = 0.5
        train(
            optimizer,
            params,
            range(4, STEPS),
            before=None if together else lambda _, p=params: utils.clip_grad_norm_(p, 0.5),
        )
        results.append(snapshot(optimizer, params))
        if together:
            optimizer.max_grad_norm = None
            optimizer.step()
            assert optimizer.grad_norm is None
    assert_same_bits(*results)


def test_no_gradients_at_all():
    params = make_params()
    optimizer = fusestep.optim.AdamW(params, max_grad_norm=1.0)
    before = snapshot(optimizer, params)
    optimizer.step()
    assert optimizer.grad_norm == 0.0
    assert optimizer.skipped_steps == 0
    assert_same_bits(snapshot(optimizer, params), before)


# --- fusestep.nn.utils ---


@pytest.mark.parametrize("name", ["clip_grad_norm_", "clip_grad_value_", "get_total_norm"])
def test_signatures_are_torchs(name):
    got, expected = (inspect.signature(getattr(m, name)).parameters.values() for m in (utils, torch.nn.utils))
    assert [(p.name, p.kind, p.default) for p in got] == [(p.name, p.kind, p.default) for p in expected]


def with_grads(dtype, grad_dtype=None, step=1):
    params = make_params(dtype, (*SHAPES, (400, 300)))
    for p, g in zip(params, make_grads(step, params), strict=True):
        p.grad_dtype = grad_dtype or dtype
        p.grad = g.to(p.grad_dtype)
    params.append(Parameter(torch.ones(3, dtype=dtype)))  # no gradient
    return params


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("norm_type", [*NORM_TYPES, 1, "inf"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_total_norm(dtype, norm_type):
    params = with_grads(torch.float64 if dtype is torch.float64 else torch.float32, dtype)
    grads = [p.grad for p in params[:-1]]
    if dtype is torch.float16 and norm_type == 1:
        grads = grads[:-1]  # the sum would be over what float16 holds
    norm = utils.get_total_norm(grads, norm_type)
    assert (norm.dtype, norm.shape) == (dtype, ())
    tolerance = norm_tolerance(grads, float(norm_type), dtype)
    assert norm.item() == pytest.approx(true_norm(grads, float(norm_type)), rel=tolerance)
    assert utils.get_total_norm(iter(grads), norm_type) == norm
    assert utils.get_total_norm(grads[0], norm_type) == utils.get_total_norm([grads[0]], norm_type)


@pytest.mark.parametrize("max_norm", [1.0, 1e6, math.inf])
@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_clip_grad_norm(dtype, norm_type, max_norm):
    params = with_grads(torch.float64 if dtype is torch.float64 else torch.float32, dtype)
    grads = [p.grad.double().clone() for p in params[:-1]]
    exact = true_norm(grads, norm_type)
    norm = utils.clip_grad_norm_(params, max_norm, norm_type)
    assert (norm.dtype, norm.shape) == (dtype, ())
    if exact < torch.finfo(dtype).max:
        assert norm.item() == pytest.approx(exact, rel=norm_tolerance(grads, norm_type, dtype))
    coefficient = min(1.0, max_norm / (exact + 1e-6))
    for p, g in zip(params[:-1], grads, strict=True):
        assert p.grad.dtype == dtype
        # the factor, the product and its storage are rounded, none more coarsely than the gradient's dtype
        expected = g * coefficient
        relative = norm_error(sum(map(torch.numel, grads)), norm_type) + 3 * U[str(dtype)[6:]]
        smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        assert ((p.grad.double() - expected).abs() <= relative * expected.abs() + smallest).all()
        if coefficient == 1.0:
            assert torch.equal(p.grad.double(), g)


@pytest.mark.parametrize("poison", [math.inf, math.nan])
def test_a_norm_that_is_not_finite(poison):
    """As torch does without error_if_nonfinite: the factor is 0 or NaN."""
    results = []
    for module in (utils, torch.nn.utils):
        params = with_grads(torch.float32)
        params[1].grad[5] = poison
        norm = module.clip_grad_norm_(params, 1.0)
        results.append([norm, *(p.grad for p in params[:-1])])
    for got, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(got.numpy(), expected.numpy())


@pytest.mark.parametrize("dtype", DTYPES)
def test_clip_grad_value(dtype):
    params = with_grads(torch.float64 if dtype is torch.float64 else torch.float32, dtype)
    params[0].grad[0, :3] = torch.tensor([math.inf, -math.inf, math.nan])
    expected = [p.grad.clamp(-0.5, 0.5) for p in params[:-1]]
    assert utils.clip_grad_value_(params, 0.5) is None
    for p, e in zip(params, expected, strict=False):
        np.testing.assert_array_equal(p.grad.float().numpy(), e.float().numpy())
    assert params[-1].grad is None


def test_one_tensor_and_iterators():
    for clip in (lambda p: utils.clip_grad_norm_(p, 1.0), lambda p: utils.clip_grad_value_(p, 0.1)):
        results = []
        for form in (lambda p: p, lambda p: [p], lambda p: iter([p]), lambda p: (q for q in [p])):
            p = make_params()[0]
            p.grad = make_grads(1, [p])[0]
            clip(form(p))
            results.append(p.grad)
        assert all(torch.equal(r, results[0]) for r in results)
        assert not torch.equal(results[0], make_grads(1, [p])[0])


def test_nothing_to_clip():
    p = Parameter(torch.ones(3))
    for nothing in ([], [p], p):
        norm = utils.clip_grad_norm_(nothing, 1.0)
        assert (norm.item(), norm.dtype, norm.shape) == (0.0, torch.float32, ())
        utils.clip_grad_value_(nothing, 1.0)
    assert utils.get_total_norm([]).item() == 0.0
    with pytest.warns(UserWarning, match="empty generator"):
        utils.clip_grad_norm_((q for q in []), 1.0)


def test_gradients_of_several_dtypes():
    """The norm is over all of them, in the widest of their dtypes."""
    params = [*with_grads(torch.float32)[:-1], *with_grads(torch.float32, torch.bfloat16)[:-1]]
    exact = true_norm([p.grad for p in params])
    norm = utils.clip_grad_norm_(params, 1.0)
    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx(exact, rel=2 * U["float32"])
    assert true_norm([p.grad for p in params]) == pytest.approx(1.0, rel=2.0**-8)


def test_non_contiguous_gradients():
    base = make_grads(1, make_params(shapes=[(6, 8)]))[0]
    for layout in (lambda g: g.t().contiguous().t(), lambda g: torch.stack([g, g], -1)[..., 0]):
        p, q = Parameter(torch.ones(6, 8)), Parameter(torch.ones(6, 8))
        p.grad, q.grad = layout(base.clone()), base.clone()
        assert not p.grad.is_contiguous()
        strides = p.grad.stride()
        assert utils.clip_grad_norm_(p, 0.5) == pytest.approx(utils.clip_grad_norm_(q, 0.5).item(), rel=2.0**-23)
        np.testing.assert_allclose(p.grad, q.grad, rtol=2.0**-22, atol=0)
        assert p.grad.stride() == strides


def test_backward_through_a_clipped_gradient_fails():
    p = Parameter(torch.ones(3))
    (grad,) = torch.autograd.grad((p**3).sum(), p, create_graph=True)
    p.grad = grad.detach()
    product = (p.grad * p).sum()
    utils.clip_grad_norm_(p, 0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
