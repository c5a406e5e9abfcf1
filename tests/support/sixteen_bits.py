"""What a step leaves in 16-bit parameters and beside them: the float32 update, then the rounding that was asked for."""

from __future__ import annotations

import numpy as np
from arena import BFLOAT16
from fusestep import reference

HALVES = {"bfloat16": BFLOAT16, "float16": np.dtype("float16")}
# What each way to round keeps beside the parameters; "master" is how the tests call float32 copies.
COMPANIONS = {"kahan": "compensations", "master": "master_params"}


def stands_for(rounding: str | None, param: np.ndarray, companion: np.ndarray | None) -> np.ndarray:
    """The float32 numbers that the update starts from."""
    if companion is None:
        return param
    return param + companion if rounding == "kahan" else companion


def stored(values: np.ndarray, dtype: str, numbers: np.ndarray | None = None, state: int | None = None) -> np.ndarray:
    """What an array of that dtype holds of the results of an update; only 16 bits hold anything but the results.

    numbers: of the elements, where rounding is stochastic. state: the number of the state; None: the parameter.
    """
    if dtype not in HALVES:
        return values
    if numbers is None:
        with np.errstate(over="ignore"):
            return values.astype(HALVES[dtype]).astype(np.float32)
    own = numbers if state is None else reference.state_numbers(numbers, state)
    return reference.round_stochastic(values, own, dtype).astype(np.float32)


def companion_after(rounding: str | None, result: np.ndarray, param: np.ndarray, dtype: str) -> np.ndarray:
    """What lies beside the parameter after a step: the result itself, or what `param` lacks of it."""
    if rounding == "master":
        return result
    with np.errstate(invalid="ignore"):
        rest = result - param
    # An infinite parameter must stay one, whatever the result was.
    return stored(np.where(np.isfinite(rest), rest, np.float32(0)), dtype)
