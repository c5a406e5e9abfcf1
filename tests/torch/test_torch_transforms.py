"""No transform of torch is lost on the short way into the kernels.

Every function of fusestep.nn.functional under every transform: the result is that of the same formula in torch's own
operations, or the transform is refused by name. Nothing comes out that has only passed it by.
"""

from __future__ import annotations

import copy
import math

import fusestep.nn as fnn
import fusestep.nn.functional as F
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from fusestep import reference
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

P, SEED = 0.3, 17


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- the functions, and the same in torch's operations ---
# What dropout multiplies the elements of a (3, 5) by.
KEPT = torch.from_numpy(reference.dropout_keep(15, P, seed=SEED).reshape(3, 5) * reference.dropout_scale(P))


def dense_softmax(scores, mask, causal=True):
    scores = scores + mask
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    return scores.softmax(-1)


def dense_attention(query, key, value, mask, causal=True):
    return dense_softmax(query @ key.mT / math.sqrt(query.shape[-1]), mask, causal) @ value


class Case:
    """ours(*inputs) is dense(*inputs). In op: the operator that torch sees."""

    def __init__(self, ours, dense, inputs, op, linear=False):
        self.ours, self.dense, self.inputs, self.op, self.linear = ours, dense, inputs, op, linear


QKV = [draw(2, 3, 4, 8), draw(2, 3, 4, 8, seed=1), draw(2, 3, 4, 5, seed=2)]
MASK = draw(3, 4, 4, seed=3)
CASES = {
    "attention": Case(
        lambda q, k, v, m: F.attention(q, k, v, mask=m, causal=True), dense_attention, [*QKV, MASK], "attention_forward"
    ),
    "scaled_dot_product_attention": Case(
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m),
        lambda *inputs: dense_attention(*inputs, causal=False),
        [*QKV, MASK],
        "attention_forward",
    ),
    "masked_softmax": Case(
        lambda s, m: F.masked_softmax(s, mask=m, causal=True),
        dense_softmax,
        [draw(2, 3, 4, 4), MASK],
        "masked_softmax_forward",
    ),
    "dropout": Case(lambda x: F.dropout(x, P, seed=SEED), lambda x: x * KEPT, [draw(3, 5)], "dropout", linear=True),
    "dropout in place": Case(
        lambda x: F.dropout(x * 2.0, P, inplace=True, seed=SEED),
        lambda x: 2.0 * x * KEPT,
        [draw(3, 5)],
        "dropout",
        linear=True,
    ),
    "dropout_add": Case(
        lambda x, r: F.dropout_add(x, r, P, seed=SEED),
        lambda x, r: r + x * KEPT,
        [draw(3, 5), draw(3, 5, seed=1)],
        "dropout_add",
        linear=True,
    ),
}
by_case = pytest.mark.parametrize("name", CASES)


def each(function):
    """A function of the first dimension's examples, one after another."""
    return lambda *inputs: torch.stack([function(*example) for example in zip(*inputs, strict=True)])


def many(inputs, examples=3):
    return [draw(examples, *x.shape, seed=9 + i) for i, x in enumerate(inputs)]


def all_args(inputs):
    return tuple(range(len(inputs)))


def loss(function):
    return lambda *inputs: function(*inputs).square().sum()


