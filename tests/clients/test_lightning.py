"""fusestep's optimizers under Lightning: plain, in bf16-mixed and bf16-true, and how gradients are clipped there."""

from __future__ import annotations

import warnings

import pytest
import torch
from fusestep.optim import AdamW
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own imports use what other packages have deprecated
    import lightning

pytestmark = pytest.mark.filterwarnings("ignore::Warning:lightning", "ignore:.*isinstance.treespec.*:FutureWarning")


class Regression(lightning.LightningModule):
    def __init__(self, optimizer_class, **options):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
        self.optimizer_class, self.options = optimizer_class, options
        self.losses = []

    def training_step(self, batch):
        x, y = batch
        loss = nn.functional.mse_loss(self.net(x), y)
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self):
        return self.optimizer_class(self.parameters(), lr=0.02, **self.options)


def batches():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 8, generator=generator)
    data = torch.utils.data.TensorDataset(x, x.sum(dim=1, keepdim=True))
    return torch.utils.data.DataLoader(data, batch_size=16)


def fit(module, **trainer_options):
    trainer = lightning.Trainer(
        max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **trainer_options,
    )  # fmt: skip
    trainer.fit(module, batches())
    return module


def falls(losses):
    """From the first epoch, of four batches, to the last."""
    return sum(losses[-4:]) < sum(losses[:4])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_trains_as_torchs_own(precision):
    ours = fit(Regression(AdamW), precision=precision)
    theirs = fit(Regression(torch.optim.AdamW), precision=precision)
    # 16 updates of at most lr each; where a bf16 rounding of an activation falls the other way, the loss moves by 2**-8
    tolerance = 1e-5 if precision == "32-true" else 2.0**-6
    assert ours.losses == pytest.approx(theirs.losses, rel=tolerance)
    assert falls(ours.losses)


@pytest.mark.parametrize(
    "options", [{}, {"rounding": "stochastic", "seed": 1}, {"rounding": "kahan"}, {"master_weights": True}]
)
def test_trains_a_model_in_bf16(options):
    ours = fit(Regression(AdamW, **options), precision="bf16-true")
    assert all(p.dtype == torch.bfloat16 for p in ours.parameters())
    # What a step in 16 bits gives is tested against torch's in tests/torch/test_torch_16bit.py.
    assert falls(ours.losses)


def test_lightnings_own_clipping_in_full_precision():
    ours = fit(Regression(AdamW), gradient_clip_val=0.1)
    theirs = fit(Regression(torch.optim.AdamW), gradient_clip_val=0.1)
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)


def test_in_mixed_precision_the_optimizer_clips():
    """Lightning refuses gradient_clip_val there, as for torch's fused optimizers: max_grad_norm is the way."""
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        fit(Regression(AdamW), precision="bf16-mixed", gradient_clip_val=0.1)
    clipped = fit(Regression(AdamW, max_grad_norm=0.1), precision="bf16-mixed")
    free = fit(Regression(AdamW, max_grad_norm=float("inf")), precision="bf16-mixed")
    optimizer = clipped.optimizers().optimizer
    assert optimizer.grad_norm > 0.1  # there was something to clip
    assert falls(clipped.losses)
    assert clipped.losses != free.losses
