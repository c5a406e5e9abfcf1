"""Attention on a CUDA device against the best of torch's backends, case by case.

    python bench/gpu_attention.py FILE [--seconds 60] [--dtype bfloat16] [--path sm_80]

16,384 tokens in all, heads * head dim = 2,048. Times are those of CUDA events, medians; ours and torch's alternate case
by case. TFLOP/s count 4 * batch * heads * length^2 * head dim for the forward pass and 2.5 times that for the backward
one, half of it under a causal mask; padded keys are counted, so skipping them shows. When the seconds are over the rest
is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from fusestep import _core
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

TOKENS = 16384
WIDTH = 2048
SIZES = ((128, 4096), (64, 4096), (128, 1024), (64, 1024))  # head dim, length
BACKENDS = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)


Options = dict[str, Any]


@dataclass
class Row:
    case: str
    head_dim: int
    length: int
    dropout_p: float
    forward_ms: float
    backward_ms: float
    torch_forward_ms: float  # of the backend that is best at it
    torch_both_ms: float
    torch_backend: str  # the best at both passes
    forward_tflops: float
    both_tflops: float


def cases(
    batch: int, heads: int, length: int, dtype: torch.dtype
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(name, our options, torch's)."""
    yield "none", {}, {}
    yield "causal", {"causal": True}, {"is_causal": True}
    bias = torch.randn(1, heads, length, length, device="cuda", dtype=dtype)
    yield "bias", {"mask": bias}, {"attn_mask": bias}
    boolean = torch.rand(batch, 1, length, length, device="cuda") > 0.2
    yield "boolean", {"mask": boolean}, {"attn_mask": boolean}
    lengths = torch.full((batch,), length // 2, dtype=torch.int32, device="cuda")
    padding = (torch.arange(length, device="cuda") < length // 2).expand(batch, 1, 1, length)
    yield "padded", {"key_lengths": lengths}, {"attn_mask": padding}


def median_ms(function: Callable[[], Any], repeats: int = 9) -> float:
    for _ in range(2):
        function()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def measure(name: str, ours: dict[str, Any], theirs: dict[str, Any], p: float, tensors: list[torch.Tensor]) -> Row:
    query, key, value, grad = tensors
    batch, heads, length, dim = query.shape
    masks = (ours.get("mask"), ours.get("causal", False), None, ours.get("key_lengths"))
    options = (*masks, None, p, 7, 0, None, None, None, None)
    out, lse = torch.empty_like(query), torch.empty(batch, heads, length, device="cuda")
    grads = [torch.empty_like(query) for _ in range(3)]
    forward = median_ms(lambda: _core.attention_forward("attention", query, key, value, out, lse, options))
    backward = median_ms(
        lambda: _core.attention_backward("attention", grad, query, key, value, out, lse, *grads, None, options)
    )
    leaves = [x.detach().clone().requires_grad_() for x in (query, key, value)]
    torch_forward, torch_both, best = float("inf"), float("inf"), ""
    for backend in BACKENDS:

        def both() -> None:
            for leaf in leaves:
                leaf.grad = None
            scaled_dot_product_attention(*leaves, dropout_p=p, **theirs).backward(grad)

        def alone() -> None:
            with torch.no_grad():
                scaled_dot_product_attention(query, key, value, dropout_p=p, **theirs)

        with sdpa_kernel(backend):
            try:
                alone()
            except RuntimeError:  # this backend cannot do the case
                continue
            torch_forward = min(torch_forward, median_ms(alone, 5))
            took = median_ms(both, 5)
        if took < torch_both:
            torch_both, best = took, backend.name
    flops = 4 * batch * heads * length**2 * dim * (0.5 if name == "causal" else 1) / 1e9
    return Row(
        name, dim, length, p, forward, backward, torch_forward, torch_both, best,
        flops / forward, 3.5 * flops / (forward + backward),
    )  # fmt: skip


def run(seconds: float, dtype: torch.dtype) -> list[Row]:
    rows = []
    end = time.perf_counter() + seconds
    for dim, length in SIZES:
        batch, heads = TOKENS // length, WIDTH // dim
        tensors = [torch.randn(batch, heads, length, dim, device="cuda", dtype=dtype) for _ in range(4)]
        for name, ours, theirs in cases(batch, heads, length, dtype):
            for p in (0.0, 0.1):
                if time.perf_counter() > end:
                    return rows
                row = measure(name, ours, theirs, p, tensors)
                rows.append(row)
                both = row.forward_ms + row.backward_ms
                print(
                    f"D {dim:3} S {length} {name:8} p {p}: {row.forward_ms:7.3f} + {row.backward_ms:7.3f} ms, "
                    f"{row.forward_tflops:4.0f} / {row.both_tflops:4.0f} TFLOP/s, "
                    f"torch / ours {row.torch_forward_ms / row.forward_ms:.2f} / {row.torch_both_ms / both:.2f} "
                    f"({row.torch_backend})",
                    flush=True,
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="where the figures go, as JSON")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16"))
    parser.add_argument(
        "--path", default="", choices=("", "sm_80", "sm_90a"), help="other kernels than the device's own"
    )
    options = parser.parse_args()
    os.environ["FUSESTEP_CUDA_ATTENTION"] = options.path
    rows = run(options.seconds, getattr(torch, options.dtype))
    report = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "dtype": options.dtype,
        "path": options.path or "the device's own",
        "rows": [asdict(row) for row in rows],
    }
    options.file.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
