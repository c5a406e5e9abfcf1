from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def short_samples(monkeypatch):
    """The sample that ends a run takes longer than these runs take to train."""
    monkeypatch.setattr("fusestep.cli.train.SAMPLE_BYTES", 16)
