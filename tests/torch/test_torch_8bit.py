"""`state_dtype="8bit"` in fusestep.optim: what opt.state holds, checkpoints, and training with it."""

from __future__ import annotations

import copy
import io

import cases
import fusestep.optim
import pytest
import torch
from fusestep import ops
from torch.nn import Parameter
from torch_pairs import COMMON, assert_same_bits, make_params, ours, snapshot, theirs, train

ROWS = [(row, {k: v for k, v in options.items() if k != "centered"}) for row, options in COMMON["argvalues"]]
by_row = pytest.mark.parametrize(("row", "options"), ROWS, ids=COMMON["ids"])
SHAPES = ((33, 50), (17,), (), (0, 3), (2, 3, 4), (256,))
SQUARES = {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"}


def make(row, options, params=None, **more):
    params = make_params(shapes=SHAPES) if params is None else params
    return ours(row)(params, state_dtype="8bit", **options, **more), params


def moments(row, options):
    return [state.torch_name for state in row.used_states(options)]


@by_row
def test_the_state(row, options):
    optimizer, params = make(row, options)
    train(optimizer, params, range(1, 4))
    for p in params:
        state = optimizer.state[p]
        counts = [] if row.name == "sgd" and "step" not in state else ["step"]
        assert set(state) == {*counts, *(n + end for n in moments(row, options) for end in ("", "_absmax"))}
        for name in moments(row, options):
            codes, scales = state[name], state[f"{name}_absmax"]
            assert (codes.dtype, codes.shape) == (torch.uint8, p.shape)
            assert (scales.dtype, scales.shape) == (torch.float32, (-(-p.numel() // 256),))
    large = optimizer.state[params[0]]
    bits = sum(8 * t.nbytes for k, t in large.items() if k != "step")
    assert bits <= (8 + 32 / 256) * len(moments(row, options)) * params[0].numel() + 32 * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@by_row
def test_a_run_goes_on_bit_for_bit(row, options, dtype):
    """Saved and loaded into an optimizer that was built with other moments."""
    optimizer, params = make(row, options, make_params(dtype, SHAPES))
    train(optimizer, params, range(1, 4))
    file = io.BytesIO()
    torch.save({"params": [p.detach() for p in params], "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file)
    copies = [Parameter(p.clone()) for p in saved["params"]]
    other = ours(row)(copies, **options)
    other.load_state_dict(saved["optimizer"])
    assert other.param_groups[0]["state_dtype"] == "8bit"
    assert_same_bits(snapshot(other, copies), snapshot(optimizer, params))
    train(optimizer, params, range(4, 7))
    train(other, copies, range(4, 7))
    assert_same_bits(snapshot(other, copies), snapshot(optimizer, params))


@by_row
def test_torch_s_state_is_quantized_and_ours_dequantized(row, options):
    params = make_params(shapes=SHAPES)
    one = theirs(row)(params, **options)
    train(one, params, range(1, 4))
    copies = [Parameter(p.detach().clone()) for p in params]
    optimizer, _ = make(row, options, copies)
    optimizer.load_state_dict(copy.deepcopy(one.state_dict()))
    back = theirs(row)([Parameter(p.detach().clone()) for p in params], **options)
    back.load_state_dict(optimizer.dequantized_state_dict())
    for p, q, r in zip(params, copies, back.param_groups[0]["params"], strict=True):
        for name in moments(row, options):
            square = name in SQUARES
            codes, scales = ops.quantize_8bit(one.state[p][name], square=square)
            assert torch.equal(optimizer.state[q][name], codes)
            assert torch.equal(optimizer.state[q][f"{name}_absmax"], scales)
            assert torch.equal(back.state[r][name], ops.dequantize_8bit(codes, scales, square=square))
        assert f"{name}_absmax" not in back.state[r]
    train(optimizer, copies, range(4, 6))
    train(back, back.param_groups[0]["params"], range(4, 6))


def test_dequantizing_changes_nothing():
    optimizer, params = make(*ROWS[0])
    train(optimizer, params, range(1, 3))
    before = snapshot(optimizer, params)
    wide = optimizer.dequantized_state_dict()
    assert "state_dtype" not in wide["param_groups"][0]
    assert optimizer.param_groups[0]["state_dtype"] == "8bit"
    assert_same_bits(snapshot(optimizer, params), before)


def test_from_8_bits_to_others():
    """A checkpoint in 8 bits whose groups ask for another dtype: the moments are dequantized."""
    optimizer, params = make(*ROWS[0])
    train(optimizer, params, range(1, 3))
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["state_dtype"] = None
    copies = [Parameter(p.detach().clone()) for p in params]
    other = fusestep.optim.AdamW(copies)
    other.load_state_dict(saved)
    wide = optimizer.dequantized_state_dict()["state"]
    for i, q in enumerate(copies):
        assert set(other.state[q]) == set(wide[i])
        assert all(torch.equal(other.state[q][key], wide[i][key]) for key in wide[i])
    train(other, copies, range(3, 5))


@by_row
def test_clipping_and_skipping(row, options):
    optimizer, params = make(row, options, max_grad_norm=0.5)
    train(optimizer, params, range(1, 3))
    assert optimizer.grad_norm > 0.5
    before = snapshot(optimizer, params)
    for p in params:
        p.grad = torch.full_like(p, float("inf"))
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert_same_bits(snapshot(optimizer, params), before)


@pytest.mark.parametrize("rounding", ["stochastic", "kahan", "master"])
def test_with_every_rounding(rounding):
    extras = {"master_weights": True} if rounding == "master" else {"rounding": rounding}
    optimizer, params = make(*ROWS[0], make_params(torch.bfloat16, SHAPES), **extras)
    train(optimizer, params, range(1, 4))
    copies = [Parameter(p.detach().clone()) for p in params]
    other, _ = make(*ROWS[0], copies, **extras)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(optimizer, params, range(4, 6))
    train(other, copies, range(4, 6))
    assert_same_bits(snapshot(other, copies), snapshot(optimizer, params))


def test_channels_last():
    """The codes lie as the parameter does; conversions follow the memory."""
    torch.manual_seed(0)
    model = torch.nn.Conv2d(24, 16, 3).to(memory_format=torch.channels_last)
    optimizer = fusestep.optim.AdamW(model.parameters(), state_dtype="8bit")
    one = torch.optim.AdamW(copy.deepcopy(model).parameters())
    for p, q in zip(model.parameters(), one.param_groups[0]["params"], strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    optimizer.step()
    one.step()
    codes = optimizer.state[model.weight]["exp_avg_sq"]
    assert codes.stride() == model.weight.stride() != codes.contiguous().stride()
    loaded = fusestep.optim.AdamW(model.parameters(), state_dtype="8bit")
    loaded.load_state_dict(one.state_dict())
    for p in model.parameters():
        for key, value in optimizer.state[p].items():
            assert torch.equal(loaded.state[p][key], value), key
    wide = optimizer.dequantized_state_dict()["state"][0]["exp_avg_sq"]
    exact = one.state[one.param_groups[0]["params"][0]]["exp_avg_sq"]
    assert ((wide - exact).abs() <= exact / 16).all()


def test_an_accumulator_that_begins_above_zero():
    params = make_params(shapes=SHAPES)
    optimizer = fusestep.optim.Adagrad(params, initial_accumulator_value=0.3, state_dtype="8bit")
    begun = optimizer.dequantized_state_dict()["state"]
    assert all((state["sum"] == torch.tensor(0.3)).all() for state in begun.values())


def test_float64_parameters_keep_float64_moments():
    params = [Parameter(torch.ones(5, dtype=torch.float64)), Parameter(torch.ones(5))]
    optimizer = fusestep.optim.AdamW(params, state_dtype="8bit")
    train(optimizer, params, range(1, 3))
    assert set(optimizer.state[params[0]]) == {"step", "exp_avg", "exp_avg_sq"}
    assert optimizer.state[params[0]]["exp_avg"].dtype == torch.float64
    assert optimizer.state[params[1]]["exp_avg"].dtype == torch.uint8


def test_centered_is_refused_before_the_first_step():
    optimizer = fusestep.optim.RMSprop([Parameter(torch.ones(3))], centered=True, state_dtype="8bit")
    with pytest.raises(TypeError, match=r"^RMSprop.step: square_avgs\[0\]: expected float32, .* with centered=True"):
        optimizer.check_parameters()


def test_a_refusal_names_the_parameter_of_the_group():
    params = [Parameter(torch.ones(3)), Parameter(torch.ones(300))]
    optimizer = fusestep.optim.AdamW(params, state_dtype="8bit")
    train(optimizer, params, range(1, 2))
    optimizer.state[params[1]]["exp_avg_absmax"] = torch.zeros(1)
    params[0].grad = None
    with pytest.raises(ValueError, match=r"^AdamW.step: exp_avgs\[1\]: expected contiguous absmax of shape \(2,\)"):
        optimizer.step()
    optimizer.state[params[1]]["exp_avg_absmax"] = None
    with pytest.raises(TypeError, match=r"^AdamW.step: exp_avgs_absmax\[1\]: expected a dense float array"):
        optimizer.step()


def test_it_trains_as_float32_does():
    """A two-layer network on a fixed problem: the losses of 200 steps stay within a twentieth of each other."""
    losses = {}
    for dtype in (None, "8bit"):
        torch.manual_seed(3)
        model = torch.nn.Sequential(torch.nn.Linear(32, 128), torch.nn.GELU(), torch.nn.Linear(128, 10))
        x, y = torch.randn(512, 32), torch.randint(10, (512,))
        optimizer = fusestep.optim.AdamW(model.parameters(), lr=1e-2, state_dtype=dtype)
        for _ in range(200):
            loss = torch.nn.functional.cross_entropy(model(x), y) + 0.1
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[dtype] = loss.item()
    assert losses["8bit"] == pytest.approx(losses[None], rel=0.05)


def test_the_squares_are_those_of_the_cases():
    for row in cases.OPTIMIZERS:
        names = {state.torch_name for state in row.states if state.non_negative}
        assert ours(row)([Parameter(torch.ones(1))])._squares() == names
