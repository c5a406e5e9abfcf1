"""Uses an installed fusestep with the torch beside it: a model trained as by torch, attention and its gradients.

    python tools/use_with_torch.py

One wheel serves every torch from 2.6 on, those from before DLPack's exchange API (2.6 to 2.9) too: this is run with one
of each kind.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import fusestep
import fusestep.nn.functional as F
import torch
from fusestep.nn.utils import clip_grad_norm_
from fusestep.optim import AdamW
from torch import Tensor, nn


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, clip: Callable[[], object] = lambda: None) -> Tensor:
    """The parameters after five steps, one after another: (N,)."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        optimizer.zero_grad()
        inputs = torch.randn(16, 8, generator=generator)
        model(inputs).square().mean().backward()
        clip()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def check_optimizer() -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 4))
    folded, theirs = copy.deepcopy(ours), copy.deepcopy(ours)
    options = {"lr": 1e-2, "weight_decay": 0.1}
    expected = trained(
        theirs,
        torch.optim.AdamW(theirs.parameters(), **options),
        lambda: nn.utils.clip_grad_norm_(theirs.parameters(), 0.1),
    )
    apart = trained(ours, AdamW(ours.parameters(), **options), lambda: clip_grad_norm_(ours.parameters(), 0.1))
    torch.testing.assert_close(apart, expected)
    torch.testing.assert_close(trained(folded, AdamW(folded.parameters(), max_grad_norm=0.1, **options)), expected)


def check_attention() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, 20, 16, requires_grad=True) for _ in range(3)]
    mask = torch.rand(2, 1, 20, 20) < 0.8
    mask[..., 0] = True
    grad_out = torch.randn(2, 3, 20, 16)
    ours = F.attention(*inputs, mask=mask)
    theirs = nn.functional.scaled_dot_product_attention(*inputs, attn_mask=mask)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, inputs, grad_out), torch.autograd.grad(theirs, inputs, grad_out)
    )


def check_loss() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(6, 50, requires_grad=True), torch.tensor([0, 49, -100, 7, 7, 3])
    ours, theirs = F.cross_entropy(logits, target), nn.functional.cross_entropy(logits, target)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits))


def check_compiled() -> None:
    """As one graph, traced and differentiated; no compiler of C++ is needed for it."""
    x = torch.randn(4, 10, requires_grad=True)
    eager = F.dropout(x, 0.5, seed=17)
    compiled = torch.compile(lambda x: F.dropout(x, 0.5, seed=17), fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(compiled, eager)
    compiled.sum().backward()


def main() -> None:
    check_optimizer()
    check_attention()
    check_loss()
    check_compiled()
    print(f"use_with_torch: fusestep {fusestep.__version__} and torch {torch.__version__} agree")


if __name__ == "__main__":
    main()
