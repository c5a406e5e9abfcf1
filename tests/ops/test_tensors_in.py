"""Arrays of every producer, layout and dtype come in without a copy; all others are refused, by name."""

from __future__ import annotations

import contextlib
import gc
import math
import sys
import tracemalloc
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from dlpack_exporter import Exporter, exchange_api
from fusestep import _core, ops
from numpy.lib.stride_tricks import as_strided, sliding_window_view


class Subclass(torch.Tensor):
    pass


class WithoutExchangeApi(torch.Tensor):
    """As torch was before 2.10."""

    __dlpack_c_exchange_api__ = None


class OnlyDlpack:
    def __init__(self, array):
        self.array = array

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        return self.array.__dlpack__(max_version=max_version, copy=copy)


class OldDlpack(OnlyDlpack):
    """Before DLPack 1.0: knows no max_version."""

    def __dlpack__(self, *, stream=None):
        return self.array.__dlpack__()


# Each makes an array of its kind that shares its memory with a NumPy array.
PRODUCERS = {
    "numpy": lambda a: a,
    "numpy subclass": lambda a: a.view(np.recarray),
    "torch": torch.from_numpy,
    "torch that requires grad": lambda a: torch.from_numpy(a).requires_grad_(),
    "Parameter": lambda a: torch.nn.Parameter(torch.from_numpy(a)),
    "torch subclass": lambda a: torch.from_numpy(a).as_subclass(Subclass),
    "torch without the exchange API": lambda a: torch.from_numpy(a).as_subclass(WithoutExchangeApi),
    "without the exchange API, requires grad": lambda a: (
        torch.from_numpy(a).requires_grad_().as_subclass(WithoutExchangeApi)
    ),
    "__dlpack__ alone": OnlyDlpack,
    "__dlpack__ of old": OldDlpack,
}
# Views of an array of shape (6, 8), most of them with gaps.
LAYOUTS = {
    "contiguous": lambda a: a,
    "transposed": lambda a: a.T,
    "columns": lambda a: a[:, 2:5],
    "every other": lambda a: a[::2, ::2],
    "from an odd start": lambda a: a[1::2, 1::2],
    "one column": lambda a: a[:, 3:4],
    "one row": lambda a: a[3:4],
    "0-dim": lambda a: a[2, 3],
    "one element": lambda a: a[2:3, 3:4],
    "three dimensions": lambda a: a.reshape(3, 2, 2, 4).transpose(2, 0, 3, 1)[1],
    "empty": lambda a: a[:, 4:4],
}
BACKWARDS = {
    "rows backwards": lambda a: a[::-1],
    "all backwards": lambda a: a[::-1, ::-2],
    "backwards and transposed": lambda a: a.T[::-3],
}
CASES = [(producer, layout) for producer in PRODUCERS for layout in LAYOUTS]
CASES += [(producer, layout) for producer in ("numpy", "numpy subclass", "__dlpack__ alone") for layout in BACKWARDS]


def numbers(dtype):
    """Whole numbers: their squares add up without an error in any order."""
    return np.arange(-20, 28, dtype=dtype).reshape(6, 8)


def view_of(base, layout):
    # a[2, 3] is a scalar, a[2, 3, ...] a 0-dim view.
    return base[2, 3, ...] if layout == "0-dim" else {**LAYOUTS, **BACKWARDS}[layout](base)


# --- what comes in ---


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize(("producer", "layout"), CASES)
def test_reads_the_elements(producer, layout, dtype):
    view = view_of(numbers(dtype), layout)
    array = PRODUCERS[producer](view)
    wide = view.astype("float64")
    assert _core.read_tensors([array]) == 1
    assert ops.grad_norm([array]) == math.sqrt((wide**2).sum())
    assert ops.grad_norm([array], 1) == abs(wide).sum()
    assert ops.grad_norm([array], math.inf) == abs(wide).max(initial=0)


