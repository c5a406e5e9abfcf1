"""A small case of each CUDA kernel: `compute-sanitizer --tool memcheck python tools/gpu_smoke.py` (tools/gpu.sh)."""

from __future__ import annotations

import fusestep.optim
import torch
from fusestep import ops


def main() -> None:
    for name in ("AdamW", "Adam", "RMSprop", "Adagrad", "SGD"):
        for capturable in (False, True):
            flat, strided = torch.randn(4097, device="cuda"), torch.randn(9, 11, device="cuda")[:, ::2]
            params = [torch.nn.Parameter(flat), torch.nn.Parameter(strided)]
            for p in params:
                p.grad = torch.randn_like(p)
            options = {"max_grad_norm": 1.0, "rewrite_grads": True, "capturable": capturable}
            getattr(fusestep.optim, name)(params, **options).step()
    for norm_type in (1.0, 2.0, float("inf")):
        ops.clip_grad_norm_([torch.randn(20000, device="cuda"), torch.randn(5, 7, device="cuda").t()], 1.0, norm_type)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        x = torch.randn(33, 77, device="cuda", dtype=dtype)
        ops.dropout_add(x, ops.dropout(x, 0.3, seed=1), 0.3, seed=2)
        scores = torch.randn(2, 3, 33, 77, device="cuda", dtype=dtype)
        for shape in ((2, 3, 33, 77), (1, 1, 33, 77), (2, 3, 33, 1), (1, 77)):
            mask = torch.randn(shape, device="cuda", dtype=dtype)
            options = {"mask": mask, "causal": True, "dropout_p": 0.2, "seed": 5}
            out, lse = ops.masked_softmax(scores, **options)
            ops.masked_softmax_backward(out, scores, lse, **options, grad_mask=True)
    torch.cuda.synchronize()
    print("gpu_smoke: done")


if __name__ == "__main__":
    main()
