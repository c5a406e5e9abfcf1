"""Refusals of fusestep.ops: one exception that names operation, argument, what was expected and what came.

Nothing has been written when it is raised: every byte of every array is compared.
"""

from __future__ import annotations

import math
import re

import cases
import numpy as np
import pytest
import torch
from fusestep import _core, ops
from problems import image
from torch._subclasses.fake_tensor import FakeTensorMode

SHAPES = ((4, 5), (3,), ())
STATES = ("exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs")
BOTH = pytest.mark.parametrize("kind", ["numpy", "torch"])


def good_call(kind="numpy"):
    """The arguments of an adamw_ that works."""
    call = {name: [np.full(shape, 0.5, np.float32) for shape in SHAPES] for name in ("params", "grads", *STATES)}
    if kind == "torch":
        call = {name: [torch.from_numpy(a) for a in arrays] for name, arrays in call.items()}
    return call | {"step": 2, "amsgrad": True}


def is_array(x):
    # A sparse, meta or fake tensor has no bytes to compare.
    if isinstance(x, torch.Tensor):
        return type(x) is torch.Tensor and x.layout is torch.strided and x.device.type == "cpu"
    return isinstance(x, np.ndarray) and x.dtype != object


def assert_refused(error, argument, call, function=ops.adamw_, **options):
    """`argument` is a regular expression of the whole name, such as grads\\[1\\]."""
    arrays = [a for value in call.values() if isinstance(value, list) for a in value if is_array(a)]
    before = image(arrays)
    with pytest.raises(error) as raised:
        function(**(call | options))
    message = str(raised.value)
    assert re.match(rf"{function.__name__}: ({argument}): expected .+, got .+", message), message
    assert type(raised.value) in (error if isinstance(error, tuple) else (error,))
    assert image(arrays) == before
    return message


def test_the_good_call_is_good():
    for kind in ("numpy", "torch"):
        assert ops.adamw_(**good_call(kind)) is None


# --- lists --------------------------------------------------------------------------------------------------
@BOTH
@pytest.mark.parametrize("name", ["grads", *STATES])
def test_lists_of_different_lengths(name, kind):
    for change in (list.pop, lambda arrays: arrays.append(arrays[0] + 0)):
        call = good_call(kind)
        change(call[name])
        message = assert_refused(ValueError, name, call)
        assert "3" in message
        assert str(len(call[name])) in message


@pytest.mark.parametrize("name", ["params", "grads", *STATES])
@pytest.mark.parametrize(
    "wrong", [None, "params", 3.0, {"a": 1}, np.zeros((3, 3), np.float32), torch.zeros(3, 3)], ids=type
)
def test_what_is_not_a_list(name, wrong):
    call = good_call()
    call[name] = wrong
    assert_refused(TypeError, name, call)


@pytest.mark.parametrize("name", ["params", "grads", *STATES])
@pytest.mark.parametrize("wrong", [None, "p", 0.5, [0.5], object()], ids=type)
def test_what_is_no_array_in_a_list(name, wrong):
    call = good_call()
    call[name][1] = wrong
    assert_refused(TypeError, rf"{name}\[1\]", call)


def test_a_state_that_the_options_need_is_missing():
    call = good_call()
    del call["max_exp_avg_sqs"]
    assert_refused(TypeError, "max_exp_avg_sqs", call)
    for optimizer in cases.OPTIMIZERS:
        for state in optimizer.states:
            options = (
                {} if state.needed_by is None else {state.needed_by: 0.9 if state.needed_by == "momentum" else True}
            )
            call = {s.name: [np.zeros(2)] for s in optimizer.states if s != state}
            call |= {"params": [np.zeros(2)], "grads": [np.ones(2)], "step": 1}
            assert_refused(TypeError, state.name, call, getattr(ops, f"{optimizer.name}_"), **options)


# --- shapes and dtypes --------------------------------------------------------------------------------------
@BOTH
@pytest.mark.parametrize("name", ["grads", *STATES])
@pytest.mark.parametrize("shape", [(5, 4), (20,), (4, 5, 1), (1, 5), (4, 0)])
def test_shapes_differ(name, shape, kind):
    call = good_call(kind)
    wrong = np.zeros(shape, np.float32)
    call[name][0] = wrong if kind == "numpy" else torch.from_numpy(wrong)
    message = assert_refused(ValueError, rf"{name}\[0\]", call)
    assert "(4, 5)" in message
    assert str(shape) in message


