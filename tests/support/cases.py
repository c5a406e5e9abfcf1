"""The declared cases: what the tests of the optimizers run over. An optimizer is added by adding its row."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Options = dict[str, Any]


@dataclass(frozen=True)
class State:
    name: str  # the argument of fusestep.ops
    torch_name: str  # the key of torch.optim's state
    needed_by: str | None = None  # the option that switches it on; None: always there
    non_negative: bool = False  # a sum or mean of squares
    initial_option: str | None = None  # torch's option that fills it at the start; else zeros


@dataclass(frozen=True)
class Optimizer:
    name: str  # fusestep.reference.<name>, fusestep.ops.<name>_
    torch_class: str
    update: Callable[..., tuple[Any, ...]]  # its formula, below
    states: tuple[State, ...]
    settings: tuple[Options, ...]  # every hyperparameter stands in at least one, away from its default
    # The options with which torch does the same at a constant learning rate; None: torch has no such form.
    torch_options: Callable[[Options], Options | None] = field(default=dict)

    def used_states(self, options: Options) -> tuple[State, ...]:
        return tuple(s for s in self.states if s.needed_by is None or options.get(s.needed_by))

    def step_options(self, options: Options) -> Options:
        """The options of a step: without those that only fill the state at the start."""
        initial = {state.initial_option for state in self.states}
        return {key: value for key, value in options.items() if key not in initial}

    def initial_states(self, options: Options, shape: tuple[int, ...], dtype: str) -> list[np.ndarray | None]:
        """The states before the first step; None for those that the options do not use."""
        used = self.used_states(options)
        return [
            np.full(shape, options.get(state.initial_option, 0.0), dtype) if state in used else None
            for state in self.states
        ]


# The update formulas, with every rounding where the kernels round, over an arithmetic A (exact.Ieee for the
# bits, tolerances.Bounded for the error). Each takes the parameter p, the gradient g (scaled and clipped
# already), the states in the order of the row (None where not in use), the number of the step and the
# options; and gives (p, *states).
def _l2(A, p, g, weight_decay):
    return A.fma(A.round(A.number(weight_decay)), p, g) if weight_decay else g


def _adam_moments(A, p, g, m, v, v_max, step, *, lr, betas, eps, amsgrad):
    lr, b1, b2 = A.number(lr), A.number(betas[0]), A.number(betas[1])
    m = A.fma(A.round(1 - b1), g - m, m)
    v = A.fma(A.round(1 - b2) * g, g, A.round(b2) * v)
    v_max = A.maximum(v_max, v) if amsgrad else None
    inverse_sqrt_correction = A.round(1 / A.root(1 - A.power(b2, step)))
    denominator = A.fma(A.sqrt(v_max if amsgrad else v), inverse_sqrt_correction, A.round(A.number(eps)))
    p = A.fma(A.round(-lr / (1 - A.power(b1, step))), m / denominator, p)
    return p, m, v, v_max


def adam_update(A, p, g, m, v, v_max, step, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False):
    g = _l2(A, p, g, weight_decay)
    return _adam_moments(A, p, g, m, v, v_max, step, lr=lr, betas=betas, eps=eps, amsgrad=amsgrad)


def adamw_update(
    A,
    p,
    g,
    m,
    v,
    v_max,
    step,
    *,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=1e-2,
    amsgrad=False,
    decay="lr",
):
    rate = A.number(weight_decay) * A.number(lr) if decay == "lr" else A.number(weight_decay)
    p = p * A.round(1 - rate)
    return _adam_moments(A, p, g, m, v, v_max, step, lr=lr, betas=betas, eps=eps, amsgrad=amsgrad)


def rmsprop_update(
    A, p, g, s, b, a, step, *, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, centered=False
):
    g = _l2(A, p, g, weight_decay)
    lr, alpha = A.number(lr), A.number(alpha)
    s = A.fma(A.round(1 - alpha) * g, g, A.round(alpha) * s)
    variance = s
    if centered:
        a = A.fma(A.round(1 - alpha), g - a, a)
        variance = A.maximum(A.fma(-a, a, s), A.round(A.number(0.0)))
    update = g / (A.sqrt(variance) + A.round(A.number(eps)))
    if momentum:
        b = A.fma(A.round(A.number(momentum)), b, update)
        update = b
    return A.fma(A.round(-lr), update, p), s, b, a


def adagrad_update(A, p, g, s, step, *, lr=1e-2, lr_decay=0.0, weight_decay=0.0, eps=1e-10):
    g = _l2(A, p, g, weight_decay)
    s = A.fma(g, g, s)
    rate = A.round(-A.number(lr) / (1 + (step - 1) * A.number(lr_decay)))
    return A.fma(rate, g / (A.sqrt(s) + A.round(A.number(eps))), p), s


def sgd_update(
    A, p, g, b, step, *, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, form="torch"
):
    g = _l2(A, p, g, weight_decay)
    lr = A.number(lr)
    if not momentum:
        return A.fma(A.round(-lr), g, p), None
    mu, undamped = A.round(A.number(momentum)), 1 - A.number(dampening)
    if form == "classical":
        b = A.fma(mu, b, A.round(-lr * undamped) * g)
        return p + (A.fma(mu, b, A.round(-lr) * g) if nesterov else b), b
    b = g if step == 1 else A.fma(mu, b, A.round(undamped) * g)
    return A.fma(A.round(-lr), A.fma(mu, b, g) if nesterov else b, p), b


def _adamw_as_torch(options: Options) -> Options:
    options = dict(options)
    if options.pop("decay", "lr") == "independent":
        options["weight_decay"] /= options["lr"]
    return options


def _sgd_as_torch(options: Options) -> Options | None:
    options = dict(options)
    classical = options.pop("form", "torch") == "classical"
    # torch's first step is not dampened, the classical one is: no constant factor between them then.
    return None if classical and options.get("dampening") else options


ADAM_STATES = (
    State("exp_avgs", "exp_avg"),
    State("exp_avg_sqs", "exp_avg_sq", non_negative=True),
    State("max_exp_avg_sqs", "max_exp_avg_sq", needed_by="amsgrad", non_negative=True),
)

OPTIMIZERS = (
    Optimizer(
        "adamw",
        "AdamW",
        adamw_update,
        ADAM_STATES,
        settings=(
            {},
            {"lr": 0.03},
            {"betas": (0.5, 0.75)},
            {"betas": (0.0, 0.0)},
            {"eps": 1e-2},
            {"weight_decay": 0.0},
            {"weight_decay": 0.3},
            {"amsgrad": True},
            {"maximize": True},
            # Powers of two: torch gets weight_decay / lr, exactly.
            {"lr": 2**-5, "weight_decay": 1e-3, "decay": "independent"},
            {
                "lr": 0.3,
                "betas": (0.8, 0.95),
                "eps": 1e-3,
                "weight_decay": 0.5,
                "amsgrad": True,
                "maximize": True,
            },
            {"lr": 2**-3, "betas": (0.95, 0.98), "eps": 0.0, "weight_decay": 0.02, "amsgrad": True}
            | {"maximize": True, "decay": "independent"},
        ),
        torch_options=_adamw_as_torch,
    ),
    Optimizer(
        "adam",
        "Adam",
        adam_update,
        ADAM_STATES,
        settings=(
            {},
            {"lr": 0.03},
            {"betas": (0.5, 0.75)},
            {"eps": 1e-2},
            {"weight_decay": 0.3},
            {"amsgrad": True},
            {"maximize": True},
            {
                "lr": 0.3,
                "betas": (0.8, 0.95),
                "eps": 1e-3,
                "weight_decay": 0.5,
                "amsgrad": True,
                "maximize": True,
            },
        ),
    ),
    Optimizer(
        "rmsprop",
        "RMSprop",
        rmsprop_update,
        (
            State("square_avgs", "square_avg", non_negative=True),
            State("momentum_buffers", "momentum_buffer", needed_by="momentum"),
            State("grad_avgs", "grad_avg", needed_by="centered"),
        ),
        settings=(
            {},
            {"lr": 0.03},
            {"alpha": 0.7},
            {"eps": 1e-2},
            {"weight_decay": 0.3},
            {"momentum": 0.9},
            {"centered": True},
            {"maximize": True},
            {"momentum": 0.5, "centered": True},
            {"lr": 0.2, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.1, "momentum": 0.8}
            | {"centered": True, "maximize": True},
        ),
    ),
    Optimizer(
        "adagrad",
        "Adagrad",
        adagrad_update,
        (State("state_sums", "sum", non_negative=True, initial_option="initial_accumulator_value"),),
        settings=(
            {},
            {"lr": 0.3},
            {"lr_decay": 0.1},
            {"weight_decay": 0.3},
            {"eps": 1e-2},
            {"maximize": True},
            {"initial_accumulator_value": 0.1},
            {"lr": 0.5, "lr_decay": 0.02, "weight_decay": 0.1, "eps": 1e-3, "maximize": True}
            | {"initial_accumulator_value": 2.0},
        ),
    ),
    Optimizer(
        "sgd",
        "SGD",
        sgd_update,
        (State("momentum_buffers", "momentum_buffer", needed_by="momentum"),),
        settings=(
            {},
            {"lr": 0.3},
            {"weight_decay": 0.3},
            {"maximize": True},
            {"momentum": 0.9},
            {"momentum": 0.9, "dampening": 0.4},
            {"momentum": 0.9, "nesterov": True},
            {"momentum": 0.9, "form": "classical"},
            {"momentum": 0.9, "dampening": 0.4, "form": "classical"},
            {"momentum": 0.9, "nesterov": True, "form": "classical"},
            {"lr": 0.2, "weight_decay": 0.1, "momentum": 0.7, "dampening": -0.5, "maximize": True},
            {"lr": 0.2, "weight_decay": 0.1, "momentum": 0.7, "nesterov": True, "maximize": True},
            {"lr": 0.2, "weight_decay": 0.1, "momentum": 0.7, "nesterov": True, "maximize": True}
            | {"form": "classical"},
        ),
        torch_options=_sgd_as_torch,
    ),
)

BY_NAME = {optimizer.name: optimizer for optimizer in OPTIMIZERS}


def describe(options: Options) -> str:
    """A test id: "lr=0.3,maximize=True"."""
    return ",".join(f"{key}={value}".replace(" ", "") for key, value in options.items()) or "defaults"


def _settings(pairs: list[tuple[Optimizer, Options]]) -> dict[str, Any]:
    return {
        "argvalues": pairs,
        "ids": [f"{optimizer.name}-{describe(options)}" for optimizer, options in pairs],
    }


# (optimizer, one of its settings), every pair: for pytest.mark.parametrize("optimizer, options", **SETTINGS)
_PAIRS = [(optimizer, options) for optimizer in OPTIMIZERS for options in optimizer.settings]
SETTINGS = _settings(_PAIRS)
SETTINGS_TORCH_HAS = _settings([pair for pair in _PAIRS if pair[0].torch_options(pair[1]) is not None])

# Clipping, as it is folded into every optimizer. The test's gradients have norms well above 1 and elements
# above 0.5.
CLIPPINGS: tuple[Options, ...] = (
    {"max_grad_norm": 1.0},
    {"max_grad_norm": 1e6},  # does not bite
    {"max_grad_norm": 1.0, "norm_type": 1},
    {"max_grad_norm": 0.5, "norm_type": math.inf},
    {"max_grad_norm": 1.0, "clip_factor": 0.125},
    {"max_grad_norm": 1e6, "clip_factor": 0.125},
    {"max_grad_value": 0.5},
    {"grad_scale": 1000.0},
    {"max_grad_norm": 1.0, "grad_scale": 0.1, "on_nonfinite": "raise"},
    {"max_grad_value": 0.5, "grad_scale": 3.0, "on_nonfinite": "skip"},
)

SLICE = 16384  # elements of one unit of work: the partition of the norm and of the threads
# 0, 1, odd, and one below, at and above every vector width (4 to 16 lanes, 32 in the norm) and the slice.
SMALL_SIZES = (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127)
SIZES = (*SMALL_SIZES, SLICE - 1, SLICE, SLICE + 1)

# (dtype of parameter and states, dtype of the gradient)
DTYPES = (("float32", "float32"), ("float64", "float64"), ("float32", "bfloat16"), ("float32", "float16"))


# Layouts: each gives a view with the values of an array of one dimension or more, laid out in memory of its
# own. What lies between the elements is 77: writing there shows in `view.base`.
def _contiguous(values: np.ndarray) -> np.ndarray:
    return values.copy()


def _transposed(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values.T).T


def _strided(values: np.ndarray) -> np.ndarray:
    buffer = np.full((*values.shape[:-1], 2 * values.shape[-1] + 1), 77, values.dtype)
    buffer[..., : 2 * values.shape[-1] : 2] = values
    return buffer[..., : 2 * values.shape[-1] : 2]


def _column(values: np.ndarray) -> np.ndarray:
    buffer = np.full((*values.shape, 3), 77, values.dtype)
    buffer[..., 1] = values
    return buffer[..., 1]


def _rows(values: np.ndarray) -> np.ndarray:
    buffer = np.full((*values.shape[:-1], values.shape[-1] + 3), 77, values.dtype)
    buffer[..., : values.shape[-1]] = values
    return buffer[..., : values.shape[-1]]


def _reversed(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values[..., ::-1])[..., ::-1]


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "contiguous": _contiguous,
    "transposed": _transposed,
    "strided": _strided,
    "column": _column,
    "rows": _rows,
    "reversed": _reversed,  # NumPy only: torch has no negative strides
}


def lay_out(layout: str, values: np.ndarray) -> np.ndarray:
    return LAYOUTS[layout](values) if values.ndim else values.copy()


TORCH_LAYOUTS = tuple(name for name in LAYOUTS if name != "reversed")
# () is 0-dim; the last crosses a slice in every layout
LAYOUT_SHAPES = ((), (1,), (13,), (1, 5), (5, 1), (4, 6), (3, 1, 7), (2, 3, 4, 5), (0, 3), (131, 127))
