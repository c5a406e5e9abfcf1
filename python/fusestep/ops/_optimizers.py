"""One step of each optimizer over lists of arrays, and clipping.

The optimizers' hyperparameters, defaults and meanings are declared once, beside the formulas (cpp/math/optim/), and
every function here is made from those declarations.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from fusestep import _core
from fusestep._refusal import check_bool, refuse

from ._arrays import bump_versions

CLIPPING: dict[str, Any] = {
    "max_grad_norm": None,
    "norm_type": 2.0,
    "clip_factor": None,
    "max_grad_value": None,
    "on_nonfinite": None,
    "grad_scale": 1.0,
    "rewrite_grads": False,
}

# How 16-bit parameters are rounded.
ROUNDING: dict[str, Any] = {"rounding": None, "seed": None, "compensations": None, "master_params": None}

_STEP_DOC = """{doc}

Args:
    params: arrays, float32, bfloat16, float16 or float64, updated in place. All but float64 is computed in float32.
    grads: arrays of the same shapes; float64 for a float64 parameter, else any of the other three.
{states}
    step: the number of this step, from 1 to 2**53; or a list with one number for each parameter, or with a 0-dim array
        for each that holds the count of steps before this one and is incremented.
{options}
    max_grad_norm: if given, gradients whose norm over all of `grads` is greater are scaled down to it, as
        torch.nn.utils.clip_grad_norm_ does, within the update.
    norm_type: 1, 2 or inf.
    clip_factor: if given, gradients of a norm above max_grad_norm are multiplied by this instead.
    max_grad_value: if given (and not max_grad_norm), each element of the gradients is clamped to +-this.
    on_nonfinite: what to do if the norm is not finite: "skip" changes nothing, "raise" raises RuntimeError, "propagate"
        computes. None: "skip" if max_grad_norm is given, else "propagate".
    grad_scale: gradients are divided by this first (loss scaling).
    rewrite_grads: also store the gradients as they were used, unscaled and clipped.
    rounding: of 16-bit parameters. None: each result is rounded to the nearest once. "stochastic": up or down at
        random, with the result as the expectation, 16-bit states too; a function of seed, step, position in `params`
        and position in the array (in C order) alone. "kahan": the parameter is params[i] + compensations[i], which
        holds 16 bits of mantissa for bfloat16 and 22 for float16.
    seed: 0 to 2**64 - 1; needed where rounding is "stochastic".
    compensations: for rounding="kahan": arrays of the shapes and dtypes of params, zero before the first step,
        updated in place.
    master_params: float32 arrays of the shapes of params: these are updated, and params become their rounded copies.
    {absmax}: for states in 8 bits, which are arrays of uint8 that lie in memory as params do, without gaps (see
        `quantize_8bit`): a float32 array for each, with the scale of each 256 elements.

Returns:
    The norm of the gradients before clipping, or None where neither max_grad_norm nor on_nonfinite asked for it.

Raises:
    TypeError, ValueError: an argument that cannot be taken. Everything is checked before anything is changed.
    RuntimeError: the norm is not finite and on_nonfinite="raise".
