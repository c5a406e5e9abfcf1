"""fusestep.nn.functional: attention, scaled_dot_product_attention and masked_softmax as PyTorch operations.

What the kernels compute is tested elsewhere (against the references). Here: that gradients, seeds, modes and torch's
machinery go with it, and that torch's own attention can be swapped for ours.
"""

from __future__ import annotations

import inspect
import itertools
import math

import fusestep.nn.functional as F
import pytest
import torch
from exactness import assert_as_exact
from fusestep import ops
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

SDPA = torch.nn.functional.scaled_dot_product_attention
INT64_MAX = 2**63 - 1


def draw(*shape, dtype=torch.float64, grad=False, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_(grad)


def problem(dtype=torch.float64, grad=True, heads=4, kv_heads=2, queries=7, keys=9, features=8, value_features=6):
    """query, key, value, additive mask."""
    shapes = (
        (2, heads, queries, features),
        (2, kv_heads, keys, features),
        (2, kv_heads, keys, value_features),
        (heads, queries, keys),
    )
    return [draw(*shape, dtype=dtype, grad=grad, seed=i) for i, shape in enumerate(shapes)]


def grads_of(out, inputs):
    return torch.autograd.grad(out, inputs, draw(*out.shape, dtype=out.dtype, seed=99))


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# Every option at some value; they all go together.
OPTIONS = {
    "none": {},
    "causal": {"causal": True},
    "bottom-right, window": {"causal": "bottom_right", "window": (3, None)},
    "lengths": {"key_lengths": torch.tensor([9, 0])},
    "ALiBi, soft cap": {"alibi_slopes": draw(4), "softcap": 2.0, "scale": 0.7},
    "dropout": {"dropout_p": 0.3, "seed": 17, "offset": 3},
    "all": {
        "causal": "bottom_right",
        "window": (4, 1),
        "key_lengths": torch.tensor([8, 5]),
        "alibi_slopes": draw(2, 4),
        "softcap": 3.0,
        "dropout_p": 0.2,
        "seed": 2**64 - 1,
    },
}
SOFTMAX_OPTIONS = {
    name: {key: value for key, value in options.items() if key not in ("alibi_slopes", "softcap")}
    for name, options in OPTIONS.items()
}
PACKED = {
    "cu_seqlens_q": torch.tensor([0, 3, 3, 6]),  # the last token belongs to no sequence
    "cu_seqlens_k": torch.tensor([0, 4, 5, 9]),
}
by_name = pytest.mark.parametrize("name", OPTIONS)


# --- the same as on plain arrays, and its derivative ---
@by_name
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_kernels_results_come_out(name, dtype):
    options = {k: v.float() if k == "alibi_slopes" else v for k, v in OPTIONS[name].items()}
    *inputs, mask = problem(dtype, grad=True)
    out, lse = F.attention(*inputs, mask=mask, **options, return_lse=True)
    plain = [x.detach() for x in inputs]
    expected, expected_lse = ops.attention(*plain, mask=mask.detach(), **options)
    assert torch.equal(out, expected)
    assert torch.equal(lse, expected_lse)
    assert out.requires_grad
    assert not lse.requires_grad
    grad = draw(*out.shape, dtype=dtype)
    expected = ops.attention_backward(
        grad, *plain, expected, expected_lse, mask=mask.detach(), **options, grad_mask=True
    )
    assert same(torch.autograd.grad(out, [*inputs, mask], grad), expected)


@by_name
def test_gradients_are_derivatives(name):
    def function(query, key, value, mask):
        return F.attention(query, key, value, mask=mask, **OPTIONS[name])

    assert torch.autograd.gradcheck(function, problem())


@pytest.mark.parametrize("mask_shape", [(9,), (1, 9), (7, 1), (2, 1, 1, 9), (1, 4, 1, 1), (2, 4, 7, 9)], ids=str)
def test_gradients_of_masks_are_summed_over_what_was_broadcast(mask_shape):
    *inputs, _ = problem(grad=False)
    mask = draw(*mask_shape, grad=True)
    assert torch.autograd.gradcheck(lambda mask: F.attention(*inputs, mask=mask, dropout_p=0.3, seed=1), [mask])
    expanded = mask.detach().expand(2, 4, 7, 9).requires_grad_()  # a view with stride 0
    assert torch.autograd.gradcheck(lambda mask: F.attention(*inputs, mask=mask, causal=True), [expanded.clone()])
    (grad,) = grads_of(F.attention(*inputs, mask=expanded), [expanded])
    assert grad.shape == (2, 4, 7, 9)


def test_packed_sequences_have_gradients():
    inputs = [draw(1, 4, 7, 8, grad=True), draw(1, 2, 9, 8, grad=True), draw(1, 2, 9, 6, grad=True)]
    options = {**PACKED, "causal": True, "dropout_p": 0.2, "seed": 5}
    assert torch.autograd.gradcheck(lambda *inputs: F.attention(*inputs, **options), inputs)
    out = F.attention(*inputs, **options)
    assert not out[:, :, 6:].any()
    assert not grads_of(out, inputs)[0][:, :, 6:].any()


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=4)), ids=str)
def test_only_what_is_wanted_is_computed(wanted):
    *inputs, mask = problem()
    every = grads_of(F.attention(*inputs, mask=mask, causal=True), [*inputs, mask])
    some = [x.detach().requires_grad_(want) for x, want in zip((*inputs, mask), wanted, strict=True)]
    out = F.attention(*some[:3], mask=some[3], causal=True)
    assert out.requires_grad == any(wanted)
    if any(wanted):
        leaves = [x for x in some if x.requires_grad]
        assert same(grads_of(out, leaves), [g for g, want in zip(every, wanted, strict=True) if want])


