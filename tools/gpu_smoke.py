"""A small case of each CUDA kernel: `compute-sanitizer --tool memcheck python tools/gpu_smoke.py` (tools/gpu.py).

--emulated runs the same cases in CPU memory, on the emulated kernels.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch


def optimizers(device: str) -> None:
    import fusestep.optim

    ways = ({}, {"rounding": "stochastic", "seed": 3}, {"rounding": "kahan"}, {"master_weights": True})
    for name in ("AdamW", "Adam", "RMSprop", "Adagrad", "SGD"):
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            for way in ways if dtype.itemsize == 2 else ways[:1]:
                for capturable in (False, True):
                    flat, strided = torch.randn(4097, device=device), torch.randn(9, 11, device=device)[:, ::2]
                    params = [torch.nn.Parameter(flat.to(dtype)), torch.nn.Parameter(strided.to(dtype))]
                    for p in params:
                        p.grad = torch.randn_like(p)
                    options = {"max_grad_norm": 1.0, "rewrite_grads": True, "capturable": capturable, **way}
                    getattr(fusestep.optim, name)(params, **options).step()


def norms(device: str) -> None:
    from fusestep import ops

    for norm_type in (1.0, 2.0, float("inf")):
        ops.clip_grad_norm_([torch.randn(20000, device=device), torch.randn(5, 7, device=device).t()], 1.0, norm_type)


def dropout_and_softmax(device: str) -> None:
    from fusestep import ops

    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        x = torch.randn(33, 77, device=device, dtype=dtype)
        ops.dropout_add(x, ops.dropout(x, 0.3, seed=1), 0.3, seed=2)
        scores = torch.randn(2, 3, 33, 77, device=device, dtype=dtype)
        for shape in ((2, 3, 33, 77), (1, 1, 33, 77), (2, 3, 33, 1), (1, 77)):
            mask = torch.randn(shape, device=device, dtype=dtype)
            options = {"mask": mask, "causal": True, "dropout_p": 0.2, "seed": 5}
            out, lse = ops.masked_softmax(scores, **options)
            ops.masked_softmax_backward(out, scores, lse, **options, grad_mask=True)


def attention(device: str) -> None:
    """Both paths of 16 bits and the one of float, each with every kind of mask, forward and backward."""
    from fusestep import ops

    emulated = device == "cpu"  # thousands of times slower: the same kinds, once each and small
    queries, keys = (20, 40) if emulated else (70, 150)
    lengths = torch.tensor([keys // 2, keys // 3], dtype=torch.int32, device=device)
    kinds: tuple[dict[str, Any], ...] = (
        {},
        {"causal": True, "key_lengths": lengths},
        {"mask": torch.rand(2, 1, queries, keys, device=device) > 0.4},
        {"mask": torch.randn(1, 2, queries, keys, device=device)},
        {"softcap": 2.0, "alibi_slopes": torch.rand(2, device=device), "window": (20, 30)},
    )
    for path, dtype in (("sm_80", torch.float16), ("sm_90a", torch.bfloat16), ("", torch.float32)):
        if path == "sm_90a" and device == "cuda" and torch.cuda.get_device_capability() != (9, 0):
            continue
        os.environ["FUSESTEP_CUDA_ATTENTION"] = path
        for dim in (64,) if emulated else (64, 100):
            query, grad = (torch.randn(2, 2, queries, dim, device=device).to(dtype) for _ in range(2))
            key, value = (torch.randn(2, 1, keys, dim, device=device).to(dtype) for _ in range(2))
            for kind in kinds:
                for dropout in ({"dropout_p": 0.1, "seed": 3}, {})[: 1 if emulated else 2]:
                    options = {**kind, **dropout}
                    additive = "mask" in kind and kind["mask"].dtype != torch.bool
                    out, lse = ops.attention(query, key, value, **options)
                    ops.attention_backward(grad, query, key, value, out, lse, **options, grad_mask=additive)


def main() -> None:
    emulated = sys.argv[1:] == ["--emulated"]
    if emulated:
        import emulated_cuda  # tests/support

        emulated_cuda.install()
    for case in (optimizers, norms, dropout_and_softmax, attention):
        case("cpu" if emulated else "cuda")
        print(f"gpu_smoke: {case.__name__}", flush=True)
    if not emulated:
        torch.cuda.synchronize()
    print("gpu_smoke: done")


if __name__ == "__main__":
    main()
