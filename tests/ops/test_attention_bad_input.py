"""Refusals of attention and the masked softmax: one exception that names operation, argument, expected and got.

Nothing has been written when it is raised: every byte of every array is compared.
"""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from dlpack_exporter import Exporter
from fusestep import ops
from problems import image

B, H, HKV, SQ, SK, D, DV = 2, 4, 2, 5, 7, 8, 6
NAN, INF = math.nan, math.inf


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def forward_call():
    return {
        "query": ones(B, H, SQ, D),
        "key": ones(B, HKV, SK, D),
        "value": ones(B, HKV, SK, DV),
        "out": ones(B, H, SQ, DV),
        "lse": ones(B, H, SQ),
    }


def backward_call():
    return {"grad_out": ones(B, H, SQ, DV)} | forward_call()


def packed_call():
    call = {name: a[:1].copy() for name, a in forward_call().items()}
    return call | {"cu_seqlens_q": np.array([0, 2, 5]), "cu_seqlens_k": np.array([0, 3, 7])}


def softmax_call():
    return {"scores": ones(B, H, SQ, SK), "out": ones(B, H, SQ, SK), "lse": ones(B, H, SQ)}


def softmax_backward_call():
    return {"grad_out": ones(B, H, SQ, SK), "scores": ones(B, H, SQ, SK), "lse": ones(B, H, SQ)}


CALLS = {
    "attention": (ops.attention, forward_call),
    "attention_backward": (ops.attention_backward, backward_call),
    "masked_softmax": (ops.masked_softmax, softmax_call),
    "masked_softmax_backward": (ops.masked_softmax_backward, softmax_backward_call),
}
OPERATION = pytest.mark.parametrize("operation", CALLS)
ATTENTION = pytest.mark.parametrize("operation", ["attention", "attention_backward"])


def assert_refused(error, argument, function, call):
    """`argument` is a regular expression of the whole name."""
    # A meta tensor has no bytes to compare.
    arrays = [a for a in call.values() if isinstance(a, np.ndarray) or (isinstance(a, torch.Tensor) and not a.is_meta)]
    before = image(arrays)
    with pytest.raises(error) as raised:
        function(**call)
    message = str(raised.value)
    assert re.match(rf"{function.__name__}: {argument}: expected .+, got .+", message, re.DOTALL), message
    assert type(raised.value) is error
    assert image(arrays) == before
    return message


def refuse(operation, error, argument, **changes):
    function, good = CALLS[operation]
    return assert_refused(error, argument, function, good() | changes)


def test_the_good_calls_are_good():
    for function, good in CALLS.values():
        function(**good())
    ops.attention(**packed_call())


# --- arrays -------------------------------------------------------------------------------------------------
ARRAYS = [(operation, name) for operation, (_, good) in CALLS.items() for name in good()]


@pytest.mark.parametrize("wrong", [[1.0], "x", 3.0, object(), np.ones(5, np.int32), np.ones(5, bool)], ids=type)
@pytest.mark.parametrize(("operation", "name"), ARRAYS)
def test_what_is_no_array_of_floats(operation, name, wrong):
    refuse(operation, TypeError, name, **{name: wrong})


@pytest.mark.parametrize(("operation", "name"), ARRAYS)
def test_missing_dimensions(operation, name):
    good = CALLS[operation][1]()[name]
    refuse(operation, ValueError, "[a-z_]+", **{name: good[0, 0].copy()})
    refuse(operation, ValueError, "[a-z_]+", **{name: good[None]})


@pytest.mark.parametrize(("operation", "name"), ARRAYS)
def test_dtypes_that_differ(operation, name):
    for dtype in (np.float64, np.float16):
        good = CALLS[operation][1]()[name]
        # The first array sets the dtype: then it is the next one that is named.
        refuse(operation, TypeError, "[a-z_]+", **{name: good.astype(dtype)})


