"""What fusestep.optim and fusestep.nn.utils refuse: by name, saying what was expected, nothing written."""

from __future__ import annotations

import math

import cases
import fusestep.optim
import numpy as np
import pytest
import torch
from fusestep.nn import utils
from torch.nn import Parameter
from torch_pairs import COMMON, assert_same_bits, make_grads, make_params, ours, snapshot, train

ROWS = {"argvalues": cases.OPTIMIZERS, "ids": [row.name for row in cases.OPTIMIZERS]}

# option, a bad value of it, the class of the error
BAD_OPTIONS = {
    "adamw": [
        ("lr", -0.1, ValueError),
        ("lr", math.nan, ValueError),
        ("lr", math.inf, ValueError),
        ("lr", "fast", TypeError),
        ("lr", None, TypeError),
        ("betas", (1.0, 0.9), ValueError),
        ("betas", (0.9, 1.0), ValueError),
        ("betas", (-0.1, 0.9), ValueError),
        ("betas", (math.nan, 0.9), ValueError),
        ("betas", (0.9,), ValueError),
        ("betas", 0.9, TypeError),
        ("eps", -1e-8, ValueError),
        ("eps", math.nan, ValueError),
        ("weight_decay", -1.0, ValueError),
        ("weight_decay", math.nan, ValueError),
        ("decay", "none", ValueError),
    ],
    "adam": [("lr", -0.1, ValueError), ("betas", (0.9, 2.0), ValueError), ("weight_decay", -1.0, ValueError)],
    "rmsprop": [
        ("lr", -0.1, ValueError),
        ("alpha", -0.1, ValueError),
        ("alpha", math.nan, ValueError),
        ("eps", -1.0, ValueError),
        ("weight_decay", -1.0, ValueError),
        ("momentum", -0.5, ValueError),
    ],
    "adagrad": [
        ("lr", -0.1, ValueError),
        ("lr_decay", -0.1, ValueError),
        ("weight_decay", -1.0, ValueError),
        ("eps", -1.0, ValueError),
        ("initial_accumulator_value", -1.0, ValueError),
        ("initial_accumulator_value", math.nan, ValueError),
    ],
    "sgd": [
        ("lr", -0.1, ValueError),
        ("momentum", -0.5, ValueError),
        ("momentum", math.nan, ValueError),
        ("dampening", math.nan, ValueError),
        ("weight_decay", -1.0, ValueError),
        ("nesterov", True, ValueError),  # without a momentum
        ("form", "keras", ValueError),
    ],
}
EACH_BAD_OPTION = {
    "argvalues": [(cases.BY_NAME[name], *bad) for name, options in BAD_OPTIONS.items() for bad in options],
    "ids": [f"{name}-{option}={value}" for name, options in BAD_OPTIONS.items() for option, value, _ in options],
}


def prepared(row, options=None, **more):
    """An optimizer in mid-run whose parameters have a gradient, and its parameters, in two groups."""
    params = make_params()
    optimizer = ours(row)([{"params": params[:3]}, {"params": params[3:]}], **(options or {}), **more)
    train(optimizer, params, range(1, 4))
    for p, g in zip(params, make_grads(4, params), strict=True):
        p.grad = g
    return optimizer, params


def test_an_unknown_option_names_the_nearest():
    with pytest.raises(TypeError, match=r"^AdamW: max_gradnorm: .* Did you mean 'max_grad_norm'\?"):
        fusestep.optim.AdamW([torch.zeros(1)], max_gradnorm=1.0)


@pytest.mark.parametrize("row, option, value, error", **EACH_BAD_OPTION)
def test_option_at_construction(row, option, value, error):
    with pytest.raises(error, match=rf"^{row.torch_class}: {option}\S*: expected .+, got .+"):
        ours(row)(make_params(), **{option: value})
    with pytest.raises(error, match=rf"^{row.torch_class}: {option}\S*: expected .+, got .+"):
        ours(row)([{"params": make_params(), option: value}])


