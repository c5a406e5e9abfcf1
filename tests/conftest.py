"""What every test may use."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest

# The same examples in every run: a failure on one machine is a failure on all.
hypothesis.settings.register_profile("fusestep", derandomize=True, deadline=None, max_examples=60)
hypothesis.settings.load_profile("fusestep")


def pytest_collection_modifyitems(items):
    """Slow tests first: at the end of a parallel run one worker alone would be left with them."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture
def rng():
    return np.random.default_rng(20240229)


@pytest.fixture
def threads():
    """fusestep.set_num_threads; automatic again when the test ends."""
    import fusestep

    yield fusestep.set_num_threads
    fusestep.set_num_threads(0)
