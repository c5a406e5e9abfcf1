"""Every tolerance of the tests, derived. None is chosen by hand.

Optimizers. `Bound` is a number that carries a bound of its rounding error (running error analysis: Higham,
Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.3). Running the formulas of cases.py over
it gives, element by element, how far the kernels may be from the exact result: every rounding of the contract
is counted at the size of the number that is rounded, every later operation carries the errors on.
Cancellation (centered RMSProp), small denominators and the errors of the earlier steps are so counted where
they happen, and nowhere else.

Norms. The bound of a sum is the greatest number of roundings that one term passes through.

Units: u = half an ulp of 1 = eps / 2, the greatest relative error of one rounding to nearest.
"""

from __future__ import annotations

import math

import numpy as np
from cases import SLICE
from fusestep import _core

U = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# Half the smallest subnormal: the greatest error of one rounding below the normal numbers.
UNDERFLOW = {"float64": 2.0**-1075, "float32": 2.0**-150}
# The arithmetic in which values and bounds are worked out. Its own roundings are 2**-29 and 2**-11 of those
# judged; some twenty a step, over some ten steps: SLACK covers them.
FINER = {"float32": np.float64, "float64": np.longdouble}
SLACK = 1 + 2.0**-3


class Bound:
    """A value, and a bound of |what a program in `dtype` computes - value|."""

    __array_ufunc__ = None  # array * bound: NumPy leaves it to __rmul__

    def __init__(self, value, error, dtype):
        self.value, self.error, self.dtype = value, error, dtype

    def __neg__(self):
        return Bound(-self.value, self.error, self.dtype)

    def __add__(self, other):
        other = self._lift(other)
        return rounded(self.value + other.value, self.error + other.error, self.dtype)

    def __sub__(self, other):
        return self + -self._lift(other)

    def __rsub__(self, other):
        return self._lift(other) - self

    def __mul__(self, other):
        other = self._lift(other)
        return rounded(self.value * other.value, product_error(self, other), self.dtype)

    def __truediv__(self, other):
        other = self._lift(other)
        with np.errstate(divide="ignore", invalid="ignore"):
            quotient = self.value / other.value
            smallest = np.abs(other.value) - other.error
            error = (self.error + np.abs(quotient) * other.error) / smallest
        return rounded(quotient, np.where(smallest > 0, error, np.inf), self.dtype)

    def __rtruediv__(self, other):
        return self._lift(other) / self

    __radd__, __rmul__ = __add__, __mul__

    def _lift(self, other):
        return other if isinstance(other, Bound) else Bound(other, 0.0, self.dtype)


def rounded(value, error, dtype, roundings=1):
    """A result that lay within `error` of `value` before it was rounded."""
    return Bound(value, error + roundings * (U[dtype] * (np.abs(value) + error) + UNDERFLOW[dtype]), dtype)


def product_error(a, b):
    return np.abs(a.value) * b.error + np.abs(b.value) * a.error + a.error * b.error


class Bounded:
    """The arithmetic of Bound for exact.step, for a parameter of `dtype`.

    fused=False counts two roundings in a multiply-add: for torch, which may or may not fuse.
    """

    def __init__(self, dtype, fused=True):
        self.dtype, self.fused, self.finer = dtype, fused, FINER[dtype]

    def array(self, values):
        """Exactly known data."""
        return None if values is None else Bound(np.asarray(values, self.finer), 0.0, self.dtype)

    def number(self, value, error=0.0):
        """A hyperparameter: double, like all that a step prepares from it."""
        return Bound(self.finer(value), error, "float64")

    def power(self, base, exponent):
        # The pow of a libm is within one ulp: as good as two roundings.
        return rounded(base.value**exponent, 0.0, base.dtype, roundings=2)

    def round(self, number):
        return rounded(number.value, number.error, self.dtype)

    def fma(self, a, b, c):
        return (Bound(a.value * b.value, product_error(a, b), self.dtype) if self.fused else a * b) + c

    def sqrt(self, x):
        root = np.sqrt(x.value)
        below = root - np.sqrt(np.maximum(x.value - x.error, 0))
        above = np.sqrt(x.value + x.error) - root
        return rounded(root, np.maximum(below, above), x.dtype)

    root = sqrt

    def maximum(self, a, b):
        return Bound(np.maximum(a.value, b.value), np.maximum(a.error, b.error), self.dtype)

    def clip(self, x, low, high):
        return Bound(np.clip(x.value, low.value, high.value), np.maximum(x.error, high.error), self.dtype)


