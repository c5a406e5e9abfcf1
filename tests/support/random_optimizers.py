"""Random steps of every optimizer, and what they must leave: parameters, states and all that is kept beside them.

Bit for bit, for every mixture of dtypes, states in 8 bits, every way to round, and numbers of steps of every kind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cases
import exact
import numpy as np
import problems
import sixteen_bits
from arena import as_kind
from cases import Options
from drawing import Call, Drawer, assert_bits, assert_norm, norm_of, wide
from fusestep import reference
from sixteen_bits import COMPANIONS, HALVES

FLOATS = ("float32", *HALVES)
STEPS = (1, 2, 1000, 70000)
SOME_BLOCKS = ((255,), (256,), (257,), (513,), (31, 9), (3, 5, 19))  # of the 256 elements that share a scale
# States in whose small difference the variance is: 8 bits are refused for them.
DIFFERENCES = {"square_avgs", "grad_avgs"}


@dataclass
class Parameter:
    """A parameter with all that belongs to it, by the names of the arguments in whose lists they stand."""

    dtypes: dict[str, str]
    values: dict[str, np.ndarray]  # before the step; of codes what they stand for
    given: dict[str, Any]
    axes: tuple[int, ...]  # in the order of memory, where that matters
    step: int


@dataclass
class Step:
    """What the parameters of one call share."""

    row: cases.Optimizer
    options: Options
    clipping: Options
    rounding: str | None  # "master": float32 copies
    seed: int

    def used_states(self) -> tuple[cases.State, ...]:
        return self.row.used_states(self.options)


def optimizer(draw: Drawer, name: str) -> Call:
    step = make_step(draw, cases.BY_NAME[name])
    count = draw.random.randrange(4)
    numbers, given_step = step_numbers(draw, count)
    usual = dtypes_of(draw, step)
    parameters = [
        make_parameter(draw, step, usual if draw.random.random() < 0.7 else dtypes_of(draw, step), number)
        for number in numbers
    ]
    lists = lists_of(step, parameters)
    arguments = lists | {"step": given_step, **step.options, **step.clipping, **rounding_options(step)}
    before = draw.arena.bytes.copy()

    def check(norm: float | None) -> None:
        if assert_norm_of_step(step, parameters, norm):
            assert np.array_equal(draw.arena.bytes, before), "it wrote although it skipped the step"
            return
        for i, parameter in enumerate(parameters):
            # exact.fma has no float64 that overflows.
            if not (draw.special and parameter.dtypes["params"] == "float64"):
                assert_stepped(step, parameter, i, norm)
        assert_counted(given_step, numbers)

    not_finite = step.clipping.get("on_nonfinite") == "raise"
    return Call(f"{name}_", arguments, draw.arena, (*lists, "step"), check, not_finite)


# --- what goes in ---------------------------------------------------------------------------------------------------
def make_step(draw: Drawer, row: cases.Optimizer) -> Step:
    clipping = dict(draw.random.choice(({}, *cases.CLIPPINGS)))
    if draw.random.random() < 0.2:
        clipping["rewrite_grads"] = True
    options = row.step_options(draw.random.choice(row.settings))
    rounding = draw.random.choice((None, None, "stochastic", *COMPANIONS))
    return Step(row, options, clipping, rounding, seed=draw.random.getrandbits(64))


def rounding_options(step: Step) -> dict[str, Any]:
    """The options that ask for the rounding; float32 copies ask by being there."""
    if step.rounding in (None, "master"):
        return {}
    return {"rounding": step.rounding} | ({"seed": step.seed} if step.rounding == "stochastic" else {})


def step_numbers(draw: Drawer, count: int) -> tuple[list[int], Any]:
    """(the number of each parameter's step, how they are given): as one number, or as numbers and counts in memory."""
    numbers = [draw.random.choice(STEPS) for _ in range(count)]
    if draw.random.random() < 0.6:
        number = draw.random.choice(STEPS)
        return [number] * count, number
    return numbers, [number if draw.random.random() < 0.5 else counted(draw, number) for number in numbers]


def counted(draw: Drawer, number: int) -> Any:
    """An array that holds the count of the steps before this one."""
    return draw.array(np.array(number - 1, draw.random.choice(("float32", "float64"))))


def dtypes_of(draw: Drawer, step: Step) -> dict[str, str]:
    """The dtypes of one parameter and of all that belongs to it: everything float64, or a mixture of the others."""
    choose, states = draw.random.choice, [state.name for state in step.used_states()]
    param = choose(tuple(HALVES) if step.rounding else ("float32", "float32", "float64", *HALVES))
    if param == "float64":
        return dict.fromkeys(("params", "grads", *states), param)
    dtypes = {"params": param, "grads": choose(FLOATS)}
    common = choose((param, *FLOATS, "uint8", "uint8", None))
    exact_states = DIFFERENCES if step.options.get("centered") else set()
    for state in states:
        dtype = common or choose((*FLOATS, "uint8"))
        dtypes[state] = "float32" if dtype == "uint8" and state in exact_states else dtype
    companions = {"compensations": param, "master_params": "float32"}
    kept = COMPANIONS.get(step.rounding or "")
    return dtypes | ({kept: companions[kept]} if kept else {})


def make_parameter(draw: Drawer, step: Step, dtypes: dict[str, str], number: int) -> Parameter:
    shape = draw.random.choice(SOME_BLOCKS) if draw.random.random() < 0.25 else draw.shape()
    axes = tuple(range(len(shape)))
    in_blocks = "uint8" in dtypes.values()
    # Stochastic rounding counts in C order, blocks in the order of memory: both at once need a C-contiguous parameter.
    if in_blocks and step.rounding != "stochastic" and draw.random.random() < 0.5:
        axes = tuple(draw.random.sample(axes, len(axes)))
    parameter = Parameter(dtypes, {}, {}, axes, number)
    states = {state.name: state for state in step.used_states()}
    for name, dtype in dtypes.items():
        square = name in states and states[name].non_negative
        if dtype == "uint8":
            add_codes(draw, parameter, name, shape, square)
            continue
        values = draw.values(shape, dtype)
        parameter.values[name] = values = abs(values) if square else values
        # Codes lie as their parameter does; all else may lie in any way.
        dense = in_blocks and name == "params"
        parameter.given[name] = as_kind(draw.arena.dense(values, axes), draw.kind) if dense else draw.array(values)
    return parameter


def add_codes(draw: Drawer, parameter: Parameter, name: str, shape: tuple[int, ...], square: bool) -> None:
    """A state in 8 bits."""
    codes = draw.numpy_rng().integers(0, 256, shape, np.uint8)
    scales = abs(draw.values((-(-codes.size // reference.eight_bit.BLOCK),), "float32"))
    in_memory = codes.transpose(parameter.axes)
    with np.errstate(all="ignore"):
        values = reference.dequantize_8bit(in_memory, scales, square=square)
    parameter.values[name] = values.transpose(np.argsort(parameter.axes, kind="stable").tolist())
    parameter.given[name] = as_kind(draw.arena.dense(codes, parameter.axes), draw.kind)
    parameter.given[f"{name}_absmax"] = as_kind(draw.arena.contiguous(scales), draw.kind)


def lists_of(step: Step, parameters: list[Parameter]) -> dict[str, list[Any] | None]:
    """The arguments that are lists, with one item for each parameter."""
    used = [state.name for state in step.used_states()]
    names = ["params", "grads", *used]
    if step.rounding in COMPANIONS:
        names.append(COMPANIONS[step.rounding])
    # Scales stand beside codes alone.
    scales = {f"{state}_absmax" for state in used}
    names += sorted({name for parameter in parameters for name in parameter.given if name in scales})
    lists: dict[str, list[Any] | None] = {name: [p.given.get(name) for p in parameters] for name in names}
    return lists | {state.name: None for state in step.row.states if state.name not in used}


# --- what must come out ---------------------------------------------------------------------------------------------
def assert_norm_of_step(step: Step, parameters: list[Parameter], norm: float | None) -> bool:
    """Whether the step is skipped: the norm is not finite."""
    clipping, grads = step.clipping, [p.values["grads"] for p in parameters]
    wanted = norm_of(grads, clipping.get("norm_type", 2.0)) / clipping.get("grad_scale", 1.0)
    if "max_grad_norm" in clipping or "on_nonfinite" in clipping:
        assert_norm(norm, wanted, grads)
    else:
        assert norm is None
    on_nonfinite = clipping.get("on_nonfinite") or ("skip" if "max_grad_norm" in clipping else "propagate")
    return on_nonfinite == "skip" and not math.isfinite(wanted)


def assert_stepped(step: Step, parameter: Parameter, index: int, norm: float | None) -> None:
    with np.errstate(all="ignore"):
        wanted = after(step, parameter, index, norm)
    for name, want in wanted.items():
        got, dtype, what = parameter.given[name], parameter.dtypes[name], f"{name}[{index}]"
        if dtype == "uint8":
            square = next(state.non_negative for state in step.row.states if state.name == name)
            assert_codes(got, parameter.given[f"{name}_absmax"], want, parameter.axes, square, what)
        else:
            assert_bits(got, want, dtype, what)


def assert_codes(codes: Any, scales: Any, want: np.ndarray, axes: tuple[int, ...], square: bool, what: str) -> None:
    with np.errstate(all="ignore"):
        wanted_codes, wanted_scales = reference.quantize_8bit(want.transpose(axes), square=square)
    assert_bits(scales, wanted_scales, "float32", f"the scales of {what}")
    np.testing.assert_array_equal(np.asarray(codes).transpose(axes), wanted_codes, what)


def after(step: Step, parameter: Parameter, index: int, norm: float | None) -> dict[str, np.ndarray]:
    """What the lists of a call hold of the parameter after the step; of codes what they were made from."""
    dtypes, rounding = parameter.dtypes, step.rounding
    held = {name: wide(values, dtypes[name]) for name, values in parameter.values.items()}
    companion = COMPANIONS.get(rounding or "")
    A, scale, limit = (
        exact.Ieee(held["grads"].dtype),
        problems.scale_of(norm, **step.clipping),
        step.clipping.get("max_grad_value"),
    )
    result, *states = exact.step(
        A,
        step.row.name,
        sixteen_bits.stands_for(rounding, held["params"], held.get(companion or "")),
        held["grads"],
        [held.get(state.name) for state in step.row.states],
        parameter.step,
        step.options,
        scale=scale,
        max_grad_value=limit,
    )
    numbers = None
    if rounding == "stochastic":
        shape = result.shape
        numbers = reference.rounding_numbers(shape, seed=step.seed, parameter=index, step=parameter.step)
    grad = exact.gradient(A, held["grads"], scale, limit) if step.clipping.get("rewrite_grads") else held["grads"]
    wanted = {"params": sixteen_bits.stored(result, dtypes["params"], numbers), "grads": grad}
    for k, (state, values) in enumerate(zip(step.row.states, states, strict=False)):
        if state.name in held:
            wanted[state.name] = sixteen_bits.stored(values, dtypes[state.name], numbers, k)
    if companion is not None:
        wanted[companion] = sixteen_bits.companion_after(rounding, result, wanted["params"], dtypes["params"])
    return wanted


def assert_counted(given_step: Any, numbers: list[int]) -> None:
    """The counts in memory are those after the step."""
    if not isinstance(given_step, list):
        return
    for i, (given, number) in enumerate(zip(given_step, numbers, strict=True)):
        if not isinstance(given, int):
            assert float(given) == number, f"step[{i}]"
