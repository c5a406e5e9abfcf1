"""fusestep.ops.attention and attention_backward against the reference, element by element."""

from __future__ import annotations

import itertools
import math

import attention_cases
import naive_attention
import numpy as np
import problems
import pytest
import tolerances
import torch
from attention_cases import FEATURES, Shape
from attention_runs import DTYPES, GRADIENTS, arrays, assert_within, check, drawn, expected, wide
from fusestep import ops
from hypothesis import given
from hypothesis import strategies as st

FEATURE = pytest.mark.parametrize("name", FEATURES)

# Around every width that the kernels work by: vectors of 4 to 16, panels of 16 and 24, tiles of 64 and 128.
LENGTHS = (1, 2, 7, 8, 9, 15, 16, 17, 23, 25, 31, 33, 63, 64, 65, 127, 128, 129, 191, 257)
DIMS = (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 80, 96, 100, 127, 128, 129, 192, 255, 256)


@pytest.mark.parametrize("dtype", DTYPES)
@FEATURE
def test_every_feature(name, dtype):
    check(drawn(Shape(), FEATURES[name]), dtype)


@FEATURE
def test_every_feature_over_several_tiles(name):
    shape = Shape(batch=2, heads=2, kv_heads=1, queries=131, keys=278, dim=20, value_dim=12)
    check(drawn(shape, FEATURES[name]))


# --- sizes --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("queries", LENGTHS)
def test_lengths(queries):
    features = ({}, {"causal": True}, {"causal": "bottom_right", "dropout_p": 0.2, "mask": ("boolean", "bhqk")})
    for keys, own in zip(LENGTHS, itertools.cycle(features), strict=False):
        check(drawn(Shape(1, 1, 1, queries, keys, 8, 8), own))


@pytest.mark.parametrize(("queries", "keys"), [(1, 4000), (2, 1500), (1500, 1), (2000, 3), (17, 1025)])
@pytest.mark.parametrize("features", [{}, {"causal": "bottom_right"}, {"dropout_p": 0.3}], ids=str)
def test_lengths_far_apart(queries, keys, features):
    check(drawn(Shape(1, 2, 1, queries, keys, 16, 16), features))


@pytest.mark.parametrize("dim", DIMS)
def test_head_dims(dim):
    check(drawn(Shape(1, 2, 2, 19, 37, dim, dim), {"causal": True}))
    check(drawn(Shape(1, 2, 1, 18, 35, dim, DIMS[-1 - DIMS.index(dim)]), {"dropout_p": 0.1}), "float64")
    check(drawn(Shape(1, 1, 1, 5, 6, dim, dim), {}), "bfloat16")


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 3), (6, 1), (6, 2), (6, 3), (16, 4)])
def test_grouped_heads(heads, kv_heads):
    for features in ({}, FEATURES["everything"]):
        check(drawn(Shape(2, heads, kv_heads, 33, 40, 16, 8), features))


@pytest.mark.parametrize(
    "shape",
    [Shape(batch=0), Shape(heads=0, kv_heads=1), Shape(queries=0), Shape(keys=0), Shape(queries=0, keys=0)],
    ids=str,
)
def test_nothing_to_attend(shape):
    for features in ({}, FEATURES["everything"]):
        check(drawn(shape, features))


@given(
    st.builds(
        Shape,
        batch=st.integers(1, 3),
        heads=st.sampled_from([2, 4]),
        kv_heads=st.sampled_from([1, 2]),
        queries=st.integers(1, 90),
        keys=st.integers(1, 150),
        dim=st.integers(1, 40),
        value_dim=st.integers(1, 40),
    ),
    st.fixed_dictionaries(
        {},
        optional={
            "causal": st.sampled_from([True, "bottom_right"]),
            "window": st.tuples(st.none() | st.integers(0, 40), st.none() | st.integers(0, 40)),
            "key_lengths": st.just(True),
            "mask": st.tuples(
                st.sampled_from(["boolean", "additive", "excluding"]),
                st.sampled_from(["bhqk", "1hqk", "b11k", "b1qk", "qk", "hq1", "k"]),
            ),
            "alibi_slopes": st.sampled_from(["h", "bh"]),
            "softcap": st.floats(0.5, 50),
            "scale": st.sampled_from([-1.3, -0.1, 0.0, 0.3, 2.0]),
            "dropout_p": st.floats(0, 0.99),
            "packed": st.just(True),
        },
    ),
    st.sampled_from(DTYPES),
    st.integers(0, 2**32),
)
def test_any_combination(shape, features, dtype, seed):
    if features.get("packed") and features.get("mask", ("", ""))[1].startswith("b1"):
        features["mask"] = (features["mask"][0], "1" + features["mask"][1][1:])
    check(drawn(shape, features, seed), dtype)