@pytest.mark.parametrize("row, option, value, error", **EACH_BAD_OPTION)
def test_option_of_an_added_group(row, option, value, error):
    params = make_params()
    optimizer = ours(row)(params[:2])
    with pytest.raises(error, match=f"^{row.torch_class}: {option}"):
        optimizer.add_param_group({"params": params[2:], option: value})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("row, option, value, error", **EACH_BAD_OPTION)
def test_option_changed_between_steps(row, option, value, error):
    """In the second group: the first has not been touched when it is found."""
    if option == "initial_accumulator_value":
        pytest.skip("read when the state is made, not in a step")
    optimizer, params = prepared(row)
    optimizer.param_groups[1][option] = value
    before = snapshot(optimizer, params)
    with pytest.raises(error, match=rf"^{row.torch_class}\.step: .*{option}.*: expected .+, got .+"):
        optimizer.step()
    assert_same_bits(snapshot(optimizer, params), before)
    assert optimizer.skipped_steps == 0


@pytest.mark.parametrize("row", **ROWS)
def test_lr_of_more_than_one_element(row):
    with pytest.raises((TypeError, ValueError), match=f"^{row.torch_class}: lr: expected"):
        ours(row)(make_params(), lr=torch.tensor([0.1, 0.2]))


@pytest.mark.parametrize("row", **ROWS)
def test_a_fused_step_is_not_differentiable(row):
    params = make_params()
    optimizer = ours(row)(params[:2])
    with pytest.raises(ValueError, match=f"^{row.torch_class}: differentiable: expected False, got True"):
        ours(row)(params, differentiable=True)
    with pytest.raises(ValueError, match=f"^{row.torch_class}: differentiable: expected False, got True"):
        optimizer.add_param_group({"params": params[2:], "differentiable": True})


BAD_CLIPPING = [
    ({"max_grad_norm": -1.0}, ValueError, "max_grad_norm"),
    ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm"),  # some trainers mean "off" by it: None is off
    ({"max_grad_norm": math.nan}, ValueError, "max_grad_norm"),
    ({"max_grad_norm": "1"}, TypeError, "max_grad_norm"),
    ({"max_grad_norm": 1.0, "norm_type": 3}, ValueError, "norm_type"),
    ({"max_grad_norm": 1.0, "norm_type": math.nan}, ValueError, "norm_type"),
    ({"max_grad_norm": 1.0, "clip_factor": math.nan}, ValueError, "clip_factor"),
    ({"max_grad_norm": 1.0, "clip_factor": -0.5}, ValueError, "clip_factor"),
    ({"max_grad_value": -1.0}, ValueError, "max_grad_value"),
    ({"max_grad_value": 1.0, "max_grad_norm": 1.0}, ValueError, "max_grad_value"),
    ({"on_nonfinite": "ignore"}, ValueError, "on_nonfinite"),
]


@pytest.mark.parametrize(("clipping", "error", "argument"), BAD_CLIPPING)
def test_clipping(clipping, error, argument):
    with pytest.raises(error, match=rf"^AdamW: {argument}: expected .+, got .+"):
        fusestep.optim.AdamW(make_params(), **clipping)
    optimizer, params = prepared(cases.BY_NAME["adamw"])
    for name, value in clipping.items():
        setattr(optimizer, name, value)
    before = snapshot(optimizer, params)
    with pytest.raises(error, match=rf"^AdamW\.step: {argument}: expected .+, got .+"):
        optimizer.step()
    assert_same_bits(snapshot(optimizer, params), before)


def test_unknown_keyword():
    with pytest.raises(
        TypeError, match=r"^AdamW: max_norm: expected an argument of torch.optim.AdamW or one of max_grad"
    ):
        fusestep.optim.AdamW(make_params(), max_norm=1.0)


def test_decoupled_weight_decay_in_one_group_only():
    params = make_params()
    optimizer = fusestep.optim.Adam([{"params": params[:2]}, {"params": params[2:], "decoupled_weight_decay": True}])
    for p, g in zip(params, make_grads(1, params), strict=True):
        p.grad = g
    with pytest.raises(ValueError, match=r"^Adam\.step: decoupled_weight_decay: expected the same in all"):
        optimizer.step()


