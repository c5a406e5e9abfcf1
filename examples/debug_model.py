"""A model that does not learn: overfit one batch, and read which culprit fits the evidence."""

import argparse

import torch
from fusestep.diagnostics import model_health, overfit_one_batch
from fusestep.optim import AdamW
from torch import nn

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=30)
steps = parser.parse_args().steps

torch.manual_seed(0)
batch = torch.randn(32, 8), torch.randint(0, 3, (32,))
layers = [layer for _ in range(12) for layer in (nn.Linear(8, 8), nn.Sigmoid())]  # gradients vanish on their way
model = nn.Sequential(*layers, nn.Linear(8, 3))
print(model_health(model, batch).summary())
report = overfit_one_batch(model, AdamW(model.parameters(), lr=1e-2), batch, steps=steps)
print(report.summary())
