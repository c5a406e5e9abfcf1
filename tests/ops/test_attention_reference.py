"""The NumPy references of attention, masked softmax, dropout and Philox, each against something independent."""

from __future__ import annotations

import itertools
import math
import sys

import attention_cases
import naive_attention
import numpy as np
import pytest
import tolerances
import torch
from attention_cases import FEATURES, Shape
from attention_runs import assert_within
from fusestep import reference

# The module; reference.philox is its function.
philox = sys.modules["fusestep.reference.philox"]

FEATURE = pytest.mark.parametrize("name", FEATURES)


# --- Philox -------------------------------------------------------------------------------------------------
PI = "243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0"
ONES = " ".join(["ffffffff"] * 6)
ZEROS = " ".join(["00000000"] * 6)


# The known answers of Random123 1.14 (tests/kat_vectors): counter and key, then the result.
@pytest.mark.parametrize(
    ("rounds", "given", "want"),
    [
        (7, ZEROS, "5f6fb709 0d893f64 4f121f81 4f730a48"),
        (7, ONES, "5207ddc2 45165e59 4d8ee751 8c52f662"),
        (7, PI, "4dfccaba 190a87f0 c47362ba b6b5242a"),
        (10, ZEROS, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (10, ONES, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (10, PI, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_known_answers(rounds, given, want, monkeypatch):
    monkeypatch.setattr(philox, "ROUNDS", rounds)
    *counter, key0, key1 = (int(word, 16) for word in given.split())
    words = reference.philox(tuple(counter), key0 | key1 << 32)
    assert [int(word) for word in words] == [int(word, 16) for word in want.split()]


def test_philox_has_seven_rounds_and_broadcasts():
    assert philox.ROUNDS == 7
    words = reference.philox((np.arange(3), np.arange(2)[:, None], 5, 6), 7)
    for i, j in itertools.product(range(2), range(3)):
        alone = reference.philox((j, i, 5, 6), 7)
        assert [int(w[i, j]) for w in words] == [int(w) for w in alone]


def philox_by_hand(counter, seed):
    """With Python's integers."""
    a, b, c, d = counter
    key = [seed % 2**32, seed >> 32]
    for _ in range(7):
        x, y = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = y >> 32 ^ b ^ key[0], y % 2**32, x >> 32 ^ d ^ key[1], x % 2**32
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return a, b, c, d


def number_by_hand(counter, i, seed):
    word = philox_by_hand(counter, seed)[i // 2]
    return word >> 16 if i % 2 else word & 0xFFFF


# --- dropout ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("p", [0.0, 2.0**-17, 2.0**-16, 0.1, 0.5, 0.999, 1 - 2.0**-17, np.nextafter(1, 0)])
def test_the_rounded_probability(p):
    threshold = reference.dropout_threshold(p)
    assert threshold == min(math.floor(p * 2**16 + 0.5), 2**16 - 1)
    assert reference.dropout_scale(p) == 1 / (1 - threshold / 2**16)


@pytest.mark.parametrize("first", [0, 3, 2**34 - 20, 2**35 - 5, 2**40 + 1])
def test_which_elements_plain_dropout_keeps(first):
    p, seed, offset = 0.3, 2**63 + 12345, 77
    got = reference.dropout_keep(40, p, seed=seed, offset=offset, first=first)
    want = [
        number_by_hand((e // 8 % 2**32, e // 8 >> 32, 0, offset), e % 8, seed) >= round(p * 2**16)
        for e in range(first, first + 40)
    ]
    assert got.tolist() == want


def test_which_weights_attention_keeps():
    p, seed, offset = 0.3, 2**63 + 12345, 77
    got = reference.attention_keep((2, 3, 4, 21), p, seed=seed, offset=offset, first_batch=5)
    for b, h, i, j in np.ndindex(got.shape):
        number = number_by_hand((j // 8, i, (5 + b) * 3 + h, offset), j % 8, seed)
        assert got[b, h, i, j] == (number >= round(p * 2**16))


def test_dropout_and_its_residual(rng):
    x, residual = rng.standard_normal((2, 5, 3))
    x[1, 1] = math.inf
    keep = reference.dropout_keep(15, 0.4, seed=3).reshape(5, 3)
    want = np.where(keep, x * reference.dropout_scale(0.4), 0)
    np.testing.assert_array_equal(reference.dropout(x, 0.4, seed=3), want)
    np.testing.assert_array_equal(reference.dropout_add(x, residual, 0.4, seed=3), residual + want)


# --- attention ----------------------------------------------------------------------------------------------
def make(name, seed=5, **shape):
    return attention_cases.make(Shape(**shape), FEATURES[name], np.random.default_rng(seed))


def one_query(problem, own, b, h, i):
    """(out, lse) of one query, key by key."""
    q, k, v = own.tensors()
    options = own.options
    kv_head = h // (q.shape[1] // k.shape[1])
    keys = k.shape[2]
    if "key_lengths" in options:
        keys = min(keys, int(options["key_lengths"][b]))
    shift = keys - q.shape[2] if options.get("causal") == "bottom_right" else 0
    left, right = options.get("window") or (None, None)
    scale = options.get("scale")
    mask = options.get("mask")
    if mask is not None:
        mask = np.broadcast_to(mask, (*q.shape[:3], k.shape[2]))
    found = []
    for j in range(keys):
        distance = j - (i + shift)
        if options.get("causal") and distance > 0:
            continue
        if (left is not None and distance < -left) or (right is not None and distance > right):
            continue
        s = float(np.dot(q[b, h, i], k[b, kv_head, j])) * (q.shape[3] ** -0.5 if scale is None else scale)
        if options.get("softcap"):
            s = options["softcap"] * math.tanh(s / options["softcap"])
        if "alibi_slopes" in options:
            slopes = options["alibi_slopes"]
            s -= (slopes[h] if slopes.ndim == 1 else slopes[b, h]) * abs(distance)
        if mask is not None and mask.dtype == np.bool_:
            if not mask[b, h, i, j]:
                continue
        elif mask is not None:
            s += mask[b, h, i, j]
        if s > -math.inf:
            found.append((j, s))
    out = np.zeros(v.shape[3])
    if not found:
        return out, -math.inf
    lse = max(s for _, s in found)
    lse += math.log(sum(math.exp(s - lse) for _, s in found))
    p = options.get("dropout_p", 0)
    for j, s in found:
        if p:
            counter = (j // 8, i, (own.first_batch + b) * q.shape[1] + h, options["offset"])
            if number_by_hand(counter, j % 8, options["seed"]) < round(p * 2**16):
                continue
        out += math.exp(s - lse) / (1 - round(p * 2**16) / 2**16) * v[b, kv_head, j]
    return out, lse


@FEATURE
def test_attention_key_by_key(name):
    problem = make(name, batch=2, heads=2, kv_heads=1, queries=7, keys=11, dim=5, value_dim=3)
    out, lse = reference.attention(*problem.tensors(), **problem.options)
    bound = tolerances.attention(problem, "float64")
    want, want_lse = np.zeros(out.shape), np.full(lse.shape, -math.inf)
    for queries, _, own in attention_cases.sequences(problem):
        for b, h, i in np.ndindex(own.query.shape[:3]):
            want[:, :, queries][b, h, i], want_lse[:, :, queries][b, h, i] = one_query(problem, own, b, h, i)
    assert_within(out, want, bound["out"], "out")
    assert_within(lse, want_lse, bound["lse"], "lse")


@FEATURE
def test_gradients_against_autograd(name):
    problem = make(name)
    bound = tolerances.attention(problem, "float64")
    naive = naive_attention.attention(problem, "float64")
    out, _ = reference.attention(*problem.tensors(), **problem.options)
    assert_within(out, naive.out, bound["out"], "out")
    grads = reference.attention_backward(problem.grad_out, *problem.tensors(), **problem.options)
    for which, got, want in zip(("query", "key", "value", "mask"), grads, naive.grads, strict=True):
        assert (got is None) == (want is None), which
        if want is not None:
            assert_within(got, want, bound[f"grad_{which}"], which)


@FEATURE
def test_gradients_against_differences(name):
    """The slope along a random direction, from differences of the loss in extended precision.

    The difference over 2 h is off by about a third of what it moves when h is halved; its roundings are eps / h of the
    sum of the magnitudes.
    """
    problem = make(name, dim=4, value_dim=4).map(lambda a: a.astype(np.longdouble))
    rng = np.random.default_rng(1)
    arrays = list(problem.tensors()) + ([problem.options["mask"]] if problem.additive else [])
    directions = [rng.standard_normal(a.shape).astype(np.longdouble) for a in arrays]

    def loss(h):
        moved = [np.where(np.isfinite(a), a + h * d, a) for a, d in zip(arrays, directions, strict=True)]
        options = dict(problem.options)
        if problem.additive:
            options["mask"] = moved.pop()
        out, _ = reference.attention(*moved, **options)
        terms = out * problem.grad_out
        return terms.sum(), np.abs(terms).sum()

    def slope(h):
        return (loss(h)[0] - loss(-h)[0]) / (2 * h)

    h = np.longdouble(2.0**-12)
    coarse, fine = slope(2 * h), slope(h)
    # Sums of as many terms as there are scores, and the functions between them.
    roundings = math.prod(problem.query.shape[:3]) * problem.key.shape[2]
    error = abs(coarse - fine) + roundings * np.finfo(np.longdouble).eps / h * loss(h)[1]

    grads = reference.attention_backward(problem.grad_out, *problem.tensors(), **problem.options)
    got = sum(np.sum(g * d) for g, d in zip(grads, directions, strict=False))
    assert abs(got - fine) <= error
    assert error <= 1e-3 * sum(np.sum(np.abs(g * d)) for g, d in zip(grads, directions, strict=False))


SDPA = {
    "plain": {},
    "causal": {"is_causal": True},
    "boolean": {},
    "boolean_padding": {},
    "additive": {},
    "additive_square": {},
    "additive_batch": {},
    "scale": {"scale": 0.7},
}


@pytest.mark.parametrize("name", SDPA)
def test_attention_against_torch(name):
    problem = make(name)
    tensors = [torch.from_numpy(a).requires_grad_() for a in problem.tensors()]
    mask = problem.options.get("mask")
    mask = None if mask is None else torch.from_numpy(mask)
    if name.startswith("boolean"):
        mask[..., 0] = True  # torch gives NaN, or an average, where nothing is left
        problem.options["mask"] = mask.numpy()
    out = torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=mask, enable_gqa=True, **SDPA[name])
    out.backward(torch.from_numpy(problem.grad_out))
    bound = tolerances.attention(problem, "float64")
    assert_within(reference.attention(*problem.tensors(), **problem.options)[0], out.detach().numpy(), bound["out"])
    grads = reference.attention_backward(problem.grad_out, *problem.tensors(), **problem.options)
    for which, got, tensor in zip(("query", "key", "value"), grads, tensors, strict=False):
        assert_within(got, tensor.grad.numpy(), bound[f"grad_{which}"], which)


@pytest.mark.parametrize("kind", ["boolean", "-inf", "finfo.min", "key_lengths", "window", "bottom_right"])
def test_rows_with_nothing_left_are_zeros(kind, rng):
    problem = attention_cases.make(Shape(queries=6, keys=5, heads=2), {}, rng)
    options = {
        "boolean": {"mask": np.zeros((6, 5), bool)},
        "-inf": {"mask": np.full((6, 5), -np.inf)},
        "finfo.min": {"mask": np.full((6, 5), np.finfo(np.float64).min)},
        "key_lengths": {"key_lengths": [0, 0]},
        "window": {"window": (0, 0), "key_lengths": [0, 1]},
        "bottom_right": {"causal": "bottom_right"},
    }[kind]
    rows = {"window": (0, slice(None)), "bottom_right": (slice(None), slice(None), slice(0, 1))}.get(kind, ())
    out, lse = reference.attention(*problem.tensors(), **options)
    grads = reference.attention_backward(problem.grad_out, *problem.tensors(), **options)
    assert (out[rows] == 0).all()
    assert (lse[rows] == -math.inf).all()
    assert (grads[0][rows] == 0).all()
    assert all(np.isfinite(g).all() for g in grads if g is not None)


# --- masked softmax -----------------------------------------------------------------------------------------
SOFTMAX_FEATURES = {
    name: features for name, features in FEATURES.items() if not {"packed", "alibi_slopes", "softcap"} & features.keys()
}


@pytest.mark.parametrize("name", SOFTMAX_FEATURES)
def test_masked_softmax_is_attention_over_the_identity(name, rng):
    """With key = value = identity the products are the scores, and the output the weights."""
    problem = make(name, kv_heads=4, dim=13)
    problem.options.setdefault("scale", 1.0)
    scores = problem.query
    eye = np.broadcast_to(np.eye(13), problem.key.shape)
    grad_out = rng.standard_normal(scores.shape)
    out, lse = reference.masked_softmax(scores, **problem.options)
    want, want_lse = reference.attention(scores, eye, eye, **problem.options)
    np.testing.assert_array_equal(lse, want_lse)
    np.testing.assert_array_equal(out, want)
    grad_scores, grad_mask = reference.masked_softmax_backward(grad_out, scores, **problem.options)
    want, _, _, want_mask = reference.attention_backward(grad_out, scores, eye, eye, **problem.options)
    np.testing.assert_array_equal(grad_scores, want)
    np.testing.assert_array_equal(grad_mask, want_mask)


def test_masked_softmax_of_fewer_dimensions(rng):
    scores = rng.standard_normal((2, 3, 4, 5))
    options = {"causal": True, "dropout_p": 0.3, "seed": 4}
    out, lse = reference.masked_softmax(scores, **options)
    for got, want in zip(reference.masked_softmax(scores[0], **options), (out[0], lse[0]), strict=True):
        np.testing.assert_array_equal(got, want)
    for got, want in zip(reference.masked_softmax(scores[0, 0], **options), (out[0, 0], lse[0, 0]), strict=True):
        np.testing.assert_array_equal(got, want)
