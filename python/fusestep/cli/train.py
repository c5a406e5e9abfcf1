"""``fusestep train``: a small byte-level GPT on text, through fusestep's kernels, optimizers and trainer."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fusestep
from fusestep import _machine
from fusestep._refusal import refuse
from fusestep.cli.errors import UserError, as_user_errors
from fusestep.cli.settings import (
    DASHBOARDS,
    KERNELS,
    MAX_GRAD_NORM,
    ON_NONFINITE,
    PRECISIONS,
    QUICK,
    RATES,
    SCHEDULES,
    Settings,
    find_device,
    flag,
    make_model,
    make_optimizer,
    make_schedule,
    precision_options,
    read_config,
)

if TYPE_CHECKING:  # torch is imported when a run starts, so that --help and other commands are quick
    from fusestep.models import GPT
    from fusestep.training import StepMetrics
    from fusestep.training.processes import Processes
    from fusestep.training.rundir import RunDir

RESUMABLE = {"text", "steps", "eval_every", "device", "shard", "dashboard"}  # what may change when a run is resumed
HEALTH_RECORDS = 50  # of the gradients by layer, in a run
EVAL_BATCHES = 25  # at most, of the validation text: all of the default one
PROMPT_BYTES, SAMPLE_BYTES, TEMPERATURE = 32, 400, 0.8


def _choices(known: Iterable[str]) -> str:
    """As argparse shows choices; ``Settings`` refuses others, and names the nearest one."""
    return "{" + ",".join(known) + "}"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    normal = Settings()
    parser = commands.add_parser(
        "train",
        help="train a small GPT on text",
        description="Train a byte-level GPT of 0.8 million parameters on text, and write a run directory "
        "with its configuration, metrics, curves, checkpoint and a sample of what it writes.",
    )

    # Only what is given on the command line: the rest comes from the defaults, from --quick or from the
    # resumed run.
    def option(name: str, help: str, **keywords: Any) -> None:
        parser.add_argument(name, help=help, default=argparse.SUPPRESS, **keywords)

    option(
        "--text",
        "files to train on (default: the help topics that come with Python)",
        nargs="+",
        metavar="FILE",
    )
    option("--steps", f"updates (default: {normal.steps})", type=int)
    option("--batch-size", f"sequences a batch (default: {normal.batch_size})", type=int)
    option("--context", f"bytes a sequence (default: {normal.context})", type=int)
    rates = ", ".join(f"{name} {rate:g}" for name, rate in RATES.items())
    option("--lr", f"peak learning rate (default: {rates})", type=float)
    option("--schedule", f"learning-rate schedule (default: {normal.schedule})", metavar=_choices(SCHEDULES))
    option("--dropout", f"dropout probability (default: {normal.dropout})", type=float)
    option("--seed", f"of weights, batches and dropout (default: {normal.seed})", type=int)
    option("--optimizer", f"fusestep's optimizer (default: {normal.optimizer})", metavar=_choices(RATES))
    option("--accumulate", f"batches an update (default: {normal.accumulate})", type=int)
    option("--eval-every", f"updates between evaluations (default: {normal.eval_every})", type=int)
    option(
        "--precision",
        f"of parameters and arithmetic (default: {normal.precision}); bf16 rounds updates stochastically",
        metavar=_choices(PRECISIONS),
    )
    option(
        "--on-nonfinite",
        f"an update whose loss is infinite or NaN ends the run or is skipped (default: {normal.on_nonfinite})",
        metavar=_choices(ON_NONFINITE),
    )
    option("--device", f"where to train (default: {normal.device})")
    option("--kernels", f"whose attention and dropout (default: {normal.kernels})", metavar=_choices(KERNELS))
    option(
        "--dashboard",
        "show the metrics there, too: TensorBoard (in the run directory) or W&B",
        metavar=_choices(DASHBOARDS),
    )
    option("--shard", "under torchrun: parameters and moments shared out, by FSDP2", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a short run, for a first look: half a minute at most")
    parser.add_argument("--run-dir", default="runs/gpt", help="where the run goes (default: %(default)s)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="CHECKPOINT",
        help="go on with the run in the run directory, with its settings (default: from its last checkpoint)",
    )
    existing.add_argument("--overwrite", action="store_true", help="delete the run that the run directory holds")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Trains, and says on stdout what it does."""
    try:
        for name in ("torch", "tqdm", "safetensors"):
            importlib.import_module(name)
    except ImportError as missing:
        raise UserError(
            f"train needs torch, tqdm and safetensors: {missing}. Try: pip install 'fusestep[train]'"
        ) from missing

    from fusestep.training.processes import job

    with job() as processes, contextlib.ExitStack() as silence:
        if not processes.first:  # one process prints
            silence.enter_context(contextlib.redirect_stdout(silence.enter_context(open(os.devnull, "w"))))
        return _train(options, processes)


