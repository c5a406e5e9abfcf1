"""fusestep.optim against torch.optim, and what torch.optim.Optimizer promises its users."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import pickle
import weakref

import cases
import exact
import fusestep.optim
import numpy as np
import pytest
import torch
from fusestep import _core
from torch.nn import Parameter
from torch_pairs import (
    COMMON,
    STEPS,
    assert_as_exact_as_torch,
    assert_same_bits,
    make_grads,
    make_params,
    ours,
    snapshot,
    theirs,
    train,
)

ROWS = {"argvalues": cases.OPTIMIZERS, "ids": [row.name for row in cases.OPTIMIZERS]}


# --- arguments ---


@pytest.mark.parametrize("row", **ROWS)
def test_arguments_are_torchs(row):
    expected = inspect.signature(theirs(row)).parameters
    got = inspect.signature(ours(row)).parameters
    shared = [(p.name, p.kind, p.default) for p in got.values() if p.name in expected]
    assert shared == [(p.name, p.kind, p.default) for p in expected.values()]
    extra = [p for p in got.values() if p.name not in expected]
    assert all(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in extra)


@pytest.mark.parametrize("row", **ROWS)
def test_defaults_are_the_kernels(row):
    signature = inspect.signature(ours(row)).parameters
    for name, default in _core.optimizers()[row.name]["options"].items():
        assert signature[name].default == default, name


@pytest.mark.parametrize("row", **ROWS)
def test_states_are_the_kernels(row):
    assert [state.name for state in row.states] == _core.optimizers()[row.name]["states"]
    assert [state.torch_name for state in row.states] == list(ours(row)._states)


@pytest.mark.parametrize("row", **ROWS)
def test_defaults_of_a_group_are_torchs(row):
    got, expected = ours(row)(make_params()), theirs(row)(make_params())
    assert got.defaults.keys() - expected.defaults.keys() <= {"decay", "form"}
    assert {key: got.defaults[key] for key in expected.defaults} == expected.defaults
    assert isinstance(got, torch.optim.Optimizer)


def test_positional_arguments():
    p = make_params()
    group = fusestep.optim.AdamW(p, 0.1, (0.5, 0.6), 1e-3, 0.2, True).param_groups[0]
    assert [group[k] for k in ("lr", "betas", "eps", "weight_decay", "amsgrad")] == [
        0.1,
        (0.5, 0.6),
        1e-3,
        0.2,
        True,
    ]
    group = fusestep.optim.RMSprop(p, 0.1, 0.5, 1e-3, 0.2, 0.3, True, False, None, True).param_groups[0]
    assert [group[k] for k in ("alpha", "momentum", "centered", "maximize")] == [0.5, 0.3, True, True]
    group = fusestep.optim.Adagrad(p, 0.1, 0.2, 0.3, 0.4, 1e-3, False).param_groups[0]
    assert [group[k] for k in ("lr_decay", "initial_accumulator_value", "foreach")] == [0.2, 0.4, False]
    group = fusestep.optim.SGD(p, 0.1, 0.2, 0.3, 0.4).param_groups[0]
    assert [group[k] for k in ("momentum", "dampening", "weight_decay")] == [0.2, 0.3, 0.4]


def test_repr_is_torchs():
    expected = repr(torch.optim.SGD(make_params(), lr=0.5)).splitlines()
    got = repr(fusestep.optim.SGD(make_params(), lr=0.5)).splitlines()
    assert [line for line in got if "form:" not in line] == expected


@pytest.mark.parametrize("row", **ROWS)
def test_foreach_and_fused_are_kept(row):
    flags = [name for name in ("foreach", "fused") if name in inspect.signature(theirs(row)).parameters]
    for flag in flags:
        assert ours(row)(make_params(), **{flag: True}).state_dict()["param_groups"][0][flag] is True


# --- the update ---


def two_groups(cls, params, options, convert=lambda options: options):
    """The second group has half the learning rate."""
    first, second = convert(dict(options)), convert({**options, "lr": options.get("lr", 0.01) / 2})
    return cls([{"params": params[:2]}, {"params": params[2:], **second}], **first)


@pytest.mark.parametrize("row, options", **cases.SETTINGS)
def test_agrees_with_torch(row, options):
    # decay="independent" and form="classical" are stated in torch's terms, at a constant rate
    as_torch = row.torch_options({"lr": 0.01, **options})
    if as_torch is None:
        pytest.skip("torch has no such form; the exact test below covers it")
    options = {"lr": 0.01, **options}
    results = []
    for dtype in (torch.float32, torch.float64):
        for cls, convert in ((ours(row), dict), (theirs(row), row.torch_options)):
            params = make_params(dtype)
            optimizer = two_groups(cls, params, options, convert)
            train(optimizer, params)
            result = snapshot(optimizer, params)
            if as_torch != options:  # then the buffers hold something else
                result = {name: value for name, value in result.items() if name.startswith("params")}
            results.append(result)
    assert_as_exact_as_torch(*results)


def as_arrays(params):
    return [p.detach().numpy().copy() for p in params]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("row, options", **cases.SETTINGS)
def test_exact_bits_with_gradients_that_come_and_go(row, options, dtype):
    """Every parameter counts its own steps: parameter i has no gradient in the steps that i + 2 divides."""
    A = exact.Ieee(dtype)
    params = make_params(getattr(torch, dtype))
    optimizer = ours(row)(params, **options)
    values = as_arrays(params)
    states = [row.initial_states(options, v.shape, dtype) for v in values]
    counts = [0] * len(params)
    for step in range(1, STEPS + 1):
        for i, (p, g) in enumerate(zip(params, make_grads(step, params), strict=True)):
            p.grad = None if step % (i + 2) == 0 else g
            if p.grad is not None:
                counts[i] += 1
                values[i], *states[i] = exact.step(
                    A, row.name, values[i], g.numpy(), states[i], counts[i], row.step_options(options)
                )
        optimizer.step()
    for i, p in enumerate(params):
        assert p.detach().numpy().tobytes() == values[i].astype(dtype).tobytes()
        state = optimizer.state.get(p, {})
        for declared, value in zip(row.states, states[i], strict=True):
            if declared in row.used_states(options):
                assert state[declared.torch_name].numpy().tobytes() == value.astype(dtype).tobytes()
        if row.name != "sgd":
            assert state["step"].item() == counts[i]


@pytest.mark.parametrize("row, options", **COMMON)
def test_state_has_torchs_layout(row, options):
    buffer = torch.randn(6, 8)
    leaves = [
        buffer.clone(),
        buffer.clone().t(),
        buffer.clone()[:, ::2],
        torch.randn(2, 3, 4).permute(2, 0, 1),
    ]
    results = []
    for cls in (ours(row), theirs(row)):
        params = [leaf.detach().requires_grad_() for leaf in leaves]
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer = cls(params, **options)
        optimizer.step()
        results.append([{k: (v.shape, v.dtype, v.stride()) for k, v in optimizer.state[p].items()} for p in params])
    assert results[0] == results[1]


@pytest.mark.parametrize("layout", cases.TORCH_LAYOUTS)
@pytest.mark.parametrize("row, options", **COMMON)
def test_layouts(row, options, layout):
    """Any layout is updated in place as a contiguous one is, and nothing between its elements."""
    rng = np.random.default_rng(3)
    values = [np.array(rng.normal(size=shape), "float32") for shape in cases.LAYOUT_SHAPES]
    grads = [[np.array(rng.normal(size=v.shape), "float32") for v in values] for _ in range(3)]
    results = []
    for params_layout, grads_layout in (
        ("contiguous", "contiguous"),
        (layout, "contiguous"),
        (layout, layout),
    ):
        arrays = [cases.lay_out(params_layout, v.copy()) for v in values]
        params = [torch.from_numpy(a).requires_grad_() for a in arrays]
        optimizer = ours(row)(params, **options)
        for step in grads:
            for p, g in zip(params, step, strict=True):
                p.grad = torch.from_numpy(cases.lay_out(grads_layout, g.copy()))
            optimizer.step()
        results.append(snapshot(optimizer, params))
        for array in arrays:
            if array.base is not None and array.base.size > array.size:
                assert np.count_nonzero(array.base == 77) == array.base.size - array.size
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("row, options", **COMMON)
def test_low_precision_gradients(row, options, dtype):
    results = []
    for grad_dtype in (torch.float32, dtype):
        params = make_params()
        optimizer = ours(row)(params, **options)
        for step in range(1, 4):
            for p, g in zip(params, make_grads(step, params), strict=True):
                p.grad_dtype = grad_dtype
                p.grad = g.to(dtype).to(grad_dtype)
            optimizer.step()
        results.append(snapshot(optimizer, params))
    assert_same_bits(results[1], results[0])


@pytest.mark.parametrize("row, options", **COMMON)
def test_zero_gradient_is_not_no_gradient(row, options):
    params = make_params()
    optimizer = ours(row)(params, **options)
    train(optimizer, params, range(1, 3))
    before = snapshot(optimizer, params)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)
    optimizer.step()
    assert_same_bits(snapshot(optimizer, params), before)
    train(optimizer, params, range(3, 4), before=lambda _: optimizer.zero_grad(set_to_none=False))
    assert all(p.grad is not None and not p.grad.any() for p in params)
    after = snapshot(optimizer, params)
    assert not torch.equal(after["params[0]"], before["params[0]"])  # by momentum and weight decay


# --- state between steps ---


@pytest.mark.parametrize("row, options", **COMMON)
def test_whatever_is_done_to_the_state_is_seen(row, options):
    """Keys in another order, replaced dicts and tensors, changed values: a step takes the state as it is."""
    plain, plain_params = ours(row)(params := make_params(), **options), params
    moved, moved_params = ours(row)(params := make_params(), **options), params
    for step in range(1, STEPS + 1):
        for optimizer, params in ((plain, plain_params), (moved, moved_params)):
            train(optimizer, params, range(step, step + 1))
        items = list(moved.state.items())
        if step == 2:
            for p, state in reversed(items):
                del moved.state[p]
                moved.state[p] = state
        elif step == 4:
            for p, state in items:
                moved.state[p] = {key: value.clone() for key, value in state.items()}
        elif step == 6:
            for _, state in items:
                for key, value in state.items():
                    state[key] = value.clone()
        elif step == 8:
            for optimizer in (plain, moved):
                for state in optimizer.state.values():
                    for value in state.values():
                        value.zero_()
    assert_same_bits(snapshot(moved, moved_params), snapshot(plain, plain_params))


@pytest.mark.parametrize("row, options", **COMMON)
def test_dropped_state_begins_anew(row, options):
    params = make_params()
    optimizer = ours(row)(params, **options)
    train(optimizer, params, range(1, 4))
    start = [p.detach().clone() for p in params]
    optimizer.state.clear()
    train(optimizer, params, range(4, 6))

    fresh = [Parameter(p) for p in start]
    again = ours(row)(fresh, **options)
    train(again, fresh, range(4, 6))
    assert_same_bits(snapshot(optimizer, params), snapshot(again, fresh))


def test_an_option_switched_on_later_begins_with_zeros():
    params = make_params()
    optimizer = fusestep.optim.RMSprop(params)
    train(optimizer, params, range(1, 4))
    expected = {p: optimizer.state[p]["square_avg"].clone() for p in params}
    optimizer.param_groups[0].update(momentum=0.9, centered=True, lr=0.0)
    train(optimizer, params, range(4, 5))
    for p, g in zip(params, make_grads(4, params), strict=True):
        state = optimizer.state[p]
        assert state["step"].item() == 4
        assert torch.equal(state["grad_avg"], torch.zeros_like(g).lerp(g, 1 - 0.99))
        assert state["momentum_buffer"].shape == p.shape
        assert not torch.equal(state["square_avg"], expected[p]) or not p.numel()


def test_parameters_are_not_kept_alive():
    params = make_params()
    optimizer = fusestep.optim.AdamW(params)
    train(optimizer, params)
    references = [weakref.ref(p) for p in params]
    del params, optimizer
    gc.collect()
    assert all(reference() is None for reference in references)


# --- autograd ---


@pytest.mark.parametrize("row, options", **COMMON)
def test_backward_through_an_updated_parameter_fails(row, options):
    p = Parameter(torch.ones(3))
    optimizer = ours(row)([p], **options)
    loss = (p * p).sum()
    loss.backward(retain_graph=True)
    versions = p._version, p.grad._version
    optimizer.step()
    assert p._version > versions[0]
    assert p.grad._version == versions[1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_rewritten_gradients_count_as_modified():
    p = Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = fusestep.optim.AdamW([p], max_grad_norm=0.1, rewrite_grads=True)
    version = p.grad._version
    optimizer.step()
    assert p.grad._version > version


@pytest.mark.parametrize("row, options", **COMMON)
def test_no_graph_is_recorded(row, options):
    params = make_params()
    optimizer = ours(row)(params, **options)
    train(optimizer, params, range(1, 3))
    for p in params:
        assert p.is_leaf
        assert p.requires_grad
        assert not any(value.requires_grad for value in optimizer.state.get(p, {}).values())


# --- copies ---


def by_pickle(value):
    return pickle.loads(pickle.dumps(value))


def by_torch_save(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle, by_torch_save])
@pytest.mark.parametrize("row, options", **COMMON)
def test_copies_go_on_bit_for_bit(row, options, duplicate):
    params = make_params()
    optimizer = ours(row)(params, **options, max_grad_norm=0.5, norm_type=1, rewrite_grads=True)
    train(optimizer, params, range(1, 4))
    optimizer.max_grad_norm = 0.25
    optimizer.skipped_steps = 3
    copied, copied_params = duplicate((optimizer, params))
    for name in ("max_grad_norm", "norm_type", "rewrite_grads", "grad_norm", "skipped_steps"):
        assert getattr(copied, name) == getattr(optimizer, name)
    assert copied.param_groups[0]["params"][0] is copied_params[0]
    train(optimizer, params, range(4, 6))
    train(copied, copied_params, range(4, 6))
    assert_same_bits(snapshot(copied, copied_params), snapshot(optimizer, params))


# --- the real thing ---


def test_a_model_learns_as_with_torch():
    """Gradients from autograd, with tied weights, a frozen layer and one that is not always used."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(8, 8)
            self.sometimes = torch.nn.Linear(8, 8)
            self.frozen = torch.nn.Linear(8, 8).requires_grad_(False)
            self.out = torch.nn.Linear(8, 8)
            self.out.weight = self.inner.weight

        def forward(self, x, step):
            x = self.frozen(torch.tanh(self.inner(x)))
            if step % 3:
                x = x + torch.tanh(self.sometimes(x))
            return self.out(x)

    runs = []
    for dtype in (torch.float32, torch.float64):
        for cls in (fusestep.optim.AdamW, torch.optim.AdamW):
            torch.manual_seed(0)
            model, x = Model().to(dtype), torch.randn(16, 8).to(dtype)
            optimizer = cls(model.parameters(), lr=0.02)
            losses = []
            for step in range(60):
                optimizer.zero_grad()
                loss = ((model(x, step) - x) ** 2).mean()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            runs.append({"losses": torch.stack(losses)})
    assert runs[-1]["losses"][-1] < 0.3 * runs[-1]["losses"][0]
    assert_as_exact_as_torch(*runs)
