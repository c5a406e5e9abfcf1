"""An encoder block with padding and dropout together, which flash kernels refuse: one call in place of torch's."""

import argparse

import fusestep.nn.functional as F
import torch
from fusestep.optim import AdamW
from torch import nn


class Block(nn.Module):
    def __init__(self, width=64, heads=4, dropout=0.1):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x, lengths):  # x (B, S, width), lengths (B,)
        batch, length, width = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, H, S, D) each
        dropout_p = self.dropout if self.training else 0.0
        # was: torch's scaled_dot_product_attention with a mask (B, 1, 1, S) that has to be built
        mixed = F.attention(query, key, value, key_lengths=lengths, dropout_p=dropout_p)
        return F.dropout_add(self.out(mixed.transpose(1, 2).flatten(2)), x, self.dropout, self.training)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=60)
steps = parser.parse_args().steps

torch.manual_seed(0)
model = nn.ModuleList([Block(), Block()])
head = nn.Linear(64, 1)
optimizer = AdamW([*model.parameters(), *head.parameters()], lr=1e-3, max_grad_norm=1.0)
for _ in range(steps):
    lengths = torch.randint(4, 33, (16,))
    x = torch.randn(16, 32, 64)
    y = torch.stack([row[:n, 0].mean() for row, n in zip(x, lengths, strict=True)])
    for block in model:
        x = block(x, lengths)
    loss = nn.functional.mse_loss(head(x[:, 0]).squeeze(1), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.4f}")