def test_views_are_not_copied_and_the_output_goes_on_as_a_view():
    qkv = draw(2, 9, 3, 4, 8, grad=True)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    out = F.attention(query, key, value, causal=True)
    flat = out.transpose(1, 2).reshape(2, 9, 32)
    assert flat.untyped_storage().data_ptr() == out.untyped_storage().data_ptr()
    contiguous = [x.detach().clone(memory_format=torch.contiguous_format) for x in (query, key, value)]
    assert torch.equal(out, F.attention(*contiguous, causal=True))
    assert torch.autograd.gradcheck(lambda x: F.attention(*x.permute(2, 0, 3, 1, 4), causal=True), [qkv])
    strange = [x.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_() for x in (query, key, value)]
    assert torch.equal(F.attention(*strange, causal=True), out)
    for grad, x in zip(grads_of(F.attention(*strange), strange), strange, strict=True):
        assert grad.stride() == x.stride()


# --- masked softmax ---
@pytest.mark.parametrize("name", SOFTMAX_OPTIONS)
def test_softmax_gradients_are_derivatives(name):
    scores, mask = draw(2, 4, 7, 9, grad=True), draw(4, 1, 9, grad=True)
    assert torch.autograd.gradcheck(lambda s, m: F.masked_softmax(s, mask=m, **SOFTMAX_OPTIONS[name]), [scores, mask])


@pytest.mark.parametrize("shape", [(7, 9), (4, 7, 9), (2, 4, 7, 9)], ids=str)
def test_softmax_of_fewer_dimensions(shape):
    scores = draw(*shape, dtype=torch.float32)
    assert_as_exact(F.masked_softmax(scores), scores.softmax(-1), scores.double().softmax(-1))


def test_softmax_drops_the_weights_that_attention_drops():
    query, key, value, mask = problem(torch.float32, grad=False, kv_heads=4)
    options = {"mask": mask, "causal": True, "dropout_p": 0.4, "seed": 3, "offset": 2}
    scale = 1 / math.sqrt(8)
    naive = F.masked_softmax(query @ key.mT, scale=scale, **options) @ value
    truth = F.masked_softmax(query.double() @ key.double().mT, scale=scale, **{**options, "mask": mask.double()})
    assert_as_exact(F.attention(query, key, value, **options), naive, truth @ value.double())


# --- torch's own attention, swapped ---
def test_signature_is_torchs():
    # torch's is a builtin; its documentation says the signature.
    documented = SDPA.__doc__[: SDPA.__doc__.index("->")]
    documented = documented[documented.index("(") :]
    names = list(inspect.signature(F.scaled_dot_product_attention).parameters)
    positions = [documented.index(name) for name in names]
    assert positions == sorted(positions)


