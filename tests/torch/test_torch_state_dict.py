"""Checkpoints: state_dict exchanged with torch.optim in both directions in mid-run, and old ones."""

from __future__ import annotations

import copy
import io

import cases
import fusestep.optim
import pytest
import torch
from torch_pairs import (
    COMMON,
    STEPS,
    assert_as_exact_as_torch,
    assert_same_bits,
    make_params,
    ours,
    snapshot,
    theirs,
    train,
)

MIDDLE = 4
# every state that torch has, at least once
SHARED = {
    "argvalues": [
        (row, setting)
        for row in cases.OPTIMIZERS
        for setting in row.settings
        if row.torch_options(dict(setting)) == setting
    ],
    "ids": [
        f"{row.name}-{cases.describe(setting)}"
        for row in cases.OPTIMIZERS
        for setting in row.settings
        if row.torch_options(dict(setting)) == setting
    ],
}


def describe(state_dict):
    """Everything about a state_dict but the values of the tensors."""
    groups = [{k: v for k, v in g.items() if k not in ("decay", "form")} for g in state_dict["param_groups"]]
    state = {
        i: [(key, v.dtype, v.shape, v.stride() if v.numel() else None, v.device) for key, v in kept.items()]
        for i, kept in state_dict["state"].items()
    }
    return {**state_dict, "param_groups": groups, "state": state}


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("row, options", **SHARED)
def test_keys_shapes_and_dtypes_are_torchs(row, options, steps):
    described = []
    for cls in (ours(row), theirs(row)):
        params = make_params()
        optimizer = cls([{"params": params[:2]}, {"params": params[2:], "lr": 0.5}], **options)
        train(optimizer, params, range(1, steps + 1))
        described.append(describe(optimizer.state_dict()))
    assert described[0] == described[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("row, options", **COMMON)
def test_loading_keeps_the_bits(row, options, dtype):
    for source, target in ((ours(row), theirs(row)), (theirs(row), ours(row))):
        params = make_params(dtype)
        optimizer = source(params, **options)
        train(optimizer, params, range(1, 4))
        loaded = target(params)
        loaded.load_state_dict(optimizer.state_dict())
        assert_same_bits(snapshot(loaded, params), snapshot(optimizer, params))
        assert describe(loaded.state_dict()) == describe(optimizer.state_dict())
        back = source(params)
        back.load_state_dict(loaded.state_dict())
        assert describe(back.state_dict()) == describe(optimizer.state_dict())


@pytest.mark.parametrize("row, options", **SHARED)
def test_changing_horses_in_mid_run(row, options):
    """torch all the way is the measure; half a run with each, in both orders, must be as exact."""
    options = {"lr": 0.01, **options}

    def run(first, second, dtype):
        params = make_params(dtype)
        optimizer = first(params, **options)
        train(optimizer, params, range(1, MIDDLE))
        saved = copy.deepcopy(optimizer.state_dict())
        optimizer = second(params)  # the options come with the checkpoint
        optimizer.load_state_dict(saved)
        train(optimizer, params, range(MIDDLE, STEPS + 1))
        return snapshot(optimizer, params)

    a, b = ours(row), theirs(row)
    torch32, torch64 = (run(b, b, dtype) for dtype in (torch.float32, torch.float64))
    for first, second in ((a, b), (b, a)):
        mixed32, mixed64 = (run(first, second, dtype) for dtype in (torch.float32, torch.float64))
        assert_as_exact_as_torch(mixed32, torch32, mixed64, torch64)


@pytest.mark.parametrize(
    ("row", "options"), [(row, setting) for row in cases.OPTIMIZERS for setting in row.settings[-1:]]
)
def test_a_file_goes_on_bit_for_bit(row, options):
    params = make_params()
    optimizer = ours(row)(params, **options)
    train(optimizer, params, range(1, MIDDLE))
    file = io.BytesIO()
    torch.save({"params": params, "optimizer": optimizer.state_dict()}, file)
    train(optimizer, params, range(MIDDLE, STEPS + 1))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = ours(row)(saved["params"])
    resumed.load_state_dict(saved["optimizer"])
    train(resumed, saved["params"], range(MIDDLE, STEPS + 1))
    assert_same_bits(snapshot(resumed, saved["params"]), snapshot(optimizer, params))


@pytest.mark.parametrize("flag", [{"foreach": True}, {"fused": True}, {"capturable": True}])
def test_flags_of_torchs_checkpoint_do_not_matter(flag):
    """A checkpoint of a run on another device may hold any of these; it goes on here, and keeps them."""
    params = make_params()
    source = torch.optim.AdamW(params)
    train(source, params, range(1, MIDDLE))
    saved = source.state_dict()
    saved["param_groups"][0].update(flag)
    optimizer = fusestep.optim.AdamW(params)
    optimizer.load_state_dict(saved)
    train(optimizer, params, range(MIDDLE, STEPS))
    ((name, value),) = flag.items()
    assert optimizer.state_dict()["param_groups"][0][name] is value
    assert optimizer.state[params[0]]["step"].item() == STEPS - 1


@pytest.mark.parametrize(("row", "option"), [("adamw", {"decay": "independent"}), ("sgd", {"form": "classical"})])
def test_our_options_survive_torchs_checkpoint(row, option):
    row = cases.BY_NAME[row]
    params = make_params()
    saved = theirs(row)(params).state_dict()
    plain, built = ours(row)(params), ours(row)(params, **option)
    ((name, value),) = option.items()
    for optimizer, expected in ((plain, plain.defaults[name]), (built, value)):
        optimizer.load_state_dict(saved)
        assert optimizer.param_groups[0][name] == expected
    plain.load_state_dict(built.state_dict())
    assert plain.param_groups[0][name] == value


@pytest.mark.parametrize("row, options", **COMMON)
def test_checkpoints_of_old_torch_releases(row, options):
    """Step counts that are numbers, and groups that lack the options of later releases."""
    params = make_params()
    source = theirs(row)(params, **options)
    train(source, params, range(1, MIDDLE))
    expected = snapshot(source, params)
    saved = copy.deepcopy(source.state_dict())
    old = {"params", *options}
    saved["param_groups"] = [{k: v for k, v in g.items() if k in old} for g in saved["param_groups"]]
    for kept in saved["state"].values():
        if "step" in kept:
            kept["step"] = int(kept["step"])
    optimizer = ours(row)(params, **options)
    optimizer.load_state_dict(saved)
    assert_same_bits(snapshot(optimizer, params), expected)
    assert describe(optimizer.state_dict()) == describe(source.state_dict())
    train(optimizer, params, range(MIDDLE, STEPS))


def test_momentum_buffers_of_none():
    """torch 1.x stored None before the first step with momentum."""
    params = make_params()
    optimizer = fusestep.optim.SGD(params, momentum=0.9)
    saved = optimizer.state_dict()
    saved["state"] = {i: {"momentum_buffer": None} for i in range(len(params))}
    optimizer.load_state_dict(saved)
    train(optimizer, params, range(1, 2))
    for p in params:
        assert torch.equal(optimizer.state[p]["momentum_buffer"], p.grad)


def test_float64_step_counts():
    """torch makes them under a default dtype of float64."""
    params = make_params()
    optimizer = fusestep.optim.AdamW(params)
    train(optimizer, params, range(1, MIDDLE))
    saved = copy.deepcopy(optimizer.state_dict())
    for kept in saved["state"].values():
        kept["step"] = kept["step"].double()
    train(optimizer, params, range(MIDDLE, STEPS))
    expected = [p.detach().clone() for p in params]

    params = make_params()
    resumed = fusestep.optim.AdamW(params)
    train(resumed, params, range(1, MIDDLE))
    resumed.load_state_dict(saved)
    train(resumed, params, range(MIDDLE, STEPS))
    assert all(torch.equal(p, e) for p, e in zip(params, expected, strict=True))
    assert resumed.state[params[0]]["step"].dtype == torch.float64
    assert resumed.state[params[0]]["step"].item() == STEPS - 1


def test_wrong_checkpoints():
    params = make_params()
    optimizer = fusestep.optim.AdamW(params)
    train(optimizer, params, range(1, 2))
    with pytest.raises(ValueError, match="doesn't match the size"):
        fusestep.optim.AdamW(params[:2]).load_state_dict(optimizer.state_dict())
    other = fusestep.optim.RMSprop(params)
    before = [p.detach().clone() for p in params]
    other.load_state_dict(optimizer.state_dict())
    other.param_groups[0].update(alpha=0.99, momentum=0, centered=False)
    with pytest.raises(
        ValueError, match=r"RMSprop\.step: state of a parameter .*: expected the keys step, square_avg, got"
    ):
        other.step()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))