def _train(options: argparse.Namespace, processes: Processes) -> int:
    """``run``, as one of the ``processes`` that train one model together."""
    import torch
    import tqdm  # type: ignore[import-untyped]

    from fusestep.data import RandomBatches, SequentialBatches, read_text, split_text, unigram_loss
    from fusestep.training import CheckpointError, TrainConfig, Trainer, TrainingDiverged
    from fusestep.training.callbacks import HealthCallback
    from fusestep.training.processes import ProcessError
    from fusestep.training.rundir import RunDir
    from fusestep.training.sharding import shard

    run_dir = RunDir(Path(options.run_dir))
    resume_from = None if options.resume is None else Path(options.resume or run_dir.to_resume)
    with as_user_errors(ValueError, OSError, ProcessError), processes.together():
        settings, saved = _settings(options, run_dir.config)
        device = find_device(settings.device, "train")
        model = make_model(settings, device)
        if settings.shard and processes.count == 1:
            refuse("train", "--shard", "several processes", "one", "Start it with torchrun --nproc-per-node N.")
        if settings.shard:
            shard(model)
        optimizer = make_optimizer(settings, model, **precision_options(settings))
        # Before anything is read or printed.
        with _naming_the_device(settings):
            model.check_kernels()
            optimizer.check_parameters()
        text = read_text(settings.text)
        config: dict[str, Any] = {
            "settings": asdict(settings),
            "text_sha256": hashlib.sha256(text).hexdigest(),
            "fusestep": fusestep.__version__,
            "torch": torch.__version__,
            "machine": _machine.describe(),
        }
        if saved is not None and saved["text_sha256"] != config["text_sha256"]:
            raise UserError("train: --resume: the text is not the one that the run began with")
        train, val = split_text(text)
        generator = torch.Generator().manual_seed(settings.seed)
        share = {"rank": processes.rank, "processes": processes.count}
        batches = RandomBatches(train, settings.batch_size, settings.context, generator, **share)
        val_batches = SequentialBatches(val, settings.batch_size, settings.context, **share)
        schedule = make_schedule(settings)
        baseline = config["baseline_loss"] = unigram_loss(train, val)
        trainer = Trainer(
            model,
            optimizer,
            schedule,
            TrainConfig(
                max_steps=settings.steps,
                accumulate=settings.accumulate,
                precision=settings.precision,
                max_grad_norm=MAX_GRAD_NORM,
                clip_start=settings.warmup_steps,
                eval_every=settings.eval_every,
                eval_batches=EVAL_BATCHES,
                on_nonfinite=settings.on_nonfinite,
                run_dir=run_dir.path,
                baseline_loss=baseline,
            ),
            callbacks=[
                _evaluation_printer(tqdm.tqdm.write),
                HealthCallback(model, run_dir.path, every=max(1, settings.steps // HEALTH_RECORDS)),
                *_dashboards(settings, run_dir),
            ],
        )
        if processes.first:
            if resume_from is None:
                run_dir.claim(overwrite=options.overwrite)
            run_dir.config.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    epoch = len(batches) / settings.accumulate
    _print_facts(
        run=str(run_dir.path) + (f", resumed from {resume_from}" if resume_from else ""),
        text=f"{', '.join(settings.text) or 'the help topics of Python'}: {len(text):,} bytes,"
        f" {len(train):,} to train on and {len(val):,} to validate",
        model=f"GPT of {sum(p.numel() for p in model.parameters()):,} parameters, {model.config}",
        epoch=f"N = b x s: {batches.windows:,} sequences of {settings.context} bytes"
        f" in batches of {settings.batch_size * settings.accumulate}: {epoch:.0f} steps;"
        f" the run's {settings.steps} are {settings.steps / epoch:.1f} epochs",
        **({"processes": f"{processes.count}, each with its share of every batch"} if processes.count > 1 else {}),
        optimizer=f"fusestep.optim.{type(optimizer).__name__},"
        f" the gradient's norm clipped at {MAX_GRAD_NORM:g} after the warm-up",
        schedule=str(schedule),
        baseline=f"{baseline:.3f} nats a byte: the validation loss of byte frequencies alone",
    )
    try:
        with as_user_errors(CheckpointError, TrainingDiverged, ProcessError):
            end = trainer.fit(batches, val_batches, resume_from=resume_from)
    except KeyboardInterrupt:
        if run_dir.to_resume.exists():
            print(f"\ninterrupted; to go on: fusestep train --run-dir {run_dir.path} --resume")
        raise
    if end is None:
        print(f"nothing left to do: the run has {trainer.step} of {settings.steps} steps")
        return 0
    print(
        f"\nvalidation loss {end.val_loss:.3f} nats a byte (byte frequencies alone: {baseline:.3f})"
        f" after {end.step} steps, {end.tokens:,} bytes, {end.seconds:.0f} s"
    )
    sample = _sample(model, bytes(val[:PROMPT_BYTES].tolist()), settings.seed)
    if not processes.first:
        return 0
    run_dir.sample.write_text(sample, encoding="utf-8")
    print(f"\na sample, which goes on from the first {PROMPT_BYTES} validation bytes:\n\n{sample}\n")
    print(f"see {run_dir.curves} for the curves; {run_dir.path} has the metrics and the checkpoints")
    return 0


def _settings(options: argparse.Namespace, config: Path) -> tuple[Settings, dict[str, Any] | None]:
    """The settings of this run and, when it is resumed, the ``config.json`` that it began with."""
    names = [field.name for field in fields(Settings)]
    given = {name: getattr(options, name) for name in names if hasattr(options, name)}
    if "text" in given:
        given["text"] = tuple(given["text"])
    if options.resume is None:
        return replace(QUICK if options.quick else Settings(), **given), None
    before, saved = read_config(config, "train: --resume")
    for name, value in given.items():
        if name not in RESUMABLE and value != getattr(before, name):
            raise UserError(f"train: {flag(name)}: expected {getattr(before, name)} as the run began with, got {value}")
    return replace(before, **given), saved


@contextlib.contextmanager
def _naming_the_device(settings: Settings) -> Iterator[None]:
    """What the kernels refuse, as a refusal of ``--device`` that says how to train there all the same."""
    try:
        yield
    except (TypeError, ValueError) as refusal:
        remedy = " --kernels torch trains there." if settings.kernels != "torch" else ""
        raise UserError(f"train: --device: {settings.device} cannot train this model. {refusal}{remedy}") from refusal


def _sample(model: GPT, prompt: bytes, seed: int) -> str:
    import torch

    generator = torch.Generator().manual_seed(seed)
    text = model.generate(prompt, SAMPLE_BYTES, temperature=TEMPERATURE, generator=generator)
    # Whatever bytes a model that has learned little writes, none of them shall steer a terminal.
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text.decode(errors="replace"))


def _evaluation_printer(write: Callable[[str], None]) -> Callable[[StepMetrics], None]:
    def report(metrics: StepMetrics) -> None:
        if metrics.val_loss is not None:
            write(f"step {metrics.step:5}   training {metrics.loss:.3f}   validation {metrics.val_loss:.3f}")

    return report


def _dashboards(settings: Settings, run_dir: RunDir) -> list[Callable[[StepMetrics], None]]:
    """The one that ``--dashboard`` names, if it names one."""
    from fusestep.training.callbacks import TensorBoardCallback, WandbCallback

    with as_user_errors(ImportError):
        if settings.dashboard == "tensorboard":
            return [TensorBoardCallback(run_dir.tensorboard)]
        if settings.dashboard == "wandb":
            config = asdict(settings)
            return [WandbCallback("fusestep", name=run_dir.path.name, config=config, dir=str(run_dir.path))]
    return []


def _print_facts(**facts: str) -> None:
    for name, text in facts.items():
        print(f"{name:10} {text}")
    print(flush=True)
