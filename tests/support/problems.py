"""One optimizer with lists of arrays for fusestep.ops, and what those arrays must hold after a step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import exact
import numpy as np
import torch
from cases import Optimizer, Options, lay_out

INTEGER = {2: np.int16, 4: np.int32, 8: np.int64}


@dataclass
class Problem:
    optimizer: Optimizer
    options: Options
    params: list[Any]
    grads: list[Any]
    states: list[list[Any] | None]  # in the order of fusestep.ops, None where the options do not use one
    rounding: dict[str, Any] = field(default_factory=dict)  # of 16-bit parameters: the keywords of fusestep.ops

    def step(self, number: int, **clipping) -> float | None:
        from fusestep import ops

        function = getattr(ops, f"{self.optimizer.name}_")
        return function(
            self.params,
            self.grads,
            *self.states,
            step=number,
            **self.optimizer.step_options(self.options),
            **self.rounding,
            **clipping,
        )

    def flat(self) -> list[np.ndarray | None]:
        """[param, grad, *states], each as one vector of float32 or float64."""
        return [None if arrays is None else flat(arrays) for arrays in (self.params, self.grads, *self.states)]

    def arrays(self) -> list[Any]:
        return [a for arrays in (self.params, self.grads, *self.states) if arrays is not None for a in arrays]


def make(
    optimizer,
    options,
    shapes,
    dtypes=("float32", "float32"),
    *,
    rng,
    kind="torch",
    layout=None,
    mid_run=False,
    state_dtype=None,
):
    """A problem of random numbers. `mid_run`: the states hold something other than their start.

    `state_dtype`: default that of the parameters.

    `layout` lays out params and states; gradients stay contiguous, as autograd often leaves them, unless it
    is a pair.
    """
    param_layout, grad_layout = layout if isinstance(layout, tuple) else (layout, None)
    dtype, grad_dtype = dtypes

    def to(values, dtype, layout):
        return array(values, dtype, kind, layout or "contiguous")

    params = [to(rng.standard_normal(shape), dtype, param_layout) for shape in shapes]
    grads = [to(rng.standard_normal(shape), grad_dtype, grad_layout) for shape in shapes]
    states = []
    for i, state in enumerate(optimizer.states):
        values = [optimizer.initial_states(options, shape, "float64")[i] for shape in shapes]
        used = state in optimizer.used_states(options)
        if used and mid_run:
            values = [rng.standard_normal(shape) for shape in shapes]
            if state.non_negative:
                values = [v**2 for v in values]
        states.append([to(v, state_dtype or dtype, param_layout) for v in values] if used else None)
    return Problem(optimizer, options, params, grads, states)


EXTREMES = (0.0, -0.0, 2.0**-149, -1e-40, 1e-30, 1.0, -3e38, math.inf, -math.inf, math.nan)


def extremes(optimizer, options):
    """A problem of float32 in which every extreme gradient meets every extreme parameter."""
    grads, params = (a.ravel() for a in np.meshgrid(EXTREMES, EXTREMES))
    problem = make(optimizer, options, [params.shape], rng=np.random.default_rng(0), mid_run=True)
    problem.params, problem.grads = [array(params, "float32")], [array(grads, "float32")]
    return problem


def one_nan(a):
    """With one kind of NaN: which of two NaNs an operation hands on is left open."""
    return np.where(np.isnan(a), a.dtype.type(math.nan), a)


def array(values, dtype, kind="torch", layout="contiguous"):
    """The values as a torch tensor or NumPy array of dtype and layout."""
    values = np.asarray(values)
    if dtype == "bfloat16":  # not a dtype of NumPy: torch rounds, and 16-bit integers carry the layout
        bits = torch.as_tensor(values).to(torch.bfloat16).view(torch.int16).numpy()
        return torch.from_numpy(lay_out(layout, bits)).view(torch.bfloat16)
    laid_out = lay_out(layout, values.astype(dtype))
    return torch.from_numpy(laid_out) if kind == "torch" else laid_out


def as_numpy(a):
    """The values, 16-bit floats as float32."""
    if isinstance(a, torch.Tensor):
        a = a.detach()
        a = (a.float() if a.dtype in (torch.bfloat16, torch.float16) else a).numpy()
    return a.astype(np.float32) if a.dtype == np.float16 else a


def flat(arrays):
    return np.concatenate([as_numpy(a).ravel() for a in arrays])


def assert_same_bits(got, want, what=""):
    """Equal bit for bit: 0.0 is not -0.0, and a NaN is the same NaN."""
    assert (got is None) == (want is None), what
    if want is None:
        return
    assert (got.dtype, got.shape) == (want.dtype, want.shape), what
    integer = INTEGER[got.dtype.itemsize]
    differ = np.flatnonzero(np.ascontiguousarray(got).view(integer) != np.ascontiguousarray(want).view(integer))
    if differ.size:
        i = differ[0]
        raise AssertionError(f"{what}: {differ.size} of {got.size} differ, the first at {i}: {got[i]!r}, {want[i]!r}")


def scale_of(norm, *, max_grad_norm=None, clip_factor=None, grad_scale=1.0, **_):
    """The factor of the gradients, in double, given the norm that the step returned."""
    coefficient = 1.0
    if max_grad_norm is None or max_grad_norm == math.inf:  # infinity: only measured
        pass
    elif math.isnan(norm):
        coefficient = math.nan
    elif clip_factor is not None:
        coefficient = clip_factor if norm > max_grad_norm else 1.0
    else:
        coefficient = min(1.0, max_grad_norm / (norm + 1e-6))
    return coefficient / grad_scale


def expected(problem: Problem, before, number: int, norm=None, **clipping):
    """[param, grad, *states] after the step, bit for bit; `before` is what `flat` gave before it."""
    param, grad, *states = before
    A = exact.Ieee(param.dtype)
    scale, limit = scale_of(norm, **clipping), clipping.get("max_grad_value")
    grad = grad.astype(param.dtype)
    param, *states = exact.step(
        A,
        problem.optimizer.name,
        param,
        grad,
        states,
        number,
        problem.optimizer.step_options(problem.options),
        scale=scale,
        max_grad_value=limit,
    )
    grad_after = before[1]
    if clipping.get("rewrite_grads"):
        grad_after = store(exact.gradient(A, grad, scale, limit), problem.grads[0]).astype(before[1].dtype)
    return [param, grad_after, *states]


def store(values, like):
    """Rounded to the dtype of the gradient, and read back."""
    if not isinstance(like, torch.Tensor):
        return values.astype(like.dtype)
    return as_numpy(torch.from_numpy(values).to(like.dtype))


def image(arrays) -> list[bytes]:
    """Every byte of the memory that the arrays live in, also between their elements."""

    def whole(a):
        if isinstance(a, torch.Tensor):
            return torch.empty(0, dtype=torch.uint8).set_(a.untyped_storage()).numpy().tobytes()
        while isinstance(a.base, np.ndarray):
            a = a.base
        return a.tobytes()

    return [whole(a) for a in arrays]
