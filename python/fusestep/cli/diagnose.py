"""``fusestep diagnose``: every diagnostic, on a run of ``fusestep train``."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusestep.cli.errors import UserError, as_user_errors
from fusestep.cli.settings import (
    Settings,
    find_device,
    make_model,
    make_optimizer,
    precision_options,
    read_config,
)

if TYPE_CHECKING:
    from fusestep.data import RandomBatches
    from fusestep.diagnostics import Report
    from fusestep.models import GPT
    from fusestep.optim import FusedOptimizer
    from fusestep.training.rundir import RunDir

ELEMENTS = 2  # of each parameter, whose gradients are checked: each costs two forward passes in float64
OVERFIT_STEPS = 100
RATE_STEPS = 100
JACOBIAN_ITERATIONS = 50


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "diagnose",
        help="find out why a run does not learn",
        description="Examine a run of fusestep train: its gradients against numerical ones, the rates it learns at, "
        "whether it can fit one batch, and layer by layer variances, gradients, Jacobians and dead units, at the "
        "beginning and at the last checkpoint. The run itself stays as it is.",
    )
    parser.add_argument("run_dir", metavar="RUN", help="a run directory of fusestep train")
    parser.add_argument("--device", help="where to compute (default: where the run was trained)")
    parser.set_defaults(run=run)


@dataclass
class Subject:
    """A model of the run at one time, the optimizer that goes with it, and the batches that it would see next."""

    when: str
    model: GPT
    optimizer: FusedOptimizer
    batches: RandomBatches


def run(options: argparse.Namespace) -> int:
    try:
        import torch  # noqa: F401
        from tqdm import tqdm  # type: ignore[import-untyped]

        from fusestep.training import CheckpointError
        from fusestep.training.rundir import RunDir
    except ImportError as missing:
        raise UserError(
            f"diagnose needs torch, tqdm and safetensors: {missing}. Try: pip install 'fusestep[train]'"
        ) from missing

    run_dir = RunDir(Path(options.run_dir))
    with as_user_errors(ValueError, TypeError, OSError, CheckpointError):
        settings, config = read_config(run_dir.config, "diagnose")
        start, now = _subjects(settings, config, run_dir, options.device or settings.device)
        found: dict[str, tuple[str, Report]] = {}
        steps = _steps(start, now)
        for name, (title, diagnose) in tqdm(steps.items(), desc="diagnose", unit="diagnostic", leave=False):
            found[name] = title, diagnose()
        reports = {name: {"title": title, **report.to_dict()} for name, (title, report) in found.items()}
        run_dir.diagnosis.write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")
        _plot(run_dir.diagnosis_picture, [report for _, report in found.values()])
    for title, report in found.values():
        print(f"{title}\n{report.summary()}\n")
    print(f"see {run_dir.diagnosis_picture} for the pictures; {run_dir.diagnosis} has the figures")
    return 0


def _subjects(settings: Settings, config: dict[str, Any], run_dir: RunDir, device: str) -> tuple[Subject, Subject]:
    """The run at its beginning, and at its last checkpoint (the beginning again where it has none)."""
    import torch

    from fusestep.data import RandomBatches, read_text, split_text
    from fusestep.training import checkpoint

    where = find_device(device, "diagnose")
    text = read_text(settings.text)
    if config.get("text_sha256") != hashlib.sha256(text).hexdigest():
        raise UserError("diagnose: RUN: the text is not the one that the run was trained on")
    train, _ = split_text(text)

    def begin() -> Subject:
        model = make_model(settings, where)
        optimizer = make_optimizer(settings, model, **precision_options(settings))
        generator = torch.Generator().manual_seed(settings.seed)
        batches = RandomBatches(train, settings.batch_size, settings.context, generator)
        return Subject("before the first update", model, optimizer, batches)

    start, now = begin(), begin()
    if run_dir.to_resume.exists():
        state = checkpoint.load(run_dir.to_resume, now.model, now.optimizer, now.batches)
        now.when = f"after update {state['step']}"
    return start, now


def _steps(start: Subject, now: Subject) -> dict[str, tuple[str, Callable[[], Report]]]:
    """Each diagnostic by its name: its title, and the call."""
    from fusestep import diagnostics

    device = next(start.model.parameters()).device

    def batch_of(subject: Subject) -> tuple[Any, Any]:
        inputs, targets = next(iter(subject.batches))
        return inputs.to(device), targets.to(device)

    first, last = batch_of(start), batch_of(now)
    few = first[0][:2], first[1][:2]  # for what takes hundreds of passes
    rates = [batch_of(start) for _ in range(RATE_STEPS // 5)]
    return {
        "gradient_check": (
            f"Gradients against numerical ones, in float64, {start.when}",
            lambda: diagnostics.check_module(start.model, few, elements=ELEMENTS),
        ),
        "variances": (
            f"Variances by layer, {start.when}",
            lambda: diagnostics.layer_variances(start.model, first),
        ),
        "overfit": (
            f"Can the model fit one batch in {OVERFIT_STEPS} updates? From {start.when}",
            lambda: diagnostics.overfit_one_batch(start.model, start.optimizer, first, steps=OVERFIT_STEPS),
        ),
        "rate_range": (
            f"Learning-rate range test, from {start.when}",
            lambda: diagnostics.rate_range(start.model, start.optimizer, rates, steps=RATE_STEPS),
        ),
        "health": (
            f"Gradients by layer, {now.when}",
            lambda: diagnostics.model_health(now.model, last, now.optimizer),
        ),
        "jacobians": (
            f"Jacobians of the blocks, {now.when}",
            lambda: diagnostics.block_jacobians(now.model, last[0][:2], max_iterations=JACOBIAN_ITERATIONS),
        ),
        "dead_units": (
            f"Dead units, {now.when}",
            lambda: diagnostics.dead_units(now.model, last[0]),
        ),
    }


def _plot(path: Path, reports: list[Report]) -> None:
    """All pictures in one, in two columns of about the same height."""
    from fusestep.diagnostics import drawing

    columns: list[list[Report]] = [[], []]
    heights = [0.0, 0.0]
    for report in sorted(reports, key=lambda report: -report.figure_size()[1]):
        shorter = heights.index(min(heights))
        columns[shorter].append(report)
        heights[shorter] += report.figure_size()[1]
    width = max(report.figure_size()[0] for report in reports)
    figure = drawing.new_figure(2 * width, max(heights))
    sides = figure.add_gridspec(1, 2)
    for number, column in enumerate(columns):
        side = figure.add_subfigure(sides[number])
        rows = side.add_gridspec(len(column), 1, height_ratios=[report.figure_size()[1] for report in column])
        for row, report in enumerate(column):
            report.draw(side.add_subfigure(rows[row]))
    figure.savefig(path, dpi=drawing.DPI)