@pytest.mark.parametrize(
    ("name", "shape", "blamed"),
    [
        ("query", (B, H, SQ, D + 1), "key"),
        ("query", (B + 1, H, SQ, D), "key"),
        ("query", (B, H, SQ, 0), "query"),
        ("query", (B, H, SQ, 257), "query"),
        ("query", (B, 3, SQ, D), "key"),
        ("key", (B, HKV, SK, D - 1), "key"),
        ("key", (B, 3, SK, D), "key"),
        ("key", (B, 0, SK, D), "key"),
        ("key", (1, HKV, SK, D), "key"),
        ("key", (B, HKV, SK + 1, D), "value"),
        ("value", (B, HKV, SK + 1, DV), "value"),
        ("value", (B, H, SK, DV), "value"),
        ("value", (B, HKV, SK, 0), "value"),
        ("value", (B, HKV, SK, 257), "value"),
        ("out", (B, H, SQ, D), "out"),
        ("out", (B, SQ, H, DV), "out"),
        ("lse", (B, H, SQ + 1), "lse"),
        ("lse", (B, H, SQ, 1), "lse"),
    ],
)
@ATTENTION
def test_shapes_that_do_not_fit(operation, name, shape, blamed):
    message = refuse(operation, ValueError, blamed, **{name: ones(*shape)})
    if name == blamed:
        assert any(str(size) in message for size in shape)


def test_shapes_of_gradients():
    refuse("attention_backward", ValueError, "grad_out", grad_out=ones(B, H, SQ, DV + 1))
    refuse("masked_softmax_backward", ValueError, "grad_out", grad_out=ones(B, H, SQ, SK + 1))
    refuse("masked_softmax_backward", ValueError, "lse", lse=ones(B, H, SQ + 1))
    refuse("masked_softmax", ValueError, "out", out=ones(B, H, SK, SQ))


@OPERATION
def test_devices_that_differ(operation):
    for name in CALLS[operation][1]():
        refuse(operation, TypeError, name, **{name: torch.ones(2, 2, device="meta")})


# --- masks --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8", "complex64", "float64", "float16"])
@OPERATION
def test_dtypes_of_masks(operation, dtype):
    message = refuse(operation, TypeError, "mask", mask=ones(SQ, SK, dtype=dtype))
    assert dtype in message


@pytest.mark.parametrize("shape", [(SQ, SK + 1), (SK, SQ), (3, 1, 1, 1), (1, 3, 1, 1), (1, 1, 1, 1, 1), (0, 1), (2,)])
@pytest.mark.parametrize("dtype", [bool, np.float32])
@OPERATION
def test_shapes_of_masks(operation, shape, dtype):
    message = refuse(operation, ValueError, "mask", mask=np.ones(shape, dtype))
    assert str(shape) in message


@pytest.mark.parametrize("wrong", ["causal", [[True]], 1.0], ids=type)
@OPERATION
def test_masks_that_are_none(operation, wrong):
    refuse(operation, TypeError, "mask", mask=wrong)


@pytest.mark.parametrize("operation", ["attention_backward", "masked_softmax_backward"])
def test_masks_without_a_gradient(operation):
    refuse(operation, TypeError, "mask", grad_mask=True)
    refuse(operation, TypeError, "mask", mask=ones(SQ, SK, dtype=bool), grad_mask=True)


# --- options ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("wrong", ["left", "TOP_LEFT", 2, 1.5, ("top_left",)], ids=repr)
@OPERATION
def test_causal(operation, wrong):
    refuse(operation, ValueError, "causal", causal=wrong)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (3, TypeError),
        ("ab", TypeError),
        ((1,), ValueError),
        ((1, 2, 3), ValueError),
        ((-2, 1), ValueError),
        ((1, -5), ValueError),
        ((1.5, 2), ValueError),
        (("1", 2), ValueError),
    ],
    ids=repr,
)
@OPERATION
def test_window(operation, wrong, error):
    refuse(operation, error, "window", window=wrong)