# --- reverse mode, vmap, and both; tracing; everything that must give the plain result ---
TRANSFORMS = {
    "grad": lambda f, x: grad(loss(f), all_args(x))(*x),
    "vjp": lambda f, x: vjp(f, *x)[1](draw(*f(*x).shape)),
    "jacrev": lambda f, x: jacrev(f, all_args(x))(*x),
    "jacrev in chunks": lambda f, x: jacrev(f, all_args(x), chunk_size=3)(*x),
    "vmap": lambda f, x: vmap(f)(*many(x)),
    "vmap of vmap": lambda f, x: vmap(vmap(f))(*many(many(x), 2)),
    "vmap, one input mapped": lambda f, x: vmap(f, (0, *[None] * (len(x) - 1)))(many(x)[0], *x[1:]),
    "vmap, the last mapped": lambda f, x: vmap(f, (*[None] * (len(x) - 1), 0))(*x[:-1], many(x)[-1]),
    "vmap, last dimension": lambda f, x: vmap(f, -1, -1)(*(y.movedim(0, -1) for y in many(x))),
    "vmap of grad": lambda f, x: vmap(grad(loss(f), all_args(x)))(*many(x)),
    "vmap of grad, one input mapped": lambda f, x: vmap(grad(loss(f), all_args(x)), (0, *[None] * (len(x) - 1)))(
        many(x)[0], *x[1:]
    ),
    "grad of vmap": lambda f, x: grad(loss(vmap(f)), all_args(x))(*many(x)),
    "grads of many outputs at once": lambda f, x: batched_grads(f, x),
    "compiled": lambda f, x: torch.compile(f, backend="aot_eager", fullgraph=True)(*x),
    "compiled grad": lambda f, x: torch.compile(grad(loss(f), all_args(x)), backend="aot_eager", fullgraph=True)(*x),
    "compiled vmap": lambda f, x: torch.compile(vmap(f), backend="aot_eager", fullgraph=True)(*many(x)),
    "make_fx": lambda f, x: make_fx(f)(*x)(*others(x)),
    "make_fx, symbolic": lambda f, x: make_fx(f, tracing_mode="symbolic")(*x)(*others(x)),
    "make_fx before dispatch": lambda f, x: make_fx(f, pre_dispatch=True)(*x)(*others(x)),
    "make_fx of grad": lambda f, x: make_fx(grad(loss(f), all_args(x)))(*x)(*others(x)),
    "symbolic_trace": lambda f, x: symbolically_traced(f, len(x))(*others(x)),
    "jit.trace": lambda f, x: torch.jit.trace(f, tuple(x), check_trace=False)(*others(x)),
    "export": lambda f, x: torch.export.export(module_of(f), tuple(x)).module()(*others(x)),
    "checkpoint": lambda f, x: grads(lambda *y: checkpoint(f, *y, use_reentrant=False), x),
    "saved tensors packed": lambda f, x: packed_grads(f, x),
    "inference_mode": lambda f, x: torch.inference_mode()(f)(*x),
    "deterministic": lambda f, x: deterministic(f, x),
    "functional_call": lambda f, x: functional_call(module_of(f), {}, tuple(x)),
    "default device": lambda f, x: with_default_device(f, x),
}
TRACERS = ("symbolic_trace", "jit.trace", "export", "make_fx", "make_fx, symbolic", "make_fx before dispatch")
WARNINGS = pytest.mark.filterwarnings(
    "ignore:.*torch.jit", "ignore:.*vmap", "ignore:.*legacy", "ignore:.*get_attr Node", "ignore:Converting a tensor"
)


def others(inputs):
    """Not what was traced: a result that was baked in would be noticed."""
    return [x * 0.5 + 0.25 for x in inputs]


def grads(function, inputs):
    leaves = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(loss(function)(*leaves), leaves)


def batched_grads(function, inputs):
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    return torch.autograd.grad(out, leaves, draw(3, *out.shape), is_grads_batched=True)


def packed_grads(function, inputs):
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.numpy(force=True).copy(), torch.from_numpy):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = loss(function)(*leaves)
    return torch.autograd.grad(out, leaves)


def deterministic(function, inputs):
    torch.use_deterministic_algorithms(True)
    try:
        return grads(function, inputs)
    finally:
        torch.use_deterministic_algorithms(False)


def with_default_device(function, inputs):
    with torch.device("cpu"):
        return function(*inputs)


def module_of(function):
    class Module(nn.Module):
        def forward(self, *inputs):
            return function(*inputs)

    return Module()


def symbolically_traced(function, count):
    names = [f"x{i}" for i in range(count)]
    scope = {"function": function}
    exec(f"def called({', '.join(names)}): return function({', '.join(names)})", scope)
    return torch.fx.symbolic_trace(scope["called"])


