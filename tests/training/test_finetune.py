"""Fine-tuning: only what was added is trained, the start is the model as it was, and the loss of real text falls."""

from __future__ import annotations

import copy
import itertools

import pytest
import small_runs
import torch
from fusestep.finetune import add_adapters, add_lora, add_prefix, fuse_adapters, merge_lora, trained_share
from fusestep.losses import cross_entropy
from fusestep.models import GPTConfig
from fusestep.optim import AdamW
from small_runs import one_thread  # noqa: F401  # for every test of this file

WIDE = GPTConfig(context=small_runs.CONTEXT, layers=2, heads=2, width=64, dropout=0.0)
METHODS = {
    "lora": lambda model: add_lora(model, ["qkv", "attention.out"], rank=4),
    "adapters": lambda model: add_adapters(model, "task", width=64, bottleneck=8),
    "prefix": lambda model: add_prefix(model, length=4),
}


def tokens(seed=0):
    return torch.randint(0, 256, (3, small_runs.CONTEXT), generator=torch.Generator().manual_seed(seed))


def train(model, steps=12, lr=1e-2):
    """The mean losses of the first and the last three batches of real text."""
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    batches, losses = small_runs.data()[0], []
    for inputs, targets in itertools.islice(itertools.chain.from_iterable(itertools.repeat(batches)), steps):
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return sum(losses[:3]) / 3, sum(losses[-3:]) / 3


