"""One model on two processes: the same program, started by torchrun or, without it, by itself.

torchrun --nproc-per-node 2 several_processes.py
"""

import argparse
import os

import torch
import torch.distributed as dist
import torch.multiprocessing
from fusestep import TrainConfig, Trainer
from fusestep.data import RandomBatches, SequentialBatches, read_text, split_text
from fusestep.models import GPT, GPTConfig
from fusestep.optim import AdamW
from fusestep.schedules import WarmupCosine


def train(steps):
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)  # equal weights; the trainer gives each process dropout of its own
    train_text, val_text = split_text(read_text()[:50_000])
    share = {"rank": rank, "processes": processes}
    data = RandomBatches(train_text, 8, 32, torch.Generator().manual_seed(1), **share)
    val = SequentialBatches(val_text, 8, 32, **share)
    model = GPT(GPTConfig(context=32, layers=2, width=64))
    optimizer = AdamW(model.parameters(), lr=2e-3)
    config = TrainConfig(max_steps=steps, max_grad_norm=1.0, eval_every=steps, progress=False)
    end = Trainer(model, optimizer, WarmupCosine(2e-3, steps // 10, steps), config).fit(data, val)
    if rank == 0:
        print(f"{processes} processes, {steps} steps: validation loss {end.val_loss:.3f}")
    dist.destroy_process_group()


def process(rank, processes, port, steps):
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    train(steps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--port", type=int, default=29511)
    options = parser.parse_args()
    if "RANK" in os.environ:
        train(options.steps)
    else:
        torch.multiprocessing.spawn(process, (2, options.port, options.steps), nprocs=2)