def test_hooks_of_state_dict():
    params = make_params()
    optimizer = fusestep.optim.AdamW(params)
    seen = []
    optimizer.register_state_dict_pre_hook(lambda o: seen.append("save"))
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append("load"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["save", "load"]


def test_the_helpers_of_checkpoints_leave_parameters_alone():
    """They make the state by a step of zero gradients at a zero rate, which an independent decay would not survive."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    for decay in ("lr", "independent"):
        model = torch.nn.Linear(3, 2)
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = fusestep.optim.AdamW(model.parameters(), decay=decay, weight_decay=0.5)
        saved = get_optimizer_state_dict(model, optimizer)
        assert saved["state"]["weight"]["exp_avg"].shape == (2, 3)
        assert optimizer.param_groups[0]["weight_decay"] == 0.5
        for p, value in zip(model.parameters(), before, strict=True):
            assert torch.equal(p.detach(), value)
        # A first step at a zero rate, as of a warm-up, decays as it always did.
        fresh = fusestep.optim.AdamW(model.parameters(), lr=0.0, decay=decay, weight_decay=0.5)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        fresh.step()
        factor = 0.5 if decay == "independent" else 1.0
        for p, value in zip(model.parameters(), before, strict=True):
            assert torch.equal(p.detach(), factor * value)
