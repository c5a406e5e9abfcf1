"""fusestep.optim over DTensors: the same as in a single process."""

from __future__ import annotations

import math

import cases
import pytest
import sharded_checks as checks
import torch
from torch_pairs import common_setting
from worlds import World

ROWS = [pytest.param(row.name, common_setting(row), id=row.name) for row in cases.OPTIMIZERS]
CLIPPINGS = (
    {},
    {"max_grad_norm": 1.0},
    {"max_grad_norm": 1.0, "norm_type": 1},
    {"max_grad_norm": 0.5, "norm_type": math.inf},
    {"max_grad_norm": 1.0, "clip_factor": 0.25, "rewrite_grads": True},
    {"max_grad_value": 0.25},
)


@pytest.fixture(scope="module", params=[2, 4], ids=lambda size: f"{size} processes")
def world(request):
    with World(request.param) as world:
        yield world


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
