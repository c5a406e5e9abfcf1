"""How many threads a step uses, whose they are, and that nobody can tell from the result.

What depends on the import order, the environment or a fork runs in an interpreter of its own.
`parallel_for` itself is tested in tests/cpp/test_threads.cpp.
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import fusestep
import numpy as np
import pytest
from new_python import in_new_python

ROOT = Path(__file__).parents[2]

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, sets the affinity")


@pytest.fixture
def automatic_afterwards():
    yield
    fusestep.set_num_threads(0)


# --- parallel_for ---

COMPILER = shlex.split(os.environ.get("CXX", "c++"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("sanitizer", [[], ["-g", "-fsanitize=thread"]], ids=["plain", "thread sanitizer"])
def test_the_cpp_program(sanitizer, tmp_path):
    compile_ = [*COMPILER, "-std=c++20", "-O1", "-pthread", *sanitizer]
    if sanitizer:
        probe = tmp_path / "probe.cpp"
        probe.write_text("int main() { return 0; }")
        built = subprocess.run([*compile_, probe, "-o", tmp_path / "probe"], capture_output=True, check=False)
        if built.returncode != 0 or subprocess.run([tmp_path / "probe"], check=False).returncode != 0:
            pytest.skip(f"no working {sanitizer[-1]} here")
    cpp = ROOT / "cpp"
    pool = [cpp / f"threads/{name}.cpp" for name in ("threads", "openmp", "pool")]
    sources = [ROOT / "tests/cpp/test_threads.cpp", *pool]
    program = tmp_path / "test_threads"
    subprocess.run([*compile_, f"-I{cpp}", *sources, "-o", program, "-ldl"], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr


# --- set_num_threads ---


def test_set_num_threads_is_kept_and_zero_takes_it_back(automatic_afterwards):
    before = fusestep.get_num_threads()
    for n in (1, 2, 7, 1024):
        fusestep.set_num_threads(n)
        assert fusestep.get_num_threads() == fusestep.info()["threads"] == n
    fusestep.set_num_threads(0)
    assert fusestep.get_num_threads() == before


@pytest.mark.parametrize("n", [-1, 1025, 2**31, 2**64, -(2**70)])
def test_a_wrong_number_is_refused(n, automatic_afterwards):
    fusestep.set_num_threads(3)
    with pytest.raises(ValueError, match=rf"^set_num_threads: n: expected .*1 to 1024.*got {n}"):
        fusestep.set_num_threads(n)
    assert fusestep.get_num_threads() == 3


@pytest.mark.parametrize("n", [1.0, "2", True, None, [2]], ids=repr)
def test_what_is_no_number_is_refused(n, automatic_afterwards):
    fusestep.set_num_threads(3)
    with pytest.raises(TypeError, match=r"^set_num_threads: n: expected .*int"):
        fusestep.set_num_threads(n)
    assert fusestep.get_num_threads() == 3


# --- results ---


def run_step(seed, n):
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(n, dtype=np.float32) for _ in range(3)]
    arrays.append(np.abs(rng.standard_normal(n, dtype=np.float32)))
    param, grad, exp_avg, exp_avg_sq = arrays
    norm = fusestep.ops.adamw_([param], [grad], [exp_avg], [exp_avg_sq], step=3, max_grad_norm=1.0)
    return norm, arrays


def assert_same(a, b):
    assert a[0] == b[0]
    for x, y in zip(a[1], b[1], strict=True):
        np.testing.assert_array_equal(x.view(np.uint32), y.view(np.uint32))


@pytest.mark.parametrize("n", [1, 16384, 16385, 300_001])
def test_any_number_of_threads_gives_the_same_bits(n, automatic_afterwards):
    fusestep.set_num_threads(1)
    expected = run_step(n, n)
    for threads in (2, 3, 8):
        fusestep.set_num_threads(threads)
        assert_same(run_step(n, n), expected)


def test_steps_of_several_python_threads_at_once(automatic_afterwards):
    fusestep.set_num_threads(1)
    expected = [run_step(seed, 150_000) for seed in range(6)]
    fusestep.set_num_threads(3)
    with concurrent.futures.ThreadPoolExecutor(4) as executor:
        for _ in range(5):
            for got, alone in zip(executor.map(run_step, range(6), [150_000] * 6), expected, strict=True):
                assert_same(got, alone)


# --- without torch: the own pool ---


@needs_linux
def test_alone_the_own_pool_started_by_the_first_step_that_needs_it():
    got = in_new_python("""
import fusestep
fusestep.set_num_threads(3)
before = system_threads()
step(100)
small = system_threads()
step()
many = system_threads()
fusestep.set_num_threads(2)
step()
print(json.dumps([source(), small - before, many - before, system_threads() - before, openmp_libraries()]))
""")
    assert got == ["own pool", 0, 2, 2, []]


@pytest.mark.parametrize(("text", "expected"), [("3", 3), ("4,2", 4), (" 5 ", 5)])
def test_omp_num_threads(text, expected):
    code = "import fusestep; print(json.dumps([fusestep.get_num_threads(), len(step())]))"
    assert in_new_python(code, OMP_NUM_THREADS=text) == [expected, 4]


@needs_linux
@pytest.mark.parametrize("text", ["", "0", "-1", "all", "2.5"])
def test_omp_num_threads_that_says_nothing_leaves_the_affinity(text):
    code = "import fusestep; print(json.dumps([fusestep.get_num_threads(), len(os.sched_getaffinity(0))]))"
    threads, cpus = in_new_python(code, OMP_NUM_THREADS=text)
    assert threads == cpus


@needs_linux
def test_affinity_before_and_after_the_import():
    got = in_new_python("""
