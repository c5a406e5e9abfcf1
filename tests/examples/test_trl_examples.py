"""The programs with TRL run in small, each shows what it says, and all of it on fusestep's kernels.

In one process: what TRL imports takes longer than the three trainings.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*_with_trl.py"))
STEPS, LAYERS = 6, 2

# Runs each, and says in a line of JSON whose optimizer stepped, whether it clipped, and whose attention was called.
RUNNER = """
import json, os, runpy, sys
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

os.environ["HF_HUB_OFFLINE"] = "1"
import fusestep.integrations.transformers as integration

calls = {}

def counting(owner, name):
    function = getattr(owner, name)
    def counted(*arguments, **keywords):
        calls[name] = calls.get(name, 0) + 1
        return function(*arguments, **keywords)
    setattr(owner, name, counted)

def stepped(optimizer, arguments, keywords):
    assert optimizer.grad_norm > 0.0, "the norm is what the fused clipping has measured"
    name = f"{type(optimizer).__module__}, ceiling {optimizer.max_grad_norm}"
    calls[name] = calls.get(name, 0) + 1

counting(integration, "attention")
counting(torch.nn.functional, "scaled_dot_product_attention")
register_optimizer_step_post_hook(stepped)
steps, *examples = sys.argv[1:]
for example in examples:
    calls.clear()
    sys.argv = [example, "--steps", steps]
    runpy.run_path(example, run_name="__main__")
    print("calls", json.dumps(calls))
"""


@pytest.mark.skipif(find_spec("trl") is None, reason="trl is not installed (it needs Python 3.11)")
def test_they_run_on_our_kernels(tmp_path):
    command = [sys.executable, "-c", RUNNER, str(STEPS), *map(str, EXAMPLES)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES[0].parent)}  # as for a program
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    dpo, rlhf, sft = (json.loads(line.removeprefix("calls ")) for line in lines if line.startswith("calls "))
    for calls, trainings in ((dpo, 1), (rlhf, 2), (sft, 1)):
        attentions = calls.pop("attention")
        assert calls == {"fusestep.optim.adamw, ceiling 1.0": STEPS * trainings}  # and no attention of torch's
        assert attentions >= LAYERS * trainings * (STEPS + 2)  # each update, and the evaluations before and after
    assert any(re.fullmatch(r"of \w+>(\w{3}<eos>) the loss is that of \1", line) for line in lines)
    for words in ("loss of the answers", "rewards/margins", "reward model: loss", "model: reward"):
        assert any(line.startswith(words) for line in lines), words