@pytest.mark.parametrize("p", [-0.1, math.nextafter(1, 2), 1.5, NAN, INF])
@OPERATION
def test_probabilities_out_of_range(operation, p):
    refuse(operation, ValueError, "dropout_p", dropout_p=p, seed=1)


@OPERATION
def test_dropout_needs_a_seed(operation):
    refuse(operation, TypeError, "seed", dropout_p=0.1)


@pytest.mark.parametrize(
    ("name", "wrong", "error"),
    [
        ("seed", -1, ValueError),
        ("seed", 2**64, ValueError),
        ("seed", 0.5, TypeError),
        ("seed", "1", TypeError),
        ("offset", -1, ValueError),
        ("offset", 2**32, ValueError),
        ("offset", 1.5, TypeError),
        ("dropout_p", "much", TypeError),
        ("scale", NAN, ValueError),
        ("scale", INF, ValueError),
        ("scale", "1", TypeError),
    ],
)
@OPERATION
def test_numbers_that_are_none(operation, name, wrong, error):
    refuse(operation, error, name, **({"dropout_p": 0.1, "seed": 1} | {name: wrong}))


@pytest.mark.parametrize("wrong", [-1.0, NAN, INF])
@ATTENTION
def test_softcap(operation, wrong):
    refuse(operation, ValueError, "softcap", softcap=wrong)
    refuse(operation, TypeError, "softcap", softcap="10")


@pytest.mark.parametrize(
    ("wrong", "error", "blamed"),
    [
        (np.array([3, SK + 1]), ValueError, r"key_lengths\[1\]"),
        (np.array([-1, 3]), ValueError, r"key_lengths\[0\]"),
        (np.array([3]), ValueError, "key_lengths"),
        (np.array([[3, 4]]), ValueError, "key_lengths"),
        (np.array(3), ValueError, "key_lengths"),
        (np.array([3.0, 4.0]), TypeError, "key_lengths"),
        (np.array([True, False]), TypeError, "key_lengths"),
        (np.array([3, 4], np.int16), TypeError, "key_lengths"),
        ([3, 4], TypeError, "key_lengths"),
    ],
    ids=repr,
)
@OPERATION
def test_key_lengths(operation, wrong, error, blamed):
    refuse(operation, error, blamed, key_lengths=wrong)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (ones(H + 1), ValueError),
        (ones(B + 1, H), ValueError),
        (ones(1, B, H), ValueError),
        (ones(H, dtype=np.float16), TypeError),
        (ones(H, dtype=np.int32), TypeError),
        (0.5, TypeError),
    ],
    ids=repr,
)
@ATTENTION
def test_alibi_slopes(operation, wrong, error):
    refuse(operation, error, "alibi_slopes", alibi_slopes=wrong)


@pytest.mark.parametrize(
    ("changes", "error", "blamed"),
    [
        ({"cu_seqlens_q": None}, ValueError, "cu_seqlens_q"),
        ({"cu_seqlens_k": None}, ValueError, "cu_seqlens_k"),
        ({"cu_seqlens_q": np.array([0, 3, 2])}, ValueError, r"cu_seqlens_q\[2\]"),
        ({"cu_seqlens_k": np.array([0, 5, 4])}, ValueError, r"cu_seqlens_k\[2\]"),
        ({"cu_seqlens_q": np.array([1, 2, 5])}, ValueError, "cu_seqlens_q"),
        ({"cu_seqlens_q": np.array([0, 2, SQ + 1])}, ValueError, "cu_seqlens_q"),
        ({"cu_seqlens_k": np.array([0, 2, SK + 1])}, ValueError, "cu_seqlens_k"),
        ({"cu_seqlens_k": np.array([0, 2])}, ValueError, "cu_seqlens_k"),
        ({"cu_seqlens_q": np.array([], np.int64)}, ValueError, "cu_seqlens_q"),
        ({"cu_seqlens_q": np.array([[0, 2, 5]])}, ValueError, "cu_seqlens_q"),
        ({"cu_seqlens_q": np.array([0.0, 2, 5])}, TypeError, "cu_seqlens_q"),
        ({"key_lengths": np.array([3])}, ValueError, "key_lengths"),
        ({"key_lengths": np.array([3, -1])}, ValueError, r"key_lengths\[1\]"),
        ({"alibi_slopes": ones(3, H)}, ValueError, "alibi_slopes"),
        ({"mask": ones(2, 1, SQ, SK)}, ValueError, "mask"),
    ],
    ids=repr,
)
def test_packed_sequences(changes, error, blamed):
    assert_refused(error, blamed, ops.attention, packed_call() | changes)