# --- parameters ---


def test_the_same_tensor_twice():
    params = make_params()
    with pytest.raises(ValueError, match=r"^AdamW: params\[5\]: expected every tensor once, got one of shape \(17,\)"):
        fusestep.optim.AdamW([*params, params[1]])
    with pytest.raises(ValueError, match=r"^AdamW: params\[1\]: expected every tensor once"):
        fusestep.optim.AdamW([("a", params[0]), ("b", params[0])])
    optimizer = fusestep.optim.AdamW(params[:2])
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": params[1:]})
    assert len(optimizer.param_groups) == 1


def test_what_torch_refuses():
    params = make_params()
    for bad, error, message in (
        ([], ValueError, "empty parameter list"),
        (params[0], TypeError, "iterable of Tensors"),
        ([1.0], TypeError, "can only optimize Tensors"),
        ([params[0] * 2], ValueError, "non-leaf"),
        ([{"params": set(params)}], TypeError, "ordered"),
    ):
        with pytest.raises(error, match=message):
            fusestep.optim.AdamW(bad)
    with pytest.raises(TypeError, match="must be a dict"):
        fusestep.optim.AdamW(params[:2]).add_param_group(params[2:])


def refuse_step(optimizer, params, error, match):
    """The step is refused, and all that can be compared is as it was."""
    kept = [p for p in params if p.device.type == "cpu" and p.layout == torch.strided]
    before = snapshot(optimizer, kept)
    with pytest.raises(error, match=match):
        optimizer.step()
    assert_same_bits(snapshot(optimizer, kept), before)
    assert optimizer.skipped_steps == 0


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("row, options", **COMMON)
def test_parameter_of_another_dtype(row, options, dtype):
    params = [*make_params(), Parameter(torch.ones(3, dtype=dtype))]
    optimizer = ours(row)([{"params": params[:-1]}, {"params": params[-1:]}], **options)
    for p in params:
        p.grad = torch.ones_like(p)
    refuse_step(
        optimizer,
        params,
        TypeError,
        rf"^{row.torch_class}\.step: .*params\[0\]: expected .+, got {str(dtype)[6:]}",
    )


def test_the_index_is_that_of_the_group():
    """Also where parameters without a gradient stand before the bad one."""
    params = make_params(shapes=[(3,)] * 6)
    optimizer = fusestep.optim.AdamW([{"params": params[:3]}, {"params": params[3:]}])
    params[0].grad = params[5].grad = torch.ones(3)
    params[5].grad_dtype = None
    params[5].grad = torch.ones(3, dtype=torch.float64)
    refuse_step(
        optimizer,
        params,
        TypeError,
        r"^AdamW\.step: groups\[1\]\.grads\[2\]: expected float32, .*, got float64",
    )
    params[5].data, params[5].grad = params[0].data, torch.ones(3)
    refuse_step(optimizer, params, ValueError, r"groups\[1\]\.params\[2\]: .* shared with groups\[0\]\.params\[0\]")


def test_integer_parameter():
    p = torch.ones(3, dtype=torch.int64)
    optimizer = fusestep.optim.SGD([p])
    p.grad = torch.ones_like(p)
    refuse_step(optimizer, [p], TypeError, r"^SGD\.step: .*params\[0\]: expected .+, got int64")


def test_meta_parameter():
    p = Parameter(torch.ones(3, device="meta"))
    optimizer = fusestep.optim.AdamW([p])
    p.grad = torch.ones_like(p)
    refuse_step(optimizer, [p], (TypeError, ValueError), r"^AdamW\.step: .*params\[0\]: expected .+, got .*meta")


def test_fake_parameter():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        p = Parameter(torch.ones(3))
        optimizer = fusestep.optim.AdamW([p])
        p.grad = torch.ones_like(p)
        with pytest.raises((TypeError, ValueError), match=r"^AdamW\.step: .*\[0\]: expected"):
            optimizer.step()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.skipif(bool(fusestep.info()["cuda_architectures"]), reason="this build has a CUDA backend")
