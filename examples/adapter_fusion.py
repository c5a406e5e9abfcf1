"""Adapters for two texts, each trained on the frozen model, and then a fusion of both on the frozen adapters."""

import argparse
import itertools

import torch
from fusestep.data import RandomBatches, read_text, split_text
from fusestep.finetune import add_adapters, fuse_adapters, trained_share
from fusestep.losses import cross_entropy
from fusestep.models import GPT, GPTConfig
from fusestep.optim import AdamW

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=60)
steps = parser.parse_args().steps

torch.manual_seed(0)
text = read_text()
model = GPT(GPTConfig(context=32, layers=2, heads=2, width=64, dropout=0.0))


def train(lr, text):
    """Updates what requires a gradient; returns the last loss."""
    batches = RandomBatches(split_text(text)[0], batch_size=8, context=32, generator=torch.Generator().manual_seed(1))
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, max_grad_norm=1.0)
    for inputs, targets in itertools.islice(itertools.chain.from_iterable(itertools.repeat(batches)), steps):
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
    return loss.item()


print(f"pretraining: loss {train(2e-3, text[:30_000]):.3f}")
parts = {"first": text[100_000:130_000], "second": text[200_000:230_000]}
for name, part in parts.items():  # stage 1
    add_adapters(model, name, ["attention", "mlp"], width=64, bottleneck=8)
    print(f"adapter {name}, {trained_share(model):.1%} of the parameters: loss {train(5e-3, part):.3f}")
fuse_adapters(model, list(parts))  # stage 2
print(f"fusion: loss {train(1e-3, b''.join(parts.values())):.3f}")
