"""A pytest plugin that runs one test of so many: `-p one_of --one-of 4`.

A test is chosen by its name, so that the same ones run everywhere, and no order of parameters decides which.
"""

from __future__ import annotations

import zlib


def pytest_addoption(parser):
    parser.addoption("--one-of", type=int, default=1, help="run one test of so many, chosen by its name")


def pytest_collection_modifyitems(config, items):
    one_of = config.getoption("--one-of")
    left_out = [item for item in items if zlib.crc32(item.nodeid.encode()) % one_of]
    items[:] = [item for item in items if item not in set(left_out)]
    config.hook.pytest_deselected(items=left_out)