"""


def _optimizer(name: str, description: _core._Optimizer) -> Callable[..., float | None]:
    """The function `{name}_` of an optimizer that `_core.optimizers()` describes."""
    operation = f"{name}_"
    states, options = description["states"], description["options"]

    positional = [inspect.Parameter(p, inspect.Parameter.POSITIONAL_OR_KEYWORD) for p in ("params", "grads")]
    # A state that some options do without may be left out; the core refuses when one is missing that they need.
    positional += [inspect.Parameter(s, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None) for s in states]
    keywords = [inspect.Parameter("step", inspect.Parameter.KEYWORD_ONLY)]
    absmax = dict.fromkeys(f"{s}_absmax" for s in states)
    keywords += [
        inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=default)
        for option, default in {**options, **CLIPPING, **ROUNDING, **absmax}.items()
    ]
    signature = inspect.Signature(positional + keywords, return_annotation="float | None")
    names = tuple(parameter.name for parameter in positional)
    known, needed = frozenset(signature.parameters), frozenset(("params", "grads", "step"))

    def optimizer_(*args: Any, **kwargs: Any) -> float | None:
        # Signature.bind would take longer than the step of a small tensor: it only says what is wrong.
        given = dict(zip(names, args, strict=False)) | kwargs
        if len(given) != len(args) + len(kwargs) or not needed <= given.keys() <= known:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{operation}: {error}") from None
        params, grads = given["params"], given["grads"]
        companions = _companions(operation, given)
        moments = tuple(given.get(key) for key in (*states, *absmax))
        group = (given, params, grads, moments, given["step"], companions, None)
        norm, applied = _core.optimizer_step(operation, name, [group], given)
        if applied:
            changed = [params, *(arrays for arrays in moments if arrays is not None)]
            if companions is not None:
                changed.append(companions)
            if given.get("rewrite_grads", False):
                changed.append(grads)
            bump_versions(array for arrays in changed for array in arrays)
        return norm

    docs = description["option_docs"]
    optimizer_.__name__ = optimizer_.__qualname__ = operation
    optimizer_.__signature__ = signature  # type: ignore[attr-defined]
    optimizer_.__doc__ = _STEP_DOC.format(
        doc=description["doc"],
        states="\n".join(f"    {s}: arrays like params, updated in place." for s in states),
        absmax=", ".join(absmax),
        options="\n".join(f"    {o}: {docs[o]}." for o in options),
    )
    return optimizer_


def _companions(operation: str, given: dict[str, Any]) -> Any:
    """What the rounding keeps beside the parameters. Refuses arrays that the rounding would not use."""
    kahan, master = given.get("compensations"), given.get("master_params")
    given["master_weights"] = master is not None
    rounding = given.get("rounding")
    if kahan is not None and not (isinstance(rounding, str) and rounding == "kahan"):
        refuse(operation, "compensations", "None unless rounding is 'kahan'", "arrays", error=TypeError)
    return kahan if master is None else master


def grad_norm(grads: Sequence[Any], norm_type: float = 2.0) -> float:
    """The norm over all elements of all arrays.

    Accumulated in double over a fixed partition: relative error below 1e-6 at any size, and the same bits for any
    number of threads and any instruction set.

    Args:
        grads: list of arrays, float64, float32, bfloat16 or float16, of any shapes and layouts.
        norm_type: 1 (sum of absolute values), 2 (root of the sum of squares) or inf (greatest absolute value).
    """
    return _core.grad_norm("grad_norm", grads, norm_type)


def clip_grad_norm_(
    grads: Sequence[Any],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    *,
    clip_factor: float | None = None,
) -> float:
    """Scales the arrays in place so that their norm is at most `max_norm`; returns the norm before.

    The coefficient is torch's, min(1, max_norm / (norm + 1e-6)). The optimizers' `max_grad_norm` does the same without
    rewriting the gradients, in one pass over memory less.

    Args:
        grads: list of arrays, float64, float32, bfloat16 or float16.
        max_norm: above zero; inf scales nothing and only measures.
        norm_type: 1, 2 or inf.
        error_if_nonfinite: raise RuntimeError, with nothing changed, if the norm is not finite.
        clip_factor: if given, gradients of a norm above max_norm are multiplied by this instead.
    """
    check_bool("clip_grad_norm_", "error_if_nonfinite", error_if_nonfinite)
    options = {
        "max_norm": max_norm,
        "norm_type": norm_type,
        "clip_factor": clip_factor,
        "on_nonfinite": "raise" if error_if_nonfinite else "propagate",
    }
    norm = _core.clip_grad_norm_("clip_grad_norm_", grads, options)
    bump_versions(grads)
    return norm


def clip_grad_value_(grads: Sequence[Any], clip_value: float) -> None:
    """Clamps each element of the arrays to [-clip_value, clip_value], in place. NaN stays NaN."""
    _core.clip_grad_value_("clip_grad_value_", grads, clip_value)
    bump_versions(grads)


STEPS: dict[str, Callable[..., float | None]] = {
    f"{name}_": _optimizer(name, description) for name, description in _core.optimizers().items()
}
