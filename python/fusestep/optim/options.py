"""The options that every optimizer takes beside those of torch.optim."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

import torch

from fusestep import ops


class Clipping(TypedDict, total=False):
    """The clipping options that every optimizer takes by keyword, and keeps as attributes of these names.

    The attributes may be changed between steps: a run that clips only after the warm-up sets
    ``opt.max_grad_norm`` when it gets there. They are no part of ``state_dict()``, whose keys are torch's.
    """

    max_grad_norm: float | None
    """Clip the gradients of all groups together to this norm, by ``min(1, max_grad_norm / (norm + 1e-6))``
    as ``torch.nn.utils.clip_grad_norm_`` does; the factor is folded into the update. > 0; inf only measures.
    Default: None, no clipping."""

    norm_type: float
    """Which norm: 1, 2 or inf. Default: 2."""

    clip_factor: float | None
    """Clip in the other form of the literature: where the norm is over ``max_grad_norm``, multiply by this
    factor in place of the quotient. Default: None."""

    max_grad_value: float | None
    """Clamp every element of the gradients to [-max_grad_value, max_grad_value]; not together with
    ``max_grad_norm``. Default: None."""

    on_nonfinite: Literal["skip", "raise", "propagate"] | None
    """What to do with a norm that is infinite or NaN. "skip": leave everything as it was (parameters,
    moments, step counts) and count it in ``opt.skipped_steps``; "raise": leave it so too, and raise
    RuntimeError; "propagate": update with it. "skip" and "raise" take the norm even where nothing is clipped.
    Default: None, which is "skip" with ``max_grad_norm`` and "propagate" without."""

    rewrite_grads: bool
    """Also store the unscaled and clipped gradients in ``p.grad``. Default: False, they are only read."""


class Precision(TypedDict, total=False):
    """How 16-bit parameters and their state are kept: options of a parameter group, which ``state_dict()`` holds.

    A bfloat16 parameter rounded to the nearest, as ``torch.optim`` does, loses every update smaller than 1/256 of it.
    Stochastic rounding, a compensation and a float32 copy each keep them.
    """

    state_dtype: torch.dtype | Literal["8bit"] | None
    """Dtype of the moments: float32, bfloat16 or float16; or "8bit": codes of uint8, and for each block of 256 elements
    its greatest absolute value, a float32, as a state of its own: ``exp_avg`` and ``exp_avg_absmax``. What a code
    stands for: see `fusestep.ops.quantize_8bit`. Goes with every ``rounding``; not with ``RMSprop(centered=True)``, nor
    with parameters that have gaps in memory. Moments of float64 parameters are float64 whatever this says.
    Default: None, that of the parameter."""

    rounding: Literal["stochastic", "kahan"] | None
    """How updates of bfloat16 and float16 parameters are rounded. "stochastic": up or down at random, with the
    result as the expectation; 16-bit moments too. "kahan": a second 16-bit tensor, ``compensation``, holds what
    the parameter cannot; the two together have 16 bits of mantissa (22 for float16). Default: None, to the nearest."""

    master_weights: bool
    """Keep a float32 copy of each 16-bit parameter, ``master_param``: it is updated, and the parameter becomes its
    rounded copy. Not together with ``rounding``. Default: False."""

    seed: int | None
    """Of stochastic rounding: the draws are a function of it, the step, the position of the parameter among all of
    the optimizer and the position of the element, on any device. 0 to 2**64 - 1. Default: None, drawn from torch's
    default generator when the optimizer is made."""


class Extras(Clipping, Precision, total=False):
    """What every optimizer takes beside torch's arguments."""


PRECISION_DEFAULTS: dict[str, Any] = {"state_dtype": None, "rounding": None, "master_weights": False, "seed": None}
STATE_DTYPES = (None, torch.float32, torch.bfloat16, torch.float16, "8bit")

# Their defaults stand once, beside the functions on plain arrays.
CLIPPING_DEFAULTS: dict[str, Any] = {name: ops.CLIPPING[name] for name in Clipping.__annotations__}