NO_FLOATS = ("bool", "int8", "uint8", "int32", "int64", "complex64", "complex128")


@BOTH
@pytest.mark.parametrize("name", ["params", "grads", *STATES])
@pytest.mark.parametrize("dtype", NO_FLOATS)
def test_dtypes_that_are_none(name, dtype, kind):
    call = good_call(kind)
    wrong = np.zeros(3, dtype)
    call[name][1] = wrong if kind == "numpy" else torch.from_numpy(wrong)
    # States may be of uint8, with scales: what is missing then is the scales.
    message = assert_refused(TypeError, rf"{name}(_absmax)?\[1\]", call)
    assert dtype in message


@pytest.mark.parametrize("dtype", ["S4", "O", "M8[s]", "longdouble", ">f4", [("a", "f4")]], ids=str)
def test_dtypes_of_numpy_alone(dtype):
    for name in ("params", "grads", "exp_avgs"):
        call = good_call()
        call[name][1] = np.zeros(3, dtype)
        assert_refused(TypeError, rf"{name}\[1\]", call)


@pytest.mark.parametrize(
    ("name", "param", "wrong"),
    [
        ("params", "float32", "float8_e5m2"),
        ("params", "bfloat16", "complex64"),
        ("grads", "float32", "float64"),
        ("grads", "float64", "float32"),
        ("grads", "float64", "float16"),
        ("grads", "float64", "bfloat16"),
        ("exp_avgs", "float32", "float64"),
        ("exp_avgs", "float64", "float32"),
        ("exp_avg_sqs", "float64", "bfloat16"),
        ("exp_avg_sqs", "bfloat16", "float64"),
        ("max_exp_avg_sqs", "float16", "int32"),
    ],
)
def test_dtypes_that_do_not_go_together(name, param, wrong):
    call = good_call("torch")
    for arrays in call.values():
        if isinstance(arrays, list):
            arrays[:] = [a.to(getattr(torch, param)) for a in arrays]
    call[name][1] = torch.zeros(3).to(getattr(torch, wrong))
    message = assert_refused(TypeError, rf"{name}\[1\]", call)
    assert wrong in message


# --- tensors without memory of their own --------------------------------------------------------------------
def sparse():
    return torch.zeros(3).to_sparse()


def meta():
    return torch.zeros(3, device="meta")


def fake():
    with FakeTensorMode():
        return torch.zeros(3)


def negated():
    # torch keeps some a -x as x and a bit: a reader of raw memory that missed the bit would take x.
    tensor = torch.complex(torch.zeros(3), torch.ones(3)).conj().imag
    assert tensor.is_neg()
    return tensor


class OnCuda:
    """As an array in GPU memory shows itself; whoever asks it for more has touched the device."""

    shape = (3,)

    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, **_):
        raise BufferError("there is no GPU here")


@pytest.mark.parametrize("make", [sparse, meta, fake, negated])
@pytest.mark.parametrize("name", ["params", "grads", *STATES])
def test_tensors_without_plain_memory(name, make):
    call = good_call("torch")
    call[name][1] = make()
    assert_refused(TypeError, rf"{name}\[1\]", call)


def test_an_array_on_a_device_that_was_not_built():
    call = good_call()
    call["params"][1] = OnCuda()
    arrays = [a for a in call["params"] if isinstance(a, np.ndarray)]
    before = image(arrays)
    with pytest.raises((TypeError, ValueError), match=r"^adamw_: params\[1\]: expected .+, got .+"):
        ops.adamw_(**call)
    assert image(arrays) == before


# --- memory -------------------------------------------------------------------------------------------------
def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


@pytest.mark.parametrize(
    "make", [read_only, lambda a: np.broadcast_to(np.float32(0.5), a.shape)], ids=["flag", "broadcast_to"]
)
@pytest.mark.parametrize("name", ["params", *STATES])
def test_read_only_arrays(name, make):
    call = good_call()
    call[name][0] = make(call[name][0])
    message = assert_refused(ValueError, rf"{name}\[0\]", call)
    assert "read-only" in message


