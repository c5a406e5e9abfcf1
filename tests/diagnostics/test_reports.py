"""What all reports have: JSON, a summary, a picture."""

from __future__ import annotations

import json
import math
import sys

import pytest
import small_runs
import torch
from fusestep import optim
from fusestep.diagnostics import (
    block_jacobians,
    check_module,
    dead_units,
    gradient_health,
    layer_variances,
    model_health,
    overfit_one_batch,
    rate_range,
)
from small_runs import one_thread  # noqa: F401  # for every test of this file
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by forward mode itself


def reports():
    model = small_runs.model()
    batch = next(iter(small_runs.data()[0]))
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    yield check_module(model, batch, elements=1)
    yield overfit_one_batch(model, optimizer, batch, steps=5)
    yield model_health(model, batch, optimizer)
    yield gradient_health(model)  # no gradients
    yield layer_variances(model, batch)
    yield dead_units(model, batch[0])
    yield dead_units(nn.Linear(2, 2), torch.ones(1, 2))  # no rows
    yield block_jacobians(model, batch[0])
    yield rate_range(model, optimizer, [batch], steps=8)


def test_every_report_gives_json_a_summary_and_a_picture(tmp_path):
    for number, report in enumerate(reports()):
        content = json.loads(report.to_json())
        assert content == json.loads(json.dumps(report.to_dict()))
        assert report.summary()
        report.plot(tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")


def test_json_has_fields_properties_and_no_nan():
    model = nn.Linear(2, 2)
    (model(torch.ones(1, 2)).sum() * math.inf).backward()
    report = gradient_health(model)
    content = report.to_dict()
    assert "NaN" not in report.to_json()
    assert "Infinity" not in report.to_json()
    assert content["sick"] == {"not finite": [""]}
    assert content["exploding"] == 1e3
    assert content["rows"][0]["grad_norm"] is None
    assert content["rows"][0]["flag"] == "not finite"
    assert content["rows"][0]["param_norm"] == report[0].param_norm


def test_plots_say_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"plots of diagnostics need matplotlib: .*pip install 'fusestep\[train\]'"):
        gradient_health(nn.Linear(2, 2)).plot(tmp_path / "no.png")