def bounds(outputs):
    """The tolerances of the results of exact.step: arrays, None where a state is not in use."""
    return [None if out is None else np.asarray(SLACK * out.error, np.float64) for out in outputs]


# --- norms --------------------------------------------------------------------------------------------------
LANES = 32


def norm_error(numel, norm_type=2.0):
    """Relative error of a norm of `numel` elements, summed in double by slices of SLICE and LANES lanes.

    All terms are positive, so the relative error is at most the number of roundings that one term passes
    through: the additions in its lane, those that join the lanes, and those that join the slices, one after
    another at worst. The root halves it; one more for the root, one for grad_scale.
    """
    if norm_type == math.inf:
        return 0.0
    roundings = SLICE // LANES + LANES + math.ceil(numel / SLICE)
    return (roundings / 2 + 2) * U["float64"] if norm_type == 2 else (roundings + 1) * U["float64"]


def reference_norm_error(numel, tensors):
    """The same of reference.grad_norm: NumPy sums pairwise (blocks of 128, 8 lanes), then tensor by tensor.

    Scaling by the peak, the square, the root and the product with the peak are six roundings more.
    """
    return (128 // 8 + 8 + math.ceil(math.log2(max(numel, 2))) + tensors + 6) * U["float64"]


# --- attention ----------------------------------------------------------------------------------------------
# Roundings of the kernels' functions, relative to the result, argument error apart.
EXP2 = 4  # the fit, its last two steps, the product (math/exp2.h)
TANH = 16  # e = exp(2 x) - 1 to 6, doubled by e / (e + 2) near -1, the sum, the quotient (math/attention/score.h)
LOG = 4
NARROWEST_TILE = 32  # keys that are worked on together: the sums so far are rescaled that often
STORED = {"float32": 0.0, "float64": 0.0, "float16": U["float16"], "bfloat16": U["bfloat16"]}
LEAST_STORED = {"float32": 0.0, "float64": 0.0, "float16": 2.0**-25, "bfloat16": 2.0**-134}
FLUSHED = {"float64": 2.0**-1022}  # exponentials below are 0


# The dtypes of queries to which weights, and the gradients of scores, are rounded before they are multiplied, as
# products of 16-bit floats need it: bfloat16 at the levels that have such products (docs/numerics.md). The plugins that
# run the tests on kernels of cuda/ set both.
WEIGHTS_ARE_STORED = {"bfloat16"} if "bf16" in _core.info()["simd"] else set()


def _storing_weights(dtype, size, count):
    """The error of storing numbers of these sizes (count: 1 where there is one that may be too small to be stored)."""
    if dtype not in WEIGHTS_ARE_STORED:
        return 0.0
    least = 2.0**-126 if dtype == "bfloat16" else LEAST_STORED[dtype]
    return STORED[dtype] * size + least * count


def _flushing(dtype, left, right):
    """The error of left @ right where products of bfloat16 take and give subnormal numbers as zero."""
    if dtype != "bfloat16" or dtype not in WEIGHTS_ARE_STORED:
        return 0.0
    # Of each term: one factor or the other, the product, and the sum so far.
    return 2.0**-126 * ((np.abs(left) + 1) @ (np.abs(right) + 2))


def attention(problem, dtype):
    """Bounds of |kernel - reference|: {"out", "lse", "grad_query", "grad_key", "grad_value", "grad_mask"}.

    Every term of a sum is charged with all additions of the sum: whatever the tiles, no term passes through more. The
    arithmetic of 16-bit floats is that of float32. The reference works in float64: where the kernels do too, its own
    roundings count as much again.
    """
    from attention_cases import sequences

    total = {
        "out": np.zeros(problem.grad_out.shape),
        "lse": np.zeros(problem.query.shape[:3]),
        "grad_query": np.zeros(problem.query.shape),
        "grad_key": np.zeros(problem.key.shape),
        "grad_value": np.zeros(problem.value.shape),
    }
    scores = (*problem.query.shape[:3], problem.key.shape[2])
    mask_error, mask_size = np.zeros(scores), np.zeros(scores)
    for queries, keys, own in sequences(problem):
        bound = _sequence_bounds(own, dtype)
        for name in ("out", "lse", "grad_query"):
            total[name][:, :, queries] = bound[name]
        for name in ("grad_key", "grad_value"):
            total[name][:, :, keys] = bound[name]
        mask_error[:, :, queries, keys], mask_size[:, :, queries, keys] = bound["scores"], bound["scores_size"]
    if problem.additive:
        mask = np.asarray(problem.options["mask"])
        terms = mask_error.size / max(mask.size, 1)
        error = _reduced(mask_error, mask.shape) + terms * _unit(dtype) * _reduced(mask_size, mask.shape)
        total["grad_mask"] = error + _storing(dtype, _reduced(mask_size, mask.shape))
    factor = 2 * SLACK if dtype == "float64" else SLACK
    return {name: factor * bound for name, bound in total.items()}


def _unit(dtype):
    return U["float64"] if dtype == "float64" else U["float32"]


def _storing(dtype, size):
    return STORED[dtype] * size + LEAST_STORED[dtype]


def _reduced(a, shape):
    a = a.sum(axis=tuple(range(a.ndim - len(shape))))
    axes = tuple(axis for axis, size in enumerate(shape) if size == 1)
    return a.sum(axis=axes, keepdims=True).reshape(shape)


def _sequence_bounds(problem, dtype):
    import naive_attention
    import torch

    u, flushed = _unit(dtype), FLUSHED.get(dtype, 2.0**-126)
    q, k, v = (np.asarray(a, np.float64) for a in problem.tensors())
    grad_out = np.asarray(problem.grad_out, np.float64)
    options, groups = problem.options, q.shape[1] // k.shape[1]
    k_all, v_all = np.repeat(k, groups, axis=1), np.repeat(v, groups, axis=1)
    queries, keys, dim, value_dim = q.shape[2], k.shape[2], q.shape[3], v.shape[3]
    tiles = math.ceil(keys / NARROWEST_TILE)
    scale = 1 / math.sqrt(dim) if options.get("scale") is None else options["scale"]

    # The scores. The scale is rounded, and so is its product with the query.
    parts = naive_attention.scores(torch.from_numpy(q), torch.from_numpy(k), options)
    product, bias, s = parts.product.numpy(), parts.bias.numpy(), parts.total.numpy()
    error = (dim + 3) * u * abs(scale) * (np.abs(q) @ np.abs(k_all).swapaxes(2, 3))
    error = error + abs(scale) * _flushing(dtype, q, k_all.swapaxes(2, 3))
    slope_of_cap, slope_error = 1.0, 0.0
    if options.get("softcap"):
        cap, t = options["softcap"], parts.capped.numpy()
        slope_of_cap = 1 - t**2
        t_error = slope_of_cap * (error + 3 * u * np.abs(product)) / cap + TANH * u * np.abs(t)
        slope_error = 2 * np.abs(t) * t_error + 3 * u
        error = cap * t_error + 2 * u * cap * np.abs(t)
    error = error + 3 * u * np.abs(bias) + u * np.abs(s)
    mask = options.get("mask")
    if mask is not None:
        mask = torch.as_tensor(np.asarray(mask))
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.double()
        finite = np.where(naive_attention.excluding(mask).numpy(), 0, mask.numpy())
        s = s + finite
        error = error + u * np.abs(finite) + u * np.abs(s)
    p = naive_attention.probabilities(parts, mask).numpy()
    factor = naive_attention.keep_factor(p.shape, options, problem.first_batch).numpy()

    # The forward pass. Rescaling by exp(m - m') goes through no more than |s - m| in all.
    below = np.where(p > 0, s, -np.inf)
    highest = np.max(below, axis=-1, keepdims=True, initial=-np.inf)
    empty = highest == -np.inf
    highest = np.where(empty, 0, highest)
    sum_exp = np.sum(np.where(p > 0, np.exp(np.minimum(s - highest, 0)), 0), axis=-1, keepdims=True)
    log_sum = np.log(np.where(empty, 1, sum_exp))
    lse = highest + log_sum
    apart = np.where(p > 0, np.abs(s - highest), 0)
    p_error = p * np.expm1(error + 2 * u * apart + (EXP2 + (EXP2 + 2) * tiles) * u) + flushed
    adding = (keys + tiles + 2) * u
    l_error = p_error.sum(axis=-1, keepdims=True) + adding
    weights = p * factor
    size = weights @ np.abs(v_all)
    out = weights @ v_all
    stored = _storing_weights(dtype, weights, factor)
    out_error = (factor * p_error + stored) @ np.abs(v_all) + (adding + 2 * u) * size + np.abs(out) * (l_error + u)
    out_error = out_error + _flushing(dtype, weights, v_all) + _storing(dtype, np.abs(out))
    lse_error = l_error + LOG * u * (np.abs(lse) + np.abs(highest) + np.abs(log_sum))

    # The backward pass, from the lse and the out that the forward pass stored.
    p_error = p * np.expm1(error + lse_error + 2 * u * (np.abs(s) + np.abs(lse)) + EXP2 * u) + flushed
    grad_p = factor * (grad_out @ v_all.swapaxes(2, 3))
    grad_p_error = (value_dim + 2) * u * factor * (np.abs(grad_out) @ np.abs(v_all).swapaxes(2, 3))
    grad_p_error = grad_p_error + factor * _flushing(dtype, grad_out, v_all.swapaxes(2, 3))
    mean = np.sum(grad_out * out, axis=-1, keepdims=True)
    mean_error = np.sum(np.abs(grad_out) * (out_error + (value_dim + 1) * u * np.abs(out)), axis=-1, keepdims=True)
    apart = grad_p - mean
    apart_error = grad_p_error + mean_error + u * np.abs(apart)
    grad_s = p * apart
    grad_s_error = p_error * (np.abs(apart) + apart_error) + p * apart_error + u * np.abs(grad_s)
    grad_product_error = grad_s_error * (slope_of_cap + slope_error) + np.abs(grad_s) * slope_error
    grad_product = np.abs(grad_s) * slope_of_cap

    def summed(a):
        return a.reshape(a.shape[0], k.shape[1], groups, *a.shape[2:]).sum(axis=2)

    by_keys = (keys + tiles + 3) * u
    by_queries = (queries * groups + tiles + 4) * u
    stored_grad = _storing_weights(dtype, grad_product, 1.0)
    query_error = abs(scale) * ((grad_product_error + by_keys * grad_product + stored_grad) @ np.abs(k_all))
    query_error = query_error + abs(scale) * _flushing(dtype, grad_product, k_all)
    key_error = abs(scale) * summed(
        (grad_product_error + by_queries * grad_product + stored_grad).swapaxes(2, 3) @ np.abs(q)
        + _flushing(dtype, grad_product.swapaxes(2, 3), q)
    )
    value_error = summed(
        (factor * p_error + by_queries * weights + stored).swapaxes(2, 3) @ np.abs(grad_out)
        + _flushing(dtype, weights.swapaxes(2, 3), grad_out)
    )
    query_size = abs(scale) * np.abs((grad_s * slope_of_cap) @ k_all)
    key_size = abs(scale) * np.abs(summed((grad_s * slope_of_cap).swapaxes(2, 3) @ q))
    value_size = np.abs(summed(weights.swapaxes(2, 3) @ grad_out))
    return {
        "out": out_error,
        "lse": lse_error[..., 0],
        "grad_query": query_error + _storing(dtype, query_size),
        "grad_key": key_error + _storing(dtype, key_size),
        "grad_value": value_error + _storing(dtype, value_size),
        "scores": grad_s_error,
        "scores_size": np.abs(grad_s),
    }
