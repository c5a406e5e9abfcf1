"""Everything that needs a GPU, in one go and without a network: build, tests, figures, sanitizers.

It builds with what is installed (torch, pybind11, scikit-build-core, nvcc), goes on after a step that fails, and bounds
the time of each. `make gpu` runs it; PYTHON=... chooses the interpreter.

    python tools/gpu.py [--out bench/results] [--emulated]

Each step is a line on the terminal. The folder --out gets DEVICE.json (the steps with their seconds and outcomes, and
the figures) and DEVICE.log (what the steps printed). The exit status is 0 if all passed. --emulated does the same steps
on a machine without a GPU, with the kernels under emulation and tiny sizes: it proves the harness, not the kernels.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[1]
SUPPORT = ROOT / "tests/support"


@dataclass
class Step:
    name: str
    command: list[str]
    limit: float  # seconds, then it is ended and counts as failed
    seconds: float = 0.0
    outcome: str = "not run"


def steps(python: str, place: Path, emulated: bool) -> list[Step]:
    """In this order: what tells most about a fault comes first."""
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist"):
        pytest += ["-n", str(min(8, os.cpu_count() or 1))]
    build = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    build += ["--target", str(place / "site"), str(ROOT), "--config-settings", "cmake.define.FUSESTEP_CUDA=ON"]
    build += ["--config-settings", "build-dir=build/gpu"]
    gpu_tests = ["-m", "gpu", "tests"]
    bits = ["tests/ops/test_bits.py"]
    if emulated:  # the rest of these tests runs in the suite itself
        gpu_tests = ["-p", "emulated_cuda", "tests/cuda/emulated_cases.py", "-k", "groups or raising"]
        bits += ["-k", "hash"]
    figures = [python, "bench/gpu.py", str(place / "figures.json"), *(["--emulated"] if emulated else [])]
    smoke = [python, "tools/gpu_smoke.py", *(["--emulated"] if emulated else [])]
    listed = [
        Step("build", build, 300),
        Step("info", [python, "-m", "fusestep", "info"], 60),
        Step("kernels", [*pytest, *gpu_tests], 180),
        Step("this CPU's bits", [*pytest, *bits], 60),
        Step("figures", figures, 120),
        Step("smoke", smoke, 60),
    ]
    if not emulated:
        attention = [python, "bench/gpu_attention.py", str(place / "attention.json"), "--seconds", "60"]
        listed.append(Step("attention", attention, 100))
    sanitizer = shutil.which("compute-sanitizer")
    listed += [
        Step(tool, [sanitizer, "--tool", tool, "--error-exitcode", "1", *smoke], 90)
        for tool in (("memcheck", "racecheck", "synccheck", "initcheck") if sanitizer else ())
    ]
    # Emulation is built in the development environment already (FUSESTEP_EMULATE_CUDA=ON).
    return listed[1:] if emulated else listed


def run(step: Step, environment: dict[str, str], log: TextIO) -> None:
    log.write(f"\n=== {step.name}: {' '.join(step.command)}\n")
    log.flush()
    begin = time.perf_counter()
    try:
        done = subprocess.run(
            step.command,
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=step.limit,
            check=False,
        )
        step.outcome = "passed" if done.returncode == 0 else f"failed with exit status {done.returncode}"
    except subprocess.TimeoutExpired:
        step.outcome = f"ended after its {step.limit:.0f} s"
    step.seconds = round(time.perf_counter() - begin, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results")
    parser.add_argument("--emulated", action="store_true")
    options = parser.parse_args()
    python = os.environ.get("PYTHON", sys.executable)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        search = [str(place / "site"), str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])]
        # The sanitizers see only what does not come from torch's own pool.
        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join(search), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
        }  # fmt: skip
        log_file = place / "log"
        todo = steps(python, place, options.emulated)
        with log_file.open("w") as log:
            for step in todo:
                keeps_cache = step.name in ("figures", "kernels", "attention")
                run(step, {**environment, "PYTORCH_NO_CUDA_MEMORY_CACHING": ""} if keeps_cache else environment, log)
                print(f"{step.name:16} {step.seconds:6.1f} s  {step.outcome}", flush=True)
        figures_file = place / "figures.json"
        figures = json.loads(figures_file.read_text()) if figures_file.exists() else {}
        name = figures.get("device", "unknown-device").lower().replace(" ", "-")
        attention_file = place / "attention.json"
        attention = json.loads(attention_file.read_text()) if attention_file.exists() else {}
        report = {"steps": [asdict(step) for step in todo], "figures": figures, "attention": attention}
        for step in report["steps"]:
            step.pop("command")  # its paths are this machine's
        (options.out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
        shutil.copy(log_file, options.out / f"{name}.log")
    print(f"see {options.out / name}.json and .log")
    return 0 if all(step.outcome == "passed" for step in todo) else 1


if __name__ == "__main__":
    sys.exit(main())