def test_packed_sequences_in_a_batch():
    offsets = {"cu_seqlens_q": np.array([0, 2, 5]), "cu_seqlens_k": np.array([0, 3, 7])}
    refuse("attention", ValueError, "query", **offsets)


def test_lengths_on_a_device_beside_a_query_in_cpu_memory():
    """The CPU's kernels would read an address of the device."""
    cuda, integer = 2, 0

    def there(*values):
        return Exporter(np.array(values), device_type=cuda, code=integer)

    expected = r"expected an array in CPU memory, got one on another device\. Move it there\."
    for operation in CALLS:
        message = refuse(operation, ValueError, "key_lengths", key_lengths=there(3, 4))
        assert re.search(expected, message)
    for name in ("cu_seqlens_q", "cu_seqlens_k"):
        message = assert_refused(ValueError, name, ops.attention, packed_call() | {name: there(0, 2, 5)})
        assert re.search(expected, message)


# --- memory -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("operation", ["attention", "masked_softmax"])
@pytest.mark.parametrize("name", ["out", "lse"])
def test_arrays_that_are_read_only(operation, name):
    array = CALLS[operation][1]()[name]
    array.flags.writeable = False
    refuse(operation, ValueError, name, **{name: array})


def test_memory_that_overlaps():
    memory = ones(2 * B * H * SQ * D)
    query = memory[: B * H * SQ * D].reshape(B, H, SQ, D)
    refuse("attention", ValueError, "out", query=query, out=query[..., :DV])
    out, lse = memory[: B * H * SQ * DV].reshape(B, H, SQ, DV), memory[: B * H * SQ].reshape(B, H, SQ)
    refuse("attention", ValueError, "(out|lse)", out=out, lse=lse)
    refuse("attention", ValueError, "out", out=torch.ones(1, 1, SQ, DV).expand(B, H, SQ, DV))
    scores = memory[: B * H * SQ * SK].reshape(B, H, SQ, SK)
    shifted = memory[1 : 1 + B * H * SQ * SK].reshape(B, H, SQ, SK)
    refuse("masked_softmax", ValueError, "out", scores=scores, out=shifted)


def test_arrays_of_a_library_that_results_are_not_allocated_for():
    class Foreign:
        shape = (B, H, SQ, D)

        def __dlpack__(self, **_):
            return ones(*self.shape).__dlpack__()

    call = forward_call() | {"query": Foreign()}
    del call["out"]
    with pytest.raises(TypeError, match=r"^attention: out: expected an array to write to beside a .+Foreign, got None"):
        ops.attention(**call)
    for call, name in (
        (lambda: ops.attention_backward(*[Foreign()] * 6), "query"),
        (lambda: ops.masked_softmax_backward(*[Foreign()] * 3), "scores"),
        (lambda: ops.cross_entropy(Foreign(), np.zeros(1, np.int64)), "logits"),
        (lambda: ops.quantize_8bit(Foreign(), square=True), "values"),
        (lambda: ops.dequantize_8bit(Foreign(), Foreign(), square=True), "codes"),
    ):
        with pytest.raises(TypeError, match=rf"\w+: {name}: expected a NumPy array or a torch tensor, got a .+Foreign"):
            call()