@pytest.mark.parametrize(("producer", "layout"), CASES)
def test_writes_the_same_memory_and_no_more(producer, layout):
    base = numbers("float32")
    expected = base.copy()
    view = view_of(expected, layout)
    view[...] = view.clip(-3, 3)
    array = PRODUCERS[producer](view_of(base, layout))
    ops.clip_grad_value_([array], 3.0)
    np.testing.assert_array_equal(base, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bfloat16_of_torch(layout):
    x = torch.from_numpy(numbers("float32")).bfloat16()
    view = x[2, 3] if layout == "0-dim" else torch.from_numpy(view_of(numbers("int64"), layout)).bfloat16()
    expected = view.double().square().sum().sqrt().item()
    assert ops.grad_norm([view]) == expected
    assert ops.grad_norm([view.as_subclass(WithoutExchangeApi)]) == expected


def test_bfloat16_of_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: pip install '.[test]'")
    x = numbers("float32").astype(ml_dtypes.bfloat16)
    assert ops.grad_norm([x[::-1, ::2]]) == math.sqrt((numbers("float64")[:, ::2] ** 2).sum())
    with pytest.raises(TypeError, match=r"^grad_norm: grads\[0\]: expected .*bfloat16.*, got float8_e5m2\."):
        ops.grad_norm([x.astype(ml_dtypes.float8_e5m2)])


def test_channels_last():
    x = torch.arange(120.0).reshape(2, 3, 4, 5)
    y = x.to(memory_format=torch.channels_last)
    assert not y.is_contiguous()
    assert ops.grad_norm([y]) == ops.grad_norm([x])
    ops.clip_grad_value_([y], 50)
    torch.testing.assert_close(y, x.clamp(-50, 50), rtol=0, atol=0)


def test_kinds_in_one_list():
    arrays = [make(numbers("float32")) for make in PRODUCERS.values()]
    assert _core.read_tensors(arrays) == len(arrays)
    assert ops.grad_norm(arrays) == math.sqrt(len(arrays) * (numbers("float64") ** 2).sum())


def test_expanded_and_overlapping_arrays_may_be_read():
    one = torch.tensor([3.0])
    assert ops.grad_norm([one.expand(4)]) == 6.0
    assert ops.grad_norm([np.broadcast_to(np.float32(3), (2, 2))]) == 6.0
    windows = sliding_window_view(np.arange(4.0), 2)  # 0 1, 1 2, 2 3
    assert ops.grad_norm([windows], 1) == 9.0


def test_capsules_by_hand():
    """What the ABI says and no library here does: a byte offset, no strides, devices of many names."""
    x = np.arange(8, dtype="float32")
    assert ops.grad_norm([Exporter(x)], 1) == 28
    assert ops.grad_norm([Exporter(x[:4], byte_offset=16)], 1) == 4 + 5 + 6 + 7
    assert ops.grad_norm([Exporter(x.reshape(2, 4), versioned=False, strides=None)], 1) == 28
    assert ops.grad_norm([Exporter(x[:4], strides=(2,))], 1) == 0 + 2 + 4 + 6
    assert ops.grad_norm([Exporter(x, version=(1, 9))], 1) == 28
    bfloat16 = (x.view(np.uint32) >> 16).astype(np.uint16)
    assert ops.grad_norm([Exporter(bfloat16, code=4)], 1) == 28
    assert _core.read_tensors([Exporter(x, device_type=2, device_index=1)]) == 1  # never touched


def test_newer_tables_lead_to_one_that_is_known():
    class Newer(torch.Tensor):
        __dlpack_c_exchange_api__ = exchange_api(torch.Tensor, version=(2, 0), has_older=True)

    class Minor(torch.Tensor):
        __dlpack_c_exchange_api__ = exchange_api(torch.Tensor, version=(1, 99))

    for kind in (Newer, Minor):
        x = torch.tensor([3.0, 4.0], requires_grad=True).as_subclass(kind)
        assert ops.grad_norm([x]) == 5.0


@pytest.mark.parametrize(
    "table",
    [
        exchange_api(torch.Tensor, version=(2, 0)),
        exchange_api(torch.Tensor, version=(0, 8)),
        exchange_api(torch.Tensor, version=(1, 3), can_read=False),
        exchange_api(torch.Tensor, version=(1, 3), name=b"dlpack_exchange_spi"),
        object(),
    ],
    ids=["newer", "older", "no function", "another name", "no capsule"],
)
def test_tables_that_do_not_serve_are_passed_over(table):
    kind = type("Kind", (torch.Tensor,), {"__dlpack_c_exchange_api__": table})
    assert ops.grad_norm([torch.tensor([3.0, 4.0]).as_subclass(kind)]) == 5.0


# --- what is refused ---


def fake():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.ones(3)


def wrapper():
    from torch.testing._internal.two_tensor import TwoTensor

    return TwoTensor(torch.ones(2), torch.ones(2))


def freed(tensor):
    tensor.untyped_storage().resize_(0)
    return tensor


def read_only(array):
    view = array.view()
    view.flags.writeable = False
    return view


class Copies(OnlyDlpack):
    def __dlpack__(self, **kwargs):
        return self.array.__dlpack__(max_version=(1, 0), copy=True)


class Raises(OnlyDlpack):
    def __dlpack__(self, **kwargs):
        raise BufferError("the array is elsewhere")


class ReturnsNone(OnlyDlpack):
    def __dlpack__(self, **kwargs):
        return None


class NotATensor:
    __dlpack_c_exchange_api__ = torch.Tensor.__dlpack_c_exchange_api__


KIND = r"a dense float array \(NumPy, torch or any with DLPack\)"
DTYPE = "a float32, float64, float16 or bfloat16 array"
ONES = np.ones(4, "float32")
COMPLEX = torch.tensor([1 + 2j, 3 + 4j])
PACKED = np.zeros(4, [("a", "f4"), ("b", "u1")])


def kind(make, got):
    return make, TypeError, KIND, got


def dtype(make, got):
    return make, TypeError, DTYPE, got


def value(make, expected, got):
    return make, ValueError, expected, got


REFUSED = {
    # not arrays
    "None": kind(lambda: None, "NoneType"),
    "float": kind(lambda: 1.0, "float"),
    "string": kind(lambda: "x", "str"),
    "list": kind(lambda: [1.0], "list"),
    "NumPy scalar": kind(lambda: np.float32(1), r"numpy\.float32"),
    "class": kind(lambda: torch.Tensor, ".*"),
    "object": kind(object, "object"),
    # dtypes
    "torch int64": dtype(lambda: torch.ones(3, dtype=torch.int64), "int64"),
    "torch bool": dtype(lambda: torch.ones(3, dtype=torch.bool), "bool"),
    "torch complex": dtype(lambda: COMPLEX, "complex64"),
    "torch float8": dtype(lambda: torch.ones(3).to(torch.float8_e4m3fn), "float8_e4m3fn"),
    "NumPy int32": dtype(lambda: np.ones(3, "int32"), "int32"),
    "NumPy bool": dtype(lambda: np.ones(3, "bool"), "bool"),
    "NumPy complex": dtype(lambda: np.ones(3, "complex128"), "complex128"),
    "NumPy object": dtype(lambda: np.ones(3, "object"), "object"),
    "NumPy string": dtype(lambda: np.array(["a"]), "<U1"),
    "NumPy void": dtype(lambda: np.zeros(3, "V2"), r"\|V2"),
    "NumPy structure": dtype(lambda: PACKED, ".*f4.*"),
    "byte-swapped": (
        lambda: np.ones(3, ">f4" if sys.byteorder == "little" else "<f4"),
        TypeError,
        "an array in .*",
        "[<>]f4",
    ),
    "capsule of int8": dtype(lambda: OnlyDlpack(np.ones(3, "int8")), "int8"),
    "capsule of vectors": dtype(lambda: Exporter(ONES, lanes=4), "float32x4"),
    "capsule of an unknown dtype": dtype(lambda: Exporter(ONES, code=99), "an unknown dtype .*99.*"),
    # torch tensors that are no plain ones
    "sparse": kind(lambda: torch.eye(3).to_sparse(), r".*layout torch\.sparse_coo.*"),
    "CSR": kind(lambda: torch.eye(3).to_sparse_csr(), r".*layout torch\.sparse_csr.*"),
    "mkldnn": kind(lambda: torch.ones(3, 3).to_mkldnn(), r".*layout torch\._mkldnn.*"),
    "nested": kind(lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), r".*torch\.Tensor that.*"),
    "jagged": kind(
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        r".*layout torch\.jagged.*",
    ),
    "quantized": kind(lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), ".*QInt.*"),
    "meta": kind(lambda: torch.ones(3, device="meta"), ".*meta"),
    "fake": kind(fake, r".*FakeTensor of shape \(3,\) without memory"),
    "wrapper": kind(wrapper, r".*TwoTensor of shape \(2,\) without memory"),
    "zero tensor": kind(lambda: torch._efficientzerotensor(3), ".*without memory"),
    "freed": kind(lambda: freed(torch.ones(3)), ".*without memory"),
    "lazily negated": kind(lambda: COMPLEX.conj().imag, ".*negated lazily"),
    "one element lazily negated": kind(lambda: COMPLEX[1].conj().imag, ".*negated lazily"),
    "slice lazily negated": kind(lambda: COMPLEX.conj().imag[:1].reshape(1, 1), ".*negated lazily"),
    # layouts
    "misaligned": value(
        lambda: np.frombuffer(bytearray(17), "float32", 4, 1), "data aligned to .*", ".*begin 1 bytes.*"
    ),
    "misaligned torch": value(
        lambda: torch.frombuffer(bytearray(17), dtype=torch.float32, count=4, offset=1),
        "data aligned to .*",
        ".*begin 1 bytes.*",
    ),
    "split elements": value(lambda: PACKED["a"], "strides of whole elements.*", r"strides \(5,\) in bytes"),
    "masked": (lambda: np.ma.ones(3), TypeError, "an array without a mask", r"a numpy\.ma\.MaskedArray"),
    # exporters
    "copy": value(lambda: Copies(ONES), "an array that exports its own memory", ".*Copies that exports a copy"),
    "no capsule": kind(lambda: ReturnsNone(ONES), r".*ReturnsNone whose __dlpack__\(\) returns a NoneType"),
    "DLPack 2": (
        lambda: Exporter(ONES, version=(2, 0)),
        TypeError,
        "an array exported with DLPack 1.x",
        r"DLPack 2\.0",
    ),
    "Metal": value(lambda: Exporter(ONES, device_type=8), "an array on a CPU or CUDA device", "one on Metal"),
    "unknown device": value(lambda: Exporter(ONES, device_type=99), "an array on a CPU .*", "one on device type 99"),
    "null": kind(lambda: Exporter(ONES, data=None), r".*Exporter of shape \(4,\) without memory"),
}
# Those whose own library says why: its exception is the cause of ours.
WITH_CAUSE = {
    "raises": (lambda: Raises(ONES), BufferError, "the array is elsewhere"),
    "read-only, of old": (lambda: OldDlpack(read_only(ONES)), BufferError, "readonly"),
    "sparse": (lambda: torch.eye(3).to_sparse(), RuntimeError, "storage"),
    "meta": (lambda: torch.ones(3, device="meta"), RuntimeError, "meta"),
    "not a tensor": (NotATensor, RuntimeError, "cast"),
}


