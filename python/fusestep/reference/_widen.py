"""Every reference function begins by widening its arrays: the arithmetic is float64 whatever came in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]


def widen(array: ArrayLike | None) -> Any:
    """The array as float64. None stays None; np.longdouble stays, for judging what float64 gives."""
    if array is None:
        return None
    return np.asarray(array, dtype=np.result_type(array, np.float64))
