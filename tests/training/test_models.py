"""The GPT is what it says it is."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import small_runs
import torch
from exactness import assert_all_as_exact, assert_as_exact
from fusestep.losses import cross_entropy
from fusestep.models import GPT, GPTConfig
from fusestep.optim import AdamW
from small_runs import one_thread  # noqa: F401  # for every test of this file


def test_default_size():
    # 256 * 128 embeddings, four blocks of 198,272, the last norm.
    assert sum(p.numel() for p in small_runs.model(0, GPTConfig()).parameters()) == 826_112


def test_looks_only_backwards():
    model = small_runs.model().double().eval()
    torch.manual_seed(0)
    tokens = torch.randint(0, 256, (3, 16))
    logits = model(tokens)
    for position in range(16):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 1) % 256
        differs = (model(changed) != logits).any(dim=2).any(dim=0)
        assert not differs[:position].any()
        assert differs[position:].all()


def test_positions_are_distances():
    # With one layer, the scores of a query do not change when everything before it moves along with it.
    model = small_runs.model(0, GPTConfig(context=32, layers=1, heads=2, width=16)).double().eval()
    rotary = model.blocks[0].attention.rotary
    torch.manual_seed(0)
    x = torch.randn(8, dtype=torch.float64)
    turned = rotary(x.expand(32, 8))
    scores = turned @ turned.T
    for distance in range(32):
        line = torch.diagonal(scores, distance)
        # The angles are rounded to float32, up to 31 radians of them: half an ulp of 31 is 2^-20.
        assert float((line - line[0]).abs().max()) <= 2 * 2.0**-20 * float(x.square().sum())
    assert float(scores[0, 5]) != pytest.approx(float(scores[0, 6]), abs=1e-3)


def test_head_is_the_embedding():
    model = small_runs.model()
    assert not [name for name, _ in model.named_parameters() if "head" in name]
    model(torch.zeros(1, 1, dtype=torch.int64))[..., 7].sum().backward()
    assert model.tokens.weight.grad[7].abs().max() > 0.0  # as head; the token itself was 0


def test_knows_nothing_at_first():
    # Uniform guesses cost ln 256; the random logits have a variance of about width * 0.1^2 = 2, of which half is added.
    model = small_runs.model(0, GPTConfig()).eval()
    inputs, targets = torch.randint(0, 256, (2, 8, 64), generator=torch.Generator().manual_seed(0))
    loss = float(cross_entropy(model(inputs), targets).detach())
    assert math.log(256) < loss < math.log(256) + 2.0


def test_dropout_only_in_training():
    model = small_runs.model()
    tokens = torch.zeros(1, 16, dtype=torch.int64)
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_kernels_agree_without_dropout():
    """The same weights and batches, on our kernels and on torch's."""
    shape = replace(small_runs.SHAPE, dropout=0.0)
    ours, theirs = (small_runs.model(0, replace(shape, kernels=kernels)) for kernels in ("fusestep", "torch"))
    exact = small_runs.model(0, replace(shape, kernels="torch")).double()
    inputs, targets = torch.randint(0, 256, (2, 4, 16), generator=torch.Generator().manual_seed(0))
    results = []
    for model in (ours, theirs, exact):
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    assert_all_as_exact(*results)


def test_loss_curves_agree():
    """Ten steps: rounding errors are carried on by the training, ours no further than torch's."""
    curves = []
    for kernels, dtype in (("fusestep", torch.float32), ("torch", torch.float32), ("torch", torch.float64)):
        model = small_runs.model(0, replace(small_runs.SHAPE, dropout=0.0, kernels=kernels)).to(dtype)
        optimizer = AdamW(model.parameters(), lr=2e-3, max_grad_norm=1.0)
        losses = []
        batches = small_runs.data()[0]
        for inputs, targets in itertools.islice(itertools.chain(batches, batches), 10):
            loss = cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        curves.append(torch.stack(losses))
    ours, theirs, exact = curves
    assert exact[-1] < exact[0]
    assert_as_exact(ours, theirs, exact)


def test_kernels_agree_on_average_with_dropout():
    """The loss of many masks: drawn differently, distributed alike."""
    inputs, targets = torch.randint(0, 256, (2, 4, 16), generator=torch.Generator().manual_seed(0))
    means, deviations = [], []
    for kernels in ("fusestep", "torch"):
        model = small_runs.model(0, replace(small_runs.SHAPE, dropout=0.5, kernels=kernels))
        with torch.no_grad():
            losses = torch.stack([cross_entropy(model(inputs), targets) for _ in range(400)]).double()
        means.append(losses.mean())
        deviations.append(losses.std() / len(losses) ** 0.5)
    assert deviations[0] > 0
    # Six standard deviations of the difference of two means.
    assert (means[0] - means[1]).abs() < 6 * (deviations[0] ** 2 + deviations[1] ** 2).sqrt()


def test_generation_is_repeatable_and_leaves_no_trace():
    model = small_runs.model().train()
    rng = torch.get_rng_state()

    def draw(seed):
        return model.generate(b"ab", 40, generator=torch.Generator().manual_seed(seed))  # longer than the context

    text = draw(0)
    assert text == draw(0) != draw(1)
    assert text.startswith(b"ab")
    assert len(text) == 42
    assert model.training
    assert torch.equal(torch.get_rng_state(), rng)


def test_cold_generation_takes_the_likeliest():
    model = small_runs.model().eval()
    text = model.generate(b"x", 5, temperature=1e-6, generator=torch.Generator().manual_seed(0))
    for end in range(1, 6):
        assert int(model(torch.tensor([list(text[:end])]))[0, -1].argmax()) == text[end]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": 0}, "GPTConfig: layers: expected an integer >= 1, got 0"),
        ({"kernels": "mine"}, "GPTConfig: kernels: expected one of fusestep, torch, got 'mine'"),
        ({"dropout": 1.0}, "GPTConfig: dropout: expected a finite number >= 0 and < 1, got 1.0"),
        ({"width": 20, "heads": 3}, r"GPTConfig: width: expected a multiple of 2 \* heads = 6, got 20"),
    ],
)
def test_wrong_shapes_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**settings)


def test_wrong_calls_are_refused():
    model = GPT(small_runs.SHAPE)
    with pytest.raises(ValueError, match="GPT: tokens: expected at most context = 16 positions, got 17"):
        model(torch.zeros(1, 17, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"GPT.generate: prompt: expected at least one byte, got none"):
        model.generate(b"", 3)
    with pytest.raises(ValueError, match=r"GPT.generate: temperature: expected a finite number > 0, got 0.0"):
        model.generate(b"a", 3, temperature=0.0)
