"""On a CUDA device: the tests of the CPU's kernels over, the same bits every time, and steps inside a CUDA graph."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cases
import fusestep
import fusestep.nn.functional as F
import numpy as np
import problems
import pytest
import torch
from device import NEEDS_A_DEVICE, captured
from fusestep import ops

ROOT = Path(__file__).parents[2]
pytestmark = NEEDS_A_DEVICE

# The CPU's tests that say something of a device, and which of them do not.
HOST_THREADS = "not number_of_threads and not instruction_set"
CPU_TESTS = {
    "ops/test_ops_optim": "",
    "ops/test_ops_16bit": "",
    "ops/test_norm_clip": "",
    "ops/test_masked_softmax": "",
    "ops/test_cross_entropy": "not out_of_range and not number_of_threads",
    "ops/test_attention_ops": "",
    "ops/test_attention_bits": HOST_THREADS,
    # An exporter that only says that its lengths are on a device.
    "ops/test_attention_bad_input": "not lengths_on_a_device",
    "torch/test_torch_attention": "",
    "torch/test_torch_mha": "",
    "torch/test_torch_nested": "",
    "torch/test_torch_autocast": "",
    "torch/test_torch_transforms": "",
}


def run_on_device(file, chosen, **more_environment):
    # In front of what is there: make gpu names its own installation so.
    paths = [str(ROOT / "tests/support"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more_environment}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "on_gpu", "-p", "no:cacheprovider", f"tests/{file}.py"]
    result = subprocess.run([*command, "-k", chosen], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


@pytest.mark.parametrize("file", CPU_TESTS)
def test_the_tests_of_the_cpu(file):
    run_on_device(file, CPU_TESTS[file])


def test_the_tests_of_the_cpu_with_lengths_on_the_device():
    run_on_device("ops/test_attention_ops", "lengths or packed or everything", FUSESTEP_TEST_LENGTHS="device")


def make(optimizer_class, device, **options):
    rng = np.random.default_rng(5)
    shapes = [(300, 70), (7,), (cases.SLICE + 3,), (1,)]
    params = [
        torch.nn.Parameter(torch.tensor(rng.standard_normal(s), dtype=torch.float32, device=device)) for s in shapes
    ]
    for p in params:
        p.grad = torch.tensor(rng.standard_normal(p.shape), dtype=torch.float32, device=device)
    return optimizer_class(params, **options), params


def bits(params):
    return [p.detach().cpu().numpy().tobytes() for p in params]


@pytest.mark.parametrize("name", ["AdamW", "Adam", "RMSprop", "Adagrad", "SGD"])
@pytest.mark.parametrize("capturable", [False, True])
def test_the_bits_of_the_cpu(name, capturable):
    cls = getattr(fusestep.optim, name)
    ours, on_device = make(cls, "cuda", max_grad_norm=1.0, capturable=capturable)
    theirs, on_host = make(cls, "cpu", max_grad_norm=1.0)
    for _ in range(5):
        ours.step()
        theirs.step()
        assert bits(on_device) == bits(on_host)
    assert float(ours.grad_norm) == theirs.grad_norm


def test_the_same_bits_every_time():
    seen = set()
    for _ in range(250):
        optimizer, params = make(fusestep.optim.AdamW, "cuda", max_grad_norm=1.0, capturable=True)
        optimizer.step()
        optimizer.step()
        x = ops.dropout(params[0].detach(), 0.3, seed=9)
        seen.add((*bits(params), float(optimizer.grad_norm), x.cpu().numpy().tobytes()))
    assert len(seen) == 1


@pytest.mark.parametrize("name", ["AdamW", "Adam", "RMSprop", "Adagrad", "SGD"])
def test_a_step_in_a_cuda_graph(name):
    cls = getattr(fusestep.optim, name)
    lr = torch.tensor(1e-2, device="cuda", dtype=torch.float64)
    captured, params = make(cls, "cuda", max_grad_norm=1.0, capturable=True, lr=lr)
    eager, others = make(cls, "cuda", max_grad_norm=1.0, capturable=True, lr=lr)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        captured.step()
    torch.cuda.current_stream().wait_stream(side)
    eager.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    for number in range(4):
        lr.fill_(1e-2 / (1 + number))
        for p, other in zip(params, others, strict=True):
            p.grad.normal_()
            if number == 2:
                p.grad.view(-1)[0] = float("nan")
            other.grad.copy_(p.grad)
        graph.replay()
        eager.step()
        assert bits(params) == bits(others)
    assert float(captured.skipped_steps) == float(eager.skipped_steps) == 1


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")  # torch's word when the capture ends
def test_a_graph_refuses_what_the_host_decides():
    optimizer, _ = make(fusestep.optim.AdamW, "cuda")
    optimizer.step()
    with pytest.raises(RuntimeError, match="capturable=True"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()


def test_captures_leave_no_memory_behind():
    optimizer, _ = make(fusestep.optim.AdamW, "cuda", max_grad_norm=1.0, capturable=True)
    optimizer.step()

    def capture():
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            optimizer.step()
        graph.replay()
        del graph
        torch.cuda.synchronize()
        optimizer.step()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]

    for _ in range(20):
        before = capture()
    for _ in range(1000):
        after = capture()
    assert before - after <= 2**21  # the driver's own granularity


@pytest.mark.parametrize("backward", [False, True])
def test_each_replay_of_a_graph_drops_other_elements(backward):
    x = torch.ones(4096, device="cuda", requires_grad=backward)
    result = torch.empty(4096, device="cuda")

    def step():
        out = F.dropout(x, 0.5)
        result.copy_(torch.autograd.grad(out, x, torch.ones_like(x))[0] if backward else out)

    replay = captured(step)

    def replays():
        torch.cuda.manual_seed(5)
        masks = []
        for _ in range(3):
            replay()
            masks.append(result.cpu().numpy().tobytes())
        return masks

    masks = replays()
    assert len(set(masks)) == 3
    assert replays() == masks


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_the_dropout_of_the_cpu(dtype, p, rng):
    for shape in cases.LAYOUT_SHAPES:
        x = problems.array(rng.standard_normal(shape), dtype)
        want = problems.as_numpy(ops.dropout(x, p, seed=3, offset=1))
        problems.assert_same_bits(problems.as_numpy(ops.dropout(x.cuda(), p, seed=3, offset=1).cpu()), want)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is only one CUDA device")
def test_the_second_device():
    optimizer, params = make(fusestep.optim.AdamW, "cuda:1", max_grad_norm=1.0)
    _, others = make(fusestep.optim.AdamW, "cpu", max_grad_norm=1.0)
    optimizer.step()
    assert torch.cuda.current_device() == 0
    assert len(params) == len(others)
