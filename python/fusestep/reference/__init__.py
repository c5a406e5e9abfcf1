"""The specification in code: optimizers, clipping, attention, masked softmax and dropout, in NumPy and float64.

Written to be read beside the papers. The functions are pure (they return new arrays) and import nothing from
the rest of the package, so they can judge it. A function of an optimizer takes one parameter with its
gradient and its state, all of one shape, and returns `(param, *state)` after one step. Clipping is a step of
its own, applied to the gradients before the optimizer sees them. Which weights and elements dropout drops is a
function of the seed, the offset and the position: the kernels drop the same ones.

Arrays of any floating dtype come in; the arithmetic is float64, or np.longdouble for np.longdouble arrays.
"""

from .adagrad import adagrad
from .adam import adam, adamw
from .attention import attention, attention_backward
from .clip import clip_by_norm, clip_by_value, clip_coefficient, grad_norm
from .cross_entropy import cross_entropy
from .dropout import attention_keep, dropout, dropout_add, dropout_keep, dropout_scale, dropout_threshold
from .eight_bit import dequantize_8bit, quantize_8bit
from .masked_softmax import masked_softmax, masked_softmax_backward
from .philox import philox
from .rmsprop import rmsprop
from .rounding import round_stochastic, rounding_numbers, state_numbers
from .sgd import sgd

__all__ = [
    "adagrad",
    "adam",
    "adamw",
    "attention",
    "attention_backward",
    "attention_keep",
    "clip_by_norm",
    "clip_by_value",
    "clip_coefficient",
    "cross_entropy",
    "dequantize_8bit",
    "dropout",
    "dropout_add",
    "dropout_keep",
    "dropout_scale",
    "dropout_threshold",
    "grad_norm",
    "masked_softmax",
    "masked_softmax_backward",
    "philox",
    "quantize_8bit",
    "rmsprop",
    "round_stochastic",
    "rounding_numbers",
    "sgd",
    "state_numbers",
]
