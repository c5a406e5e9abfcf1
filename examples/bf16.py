"""A bfloat16 model that goes on learning: stochastic rounding keeps the updates that rounding to the nearest loses."""

import argparse

import torch
from fusestep.optim import AdamW

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=400)
steps = parser.parse_args().steps

final = {}
for rounding in (None, "stochastic"):
    torch.manual_seed(0)
    parameter = torch.full((4096,), 1.0, dtype=torch.bfloat16, requires_grad=True)
    options = {} if rounding is None else {"rounding": rounding}
    # Updates of 0.001 are a quarter of the distance between two bfloat16 numbers near 1.
    optimizer = AdamW([parameter], lr=1e-3, weight_decay=0.0, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        parameter.float().sum().backward()
        optimizer.step()
    final[rounding or "nearest"] = parameter.float().mean().item()
print(
    f"after {steps} steps of -0.001 from 1: exact {1 - steps * 1e-3:.3f}", *(f"{k} {v:.3f}" for k, v in final.items())
)
