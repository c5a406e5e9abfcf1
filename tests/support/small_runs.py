"""A GPT small enough for a test, real text for it, and the same again and again."""

from __future__ import annotations

import pytest
import torch
from fusestep.data import RandomBatches, SequentialBatches, read_text, split_text
from fusestep.models import GPT, GPTConfig
from fusestep.training import TrainConfig, checkpoint


@pytest.fixture(autouse=True)
def one_thread():
    """torch on one thread: enough for so small a model, and its sums, and so its bits, depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


BATCH, CONTEXT = 4, 16
SHAPE = GPTConfig(context=CONTEXT, layers=2, heads=2, width=16, dropout=0.1)


def model(seed: int = 0, config: GPTConfig = SHAPE) -> GPT:
    torch.manual_seed(seed)
    return GPT(config)


def data(seed: int = 0, batch_size: int = BATCH, length: int = 2000):
    """(training batches, validation batches); 28 windows an epoch, so that ten steps of four cross its end."""
    train, val = split_text(read_text()[:length][-500:])
    generator = torch.Generator().manual_seed(seed)
    return RandomBatches(train, batch_size, CONTEXT, generator), SequentialBatches(val, 2, CONTEXT)


def config(max_steps: int, **settings) -> TrainConfig:
    return TrainConfig(max_steps, **{"progress": False, "eval_every": 4, "checkpoint_every": 5, **settings})


def last_checkpoint(run_dir) -> dict:
    """The state that the last checkpoint of the run holds."""
    return checkpoint.read(checkpoint.find(run_dir / "checkpoints"))


def everything(trainer) -> dict:
    """All that a run has become, bit for bit."""
    state = trainer.optimizer.state_dict()["state"]
    tensors = dict(trainer.model.state_dict())
    tensors.update({f"{i} {key}": value for i, kept in state.items() for key, value in kept.items()})
    tensors["rng"] = torch.get_rng_state()
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
