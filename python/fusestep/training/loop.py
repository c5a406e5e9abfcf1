"""The training loop."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fusestep._mesh import parts, whole
from fusestep._refusal import refuse
from fusestep.losses import cross_entropy
from fusestep.optim import FusedOptimizer
from fusestep.schedules import Schedule
from fusestep.training import checkpoint, nonfinite, sharding
from fusestep.training.config import PRECISIONS, TrainConfig
from fusestep.training.interrupt import DeferredInterrupt
from fusestep.training.metrics import MetricsFile, StepMetrics
from fusestep.training.plots import plot_curves
from fusestep.training.processes import Processes, accumulating
from fusestep.training.progress import Progress
from fusestep.training.rundir import RunDir

Batches = Iterable[tuple[Tensor, Tensor]]
NONFINITE_PATIENCE = 10  # updates in a row with an infinite or NaN loss or norm: skipping them will not cure the run


class TrainingDiverged(RuntimeError):
    """The loss or the gradient has become infinite or NaN."""


class Trainer:
    """Trains a model on batches: ``Trainer(model, optimizer, schedule, config).fit(train_batches)``.

    model: any module; ``loss_fn(model(inputs), targets)`` is minimised. Batches are moved to its device.
    optimizer: one of ``fusestep.optim``, where clipping is part of the update, or any of ``torch.optim``,
        clipped by ``torch.nn.utils.clip_grad_norm_``. Every parameter group gets the schedule's rate.
    schedule: the rate of each update, counted from 0; see ``fusestep.schedules``.
    loss_fn: default cross-entropy, hard or soft labels.
    callbacks: each is called with the ``StepMetrics`` of every update, in every process. One that is a context manager
        is entered before the first update, and left when ``fit`` ends, also by an error.
        ``fusestep.training.callbacks`` has some.

    Where torch.distributed has a process group, its processes train one model together: each is given its share of
    every batch; gradients are averaged, by DistributedDataParallel, which ``model`` may be already, or by FSDP2 for a
    model that was given to ``fully_shard``, and losses too; rank 0 alone writes and shows progress. What torch draws at
    random is a function of (seed of rank 0, rank, step). An error that one process meets before the first update is
    raised in all. A sharded model needs as many validation batches in every process.

    ``trainer.step``, ``trainer.tokens`` and ``trainer.seconds`` tell how far the run is.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        config: TrainConfig,
        *,
        loss_fn: Callable[[Any, Tensor], Tensor] = cross_entropy,
        callbacks: Sequence[Callable[[StepMetrics], None]] = (),
    ) -> None:
        self.model: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
        self.optimizer = optimizer
        self.schedule = schedule
        self.config = config
        self.loss_fn = loss_fn
        self.callbacks = callbacks
        self.step = 0
        self.tokens = 0
        self.seconds = 0.0
        self._device = next(model.parameters()).device
        self._nonfinite = 0  # updates in a row whose loss or gradient norm was not finite
        self._saved = 0  # the step of the last checkpoint, or of the last attempt
        self._processes = Processes(self._device)
        self._parallel = model  # what is trained: self.model, or around it what averages gradients

    def check(self) -> None:
        """Refuses what this machine or this build cannot train. ``fit`` calls it before anything is read or written.

        It asks the optimizer, if it is one of ``fusestep.optim``, about the dtypes and devices of its parameters, and
        every module that has a method ``check_kernels``.

        Raises:
            TypeError, ValueError: in the words of the kernels.
        """
        wanted = PRECISIONS.get(self.config.precision or "")
        for name, parameter in self.model.named_parameters() if wanted else ():
            if parameter.dtype != wanted:
                refuse(
                    "Trainer.fit",
                    f"parameter '{name}'",
                    f'{wanted} with precision="{self.config.precision}"',
                    str(parameter.dtype),
                    f"Convert the model, model.to({wanted}), before its optimizer is made.",
                    TypeError,
                )
        if isinstance(self.optimizer, FusedOptimizer):
            self.optimizer.check_parameters()
        for module in self.model.modules():
            check = getattr(module, "check_kernels", None)
            if callable(check):
                with self._autocast():
                    check()

    def fit(
        self,
        train_batches: Batches,
        val_batches: Batches | None = None,
        *,
        resume_from: str | Path | None = None,
    ) -> StepMetrics | None:
        """Trains until ``config.max_steps`` updates are made, in this and earlier sessions together.

        train_batches: pairs (inputs, targets), iterated epoch after epoch. A run that shall be resumed needs
            ``state_dict`` and ``load_state_dict`` here, which ``fusestep.data.RandomBatches`` and torchdata's
            ``StatefulDataLoader`` have.
        val_batches: pairs too, iterated from the beginning at each evaluation (default: no evaluation).
        resume_from: a checkpoint of this run, or a directory of them, whose last one is taken; the run then goes on
            bit for bit as if it had never stopped.

        Returns the metrics of the last update, None when there was none left to make. Ctrl-C ends the run
        after the update in progress, writes a checkpoint if there is a ``run_dir``, and raises
        KeyboardInterrupt; a second Ctrl-C does not wait for that.
        Raises ValueError for a ``run_dir`` that holds another run, CheckpointError for a bad checkpoint,
        TrainingDiverged when the loss is infinite or NaN; with ``on_nonfinite="skip"`` that update is left out, and it
        is raised when loss or gradient stay so for ten updates. ``nonfinite.jsonl`` in the ``run_dir`` then has the
        step, ``train_batches.indices`` of its batches where there are such, and the health of the gradient by layer.
        (A gradient that is not finite under a finite loss is for ``on_nonfinite`` of the optimizer.)
        A checkpoint that cannot be written (a full disk) is a warning.
        """
        config, processes, metrics, stop = self.config, self._processes, None, False
        with processes.together():
            self.check()
            run_dir = self._open_run_dir(resume_from)
            if resume_from is not None:
                self._resume(Path(resume_from), train_batches)
        processes.check_same("Trainer.fit", self._facts())
        processes.share_seed(None)
        self._parallel = processes.data_parallel(self._parallel)
        stream = _epoch_after_epoch(train_batches)
        with (
            contextlib.ExitStack() as callbacks,
            MetricsFile(run_dir.metrics if run_dir and processes.first else None, self.step) as metrics_file,
            Progress(config.progress and processes.first, self.step, config.max_steps) as progress,
            DeferredInterrupt() as interrupt,
            processes.noticing_losses("Trainer.fit"),
        ):
            for callback in self.callbacks:
                if isinstance(callback, contextlib.AbstractContextManager):
                    callbacks.enter_context(callback)
            started = time.perf_counter() - self.seconds
            self.model.train()
            while self.step < config.max_steps and not stop:
                processes.begin_step(self.step)
                lr = self._set_rate()
                seen, tokens = self._accumulate_gradients(stream)
                losses, tokens, stops = processes.sum(_mean_loss(seen), tokens, interrupt.requested)
                loss, stop = losses / processes.count, stops > 0
                if math.isfinite(loss):
                    grad_norm = self._update()
                else:
                    grad_norm = None
                    self._write_down(seen, run_dir)
                self.step += 1
                self.tokens += int(tokens)
                val_loss = None
                if val_batches is not None and self._due(config.eval_every):
                    val_loss = self.evaluate(val_batches)
                self.seconds = time.perf_counter() - started
                metrics = StepMetrics(self.step, loss, val_loss, lr, grad_norm, self.tokens, self.seconds)
                for report in (metrics_file.append, progress.update, *self.callbacks):
                    report(metrics)
                self._check_finite(metrics)
                if processes.count == 1:  # several hear of it together, with the next losses
                    stop = interrupt.requested
                if run_dir and self._due(config.checkpoint_every):
                    self._save(run_dir.checkpoints, train_batches)
            if run_dir:
                self._save(run_dir.checkpoints, train_batches)
        with processes.together():  # nobody goes on before everything is written
            if run_dir and processes.first:
                _plot(run_dir, config.baseline_loss)
        if stop:
            raise KeyboardInterrupt
        return metrics

    @torch.no_grad()
    def evaluate(self, batches: Batches) -> float:
        """Mean loss of the first ``config.eval_batches`` batches, weighted by tokens; dropout is off.

        Of several processes each gives its share of the batches, and all get the mean over all.
        """
        was_training = self.model.training
        self.model.eval()
        total, tokens = 0.0, 0.0
        for count, (inputs, targets) in enumerate(batches):
            if count == self.config.eval_batches:
                break
            inputs, targets = inputs.to(self._device), targets.to(self._device)
            if inputs.numel():
                total += float(self._loss(self.model, inputs, targets)) * inputs.numel()
                tokens += inputs.numel()
            elif sharding.is_sharded(self.model):  # all processes gather its parameters together, be it for no rows
                self.model(inputs)
        self.model.train(was_training)
        total, tokens = self._processes.sum(total, tokens)
        if tokens == 0:
            refuse("Trainer.evaluate", "batches", "at least one batch", "none")
        return total / tokens

    def _set_rate(self) -> float:
        lr = self.schedule(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _accumulate_gradients(
        self, stream: Iterator[tuple[Tensor, Tensor, Tensor | None]]
    ) -> tuple[list[nonfinite.SeenBatch], float]:
        """``accumulate`` batches, and their tokens; the gradient of their mean loss is left in the parameters."""
        self.optimizer.zero_grad()
        seen, tokens = [], 0.0
        for left in reversed(range(self.config.accumulate)):
            inputs, targets, indices = next(stream)
            inputs, targets = inputs.to(self._device), targets.to(self._device)
            with accumulating(self._parallel, last=left == 0):
                loss = self._loss(self._parallel, inputs, targets)
                (loss / self.config.accumulate).backward()  # type: ignore[no-untyped-call]
            seen.append(nonfinite.SeenBatch(float(loss.detach()), indices))
            tokens += inputs.numel()
        return seen, tokens

    def _loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        with self._autocast():
            return self.loss_fn(model(inputs), targets)

    def _autocast(self) -> torch.autocast:
        enabled = self.config.precision == "bf16-autocast"
        return torch.autocast(self._device.type, torch.bfloat16, enabled=enabled)

    def _update(self) -> float | None:
        """Clips, when it is time, and steps; returns the norm before clipping."""
        active = self.step >= self.config.clip_start
        ceiling = self.config.max_grad_norm if active else None
        if not isinstance(self.optimizer, FusedOptimizer):
            ceiling = math.inf if ceiling is None else ceiling
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), ceiling)
            self.optimizer.step()
            return float(whole(norm))
        own = self.optimizer.max_grad_norm, self.optimizer.max_grad_value
        norm_limit, value_limit = (ceiling or own[0], own[1]) if active else (None, None)
        if norm_limit is None and value_limit is None:
            norm_limit = math.inf  # clips nothing, but the norm is taken
        try:
            self.optimizer.max_grad_norm, self.optimizer.max_grad_value = norm_limit, value_limit
            self.optimizer.step()
        finally:
            self.optimizer.max_grad_norm, self.optimizer.max_grad_value = own
        taken = self.optimizer.grad_norm
        return None if taken is None else float(taken)

    def _facts(self) -> dict[str, str]:
        """What has to be the same in all processes."""
        facts = {
            "step": str(self.step),
            "config": str(replace(self.config, progress=False)),
            "optimizer": type(self.optimizer).__name__,
        }
        for i, group in enumerate(self.optimizer.param_groups):
            options = {name: value for name, value in group.items() if name != "params"}
            facts[f"parameter group {i}"] = f"{len(group['params'])} parameters with {options}"
        for name, parameter in self.model.named_parameters():
            trained = "" if parameter.requires_grad else ", not trained"
            facts[f"parameter '{name}'"] = f"{parameter.dtype} {tuple(parameter.shape)}{trained}"
        return facts

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.max_steps

    def _write_down(self, seen: list[nonfinite.SeenBatch], run_dir: RunDir | None) -> None:
        if run_dir is None:
            return
        description = nonfinite.describe(self.step + 1, seen, self.model, self._processes)
        if self._processes.first:
            nonfinite.append(run_dir.nonfinite, description)

    def _check_finite(self, metrics: StepMetrics) -> None:
        finite_loss = math.isfinite(metrics.loss)
        self._nonfinite = 0 if finite_loss and math.isfinite(metrics.grad_norm or 0.0) else self._nonfinite + 1
        if self._nonfinite < NONFINITE_PATIENCE and (finite_loss or self.config.on_nonfinite == "skip"):
            return
        name, value = ("gradient norm", metrics.grad_norm) if finite_loss else ("loss", metrics.loss)
        got = f"{value} at step {self.step}"
        if self._nonfinite > 1:
            got += f", the {self._nonfinite}th update in a row without finite numbers"
        remedy = "Lower the rate, lengthen the warm-up or clip; see fusestep.diagnostics."
        if not finite_loss and self.config.run_dir is not None:
            path = RunDir(Path(self.config.run_dir)).nonfinite
            remedy = f"'{path}' has its batches and its gradients by layer. {remedy}"
        refuse("Trainer.fit", name, "a finite number", got, remedy, TrainingDiverged)

    def _open_run_dir(self, resume_from: str | Path | None) -> RunDir | None:
        if self.config.run_dir is None:
            return None
        run_dir = RunDir(Path(self.config.run_dir))
        if resume_from is None and self.step == 0 and self._processes.first:
            run_dir.claim(overwrite=self.config.overwrite)
        return run_dir

    def _save(self, directory: Path, train_batches: Batches) -> None:
        if self.step == self._saved or (self._nonfinite and self._diverged()):
            return  # a diverged model must not take the place of a good one
        self._saved = self.step
        progress = {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "seed": self._processes.seed,
        }
        processes, writes = self._processes.gather(checkpoint.state_of_process(train_batches)), self._processes.first
        keep_last = self.config.keep_last
        try:
            checkpoint.save(directory, self.model, self.optimizer, processes, progress, keep_last, writes=writes)
        except checkpoint.CheckpointError as problem:  # a full disk is no reason to lose the run
            warnings.warn(f"{problem}. Training goes on; the checkpoint before it stays.", stacklevel=3)

    def _diverged(self) -> bool:
        """Whether a parameter, in any process, is infinite or NaN."""
        own = parts(self.model.parameters())
        return self._processes.sum(sum(not p.isfinite().all() for p in own))[0] > 0

    def _resume(self, path: Path, train_batches: Batches) -> None:
        if not hasattr(train_batches, "load_state_dict"):
            refuse(
                "Trainer.fit",
                "train_batches",
                "batches with state_dict and load_state_dict, to go on where the run stopped",
                type(train_batches).__name__,
                "Use fusestep.data.RandomBatches or torchdata's StatefulDataLoader.",
                TypeError,
            )
        own, count = self._processes.rank, self._processes.count
        progress = checkpoint.load(path, self.model, self.optimizer, train_batches, own, count)
        self._processes.share_seed(progress["seed"])
        self.step, self.tokens, self.seconds = (progress[name] for name in ("step", "tokens", "seconds"))
        self._saved = self.step


def _mean_loss(seen: list[nonfinite.SeenBatch]) -> float:
    return sum(batch.loss for batch in seen) / len(seen)


def _epoch_after_epoch(batches: Batches) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Batches, and which rows of the data each is made of, where the batches tell."""
    while True:
        empty = True
        for inputs, targets in batches:
            empty = False
            yield inputs, targets, getattr(batches, "indices", None)
        if empty:
            refuse("Trainer.fit", "train_batches", "at least one batch an epoch", "none")


def _plot(run_dir: RunDir, baseline_loss: float | None) -> None:
    try:
        plot_curves(run_dir.metrics, run_dir.curves, baseline_loss=baseline_loss)
    except (ImportError, OSError) as problem:
        warnings.warn(f"{run_dir.curves} was not written: {problem}", stacklevel=3)
