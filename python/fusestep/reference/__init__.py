"""The specification in code: every optimizer and every way of clipping, in NumPy and float64.

Written to be read beside the papers. The functions are pure (they return new arrays) and import nothing from
the rest of the package, so they can judge it. A function of an optimizer takes one parameter with its
gradient and its state, all of one shape, and returns `(param, *state)` after one step. Clipping is a step of
its own, applied to the gradients before the optimizer sees them.

Arrays of any floating dtype come in; the arithmetic is float64, or np.longdouble for np.longdouble arrays.
"""

from .adagrad import adagrad
from .adam import adam, adamw
from .clip import clip_by_norm, clip_by_value, clip_coefficient, grad_norm
from .rmsprop import rmsprop
from .sgd import sgd

__all__ = [
    "adagrad",
    "adam",
    "adamw",
    "clip_by_norm",
    "clip_by_value",
    "clip_coefficient",
    "grad_norm",
    "rmsprop",
    "sgd",
]
