"""Learning-rate schedules: callables from a step to a rate; and the arithmetic of batches. Nothing here needs torch.

``schedule(step)`` is the rate of update number ``step``, **counted from 0**: the ``global_step`` of the usual
training loop, that is the number of updates already made. So a run of ``total_steps`` updates asks for the
steps 0, 1, ..., ``total_steps - 1``. What follows from it, since off-by-one is where schedules go wrong:

- a warm-up of ``warmup_steps`` covers steps 0 to ``warmup_steps - 1``: the first update runs at the initial rate
  itself (at zero it would move nothing), and step ``warmup_steps`` is the first one at the peak;
- the cosine reaches its minimum at ``step == total_steps``, one step after the last: the last update still moves,
  and a run that is continued beyond ``total_steps`` stays at the minimum instead of climbing up again;
- the inverse square root is written for s = 1, 2, ...: it divides by sqrt(s). Here s = ``step + 1``.

Each schedule is a frozen dataclass: it compares, prints and pickles by its values, and refuses wrong ones with a
``ValueError`` (a ``TypeError`` for what is not a number) when it is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fusestep._refusal import check_integer, check_number, refuse

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Constant:
    """The same rate at every step."""

    lr: float  # the rate, > 0

    def __post_init__(self) -> None:
        check_number("Constant", "lr", self.lr, 0.0, exclusive=True)

    def __call__(self, step: int) -> float:
        return self.lr


@dataclass(frozen=True)
class LinearWarmup:
    """From ``initial_lr`` to ``peak_lr`` in equal increments, then constant.

    lr(step) = initial_lr + (peak_lr - initial_lr) * step / warmup_steps   for step < warmup_steps, else peak_lr
    """

    peak_lr: float  # the rate after the warm-up, > 0
    warmup_steps: int  # updates below the peak; 0: none
    initial_lr: float = 0.0  # the rate of the first update; the first update is lost at 0

    def __post_init__(self) -> None:
        _check_warmup("LinearWarmup", self.peak_lr, self.warmup_steps, self.initial_lr)

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.initial_lr + (self.peak_lr - self.initial_lr) * (step / self.warmup_steps)
        return self.peak_lr


@dataclass(frozen=True)
class ExponentialWarmup:
    """From ``initial_lr`` to ``peak_lr`` by equal factors, then constant.

    lr(step) = initial_lr * (peak_lr / initial_lr)^(step / warmup_steps)   for step < warmup_steps, else peak_lr
    """

    peak_lr: float  # the rate after the warm-up, > 0
    warmup_steps: int  # updates below the peak; 0: none
    initial_lr: float  # the rate of the first update, > 0: nothing grows from 0 by factors

    def __post_init__(self) -> None:
        _check_warmup("ExponentialWarmup", self.peak_lr, self.warmup_steps, self.initial_lr)
        check_number("ExponentialWarmup", "initial_lr", self.initial_lr, 0.0, exclusive=True)

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.initial_lr * math.pow(self.peak_lr / self.initial_lr, step / self.warmup_steps)
        return self.peak_lr


@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up, then half a cosine from ``peak_lr`` down to ``min_lr``.

    lr(step) = min_lr + (peak_lr - min_lr) * (1 + cos(pi * progress)) / 2   from step = warmup_steps on, with
    progress = (step - warmup_steps) / (total_steps - warmup_steps), held at 1 from total_steps on.
    """

    peak_lr: float  # the highest rate, > 0
    warmup_steps: int  # updates below the peak; 0: none
    total_steps: int  # updates of the whole run, warm-up included; > warmup_steps
    initial_lr: float = 0.0  # the rate of the first update; the first update is lost at 0
    min_lr: float = 0.0  # the rate at and after total_steps

    def __post_init__(self) -> None:
        _check_warmup("WarmupCosine", self.peak_lr, self.warmup_steps, self.initial_lr)
        check_integer("WarmupCosine", "total_steps", self.total_steps, self.warmup_steps + 1)
        check_number("WarmupCosine", "min_lr", self.min_lr, 0.0)
        if self.min_lr > self.peak_lr:
            refuse("WarmupCosine", "min_lr", f"at most peak_lr = {self.peak_lr:g}", f"{self.min_lr:g}")

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.initial_lr + (self.peak_lr - self.initial_lr) * (step / self.warmup_steps)
        progress = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        return self.min_lr + (self.peak_lr - self.min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class InverseSqrt:
    """alpha(s) = scale * min(1 / sqrt(s), s / warmup_steps^(3/2)), with s = step + 1.

    Linear up to s = warmup_steps, where both branches meet at the peak, scale / sqrt(warmup_steps); then it
    decays. ``InverseSqrt.from_peak`` starts from the peak instead of the scale.
    """

    scale: float  # the factor C, > 0
    warmup_steps: int  # s_w, the s at the peak; >= 1

    def __post_init__(self) -> None:
        check_number("InverseSqrt", "scale", self.scale, 0.0, exclusive=True)
        check_integer("InverseSqrt", "warmup_steps", self.warmup_steps, 1)

    @classmethod
    def from_peak(cls, peak_lr: float, warmup_steps: int) -> InverseSqrt:
        """The schedule whose highest rate is ``peak_lr``: C = peak_lr * sqrt(s_w)."""
        check_number("InverseSqrt", "peak_lr", peak_lr, 0.0, exclusive=True)
        check_integer("InverseSqrt", "warmup_steps", warmup_steps, 1)
        return cls(peak_lr * math.sqrt(warmup_steps), warmup_steps)

    def __call__(self, step: int) -> float:
        s = step + 1
        return self.scale * min(1.0 / math.sqrt(s), s / math.pow(self.warmup_steps, 1.5))


def linear_scaling_rule(lr: float, batch_size: int, base_batch_size: int) -> float:
    """The rate for ``batch_size`` where ``lr`` suits ``base_batch_size``: lr * batch_size / base_batch_size.

    A batch k times as large makes one step of k, so the step is k times as long (Goyal et al., arXiv:1706.02677). It
    holds for SGD, with a warm-up, and up to a batch size that has to be found by trying.

    Sizes are those of a whole update: sequences a batch, times accumulated batches, times processes.
    Raises TypeError or ValueError, naming the argument, unless lr > 0 and both sizes are integers >= 1.
    """
    check_number("linear_scaling_rule", "lr", lr, 0.0, exclusive=True)
    check_integer("linear_scaling_rule", "batch_size", batch_size, 1)
    check_integer("linear_scaling_rule", "base_batch_size", base_batch_size, 1)
    return lr * batch_size / base_batch_size


def steps_per_epoch(samples: int, batch_size: int, *, drop_last: bool = False) -> int:
    """The s of N = b x s: updates in which each of N = ``samples`` is seen once, b = ``batch_size`` at a time.

    The last batch may be smaller; with ``drop_last`` (as torch's DataLoader has it) it is left out.
    Raises TypeError or ValueError, naming the argument, unless samples is an integer >= 0 and batch_size one >= 1.
    """
    check_integer("steps_per_epoch", "samples", samples, 0)
    check_integer("steps_per_epoch", "batch_size", batch_size, 1)
    return samples // batch_size if drop_last else -(-samples // batch_size)


def _check_warmup(name: str, peak_lr: float, warmup_steps: int, initial_lr: float) -> None:
    check_number(name, "peak_lr", peak_lr, 0.0, exclusive=True)
    check_integer(name, "warmup_steps", warmup_steps, 0)
    check_number(name, "initial_lr", initial_lr, 0.0)
    if initial_lr > peak_lr:
        refuse(name, "initial_lr", f"at most peak_lr = {peak_lr:g}", f"{initial_lr:g}")
