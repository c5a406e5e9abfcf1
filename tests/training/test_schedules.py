"""Each schedule at the steps where it changes its mind, against its formula written out."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys

import pytest
from fusestep.schedules import (
    Constant,
    ExponentialWarmup,
    InverseSqrt,
    LinearWarmup,
    WarmupCosine,
    linear_scaling_rule,
    steps_per_epoch,
)

# The formulas are evaluated in another order than in the package: a few roundings of a float64 apart.
ROUNDINGS = 8 * sys.float_info.epsilon


def close(expected: float) -> object:
    return pytest.approx(expected, rel=ROUNDINGS, abs=0.0)


def test_constant():
    assert [Constant(0.3)(step) for step in (0, 1, 10**9)] == [0.3, 0.3, 0.3]


def test_linear_warmup_is_the_usual_loop():
    initial_lr, peak_lr, warmup_steps = 0.0001, 0.01, 20
    increment = (peak_lr - initial_lr) / warmup_steps
    schedule = LinearWarmup(peak_lr, warmup_steps, initial_lr)
    for global_step in range(40):
        lr = initial_lr + global_step * increment if global_step < warmup_steps else peak_lr
        assert schedule(global_step) == close(lr)
    assert schedule(0) == initial_lr  # the first update is not lost
    assert schedule(19) < peak_lr
    assert schedule(20) == peak_lr


def test_linear_warmup_halfway():
    assert LinearWarmup(1e-4, 1000, 1e-7)(500) == close(1e-7 + (1e-4 - 1e-7) * 0.5)


def test_exponential_warmup_grows_by_equal_factors():
    schedule = ExponentialWarmup(1e-2, 4, 1e-4)
    factor = 100 ** (1 / 4)
    for step in range(4):
        assert schedule(step) == close(1e-4 * factor**step)
    assert schedule(4) == schedule(1000) == 1e-2


def test_cosine_after_the_warmup_is_the_usual_loop():
    initial_lr, peak_lr, min_lr, warmup_steps, total_steps = 3e-5, 1e-3, 1e-6, 10, 110
    schedule = WarmupCosine(peak_lr, warmup_steps, total_steps, initial_lr, min_lr)
    for global_step in range(total_steps):
        if global_step < warmup_steps:
            lr = initial_lr + global_step * (peak_lr - initial_lr) / warmup_steps
        else:
            progress = (global_step - warmup_steps) / (total_steps - warmup_steps)
            lr = min_lr + (peak_lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
        assert schedule(global_step) == close(lr)
    assert schedule(0) == initial_lr
    assert schedule(warmup_steps) == close(peak_lr)
    assert schedule((warmup_steps + total_steps) // 2) == close((peak_lr + min_lr) / 2)
    assert schedule(total_steps - 1) > min_lr  # the last update still moves


def test_cosine_stays_at_the_minimum_after_the_end():
    schedule = WarmupCosine(1.0, 0, 10, min_lr=0.25)
    assert schedule(0) == 1.0
    assert [schedule(step) for step in (10, 11, 20, 1000)] == [0.25] * 4


def test_inverse_sqrt_is_the_formula_with_s_from_one():
    scale, warmup_steps = 0.7, 100
    schedule = InverseSqrt(scale, warmup_steps)
    for step in range(400):
        s = step + 1
        assert schedule(step) == close(scale * min(1 / math.sqrt(s), s / warmup_steps**1.5))
    peak = max(range(400), key=schedule)
    assert peak + 1 == warmup_steps
    assert schedule(peak) == close(scale / math.sqrt(warmup_steps))


def test_inverse_sqrt_from_its_peak():
    schedule = InverseSqrt.from_peak(2e-3, 50)
    assert max(schedule(step) for step in range(200)) == close(2e-3)


def test_no_warmup_begins_at_the_peak():
    assert LinearWarmup(0.5, 0)(0) == 0.5
    assert ExponentialWarmup(0.5, 0, 0.1)(0) == 0.5
    assert WarmupCosine(0.5, 0, 10)(0) == 0.5


SCHEDULES = [
    Constant(1.0),
    LinearWarmup(1.0, 3),
    ExponentialWarmup(1.0, 3, 0.1),
    WarmupCosine(1.0, 3, 9),
    InverseSqrt(1.0, 3),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_is_a_value(schedule):
    copy = pickle.loads(pickle.dumps(schedule))
    assert copy == schedule
    assert repr(copy) == repr(schedule)
    assert all(isinstance(schedule(step), float) and schedule(step) >= 0.0 for step in range(20))


@pytest.mark.parametrize(
    ("make", "argument", "error"),
    [
        (lambda: Constant(0.0), "Constant: lr", ValueError),
        (lambda: Constant(math.nan), "Constant: lr", ValueError),
        (lambda: Constant("fast"), "Constant: lr", TypeError),
        (lambda: LinearWarmup(-1.0, 3), "LinearWarmup: peak_lr", ValueError),
        (lambda: LinearWarmup(1.0, -1), "LinearWarmup: warmup_steps", ValueError),
        (lambda: LinearWarmup(1.0, 2.5), "LinearWarmup: warmup_steps", TypeError),
        (lambda: LinearWarmup(1.0, 3, 2.0), "LinearWarmup: initial_lr", ValueError),
        (lambda: ExponentialWarmup(1.0, 3, 0.0), "ExponentialWarmup: initial_lr", ValueError),
        (lambda: WarmupCosine(1.0, 3, 3), "WarmupCosine: total_steps", ValueError),
        (lambda: WarmupCosine(1.0, 3, 9, min_lr=2.0), "WarmupCosine: min_lr", ValueError),
        (lambda: WarmupCosine(math.inf, 3, 9), "WarmupCosine: peak_lr", ValueError),
        (lambda: InverseSqrt(1.0, 0), "InverseSqrt: warmup_steps", ValueError),
        (lambda: InverseSqrt.from_peak(1.0, True), "InverseSqrt: warmup_steps", TypeError),
    ],
)
def test_wrong_values_are_refused(make, argument, error):
    with pytest.raises(error, match=rf"^{argument}: expected .*, got "):
        make()


def test_needs_no_torch():
    program = "import sys, fusestep.schedules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_linear_scaling_rule():
    assert linear_scaling_rule(0.1, batch_size=8192, base_batch_size=256) == 3.2
    assert linear_scaling_rule(0.1, batch_size=64, base_batch_size=256) == 0.025
    with pytest.raises(ValueError, match=r"linear_scaling_rule: lr: expected a finite number > 0, got 0"):
        linear_scaling_rule(0, 8, 8)
    with pytest.raises(ValueError, match=r"linear_scaling_rule: batch_size: expected an integer >= 1, got 0"):
        linear_scaling_rule(0.1, 0, 8)
    with pytest.raises(TypeError, match=r"linear_scaling_rule: base_batch_size: expected an integer, got 8.0"):
        linear_scaling_rule(0.1, 8, 8.0)


@pytest.mark.parametrize("drop_last", [False, True])
def test_steps_per_epoch_counts_batches(drop_last):
    for samples in (0, 1, 31, 32, 33, 64):
        starts = range(0, samples, 32)
        whole = [start for start in starts if start + 32 <= samples]
        assert steps_per_epoch(samples, 32, drop_last=drop_last) == len(whole if drop_last else starts)
    with pytest.raises(ValueError, match=r"steps_per_epoch: samples: expected an integer >= 0, got -1"):
        steps_per_epoch(-1, 32, drop_last=drop_last)
    with pytest.raises(ValueError, match=r"steps_per_epoch: batch_size: expected an integer >= 1, got 0"):
        steps_per_epoch(10, 0, drop_last=drop_last)
