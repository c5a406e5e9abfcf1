"""Random calls of every function of fusestep.ops, each a function of its seed: what goes in, and what must come out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attention_cases
import cases
import cross_entropy_runs
import exact
import masked_softmax_runs
import numpy as np
import problems
import tolerances
from arena import as_kind
from attention_runs import assert_within
from dlpack_exporter import Exporter
from drawing import DTYPES, Call, Drawer, assert_bits, assert_norm, norm_of, wide
from fusestep import ops, reference
from random_optimizers import optimizer


# --- clipping and 8-bit codes ----------------------------------------------------------------------------------
def gradients(draw: Drawer) -> tuple[list[np.ndarray], list[str]]:
    dtypes = [draw.dtype() for _ in range(draw.random.randrange(5))]
    return [draw.values(draw.shape(), dtype) for dtype in dtypes], dtypes


def grad_norm(draw: Drawer) -> Call:
    grads, _ = gradients(draw)
    arguments = {"grads": [draw.array(g) for g in grads], "norm_type": draw.random.choice((1, 2, math.inf))}

    def check(norm: float) -> None:
        assert_norm(norm, norm_of(grads, arguments["norm_type"]), grads)

    return Call("grad_norm", arguments, draw.arena, (), check)


def clip_grad_norm_(draw: Drawer) -> Call:
    grads, dtypes = gradients(draw)
    arguments: dict[str, Any] = {"grads": [draw.array(g) for g in grads]}
    arguments["max_norm"] = draw.random.choice((0.5, 3, 1e6, math.inf))
    arguments["norm_type"] = draw.random.choice((1, 2, math.inf))
    arguments["clip_factor"] = draw.random.choice((None, None, 0.125))
    arguments["error_if_nonfinite"] = draw.random.random() < 0.5

    def check(norm: float) -> None:
        assert_norm(norm, norm_of(grads, arguments["norm_type"]), grads)
        scale = problems.scale_of(norm, max_grad_norm=arguments["max_norm"], clip_factor=arguments["clip_factor"])
        for i, (grad, dtype) in enumerate(zip(grads, dtypes, strict=True)):
            values = wide(grad, dtype)
            with np.errstate(all="ignore"):
                want = exact.gradient(exact.Ieee(values.dtype), values, scale)
            assert_bits(arguments["grads"][i], want, dtype, f"grads[{i}]")

    return Call("clip_grad_norm_", arguments, draw.arena, ("grads",), check, arguments["error_if_nonfinite"])


def clip_grad_value_(draw: Drawer) -> Call:
    grads, dtypes = gradients(draw)
    arguments = {"grads": [draw.array(g) for g in grads], "clip_value": draw.random.choice((0.5, 1, 1e30))}

    def check(result: None) -> None:
        assert result is None
        for i, (grad, dtype) in enumerate(zip(grads, dtypes, strict=True)):
            values = wide(grad, dtype)
            limit = values.dtype.type(arguments["clip_value"])
            assert_bits(arguments["grads"][i], np.clip(values, -limit, limit), dtype, f"grads[{i}]")

    return Call("clip_grad_value_", arguments, draw.arena, ("grads",), check)


def quantize_8bit(draw: Drawer) -> Call:
    values, square = draw.values(draw.shape(), "float32"), draw.random.random() < 0.5
    values = abs(values) if square else values
    arguments = {"values": as_kind(draw.arena.contiguous(values), draw.kind), "square": square}

    def check(result: Any) -> None:
        with np.errstate(all="ignore"):
            codes, scales = reference.quantize_8bit(values, square=square)
        np.testing.assert_array_equal(np.asarray(result[0]), codes)
        assert_bits(result[1], scales, "float32", "absmax")

    return Call("quantize_8bit", arguments, draw.arena, (), check)


def dequantize_8bit(draw: Drawer) -> Call:
    square, numpy_rng, shape = draw.random.random() < 0.5, draw.numpy_rng(), draw.shape()
    codes = numpy_rng.integers(0, 256, shape, np.uint8)
    scales = abs(draw.values((-(-codes.size // 256),), "float32"))
    arguments = {"codes": as_kind(draw.arena.contiguous(codes), draw.kind), "square": square}
    arguments["absmax"] = as_kind(draw.arena.contiguous(scales), draw.kind)

    def check(result: Any) -> None:
        with np.errstate(all="ignore"):
            want = reference.dequantize_8bit(codes, scales, square=square)
        assert_bits(result, want, "float32", "values")

    return Call("dequantize_8bit", arguments, draw.arena, (), check)


# --- dropout ------------------------------------------------------------------------------------------------
def dropping(draw: Drawer) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the options, the options as they are given)."""
    seed, offset = draw.random.getrandbits(64), draw.random.getrandbits(32)
    options = {"p": draw.random.choice((0.0, 2.0**-16, 0.1, 0.5, 1.0)), "seed": seed, "offset": offset}
    return options, options | {"seed": draw.seed(seed)}


