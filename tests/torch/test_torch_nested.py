"""Nested tensors of torch's jagged layout in fusestep.nn.functional: as packed sequences, against one by one."""

from __future__ import annotations

import fusestep.nn.functional as F
import pytest
import torch

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")

LENGTHS = (3, 0, 5, 1)
KEY_LENGTHS = (2, 4, 5, 0)
HEADS, FEATURES = 2, 8


def rows(lengths, features=FEATURES, heads=HEADS, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, heads, features, dtype=dtype, generator=generator) for n in lengths]


def nest(tensors):
    """(batch, heads, ragged, features), and the leaf that it is a view of."""
    leaf = torch.nested.nested_tensor(tensors, layout=torch.jagged, requires_grad=True)
    return leaf.transpose(1, 2), leaf


def one_by_one(function, *rows_of):
    """The outputs of the sequences, and the gradients of their squares' sum."""
    outs, grads = [], []
    for sequences in zip(*rows_of, strict=True):
        leaves = [x.transpose(0, 1)[None].requires_grad_() for x in sequences]
        out = function(*leaves)
        outs.append(out[0].transpose(0, 1))
        grads.append([g[0].transpose(0, 1) for g in torch.autograd.grad(out.square().sum(), leaves)])
    return outs, list(zip(*grads, strict=True))


def assert_same(nested, expected):
    torch.testing.assert_close(nested.values(), torch.cat(list(expected)), rtol=1e-12, atol=1e-12)


OPTIONS = {
    "none": {},
    "causal": {"causal": True},
    "bottom right, window": {"causal": "bottom_right", "window": (2, 0)},
    "ALiBi, soft cap": {"alibi_slopes": torch.tensor([0.5, 0.25]), "softcap": 2.0, "scale": 0.3},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("key_heads", [HEADS, 1])
def test_attention(name, key_heads):
    q, k, v = rows(LENGTHS), rows(KEY_LENGTHS, heads=key_heads, seed=1), rows(KEY_LENGTHS, 5, key_heads, seed=2)
    (query, query_leaf), (key, key_leaf) = nest(q), nest(k)
    # Keys and values of one nesting have the same offsets; built apart they have equal ones.
    value, value_leaf = nest(v)
    out, lse = F.attention(query, key, value, **OPTIONS[name], return_lse=True)
    assert out.is_nested
    assert out.shape[:2] == query.shape[:2]
    assert out.shape[2] == query.shape[2]  # the very same ragged size: they can be added
    assert lse.shape == query.shape[:3]
    outs, grads = one_by_one(lambda *x: F.attention(*x, **OPTIONS[name]), q, k, v)
    flat = out.transpose(1, 2)
    assert_same(flat, outs)
    got = torch.autograd.grad(flat.values().square().sum(), [query_leaf, key_leaf, value_leaf])
    for gradient, expected in zip(got, grads, strict=True):
        assert gradient.is_nested
        assert_same(gradient, expected)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_scaled_dot_product_attention(causal, compiled):
    def block(leaf):
        x = leaf.transpose(1, 2)
        return F.scaled_dot_product_attention(x, x, x, is_causal=causal).transpose(1, 2) + leaf

    x = rows(LENGTHS)
    _, leaf = nest(x)
    run = torch.compile(block, backend="aot_eager", fullgraph=True) if compiled else block
    out = run(leaf)
    expected, _ = one_by_one(
        lambda x: torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=causal) + x, x
    )
    torch.testing.assert_close(out.values(), torch.cat(expected))
    (gradient,) = torch.autograd.grad(out.values().square().sum(), leaf)
    plain = block(leaf)
    assert_same(gradient, torch.autograd.grad(plain.values().square().sum(), leaf)[0].unbind())


def test_as_torchs():
    x, _ = nest(rows((3, 5, 1), dtype=torch.float32))
    ours = F.scaled_dot_product_attention(x, x, x)
    torch.testing.assert_close(ours.values(), torch.nn.functional.scaled_dot_product_attention(x, x, x).values())


