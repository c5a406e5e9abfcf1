"""fusestep.nn.MultiheadAttention against torch.nn.MultiheadAttention."""

from __future__ import annotations

import inspect
import itertools

import pytest
import torch
from exactness import assert_all_as_exact, assert_as_exact
from fusestep.nn import MultiheadAttention
from torch import nn

N, L, S, E, H = 3, 5, 6, 16, 4
INF = float("inf")


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(dtype=torch.float64, **options):
    """torch's and ours with the same parameters, none of them zero."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(E, H, **options).to(dtype)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn(parameter.shape, dtype=torch.float64) * 0.1)
    ours = MultiheadAttention(E, H, **options).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def inputs(batch_first, kdim=None, vdim=None, keys=S, self_attention=False, number=0):
    def one(length, features, seed):
        return draw(*((N, length) if batch_first else (length, N)), features, seed=seed + 3 * number)

    query = one(L, E, 0)
    return (query, query, query) if self_attention else (query, one(keys, kdim or E, 1), one(keys, vdim or E, 2))


PADDED = torch.zeros(N, S, dtype=torch.bool)
PADDED[1, 4:] = True
PADDED[2, 0] = True
NOT_BOTH = torch.ones(L, S, dtype=torch.bool).triu(2)  # True: not attended
MASKS = {
    "none": {},
    "boolean": {"attn_mask": NOT_BOTH},
    "boolean, each": {"attn_mask": (draw(N * H, L, S) > 0.5) & (torch.arange(S) > 0)},
    "additive": {"attn_mask": draw(L, S)},
    "additive, each": {"attn_mask": draw(N * H, L, S)},
    "padding": {"key_padding_mask": PADDED},
    "additive padding": {"key_padding_mask": torch.where(PADDED, -INF, 0.5).double()},
    "both boolean": {"attn_mask": NOT_BOTH, "key_padding_mask": PADDED},
    "both": {"attn_mask": draw(L, S), "key_padding_mask": PADDED},
    "both, the other way": {"attn_mask": NOT_BOTH, "key_padding_mask": torch.where(PADDED, -INF, 0.5).double()},
}
OPTIONS = [
    {},
    {"batch_first": True},
    {"bias": False, "kdim": 10, "vdim": 12},
    {"add_bias_kv": True, "batch_first": True},
    {"add_zero_attn": True},
    {"add_bias_kv": True, "add_zero_attn": True, "kdim": 10},
]


def cast(options, dtype):
    return {k: v if v.dtype == torch.bool else v.to(dtype) for k, v in options.items()}


def outcome(module, tensors, dtype, **options):
    """Output, weights and all gradients."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in tensors]
    module.zero_grad()
    out, weights = module(*leaves, **options)
    out.square().sum().backward()
    gradients = [x.grad for x in leaves] + [p.grad for p in module.parameters()]
    return [out, *([] if weights is None else [weights]), *gradients]


@pytest.mark.filterwarnings("ignore:Support for mismatched")  # torch's own, of one boolean and one additive mask
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_as_torchs(options, masks, need_weights):
    kind = {"need_weights": need_weights, "average_attn_weights": masks != "boolean"}
    naive, own, truth = [], [], []
    # Several draws, as one is small: how far torch's own worst element is off would be luck.
    for number in range(3):
        tensors = inputs(options.get("batch_first", False), options.get("kdim"), options.get("vdim"), number=number)
        for results, which, dtype in ((naive, 0, torch.float32), (own, 1, torch.float32), (truth, 0, torch.float64)):
            results += outcome(pair(dtype, **options)[which], tensors, dtype, **cast(MASKS[masks], dtype), **kind)
    assert_all_as_exact(own, naive, truth)


@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"add_bias_kv": True, "add_zero_attn": True}], ids=str)
@pytest.mark.parametrize("padding", [None, torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]).bool()])
@pytest.mark.parametrize("need_weights", [False, True])
def test_causal_is_what_its_mask_says(options, padding, need_weights):
    _, ours = pair(**options)
    query = inputs(options.get("batch_first", False), self_attention=True)
    later = torch.ones(L, L, dtype=torch.bool).triu(1)
    kind = {"key_padding_mask": padding, "need_weights": need_weights}
    hinted = ours(*query, attn_mask=later, is_causal=True, **kind)
    masked = ours(*query, attn_mask=later, **kind)
    alone = ours(*query, is_causal=True, **kind)
    for other in (hinted, alone):
        torch.testing.assert_close(other[0], masked[0])
        torch.testing.assert_close(other[1], masked[1])


def test_self_attention_projects_once_and_agrees():
    theirs, ours = pair()
    tensors = inputs(False, self_attention=True)
    own = ours(*tensors)
    assert_as_exact(own[0].float(), theirs.float()(*(x.float() for x in tensors))[0], own[0].detach())
    copies = [x.clone() for x in tensors]
    torch.testing.assert_close(ours(*copies)[0], own[0])  # projected one by one


