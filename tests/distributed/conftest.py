from __future__ import annotations

import pytest
from worlds import World

SIZES = [2, pytest.param(4, marks=pytest.mark.exhaustive)]


@pytest.fixture(scope="module", params=SIZES, ids=lambda size: f"{size} processes")
def world(request):
    with World(request.param) as world:
        yield world