def test_read_only_gradients_are_refused_only_where_they_are_written():
    call = good_call()
    call["grads"][0] = read_only(call["grads"][0])
    assert_refused(ValueError, r"grads\[0\]", call, rewrite_grads=True, max_grad_norm=1.0)
    ops.adamw_(**call, max_grad_norm=1.0)


def expanded(kind):
    if kind == "torch":
        return torch.zeros(5).expand(4, 5)
    view = np.lib.stride_tricks.as_strided(np.zeros(5, np.float32), (4, 5), (0, 4))
    assert view.flags.writeable
    return view


def sliding(kind):
    if kind == "torch":
        return torch.as_strided(torch.zeros(8), (4, 5), (1, 1))
    return np.lib.stride_tricks.as_strided(np.zeros(8, np.float32), (4, 5), (4, 4))


@BOTH
@pytest.mark.parametrize("make", [expanded, sliding])
@pytest.mark.parametrize("name", ["params", *STATES])
def test_two_elements_in_one_place(name, make, kind):
    call = good_call(kind)
    call[name][0] = make(kind)
    assert_refused(ValueError, rf"{name}\[0\]", call)


@BOTH
def test_two_elements_of_a_gradient_that_is_written(kind):
    call = good_call(kind)
    call["grads"][0] = expanded(kind)
    assert_refused(ValueError, r"grads\[0\]", call, rewrite_grads=True)
    assert_refused(ValueError, r"grads\[0\]", {"grads": call["grads"], "max_norm": 1.0}, ops.clip_grad_norm_)
    assert_refused(ValueError, r"grads\[0\]", {"grads": call["grads"], "clip_value": 1.0}, ops.clip_grad_value_)


@BOTH
@pytest.mark.parametrize(
    ("first", "second"),
    [("params", "params"), ("params", "exp_avgs"), ("exp_avgs", "exp_avg_sqs"), ("exp_avgs", "exp_avgs")],
)
def test_arrays_that_overlap(first, second, kind):
    """Two views into one buffer, by one element, and the same array twice."""
    buffer = np.zeros(40, np.float32)
    views = [buffer[:20].reshape(4, 5), buffer[19:39].reshape(4, 5)]
    for a, b in (views, (views[0], views[0])):
        call = good_call(kind)
        call["params"].append(np.zeros((4, 5), np.float32))
        call["grads"].append(np.zeros((4, 5), np.float32))
        for name in STATES:
            call[name].append(np.zeros((4, 5), np.float32))
        call[first][0], call[second][3] = (a, b) if kind == "numpy" else map(torch.from_numpy, (a, b))
        message = assert_refused(ValueError, r"\w+\[[03]\]", call)
        assert "memory" in message


def test_columns_of_one_matrix_count_as_overlapping():
    """Address ranges are compared: these share no element, but better one refusal too many."""
    matrix = np.zeros((4, 2), np.float32)
    call = {"params": [matrix[:, 0], matrix[:, 1]], "grads": [np.ones(4, np.float32)] * 2, "step": 1}
    assert_refused(ValueError, r"params\[1\]", call, ops.sgd_)


def test_arrays_that_touch_do_not_overlap():
    buffer = np.zeros(41, np.float32)
    call = good_call()
    call["params"][0], call["exp_avgs"][0] = buffer[:20].reshape(4, 5), buffer[20:40].reshape(4, 5)
    call["params"][2] = buffer[40:].reshape(())
    ops.adamw_(**call)


def test_an_array_between_the_addresses_of_its_kind():
    call = good_call()
    memory = np.zeros(13, np.uint8)
    call["params"][1] = memory[1:].view(np.float32)
    assert_refused(ValueError, r"params\[1\]", call)