def quietly(make):
    """torch warns of its prototypes, and of its own use of what is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    make, error, expected, got = REFUSED[case]
    good = np.full(3, 7, "float32")
    bad = quietly(make)
    message = rf"^grad_norm: grads\[1\]: expected {expected}, got {got}(\. .*)?$"
    with pytest.raises(error, match=message) as refusal:
        ops.grad_norm([good, bad])
    assert "\n" not in str(refusal.value)
    with pytest.raises(error, match=r"^clip_grad_value_: grads\[1\]: expected"):
        ops.clip_grad_value_([good, bad], 1.0)
    np.testing.assert_array_equal(good, 7)


@pytest.mark.parametrize("case", WITH_CAUSE)
def test_the_librarys_own_reason_is_kept(case):
    make, cause, reason = WITH_CAUSE[case]
    message = rf"^grad_norm: grads\[0\]: expected {KIND}, got .* cannot be exported: .*{reason}"
    with pytest.raises(TypeError, match=message) as refusal:
        ops.grad_norm([make()])
    assert isinstance(refusal.value.__cause__, cause)
    assert reason in str(refusal.value.__cause__)


@pytest.mark.parametrize("transform", ["vmap", "grad", "functionalize", "jvp"])
def test_tensors_under_a_transform(transform):
    def function(x):
        with pytest.raises(TypeError, match=rf"^grad_norm: grads\[0\]: expected {KIND}, got a torch\.Tensor"):
            ops.grad_norm([x])
        return x.sum()

    x = torch.ones(3, 2)
    if transform == "jvp":
        quietly(lambda: torch.func.jvp(function, (x,), (x,)))
    elif transform == "vmap":
        torch.vmap(function)(x)
    else:
        getattr(torch.func, transform)(function)(x)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_what_is_not_about_the_array_goes_on(error):
    class Interrupted(OnlyDlpack):
        def __dlpack__(self, **kwargs):
            raise error

    with pytest.raises(error):
        ops.grad_norm([Interrupted(ONES)])


@pytest.mark.skipif(bool(_core.info()["cuda_architectures"]), reason="there is a CUDA backend")
def test_cuda_without_a_cuda_backend():
    with pytest.raises(ValueError, match=r"^grad_norm: grads\[1\]: expected an array in CPU memory, got .*CUDA.*\. "):
        ops.grad_norm([ONES, Exporter(ONES, device_type=2)])


def test_real_and_imaginary_parts_that_are_not_negated():
    assert ops.grad_norm([COMPLEX.imag], 1) == 6
    assert ops.grad_norm([COMPLEX.real], 1) == 4
    assert ops.grad_norm([COMPLEX.conj().real], 1) == 4
    assert ops.grad_norm([COMPLEX[1].imag], 1) == 4
    assert ops.grad_norm([COMPLEX.conj().imag.resolve_neg()], 1) == 6


class Unflagged(OnlyDlpack):
    """As JAX: it knows max_version, and answers in the old form."""

    def __dlpack__(self, *, max_version=None):
        return self.array.__dlpack__()


@pytest.mark.parametrize(
    "make",
    [
        read_only,
        lambda a: OnlyDlpack(read_only(a)),
        lambda a: Exporter(a, flags=1),
        Unflagged,
        lambda a: np.frombuffer(a.tobytes(), "float32"),
        lambda a: np.broadcast_to(a, (1, 4)),
    ],
    ids=["NumPy", "capsule", "flag", "no flags", "bytes", "broadcast"],
)
def test_read_only_arrays_are_read_and_not_written(make):
    array = make(ONES)
    assert ops.grad_norm([array]) == 2.0
    message = r"^clip_grad_value_: grads\[1\]: expected a writable array, got a read-only one"
    with pytest.raises(ValueError, match=message):
        ops.clip_grad_value_([ONES.copy(), array], 0.5)
    np.testing.assert_array_equal(ONES, 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(1).expand(4),
        lambda: torch.ones(3, 1).expand(3, 2),
        lambda: torch.ones(9).as_strided((3, 4), (2, 1)),
        lambda: sliding_window_view(np.ones(6), 3, writeable=True),
        lambda: as_strided(np.ones(64)[20:], (3, 4, 5), (48, 32, -16)),
    ],
    ids=["expanded", "expanded columns", "as_strided", "windows", "three strides"],
)
def test_overlapping_arrays_are_not_written(make):
    array = make()
    message = r"^clip_grad_value_: grads\[0\]: expected each element in memory of its own, got"
    with pytest.raises(ValueError, match=message):
        ops.clip_grad_value_([array], 0.5)
    assert ops.grad_norm([array]) == math.sqrt(math.prod(array.shape))


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((2, 3), (3, 2)),
        ((3, 2), (2, 3)),
        ((3, 4), (4, 3)),
        ((2, 3, 2), (5, 2, 11)),
        ((2, 3), (-3, 2)),
        ((2, 2, 2), (3, 5, 6)),
    ],
)
def test_interlaced_arrays_are_written(shape, strides):
    """No stride leads over all the smaller ones, and yet no element is reached twice."""
    base = np.full(60, 7.0)
    view = as_strided(base[20:], shape, [8 * s for s in strides])
    ops.clip_grad_value_([view], 1.0)
    np.testing.assert_array_equal(view, 1)
    assert (base == 1).sum() == view.size


# --- what stays alive, and what does not ---


class Clears:
    """Empties the list that is being read while it is read, and notes who lives on."""

    def __init__(self, grads, refs):
        self.grads, self.refs, self.alive = grads, refs, None

    def __dlpack__(self, *, max_version=None):
        self.grads.clear()
        gc.collect()
        self.alive = [ref() is not None for ref in self.refs]
        return np.zeros(1).__dlpack__(max_version=max_version)


@pytest.mark.parametrize("place", [0, 4], ids=["first", "last"])
def test_arrays_live_until_the_end_of_the_call(place):
    exported = np.full(1000, 3.0)
    grads = [
        np.full(1000, 3.0),
        torch.full((1000,), 3.0),
        OnlyDlpack(exported),
        torch.nn.Parameter(torch.full((1000,), 3.0)),
    ]
    refs = [weakref.ref(x) for x in grads] + [weakref.ref(exported)]
    del exported
    clears = Clears(grads, refs)
    grads.insert(place, clears)
    assert ops.grad_norm(grads) == math.sqrt(4 * 1000 * 9)
    assert clears.alive == [True] * 5
    gc.collect()
    assert [ref() for ref in refs] == [None] * 5


def test_memory_that_only_the_capsule_holds():
    class Temporary:
        def __dlpack__(self, *, max_version=None):
            return np.full(100_000, 3.0).__dlpack__(max_version=max_version)

    for _ in range(5):
        assert ops.grad_norm([Temporary() for _ in range(4)]) == math.sqrt(4 * 100_000 * 9)


def references(objects):
    gc.collect()
    return [sys.getrefcount(x) for x in objects]


@pytest.mark.parametrize("producer", PRODUCERS)
def test_no_reference_is_left(producer):
    base = numbers("float32")
    arrays = [PRODUCERS[producer](base), PRODUCERS[producer](base.T)]
    watched = [base, *arrays, *(type(x) for x in arrays)]
    integers = torch.ones(3, dtype=torch.int64)

    def calls():
        for _ in range(100):
            ops.grad_norm(arrays)
            for bad in (integers, None, 1.0):
                with pytest.raises(TypeError):
                    ops.grad_norm([*arrays, bad])

    calls()
    before = references(watched)
    calls()
    assert references(watched) == before


@pytest.mark.parametrize(
    "case",
    ["sparse", "meta", "lazily negated", "NumPy int32", "split elements", "copy", "no capsule", "float"],
)
def test_no_reference_is_left_by_a_refusal(case):
    make, error, _, _ = REFUSED[case]
    bad = quietly(make)
    good = torch.ones(3)

    def calls():
        for _ in range(100):
            with pytest.raises(error):
                ops.grad_norm([good, bad])

    calls()
    before = references([good, bad, type(good), type(bad)])
    calls()
    assert references([good, bad, type(good), type(bad)]) == before


def test_no_memory_is_left():
    # Without torch's own __dlpack__: the names that it looks up fill CPython's attribute cache for a while.
    arrays = [make(numbers("float32")) for name, make in PRODUCERS.items() if "exchange" not in name]

    def calls():
        for _ in range(200):
            ops.grad_norm(arrays)
            for bad in (None, Raises(ONES), torch.ones(1, device="meta")):
                with contextlib.suppress(TypeError):
                    ops.grad_norm([*arrays, bad])
        gc.collect()

    calls()
    tracemalloc.start()
    try:
        calls()
        before, _ = tracemalloc.get_traced_memory()
        calls()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1600  # a pointer for each call


def test_many_threads_read_the_same_arrays():
    arrays = [make(numbers("float32")) for make in PRODUCERS.values()] * 10
    expected = ops.grad_norm(arrays)
    with ThreadPoolExecutor(4) as pool:
        norms = list(pool.map(lambda _: ops.grad_norm(arrays), range(40)))
    assert norms == [expected] * 40