def copies(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_the_start_is_the_model_as_it_was(method, dtype):
    model = small_runs.model(0, WIDE).to(dtype)
    before = model(tokens())
    METHODS[method](model)
    assert torch.equal(model(tokens()), before)
    assert 0 < trained_share(model) < 0.1


@pytest.mark.parametrize("method", METHODS)
def test_only_what_was_added_moves_and_the_loss_falls(method):
    model = small_runs.model(0, WIDE)
    base = {name for name, _ in model.named_parameters()}
    METHODS[method](model)
    before = copies(model)
    first, last = train(model)
    assert last < first
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moved == trained
    assert not {name.replace(".base_layer", "") for name in moved} & base


@pytest.mark.parametrize("method", ["adapters", "prefix"])
def test_the_base_model_keeps_its_names_and_a_copy_is_independent(method):
    model = small_runs.model(0, WIDE)
    base = model.state_dict()
    METHODS[method](model)
    assert set(base) <= set(model.state_dict())
    twin = copy.deepcopy(model)
    train(twin)
    assert torch.equal(model(tokens()), small_runs.model(0, WIDE)(tokens()))
    assert not torch.equal(twin(tokens()), model(tokens()))
    model.load_state_dict(twin.state_dict())
    assert torch.equal(twin(tokens()), model(tokens()))


def test_lora_is_its_formula_and_merges():
    model = small_runs.model(0, WIDE).double()
    plain = copy.deepcopy(model)
    add_lora(model, ["qkv"], rank=4, alpha=12)
    drawn = torch.cat([p.detach().flatten() for name, p in model.named_parameters() if "lora_A" in name])
    # Four standard errors of a variance of 2 * 4 * 64 draws.
    assert float(drawn.var()) == pytest.approx(1 / 4**2, rel=4 * (2 / drawn.numel()) ** 0.5)
    train(model)
    for ours, theirs in zip(model.blocks, plain.blocks, strict=True):
        layer = ours.attention.qkv
        product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        theirs.attention.qkv.weight.data += 12 / 4 * product.detach()
    expected = plain(tokens())
    torch.testing.assert_close(model(tokens()), expected, rtol=1e-12, atol=1e-12)
    merge_lora(model)
    assert set(model.state_dict()) == set(plain.state_dict())
    torch.testing.assert_close(model(tokens()), expected, rtol=1e-12, atol=1e-12)


def test_an_adapter_is_its_formula():
    model = small_runs.model(0, WIDE).double()
    h = torch.randn(3, 5, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mlp = model.blocks[1].mlp
    plain = mlp(h)
    (_, adapter) = add_adapters(model, "task", ["mlp"], width=64, bottleneck=8)
    torch.nn.init.normal_(adapter.up.weight)
    torch.nn.init.normal_(adapter.up.bias)
    inner = torch.nn.functional.gelu(plain @ adapter.down.weight.T + adapter.down.bias)
    torch.testing.assert_close(mlp(h), plain + inner @ adapter.up.weight.T + adapter.up.bias)


def test_fusion_in_two_stages():
    model = small_runs.model(0, WIDE)
    plain = model(tokens())
    parameters = {}
    for name in ("first", "second"):
        add_adapters(model, name, width=64, bottleneck=8)
        assert torch.equal(model(tokens()), plain)  # the other adapter rests
        before = copies(model)
        train(model)
        parameters = copies(model)
        assert all(torch.equal(p, before[moved]) or f".{name}." in moved for moved, p in parameters.items())
    fusions = fuse_adapters(model, ["first", "second"])
    assert len(fusions) == 4
    first, last = train(model, lr=1e-3)
    assert last < first
    for name, p in model.named_parameters():
        if name in parameters:
            assert torch.equal(p, parameters[name]), name
        else:
            assert ".fusion." in name
            assert p.requires_grad


def test_a_fusion_begins_as_the_mean_of_equal_adapters():
    model = small_runs.model(0, WIDE)
    plain = model(tokens())
    for name in ("first", "second"):
        add_adapters(model, name, width=64, bottleneck=8)
    fuse_adapters(model, ["first", "second"])
    assert torch.equal(model(tokens()), plain)  # of zeros


def test_a_fusion_is_its_formula():
    model = small_runs.model(0, WIDE).double()
    h = torch.randn(3, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain = model.blocks[0].mlp(h)
    adapters = [add_adapters(model, name, ["mlp"], width=64, bottleneck=8)[0] for name in ("first", "second")]
    fusion, _ = fuse_adapters(model, ["first", "second"])
    for p in (*adapters[0].parameters(), *adapters[1].parameters(), *fusion.parameters()):
        torch.nn.init.normal_(p, std=0.3)
    for row, out in zip(plain, model.blocks[0].mlp(h), strict=True):
        added = [adapter(row) for adapter in adapters]
        query = fusion.query.weight @ row
        scores = torch.stack([query @ (fusion.key.weight @ (row + a)) for a in added]) / 64**0.5
        weights = scores.softmax(0)
        expected = row + sum(w * (fusion.value.weight @ a) for w, a in zip(weights, added, strict=True))
        torch.testing.assert_close(out, expected)


def test_a_prefix_is_its_formula():
    model = small_runs.model(0, WIDE).double()
    attention = model.blocks[0].attention
    x = torch.randn(2, 5, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain = attention(x)
    prefix = add_prefix(model, length=3)[0]
    torch.nn.init.normal_(prefix.gate)
    query = attention.qkv(x)[..., :64].view(2, 5, 2, 32).transpose(1, 2)
    weights = (query @ prefix.key.transpose(-1, -2) / 32**0.5).softmax(-1)
    added = (prefix.gate.tanh() * (weights @ prefix.value)).transpose(1, 2).reshape(2, 5, 64)
    torch.testing.assert_close(attention(x), plain + added @ attention.out.weight.T)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: add_lora(m, ["qvk"]), ValueError, r"add_lora: targets: .*, got 'qvk'. Did you mean 'qkv'\?"),
        (lambda m: add_lora(m, ["norm1"]), ValueError, r"add_lora: targets: expected linear layers, got .*LayerNorm"),
        (lambda m: add_lora(m, "qkv"), TypeError, r"add_lora: targets: .*Pass \['qkv'\]"),
        (lambda m: add_lora(m, ["qkv"], rank=0), ValueError, "add_lora: rank: expected an integer >= 1, got 0"),
        (lambda m: add_lora(m, ["qkv"], alpha=0), ValueError, "add_lora: alpha: expected an integer >= 1, got 0"),
        (lambda m: add_lora(m, ["qkv"], dropout=1), ValueError, "add_lora: dropout: expected a finite number"),
        (lambda m: add_adapters(m, "a b", width=64), ValueError, "add_adapters: name: expected a Python identifier"),
        (lambda m: add_adapters(m, "a", width=0), ValueError, "add_adapters: width: expected an integer >= 1, got 0"),
        (lambda m: add_adapters(m, "a", ["x"], width=64), ValueError, "add_adapters: targets: .*, got 'x'"),
        (lambda m: fuse_adapters(m, ["a", "b"]), ValueError, "fuse_adapters: names: .* no adapters, got a, b"),
        (lambda m: add_prefix(m, 0), ValueError, "add_prefix: length: expected an integer >= 1, got 0"),
        (lambda m: add_prefix(torch.nn.Linear(1, 1)), TypeError, "add_prefix: model: expected a fusestep.models.GPT"),
        (merge_lora, ValueError, "merge_lora: model: expected a model with LoRA, got one without"),
    ],
)  # fmt: skip
def test_refusals_change_nothing(call, error, message):
    model = small_runs.model(0, WIDE)
    before = list(model.state_dict())
    with pytest.raises(error, match="^" + message):
        call(model)
    assert list(model.state_dict()) == before
    assert all(p.requires_grad for p in model.parameters())


def test_what_is_there_is_refused():
    model = small_runs.model(0, WIDE)
    add_adapters(model, "first", ["mlp"], width=64)
    add_adapters(model, "second", ["attention"], width=64)
    with pytest.raises(ValueError, match="add_adapters: name: expected a new name, got 'first', which the model has"):
        add_adapters(model, "first", ["attention"], width=64)
    with pytest.raises(ValueError, match="fuse_adapters: names: expected adapters at the same places"):
        fuse_adapters(model, ["first", "second"])
    add_prefix(model)
    with pytest.raises(ValueError, match="add_prefix: model: expected a model without a prefix"):
        add_prefix(model)
