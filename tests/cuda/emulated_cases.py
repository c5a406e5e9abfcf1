"""What only the CUDA backend has, under emulation: deferred ("capturable") steps, attention's several paths.

test_cuda_emulated.py runs it.
"""

from __future__ import annotations

import itertools
import math

import attention_cases
import attention_runs
import cases
import cross_entropy_runs
import emulated_cuda
import fusestep.optim
import numpy as np
import problems
import pytest
import torch
from fusestep import _core, ops

ROWS = [pytest.param(optimizer, id=optimizer.name) for optimizer in cases.OPTIMIZERS]
CLIPPINGS = (
    {},
    {"max_grad_norm": 1.0},
    {"max_grad_norm": 0.5, "norm_type": math.inf},
    {"max_grad_value": 0.1},
    {"max_grad_norm": 1.0, "rewrite_grads": True},
    {"max_grad_norm": 1.0, "clip_factor": 0.25},
)
SHAPES = [(5,), (33, 7), (1,), (cases.SLICE + 3,), (0,)]


def pair(row, options=(), **clipping):
    """The same optimizer twice, over equal parameters: one whose host decides, one that defers."""
    made = []
    for capturable in (False, True):
        rng = np.random.default_rng(7)
        params = [torch.nn.Parameter(torch.tensor(rng.standard_normal(s), dtype=torch.float32)) for s in SHAPES]
        cls = getattr(fusestep.optim, {"rmsprop": "RMSprop", "adagrad": "Adagrad"}.get(row.name, row.torch_class))
        made.append((cls(params, capturable=capturable, **dict(options), **clipping), params))
    return made


def set_grads(params, seed, factor=1.0):
    rng = np.random.default_rng(seed)
    for p in params:
        p.grad = torch.tensor(factor * rng.standard_normal(p.shape), dtype=torch.float32)


def bits(optimizer, params):
    arrays = [p.detach().numpy() for p in params]
    for p in params:
        state = optimizer.state[p]
        arrays += [state[key].numpy() for key in sorted(state) if key != "step" and state[key] is not None]
    return b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("clipping", CLIPPINGS, ids=cases.describe)
def test_a_deferred_step_is_the_step(row, clipping):
    for options in row.settings:
        (host, host_params), (device, device_params) = pair(row, options, **clipping)
        for number in range(4):
            for params in (host_params, device_params):
                set_grads(params, number)
            host.step()
            device.step()
            assert bits(host, host_params) == bits(device, device_params), (options, number)
            if "max_grad_norm" in clipping:
                assert float(device.grad_norm) == host.grad_norm
            for a, b in zip(host_params, device_params, strict=True):
                problems.assert_same_bits(b.grad.numpy(), a.grad.numpy())
        assert float(device.skipped_steps) == 0


@pytest.mark.parametrize("row", ROWS)
def test_a_deferred_step_in_8_bits(row):
    options = {name: value for name, value in row.settings[-1].items() if name != "centered"}
    pairs = pair(row, options, max_grad_norm=1.0, state_dtype="8bit")
    for number in range(4):
        for optimizer, params in pairs:
            set_grads(params, number)
            if number == 2:
                params[1].grad[3, 3] = math.inf
            optimizer.step()
        (host, host_params), (device, device_params) = pairs
        assert bits(host, host_params) == bits(device, device_params), number
    assert float(device.skipped_steps) == host.skipped_steps == 1


def test_strides_beside_8_bits_are_refused():
    """The kernel for them would not fit into the registers of a device."""
    param = torch.nn.Parameter(torch.ones(33, 40))
    optimizer = fusestep.optim.AdamW([param], state_dtype="8bit")
    param.grad = torch.ones(40, 33).T
    with pytest.raises(ValueError, match=r"^AdamW.step: grads\[0\]: expected what lies in memory as"):
        optimizer.step()
    assert torch.equal(param, torch.ones(33, 40))
    assert not optimizer.state


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_deferred_step_is_skipped(row, bad):
    (host, host_params), (device, device_params) = pair(row, row.settings[-1], max_grad_norm=1.0)
    for number in range(4):
        for params in (host_params, device_params):
            set_grads(params, number)
            if number == 2:
                params[1].grad[3, 3] = bad
        before = bits(device, device_params) if number == 2 else None
        host.step()
        device.step()
        assert bits(host, host_params) == bits(device, device_params)
        assert before in (None, bits(device, device_params))
    assert float(device.skipped_steps) == host.skipped_steps == 1


