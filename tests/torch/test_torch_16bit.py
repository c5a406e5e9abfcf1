"""16-bit parameters in fusestep.optim: beside torch.optim, and the ways to keep what rounding to 16 bits loses."""

from __future__ import annotations

import copy
import io

import fusestep.optim
import pytest
import torch
from torch.nn import Parameter
from torch_pairs import COMMON, assert_same_bits, make_grads, make_params, ours, snapshot, theirs, train

HALVES = [torch.bfloat16, torch.float16]
WAYS = {
    "nearest": {},
    "float32 states": {"state_dtype": torch.float32},
    "stochastic": {"rounding": "stochastic", "seed": 5},
    "kahan": {"rounding": "kahan"},
    "master": {"master_weights": True},
}
by_row = pytest.mark.parametrize("row, options", **COMMON)
by_dtype = pytest.mark.parametrize("dtype", HALVES, ids=str)


def errors(params, exact):
    """Sum of |error| of each run's parameters against float64."""
    return sum(float((p.detach().double() - q.detach()).abs().sum()) for p, q in zip(params, exact, strict=True))


@by_dtype
@by_row
def test_at_least_as_near_as_torch(row, options, dtype):
    """torch rounds at every operation, or once in its fused kernels; we round once. Ten steps against float64."""
    exact = make_params(torch.float64)
    start = [p.detach().to(dtype) for p in exact]
    for p, s in zip(exact, start, strict=True):
        p.data.copy_(s)
    runs = []
    for make in (ours, theirs):
        params = [Parameter(s.clone()) for s in start]
        optimizer = make(row)(params, **options)
        train(optimizer, params)
        runs.append((optimizer, params))
    optimizer = theirs(row)(exact, **options)
    for step in range(1, 11):
        for p, g in zip(exact, make_grads(step, runs[0][1]), strict=True):
            p.grad = g.double()
        optimizer.step()
    (our_optimizer, our_params), (_, their_params) = runs
    assert errors(our_params, exact) <= errors(their_params, exact)
    for p in our_params:
        assert all(v.dtype == dtype for k, v in our_optimizer.state[p].items() if k != "step" and v is not None)


@by_dtype
@by_row
def test_state_dicts_go_both_ways(row, options, dtype):
    """A run that changes hands in the middle: the states are the same tensors in the same dtype."""
    for first, second in ((ours, theirs), (theirs, ours)):
        params = make_params(dtype)
        one = first(row)(params, **options)
        train(one, params, range(1, 4))
        copies = [Parameter(p.detach().clone()) for p in params]
        other = second(row)(copies, **options)
        other.load_state_dict(copy.deepcopy(one.state_dict()))
        for p, q in zip(params, copies, strict=True):
            for key, value in one.state[p].items():
                if isinstance(value, torch.Tensor):
                    assert torch.equal(other.state[q][key], value)
                    assert other.state[q][key].dtype == value.dtype
        train(other, copies, range(4, 5))