# --- numbers ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("features", [{}, {"causal": True}, {"mask": ("excluding", "bhqk")}, {"softcap": 5.0}], ids=str)
@pytest.mark.parametrize("spread", [1e-30, 1e-3, 30.0, 1e3])
def test_scores_of_any_size(spread, features):
    check(drawn(Shape(2, 2, 1, 35, 140, 16, 16), features, spread=spread))
    check(drawn(Shape(2, 2, 1, 35, 140, 16, 16), features, spread=spread), "float64")


@pytest.mark.parametrize("kind", ["one takes all", "far below", "far above"])
def test_additive_masks_of_any_size(kind):
    """A constant goes out of the softmax again, but its roundings stay."""
    problem = drawn(Shape(2, 2, 1, 20, 150, 8, 8), {"mask": ("additive", "bhqk")})
    if kind == "one takes all":
        problem.options["mask"][..., 77] = 1e4
    else:
        problem.options["mask"] += 1e4 if kind == "far above" else -1e4
    for dtype in ("float32", "float64"):
        check(problem, dtype)


def empty_rows(kind, problem):
    """(options, indices of the rows in which nothing is left)."""
    batch, heads, queries = problem.query.shape[:3]
    keys = problem.key.shape[2]
    all_rows = np.ones((batch, heads, queries), bool)
    some = np.zeros((batch, heads, queries, 1), bool)
    some[0, :, 3] = some[1, 1, 64:] = True
    shape = (batch, heads, queries, keys)
    return {
        "boolean": ({"mask": ~np.broadcast_to(some, shape)}, some[..., 0]),
        "boolean rows": ({"mask": ~some}, some[..., 0]),
        "boolean all": ({"mask": np.zeros((1, 1), bool)}, all_rows),
        "-inf": ({"mask": np.where(np.broadcast_to(some, shape), -np.inf, 0.0)}, some[..., 0]),
        "-inf all": ({"mask": np.full((queries, keys), -np.inf)}, all_rows),
        "finfo.min": ({"mask": np.full((1, keys), np.finfo(np.float32).min)}, all_rows),
        "key lengths": ({"key_lengths": np.array([0, 5])}, np.arange(batch)[:, None, None] + 0 * all_rows == 0),
        "bottom right": (
            {"causal": "bottom_right"},
            np.broadcast_to(np.arange(queries) < queries - keys, all_rows.shape),
        ),
        "window": ({"window": (0, 0)}, np.broadcast_to(np.arange(queries) >= keys, all_rows.shape)),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "boolean",
        "boolean rows",
        "boolean all",
        "-inf",
        "-inf all",
        "finfo.min",
        "key lengths",
        "bottom right",
        "window",
    ],
)
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_with_nothing_left(kind, dropout_p, dtype):
    problem = drawn(Shape(2, 2, 1, 90, 70, 8, 8), {"dropout_p": dropout_p}).rounded(dtype)
    options, empty = empty_rows(kind, problem)
    problem.options |= options
    out, lse, *grads = arrays(problem, dtype).all()
    assert (wide(out)[empty] == 0).all()
    assert (wide(lse)[empty] == -math.inf).all()
    assert (wide(grads[0])[empty] == 0).all()
    assert all(np.isfinite(wide(g)).all() for g in grads)
    if empty.all():
        assert all((wide(g) == 0).all() for g in grads)
    check(problem, dtype)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e38])