@pytest.mark.parametrize("row", ROWS)
def test_lr_on_the_device(row):
    (host, host_params), (device, device_params) = pair(row)
    lr = torch.tensor(0.25, dtype=torch.float64)
    for group in device.param_groups:
        group["lr"] = lr
    for number, rate in enumerate((0.25, 0.5, 0.125)):
        lr.fill_(rate)
        host.param_groups[0]["lr"] = rate
        for params in (host_params, device_params):
            set_grads(params, number)
        host.step()
        device.step()
        assert bits(host, host_params) == bits(device, device_params)


@pytest.mark.parametrize("row", ROWS)
def test_a_grad_scaler_on_the_device(row):
    (host, host_params), (device, device_params) = pair(row, max_grad_norm=1.0)
    for number, found in enumerate((0.0, 1.0, 0.0)):
        for optimizer, params in ((host, host_params), (device, device_params)):
            set_grads(params, number, 8.0)
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(found)
            optimizer.step()
            del optimizer.grad_scale, optimizer.found_inf
        assert bits(host, host_params) == bits(device, device_params)
    assert float(device.skipped_steps) == host.skipped_steps == 1


def test_groups_differ_and_do_not_mix():
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = fusestep.optim.AdamW([{"params": params[:1]}, {"params": params[1:], "capturable": True}])
    set_grads(params, 0)
    with pytest.raises(ValueError, match=r"^AdamW.step: capturable: expected the same in all parameter groups"):
        optimizer.step()


def test_raising_needs_the_host():
    params = [torch.nn.Parameter(torch.ones(3))]
    optimizer = fusestep.optim.AdamW(params, capturable=True, max_grad_norm=1.0, on_nonfinite="raise")
    set_grads(params, 0)
    with pytest.raises(ValueError, match=r"^AdamW.step: on_nonfinite: expected \"skip\" or \"propagate\""):
        optimizer.step()
    assert torch.equal(params[0].detach(), torch.ones(3))


@pytest.mark.parametrize("norm_type", [1.0, 2.0, math.inf])
def test_norm_and_clipping_that_stay_on_the_device(norm_type, rng):
    grads = [torch.tensor(rng.standard_normal(n), dtype=torch.float32) for n in cases.SIZES]
    copies = [g.clone() for g in grads]
    out = torch.zeros((), dtype=torch.float64)
    assert _core.grad_norm("grad_norm", grads, norm_type, out) is None
    want = ops.grad_norm(grads, norm_type)
    assert float(out) == want
    out.zero_()
    options = {"max_norm": 0.5, "norm_type": norm_type, "on_nonfinite": "propagate"}
    assert _core.clip_grad_norm_("clip_grad_norm_", grads, options, out) is None
    assert ops.clip_grad_norm_(copies, 0.5, norm_type) == float(out) == want
    for a, b in zip(grads, copies, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, math.inf])
def test_totals_of_several_processes_that_stay_on_the_device(norm_type, rng):
    """A deferred step decides by them as the host does, and keeps nothing of its own gradients."""
    grads = [torch.tensor(rng.standard_normal(n), dtype=torch.float32) for n in cases.SIZES]
    out = torch.empty(1, dtype=torch.float64)
    assert _core.grad_total("total", grads, norm_type, out) is None
    assert float(out) == _core.grad_total("total", grads, norm_type)
    clipping = {"max_grad_norm": 0.5, "norm_type": norm_type}
    for totals in (
        out,
        torch.tensor([1.0, 2.5, *out.tolist()] * 100, dtype=torch.float64),
        torch.tensor([math.nan, 1.0]),
    ):
        totals = totals.double()
        want = _core.grad_norm("norm", [], norm_type, totals=totals)
        norm, skipped, results = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), []
        for deferred in (None, {"grad_scale": None, "found_inf": None, "norm": norm, "skipped": skipped}):
            p = torch.ones(cases.SIZES[-1])
            group = ({"lr": 0.5}, [p], [grads[-1]], (None,), [torch.zeros(())], None, None)
            _core.optimizer_step("step", "sgd", [group], clipping, deferred, totals)
            results.append(p)
        assert np.array_equal(float(norm), want, equal_nan=True)
        assert torch.equal(*results)
        assert float(skipped) == (0 if math.isfinite(want) else 1)