def dropout(draw: Drawer) -> Call:
    dtype, (options, given) = draw.dtype(), dropping(draw)
    x = draw.values(draw.shape(), dtype)
    arguments = {"x": draw.array(x), **given}
    if draw.random.random() < 0.5:
        arguments["out"] = arguments["x"] if draw.random.random() < 0.3 else draw.array(np.zeros_like(x))

    def check(out: Any) -> None:
        assert arguments.get("out") is None or out is arguments["out"]
        with np.errstate(all="ignore"):
            values = wide(x, dtype)
            scaled = values * values.dtype.type(reference.dropout_scale(options["p"]))
        assert_bits(out, np.where(kept(x.shape, options), scaled, 0), dtype, "out")

    return Call("dropout", arguments, draw.arena, ("out",), check)


def dropout_add(draw: Drawer) -> Call:
    dtype, (options, given) = draw.dtype(), dropping(draw)
    x, residual = (draw.values(shape, dtype) for shape in [draw.shape()] * 2)
    arguments = {"x": draw.array(x), "residual": draw.array(residual), **given}
    if draw.random.random() < 0.5:
        arguments["out"] = draw.random.choice((arguments["x"], arguments["residual"], draw.array(np.zeros_like(x))))

    def check(out: Any) -> None:
        if draw.special and dtype == "float64":
            return  # exact.fma has no float64 that overflows
        values = wide(x, dtype)
        scale = values.dtype.type(reference.dropout_scale(options["p"]))
        with np.errstate(all="ignore"):
            want = exact.fma(np.where(kept(x.shape, options), values, 0), scale, wide(residual, dtype))
        assert_bits(out, want, dtype, "out")

    return Call("dropout_add", arguments, draw.arena, ("out",), check)


def kept(shape: tuple[int, ...], options: dict[str, Any]) -> np.ndarray:
    keep = reference.dropout_keep(math.prod(shape), options["p"], seed=options["seed"], offset=options["offset"])
    return keep.reshape(shape)


# --- losses, softmax and attention --------------------------------------------------------------------------
def cross_entropy(draw: Drawer) -> Call:
    dtype, rows, classes = draw.dtype(), draw.random.choice((0, 1, 2, 5)), draw.random.choice((1, 2, 31, 33, 100))
    logits = draw.values((rows, classes), dtype)
    labels = draw.numpy_rng().integers(0, classes, rows)
    options = {
        "ignore_index": draw.random.choice((-100, 0)),
        "label_smoothing": draw.random.choice((0.0, 0.1, 1.0)),
        "z_loss": draw.random.choice((0.0, 1e-2)),
        "reduction": draw.random.choice(("mean", "sum", "none")),
    }
    arguments = {"logits": draw.array(logits), "labels": draw.array(labels), **options}
    if draw.random.random() < 0.7:
        arguments["grad"] = arguments["logits"] if draw.random.random() < 0.3 else draw.array(np.zeros_like(logits))

    def check(result: Any) -> None:
        if not draw.special and (labels != options["ignore_index"]).any():
            results = (*result, arguments.get("grad"))
            cross_entropy_runs.assert_within_bounds(results, logits.astype(np.float64), labels, dtype, **options)

    return Call("cross_entropy", arguments, draw.arena, ("grad",), check)


def attention_problem(draw: Drawer, names: list[str]) -> tuple[attention_cases.Problem, str]:
    choose = draw.random.choice
    groups, key_heads = choose((1, 2)), choose((1, 2))
    shape = attention_cases.Shape(
        choose((1, 2)),
        groups * key_heads,
        key_heads,
        choose((1, 3, 9)),
        choose((1, 5, 17, 40)),
        choose((1, 8, 13)),
        choose((1, 8, 13)),
    )
    dtype = draw.dtype()
    features = attention_cases.FEATURES[choose(names)]
    return attention_cases.make(shape, features, draw.numpy_rng()).rounded(dtype), dtype


def laid_out(draw: Drawer, values: np.ndarray, dtype: str) -> Any:
    values = np.asarray(values)
    return draw.array(values if values.dtype.kind in "bi" else values.astype(DTYPES[dtype]))


def given_options(draw: Drawer, options: dict[str, Any], dtype: str) -> dict[str, Any]:
    dtypes = {"mask": dtype, "alibi_slopes": "float64" if dtype == "float64" else "float32"}
    given = {
        name: laid_out(draw, value, dtypes.get(name, "")) if isinstance(value, np.ndarray) else value
        for name, value in options.items()
    }
    return given | {"seed": draw.seed(options["seed"])} if options.get("seed") is not None else given


