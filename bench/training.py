"""`fusestep bench training`: a whole step of the GPT that `fusestep train` trains, on our kernels and on torch's."""

from __future__ import annotations

from collections.abc import Callable

import fusestep.optim
import torch
from fusestep.cli.train import KERNELS, MAX_GRAD_NORM, Settings
from fusestep.losses import cross_entropy
from fusestep.models import GPT, GPTConfig

from .cases import Case
from .rows import OURS, Bar, Row, timing_row
from .timing import Contestant, Effort, measure

OPERATION = "training step"
TORCH = "torch's kernels"

BARS = (Bar(OPERATION, "gpt", TORCH, 1 / 1.5),)


def step_of(kernels: str, settings: Settings) -> tuple[torch.nn.Module, Callable[[], object]]:
    """Forward, backward, clipping and AdamW; the optimizer is ours on both sides. The model, and the step."""
    torch.manual_seed(settings.seed)
    model = GPT(GPTConfig(context=settings.context, dropout=settings.dropout, kernels=kernels))
    optimizer = fusestep.optim.AdamW(model.parameters(), lr=settings.peak_lr, max_grad_norm=MAX_GRAD_NORM)
    text = torch.randint(256, (settings.batch_size, settings.context + 1))
    inputs, targets = text[:, :-1].contiguous(), text[:, 1:].contiguous()

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return model, step


def run(quick: bool, effort: Effort, say: Callable[[str], None]) -> list[Row]:
    settings = Settings(batch_size=4) if quick else Settings()
    say(OPERATION)
    contestants = []
    for kernels, name in zip(KERNELS, (OURS, TORCH), strict=True):
        model, step = step_of(kernels, settings)
        contestants.append(Contestant(name, step))
    batch = f"{settings.batch_size} x {settings.context}"
    case = Case("gpt", f"default GPT, batch {batch}, dropout {settings.dropout}", [p.shape for p in model.parameters()])
    return [timing_row("training", OPERATION, case, None, measure(contestants, effort), BARS)]