@pytest.fixture
def process_group():
    """Of this process alone."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_deferred_step_over_shards(process_group):
    """The decision over a mesh: the bits of a step whose host decides, and of one that has no mesh."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (1,))
    row = cases.BY_NAME["adamw"]
    (host, host_params), (device, device_params) = pair(row, max_grad_norm=1.0)
    shards = [torch.nn.Parameter(distribute_tensor(p.detach().clone(), mesh, [Shard(0)])) for p in device_params]
    spread = fusestep.optim.AdamW(shards, capturable=True, max_grad_norm=1.0)
    for number, bad in enumerate((False, True, False)):
        for params in (host_params, device_params, shards):
            set_grads(params, number)
        if bad:
            host_params[0].grad[0] = device_params[0].grad[0] = math.inf
        for p, q in zip(shards, host_params, strict=True):
            p.grad = distribute_tensor(q.grad.clone(), mesh, [Shard(0)])
        for optimizer in (host, device, spread):
            optimizer.step()
        for p, q in zip(shards, host_params, strict=True):
            assert torch.equal(p.detach().to_local(), q.detach())
        assert float(spread.grad_norm) == float(device.grad_norm) == host.grad_norm
    assert float(spread.skipped_steps) == 1


def test_a_norm_of_many_groups_of_slices(rng):
    """64 groups of 64 slices are added up at a time: these are more."""
    block = torch.tensor(rng.standard_normal(cases.SLICE), dtype=torch.float32)
    grads = [block] * (64 * 64 + 65)
    one = ops.grad_norm([block])
    assert abs(ops.grad_norm(grads) - one * math.sqrt(len(grads))) <= 1e-12 * one * math.sqrt(len(grads))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("layout", cases.TORCH_LAYOUTS)
def test_dropout(layout, dtype, p, rng):
    """Against the reference's mask: every element is kept or dropped as it says, and scaled by the rounded rate."""
    from fusestep import reference

    for shape in [*cases.LAYOUT_SHAPES, (0,), (8,), (2049,)]:
        x = problems.array(rng.standard_normal(shape), dtype, layout=layout if shape else "contiguous")
        residual = problems.array(rng.standard_normal(shape), dtype)
        values, rest = problems.as_numpy(x), problems.as_numpy(residual)
        kept = reference.dropout(np.ones(shape), p, seed=11, offset=3)
        want = problems.array(np.asarray(values * kept.astype(values.dtype)), dtype)
        got = ops.dropout(x, p, seed=11, offset=3)
        np.testing.assert_array_equal(problems.as_numpy(got), problems.as_numpy(want))
        dropped = np.asarray(kept) == 0
        got = problems.as_numpy(ops.dropout_add(x, residual, p, seed=11, offset=3))
        assert np.all(got[dropped] == rest[dropped])


UNUSED = itertools.count(7)


# --- uploads and captures -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("clipping", CLIPPINGS, ids=cases.describe)
@pytest.mark.parametrize("row", ROWS)
def test_a_step_uploads_only_what_has_changed(row, clipping):
    """Over the same tensors nothing; with another rate the options alone."""
    emulation = emulated_cuda.counters()
    _, (optimizer, params) = pair(row, row.settings[-1], **clipping)
    set_grads(params, 0)
    for _ in range(2):
        optimizer.step()
    for number in range(6):
        if number >= 3:
            optimizer.param_groups[0]["lr"] = 1e-3 / next(UNUSED)  # a rate whose options no test has uploaded
        before = emulation.emulation_uploads()
        optimizer.step()
        assert emulation.emulation_uploads() - before == (1 if number >= 3 else 0), number


def test_the_memory_of_a_graph_goes_with_it():
    """1,000 captures: nothing is left of them once the next step has run."""
    emulation = emulated_cuda.counters()
    optimizer, params = pair(ROWS[0].values[0], max_grad_norm=1.0, rewrite_grads=True)[1]
    set_grads(params, 0)
    optimizer.step()
    before = emulation.emulation_live_allocations()
    for _ in range(1000):
        emulation.emulation_begin_capture()
        try:
            optimizer.step()
            ops.dropout(params[1].detach().t(), 0.5, seed=1)
            assert emulation.emulation_live_allocations() > before
        finally:
            emulation.emulation_end_capture_and_destroy_graph()
        optimizer.step()
        assert emulation.emulation_live_allocations() == before