def test_keys_beyond_the_length_are_not_looked_at(garbage):
    clean = drawn(Shape(2, 2, 1, 70, 140, 16, 16), {"dropout_p": 0.2}).rounded("float32")
    clean.options["key_lengths"] = np.array([75, 129])
    dirty = clean.map(np.copy)
    for a, b in itertools.product((dirty.key, dirty.value), range(2)):
        a[b, :, clean.options["key_lengths"][b] :] = garbage
    for name, got, want in zip(
        ("out", "lse", *GRADIENTS), arrays(dirty, "float32").all(), arrays(clean, "float32").all(), strict=False
    ):
        if name in ("grad_key", "grad_value"):
            assert (got[0, :, 75:] == 0).all()
        problems.assert_same_bits(got, want, name)


@pytest.mark.parametrize("mask_dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_masks_of_another_dtype(dtype, mask_dtype):
    if mask_dtype not in (dtype, "float32"):
        return
    problem = drawn(Shape(), {"mask": ("additive", "bhqk")}).rounded(dtype)
    problem.options["mask"] = attention_cases.round_to(problem.options["mask"], mask_dtype)
    given_arrays = arrays(problem, dtype, "torch")
    given_arrays.options["mask"] = problems.array(problem.options["mask"], mask_dtype)
    bound, want = tolerances.attention(problem, dtype), expected(problem)
    for (name, value), got in zip(want.items(), given_arrays.all(), strict=True):
        # In the mask's own dtype, which may be narrower than the arithmetic.
        storing = tolerances.U[mask_dtype] * np.abs(value) if name == "grad_mask" else 0
        assert_within(wide(got), value, bound[name] + storing, name)
    assert given_arrays.all()[-1].dtype == getattr(torch, mask_dtype)


# --- low precision ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["plain", "causal", "boolean", "additive", "softcap", "dropout", "everything"])
def test_low_precision_is_no_worse_than_twice_the_naive(name, dtype):
    shape = Shape(2, 4, 2, 97, 130, 64, 64)
    problem = drawn(shape, FEATURES[name]).rounded(dtype)
    naive = naive_attention.attention(problem, dtype)
    want = expected(problem)
    del want["lse"]
    out, _, *grads = arrays(problem, dtype).all()
    for which, got, theirs in zip(want, (out, *grads), (naive.out, *naive.grads), strict=False):
        ours = np.abs(wide(got) - want[which]).max()
        assert ours <= 2 * np.abs(theirs - want[which]).max(), which


# --- layouts and arrays -------------------------------------------------------------------------------------
def transposed(a):
    """(batch, heads, rows, dim) that lies as (batch, rows, heads, dim)."""
    return np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2)


def column(a):
    """With steps of 3 along the last dimension."""
    wider = np.full((*a.shape, 3), np.nan, a.dtype)
    wider[..., 1] = a
    return wider[..., 1]


def backwards(a):
    return a[..., ::-1].copy()[..., ::-1]


