"""The benchmarks on a CUDA device: `python bench/gpu.py OUT.json` (tools/gpu.py runs it, after the tests).

Two times of each step, apart: of the device, by CUDA events around the replay of a CUDA graph, in which nothing of the
host remains; and of the host, by the clock around calls that are not waited for. Contestants are interleaved; medians.
What counts is the ratio to torch and to the device's own copy bandwidth, both measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Shapes = list[tuple[int, ...]]
Contestants = dict[str, Callable[[], Any]]


class Cuda:
    """The device, and how its time is taken."""

    device = "cuda"
    rounds = 30

    def __init__(self) -> None:
        import torch

        self.torch = torch

    def name(self) -> str:
        return str(self.torch.cuda.get_device_name())

    def synchronize(self) -> None:
        self.torch.cuda.synchronize()

    def replayable(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """`run` as a CUDA graph, after the warm-up that a capture needs."""
        side = self.torch.cuda.Stream()
        side.wait_stream(self.torch.cuda.current_stream())
        with self.torch.cuda.stream(side):
            for _ in range(3):
                run()
        self.torch.cuda.current_stream().wait_stream(side)
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph):
            run()
        return graph.replay

    def seconds(self, run: Callable[[], Any]) -> float:
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.synchronize()
        begin.record()
        run()
        end.record()
        self.synchronize()
        return float(begin.elapsed_time(end)) / 1e3


class Emulated:
    """No device: the harness alone is run, in CPU memory, and its figures mean nothing."""

    device = "cpu"
    rounds = 1

    def name(self) -> str:
        return "emulated"

    def synchronize(self) -> None:
        pass

    def replayable(self, run: Callable[[], Any]) -> Callable[[], Any]:
        return run

    def seconds(self, run: Callable[[], Any]) -> float:
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin


@dataclass
class Case:
    make: Callable[[], Contestants]
    bytes_moved: int = 0  # at least, by ours; 0: not compared with the copy


class Bench:
    def __init__(self, device: Cuda | Emulated, small: bool) -> None:
        import fusestep.optim
        import torch
        from fusestep.bench.cases import gpt2_shapes

        self.fusestep, self.torch, self.device, self.small = fusestep, torch, device, small
        self.gpt2: Shapes = [(33, 7), (129,)] if small else gpt2_shapes(768)
        self.many: Shapes = [(10,)] * 20 if small else [(1000,)] * 1000

    def cases(self) -> dict[str, Case]:
        gpt2 = sum(map(math.prod, self.gpt2))
        listed: dict[str, Case] = {}
        for title, name, moved, options in (
            ("AdamW", "AdamW", 28, {}),
            ("Adam", "Adam", 28, {}),
            ("RMSprop", "RMSprop", 20, {}),
            ("Adagrad", "Adagrad", 20, {}),
            ("SGD with momentum", "SGD", 20, {"lr": 1e-3, "momentum": 0.9}),
        ):
            for shapes_title, shapes in (("GPT-2 124M", self.gpt2), ("1,000 x 1,000", self.many)):
                listed[f"{title}, {shapes_title}"] = Case(
                    lambda name=name, shapes=shapes, options=options: self.optimizer(name, shapes, options),
                    moved * gpt2 if shapes is self.gpt2 else 0,
                )
        for shapes_title, shapes in (("GPT-2 124M", self.gpt2), ("1,000 x 1,000", self.many)):
            listed[f"clip + AdamW, {shapes_title}"] = Case(
                lambda shapes=shapes: self.clip(shapes), 32 * gpt2 if shapes is self.gpt2 else 0
            )
        for way, moved in (("nearest", 14), ("stochastic", 14), ("kahan", 18), ("master_weights", 22)):
            listed[f"AdamW bfloat16, {way}, GPT-2 124M"] = Case(lambda way=way: self.low_precision(way), moved * gpt2)
        elements = 4096 if self.small else 2**26
        listed["dropout, 67M bfloat16"] = Case(lambda: self.dropout(elements), 4 * elements)
        listed["dropout + residual, 67M bfloat16"] = Case(lambda: self.dropout_add(elements), 6 * elements)
        scores = (2, 2, 16, 16) if self.small else (8, 16, 1024, 1024)
        for p in (0.0, 0.1):
            listed[f"masked softmax, p = {p:g}, (8, 16, 1024, 1024) bfloat16"] = Case(
                lambda p=p: self.softmax(scores, p), 4 * math.prod(scores)
            )
        logits = (3, 2000) if self.small else (4096, 50257)
        for dtype, itemsize in (("float32", 4), ("bfloat16", 2)):
            listed[f"cross-entropy and its gradient over the logits, (4096, 50257) {dtype}"] = Case(
                lambda dtype=dtype: self.cross_entropy(logits, dtype), 2 * itemsize * math.prod(logits)
            )
        return listed

    def parameters(self, shapes: Shapes, dtype: Any = None) -> list[Any]:
        torch = self.torch
        params = [torch.nn.Parameter(torch.randn(s, device=self.device.device, dtype=dtype)) for s in shapes]
        for p in params:
            p.grad = torch.randn_like(p)
        return params

    def twins(self, shapes: Shapes, dtype: Any = None) -> tuple[list[Any], list[Any]]:
        """Parameters of their own, one set of gradients: a contestant must not find the other's data in the cache."""
        ours = self.parameters(shapes, dtype)
        theirs = [self.torch.nn.Parameter(p.detach().clone()) for p in ours]
        for p, other in zip(ours, theirs, strict=True):
            other.grad = p.grad
        return ours, theirs

    def torchs(self, name: str, params: list[Any], options: dict[str, Any]) -> Any:
        """The fastest that torch has: fused, or foreach where there is no fused one on this device."""
        kind = getattr(self.torch.optim, name)
        takes_capturable = name in ("AdamW", "Adam", "RMSprop")
        more = {"capturable": True} if takes_capturable and self.device.device == "cuda" else {}
        fused = name in ("AdamW", "Adam", "SGD") and not self.small
        return kind(params, **options, **({"fused": True} if fused else {"foreach": True}), **more)

    def optimizer(self, name: str, shapes: Shapes, options: dict[str, Any]) -> Contestants:
        ours, theirs = self.twins(shapes)
        optimizer = getattr(self.fusestep.optim, name)(ours, capturable=True, **options)
        return {"fusestep": optimizer.step, "torch": self.torchs(name, theirs, options).step}

    def clip(self, shapes: Shapes) -> Contestants:
        ours, theirs = self.twins(shapes)
        optimizer = self.fusestep.optim.AdamW(ours, capturable=True, max_grad_norm=1.0)
        torchs = self.torchs("AdamW", theirs, {})

        def clip_and_step() -> None:
            self.torch.nn.utils.clip_grad_norm_(theirs, 1.0, foreach=True)
            torchs.step()

        return {"fusestep": optimizer.step, "torch": clip_and_step}

    def low_precision(self, way: str) -> Contestants:
        ours, theirs = self.twins(self.gpt2, self.torch.bfloat16)
        options = {
            "nearest": {},
            "stochastic": {"rounding": "stochastic", "seed": 1},
            "kahan": {"rounding": "kahan"},
            "master_weights": {"master_weights": True},
        }[way]
        optimizer = self.fusestep.optim.AdamW(ours, capturable=True, **options)
        return {"fusestep": optimizer.step, "torch": self.torchs("AdamW", theirs, {}).step}

    def random(self, shape: tuple[int, ...]) -> Any:
        return self.torch.randn(shape, device=self.device.device, dtype=self.torch.bfloat16)

    def dropout(self, elements: int) -> Contestants:
        x = self.random((elements,))
        out = self.torch.empty_like(x)
        ops, functional = self.fusestep.ops, self.torch.nn.functional
        return {"fusestep": lambda: ops.dropout(x, 0.1, seed=1, out=out), "torch": lambda: functional.dropout(x, 0.1)}

    def dropout_add(self, elements: int) -> Contestants:
        x, residual = self.random((elements,)), self.random((elements,))
        out = self.torch.empty_like(x)
        ops, functional = self.fusestep.ops, self.torch.nn.functional
        return {
            "fusestep": lambda: ops.dropout_add(x, residual, 0.1, seed=1, out=out),
            "torch": lambda: residual + functional.dropout(x, 0.1),
        }

    def softmax(self, shape: tuple[int, ...], p: float) -> Contestants:
        scores = self.random(shape)
        out = self.torch.empty_like(scores)
        lse = self.torch.empty(shape[:-1], device=scores.device)
        ops, functional = self.fusestep.ops, self.torch.nn.functional
        seed = {"dropout_p": p, "seed": 1} if p else {}
        return {
            "fusestep": lambda: ops.masked_softmax(scores, out=out, lse=lse, **seed),
            "torch": lambda: functional.dropout(scores.softmax(-1), p) if p else scores.softmax(-1),
        }

    def cross_entropy(self, shape: tuple[int, ...], dtype: str) -> Contestants:
        logits = self.random(shape).to(getattr(self.torch, dtype))
        labels = self.torch.randint(shape[1], shape[:1], device=logits.device)
        leaf = logits.clone().requires_grad_()
        ops, torch = self.fusestep.ops, self.torch
        return {
            "fusestep": lambda: ops.cross_entropy(logits, labels, grad=logits),
            "torch": lambda: torch.autograd.grad(torch.nn.functional.cross_entropy(leaf, labels), leaf),
        }

    def copy_bandwidth(self) -> float:
        """Bytes a second, read and written."""
        a = self.torch.empty(2**10 if self.small else 2**29, device=self.device.device)
        b = self.torch.empty_like(a)
        seconds = [self.device.seconds(lambda: b.copy_(a)) for _ in range(self.device.rounds + 3)][3:] or [1.0]
        return 2 * a.numel() * 4 / statistics.median(seconds)

    def interleaved(self, contestants: Contestants, seconds: Callable[[Callable[[], Any]], float]) -> dict[str, float]:
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for number in range(self.device.rounds + 2):
            for name, run in contestants.items():
                taken = seconds(run)
                if number >= 2:
                    times[name].append(taken)
        return {name: statistics.median(taken) for name, taken in times.items()}

    def host_seconds(self, run: Callable[[], Any]) -> float:
        self.device.synchronize()
        begin = time.perf_counter()
        run()
        taken = time.perf_counter() - begin
        self.device.synchronize()
        return taken

    def measure(self, case: Case, bandwidth: float) -> dict[str, Any]:
        contestants = case.make()
        for run in contestants.values():
            run()
        row: dict[str, Any] = {"host_seconds": self.interleaved(contestants, self.host_seconds)}
        in_graph = {name: self.device.replayable(run) for name, run in contestants.items()}
        row["device_seconds"] = device = self.interleaved(in_graph, self.device.seconds)
        row["times_torch"] = device["torch"] / device["fusestep"]
        if case.bytes_moved:
            row["of_copy_bandwidth"] = case.bytes_moved / device["fusestep"] / bandwidth
        return row


def driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")[0].strip()
    except FileNotFoundError:
        return "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--emulated", action="store_true", help="try the harness without a device, in tiny sizes")
    options = parser.parse_args()
    if options.emulated:
        import emulated_cuda  # tests/support

        emulated_cuda.install()
    bench = Bench(Emulated() if options.emulated else Cuda(), options.emulated)
    bandwidth = bench.copy_bandwidth()
    report: dict[str, Any] = {
        "device": bench.device.name(),
        "driver": driver(),
        "versions": {"python": platform.python_version(), "torch": bench.torch.__version__, **bench.fusestep.info()},
        "copy_bytes_a_second": bandwidth,
        "cases": {},
        "failures": {},
    }
    for title, case in bench.cases().items():
        try:
            report["cases"][title] = row = bench.measure(case, bandwidth)
            print(f"{title}: {row}", flush=True)
        except Exception as failure:  # one case must not take the others along
            report["failures"][title] = f"{type(failure).__name__}: {failure}"
            print(f"{title}: {report['failures'][title]}", flush=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    raise SystemExit(1 if report["failures"] else 0)


if __name__ == "__main__":
    main()