@WARNINGS
@pytest.mark.parametrize("transform", TRANSFORMS)
@by_case
def test_as_in_torchs_operations(name, transform):
    case = CASES[name]
    if transform == "symbolic_trace" and name in ("scaled_dot_product_attention", "dropout in place"):
        # They ask for shapes and leaves, of which symbolic_trace knows nothing: torch refuses that itself.
        with pytest.raises((torch.fx.proxy.TraceError, RuntimeError), match="symbolic"):
            TRANSFORMS[transform](case.ours, case.inputs)
        return
    # What vmap and tracers give is compared with loops and plain calls, not with what they give for torch's operations.
    if transform in ("vmap", "compiled vmap"):
        expected = each(case.dense)(*many(case.inputs))
    elif transform in TRACERS:
        expected = case.dense(*others(case.inputs))
    elif transform == "compiled grad":
        expected = TRANSFORMS["grad"](case.dense, case.inputs)
    elif transform == "make_fx of grad":
        expected = TRANSFORMS["grad"](case.dense, others(case.inputs))
    else:
        expected = TRANSFORMS[transform](case.dense, case.inputs)
    torch.testing.assert_close(TRANSFORMS[transform](case.ours, case.inputs), expected)


# --- what sees the calls of a program, and what replaces its tensors ---
class Functions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Dispatched(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Functions, Dispatched])
@pytest.mark.parametrize("requires_grad", [False, True])
@by_case
def test_modes_see_the_operator(name, mode, requires_grad):
    case = CASES[name]
    inputs = [x.clone().requires_grad_(requires_grad) for x in case.inputs]
    with mode() as seen:
        out = case.ours(*inputs)
    assert any(f"fusestep.{case.op}" in call for call in seen.seen)
    assert torch.equal(out, case.ours(*case.inputs))


class Named(torch.Tensor):
    """By __torch_function__: results are Named too."""


