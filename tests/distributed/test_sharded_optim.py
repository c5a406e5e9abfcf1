"""fusestep.optim over DTensors: the same as in a single process."""

from __future__ import annotations

import math

import cases
import pytest
import sharded_checks as checks
import torch
from torch_pairs import common_setting

ROWS = [pytest.param(row.name, common_setting(row), id=row.name) for row in cases.OPTIMIZERS]
CLIPPINGS = (
    {},
    {"max_grad_norm": 1.0},
    {"max_grad_norm": 1.0, "norm_type": 1},
    {"max_grad_norm": 0.5, "norm_type": math.inf},
    {"max_grad_norm": 1.0, "clip_factor": 0.25, "rewrite_grads": True},
    {"max_grad_value": 0.25},
)


@pytest.mark.parametrize("clipping", CLIPPINGS, ids=cases.describe)
@pytest.mark.parametrize(("name", "options"), ROWS)
def test_the_bits_of_a_single_process(world, name, options, clipping):
    world.run(checks.equals_a_single_process, name, options, clipping)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "options"), ROWS)
def test_other_dtypes(world, name, options, dtype):
    world.run(checks.equals_a_single_process, name, options, {"max_grad_norm": 1.0}, dtype)


@pytest.mark.parametrize(("name", "options"), ROWS)
def test_partial_gradients(world, name, options):
    world.run(checks.partial_gradients, name, options)


@pytest.mark.parametrize("on_nonfinite", ["skip", "raise"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_all_processes_skip_or_none(world, bad, on_nonfinite):
    world.run(checks.one_bad_element, bad, on_nonfinite)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("name", "options"), ROWS)
def test_stochastic_rounding_does_not_depend_on_the_number_of_processes(world, name, options, dtype):
    world.run(checks.rounds_as_a_single_process, name, options, dtype)


@pytest.mark.parametrize("extras", [{"rounding": "kahan"}, {"master_weights": True}], ids=cases.describe)
def test_other_roundings(world, extras):
    world.run(checks.equals_a_single_process, "adamw", {}, extras | {"max_grad_norm": 1.0}, torch.bfloat16)


def test_positions(world):
    world.run(checks.positions_are_those_of_the_whole)


@pytest.mark.parametrize("norm_type", [1, 2, math.inf])
def test_norms(world, norm_type):
    world.run(checks.norms_of_the_whole, norm_type)


def test_clip_values(world):
    world.run(checks.clip_values)


@pytest.mark.parametrize("clipping", [{}, {"max_grad_norm": 1.0}], ids=cases.describe)
def test_grad_scaler(world, clipping):
    world.run(checks.grad_scaler, clipping)


def test_bad_input(world):
    world.run(checks.refusals)


def test_different_gradients(world):
    world.run(checks.different_gradients)


def test_nowhere_a_gradient(world):
    world.run(checks.nowhere_a_gradient)
