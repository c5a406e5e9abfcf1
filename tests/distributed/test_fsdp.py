"""FSDP2, HSDP and tensor parallelism: whole models, and their state dicts."""

from __future__ import annotations

import cases
import fsdp_checks as checks
import pytest
from torch_pairs import common_setting

ROWS = [pytest.param(row.name, common_setting(row), id=row.name) for row in cases.OPTIMIZERS]


@pytest.mark.parametrize("layout", ["shards", "tensor parallel"])
@pytest.mark.parametrize(("name", "options"), ROWS)
def test_trains_as_a_single_process(world, name, options, layout):
    world.run(checks.trains_as_a_single_process, name, options, layout)


@pytest.mark.parametrize("layout", ["replicas", "offload"])
def test_other_layouts(world, layout):
    world.run(checks.trains_as_a_single_process, "adamw", common_setting(cases.BY_NAME["adamw"]), layout)


@pytest.mark.parametrize(("name", "options"), ROWS)
def test_states_are_exchanged(world, name, options):
    world.run(checks.states_are_exchanged, name, options)
