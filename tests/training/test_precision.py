"""Training in 16 bits: the parameters themselves in bfloat16, and float32 parameters under autocast."""

from __future__ import annotations

import fusestep.optim
import pytest
import small_runs
import torch
from fusestep import training
from fusestep.cli import main, train
from fusestep.losses import cross_entropy
from fusestep.schedules import WarmupCosine
from fusestep.training import TrainConfig, Trainer, read_metrics
from small_runs import one_thread  # noqa: F401  # for every test of this file

STEPS = 40
PRECISIONS = tuple(training.PRECISIONS)


def make_trainer(precision, steps=STEPS, *, seed=0, run_dir=None, history=None):
    low = precision == "bf16"
    model = small_runs.model(seed).to(torch.bfloat16 if low else torch.float32)
    rounding = {"rounding": "stochastic", "seed": 4} if low else {}
    optimizer = fusestep.optim.AdamW(model.parameters(), lr=1e-3, **rounding)
    config = small_runs.config(steps, run_dir=run_dir, precision=precision, max_grad_norm=1.0)
    callbacks = [] if history is None else [history.append]
    return Trainer(model, optimizer, WarmupCosine(1e-2, 3, STEPS, initial_lr=1e-3), config, callbacks=callbacks)


def losses_of(precision):
    history = []
    torch.manual_seed(5)
    make_trainer(precision, history=history).fit(*small_runs.data())
    return torch.tensor([m.loss for m in history]), history[-1].val_loss


@pytest.mark.parametrize("precision", ["bf16", "bf16-autocast"])
def test_the_loss_is_that_of_fp32_within_noise(precision):
    low, low_val = losses_of(precision)
    full, full_val = losses_of("fp32")
    # Before the first update only weights and activations are rounded, to 8 bits, a few dozen times on the way.
    assert abs(low[0] - full[0]) < 2.0**-6 * full[0]
    # A batch is four sequences: the losses of steps next to each other differ by a tenth. Their means hardly do.
    assert abs(low[-10:].mean() - full[-10:].mean()) < 0.03 * full[-10:].mean()
    assert abs(low_val - full_val) < 0.03 * full_val
    assert full_val < 0.8 * full[0]  # there was something to learn


def test_what_is_computed_in_what():
    seen = {}

    def note(precision):
        def hook(module, inputs, output):
            seen[precision] = (module.weight.dtype, output.dtype)

        trainer = make_trainer(precision, 2)
        trainer.model.blocks[0].mlp[0].register_forward_hook(hook)
        trainer.fit(*small_runs.data())

    for precision in PRECISIONS:
        note(precision)
    single, half = torch.float32, torch.bfloat16
    assert seen == {"fp32": (single, single), "bf16": (half, half), "bf16-autocast": (single, half)}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_resume_is_the_straight_run_bit_for_bit(tmp_path, precision):
    torch.manual_seed(5)
    straight = make_trainer(precision, 12)
    torch.manual_seed(5)
    straight.fit(*small_runs.data())
    first = make_trainer(precision, 7, run_dir=tmp_path)
    torch.manual_seed(5)
    first.fit(*small_runs.data())
    second = make_trainer(precision, 12, seed=9, run_dir=tmp_path)
    second.fit(*small_runs.data(seed=9), resume_from=tmp_path / "checkpoints")
    for name, tensor in second.model.state_dict().items():
        assert torch.equal(tensor, straight.model.state_dict()[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_of_16_bit_logits_is_computed_in_float32(dtype):
    logits = torch.randn(64, 300, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    targets = torch.arange(64)
    loss = cross_entropy(logits, targets)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, cross_entropy(logits.detach().float(), targets))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.dtype == dtype
    soft = torch.full((64, 300), 1 / 300, dtype=dtype)
    assert torch.equal(cross_entropy(logits, soft), cross_entropy(logits.float(), soft.float()))


# --- bad input ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("bf16", torch.float32), ("fp32", torch.bfloat16), ("bf16-autocast", torch.bfloat16)],
)
def test_a_model_of_another_dtype_is_refused_before_anything_is_read(precision, dtype):
    model = small_runs.model().to(dtype)
    optimizer = fusestep.optim.SGD(model.parameters(), lr=1e-3)
    trainer = Trainer(model, optimizer, lambda _: 1e-3, small_runs.config(1, precision=precision))
    with pytest.raises(TypeError, match=r"^Trainer.fit: parameter 'tokens.weight': expected torch.\w+ with precision="):
        trainer.fit(iter(()))


def test_an_unknown_precision():
    with pytest.raises(ValueError, match="TrainConfig: precision: expected one of fp32, bf16, bf16-autocast, got 'f'"):
        TrainConfig(1, precision="f")


# --- the command --------------------------------------------------------------------------------------------
TINY = ["--steps", "6", "--batch-size", "2", "--context", "16", "--eval-every", "3"]


def test_the_command_has_the_trainers_names():
    assert train.PRECISIONS == PRECISIONS


@pytest.mark.parametrize(
    ("precision", "optimizer"),
    [
        pytest.param("bf16", "adamw", marks=pytest.mark.exhaustive),
        ("bf16", "sgd"),
        ("bf16-autocast", "adamw"),
    ],
)
def test_the_command_trains_and_resumes(tmp_path, capsys, precision, optimizer):
    command = ["train", "--run-dir", str(tmp_path / "run"), *TINY]
    assert main([*command, "--precision", precision, "--optimizer", optimizer]) == 0
    assert main([*command, "--resume", "--steps", "8"]) == 0
    assert [m.step for m in read_metrics(tmp_path / "run/metrics.jsonl")] == list(range(1, 9))
    capsys.readouterr()
    other = PRECISIONS[PRECISIONS.index(precision) - 1]
    assert main([*command, "--resume", "--precision", other]) == 2
    assert f"--precision: expected {precision} as the run began with, got {other}" in capsys.readouterr().err
