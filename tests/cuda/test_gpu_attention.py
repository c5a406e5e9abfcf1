"""Attention on a CUDA device: with all that torch adds, the same bits always, and what has broken other libraries.

The tests of tests/ops and tests/torch run there too (test_gpu.py). Under emulation (device.py) these run at small
sizes.
"""

from __future__ import annotations

import contextlib
import json
import math

import attention_cases
import fusestep.nn
import fusestep.nn.functional as F
import numpy as np
import pytest
import tiny_transformers
import tolerances
import torch
from attention_cases import FEATURES, Shape
from attention_runs import arrays, assert_within, drawn, expected, wide
from device import DEVICE, EMULATED, NEEDS_A_DEVICE, captured
from dlpack_exporter import Exporter
from exactness import assert_all_as_exact, assert_as_exact
from fusestep import _core, cli, ops, reference
from torch.utils.checkpoint import checkpoint

pytestmark = NEEDS_A_DEVICE

CPU, CUDA = 1, 2  # DLPack's numbers
LOW = ("bfloat16", "float16")
RESULTS = ("out", "lse", "grad_query", "grad_key", "grad_value", "grad_mask")
# Forward and backward kernels work by tiles of 64 and 128.
EDGES = (1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 191, 192, 193)
SIZES = EDGES[3::6] if EMULATED else EDGES


@pytest.fixture(autouse=True)
def weights_are_stored(monkeypatch):
    """As tensor cores need them: the tolerances count it."""
    monkeypatch.setattr(tolerances, "WEIGHTS_ARE_STORED", {"float16", "bfloat16"})


# --- running ------------------------------------------------------------------------------------------------
def there(x):
    """On the device, in the same layout."""
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(x)
    return x.to(DEVICE) if isinstance(x, torch.Tensor) else x


def on_device(problem, dtype):
    """The problem's arrays, as torch's tensors on the device; lengths and offsets too."""
    given = arrays(problem, dtype, "torch")
    options = {name: there(option) for name, option in given.options.items()}
    return [there(x) for x in given.tensors()], there(given.grad_out), options