# --- cross-entropy ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", attention_runs.DTYPES)
@pytest.mark.parametrize("row_bytes", [1800, 8000, 36_000, 110_000], ids=["warp", "block", "kept", "not kept"])
def test_rows_of_every_length(row_bytes, dtype):
    """Odd numbers of classes: each row begins elsewhere in its first 16 bytes. Over the logits, and beside them."""
    itemsize = {"float64": 8, "float32": 4}.get(dtype, 2)
    classes = row_bytes // itemsize | 1
    logits, labels = cross_entropy_runs.draw(3, classes, dtype)
    cross_entropy_runs.assert_as_reference(logits, labels, dtype, label_smoothing=0.1)
    beside = problems.array(np.zeros(logits.shape), dtype)
    array = problems.array(logits, dtype)
    loss, lse = ops.cross_entropy(array, labels, grad=beside)
    over = ops.cross_entropy(array, labels, grad=array)
    for got, want in zip((*over, array), (loss, lse, beside), strict=True):
        problems.assert_same_bits(attention_runs.wide(got), attention_runs.wide(want))


@pytest.mark.parametrize("label", [-1, 50, 2**40])
@pytest.mark.parametrize("classes", [50, 3000])
def test_a_label_that_the_host_does_not_see_makes_nan(label, classes):
    label = classes if label == 50 else label
    logits, labels = cross_entropy_runs.draw(3, classes)
    labels[1] = label
    grad = np.zeros(logits.shape, np.float32)
    loss, lse = ops.cross_entropy(logits.astype(np.float32), labels, grad=grad, reduction="none")
    assert np.isnan(loss).tolist() == [False, True, False]
    assert np.isnan(grad).all(axis=1).tolist() == [False, True, False]
    assert np.isfinite(lse).all()
    assert np.isfinite(grad[[0, 2]]).all()


# --- attention -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", ["sm_80", "sm_90a", "plain"])
def test_keys_beyond_the_length_are_not_looked_at_in_16_bits(path, monkeypatch):
    """Their products with weights of 0 would be NaN: the tiles must not hold them."""
    monkeypatch.setenv("FUSESTEP_CUDA_ATTENTION", path)
    problem = attention_runs.drawn(attention_cases.Shape(2, 2, 1, 70, 140, 16, 16), {"dropout_p": 0.2})
    clean = problem.rounded("bfloat16")
    clean.options["key_lengths"] = np.array([75, 129])
    dirty = clean.map(np.copy)
    for array, batch in itertools.product((dirty.key, dirty.value), range(2)):
        array[batch, :, clean.options["key_lengths"][batch] :] = math.nan
    results = [attention_runs.arrays(one, "bfloat16").all() for one in (dirty, clean)]
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("path", ["sm_80", "sm_90a", "plain"])
def test_attention_has_the_same_bits_every_time(path, monkeypatch):
    """The emulation runs threads in another order each time: what is read too early differs."""
    monkeypatch.setenv("FUSESTEP_CUDA_ATTENTION", path)
    shape = attention_cases.Shape(1, 2, 1, 200, 300, 16, 16)
    problem = attention_runs.drawn(shape, {"dropout_p": 0.2, "causal": "bottom_right"}).rounded("bfloat16")
    arrays = attention_runs.arrays(problem, "bfloat16")
    first = arrays.all()
    for _ in range(4):
        for got, want in zip(arrays.all(), first, strict=True):
            assert torch.equal(got, want)


def test_a_path_that_does_not_exist(monkeypatch):
    monkeypatch.setenv("FUSESTEP_CUDA_ATTENTION", "sm_70")
    query = torch.zeros(1, 1, 4, 8, dtype=torch.bfloat16)
    with pytest.raises(
        ValueError, match=r"^attention: FUSESTEP_CUDA_ATTENTION: expected plain, sm_80 or sm_90a, got sm_70"
    ):
        ops.attention(query, query, query)