# --- hyperparameters ----------------------------------------------------------------------------------------
WRONG_VALUES = {
    "lr": (-1e-3, math.nan),
    "betas": (
        *((1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, -0.1), (math.nan, 0.9), (0.9, math.nan)),
        *((0.9,), (0.9, 0.99, 0.999)),
    ),
    "eps": (-1e-8, math.nan),
    "weight_decay": (-0.1, math.nan),
    "alpha": (-0.1, math.nan),
    "momentum": (-0.1, math.nan),
    "dampening": (math.nan,),
    "lr_decay": (-0.1, math.nan),
    "decay": ("", "LR", "both"),
    "form": ("", "Torch", "nesterov"),
    "step": (0, -1),
}
WRONG_KINDS = {
    "lr": ("fast", None, [1e-3], 1j),
    "betas": (0.9, None, ("a", "b")),
    "eps": ("small", None),
    "weight_decay": ("none",),
    "alpha": ("a",),
    "momentum": ("a",),
    "dampening": ("a",),
    "lr_decay": ("a",),
    "amsgrad": ("yes", None),
    "maximize": ("yes", None),
    "centered": ("yes", None),
    "nesterov": ("yes", None),
    "step": ("first", None, 1.5),
}


def wrong_options(table):
    return [
        pytest.param(optimizer, option, value, id=f"{optimizer.name}-{option}={value!r}")
        for optimizer in cases.OPTIMIZERS
        for option in ("step", *_core.optimizers()[optimizer.name]["options"])
        for value in table.get(option, ())
    ]


def call_of(optimizer):
    """A call with every state, which works with any options."""
    call = {name: [np.zeros(2)] for name in ("params", "grads", *(s.name for s in optimizer.states))}
    return call | {"step": 1}


@pytest.mark.parametrize(("optimizer", "option", "value"), wrong_options(WRONG_VALUES))
def test_wrong_values_of_hyperparameters(optimizer, option, value):
    message = assert_refused(
        ValueError,
        "step" if option == "step" else option,
        call_of(optimizer) | {option: value},
        getattr(ops, f"{optimizer.name}_"),
    )
    # Of two rates the message shows the wrong one; of one or three, the tuple itself.
    wrong = next(v for v in value if not 0 <= v < 1) if isinstance(value, tuple) and len(value) == 2 else value
    assert repr(wrong) in message


@pytest.mark.parametrize(("optimizer", "option", "value"), wrong_options(WRONG_KINDS))
def test_wrong_kinds_of_hyperparameters(optimizer, option, value):
    assert_refused(
        TypeError,
        "step" if option == "step" else option,
        call_of(optimizer) | {option: value},
        getattr(ops, f"{optimizer.name}_"),
    )


@pytest.mark.parametrize(("optimizer", "option", "value"), wrong_options(WRONG_VALUES | {"step": ()}))
def test_check_options_refuses_the_same(optimizer, option, value):
    with pytest.raises(ValueError, match=rf"^Mine: {option}: expected .+, got .+"):
        _core.check_options("Mine", optimizer.name, {option: value})


def test_check_options_leaves_other_keys_alone():
    for optimizer in cases.OPTIMIZERS:
        _core.check_options("Mine", optimizer.name, {"foreach": None, "params": [1, 2]})


@pytest.mark.parametrize("form", ["torch", "classical"])
@pytest.mark.parametrize("options", [{"momentum": 0.0}, {"momentum": 0.9, "dampening": 0.1}], ids=cases.describe)
def test_nesterov_without_momentum_or_with_dampening(options, form):
    call = call_of(cases.BY_NAME["sgd"])
    assert_refused(ValueError, "nesterov", call, ops.sgd_, nesterov=True, form=form, **options)


def test_the_step_as_a_list():
    call = good_call()
    assert_refused(ValueError, "step", call, step=[1, 2])
    assert_refused(ValueError, r"step\[1\]", call, step=[1, 0, 1])
    assert_refused(TypeError, r"step\[1\]", call, step=[1, 1.5, 1])
    call = good_call("torch")
    for wrong in (*map(torch.tensor, (-1.0, math.nan, math.inf, 2.0**53)), torch.tensor([1.0, 2.0])):
        assert_refused(ValueError, r"step\[1\]", call, step=[torch.tensor(1.0), wrong, torch.tensor(1.0)])
    assert_refused(TypeError, r"step\[1\]", call, step=[torch.tensor(1.0), torch.tensor(1), torch.tensor(1.0)])
    # One count for two parameters would be counted twice.
    shared = torch.tensor(1.0)
    assert_refused(ValueError, r"step\[\d\]", call, step=[shared, torch.tensor(1.0), shared])


