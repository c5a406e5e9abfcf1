"""A small case of each CUDA kernel: `compute-sanitizer --tool memcheck python tools/gpu_smoke.py` (tools/gpu.py).

--emulated runs the same cases in CPU memory, on the emulated kernels.
"""

from __future__ import annotations

import sys

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


def main() -> None:
    emulated = sys.argv[1:] == ["--emulated"]
    if emulated:
        import emulated_cuda  # tests/support

        emulated_cuda.install()
    for case in (optimizers, norms, dropout_and_softmax):
        case("cpu" if emulated else "cuda")
        print(f"gpu_smoke: {case.__name__}", flush=True)
    if not emulated:
        torch.cuda.synchronize()
    print("gpu_smoke: done")


if __name__ == "__main__":
    main()
