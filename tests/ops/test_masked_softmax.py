"""fusestep.ops.masked_softmax and its backward pass."""

from __future__ import annotations

import math

import numpy as np
import problems
import pytest
import tolerances
import torch
from attention_cases import Shape, round_to
from attention_runs import DTYPES, assert_within, drawn, wide
from fusestep import ops, reference
from masked_softmax_runs import NAMES, SOFTMAX, bounds

FEATURE = pytest.mark.parametrize("name", SOFTMAX)
LENGTHS = (1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1000)


def make(features, dtype="float32", seed=3, spread=1.0, **shape):
    """(scores, grad_out, options) rounded to dtype, as float64 of NumPy; scores stand in the query's place."""
    problem = drawn(Shape(**({"heads": 4, "kv_heads": 4, "dim": 13} | shape)), features, seed, spread).rounded(dtype)
    options = {"scale": 1.0} | problem.options
    grad_out = np.random.default_rng(seed + 1).standard_normal(problem.query.shape)
    return problem.query, round_to(grad_out, dtype), options


def arrays(scores, grad_out, options, dtype, kind="numpy", layout="contiguous"):
    options = dict(options)
    mask = options.get("mask")
    if mask is not None and mask.dtype == np.bool_:
        options["mask"] = torch.from_numpy(mask) if kind == "torch" or dtype == "bfloat16" else mask
    elif mask is not None:
        options["mask"] = problems.array(mask, dtype, kind, layout)
    return (*(problems.array(a, dtype, kind, layout) for a in (scores, grad_out)), options)


def run(scores, grad_out, options):
    """(out, lse, grad_scores[, grad_mask])."""
    mask = options.get("mask")
    additive = mask is not None and mask.dtype not in (np.bool_, torch.bool)
    out, lse = ops.masked_softmax(scores, **options)
    return out, lse, *ops.masked_softmax_backward(grad_out, scores, lse, **options, grad_mask=additive)


def check(features, dtype="float32", **shape):
    scores, grad_out, options = make(features, dtype, **shape)
    results = run(*arrays(scores, grad_out, options, dtype))
    out, lse = reference.masked_softmax(scores, **options)
    grads = reference.masked_softmax_backward(grad_out, scores, **options)
    want = [out, lse, *(g for g in grads if g is not None)]
    bound = bounds(scores, grad_out, options, dtype)
    assert len(results) == len(want)
    for name, got, value in zip(NAMES, results, want, strict=False):
        assert_within(wide(got), value, bound[name], f"{name} in {dtype}")


@pytest.mark.parametrize("dtype", DTYPES)
@FEATURE
def test_every_feature(name, dtype):
    # keys = the last dimension of the scores, which stand in the place of a query.
    check(SOFTMAX[name], dtype, queries=11, keys=13)


@FEATURE
def test_every_feature_over_many_rows(name):
    check(SOFTMAX[name], batch=3, queries=70, keys=101, dim=101)


@pytest.mark.parametrize("keys", LENGTHS)
def test_lengths(keys):
    for features in ({}, {"causal": True}, {"dropout_p": 0.3, "window": (9, 4), "mask": ("additive", "b1qk")}):
        check(features, batch=1, heads=2, kv_heads=2, queries=5, keys=keys, dim=keys)


@pytest.mark.parametrize("spread", [1e-30, 30.0, 1e3])
def test_scores_of_any_size(spread):
    for features in ({}, {"mask": ("excluding", "bhqk")}):
        check(features, queries=40, keys=75, dim=75, spread=spread)


@pytest.mark.parametrize(("batch", "queries", "keys"), [(0, 5, 6), (2, 0, 6), (2, 5, 0)])
def test_of_nothing(batch, queries, keys):
    scores = np.zeros((batch, 3, queries, keys), np.float32)
    mask = np.zeros((1, 1, 1, keys), np.float32)
    out, lse = ops.masked_softmax(scores, mask=mask)
    assert out.shape == scores.shape
    assert (lse == -math.inf).all()
    grad_scores, grad_mask = ops.masked_softmax_backward(scores, scores, lse, mask=mask, grad_mask=True)
    assert grad_scores.shape == scores.shape
    np.testing.assert_array_equal(grad_mask, mask)