def test_steps_that_a_double_does_not_count():
    for step in (2**53 + 1, 2**63 - 1, 2**63, -(2**63)):
        assert_refused(ValueError, "step", good_call(), step=step)


@pytest.mark.parametrize("wrong", [5, 1.5, "states", np.ones(3), object()], ids=lambda wrong: type(wrong).__name__)
def test_lists_that_are_not_used_are_still_lists(wrong):
    """What is done after the step goes through all lists: one that is none must not be found out there."""
    call = call_of(cases.BY_NAME["sgd"])  # without momentum
    for name in ("momentum_buffers", "momentum_buffers_absmax"):
        assert_refused(TypeError, name, call, ops.sgd_, lr=0.5, **{name: wrong})
    call = {"params": [np.ones(2, np.float32)], "grads": [np.ones(2, np.float32)], "step": 1}
    for name in ("square_avgs", "grad_avgs", "momentum_buffers"):
        states = {"square_avgs": [np.ones(2, np.float32)]} | {name: wrong}
        assert_refused(TypeError, name, call, ops.rmsprop_, **states)


@pytest.mark.parametrize("wrong", [np.ones(3), np.ones(3, "i4,f4"), torch.ones(2), 1, ["kahan"]], ids=repr)
def test_a_rounding_that_is_no_name(wrong):
    call = good_call() | {"compensations": [np.zeros(shape, np.float32) for shape in SHAPES]}
    assert_refused((TypeError, ValueError), "compensations|rounding", call, rounding=wrong)


def test_unknown_and_missing_arguments():
    for optimizer in cases.OPTIMIZERS:
        function = getattr(ops, f"{optimizer.name}_")
        call = call_of(optimizer)
        before = image(call["params"])
        with pytest.raises(TypeError, match=rf"^{optimizer.name}_.* 'learning_rate'"):
            function(**call, learning_rate=0.1)
        del call["step"]
        with pytest.raises(TypeError, match=rf"^{optimizer.name}_.* 'step'"):
            function(**call)
        with pytest.raises(TypeError, match=rf"^{optimizer.name}_.* 'grads'"):
            function(call["params"], step=1)
        assert image(call["params"]) == before


