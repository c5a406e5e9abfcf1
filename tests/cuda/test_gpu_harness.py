"""`make gpu` without a GPU: every step of it runs, on the emulated kernels, and leaves its report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import emulated_cuda
import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    emulated_cuda.module_file() is None, reason="built without FUSESTEP_EMULATE_CUDA=ON (`make test` builds with it)"
)


@pytest.mark.slow
def test_every_step_runs_and_is_reported(tmp_path):
    command = [sys.executable, "tools/gpu.py", "--emulated", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    log = tmp_path / "emulated.log"
    assert done.returncode == 0, done.stdout + done.stderr + (log.read_text()[-4000:] if log.exists() else "")
    report = json.loads((tmp_path / "emulated.json").read_text())
    names = [step["name"] for step in report["steps"]]
    assert names[:5] == ["info", "kernels", "this CPU's bits", "figures", "smoke"]
    assert {step["outcome"] for step in report["steps"]} == {"passed"}
    assert [line.split("  ")[0].strip() for line in done.stdout.splitlines()[:-1]] == names
    figures = report["figures"]
    assert figures["failures"] == {}
    assert len(figures["cases"]) >= 19
    for title, row in figures["cases"].items():
        assert set(row["device_seconds"]) == set(row["host_seconds"]) == {"fusestep", "torch"}, title
    assert "=== smoke" in log.read_text()


@pytest.mark.slow
def test_the_plugin_that_moves_arrays_to_the_device():
    """Overlapping views stay overlapping, layouts stay what they are, results come back."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests/support"), "FUSESTEP_TEST_DEVICE": "cpu"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "on_gpu", "-p", "no:cacheprovider", "-m", "not slow"]
    command += ["-p", "one_of", "--one-of=4"]
    files = [f"tests/ops/test_{name}.py" for name in ("norm_clip", "dropout", "ops_16bit")]
    done = subprocess.run([*command, *files], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_a_step_that_fails_stops_no_other(tmp_path, monkeypatch):
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import gpu
    finally:
        sys.path.remove(str(ROOT / "tools"))
    listed = [
        gpu.Step("fails", [sys.executable, "-c", "raise SystemExit(3)"], 10),
        gpu.Step("hangs", [sys.executable, "-c", "import time; time.sleep(60)"], 1),
        gpu.Step("works", [sys.executable, "-c", "print('well')"], 10),
    ]
    monkeypatch.setattr(gpu, "steps", lambda *_: listed)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--emulated", "--out", str(tmp_path)])
    assert gpu.main() == 1
    report = json.loads((tmp_path / "unknown-device.json").read_text())
    assert [s["outcome"] for s in report["steps"]] == ["failed with exit status 3", "ended after its 1 s", "passed"]
    assert "well" in (tmp_path / "unknown-device.log").read_text()
