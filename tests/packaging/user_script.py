"""A user's program over the whole public API. Type checkers find nothing in it, and it runs.

python user_script.py RUN_DIR
"""

from __future__ import annotations

import sys
from pathlib import Path

import fusestep
import fusestep.nn as fnn
import fusestep.nn.functional as F
import numpy as np
import numpy.typing as npt
import torch
from fusestep import TrainConfig, Trainer, ops
from fusestep.data import RandomBatches, split_text
from fusestep.diagnostics import overfit_one_batch
from fusestep.losses import cross_entropy, l2_penalty
from fusestep.models import GPT, GPTConfig
from fusestep.nn.init import init_weights_
from fusestep.nn.utils import clip_grad_norm_
from fusestep.optim import SGD, Adagrad, Adam, AdamW, RMSprop
from fusestep.schedules import WarmupCosine
from torch import Tensor, nn


class Encoder(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = fnn.MultiheadAttention(dim, heads, dropout=0.1, batch_first=True)
        self.dropout = fnn.Dropout(0.1)
        self.head = nn.Linear(dim, 10)
        init_weights_(self.head, "linear", distribution="uniform")

    def forward(self, x: Tensor) -> Tensor:
        mixed, _ = self.attention(x, x, x, need_weights=False)
        out: Tensor = self.head(x + self.dropout(mixed))
        return out


def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """As lists, as groups and by name; each with options of its own."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return [
        AdamW(groups, lr=1e-3, betas=(0.9, 0.95), max_grad_norm=1.0, on_nonfinite="skip", decay="independent"),
        Adam(model.parameters(), lr=torch.tensor(1e-3), amsgrad=True, max_grad_value=0.5),
        RMSprop(model.named_parameters(), lr=1e-3, alpha=0.9, centered=True, norm_type=float("inf")),
        Adagrad(model.parameters(), lr=1e-2, state_dtype=torch.float32),
        SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, clip_factor=0.5, max_grad_norm=2.0),
    ]


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, target: Tensor) -> float:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(inputs).flatten(0, 1), target.flatten(), label_smoothing=0.1, z_loss=1e-4)
    loss = loss + l2_penalty(model.parameters(), 1e-5)
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation there
    norm: Tensor = clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item() + norm.item()


def functions() -> list[Tensor]:
    q, k, v = (torch.randn(2, 4, 6, 8, requires_grad=True) for _ in range(3))
    mask = torch.ones(6, 6, dtype=torch.bool)
    out = F.attention(q, k, v, mask=mask, causal="bottom_right", window=(4, None), dropout_p=0.1, seed=17)
    both = F.attention(q, k, v, softcap=30.0, return_lse=True)
    again = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=False)
    weights = F.masked_softmax(q @ k.mT, mask=mask, scale=0.5)
    dropped = F.dropout_add(F.dropout(out, 0.5), again, p=0.1)
    loss = F.linear_cross_entropy(out.reshape(-1, 8), torch.randn(5, 8), torch.zeros(48, dtype=torch.int64))
    return [out, both[0], both[1], weights, dropped, loss]


def plain_arrays() -> npt.NDArray[np.float32]:
    param, grad = np.ones(10, np.float32), np.full(10, 0.5, np.float32)
    exp_avg, exp_avg_sq = np.zeros_like(param), np.zeros_like(param)
    norm: float | None = ops.adamw_([param], [grad], [exp_avg], [exp_avg_sq], step=1, lr=0.1, max_grad_norm=1.0)
    assert norm == ops.grad_norm([grad])
    dropped: npt.NDArray[np.float32] = ops.dropout(param, p=0.5, seed=17)
    return dropped


def whole_loop(run_dir: Path) -> float:
    train, val = split_text(b"a small text, again and again. " * 60)
    model = GPT(GPTConfig(context=16, layers=1, heads=2, width=16))
    optimizer = AdamW(model.parameters(), lr=1e-3, max_grad_norm=1.0)
    schedule = WarmupCosine(peak_lr=3e-3, warmup_steps=1, total_steps=3)
    config = TrainConfig(max_steps=3, eval_every=3, run_dir=run_dir, progress=False)
    trainer = Trainer(model, optimizer, schedule, config, loss_fn=cross_entropy)
    batches = RandomBatches(train, 4, 16, torch.Generator().manual_seed(0))
    trainer.fit(batches, RandomBatches(val, 4, 16, torch.Generator().manual_seed(1)))
    report = overfit_one_batch(model, optimizer, next(iter(batches)), steps=2)
    print(report.summary())
    norm = optimizer.grad_norm  # a number, or a tensor on the device
    return float(norm) if norm is not None else 0.0


def main() -> None:
    version: str = fusestep.__version__
    fusestep.set_num_threads(1)
    threads: int = fusestep.get_num_threads() + fusestep.info()["threads"]
    model = Encoder(16, 2)
    inputs, target = torch.randn(2, 5, 16), torch.zeros(2, 5, dtype=torch.int64)
    losses = [one_step(model, optimizer, inputs, target) for optimizer in optimizers(model)]
    print(version, threads, len(losses), len(functions()), plain_arrays().sum(), whole_loop(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
