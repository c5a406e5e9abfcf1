"""Mistakes of a user, each of which both type checkers find: a comment for one that they do not find is an error."""

from __future__ import annotations

import fusestep.nn as fnn
import fusestep.nn.functional as F
import torch
from fusestep import TrainConfig
from fusestep.optim import Adagrad, AdamW
from fusestep.schedules import WarmupCosine

# fmt: off
x = torch.randn(2, 4, 6, 8)
layer = torch.nn.Linear(8, 8)
AdamW(layer.parameters(), max_gradient_norm=1.0)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
AdamW(layer.parameters(), on_nonfinite="skp")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Adagrad(layer.parameters(), rounding=True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
F.attention(x, x, x, drop_p=0.1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
F.attention(x, x, x, causal="top-left")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
F.attention(x, x, x, return_lse=True).sum()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
F.masked_softmax(x, causal="top-left")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
F.cross_entropy(x, x, z_los=0.1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
fnn.Dropout("0.1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
TrainConfig(max_step=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
WarmupCosine(peak_lr=1e-3, warmup_steps=1, total_steps="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