@pytest.mark.parametrize("way", WAYS)
@by_dtype
@by_row
def test_a_run_goes_on_bit_for_bit(row, options, dtype, way):
    """Saved, loaded into a fresh optimizer that was built otherwise, and continued."""
    params = make_params(dtype)
    optimizer = ours(row)(params, **options, **WAYS[way])
    train(optimizer, params, range(1, 4))
    file = io.BytesIO()
    torch.save({"params": [p.detach() for p in params], "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file)
    copies = [Parameter(p.clone()) for p in saved["params"]]
    other = ours(row)(copies, **options)
    other.load_state_dict(saved["optimizer"])
    train(optimizer, params, range(4, 8))
    train(other, copies, range(4, 8))
    assert_same_bits(snapshot(other, copies), snapshot(optimizer, params))
    wanted = {"float32 states": torch.float32, "kahan": dtype, "master": dtype}.get(way, dtype)
    for p in copies:
        for key, value in other.state[p].items():
            if key not in ("step", "master_param") and value is not None:
                assert value.dtype == (dtype if key == "compensation" else wanted), key
    if way == "master":
        assert all(other.state[p]["master_param"].dtype == torch.float32 for p in copies)


def test_small_updates_are_kept():
    """500 updates of 1e-4 of a bfloat16 parameter: each is below half of its last bit."""
    ends = {}
    for way, options in WAYS.items():
        p = Parameter(torch.ones(256, dtype=torch.bfloat16))
        optimizer = fusestep.optim.SGD([p], lr=1.0, **options)
        for _ in range(500):
            p.grad = torch.full_like(p, 1e-4)
            optimizer.step()
        companion = optimizer.state[p].get("compensation", torch.zeros(()))
        ends[way] = float((p.detach().double() + companion.double()).mean())
    grad = float(torch.tensor(1e-4, dtype=torch.bfloat16))
    target = 1 - 500 * grad
    assert ends["nearest"] == ends["float32 states"] == 1.0  # nothing has moved
    assert ends["master"] == pytest.approx(target, abs=2.0**-9)  # half of the last bit
    assert ends["kahan"] == pytest.approx(target, abs=500 * 2.0**-17)
    # the mean of 256 walks of 500 steps, each of variance at most grad * 2**-7
    assert ends["stochastic"] == pytest.approx(target, abs=5 * (500 * grad * 2.0**-7 / 256) ** 0.5)


def test_the_draws_follow_seed_step_and_position():
    def run(seed, shapes, missing=(), steps=2):
        params = [Parameter(torch.ones(s, dtype=torch.bfloat16)) for s in shapes]
        optimizer = fusestep.optim.SGD(
            [{"params": params[:1]}, {"params": params[1:]}], lr=1.0, rounding="stochastic", seed=seed
        )
        for _ in range(steps):
            for i, p in enumerate(params):
                p.grad = None if i in missing else torch.full_like(p, 1e-3)
            optimizer.step()
        return [p.detach() for p in params]

    a, b, c = run(3, [(64,)] * 3)
    assert all(torch.equal(x, y) for x, y in zip((a, b, c), run(3, [(64,)] * 3), strict=True))
    assert not torch.equal(a, b)
    assert not torch.equal(a, run(4, [(64,)] * 3)[0])
    assert not torch.equal(run(3, [(64,)] * 2, steps=1)[0] - 1, run(3, [(64,)] * 2, steps=2)[0] - 1)
    # a parameter without a gradient keeps the places of the others
    assert torch.equal(run(3, [(64,)] * 3, missing=(1,))[2], c)
    # a matrix draws as its elements do in C order, however it lies in memory
    flat, square = run(3, [(64,)])[0], run(3, [(8, 8)])[0]
    assert torch.equal(square.flatten(), flat)
    p = Parameter(torch.ones(8, 8, dtype=torch.bfloat16).t())
    optimizer = fusestep.optim.SGD([p], lr=1.0, rounding="stochastic", seed=3)
    for _ in range(2):
        p.grad = torch.full_like(p, 1e-3)
        optimizer.step()
    assert torch.equal(p.detach(), square)


def test_a_seed_is_drawn_and_saved():
    torch.manual_seed(9)
    made = [fusestep.optim.AdamW([Parameter(torch.ones(3).bfloat16())], rounding="stochastic") for _ in range(2)]
    seeds = [o.state_dict()["param_groups"][0]["seed"] for o in made]
    assert seeds[0] != seeds[1]
    torch.manual_seed(9)
    again = fusestep.optim.AdamW([Parameter(torch.ones(3).bfloat16())], rounding="stochastic")
    assert again.state_dict()["param_groups"][0]["seed"] == seeds[0]


@by_row
def test_clipping_and_skipping(row, options):
    for way in WAYS.values():
        params = make_params(torch.bfloat16)
        optimizer = ours(row)(params, **options, **way, max_grad_norm=0.5)
        train(optimizer, params, range(1, 3))
        assert optimizer.grad_norm > 0.5
        before = snapshot(optimizer, params)
        for p in params:
            p.grad = torch.full_like(p, float("inf"))
        optimizer.step()
        assert optimizer.skipped_steps == 1
        assert_same_bits(snapshot(optimizer, params), before)


@pytest.mark.parametrize(
    ("options", "dtype", "message"),
    [
        ({"rounding": "kahan"}, torch.float32, r"params\[0\]: expected bfloat16 or float16 where rounding"),
        ({"rounding": "stochastic"}, torch.float64, r"params\[0\]: expected bfloat16 or float16 where rounding"),
        ({"master_weights": True}, torch.float32, r"params\[0\]: expected bfloat16 or float16 where rounding"),
        (
            {"rounding": "nearest"},
            torch.bfloat16,
            r"rounding: expected None, \"stochastic\" or \"kahan\", got 'nearest'",
        ),
        (
            {"rounding": "kahan", "master_weights": True},
            torch.bfloat16,
            "rounding: expected None with master_weights=True",
        ),
        ({"master_weights": 1}, torch.bfloat16, "master_weights: expected True or False, got 1"),
        ({"rounding": "stochastic", "seed": -1}, torch.bfloat16, "seed: expected an int from 0"),
        ({"state_dtype": torch.float64}, torch.bfloat16, r"state_dtype: expected one of None, torch.float32"),
        ({"state_dtype": "4bit"}, torch.bfloat16, "state_dtype: expected one of .*, got '4bit'"),
    ],
)
def test_bad_input(options, dtype, message):
    p = Parameter(torch.ones(3, dtype=dtype))
    p.grad = torch.ones_like(p)
    with pytest.raises((TypeError, ValueError), match=message):
        fusestep.optim.AdamW([p], **options).step()
    assert torch.equal(p.detach(), torch.ones_like(p))


def test_a_checkpoint_of_torch_begins_its_companions():
    params = make_params(torch.bfloat16)
    torchs = torch.optim.AdamW(params)
    train(torchs, params, range(1, 4))
    for way in ("kahan", "master"):
        copies = [Parameter(p.detach().clone()) for p in params]
        optimizer = fusestep.optim.AdamW(copies, **WAYS[way])
        optimizer.load_state_dict(copy.deepcopy(torchs.state_dict()))
        train(optimizer, copies, range(4, 6))
        key = "compensation" if way == "kahan" else "master_param"
        assert all(key in optimizer.state[p] for p in copies)


def test_cases_know_every_way():
    """The options that the tests above run are all that there are."""
    from fusestep.optim.options import PRECISION_DEFAULTS

    assert {name for way in WAYS.values() for name in way} == set(PRECISION_DEFAULTS)