def attention(draw: Drawer, backward: bool) -> Call:
    problem, dtype = attention_problem(draw, list(attention_cases.FEATURES))
    arrays = dict(zip(("query", "key", "value"), (laid_out(draw, a, dtype) for a in problem.tensors()), strict=True))
    arguments = arrays | given_options(draw, problem.options, dtype)
    wanted = dict(zip(("out", "lse"), reference.attention(*problem.tensors(), **problem.options), strict=True))
    sums = "float64" if dtype == "float64" else "float32"
    outputs = {
        "out": laid_out(draw, np.zeros(wanted["out"].shape), dtype),
        "lse": laid_out(draw, np.zeros(wanted["lse"].shape), sums),
    }
    if not backward:
        if draw.random.random() < 0.5:
            arguments |= outputs

        def check(result: Any) -> None:
            within(result, wanted, tolerances.attention(problem, dtype))

        return Call("attention", arguments, draw.arena, ("out", "lse"), check)

    ops.attention(**arguments, **outputs)
    arguments |= {"grad_out": laid_out(draw, problem.grad_out, dtype), **outputs}
    if problem.additive:
        arguments["grad_mask"] = draw.random.random() < 0.7

    def check_gradients(result: Any) -> None:
        grads = reference.attention_backward(problem.grad_out, *problem.tensors(), **problem.options)
        names = ("grad_query", "grad_key", "grad_value", "grad_mask")[: len(result)]
        within(result, dict(zip(names, grads, strict=False)), tolerances.attention(problem, dtype))

    return Call("attention_backward", arguments, draw.arena, (), check_gradients)


def masked_softmax(draw: Drawer, backward: bool) -> Call:
    problem, dtype = attention_problem(draw, list(masked_softmax_runs.SOFTMAX))
    keys = problem.key.shape[2]
    rng = draw.numpy_rng()
    scores, grad_out = (
        attention_cases.round_to(rng.standard_normal((*problem.query.shape[:3], keys)), dtype) for _ in range(2)
    )
    options = {"scale": 1.0} | problem.options
    arguments = {"scores": laid_out(draw, scores, dtype)} | given_options(draw, options, dtype)
    wanted = dict(zip(("out", "lse"), reference.masked_softmax(scores, **options), strict=True))
    outputs = {
        "out": laid_out(draw, np.zeros(scores.shape), dtype),
        "lse": laid_out(draw, np.zeros(scores.shape[:3]), "float64" if dtype == "float64" else "float32"),
    }
    if not backward:
        if draw.random.random() < 0.5:
            arguments |= outputs

        def check(result: Any) -> None:
            within(result, wanted, masked_softmax_runs.bounds(scores, grad_out, options, dtype))

        return Call("masked_softmax", arguments, draw.arena, ("out", "lse"), check)

    ops.masked_softmax(**arguments, **outputs)
    arguments |= {"grad_out": laid_out(draw, grad_out, dtype), "lse": outputs["lse"]}
    if problem.additive:
        arguments["grad_mask"] = draw.random.random() < 0.7

    def check_gradients(result: Any) -> None:
        grads = reference.masked_softmax_backward(grad_out, scores, **options)
        names = ("grad_scores", "grad_mask")[: len(result)]
        bounds = masked_softmax_runs.bounds(scores, grad_out, options, dtype)
        within(result, dict(zip(names, grads, strict=False)), bounds)

    return Call("masked_softmax_backward", arguments, draw.arena, (), check_gradients)


def within(results: Any, wanted: dict[str, np.ndarray], bounds: dict[str, np.ndarray]) -> None:
    for got, (name, want) in zip(results, wanted.items(), strict=True):
        assert_within(np.asarray(problems.as_numpy(got)).astype(np.float64), want, bounds[name], name)


# --- DLPack -------------------------------------------------------------------------------------------------
def capsule(draw: Drawer) -> Call:
    """What a capsule may say of memory without NumPy or torch ever saying it so."""
    values = draw.values((draw.random.choice((1, 4, 24)),), "float32")
    memory = draw.arena.contiguous(values)
    first = draw.random.randrange(values.size)
    step = draw.random.choice((1, 2, -1, 0))
    room = {1: values.size - first, 2: (values.size - first + 1) // 2, -1: first + 1, 0: values.size}[step]
    count = draw.random.randint(0, room)
    wanted = values[first + step * np.arange(count)]
    versioned = draw.random.random() < 0.7
    exporter = Exporter(
        memory[:count], data=memory.ctypes.data, byte_offset=4 * first, strides=(step,), versioned=versioned
    )

    def check(norm: float) -> None:
        assert_norm(norm, norm_of([wanted], 2.0), [wanted])

    return Call("grad_norm", {"grads": [exporter]}, draw.arena, (), check)


MAKERS: dict[str, Callable[[Drawer], Call]] = {
    **{f"{row.name}_": lambda draw, name=row.name: optimizer(draw, name) for row in cases.OPTIMIZERS},
    "grad_norm": grad_norm,
    "clip_grad_norm_": clip_grad_norm_,
    "clip_grad_value_": clip_grad_value_,
    "quantize_8bit": quantize_8bit,
    "dequantize_8bit": dequantize_8bit,
    "dropout": dropout,
    "dropout_add": dropout_add,
    "cross_entropy": cross_entropy,
    "attention": lambda draw: attention(draw, backward=False),
    "attention_backward": lambda draw: attention(draw, backward=True),
    "masked_softmax": lambda draw: masked_softmax(draw, backward=False),
    "masked_softmax_backward": lambda draw: masked_softmax(draw, backward=True),
    "a capsule": capsule,
}


def make(name: str, seed: str) -> Call:
    return MAKERS[name](Drawer(seed))