def test_rows_sum_to_one_or_zero():
    scores, _, options = make({"mask": ("excluding", "bhqk"), "causal": True}, queries=50, keys=60, dim=60)
    out, lse = ops.masked_softmax(scores, **options)
    sums = out.astype(np.float64).sum(axis=-1)
    np.testing.assert_array_equal(sums == 0, lse == -math.inf)
    terms = scores.shape[-1] + tolerances.EXP2 + 2
    assert (np.abs(sums[lse > -math.inf] - 1) <= terms * tolerances.U["float32"] * tolerances.SLACK).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_fewer_dimensions(dims):
    scores, grad_out, options = make({"causal": True, "dropout_p": 0.3, "mask": ("additive", "qk")})
    index = (0,) * (4 - dims)
    whole = run(*arrays(scores, grad_out, options, "float32"))
    part = run(*arrays(scores[index], grad_out[index], options, "float32"))
    for got, want in zip(part[:3], whole[:3], strict=True):
        problems.assert_same_bits(got, np.ascontiguousarray(want[index]))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("layout", ["transposed", "strided", "reversed"])
def test_layouts_give_the_same_bits(layout, dtype):
    features = {"mask": ("additive", "bhqk"), "dropout_p": 0.2, "window": (5, 3), "causal": "bottom_right"}
    given = make(features, dtype, queries=20, keys=33, dim=33)
    want = run(*arrays(*given, dtype))
    for got, value in zip(run(*arrays(*given, dtype, layout=layout)), want, strict=True):
        problems.assert_same_bits(got, value)


def test_torch_tensors_give_the_same_bits():
    given = make({"mask": ("additive", "b1qk"), "causal": "bottom_right", "dropout_p": 0.2})
    for got, want in zip(run(*arrays(*given, "float32", "torch")), run(*arrays(*given, "float32")), strict=True):
        problems.assert_same_bits(got.numpy(), want)


def test_in_place():
    scores, _, options = make(
        {"causal": True, "dropout_p": 0.2, "mask": ("boolean", "bhqk")}, queries=20, keys=33, dim=33
    )
    want, _ = ops.masked_softmax(scores, **options)
    mine = torch.from_numpy(scores.copy())
    before = mine._version
    out, _ = ops.masked_softmax(mine, **options, out=mine)
    assert out is mine
    assert mine._version == before + 1
    problems.assert_same_bits(mine.numpy(), want)


@pytest.mark.parametrize("mask_dims", ["k", "qk", "b11k", "hq1", "", "bhqk", "bh11"])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_any_number_of_threads_gives_the_same_bits(mask_dims, count, threads):
    given = make({"mask": ("additive", mask_dims), "dropout_p": 0.2}, batch=3, queries=140, keys=200, dim=200)
    threads(1)
    want = run(*arrays(*given, "float32"))
    threads(count)
    for got, value in zip(run(*arrays(*given, "float32")), want, strict=True):
        problems.assert_same_bits(got, value)


def test_attention_drops_the_same_weights():
    scores, _, options = make({"dropout_p": 0.4}, queries=30, keys=45, dim=45)
    eye = np.ascontiguousarray(np.broadcast_to(np.eye(45, dtype=np.float32), (2, 4, 45, 45)))
    out, _ = ops.masked_softmax(scores, **options)
    attended, _ = ops.attention(scores, eye, eye, **options)
    np.testing.assert_array_equal(out == 0, attended == 0)
    keep = reference.attention_keep(scores.shape, 0.4, seed=options["seed"], offset=options["offset"])
    np.testing.assert_array_equal(out != 0, keep)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_is_no_worse_than_twice_the_naive(dtype):
    scores, _, options = make({"causal": True}, dtype, queries=97, keys=130, dim=130)
    out, _ = reference.masked_softmax(scores, **options)
    naive = torch.as_tensor(scores).to(getattr(torch, dtype))
    i, j = torch.arange(97)[:, None], torch.arange(130)
    naive = torch.softmax(naive.masked_fill(j > i, -math.inf), dim=-1).double().numpy()
    got, _ = ops.masked_softmax(problems.array(scores, dtype), **options)
    assert np.abs(wide(got) - out).max() <= 2 * np.abs(naive - out).max()


def test_causal_weights_by_hand():
    # The example of "Introduction to training": the upper triangle goes, and each row is divided by what is left of it.
    weights = np.array(
        [[0.38, 0.32, 0.14, 0.16], [0.09, 0.37, 0.24, 0.30], [0.49, 0.09, 0.04, 0.38], [0.51, 0.25, 0.06, 0.18]]
    )
    got, _ = ops.masked_softmax(np.log(weights), causal=True)
    expected = np.tril(weights) / np.tril(weights).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(got, expected, rtol=8 * np.finfo(np.float64).eps)
    printed = [[1.00, 0, 0, 0], [0.20, 0.80, 0, 0], [0.79, 0.15, 0.06, 0], [0.51, 0.25, 0.06, 0.18]]
    assert np.abs(got - printed).max() < 0.01  # the page rounds to two digits, twice