cpus = os.sched_getaffinity(0)
os.sched_setaffinity(0, {min(cpus)})
import fusestep
one = fusestep.get_num_threads()
os.sched_setaffinity(0, cpus)
all_of_them = fusestep.get_num_threads()
os.sched_setaffinity(0, {min(cpus)})
before = system_threads()
step()
print(json.dumps([one, all_of_them == len(cpus), system_threads() - before]))
""")
    assert got == [1, True, 0]


def test_set_num_threads_wins_over_the_environment():
    code = "import fusestep; fusestep.set_num_threads(2); print(json.dumps(fusestep.get_num_threads()))"
    assert in_new_python(code, OMP_NUM_THREADS="5") == 2


@needs_linux
def test_fork_after_a_step_on_the_own_pool():
    got = in_new_python("""
import fusestep
fusestep.set_num_threads(3)
here = step()
child, threads_there, grandchild = in_fork(lambda: [step(), system_threads(), in_fork(step)])
print(json.dumps([child == here, threads_there >= 3, grandchild == here, step() == here, source()]))
""")
    assert got == [True, True, True, True, "own pool"]


@needs_linux
def test_fork_while_another_thread_steps():
    got = in_new_python("""
import fusestep
fusestep.set_num_threads(3)
expected = step()
stop = threading.Event()
def keep_stepping():
    while not stop.is_set():
        step()
stepping = threading.Thread(target=keep_stepping)
stepping.start()
children = [in_fork(step) for _ in range(10)]
stop.set()
stepping.join()
print(json.dumps([child == expected for child in children]))
""")
    assert got == [True] * 10


# --- with torch: its OpenMP runtime ---


@needs_linux
@needs_torch
@pytest.mark.parametrize(
    "order", ["import torch, fusestep", "import fusestep, torch", "import fusestep; step(); import torch"]
)
def test_torchs_runtime_is_used_whatever_was_imported_first(order):
    got = in_new_python(f"""
{order}
torch.ones(1 << 20).add_(1)
alone = step()
print(json.dumps([source(), len(openmp_libraries()), fusestep.get_num_threads() == torch.get_num_threads(),
                  step() == alone]))
""")
    assert got[0].startswith("OpenMP runtime already loaded (lib")
    assert got[1:] == [1, True, True]


@needs_linux
@needs_torch
def test_torch_set_num_threads_is_followed_and_no_threads_are_added():
    """A thread that ends, as torch shrinks its team, still counts for a moment: so there may be fewer afterwards."""
    got = in_new_python("""
import torch, fusestep
counts, results = [], []
for n in (1, 3, 2):
    torch.set_num_threads(n)
    torch.ones(1 << 20).add_(1)
    before = system_threads()
    results.append(step())
    counts.append([fusestep.get_num_threads(), max(0, system_threads() - before)])
fusestep.set_num_threads(5)
torch.set_num_threads(1)
explicit = fusestep.get_num_threads()
results.append(step())
fusestep.set_num_threads(0)
print(json.dumps([counts, explicit, fusestep.get_num_threads(), len({json.dumps(r) for r in results})]))
""")
    assert got == [[[1, 0], [3, 0], [2, 0]], 5, 1, 1]


@needs_torch
@pytest.mark.parametrize("text", ["1", "3"])  # torch takes no more than there are cores
def test_omp_num_threads_through_torch(text):
    code = "import torch, fusestep; print(json.dumps([fusestep.get_num_threads(), torch.get_num_threads()]))"
    ours, torchs = in_new_python(code, OMP_NUM_THREADS=text)
    assert 1 <= ours == torchs <= int(text)


@needs_linux
@needs_torch
def test_fork_after_torch_and_fusestep_used_its_runtime():
    """libgomp's threads do not survive a fork, and its next parallel region in the child would hang."""
    got = in_new_python("""
import torch, fusestep
torch.set_num_threads(2)
torch.ones(1 << 20).add_(1)
here = step()
def in_child():
    many = step()
    torch.set_num_threads(1)  # as DataLoader workers do
    return [many, step(), source(), fusestep.get_num_threads()]
many, one, words, threads = in_fork(in_child)
print(json.dumps([many == here, one == here, words, threads, step() == here, source()]))
""")
    assert got[:2] == [True, True]
    library = got[5].removeprefix("OpenMP runtime already loaded ")
    assert got[2] in (
        "own pool (libgomp does not survive a fork)",
        f"OpenMP runtime already loaded {library}",
    )
    assert (got[2] == got[5]) == (library != "(libgomp)")
    assert got[3:5] == [1, True]


@needs_linux
@needs_torch
def test_torch_first_imported_in_a_forked_child():
    got = in_new_python("""
import fusestep
fusestep.set_num_threads(2)
here = step()
def in_child():
    import torch
    torch.ones(1 << 20).add_(1)
    return [step(), source()]
child, words = in_fork(in_child)
print(json.dumps([child == here, words, source()]))
""")
    assert got[0]
    assert got[1].startswith("OpenMP runtime already loaded (lib")
    assert got[2] == "own pool"
