"""An existing loop with another optimizer: the import changes, and clipping moves into the step."""

import argparse

import torch
from fusestep.optim import AdamW  # was: from torch.optim import AdamW

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=100)
steps = parser.parse_args().steps

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
optimizer = AdamW(model.parameters(), lr=1e-2, weight_decay=0.01, max_grad_norm=1.0)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

for _ in range(steps):
    x = torch.randn(128, 16)
    loss = torch.nn.functional.mse_loss(model(x), x.sin().sum(dim=1, keepdim=True))
    optimizer.zero_grad()
    loss.backward()
    # was: torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
print(
    f"loss {loss.item():.4f}, norm before clipping {optimizer.grad_norm:.3f}, steps skipped {optimizer.skipped_steps}"
)