def run(inputs, grad_out, options):
    """[out, lse, *gradients], that of an additive mask too: F.attention, and autograd."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    mask = options.get("mask")
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.detach().requires_grad_()
        leaves.append(mask)
    out, lse = F.attention(*leaves, **{**options, "mask": mask}, return_lse=True)
    return [out.detach(), lse, *torch.autograd.grad(out, leaves, grad_out)]


def judge(results, problem, dtype):
    want, bound = expected(problem), tolerances.attention(problem, dtype)
    assert len(results) == len(want)
    for (name, value), got in zip(want.items(), results, strict=True):
        assert got.device.type == DEVICE
        assert_within(wide(got.cpu()), value, bound[name], f"{name} in {dtype}")


def check(problem, dtype):
    problem = problem.rounded(dtype)
    judge(run(*on_device(problem, dtype)), problem, dtype)


def bits(x):
    return x.contiguous().reshape(-1).view(torch.uint8)


def assert_same_bits(results, others):
    assert len(results) == len(others)
    for name, got, want in zip(RESULTS, results, others, strict=False):
        assert torch.equal(bits(got), bits(want)), name


@contextlib.contextmanager
def nobody_waits():
    """Refuses what makes the host wait for the device."""
    if EMULATED:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- the declared cases -------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("name", FEATURES)
def test_every_feature(name, dtype):
    check(drawn(Shape(), FEATURES[name]), dtype)


MASKS = (
    "plain", "causal", "bottom_right", "window", "window_bottom_right", "key_lengths", "key_lengths_bottom_right",
    "boolean", "boolean_padding", "boolean_rows", "additive", "additive_heads", "additive_keys", "additive_excludes",
    "alibi_bottom_right", "softcap", "dropout", "packed_mask", "everything",
)  # fmt: skip


@pytest.mark.parametrize("queries", SIZES)
@pytest.mark.parametrize("name", MASKS)
def test_lengths_around_the_edges_of_tiles(name, queries):
    """With every kind of mask; keys, head dims and the 16-bit dtypes take turns."""
    turn = SIZES.index(queries) + MASKS.index(name)
    for keys, dtype in ((SIZES[turn % len(SIZES)], LOW[turn % 2]), (SIZES[(7 * turn + 3) % len(SIZES)], "float32")):
        dim = (64, 128, 96, 72, 40)[turn % 5]
        check(drawn(Shape(1, 2, 1, queries, keys, dim, dim), FEATURES[name], seed=turn), dtype)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("dim", [8, 64, 72, 128, 192, 256])
def test_head_dims(dim, dtype):
    for features in ({"causal": True}, FEATURES["everything"]):
        check(drawn(Shape(1, 2, 1, 70, 75, dim, dim), features), dtype)


# --- dropout ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_the_dropout_of_the_cpu(p, dtype):
    """Queries of zeros weigh all keys alike, and values that are the identity show each weight on its own."""
    shape = (1, 2, 33, 40) if EMULATED else (2, 3, 130, 200)
    drops = {"dropout_p": p, "seed": 2**63 + 5, "offset": 7}

    def kept(device):
        query = torch.zeros(*shape[:3], 16, dtype=dtype, device=device)
        key = torch.zeros(*shape[:2], shape[3], 16, dtype=dtype, device=device)
        value = torch.eye(shape[3], dtype=dtype, device=device).repeat(*shape[:2], 1, 1).requires_grad_()
        out = F.attention(query, key, value, **drops)
        grad_out = torch.eye(shape[2], shape[3], dtype=dtype, device=device).expand_as(out)
        (grad_value,) = torch.autograd.grad(out, value, grad_out)
        return (out != 0).cpu(), (grad_value != 0).transpose(2, 3)[:, :, : shape[2]].cpu()

    forward, backward = kept(DEVICE)
    want = torch.from_numpy(reference.attention_keep(shape, p, seed=drops["seed"], offset=7)).bool()
    assert torch.equal(forward, want)
    assert torch.equal(backward, want)
    assert torch.equal(forward, kept("cpu")[0])


# --- the same bits ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside other work"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_same_bits_every_time(dtype, beside):
    shape = Shape(1, 2, 1, 70, 140, 64, 64) if EMULATED else Shape(2, 8, 4, 520, 1030, 64, 64)
    problem = drawn(shape, {"causal": "bottom_right", "mask": ("additive", "1hqk"), "dropout_p": 0.1})
    given = on_device(problem.rounded(dtype), dtype)
    want = run(*given)
    other = None if EMULATED else torch.cuda.Stream()
    matrix = torch.randn(64 if EMULATED else 2048, 64 if EMULATED else 2048, device=DEVICE)
    for _ in range(3 if EMULATED else 250):
        if beside:
            with torch.cuda.stream(other) if other else contextlib.nullcontext():
                matrix = matrix @ matrix / matrix.shape[0]
        assert_same_bits(run(*given), want)


# --- lengths on the device ----------------------------------------------------------------------------------
def in_device_memory(x):
    """Under emulation torch says that its tensors are on the CPU: DLPack says otherwise here."""
    if not EMULATED:
        return x
    codes = {torch.int32: 0, torch.int64: 0, torch.bool: 6, torch.bfloat16: 4}
    holder = x.view(torch.int16) if x.dtype == torch.bfloat16 else x
    return Exporter(holder.numpy(), device_type=CUDA, code=codes.get(x.dtype, 2))


def run_core(inputs, grad_out, options, place):
    """[out, lse, *gradients]; `place` is asked for each array."""
    names = (
        "mask", "causal", "window", "key_lengths", "scale", "dropout_p", "seed", "offset", "alibi_slopes", "softcap",
        "cu_seqlens_q", "cu_seqlens_k",
    )  # fmt: skip
    of_core = {**dict.fromkeys(names), "causal": False, "dropout_p": 0.0, "offset": 0, **options}
    given = tuple(place(x) if isinstance(x, torch.Tensor) else x for x in (of_core[name] for name in names))
    query, _, value = inputs
    out = query.new_empty(*query.shape[:3], value.shape[3])
    lse = query.new_empty(query.shape[:3], dtype=torch.float64 if query.dtype == torch.float64 else torch.float32)
    grads = [torch.empty_like(x) for x in inputs]
    mask = options.get("mask")
    if mask is not None and mask.dtype != torch.bool:
        grads.append(torch.empty_like(mask))
    placed = [place(x) for x in inputs]
    _core.attention_forward("attention", *placed, place(out), place(lse), given)
    grads_given = [*map(place, grads), *[None] * (4 - len(grads))]
    _core.attention_backward(
        "attention_backward", place(grad_out), *placed, place(out), place(lse), *grads_given, given
    )
    return [out, lse, *grads]


LENGTHS = [name for name in FEATURES if "length" in name or "packed" in name or name == "everything"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", LENGTHS)
def test_lengths_on_the_device_count_as_those_on_the_host(name, dtype):
    problem = drawn(Shape(3, 4, 2, 70, 75, 24, 16), FEATURES[name]).rounded(dtype)
    inputs, grad_out, options = on_device(problem, dtype)
    of_host = arrays(problem, dtype, "torch").options
    lengths = {n: torch.from_numpy(of_host[n]) for n in ("key_lengths", "cu_seqlens_q", "cu_seqlens_k") if n in of_host}
    want = run_core(inputs, grad_out, {**options, **lengths}, lambda x: x)
    with nobody_waits():
        got = run_core(inputs, grad_out, options, in_device_memory)
    assert_same_bits(got, want)
    judge(got, problem, dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_lengths_on_the_device_are_limited_to_the_rows_that_exist(dtype):
    """The host cannot refuse what it has not seen; nothing beyond the arrays is read or written."""
    most = 2**31 - 1
    for features, wrong, right in (
        ({}, {"key_lengths": [-3, most, 41]}, {"key_lengths": [0, 75, 41]}),
        ({"packed": True}, {"cu_seqlens_q": [0, 3, most]}, {"cu_seqlens_q": [0, 3, None]}),
        ({"packed": True}, {"cu_seqlens_k": [-7, 5, most]}, {"cu_seqlens_k": [0, 5, None]}),
    ):
        problem = drawn(Shape(3, 2, 1, 70, 75, 16, 16), features).rounded(dtype)
        inputs, grad_out, options = on_device(problem, dtype)
        rows = {"cu_seqlens_q": inputs[0].shape[2], "cu_seqlens_k": inputs[1].shape[2]}
        if features:
            options = {name: there(torch.tensor([0, 3, rows[name]], dtype=torch.int32)) for name in rows}

        def with_lengths(given, options=options, rows=rows):
            values = {n: [rows[n] if x is None else x for x in v] for n, v in given.items()}
            return {**options, **{n: there(torch.tensor(v, dtype=torch.int32)) for n, v in values.items()}}

        got = run_core(inputs, grad_out, with_lengths(wrong), in_device_memory)
        assert_same_bits(got, run_core(inputs, grad_out, with_lengths(right), in_device_memory))


def test_lengths_lie_in_one_place():
    problem = drawn(Shape(), {"packed": True, "key_lengths": True}).rounded("float32")
    inputs, grad_out, options = on_device(problem, "float32")
    host = torch.from_numpy(problem.options["cu_seqlens_q"])
    with pytest.raises(ValueError, match=r"^attention: cu_seqlens_q: expected all lengths and offsets on one device"):
        run_core(inputs, grad_out, {**options, "cu_seqlens_q": host}, lambda x: x if x is host else in_device_memory(x))


@pytest.mark.parametrize("packed", [False, True])
def test_a_cuda_graph_with_lengths_on_the_device(packed):
    """Forward and backward are captured once; the lengths change between replays, which draw the same dropout."""
    batch, length = (1, 90) if packed else (3, 90)
    tensors = [torch.randn(batch, 2, length, 64, device=DEVICE, dtype=torch.bfloat16) for _ in range(4)]
    leaves, grad_out = [x.requires_grad_() for x in tensors[:3]], tensors[3]
    names = ("cu_seqlens_q", "cu_seqlens_k") if packed else ("key_lengths",)
    values = [[0, 30, 60, 90], [0, 1, 1, 90], [0, 64, 80, 85]] if packed else [[90, 90, 90], [0, 33, 64], [1, 90, 65]]
    lengths = {name: there(torch.tensor(values[0], dtype=torch.int32)) for name in names}
    drops = {"causal": True, "dropout_p": 0.2, "seed": 11}

    def all_results(**lengths):
        out = F.attention(*leaves, **lengths, **drops)
        return [out, *torch.autograd.grad(out, leaves, grad_out)]

    kept = [torch.empty_like(x) for x in all_results(**lengths)]

    def step():
        for to, result in zip(kept, all_results(**lengths), strict=True):
            to.copy_(result.detach())

    replay = captured(step)
    for numbers in values:
        for length in lengths.values():
            length.copy_(torch.tensor(numbers))
        replay()
        want = all_results(**{name: length.clone() for name, length in lengths.items()})
        assert_same_bits(kept, [x.detach() for x in want])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
def test_nested_tensors_do_not_wait():
    rows = [torch.randn(n, 2, 32) for n in (5, 0, 33, 64)]
    leaf = torch.nested.nested_tensor(rows, layout=torch.jagged, device=DEVICE, requires_grad=True)
    x = leaf.transpose(1, 2)
    with nobody_waits():
        out = F.scaled_dot_product_attention(x, x, x, is_causal=True)
        total = out.values().square().sum()
        (gradient,) = torch.autograd.grad(total, leaf)
    for n, (got, own) in enumerate(zip(out.transpose(1, 2).unbind(), rows, strict=True)):
        alone = there(own).transpose(0, 1)[None]
        want = F.attention(alone, alone, alone, causal=True)[0].transpose(0, 1)
        assert torch.equal(got, want), n
    assert gradient.device.type == DEVICE


# --- torch around it ----------------------------------------------------------------------------------------
def small(dtype=torch.float32, dims=32, device=DEVICE):
    """query, key, value of two key heads, a boolean mask."""
    generator = torch.Generator().manual_seed(3)
    shapes = ((2, 4, 70, dims), (2, 2, 75, dims), (2, 2, 75, dims))
    tensors = [torch.randn(s, generator=generator).to(device, dtype).requires_grad_() for s in shapes]
    return *tensors, (torch.rand(2, 1, 70, 75, generator=generator) > 0.3).to(device)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # by inductor itself
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_whole(backend):
    *inputs, mask = small(torch.bfloat16)
    lengths = torch.tensor([75, 40], device=DEVICE)

    def function(query, key, value):
        out = F.attention(query, key, value, mask=mask, key_lengths=lengths, dropout_p=0.2, seed=5)
        return out.transpose(1, 2).reshape(2, 70, -1)

    grad_out = torch.randn(2, 70, 4 * 32, dtype=torch.bfloat16, device=DEVICE)
    results = []
    for of in (function, torch.compile(function, backend=backend, fullgraph=True)):
        out = of(*inputs)
        results.append([out, *torch.autograd.grad(out, inputs, grad_out)])
    assert_same_bits(*results)
    assert [x.stride() for x in results[0]] == [x.stride() for x in results[1]]


def test_autocast():
    *inputs, mask = small()
    with torch.autocast(DEVICE, torch.bfloat16):
        out = F.attention(*inputs, mask=mask)
    assert out.dtype == torch.bfloat16
    low = [x.detach().bfloat16().requires_grad_() for x in inputs]
    want = F.attention(*low, mask=mask)
    assert_same_bits([out], [want])
    grads = torch.autograd.grad(out.float().sum(), inputs)
    assert_same_bits([g.bfloat16() for g in grads], torch.autograd.grad(want.float().sum(), low))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_drops_the_same_twice(reentrant):
    *inputs, mask = small(torch.bfloat16)

    def function(*inputs):
        return F.attention(*inputs, mask=mask, dropout_p=0.3)

    results = []
    for way in (function, lambda *inputs: checkpoint(function, *inputs, use_reentrant=reentrant)):
        torch.manual_seed(1)
        out = way(*inputs)
        for x in inputs:
            x.grad = None
        out.float().square().sum().backward()
        results.append([out, *(x.grad for x in inputs)])
    assert_same_bits(*results)


@pytest.mark.parametrize("masked", ["none", "causal", "boolean", "additive"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_scaled_dot_product_attention_as_torchs(dtype, masked):
    def results(function, device, to):
        *inputs, boolean = small(dtype, 64, device)
        inputs = [x.detach().to(to).requires_grad_() for x in inputs]
        additive = torch.linspace(-2, 2, 75, device=device).to(dtype).to(to).expand(70, 75)
        options = {"none": {}, "causal": {"is_causal": True}, "boolean": {"attn_mask": boolean}}
        out = function(*inputs, enable_gqa=True, **options.get(masked, {"attn_mask": additive}))
        return [x.detach().cpu() for x in (out, *torch.autograd.grad(out.square().sum(), inputs))]

    sdpa = torch.nn.functional.scaled_dot_product_attention
    ours = results(F.scaled_dot_product_attention, DEVICE, dtype)
    naive, exact = results(sdpa, "cpu", dtype), results(sdpa, "cpu", torch.float64)
    for name, *of in zip(("out", "query", "key", "value"), ours, naive, exact, strict=True):
        assert_as_exact(*of, name)


@pytest.mark.parametrize("need_weights", [False, True])
def test_multihead_attention_as_torchs(need_weights):
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(64, 4, batch_first=True)
    ours = fusestep.nn.MultiheadAttention(64, 4, batch_first=True, device=DEVICE)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 40, 64)
    padding = torch.arange(40) >= torch.tensor([40, 33, 9])[:, None]
    bias = torch.randn(40, 40)

    def results(module):
        weight = module.in_proj_weight
        own, own_padding, own_bias = (t.to(weight.device) for t in (x, padding, bias))
        own, own_bias = own.to(weight.dtype), own_bias.to(weight.dtype)
        own_padding = torch.zeros(own_padding.shape, dtype=weight.dtype, device=weight.device).masked_fill(
            own_padding, -math.inf
        )
        out, _ = module(own, own, own, key_padding_mask=own_padding, attn_mask=own_bias, need_weights=need_weights)
        return [t.detach().cpu() for t in (out, *torch.autograd.grad(out.square().mean(), list(module.parameters())))]

    got, naive = results(ours), results(theirs)
    exact = results(theirs.double())
    assert_as_exact(got[0], naive[0], exact[0])
    assert_all_as_exact(got[1:], naive[1:], exact[1:])


def test_a_grad_scaler_skips_what_overflows():
    torch.manual_seed(0)
    module = fusestep.nn.MultiheadAttention(32, 2, dropout=0.1, batch_first=True, device=DEVICE)
    optimizer = fusestep.optim.AdamW(module.parameters(), lr=1e-2, max_grad_norm=1.0)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**10)
    x = torch.randn(2, 40, 32, device=DEVICE)
    for number, factor in enumerate((1.0, math.inf, 1.0)):
        before = [p.detach().clone() for p in module.parameters()]
        optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.float16):
            out, _ = module(x, x, x, need_weights=False)
        scaler.scale(out.float().square().mean() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        changed = [not torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True)]
        assert not any(changed) if number == 1 else changed[0]
        assert all(torch.isfinite(p).all() for p in module.parameters())


@pytest.mark.parametrize("architecture", ["llama", "bert", "t5"])
def test_transformers(architecture):
    # Not our own module: it raises ImportError with what to install, which is no reason to skip to pytest.
    pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[test]'")
    import fusestep.integrations.transformers  # noqa: F401  # it registers our attention

    made = (
        ("fusestep", torch.float32, DEVICE), ("eager", torch.float32, "cpu"), ("eager", torch.float64, "cpu"),
    )  # fmt: skip
    results = []
    for implementation, dtype, device in made:
        model = tiny_transformers.make(architecture, implementation, dtype).to(device)
        results.append(tiny_transformers.outputs(model).detach().cpu())
    assert_as_exact(*results)


def test_the_command_trains(tmp_path, capsys):
    text = tmp_path / "text"
    text.write_bytes(bytes(range(32, 120)) * 40)
    tiny = ["--steps", "4", "--batch-size", "2", "--context", "16", "--eval-every", "2"]
    place = tmp_path / "run"
    assert cli.main(["train", "--text", str(text), "--run-dir", str(place), "--device", DEVICE, *tiny]) == 0
    losses = [json.loads(line)["loss"] for line in (place / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    resumed = ["train", "--resume", "--run-dir", str(place), "--device", DEVICE, "--steps", "5"]
    assert cli.main(resumed) == 0


# --- what has broken other libraries ------------------------------------------------------------------------
MANY = 300 if EMULATED else 66_000  # more than a grid's second and third dimension have room for


@pytest.mark.parametrize("of", ["heads", "batches"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_more_heads_than_a_grid_has_rows(dtype, of):
    shape = Shape(1, MANY, MANY, 3, 5, 8, 8) if of == "heads" else Shape(MANY, 1, 1, 3, 5, 8, 8)
    check(drawn(shape, {"causal": "bottom_right", "dropout_p": 0.1}), dtype)


def test_offsets_beyond_32_bits():
    """28,800 batches of short sequences with a head dim of 72: each is what it is alone."""
    batches, heads = (3, 2) if EMULATED else (28_800, 8)
    shape = (batches, heads, 130, 72)
    if not EMULATED and torch.cuda.mem_get_info()[0] < 9 * 2 * math.prod(shape):
        pytest.skip("needs nine arrays of 4.3 GB")
    generator = torch.Generator(DEVICE).manual_seed(0)
    inputs = [torch.randn(shape, generator=generator, device=DEVICE, dtype=torch.bfloat16) for _ in range(3)]
    assert EMULATED or inputs[0].numel() > 2**31
    grad_out = inputs[0]
    options = {"causal": True, "key_lengths": torch.full((batches,), 97, device=DEVICE)}
    results = run(inputs, grad_out, options)
    for n in (0, batches // 2, batches - 1):
        one = slice(n, n + 1)
        alone = run([x[one] for x in inputs], grad_out[one], {**options, "key_lengths": options["key_lengths"][one]})
        assert_same_bits([x[one] for x in results], alone)


@pytest.mark.parametrize("dtype", LOW)
def test_packed_sequences_without_queries_or_keys(dtype):
    for query_ends, key_ends in (
        ([0, 0, 70, 70, 100], [0, 33, 33, 98, 130]),
        ([0, 0, 0, 0, 0], [0, 0, 10, 10, 130]),
        ([0, 100, 100, 100, 100], [0, 0, 0, 0, 0]),
        ([0, 10, 20, 30, 40], [0, 1, 2, 3, 4]),
    ):
        problem = drawn(Shape(1, 2, 1, 100, 130, 64, 64), {"causal": "bottom_right", "dropout_p": 0.2})
        problem.options |= {"cu_seqlens_q": np.array(query_ends), "cu_seqlens_k": np.array(key_ends)}
        check(problem, dtype)


@pytest.mark.parametrize("dtype", LOW)
def test_one_key_leaves_exactly_no_gradient(dtype):
    """The weight is 1 whatever the score is. Whole numbers, so that every sum is exact."""
    generator = torch.Generator().manual_seed(0)

    def whole(most, *shape):
        return there(torch.randint(-most, most + 1, shape, generator=generator).to(getattr(torch, dtype)))

    inputs = [whole(64, 2, 4, 1, 64), whole(64, 2, 2, 1, 64), whole(8, 2, 2, 1, 64)]
    grad_out = whole(8, 2, 4, 1, 64)
    out, _, grad_query, grad_key, grad_value = run(inputs, grad_out, {})
    assert torch.equal(out, inputs[2].repeat_interleave(2, dim=1))
    assert not grad_query.any()
    assert not grad_key.any()
    assert torch.equal(grad_value, grad_out.unflatten(1, (2, 2)).sum(2))


@pytest.mark.parametrize("dtype", LOW)
def test_three_keys_for_146_queries(dtype):
    problem = drawn(Shape(2, 2, 1, 146, 3, 64, 64), {"causal": "bottom_right"}).rounded(dtype)
    results = run(*on_device(problem, dtype))
    judge(results, problem, dtype)
    assert not results[0][:, :, :143].any()
    assert not results[2][:, :, :143].any()
    assert (results[1][:, :, :143] == -math.inf).all()


def test_keys_of_stride_zero_over_heads():
    problem = drawn(Shape(2, 4, 4, 70, 75, 64, 64), {"causal": True, "dropout_p": 0.2}).rounded("bfloat16")
    inputs, grad_out, options = on_device(problem, "bfloat16")
    expanded = [inputs[0], *(x[:, :1].expand_as(x) for x in inputs[1:])]
    assert expanded[1].stride(1) == 0
    assert_same_bits(run(expanded, grad_out, options), run([x.contiguous() for x in expanded], grad_out, options))


@pytest.mark.parametrize("length", [1, 33, 65, 97, 129])
@pytest.mark.parametrize("dtype", LOW)
def test_key_lengths_of_one_more_than_a_multiple_of_32(dtype, length):
    """What lies behind them is not looked at."""
    problem = drawn(Shape(2, 2, 1, 40, 140, 64, 64), {"dropout_p": 0.1}).rounded(dtype)
    problem.options["key_lengths"] = np.array([length, 140])
    inputs, grad_out, options = on_device(problem, dtype)
    results = run(inputs, grad_out, options)
    judge(results, problem, dtype)
    for x in inputs[1:]:
        x[0, :, length:] = math.nan
    assert_same_bits(run(inputs, grad_out, options), results)


@pytest.mark.parametrize("mask", ["bhqk", "1hqk", "b11k", "hq1"])
@pytest.mark.parametrize("dtype", LOW)
def test_masks_of_float32_beside_queries_of_16_bits(dtype, mask):
    problem = drawn(Shape(2, 2, 1, 70, 75, 64, 64), {"mask": ("excluding", mask), "causal": True})
    whole = problem.options["mask"]
    problem = problem.rounded(dtype)
    problem.options["mask"] = attention_cases.round_to(whole, "float32")  # numbers that 16 bits cannot hold
    inputs, grad_out, options = on_device(problem, dtype)
    options["mask"] = there(problem.options["mask"])
    results = run(inputs, grad_out, options)
    assert results[-1].dtype == torch.float32
    judge(results, problem, dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_gradients_whose_strides_differ_from_the_outputs(dtype):
    problem = drawn(Shape(2, 4, 2, 70, 75, 64, 40), {"causal": True}).rounded(dtype)
    inputs, grad_out, options = on_device(problem, dtype)
    want = run(inputs, grad_out, options)
    wider = torch.full((*grad_out.shape, 2), math.nan, dtype=grad_out.dtype, device=DEVICE)
    wider[..., 1] = grad_out
    by_rows = grad_out.transpose(2, 3).contiguous().transpose(2, 3)
    as_out = grad_out.transpose(1, 2).contiguous().transpose(1, 2)
    for other in (wider[..., 1], by_rows, as_out):
        assert_same_bits(run(inputs, other, options), want)
    same_everywhere = grad_out[:1, :1, :1, :1].expand_as(grad_out)  # as of a sum
    assert_same_bits(run(inputs, same_everywhere, options), run(inputs, same_everywhere.contiguous(), options))


def unaligned(mask):
    """Rows that begin one element after an address of 16 bytes, and one element apart from such."""
    wider = torch.zeros(*mask.shape[:-1], mask.shape[-1] + 2, dtype=mask.dtype, device=mask.device)[..., 1:-1]
    return wider.copy_(mask)


def broadcast(mask):
    """Strides of 0 over batches and queries."""
    return mask[:1, :, :1].expand_as(mask)


def columns_first(mask):
    return mask.transpose(2, 3).contiguous().transpose(2, 3)


@pytest.mark.parametrize("lay_out", [unaligned, broadcast, columns_first])
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("keys", [64, 75, 129])
def test_layouts_of_masks(keys, mask_dtype, lay_out):
    inputs, grad_out, _ = on_device(drawn(Shape(2, 2, 2, 70, keys, 64, 64), {}).rounded("bfloat16"), "bfloat16")
    mask = torch.randn(2, 2, 70, keys, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    mask = mask > -0.5 if mask_dtype == torch.bool else mask.to(mask_dtype)
    laid_out = lay_out(mask)
    assert_same_bits(
        run(inputs, grad_out, {"mask": laid_out})[:5], run(inputs, grad_out, {"mask": laid_out.contiguous()})[:5]
    )


class Reversed(Exporter):
    """A tensor whose last dimension is counted backwards: torch has no negative strides."""

    def __init__(self, x):
        codes = {torch.bool: 6, torch.bfloat16: 4}
        self.flipped = x.flip(-1).contiguous()
        itemsize, last = x.dtype.itemsize, x.shape[-1] - 1
        super().__init__(
            np.empty(x.shape, f"V{itemsize}"),
            data=self.flipped.data_ptr() + last * itemsize,
            device_type=CPU if EMULATED else CUDA,
            strides=(*self.flipped.stride()[:-1], -1),
            code=codes.get(x.dtype, 2),
        )


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("keys", [64, 75, 129])
def test_masks_of_negative_strides(keys, mask_dtype):
    inputs, _, _ = on_device(drawn(Shape(2, 2, 2, 70, keys, 64, 64), {}).rounded("bfloat16"), "bfloat16")
    mask = torch.randn(2, 2, 70, keys, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    mask = mask > -0.5 if mask_dtype == torch.bool else mask.to(mask_dtype)
    assert_same_bits(ops.attention(*inputs, mask=Reversed(mask)), ops.attention(*inputs, mask=mask))


@pytest.mark.parametrize("name", ["boolean", "additive"])
@pytest.mark.parametrize("dtype", LOW)
def test_very_negative_sums_in_a_last_tile_of_half_its_size(dtype, name):
    """192 = 128 + 64 keys and queries; scores of about -1,000."""
    problem = drawn(Shape(1, 2, 1, 192, 192, 64, 64), FEATURES[name]).rounded(dtype)
    problem.query[:], problem.key[:] = -8, 16
    check(problem, dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("queries", "keys"), [(1, 300), (2, 129), (300, 1), (260, 3)])
def test_lengths_far_apart(queries, keys, dtype):
    for features in ({"causal": "bottom_right"}, {"mask": ("additive", "1hqk"), "dropout_p": 0.3}):
        check(drawn(Shape(1, 2, 1, queries, keys, 64, 64), features), dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_only_the_mask_has_a_gradient(dtype):
    problem = drawn(Shape(2, 2, 1, 70, 75, 64, 64), {"mask": ("additive", "1hqk"), "dropout_p": 0.1}).rounded(dtype)
    inputs, grad_out, options = on_device(problem, dtype)
    mask = options.pop("mask").requires_grad_()
    out = F.attention(*inputs, mask=mask, **options)
    (grad_mask,) = torch.autograd.grad(out, mask, grad_out)
    bound = tolerances.attention(problem, dtype)["grad_mask"]
    assert_within(wide(grad_mask.cpu()), expected(problem)["grad_mask"], bound)
