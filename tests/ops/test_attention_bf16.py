"""Attention of bfloat16 around the edges of tiles, at the level that runs: products of bfloat16, or float's kernels.

test_attention_bits.py runs this file at the levels with products of bfloat16 too, on machines without the instructions
on their twins.
"""

from __future__ import annotations

import itertools

import numpy as np
import problems
import pytest
import torch
from attention_cases import FEATURES, Shape
from attention_runs import arrays, check, drawn, expected, wide
from fusestep import ops, reference

# Tiles of 16 and 32 rows, steps of 32, blocks of 64 and 128.
EDGES = (1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)
DIMS = (1, 16, 17, 31, 32, 33, 64, 80, 255, 256)
MASKS = ("causal", "bottom_right", "window", "key_lengths", "boolean", "additive_excludes", "packed_causal")
OTHERS = ({}, {"dropout_p": 0.25}, {"softcap": 1.5}, {"alibi_slopes": "h", "dropout_p": 0.1}, {"scale": -0.3})


@pytest.mark.parametrize("queries", EDGES)
def test_lengths(queries):
    masks, others = itertools.cycle(MASKS), itertools.cycle(OTHERS)
    for keys, mask, other in zip(EDGES, masks, others, strict=False):
        check(drawn(Shape(1, 2, 1, queries, keys, 8, 8), FEATURES[mask] | other), "bfloat16")


@pytest.mark.parametrize("dim", DIMS)
def test_head_dims(dim):
    other = DIMS[-1 - DIMS.index(dim)]
    check(drawn(Shape(1, 1, 1, 33, 66, dim, other), {"dropout_p": 0.1}), "bfloat16")
    check(drawn(Shape(1, 1, 1, 65, 40, dim, dim), {"causal": True}), "bfloat16")


@pytest.mark.parametrize("name", FEATURES)
def test_several_blocks(name):
    """Several blocks of keys, and of queries: the softmax is rescaled, gradients of queries take turns."""
    shape = Shape(batch=2, heads=2, kv_heads=1, queries=131, keys=278, dim=20, value_dim=12)
    check(drawn(shape, FEATURES[name]), "bfloat16")


@pytest.mark.parametrize("spread", [1e-38, 1e-30, 30.0, 1e3])
@pytest.mark.parametrize("features", [{}, {"causal": True}, {"mask": ("excluding", "bhqk")}, {"softcap": 5.0}], ids=str)
def test_scores_of_any_size(spread, features):
    """1e-38: queries are subnormal numbers, which products of bfloat16 take for zero."""
    check(drawn(Shape(2, 2, 1, 35, 140, 16, 16), features, spread=spread), "bfloat16")


@pytest.mark.parametrize("name", ["plain", "causal", "additive_square", "dropout", "everything", "everything_packed"])
@pytest.mark.parametrize(
    "shape",
    [Shape(1, 1, 1, 200, 330, 32, 32), Shape(1, 3, 1, 130, 200, 24, 16), Shape(2, 4, 2, 70, 90, 16, 16)],
    ids=str,
)
def test_any_number_of_threads_gives_the_same_bits(shape, name, threads):
    given = arrays(drawn(shape, FEATURES[name]).rounded("bfloat16"), "bfloat16")
    threads(1)
    want = given.all()
    for count in (2, 3):
        threads(count)
        for got, value in zip(given.all(), want, strict=True):
            assert_same(got, value)


def assert_same(got, want):
    as_integers = {torch.bfloat16: torch.int16, torch.float32: torch.int32}[want.dtype]
    assert got.dtype == want.dtype
    assert torch.equal(got.view(as_integers), want.view(as_integers))


@pytest.mark.parametrize("p", [2.0**-16, 0.1, 0.5, 0.9999])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 2, 70, 150), (2, 1, 129, 131)], ids=str)
def test_the_dropout_mask_is_that_of_the_reference(shape, p):
    batch, heads, queries, keys = shape
    drops = {"dropout_p": p, "seed": 0x0123456789ABCDEF, "offset": 77}
    query = torch.zeros(batch, heads, queries, 4, dtype=torch.bfloat16)
    key = torch.zeros(batch, heads, keys, 4, dtype=torch.bfloat16)
    value = torch.eye(keys, dtype=torch.bfloat16).expand(batch, heads, keys, keys)
    out, lse = ops.attention(query, key, value, **drops)
    want = reference.attention_keep(shape, p, seed=drops["seed"], offset=drops["offset"])
    np.testing.assert_array_equal((out != 0).numpy(), want)
    grad_out = torch.eye(queries, keys, dtype=torch.bfloat16).expand(batch, heads, queries, keys)
    grad_value = ops.attention_backward(grad_out, query, key, value, out, lse, **drops)[2]
    rows = min(queries, keys)
    np.testing.assert_array_equal((grad_value != 0).swapaxes(2, 3)[:, :, :rows].numpy(), want[:, :, :rows])


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e38])
def test_keys_beyond_the_length_are_not_looked_at(garbage):
    clean = drawn(Shape(2, 2, 1, 70, 140, 16, 16), {"dropout_p": 0.2}).rounded("bfloat16")
    clean.options["key_lengths"] = np.array([75, 129])
    dirty = clean.map(np.copy)
    for a, b in itertools.product((dirty.key, dirty.value), range(2)):
        a[b, :, clean.options["key_lengths"][b] :] = garbage
    results = arrays(dirty, "bfloat16").all()
    for got, want in zip(results, arrays(clean, "bfloat16").all(), strict=True):
        assert_same(got, want)
    assert (results[3][0, :, 75:] == 0).all()
    assert (results[4][0, :, 75:] == 0).all()