# --- clipping -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("error", "argument", "options"),
    [
        (ValueError, "max_grad_norm", {"max_grad_norm": -1.0}),
        (ValueError, "max_grad_norm", {"max_grad_norm": math.nan}),
        (TypeError, "max_grad_norm", {"max_grad_norm": "large"}),
        (ValueError, "norm_type", {"max_grad_norm": 1.0, "norm_type": 3}),
        (ValueError, "norm_type", {"max_grad_norm": 1.0, "norm_type": 0}),
        (ValueError, "norm_type", {"max_grad_norm": 1.0, "norm_type": -math.inf}),
        (ValueError, "norm_type", {"max_grad_norm": 1.0, "norm_type": math.nan}),
        (TypeError, "norm_type", {"max_grad_norm": 1.0, "norm_type": "two"}),
        (ValueError, "clip_factor", {"max_grad_norm": 1.0, "clip_factor": -0.5}),
        (ValueError, "clip_factor", {"max_grad_norm": 1.0, "clip_factor": math.nan}),
        (ValueError, "clip_factor", {"clip_factor": 0.5}),
        (ValueError, "max_grad_value", {"max_grad_value": -1.0}),
        (ValueError, "max_grad_value", {"max_grad_value": math.nan}),
        (ValueError, "max_grad_value", {"max_grad_value": 1.0, "max_grad_norm": 1.0}),
        (ValueError, "on_nonfinite", {"on_nonfinite": "ignore"}),
        (ValueError, "on_nonfinite", {"on_nonfinite": True}),
        (ValueError, "grad_scale", {"grad_scale": 0.0}),
        (ValueError, "grad_scale", {"grad_scale": -2.0}),
        (ValueError, "grad_scale", {"grad_scale": math.nan}),
        (ValueError, "grad_scale", {"grad_scale": math.inf}),
        (TypeError, "rewrite_grads", {"rewrite_grads": "yes"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("optimizer", cases.OPTIMIZERS, ids=lambda o: o.name)
def test_clipping_options(optimizer, error, argument, options):
    assert_refused(error, argument, call_of(optimizer), getattr(ops, f"{optimizer.name}_"), **options)


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (ops.grad_norm, {}),
        (ops.clip_grad_norm_, {"max_norm": 1.0}),
        (ops.clip_grad_value_, {"clip_value": 1.0}),
    ],
    ids=["grad_norm", "clip_grad_norm_", "clip_grad_value_"],
)
def test_gradients_alone(function, options):
    def refused(error, argument, grads):
        assert_refused(error, argument, {"grads": grads}, function, **options)

    for wrong in (None, "grads", np.zeros(3), torch.zeros(3)):
        refused(TypeError, "grads", wrong)
    for wrong in (
        None,
        1.0,
        np.zeros(3, np.int32),
        torch.zeros(3, dtype=torch.complex64),
        sparse(),
        meta(),
        fake(),
    ):
        refused(TypeError, r"grads\[1\]", [np.full(3, 9.0), wrong])
    if function is not ops.grad_norm:
        refused(ValueError, r"grads\[1\]", [np.full(3, 9.0), read_only(np.zeros(3))])
        a = np.full(5, 9.0)
        refused(ValueError, r"grads\[[01]\]", [a[:3], a[2:]])


@pytest.mark.parametrize("norm_type", [3, 0, -1, math.nan, "2", None])
def test_norm_types(norm_type):
    call = {"grads": [np.full(3, 9.0)], "norm_type": norm_type}
    error = ValueError if isinstance(norm_type, int | float) else TypeError
    assert_refused(error, "norm_type", call, ops.grad_norm)
    assert_refused(error, "norm_type", call | {"max_norm": 1.0}, ops.clip_grad_norm_)


def test_limits():
    call = {"grads": [np.full(3, 9.0)]}
    for wrong in (-1.0, math.nan):
        assert_refused(ValueError, "max_(grad_)?norm", call | {"max_norm": wrong}, ops.clip_grad_norm_)
        assert_refused(ValueError, "clip_value", call | {"clip_value": wrong}, ops.clip_grad_value_)
    assert_refused(ValueError, "clip_factor", call | {"max_norm": 1.0, "clip_factor": -1.0}, ops.clip_grad_norm_)
    assert_refused(TypeError, "max_(grad_)?norm", call | {"max_norm": "1"}, ops.clip_grad_norm_)
    assert_refused(TypeError, "clip_value", call | {"clip_value": None}, ops.clip_grad_value_)


# --- several groups -----------------------------------------------------------------------------------------
def test_the_group_is_named_and_the_first_group_untouched():
    groups = []
    for _ in range(2):
        call = good_call()
        groups.append(({"amsgrad": True}, call["params"], call["grads"], tuple(call[s] for s in STATES), 1, None, None))
    groups[1][2][2] = np.zeros(7, np.float32)
    arrays = [a for group in groups for a in (*group[1], *(x for state in group[3] for x in state))]
    before = image(arrays)
    with pytest.raises(ValueError, match=r"^AdamW: groups\[1\]\.grads\[2\]: expected shape \(\) .*, got \(7,\)"):
        _core.optimizer_step("AdamW", "adamw", groups, {})
    groups[1][2][2] = np.zeros((), np.float32)
    groups[1][1][0] = groups[0][1][0]
    with pytest.raises(
        ValueError, match=r"^AdamW: groups\[[01]\]\.params\[0\]: expected .*memory.*, got .*params\[0\]"
    ):
        _core.optimizer_step("AdamW", "adamw", groups, {})
    groups[1] = ({"lr": -1.0}, *groups[1][1:])
    with pytest.raises(ValueError, match=r"^AdamW: groups\[1\]\.lr: expected .+, got -1\.0"):
        _core.optimizer_step("AdamW", "adamw", groups, {})
    assert image(arrays) == before