SHAPES = {  # query, key
    "two dimensions": ((6, 4), (5, 4)),
    "three": ((2, 6, 4), (2, 5, 4)),
    "four": ((2, 3, 6, 4), (2, 3, 5, 4)),
    "five": ((2, 2, 3, 6, 4), (2, 2, 3, 5, 4)),
    "batches broadcast": ((2, 3, 6, 4), (1, 3, 5, 4)),
    "queries broadcast": ((1, 3, 6, 4), (2, 3, 5, 4)),
    "heads broadcast": ((2, 3, 6, 4), (2, 1, 5, 4)),
    "dimensions appear": ((6, 4), (3, 5, 4)),
}


@pytest.mark.parametrize("masked", ["none", "causal", "boolean", "additive", "additive for all"])
@pytest.mark.parametrize("name", SHAPES)
def test_swaps_with_torchs(name, masked):
    query, key = (draw(*shape, grad=True) for shape in SHAPES[name])
    value = draw(*SHAPES[name][1][:-1], 3, grad=True)
    leading = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])
    mask = {
        "boolean": draw(6, 5) > -0.5,
        "additive": draw(6, 5),
        "additive for all": draw(*leading, 6, 5),
    }.get(masked)

    def results(function, dtype):
        leaves = [x.detach().to(dtype).requires_grad_() for x in (query, key, value)]
        cast = mask if mask is None or mask.dtype == torch.bool else mask.to(dtype)
        out = function(*leaves, cast, 0.0, masked == "causal", scale=0.6)
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    truth = results(SDPA, torch.float64)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        naive = results(SDPA, torch.float32)
    for ours, theirs, exact in zip(results(F.scaled_dot_product_attention, torch.float32), naive, truth, strict=True):
        assert_as_exact(ours, theirs, exact)


@pytest.mark.parametrize("dims", [3, 4, 5])
def test_grouped_queries_as_torch(dims):
    query = draw(2, 2, 6, 3, 4, dtype=torch.float32)[(0,) * (5 - dims)]
    key = draw(2, 2, 2, 5, 4, dtype=torch.float32)[(0,) * (5 - dims)]
    ours, naive, truth = (
        function(*(x.to(dtype) for x in (query, key, key)), enable_gqa=True)
        for function, dtype in (
            (F.scaled_dot_product_attention, torch.float32), (SDPA, torch.float32), (SDPA, torch.float64),
        )
    )  # fmt: skip
    assert_as_exact(ours, naive, truth)


# --- seeds ---
def test_seeds_come_from_torchs_generator():
    *inputs, _ = problem(grad=False)
    torch.manual_seed(0)
    first, second = (F.attention(*inputs, dropout_p=0.5) for _ in range(2))
    torch.manual_seed(0)
    again = F.attention(*inputs, dropout_p=0.5)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    state = torch.get_rng_state()
    F.attention(*inputs)
    F.attention(*inputs, dropout_p=0.5, seed=1)
    assert torch.equal(torch.get_rng_state(), state)  # drawn only where one is needed


@pytest.mark.parametrize("seed", [0, 5, INT64_MAX, 2**63, 2**64 - 1])
def test_seeds_may_be_tensors(seed):
    *inputs, _ = problem()
    signed = torch.tensor(seed - 2**64 if seed > INT64_MAX else seed)
    results = []
    for given in (seed, signed):
        out = F.attention(*inputs, dropout_p=0.5, seed=given)
        results.append([out, *grads_of(out, inputs)])
    assert same(*results)
    assert not torch.equal(results[0][0], F.attention(*inputs, dropout_p=0.5, seed=seed, offset=1))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_drops_the_same_twice(reentrant):
    *inputs, _ = problem()

    def block(query, key, value):
        return F.attention(query, key, value, causal=True, dropout_p=0.5).tanh()

    results = []
    for run in (block, lambda *inputs: checkpoint(block, *inputs, use_reentrant=reentrant)):
        torch.manual_seed(3)
        out = run(*inputs)
        leaves = [x.clone() for x in (out.detach(),)]
        for x in inputs:
            x.grad = None
        out.square().sum().backward()
        results.append([*leaves, *[x.grad for x in inputs]])
    assert same(*results)


