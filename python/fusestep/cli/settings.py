"""A run of ``fusestep train``: its settings, and the model, optimizer and schedule that follow from them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fusestep
from fusestep import schedules
from fusestep._refusal import check_choice, check_integer, check_number, refuse
from fusestep.cli.errors import UserError

if TYPE_CHECKING:  # torch is imported when a run starts, so that --help and other commands are quick
    import torch

    from fusestep.models import GPT
    from fusestep.optim import FusedOptimizer

# The rate at which each optimizer trains this model well; a rate is not portable between them.
RATES = {"adamw": 2e-3, "adam": 2e-3, "rmsprop": 1e-3, "adagrad": 1e-2, "sgd": 0.03}
SCHEDULES = ("cosine", "linear", "exponential", "inverse-sqrt", "constant")
KERNELS = ("fusestep", "torch")
PRECISIONS = ("fp32", "bf16", "bf16-autocast")  # as fusestep.training has them, whose import takes torch's
DASHBOARDS = ("tensorboard", "wandb")
ON_NONFINITE = ("raise", "skip")  # as fusestep.training has them
MAX_GRAD_NORM, WEIGHT_DECAY = 1.0, 0.1


def flag(field: str) -> str:
    return "--" + field.replace("_", "-")


@dataclass(frozen=True)
class Settings:
    """A run, as ``config.json`` keeps it. The command's options set these fields."""

    text: tuple[str, ...] = ()  # files; none: Python's help topics
    steps: int = 600  # updates
    batch_size: int = 16  # sequences a batch
    context: int = 128  # bytes a sequence
    lr: float | None = None  # peak rate; None: RATES of the optimizer
    schedule: str = "cosine"  # one of SCHEDULES
    dropout: float = 0.1
    seed: int = 1337  # of the weights, the batches and the dropout
    optimizer: str = "adamw"  # one of RATES
    accumulate: int = 1  # batches an update
    eval_every: int = 100  # updates between evaluations
    device: str = "cpu"
    precision: str = "fp32"  # one of PRECISIONS
    kernels: str = "fusestep"  # one of KERNELS: whose attention and dropout
    on_nonfinite: str = "raise"  # one of ON_NONFINITE: what an infinite or NaN loss does
    shard: bool = False  # of several processes each keeps a part of the parameters and moments (FSDP2)
    dashboard: str | None = None  # one of DASHBOARDS: where the metrics are shown, too

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "context", "accumulate", "eval_every"):
            check_integer("train", flag(name), getattr(self, name), 1)
        choices = {
            "schedule": SCHEDULES,
            "optimizer": RATES,
            "precision": PRECISIONS,
            "kernels": KERNELS,
            "on_nonfinite": ON_NONFINITE,
        }
        for name, known in choices.items():
            check_choice("train", flag(name), getattr(self, name), known)
        if self.dashboard is not None:
            check_choice("train", "--dashboard", self.dashboard, DASHBOARDS)
        check_integer("train", "--seed", self.seed, 0)
        check_number("train", "--dropout", self.dropout, 0.0, 1.0)
        if self.lr is not None:
            check_number("train", "--lr", self.lr, 0.0, exclusive=True)

    @property
    def peak_lr(self) -> float:
        return RATES[self.optimizer] if self.lr is None else self.lr

    @property
    def warmup_steps(self) -> int:
        return self.steps // 10


QUICK = Settings(steps=100, batch_size=8, eval_every=25)


def read_config(path: Path, operation: str) -> tuple[Settings, dict[str, Any]]:
    """The settings in a run's ``config.json``, and all of it. Raises UserError, naming ``operation``."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return Settings(**{**config["settings"], "text": tuple(config["settings"]["text"])}), config
    except FileNotFoundError:
        raise UserError(f"{operation}: there is no run in '{path.parent}' ({path.name} is missing)") from None
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise UserError(f"{operation}: cannot use '{path}': {problem}") from problem


def find_device(name: str, operation: str) -> torch.device:
    import torch

    usable = ["cpu"]
    if fusestep.info()["cuda_architectures"] and torch.cuda.is_available():
        usable += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if name not in usable:
        remedy = "This machine, this torch or this build of fusestep has no other."
        refuse(operation, "--device", " or ".join(usable), name, remedy)
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # a device for each of torchrun's processes
        name = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(name)
    return torch.device(name)


def make_model(settings: Settings, device: torch.device) -> GPT:
    """With the initial values that ``settings.seed`` gives; torch's generators are seeded with it."""
    import torch

    from fusestep.models import GPT, GPTConfig

    torch.manual_seed(settings.seed)
    shape = GPTConfig(context=settings.context, dropout=settings.dropout, kernels=settings.kernels)
    return GPT(shape).to(device, torch.bfloat16 if settings.precision == "bf16" else torch.float32)


def precision_options(settings: Settings) -> dict[str, Any]:
    """The optimizer's: a bf16 parameter loses the updates below 1/256 of it, unless they are rounded stochastically."""
    return {"rounding": "stochastic", "seed": settings.seed} if settings.precision == "bf16" else {}


def make_optimizer(settings: Settings, model: torch.nn.Module, **precision: Any) -> FusedOptimizer:
    """precision: see ``fusestep.optim.options.Precision``."""
    from fusestep import optim

    parameters = list(model.parameters())
    options: Any = {"lr": settings.peak_lr, **precision}
    if settings.optimizer == "adamw":
        # Decay the matrices alone: biases and the scales of the norms have nothing to gain from being small.
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        return optim.AdamW(groups, **options)
    if settings.optimizer == "sgd":
        return optim.SGD(parameters, **options, momentum=0.9, nesterov=True)
    if settings.optimizer == "rmsprop":
        return optim.RMSprop(parameters, **options)
    if settings.optimizer == "adagrad":
        return optim.Adagrad(parameters, **options)
    return optim.Adam(parameters, **options)


def make_schedule(settings: Settings) -> schedules.Schedule:
    peak, warmup = settings.peak_lr, settings.warmup_steps
    initial = peak / 100
    match settings.schedule:
        case "cosine":
            return schedules.WarmupCosine(peak, warmup, settings.steps, initial_lr=initial, min_lr=0.1 * initial)
        case "linear":
            return schedules.LinearWarmup(peak, warmup, initial_lr=initial)
        case "exponential":
            return schedules.ExponentialWarmup(peak, warmup, initial_lr=initial)
        case "inverse-sqrt":
            return schedules.InverseSqrt.from_peak(peak, max(1, warmup))
        case _:
            return schedules.Constant(peak)