def test_unbatched():
    theirs, ours = pair()
    query, key = draw(L, E), draw(S, E, seed=1)
    padding = PADDED[1]
    for need_weights in (True, False):
        expected = theirs(query, key, key, key_padding_mask=padding, need_weights=need_weights)
        got = ours(query, key, key, key_padding_mask=padding, need_weights=need_weights)
        torch.testing.assert_close(got[0], expected[0])
        torch.testing.assert_close(got[1], expected[1])


def test_state_dicts_go_both_ways():
    for options in OPTIONS:
        theirs, ours = nn.MultiheadAttention(E, H, **options), MultiheadAttention(E, H, **options)
        assert list(theirs.state_dict()) == list(ours.state_dict())
        theirs.load_state_dict(ours.state_dict())
        ours.load_state_dict(theirs.state_dict())
    assert list(inspect.signature(MultiheadAttention).parameters) == list(
        inspect.signature(nn.MultiheadAttention).parameters
    )
    assert list(inspect.signature(MultiheadAttention.forward).parameters) == list(
        inspect.signature(nn.MultiheadAttention.forward).parameters
    )


def test_starts_like_torchs():
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(E, H)
    torch.manual_seed(0)
    ours = MultiheadAttention(E, H)
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), ours.parameters(), strict=True))


@pytest.mark.parametrize("need_weights", [False, True])
def test_padded_rows_are_zero_and_never_nan(need_weights):
    theirs, ours = pair()
    padding = torch.zeros(N, S, dtype=torch.bool)
    padding[1] = True
    tensors = [x.requires_grad_() for x in inputs(False)]
    if need_weights:
        assert theirs(*tensors, key_padding_mask=padding)[0][:, 1].isnan().all()  # what this is about
    out, weights = ours(*tensors, key_padding_mask=padding, need_weights=need_weights)
    assert torch.equal(out[:, 1], ours.out_proj.bias.expand(L, E))
    if need_weights:
        assert not weights[1].any()
    out.square().sum().backward()
    for x in tensors:
        assert not x.grad[:, 1].any()
        assert x.grad.isfinite().all()


def test_weights_are_those_that_were_used():
    _, ours = pair(dropout=0.5)
    query, key, value = inputs(False)
    torch.manual_seed(0)
    with_weights, weights = ours(query, key, value, average_attn_weights=False)
    assert 0 < int((weights == 0).sum()) < weights.numel()
    torch.manual_seed(0)
    without, _ = ours(query, key, value, need_weights=False)  # the same seed drops the same weights
    torch.testing.assert_close(with_weights, without)
    ours.eval()
    assert (ours(query, key, value)[1] > 0).all()


def test_in_torchs_own_layers():
    layer = nn.TransformerEncoderLayer(E, H, dropout=0.0, batch_first=True, dtype=torch.float64)
    swapped = nn.TransformerEncoderLayer(E, H, dropout=0.0, batch_first=True, dtype=torch.float64)
    swapped.self_attn = MultiheadAttention(E, H, batch_first=True, dtype=torch.float64)
    swapped.load_state_dict(layer.state_dict())
    x = draw(N, L, E)
    mask = nn.Transformer.generate_square_subsequent_mask(L, dtype=torch.float64)
    for options in ({}, {"src_mask": mask, "is_causal": True}):
        torch.testing.assert_close(swapped(x, **options), layer(x, **options))


def test_compiles_whole():
    _, ours = pair()
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    for need_weights, masks in itertools.product([False, True], [{}, MASKS["both boolean"]]):
        options = {"need_weights": need_weights, **masks}
        torch.testing.assert_close(compiled(*inputs(False), **options), ours(*inputs(False), **options))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": draw(L, N, E + 1)}, ValueError, "query: expected 16 features"),
        ({"value": draw(S + 1, N, E)}, ValueError, "value: expected as many positions as key"),
        ({"key": draw(S, E)}, ValueError, "query, key, value: expected all with 3 dimensions"),
        ({"attn_mask": torch.ones(L, L).bool()}, ValueError, r"attn_mask: expected shape \(5, 6\) or \(12, 5, 6\)"),
        ({"attn_mask": torch.ones(L, S).int()}, TypeError, "attn_mask: expected a boolean or floating mask"),
        ({"key_padding_mask": torch.ones(N, L).bool()}, ValueError, r"key_padding_mask: expected shape \(3, 6\)"),
    ],
)
def test_what_cannot_be_taken_is_named(change, error, message):
    _, ours = pair()
    query, key, value = inputs(False)
    with pytest.raises(error, match=f"MultiheadAttention: {message}"):
        ours(**{"query": query, "key": key, "value": value, **change})