def test_dropout_counts_sequences_as_batches():
    x = rows((4, 4))
    nested, _ = nest(x)
    dense = torch.stack([y.transpose(0, 1) for y in x])
    out = F.attention(nested, nested, nested, dropout_p=0.4, seed=5)
    expected = F.attention(dense, dense, dense, dropout_p=0.4, seed=5)
    assert_same(out.transpose(1, 2), expected.transpose(1, 2))


def test_autocast():
    x, leaf = nest(rows((3, 5), dtype=torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        out = F.scaled_dot_product_attention(x, x, x, is_causal=True)
    assert out.dtype == torch.bfloat16
    assert torch.autograd.grad(out.values().sum(), leaf)[0].dtype == torch.float32


@pytest.mark.parametrize("transposed", [False, True])
def test_dropout(transposed):
    x, leaf = nest(rows(LENGTHS))
    x = x if transposed else leaf
    values = x.values()
    out = F.dropout(x, 0.5, seed=3)
    assert out.shape == x.shape
    assert torch.equal(out.values(), F.dropout(values, 0.5, seed=3))
    assert torch.equal(F.dropout_add(out, x, 0.5, seed=4).values(), F.dropout_add(out.values(), values, 0.5, seed=4))
    (gradient,) = torch.autograd.grad(out.values().sum(), leaf)
    assert torch.equal((gradient.transpose(1, 2) if transposed else gradient).values() != 0, out.values() != 0)


def jagged(*lengths, heads=HEADS):
    return nest(rows(lengths, heads=heads))[0]


def with_holes():
    padded = torch.randn(2, 5, HEADS, FEATURES)
    return torch.nested.narrow(padded, 1, 0, torch.tensor([3, 5]), layout=torch.jagged).transpose(1, 2)


def strided():
    return torch.nested.nested_tensor([torch.randn(HEADS, n, FEATURES) for n in (3, 5)])


DENSE = torch.randn(2, HEADS, 4, FEATURES)
SDPA = F.scaled_dot_product_attention


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: SDPA(x, x, DENSE), "value: expected a jagged nested tensor .* got an ordinary one"),
        (lambda x: SDPA(DENSE, x, x), "key: expected an ordinary tensor, got a nested one"),
        (lambda x: F.attention(DENSE, DENSE, x), "value: expected an ordinary tensor, got a nested one"),
        (lambda x: SDPA(*[x.transpose(1, 2)] * 3), r"query: expected a jagged .*, got \(2, ragged, 2, 8\)"),
        (lambda x: SDPA(x, jagged(3, 5, 2), jagged(3, 5, 2)), "key: expected 2 sequences as query has, got 3"),
        (lambda x: SDPA(x, jagged(3, 5), jagged(3, 4)), "value: expected sequences as long as those of key"),
        (lambda x: SDPA(x, x, x, torch.ones(1)), "mask: expected None beside nested tensors"),
        (lambda x: F.attention(x, x, x, key_lengths=torch.tensor([1, 2])), "key_lengths: expected None beside"),
        (lambda x: F.attention(x, x, jagged(3, 5, heads=1)), "value: expected shape"),
        (lambda _: SDPA(*[strided()] * 3), "query: expected a jagged .* got a nested tensor of layout torch.strided"),
        (lambda _: F.attention(*[strided()] * 3), "query: expected a jagged .* got a nested tensor of layout"),
        (lambda _: SDPA(*[with_holes()] * 3), "query: expected sequences end to end, got a nested tensor with holes"),
        (lambda x: F.masked_softmax(x), "masked_softmax: scores: expected an ordinary tensor, got a nested one"),
        (lambda x: F.dropout(x, 0.5, inplace=True), "dropout: inplace: expected False for a nested tensor"),
        (lambda _: F.dropout(strided(), 0.5), "dropout: x: expected nested tensors of layout torch.jagged"),
        (lambda x: F.dropout_add(x, DENSE, 0.5), "dropout_add: residual: expected nested .* got an ordinary tensor"),
        (lambda x: F.dropout_add(DENSE, x, 0.5), "dropout_add: x: expected nested .* got an ordinary tensor"),
        (lambda x: F.dropout_add(x, jagged(5, 3), 0.5), "dropout_add: residual: expected sequences as those of x"),
    ],
)
def test_what_cannot_be_taken_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(jagged(3, 5))
