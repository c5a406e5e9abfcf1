"""The trainer in a process group: what every process of a world does. Beside it, the same in a single process."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import small_runs
import torch
import torch.distributed as dist
from fusestep import Trainer, optim
from fusestep.data import RandomBatches, SequentialBatches, read_text, split_text
from fusestep.losses import cross_entropy
from fusestep.schedules import WarmupCosine
from fusestep.training import TrainingDiverged, sharding
from fusestep.training.processes import ProcessError, Processes
from torch.nn.parallel import DistributedDataParallel

GLOBAL_BATCH, STEPS = 8, 8
SIXTEEN = small_runs.CONTEXT


class Permuted:
    """The same batches, their rows in another order: what the order of sums is worth."""

    def __init__(self, batches, seed):
        self.batches, self.generator = batches, torch.Generator().manual_seed(seed)

    def __iter__(self):
        for inputs, targets in self.batches:
            order = torch.randperm(len(inputs), generator=self.generator)
            yield inputs[order], targets[order]


def data(processes):
    """(training, validation) batches of this process; the last validation batch has fewer rows than processes."""
    train, val = split_text(read_text()[:2000])
    share = {"rank": processes.rank, "processes": processes.count}
    generator = torch.Generator().manual_seed(5)
    return (
        RandomBatches(train, GLOBAL_BATCH, SIXTEEN, generator, **share),
        SequentialBatches(val[: 10 * SIXTEEN + 1], 3, SIXTEEN, **share),
    )


def make(steps, *, dropout=0.0, run_dir=None, dtype=torch.float64, wrapped=None, history=None, **settings):
    shape = replace(small_runs.SHAPE, dropout=dropout)
    model = small_runs.model(2, shape).to(dtype)
    if wrapped == "FSDP2":
        sharding.shard(model)
    optimizer = optim.AdamW(model.parameters(), weight_decay=0.1)
    config = small_runs.config(steps, run_dir=run_dir, accumulate=2, max_grad_norm=1.0, **settings)
    schedule = WarmupCosine(1e-2, 3, STEPS, initial_lr=1e-3)
    if wrapped == "DDP":
        model = DistributedDataParallel(model)
    return Trainer(model, optimizer, schedule, config, callbacks=[] if history is None else [history.append])


def outcome(trainer, history):
    """Losses, and every bit of the model and of its moments."""
    state = sharding.whole(trainer.optimizer.state_dict()["state"])
    tensors = [
        *sharding.whole(dict(trainer.model.state_dict())).values(),
        *(t for s in state.values() for t in s.values()),
    ]
    losses = [m.loss for m in history] + [m.val_loss for m in history if m.val_loss is not None]
    return losses, b"".join(tensor.numpy().tobytes() for tensor in tensors)


def train(steps=STEPS, *, resume_from=None, permuted=None, **settings):
    """The losses of a run, and its last bits."""
    torch.manual_seed(11)
    history = []
    trainer = make(steps, history=history, **settings)
    batches, val = data(trainer._processes)
    if permuted is not None:
        batches = Permuted(batches, permuted)
    trainer.fit(batches, val, resume_from=resume_from)
    return outcome(trainer, history)


def resumes_bit_for_bit(wrapped, folder):
    """A run that is stopped twice against the one that never was; random numbers are drawn in between."""
    options = {"wrapped": wrapped, "dropout": 0.1, "dtype": torch.float32}
    expected = train(**options)
    run_dir = Path(folder)
    losses = []
    for steps in (3, 5, STEPS):
        resume = run_dir / "checkpoints" if steps > 3 else None
        part, bits = train(steps, run_dir=run_dir, resume_from=resume, keep_last=None, **options)
        losses += part[: steps - len(losses)]
        random.seed(), torch.manual_seed(dist.get_rank() + 100)
    assert losses == expected[0][:STEPS]
    assert bits == expected[1]
    return bits


def draws():
    """What each process would drop: [rank][step]."""
    processes = Processes()
    torch.manual_seed(3 + processes.rank)  # rank 0's counts
    processes.share_seed(None)
    rows = []
    for step in (0, 1, 2, 1):
        processes.begin_step(step)
        rows.append(torch.rand(4).tolist())
    return rows


def communicates_once_an_update(wrapped):
    """The gradients go out with the last of three batches; then one sum of the losses."""
    calls = []
    sent, reduced = dist.all_to_all_single, dist.all_reduce
    dist.all_to_all_single = lambda *a, **k: (calls.append("gradients"), sent(*a, **k))[1]
    dist.all_reduce = lambda *a, **k: (calls.append("losses"), reduced(*a, **k))[1]
    try:
        trainer = make(4, wrapped=wrapped)
        trainer.config = replace(trainer.config, accumulate=3, eval_every=100)
        trainer.fit(data(trainer._processes)[0])
    finally:
        dist.all_to_all_single, dist.all_reduce = sent, reduced
    assert calls.count("losses") == 4
    assert calls.count("gradients") == (4 if wrapped is None else 0)  # one bucket


def refused(what, folder):
    """What the trainer says when rank 1 is given something else."""
    odd = dist.get_rank() == 1
    torch.manual_seed(0)
    shape = replace(small_runs.SHAPE, width=24 if odd and what == "model" else 16)
    model = small_runs.model(0, shape).double()
    optimizer = (optim.SGD if odd and what == "optimizer" else optim.AdamW)(model.parameters(), lr=1e-3)
    config = small_runs.config(5, run_dir=folder, accumulate=2 if odd and what == "config" else 1)
    trainer = Trainer(model, optimizer, WarmupCosine(1e-2, 3, 20), config)
    resume = None
    if what in ("step", "checkpoint"):
        resume = Path(folder) / "checkpoints" / {"step": "step-00000002", "checkpoint": "missing"}[what]
        resume = resume if odd else resume.parent
    try:
        trainer.fit(data(trainer._processes)[0], resume_from=resume)
    except ProcessError as error:
        return str(error)
    except RuntimeError as error:
        return f"own: {error}"


def goes_on_from(folder, steps, wrapped=None):
    """Losses after a resume, from a checkpoint that another number of processes wrote."""
    return train(steps, resume_from=Path(folder) / "checkpoints", wrapped=wrapped)[0]


class InfiniteOnce:
    """Cross-entropy; in the process of rank 1, infinite at the first batch of the third update."""

    def __init__(self):
        self.calls = 0

    def __call__(self, logits, targets):
        self.calls += 1
        loss = cross_entropy(logits, targets)
        return loss * math.inf if dist.get_rank() == 1 and self.calls == 5 else loss


def one_loss_is_infinite(wrapped, folder):
    """The bits of the model; the third update must not have changed them."""
    history = []
    trainer = make(4, wrapped=wrapped, run_dir=folder, history=history, on_nonfinite="skip")
    trainer.loss_fn = InfiniteOnce()
    bits = []
    trainer.callbacks = [*trainer.callbacks, lambda metrics: bits.append(outcome(trainer, history)[1])]
    trainer.fit(data(trainer._processes)[0])
    assert bits[0] != bits[1] == bits[2] != bits[3]
    return bits[3]


def ended_by_an_infinite_loss(wrapped):
    trainer = make(4, wrapped=wrapped)
    trainer.loss_fn = InfiniteOnce()
    try:
        trainer.fit(data(trainer._processes)[0])
    except TrainingDiverged as ended:
        return str(ended)


def train_as(wrapped):
    return train(wrapped=wrapped)


def writes(folder, steps, wrapped=None):
    """Checkpoints of this run, the last of ``steps``."""
    train(steps, run_dir=folder, checkpoint_every=2, wrapped=wrapped)