# --- torch's machinery ---
def op_arguments(op, inputs, options):
    """Positional, as the schema says; a seed as a tensor."""
    options = {**options, "causal": "top_left" if options.get("causal") is True else options.get("causal")}
    if "seed" in options:
        options["seed"] = torch.tensor(options["seed"] - 2**64 if options["seed"] > INT64_MAX else options["seed"])
    if "window" in options:
        options["window"] = [-1 if reach is None else reach for reach in options["window"]]
    defaults = {"dropout_p": 0.0, "offset": 0}
    names = [argument.name for argument in op._schema.arguments][len(inputs) :]
    return [*inputs, *(options.get(name, defaults.get(name)) for name in names)]


@by_name
def test_attention_is_a_proper_operator(name):
    *inputs, mask = problem(torch.float32)
    options = {k: v.float() if k == "alibi_slopes" else v for k, v in OPTIONS[name].items()}
    op, backward = torch.ops.fusestep.attention_forward.default, torch.ops.fusestep.attention_backward.default
    arguments = op_arguments(op, inputs, {**options, "mask": mask})
    opcheck(op, arguments)
    out, lse = op(*arguments)
    arguments = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
    needs = [True, False, True, True]
    opcheck(backward, (torch.ones_like(out), *arguments[:3], out.detach(), lse, *arguments[3:], needs))


@pytest.mark.parametrize("name", SOFTMAX_OPTIONS)
def test_softmax_is_a_proper_operator(name):
    op, backward = torch.ops.fusestep.masked_softmax_forward.default, torch.ops.fusestep.masked_softmax_backward.default
    scores, mask = draw(2, 4, 7, 9, grad=True), draw(4, 1, 9, grad=True)
    arguments = op_arguments(op, [scores], {**SOFTMAX_OPTIONS[name], "mask": mask})
    opcheck(op, arguments)
    out, lse = op(*arguments)
    arguments = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
    opcheck(backward, (torch.ones_like(out), arguments[0], lse, *arguments[1:], [False, True]))


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # by inductor itself
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_whole(backend):
    def function(query, key, value, mask, seed):
        out = F.attention(query, key, value, mask=mask, causal=True, window=(5, None), dropout_p=0.3, seed=seed)
        out = out + F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        return F.masked_softmax(out, causal=True, dropout_p=0.2, seed=seed).sin()

    inputs = problem(torch.float32)
    compiled = torch.compile(function, backend=backend, fullgraph=True)
    for seed in (3, 4, torch.tensor(5)):
        ours, plain = compiled(*inputs, seed), function(*inputs, seed)
        exact = function(*(x.double() for x in inputs), seed)
        # The same kernels; what lies between them (sin, +) may be compiled to other code.
        assert_as_exact(ours, plain, exact)
        for a, b, c in zip(grads_of(ours, inputs), grads_of(plain, inputs), grads_of(exact, inputs), strict=True):
            assert_as_exact(a, b, c.double())


def test_compiled_graphs_draw_anew():
    *inputs, _ = problem(torch.float32, grad=False)
    compiled = torch.compile(lambda *x: F.attention(*x, dropout_p=0.5), backend="aot_eager", fullgraph=True)
    torch.manual_seed(0)
    first, second = compiled(*inputs), compiled(*inputs)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(F.attention(*inputs, dropout_p=0.5), first)


def test_fake_and_meta_tensors_have_shapes():
    *inputs, _ = problem(torch.bfloat16, grad=False)
    out, lse = F.attention(*(x.to("meta") for x in inputs), return_lse=True)
    real, real_lse = F.attention(*inputs, return_lse=True)
    for meta, tensor in ((out, real), (lse, real_lse)):
        assert (meta.shape, meta.dtype, meta.stride()) == (tensor.shape, tensor.dtype, tensor.stride())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_as_torchs(dtype, compiled):
    query, key, value, mask = problem(torch.float32)

    def function(query, key, value, mask):
        return F.attention(query, key, value, mask=mask)

    run = torch.compile(function, backend="aot_eager", fullgraph=True) if compiled else function
    with torch.autocast("cpu", dtype):
        out = run(query, key, value, mask)
        assert out.dtype == SDPA(query, query, query).dtype == dtype
        assert F.attention(*(x.double() for x in (query, key, value))).dtype == torch.float64
    expected = function(*(x.to(dtype) for x in (query, key, value)), mask)
    assert torch.equal(out, expected)
    leaves = [query, key, value, mask]
    for grad, same_grad, leaf in zip(grads_of(out, leaves), grads_of(expected, leaves), leaves, strict=True):
        assert grad.dtype == leaf.dtype
        assert torch.equal(grad, same_grad)


