"""LoRA: pretrain a small GPT on one text, then two thin matrices beside each weight of attention on another."""

import argparse
import itertools

import torch
from fusestep.data import RandomBatches, read_text, split_text
from fusestep.finetune import add_lora, merge_lora, trained_share
from fusestep.losses import cross_entropy
from fusestep.models import GPT, GPTConfig
from fusestep.optim import AdamW

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=100)
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
add_lora(model, ["qkv", "attention.out"], rank=4, alpha=8)
print(f"fine-tuning {trained_share(model):.1%} of the parameters: loss {train(5e-3, text[-30_000:]):.3f}")
merge_lora(model)
print(model.generate(b"The ", 40).decode(errors="replace"))