class Wrapped(torch.Tensor):
    """By __torch_dispatch__: it has a tensor and no memory of its own."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=inner.device
        )

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def unwrapped(x):
            return x.inner if isinstance(x, cls) else x

        def wrapped(x):
            return cls(x) if isinstance(x, torch.Tensor) else x

        return tree_map(wrapped, func(*tree_map(unwrapped, args), **tree_map(unwrapped, kwargs or {})))


@pytest.mark.parametrize("which", [0, -1])
@by_case
def test_subclasses_stay_what_they_are(name, which):
    case = CASES[name]
    expected = case.ours(*case.inputs)
    inputs = list(case.inputs)
    inputs[which] = inputs[which].as_subclass(Named)
    out = case.ours(*inputs)
    assert type(out) is Named
    assert torch.equal(out.as_subclass(torch.Tensor), expected)
    inputs[which] = Wrapped(case.inputs[which])
    out = case.ours(*inputs)
    assert type(out) is Wrapped
    assert torch.equal(out.inner, expected)


@by_case
def test_fake_tensors(name):
    case = CASES[name]
    expected = case.ours(*case.inputs)
    with FakeTensorMode() as mode:
        out = case.ours(*(mode.from_tensor(x) for x in case.inputs))
    assert (out.shape, out.dtype, out.stride()) == (expected.shape, expected.dtype, expected.stride())
    out = case.ours(*(x.to("meta") for x in case.inputs))
    assert (out.shape, out.dtype, out.stride()) == (expected.shape, expected.dtype, expected.stride())


# --- forward mode ---
def dual_tangent(function, inputs):
    with forward_ad.dual_level():
        out = function(*(forward_ad.make_dual(x, draw(*x.shape, seed=5)) for x in inputs))
        return forward_ad.unpack_dual(out).tangent


def tangents(inputs):
    return tuple(draw(*x.shape, seed=5) for x in inputs)


def compiled_jvp(function, inputs, given):
    return torch.compile(lambda *x: jvp(function, x, given), backend="aot_eager", fullgraph=True)(*inputs)


FORWARD = {
    "jvp": lambda f, x: jvp(f, tuple(x), tangents(x)),
    "jvp, the last alone": lambda f, x: jvp(lambda y: f(*x[:-1], y), (x[-1],), tangents(x[-1:])),
    "linearize": lambda f, x: linearize(f, *x)[1](*tangents(x)),
    "jacfwd": lambda f, x: jacfwd(f, all_args(x))(*x),
    "hessian": lambda f, x: hessian(loss(f), all_args(x))(*x),
    "jvp of grad": lambda f, x: jvp(grad(loss(f)), tuple(x), tangents(x)),
    "grad of jvp": lambda f, x: grad(lambda *y: jvp(f, y, tangents(y))[1].square().sum())(*x),
    "dual tensors": dual_tangent,
    "dual tensors that require gradients": lambda f, x: dual_tangent(f, [y.clone().requires_grad_() for y in x]),
    "compiled jvp": lambda f, x: compiled_jvp(f, x, tangents(x)),
}


@WARNINGS
@pytest.mark.parametrize("transform", FORWARD)
@by_case
def test_forward_mode(name, transform):
    """Dropout is linear, and has its tangents. What has none says so."""
    case, run = CASES[name], FORWARD[transform]
    if case.linear:
        torch.testing.assert_close(run(case.ours, case.inputs), run(case.dense, case.inputs))
    else:
        with pytest.raises(Exception, match=r"(attention|masked_softmax): (tangents|gradients): expected"):
            run(case.ours, case.inputs)


@by_case
def test_a_level_without_tangents_changes_nothing(name):
    case = CASES[name]
    with forward_ad.dual_level():
        out = case.ours(*case.inputs)
        assert forward_ad.unpack_dual(out).tangent is None
    assert torch.equal(out, case.ours(*case.inputs))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.linear])
def test_double_backward_refuses(name):
    case = CASES[name]
    with pytest.raises(RuntimeError, match="gradients: expected first derivatives only"):
        grad(lambda *x: grad(loss(case.ours))(*x).sum())(*case.inputs)
    with pytest.raises(RuntimeError, match="gradients: expected first derivatives only"):
        jacrev(jacrev(loss(case.ours)))(*case.inputs)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.linear])
def test_double_backward_of_dropout(name):
    case = CASES[name]

    def second(function):
        return grad(lambda *x: grad(lambda *y: function(*y).pow(3).sum())(*x).square().sum())(*case.inputs)

    torch.testing.assert_close(second(case.ours), second(case.dense))


# --- seeds under vmap ---
RANDOM = {
    "dropout": lambda x: F.dropout(x, 0.5),
    "dropout_add": lambda x: F.dropout_add(x, torch.zeros_like(x), 0.5),
    "masked_softmax": lambda x: F.masked_softmax(x, dropout_p=0.5),
    "attention": lambda x: F.attention(x, x, x, dropout_p=0.5),
    "scaled_dot_product_attention": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
}


@pytest.mark.parametrize("name", RANDOM)
def test_seeds_that_are_drawn_follow_vmaps_randomness(name):
    function, x = RANDOM[name], draw(1, 2, 6, 8).expand(4, 1, 2, 6, 8)
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(function)(x)
    torch.manual_seed(0)
    same = vmap(function, randomness="same")(x)
    torch.manual_seed(0)
    expected = function(x[0])
    assert all(torch.equal(example, expected) for example in same)
    different = vmap(function, randomness="different")(x)
    assert not any(torch.equal(different[0], other) for other in different[1:])


@pytest.mark.parametrize("name", RANDOM)
def test_seeds_that_are_given_drop_the_same_of_every_example(name):
    functions = {
        "dropout": lambda x, **s: F.dropout(x, 0.5, **s),
        "dropout_add": lambda x, **s: F.dropout_add(x, x, 0.5, **s),
        "masked_softmax": lambda x, **s: F.masked_softmax(x, dropout_p=0.5, **s),
        "attention": lambda x, **s: F.attention(x, x, x, dropout_p=0.5, **s),
        "scaled_dot_product_attention": lambda x, **s: F.attention(x, x, x, dropout_p=0.5, causal=True, **s),
    }
    function, x = functions[name], draw(3, 1, 2, 6, 8)
    assert torch.equal(vmap(lambda x: function(x, seed=3))(x), each(lambda x: function(x, seed=3))(x))
    seeds = torch.tensor([1, 2, 3])
    mapped = vmap(lambda x, seed: function(x, seed=seed))(x, seeds)
    assert torch.equal(mapped, torch.stack([function(a, seed=s) for a, s in zip(x, seeds, strict=True)]))


# --- options under vmap ---
@pytest.mark.parametrize(
    ("option", "mapped"),
    [
        ("key_lengths", torch.tensor([[4, 2], [0, 3], [1, 4]])),
        ("alibi_slopes", draw(3, 2, 3)),
        ("alibi_slopes", draw(3, 3)),
        ("mask", draw(3, 4)),
        ("mask", draw(3, 4, 1)),
        ("mask", draw(3, 1, 4, 4) > 0),
        ("mask", draw(3, 2, 1, 1, 4)),
        ("mask", draw(3, 1, 3, 4, 4)),
    ],
    ids=lambda x: x if isinstance(x, str) else str(tuple(x.shape)),
)
@pytest.mark.parametrize("is_mapped", [True, False])
@pytest.mark.parametrize("function", ["attention", "masked_softmax"])
def test_options_under_vmap(function, option, mapped, is_mapped):
    if function == "masked_softmax" and option == "alibi_slopes":
        return

    def ours(x, given):
        options = {option: given, "causal": "bottom_right", "window": (2, None)}
        return F.attention(x, x, x, **options) if function == "attention" else F.masked_softmax(x @ x.mT, **options)

    x = draw(3, 2, 3, 4, 8)
    given = mapped if is_mapped else mapped[0]
    pairs = [(x[n], given[n] if is_mapped else given) for n in range(3)]
    expected = torch.stack([ours(*pair) for pair in pairs])
    torch.testing.assert_close(vmap(ours, (0, 0 if is_mapped else None))(x, given), expected)
    expected = torch.stack([grad(loss(ours))(*pair) for pair in pairs])
    torch.testing.assert_close(vmap(grad(loss(ours)), (0, 0 if is_mapped else None))(x, given), expected)


def test_packed_sequences_under_vmap():
    x = draw(3, 1, 2, 7, 8)
    cu_seqlens = torch.tensor([0, 3, 6])

    def ours(x):
        return F.attention(x, x, x, causal=True, cu_seqlens_q=cu_seqlens, cu_seqlens_k=cu_seqlens)

    assert torch.equal(vmap(ours)(x), each(ours)(x))
    torch.testing.assert_close(vmap(grad(loss(ours)))(x), each(grad(loss(ours)))(x))


@pytest.mark.parametrize("shape", [(4, 6), (3, 4, 6), (2, 3, 4, 6)], ids=str)
def test_a_softmax_of_fewer_dimensions_under_vmap(shape):
    x = draw(5, *shape)
    assert torch.equal(vmap(F.masked_softmax)(x), each(F.masked_softmax)(x))
    torch.testing.assert_close(vmap(grad(loss(F.masked_softmax)))(x), each(grad(loss(F.masked_softmax)))(x))


# --- a model ---
@pytest.mark.parametrize("need_weights", [False, True])
def test_gradients_of_each_sample(need_weights):
    """vmap(grad) over a model with our attention, against a loop."""
    torch.manual_seed(0)
    model = fnn.MultiheadAttention(16, 4, batch_first=True, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    samples = draw(5, 6, 16)

    def sample_loss(parameters, sample):
        x = sample[None]
        out, _ = functional_call(model, parameters, (x, x, x), {"is_causal": True, "need_weights": need_weights})
        return out.square().mean()

    together = vmap(grad(sample_loss), (None, 0))(parameters, samples)
    one_by_one = [grad(sample_loss)(parameters, sample) for sample in samples]
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, torch.stack([g[name] for g in one_by_one]))
    plain = copy.deepcopy(model)
    plain(samples[:1], samples[:1], samples[:1], is_causal=True, need_weights=need_weights)[
        0
    ].square().mean().backward()
    for name, p in plain.named_parameters():
        torch.testing.assert_close(together[name][0], p.grad)


@pytest.mark.parametrize("need_weights", [False, True])
def test_a_module_under_vmap(need_weights):
    """An ensemble: parameters are mapped."""
    models = [fnn.MultiheadAttention(16, 4, dtype=torch.float64) for _ in range(3)]
    stacked, _ = torch.func.stack_module_state(models)
    x = draw(6, 2, 16)
    together = vmap(lambda p: functional_call(models[0], p, (x, x, x), {"need_weights": need_weights})[0])(stacked)
    expected = torch.stack([model(x, x, x, need_weights=need_weights)[0] for model in models])
    torch.testing.assert_close(together, expected)