def test_nothing_is_kept_without_gradients():
    *inputs, _ = problem()
    kept = []

    def keep(x):
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        with torch.no_grad():
            assert F.attention(*inputs).grad_fn is None
        with torch.inference_mode():
            F.attention(*inputs)
        assert not kept
        out, lse = F.attention(*inputs, return_lse=True)
    # The inputs, the output and one number a query.
    assert sum(x.numel() for x in kept) == sum(x.numel() for x in (*inputs, out, lse))


def test_double_backward_refuses():
    for run in (F.attention, torch.compile(F.attention, backend="aot_eager", fullgraph=True)):
        *inputs, _ = problem()
        if run is F.attention:
            grad, *_ = torch.autograd.grad(run(*inputs).square().sum(), inputs, create_graph=True)
            with pytest.raises(RuntimeError, match="attention: gradients: expected first derivatives only"):
                grad.sum().backward()
    scores = draw(3, 4, grad=True)
    (grad,) = torch.autograd.grad(F.masked_softmax(scores).square().sum(), scores, create_graph=True)
    with pytest.raises(RuntimeError, match="masked_softmax: gradients: expected first derivatives only"):
        grad.sum().backward()


def test_a_change_between_forward_and_backward_is_noticed():
    *inputs, _ = problem()
    lengths = torch.tensor([3, 4])
    out = F.attention(*inputs, key_lengths=lengths)
    lengths[0] = 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


# --- what is refused ---
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dropout_p": 1.5}, ValueError, "attention: dropout_p: expected"),
        ({"dropout_p": math.nan}, ValueError, "attention: dropout_p: expected"),
        ({"dropout_p": 0.5, "seed": 1.5}, TypeError, "attention: seed: expected an integer or a 0-dim int64 tensor"),
        ({"dropout_p": 0.5, "seed": torch.tensor([1])}, TypeError, "attention: seed: expected a 0-dim int64 tensor"),
        ({"dropout_p": 0.5, "seed": -1}, ValueError, "attention: seed: expected"),
        ({"scale": math.nan}, ValueError, "attention: scale: expected"),
        ({"mask": torch.ones(7, 9, dtype=torch.int64)}, TypeError, "attention: mask: expected"),
        ({"mask": torch.ones(7, 8, dtype=torch.bool)}, ValueError, "attention: mask: expected"),
        ({"causal": "down"}, ValueError, "attention: causal: expected"),
        ({"key_lengths": torch.tensor([10, 1])}, ValueError, "attention: key_lengths"),
        ({"alibi_slopes": draw(4, grad=True)}, ValueError, "alibi_slopes: expected a tensor that needs no gradient"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_taken_is_named(options, error, message):
    *inputs, _ = problem()
    with pytest.raises(error, match=message):
        F.attention(*inputs, **options)


def test_wrong_inputs_are_named():
    query, key, value, mask = problem(grad=False)
    with pytest.raises(TypeError, match="attention: key: expected"):
        F.attention(query, key.float(), value)
    with pytest.raises(ValueError, match="attention: key: expected"):
        F.attention(query, key[..., :-1], value)
    for wrong in (query[0], query[None], query[0, 0, 0, 0]):
        with pytest.raises(ValueError, match="attention: query: expected 4 dimensions"):
            F.attention(wrong, key, value)
        with pytest.raises(ValueError, match="attention: query: expected 4 dimensions"):
            F.attention(wrong.requires_grad_(), key, value)
    name = "scaled_dot_product_attention"
    with pytest.raises(RuntimeError, match=f"{name}: attn_mask: expected None with is_causal=True"):
        F.scaled_dot_product_attention(query, query, query, mask, is_causal=True)
    with pytest.raises(ValueError, match=f"{name}: query, key, value: expected leading dimensions that broadcast"):
        F.scaled_dot_product_attention(query, key, value)  # 4 heads against 2: only with enable_gqa
    with pytest.raises(ValueError, match=f"{name}: query: expected at least 2 dimensions"):
        F.scaled_dot_product_attention(query[0, 0, 0], key, value)
    with pytest.raises(ValueError, match="masked_softmax: scores: expected"):
        F.masked_softmax(query[0, 0, 0])