def test_cuda_parameter():
    p = Parameter(torch.ones(3, device="cuda"))
    optimizer = fusestep.optim.AdamW([p])
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=r"^AdamW\.step: .*params\[0\]: expected an array in CPU memory, got .*CUDA"):
        optimizer.step()


def test_sparse_gradient():
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    optimizer = fusestep.optim.Adagrad(embedding.parameters())
    embedding(torch.tensor([1, 3])).sum().backward()
    assert embedding.weight.grad.is_sparse
    refuse_step(
        optimizer,
        [embedding.weight],
        TypeError,
        r"^Adagrad\.step: .*grads\[0\]: expected .+, got .*[Ss]parse",
    )


def test_gradient_of_another_dtype():
    p = Parameter(torch.ones(3, dtype=torch.float64))
    p.grad_dtype = torch.float32
    optimizer = fusestep.optim.AdamW([p])
    p.grad = torch.ones(3)
    refuse_step(optimizer, [p], TypeError, r"^AdamW\.step: .*grads\[0\]: expected .*float64.*, got float32")


def test_expanded_parameter():
    p = torch.ones(1).expand(4).requires_grad_()
    optimizer = fusestep.optim.AdamW([p])
    p.grad = torch.ones(4)
    refuse_step(optimizer, [p], ValueError, r"^AdamW\.step: .*params\[0\]: expected .+, got .+")


def test_overlapping_parameters():
    storage = torch.ones(6)
    params = [Parameter(storage[:4]), Parameter(storage[2:])]
    optimizer = fusestep.optim.AdamW(params)
    for p in params:
        p.grad = torch.ones(4)
    refuse_step(optimizer, params, ValueError, r"^AdamW\.step: .*params.*: expected .+, got .+")


def test_parameter_that_is_its_gradient():
    p = Parameter(torch.ones(4))
    optimizer = fusestep.optim.AdamW([p])
    p.grad = p.detach()
    refuse_step(optimizer, [p], ValueError, r"^AdamW\.step: .*: expected .+, got .+")


def test_changed_shape():
    """torch lets .data change its shape under an optimizer that has state for the old one."""
    optimizer, params = prepared(cases.BY_NAME["adamw"])
    params[0].grad = None
    params[0].data = torch.ones(5, 33)
    params[0].grad = torch.ones(5, 33)
    refuse_step(
        optimizer,
        params,
        ValueError,
        r"^AdamW\.step: .*exp_avgs\[0\]: expected shape \(5, 33\).*, got \(33, 5\)",
    )


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("exp_avg", torch.zeros(33, 5, dtype=torch.float64), TypeError),
        ("exp_avg", torch.zeros(5), ValueError),
        ("exp_avg_sq", None, TypeError),
        ("step", torch.zeros(2), (TypeError, ValueError)),
        ("step", torch.zeros((), dtype=torch.int64), TypeError),
        ("step", torch.tensor(math.nan), ValueError),
        ("step", torch.tensor(-1.0), ValueError),
    ],
)
def test_state_that_is_no_state(key, value, error):
    optimizer, params = prepared(cases.BY_NAME["adamw"])
    good = optimizer.state[params[0]][key]
    optimizer.state[params[0]][key] = value
    before = [p.detach().clone() for p in params]
    name = key if key == "step" else f"{key}s"
    with pytest.raises(error, match=rf"^AdamW\.step: .*\b{name}\[0\]: expected .+, got .+"):
        optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    optimizer.state[params[0]][key] = good
    optimizer.step()


# --- norms that are not finite ---


