"""The benchmarks on a CUDA device: `python bench/gpu.py OUT.json` (tools/gpu.sh runs it, after the tests).

Times are of CUDA events, medians of interleaved rounds after a warm-up; what counts is the ratio to torch in the same
run. The floor is the device's own copy bandwidth, measured beside.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fusestep
import torch
from fusestep import ops
from fusestep.bench.cases import gpt2_shapes

Contestants = dict[str, Callable[[], Any]]
GPT2 = gpt2_shapes(768)
SMALL = [(1000,)] * 1000
FLAT = [(10**9,)]
# Bytes that a step moves for each parameter, all float32.
MOVED = {"AdamW": 28, "clip + AdamW": 32}


def measure(contestants: Contestants, rounds: int) -> dict[str, float]:
    """Seconds of each, by name: the median over the rounds, in each of which everybody runs once."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 3):
        for name, run in contestants.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            run()
            end.record()
            torch.cuda.synchronize()
            if number >= 3:
                times[name].append(begin.elapsed_time(end) / 1e3)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def parameters(shapes: list[tuple[int, ...]]) -> list[torch.nn.Parameter]:
    params = [torch.nn.Parameter(torch.randn(shape, device="cuda")) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def copy_bandwidth() -> float:
    """Bytes a second, read and written."""
    a = torch.empty(2**29, device="cuda")
    b = torch.empty_like(a)
    return 2 * a.numel() * 4 / measure({"copy": lambda: b.copy_(a)}, 20)["copy"]


def optimizer_case(name: str, shapes: list[tuple[int, ...]], **options: Any) -> Contestants:
    # One set of gradients, parameters of their own: a contestant must not find the other's data in the cache.
    params = parameters(shapes)
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in params]
    for p, other in zip(params, theirs, strict=True):
        other.grad = p.grad
    fused = {} if name == "RMSprop" else {"fused": True}
    return {
        "fusestep": getattr(fusestep.optim, name)(params, capturable=True, **options).step,
        "torch": getattr(torch.optim, name)(theirs, **(fused or {"foreach": True}), **options).step,
    }


def clip_case(shapes: list[tuple[int, ...]]) -> Contestants:
    params = parameters(shapes)
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in params]
    for p, other in zip(params, theirs, strict=True):
        other.grad = p.grad
    ours = fusestep.optim.AdamW(params, capturable=True, max_grad_norm=1.0)
    optimizer = torch.optim.AdamW(theirs, fused=True)

    def torchs() -> None:
        torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        optimizer.step()

    return {"fusestep": ours.step, "torch": torchs}


def dropout_case() -> Contestants:
    x, residual, grad = (torch.randn(2**26, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    out, back = torch.empty_like(x), torch.empty_like(x)
    leaf = x.clone().requires_grad_()

    def ours() -> None:
        ops.dropout_add(x, residual, 0.1, seed=1, out=out)
        ops.dropout(grad, 0.1, seed=1, out=back)

    def torchs() -> None:
        leaf.grad = None
        (residual + torch.nn.functional.dropout(leaf, 0.1)).backward(grad)

    return {"fusestep": ours, "torch": torchs}


def softmax_case() -> Contestants:
    scores = torch.randn(8, 16, 1024, 1024, device="cuda", dtype=torch.bfloat16)
    mask = torch.randn(1, 1, 1024, 1024, device="cuda", dtype=torch.bfloat16)
    banned = torch.ones(1024, 1024, device="cuda", dtype=torch.bool).triu(1)
    out = torch.empty_like(scores)

    def ours() -> None:
        ops.masked_softmax(scores, mask=mask, causal=True, dropout_p=0.1, seed=1, out=out)

    def torchs() -> None:
        masked = (scores + mask).masked_fill(banned, -math.inf)
        torch.nn.functional.dropout(masked.softmax(-1), 0.1)

    return {"fusestep": ours, "torch": torchs}


CASES: dict[str, tuple[Callable[[], Contestants], int]] = {
    "AdamW, GPT-2 124M": (lambda: optimizer_case("AdamW", GPT2), sum(map(math.prod, GPT2))),
    "AdamW, 1B flat": (lambda: optimizer_case("AdamW", FLAT), 10**9),
    "clip + AdamW, GPT-2 124M": (lambda: clip_case(GPT2), sum(map(math.prod, GPT2))),
    "clip + AdamW, 1,000 x 1,000": (lambda: clip_case(SMALL), 10**6),
    "RMSprop, GPT-2 124M": (lambda: optimizer_case("RMSprop", GPT2), 0),
    "SGD with momentum, GPT-2 124M": (lambda: optimizer_case("SGD", GPT2, lr=1e-3, momentum=0.9), 0),
    "Adagrad, GPT-2 124M": (lambda: optimizer_case("Adagrad", GPT2), 0),
    "dropout_add forward + backward, 67M bfloat16": (dropout_case, 0),
    "masked_softmax + dropout, (8, 16, 1024, 1024) bfloat16": (softmax_case, 0),
}


def driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")[0].strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    bandwidth = copy_bandwidth()
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "driver": driver(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, **fusestep.info()},
        "copy_bytes_a_second": bandwidth,
        "cases": {},
    }
    for title, (make, elements) in CASES.items():
        seconds = measure(make(), options.rounds)
        row: dict[str, Any] = {"seconds": seconds, "ratio_to_torch": seconds["torch"] / seconds["fusestep"]}
        moved = MOVED.get(title.split(",")[0], 0) * elements
        if moved and elements > 10**7:
            row["of_copy_bandwidth"] = moved / seconds["fusestep"] / bandwidth
        report["cases"][title] = row
        print(f"{title}: {row}")
        torch.cuda.empty_cache()
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
