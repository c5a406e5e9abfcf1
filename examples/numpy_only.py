"""Logistic regression with AdamW on NumPy arrays: torch is not needed."""

import argparse
import sys

import fusestep.ops as ops
import numpy as np

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=200)
steps = parser.parse_args().steps

rng = np.random.default_rng(0)
x = rng.standard_normal((512, 20))
y = (x @ rng.standard_normal(20) > 0).astype(np.int64)

weight = np.zeros((2, 20))
exp_avg, exp_avg_sq = np.zeros_like(weight), np.zeros_like(weight)
for step in range(1, steps + 1):
    logits = x @ weight.T
    grad_logits = np.empty_like(logits)
    loss, _ = ops.cross_entropy(logits, y, grad=grad_logits)
    grad = grad_logits.T @ x
    norm = ops.adamw_([weight], [grad], [exp_avg], [exp_avg_sq], step=step, lr=0.05, max_grad_norm=1.0)
accuracy = (np.argmax(x @ weight.T, axis=1) == y).mean()
print(f"loss {float(loss):.4f}, accuracy {accuracy:.3f}, norm {norm:.4f}")
assert "torch" not in sys.modules