@pytest.mark.parametrize("poison", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(
    "clipping",
    [{"max_grad_norm": 1.0}, {"on_nonfinite": "skip"}, {"max_grad_value": 1.0, "on_nonfinite": "skip"}],
)
@pytest.mark.parametrize("row, options", **COMMON)
def test_a_skipped_step_changes_nothing(row, options, clipping, poison):
    """At the first step, where no state may appear, and in mid-run; by the last element of the last group."""
    params = make_params()
    optimizer = ours(row)([{"params": params[:3]}, {"params": params[3:]}], **options, **clipping, rewrite_grads=True)
    for first in (True, False):
        for p, g in zip(params, make_grads(1, params), strict=True):
            p.grad = g
        params[-1].grad[-1, -1, -1] = poison
        before = snapshot(optimizer, params)
        entries = {p: list(state) for p, state in optimizer.state.items()}
        grads = {str(i): p.grad.clone() for i, p in enumerate(params)}
        versions = [p._version for p in params]
        optimizer.step()
        assert_same_bits(snapshot(optimizer, params), before)
        assert_same_bits({str(i): p.grad for i, p in enumerate(params)}, grads)
        assert {p: list(state) for p, state in optimizer.state.items()} == entries
        assert [p._version for p in params] == versions
        assert optimizer.skipped_steps == (1 if first else 2)
        assert not math.isfinite(optimizer.grad_norm)
        train(optimizer, params, range(1, 3))
    assert math.isfinite(optimizer.grad_norm)


@pytest.mark.parametrize("row, options", **COMMON)
def test_raise(row, options):
    optimizer, params = prepared(row, options, max_grad_norm=1.0, on_nonfinite="raise")
    params[0].grad[0, 0] = math.nan
    refuse_step(optimizer, params, RuntimeError, rf"^{row.torch_class}\.step: .*: expected a finite .*norm.*, got nan")


@pytest.mark.parametrize("row, options", **COMMON)
def test_propagate(row, options):
    for clipping in ({}, {"max_grad_norm": 1.0, "on_nonfinite": "propagate"}):
        optimizer, params = prepared(row, options, **clipping)
        params[0].grad[0, 0] = math.nan
        optimizer.step()
        assert params[0][0, 0].isnan()
        assert optimizer.skipped_steps == 0


# --- fusestep.nn.utils ---


def with_grads():
    params = make_params()
    for p, g in zip(params, make_grads(1, params), strict=True):
        p.grad = g
    return params


@pytest.mark.parametrize(
    ("arguments", "error", "argument"),
    [
        ((-1.0,), ValueError, "max_.*norm"),
        ((0.0,), ValueError, "max_.*norm"),
        ((math.nan,), ValueError, "max_.*norm"),
        ((1.0, 3.0), ValueError, "norm_type"),
        ((1.0, 0.0), ValueError, "norm_type"),
    ],
)
def test_clip_grad_norm(arguments, error, argument):
    params = with_grads()
    with pytest.raises(error, match=rf"^clip_grad_norm_: {argument}: expected .+, got .+"):
        utils.clip_grad_norm_(params, *arguments)
    assert all(torch.equal(p.grad, g) for p, g in zip(params, make_grads(1, params), strict=True))


@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_clip_grad_value(value):
    params = with_grads()
    with pytest.raises(ValueError, match=r"^clip_grad_value_: clip_value: expected .+, got .+"):
        utils.clip_grad_value_(params, value)
    assert all(torch.equal(p.grad, g) for p, g in zip(params, make_grads(1, params), strict=True))


@pytest.mark.parametrize("poison", [math.inf, math.nan])
def test_error_if_nonfinite(poison):
    params = with_grads()
    params[1].grad[5] = poison
    expected = [p.grad.clone() for p in params]
    with pytest.raises(RuntimeError, match=r"^clip_grad_norm_: .*: expected a finite .*norm.*, got"):
        utils.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    with pytest.raises(RuntimeError, match=r"^get_total_norm: .*: expected a finite .*norm.*, got"):
        utils.get_total_norm([p.grad for p in params], error_if_nonfinite=True)
    for p, e in zip(params, expected, strict=True):
        np.testing.assert_array_equal(p.grad.numpy(), e.numpy())


def test_tensors_that_have_no_norm():
    for bad, error in (
        (torch.ones(3, dtype=torch.int64), TypeError),
        (torch.ones(3, dtype=torch.complex64), TypeError),
    ):
        with pytest.raises(error, match=r"^get_total_norm: .*\[0\]: expected .+, got .+"):
            utils.get_total_norm([bad])
    with pytest.raises(TypeError, match=r"^get_total_norm: .*\[0\]: expected .+, got .+"):
        utils.get_total_norm([1.0])