@pytest.mark.parametrize("lay_out", [transposed, column, backwards])
@pytest.mark.parametrize("name", ["plain", "everything", "packed_mask"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_layouts_give_the_same_bits(lay_out, name, dtype):
    problem = drawn(Shape(2, 4, 2, 70, 75, 19, 16), FEATURES[name]).rounded(dtype)
    want = arrays(problem, dtype).all()
    laid_out = arrays(problem, dtype)
    for which in ("query", "key", "value", "grad_out"):
        setattr(laid_out, which, lay_out(getattr(laid_out, which)))
    if "mask" in laid_out.options:
        laid_out.options["mask"] = lay_out(laid_out.options["mask"])
    for name_of, got, value in zip(("out", "lse", *GRADIENTS), laid_out.all(), want, strict=False):
        problems.assert_same_bits(got, value, name_of)
    out, lse = lay_out(np.empty_like(want[0])), np.empty((*want[1].shape, 2), want[1].dtype)[..., 0]
    assert laid_out.forward(out=out, lse=lse)[0] is out
    problems.assert_same_bits(out, want[0])
    problems.assert_same_bits(lse, want[1])


def test_expanded_arrays_are_read_in_place():
    problem = drawn(Shape(3, 4, 2, 20, 30, 8, 8), {"mask": ("additive", "bhqk")}).rounded("float32")
    problem.key[:], problem.value[:] = problem.key[:1], problem.value[:1]
    problem.options["mask"][:] = problem.options["mask"][:1, :1]
    want = arrays(problem, "float32").all()
    given_arrays = arrays(problem, "float32")
    for name in ("key", "value"):
        a = getattr(given_arrays, name)
        setattr(given_arrays, name, np.broadcast_to(a[:1], a.shape))
    given_arrays.options["mask"] = np.broadcast_to(given_arrays.options["mask"][:1, :1], problem.options["mask"].shape)
    for got, value in zip(given_arrays.all()[:5], want[:5], strict=True):
        problems.assert_same_bits(got, value)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_torch_tensors_give_the_same_bits(dtype):
    problem = drawn(Shape(), FEATURES["everything"]).rounded(dtype)
    for got, want in zip(arrays(problem, dtype, "torch").all(), arrays(problem, dtype).all(), strict=True):
        assert isinstance(got, torch.Tensor)
        problems.assert_same_bits(got.numpy(), want)


def test_written_tensors_get_a_new_version():
    given_arrays = arrays(drawn(Shape(), {}), "float32", "torch")
    out, lse = given_arrays.forward()
    before = out._version, lse._version
    given_arrays.forward(out=out, lse=lse)
    assert (out._version, lse._version) == (before[0] + 1, before[1] + 1)


def test_key_lengths_beyond_a_packed_sequence():
    """They cap: more than a sequence has is all it has."""
    problem = drawn(Shape(), {"packed": True}).rounded("float32")
    want = arrays(problem, "float32").all()
    problem.options["key_lengths"] = np.full(4, 10**6)
    for got, value in zip(arrays(problem, "float32").all(), want, strict=True):
        problems.assert_same_bits(got, value)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_packed_sequences_are_padded_batches(dtype):
    """Sequence n of a packed call is batch n of a padded one, dropout, ALiBi and all; and in float32 bit for bit."""
    features = {"causal": True, "alibi_slopes": "bh", "dropout_p": 0.2}
    padded = drawn(Shape(3, 2, 1, 80, 80, 8, 8), {**features, "key_lengths": True}).rounded(dtype)
    lengths = np.array([80, 33, 65])
    padded.options["key_lengths"] = lengths
    out, lse = arrays(padded, dtype).forward()
    rows = [a[b, :, :n] for a in (padded.query,) for b, n in enumerate(lengths)]
    packed = arrays(padded, dtype)
    for name in ("query", "key", "value"):
        a = getattr(padded, name)
        setattr(packed, name, np.concatenate([a[b, :, :n] for b, n in enumerate(lengths)], axis=1)[None])
    del packed.options["key_lengths"]
    packed.options["cu_seqlens_q"] = packed.options["cu_seqlens_k"] = np.cumsum([0, *lengths])
    got, got_lse = packed.forward()
    assert sum(r.shape[1] for r in rows) == got.shape[2]
    want = np.concatenate([out[b, :, :n] for b, n in enumerate(lengths)], axis=1)[None]
    problems.assert_same_bits(got, np.ascontiguousarray(want))
    problems.assert_same_bits(
        got_lse, np.ascontiguousarray(np.concatenate([lse[b, :, :n] for b, n in enumerate(lengths)], axis=1)[None])
    )


def test_no_gradient_of_a_mask_is_made_unasked():
    given_arrays = arrays(drawn(Shape(), {"mask": ("additive", "bhqk")}), "float32")
    out, lse = given_arrays.forward()
    assert len(given_arrays.backward(out, lse)) == 3
    assert (
        len(
            ops.attention_backward(
                given_arrays.grad_out, *given_arrays.tensors(), out, lse, **given_arrays.options, grad_mask=True
            )
        )
        == 4
    )