def laid_out(a, how):
    if how == "transposed":  # (batch, heads, rows, dim) that lies as (batch, rows, heads, dim)
        return a.transpose(1, 2).contiguous().transpose(1, 2)
    wider = torch.full((*a.shape, 3), torch.nan, dtype=a.dtype)  # steps of 3 along the last dimension
    wider[..., 1] = a
    return wider[..., 1]


@pytest.mark.parametrize("how", ["transposed", "column"])
@pytest.mark.parametrize("name", ["plain", "everything", "packed_mask"])
def test_layouts_give_the_same_bits(how, name):
    problem = drawn(Shape(2, 4, 2, 70, 75, 19, 16), FEATURES[name]).rounded("bfloat16")
    want = arrays(problem, "bfloat16").all()
    given = arrays(problem, "bfloat16")
    for which in ("query", "key", "value", "grad_out"):
        setattr(given, which, laid_out(getattr(given, which), how))
    out, lse = laid_out(torch.empty_like(want[0]), how), torch.empty(*want[1].shape, 2)[..., 0]
    given.forward(out=out, lse=lse)
    grads = given.backward(out, lse, grad_mask=problem.additive)
    for got, value in zip((out, lse, *grads), want, strict=True):
        assert_same(got, value)


@pytest.mark.parametrize("wanted", [("query",), ("key",), ("value",), ("query", "value"), ("key", "value")], ids=str)
def test_some_of_the_gradients(wanted):
    """The others are not made, and those that are do not change."""
    import fusestep.nn.functional as F

    given = arrays(drawn(Shape(2, 4, 2, 90, 150, 24, 16), {}).rounded("bfloat16"), "bfloat16")
    leaves = {name: getattr(given, name).clone().requires_grad_(name in wanted) for name in ("query", "key", "value")}
    F.attention(*leaves.values(), causal=True).backward(given.grad_out)
    all_leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in leaves.items()}
    F.attention(*all_leaves.values(), causal=True).backward(given.grad_out)
    for name, leaf in leaves.items():
        if name in wanted:
            assert_same(leaf.grad, all_leaves[name].grad)
        else:
            assert leaf.grad is None


def test_many_sequences_share_the_packed_memory():
    """Lengths of 0, 1 and around the blocks: each sequence's keys are packed where its own blocks are."""
    rng = np.random.default_rng(5)
    lengths_q, lengths_k = np.array([0, 1, 64, 65, 0, 130, 3]), np.array([5, 129, 0, 128, 0, 64, 1])
    problem = drawn(Shape(1, 4, 2, int(lengths_q.sum()) + 2, int(lengths_k.sum()) + 1, 16, 16), {"dropout_p": 0.1})
    problem.options["cu_seqlens_q"] = np.concatenate([[0], np.cumsum(lengths_q)])
    problem.options["cu_seqlens_k"] = np.concatenate([[0], np.cumsum(lengths_k)])
    problem.options["key_lengths"] = rng.integers(0, 200, len(lengths_k))
    check(problem, "bfloat16")


def test_an_infinite_score_spoils_its_own_row_alone():
    problem = drawn(Shape(1, 1, 1, 40, 70, 16, 16), {}).rounded("bfloat16")
    problem.query[0, 0, 5] = np.nan
    out = wide(arrays(problem, "bfloat16").forward()[0])
    assert np.isnan(out[0, 0, 5]).all()
    problem.query[0, 0, 5] = 0
    rest = np.arange(40) != 5
    problems.assert_same_bits(out[0, 0, rest], wide(arrays(problem, "bfloat16").forward()[0])[0, 0, rest])
    assert np.isfinite(expected(problem, gradients=False)["out"]).all()
