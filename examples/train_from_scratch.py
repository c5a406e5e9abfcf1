"""A whole training function by hand: warm-up, cosine decay, clipping after the warm-up, evaluation, a sample.

fusestep.Trainer does the same, with checkpoints, metrics and curves. Here each piece can be seen.
"""

import argparse

import torch
from fusestep.data import RandomBatches, SequentialBatches, read_text, split_text
from fusestep.losses import cross_entropy
from fusestep.models import GPT, GPTConfig
from fusestep.optim import AdamW
from fusestep.schedules import WarmupCosine


def train_model(model, train, val, optimizer, schedule, total_steps, warmup_steps, eval_every):
    step = 0
    while step < total_steps:
        for inputs, targets in train:  # one epoch
            for group in optimizer.param_groups:
                group["lr"] = schedule(step)
            optimizer.max_grad_norm = 1.0 if step >= warmup_steps else None  # clip after the warm-up
            optimizer.zero_grad()
            loss = cross_entropy(model(inputs), targets)  # forward
            loss.backward()  # backward
            optimizer.step()  # norm, clipping and update in two passes over memory
            step += 1
            if step % eval_every == 0 or step == total_steps:
                print(f"step {step}: training loss {loss.item():.3f}, validation loss {evaluate(model, val):.3f}")
            if step == total_steps:
                return


@torch.no_grad()
def evaluate(model, val):
    model.eval()
    losses = [cross_entropy(model(inputs), targets).item() for inputs, targets in val]
    model.train()
    return sum(losses) / len(losses)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=300)
steps = parser.parse_args().steps

torch.manual_seed(0)
train_text, val_text = split_text(read_text()[:100_000])
train = RandomBatches(train_text, batch_size=16, context=64, generator=torch.Generator().manual_seed(1))
val = SequentialBatches(val_text, batch_size=16, context=64)
model = GPT(GPTConfig(context=64, layers=2, width=64))
optimizer = AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
warmup_steps = steps // 10
schedule = WarmupCosine(peak_lr=2e-3, warmup_steps=warmup_steps, total_steps=steps, initial_lr=1e-5, min_lr=1e-4)
train_model(model, train, val, optimizer, schedule, steps, warmup_steps, eval_every=max(1, steps // 5))
print(model.generate(b"The ", 60, temperature=0.8).decode(errors="replace"))
