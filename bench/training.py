"""`fusestep bench training`: a whole step of the GPT that `fusestep train` trains, on our kernels and on torch's."""

from __future__ import annotations

from collections.abc import Callable

import fusestep._core as _core
import fusestep.optim
import torch
from fusestep.cli.train import KERNELS, MAX_GRAD_NORM, Settings
from fusestep.losses import cross_entropy
from fusestep.models import GPT, GPTConfig
from torch import Tensor

from .cases import Case
from .functions import Function
from .peers import FUNCTION
from .rows import OURS, YARDSTICK, Bar, Row, timing_row
from .session import Session
from .timing import Contestant, measure

OPERATION = "training step"
TORCH = "torch's kernels"
ALL_TORCH = "torch alone"
PEAK_PIECES = 256

BARS = (Bar(OPERATION, "gpt", TORCH, 1 / 1.5),)


def batch_of(settings: Settings) -> tuple[Tensor, Tensor]:
    """Inputs and targets, (B, T) each."""
    text = torch.randint(256, (settings.batch_size, settings.context + 1))
    return text[:, :-1].contiguous(), text[:, 1:].contiguous()


def model_of(kernels: str, settings: Settings) -> torch.nn.Module:
    torch.manual_seed(settings.seed)
    return GPT(GPTConfig(context=settings.context, dropout=settings.dropout, kernels=kernels))


def step_of(kernels: str, settings: Settings) -> tuple[torch.nn.Module, Callable[[], object]]:
    """Forward, backward, clipping and AdamW; the optimizer and the loss are ours on both sides. Model and step."""
    model = model_of(kernels, settings)
    optimizer = fusestep.optim.AdamW(model.parameters(), lr=settings.peak_lr, max_grad_norm=MAX_GRAD_NORM)
    inputs, targets = batch_of(settings)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return model, step


def torch_steps(settings: Settings) -> tuple[Function, Callable[[Function], Callable[[], object]]]:
    """The loss of a model that is torch's throughout, and what makes a step of the loss, as it is or compiled."""
    model = model_of("torch", settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.peak_lr, fused=True)
    inputs, targets = batch_of(settings)

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    def make_step(loss: Function) -> Callable[[], object]:
        def step() -> None:
            optimizer.zero_grad()
            loss(inputs, targets).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM, foreach=True)
            optimizer.step()

        return step

    return loss, make_step


def run(quick: bool, session: Session) -> list[Row]:
    settings = Settings(batch_size=4) if quick else Settings()
    session.say(OPERATION)
    contestants = []
    for kernels, name in zip(KERNELS, (OURS, TORCH), strict=True):
        model, step = step_of(kernels, settings)
        contestants.append(Contestant(name, step))
    loss, make_step = torch_steps(settings)
    contestants.append(Contestant(ALL_TORCH, make_step(loss)))
    contestants += session.peers.contestants(FUNCTION, loss, make_step)
    contestants.append(Contestant(YARDSTICK, lambda: _core.fma_peak(PEAK_PIECES)))
    batch = f"{settings.batch_size} x {settings.context}"
    case = Case("gpt", f"default GPT, batch {batch}, dropout {settings.dropout}", [p.shape for p in model.parameters()])
    return [timing_row("training", OPERATION, case, None, measure(contestants, session.effort), BARS)]
