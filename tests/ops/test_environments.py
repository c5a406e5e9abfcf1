"""Where a program runs: worker processes, subinterpreters, limits of memory and threads.

Each in an interpreter of its own. Forks are in test_threads.py too, where threads are.
"""

from __future__ import annotations

import importlib.util
import sys

import pytest
from new_python import in_new_python

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="forks, reads /proc, sets limits")

# --- processes --------------------------------------------------------------------------------------------------


@needs_linux
def test_os_fork_after_use():
    got = in_new_python("""
import fusestep
fusestep.set_num_threads(3)
here = step()
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    os.write(writing, json.dumps(step()).encode())
    os._exit(0)
there = json.loads(os.read(reading, 10_000))
print(json.dumps([there == here, os.waitpid(child, 0)[1], step() == here]))
""")
    assert got == [True, 0, True]


@needs_linux
@needs_torch
def test_workers_of_a_data_loader():
    got = in_new_python("""
import torch
from fusestep import ops
class Dropped(torch.utils.data.Dataset):
    def __len__(self):
        return 24
    def __getitem__(self, i):
        return torch.from_numpy(ops.dropout(np.ones(100_000, np.float32), 0.5, seed=i))
torch.set_num_threads(2)
torch.ones(1 << 20).add_(1)
before = step()
data = Dropped()
loader = torch.utils.data.DataLoader(data, batch_size=4, num_workers=2)
same = [torch.equal(rows, torch.stack([data[4 * i + k] for k in range(4)])) for i, rows in enumerate(loader)]
print(json.dumps([same, step() == before]))
""")
    assert got == [[True] * 6, True]


def test_spawned_processes():
    got = in_new_python("""
context = multiprocessing.get_context("spawn")
import fusestep
x = np.ones(1 << 18, np.float32)
here = [fusestep.ops.grad_norm([x]), fusestep.ops.grad_norm([2 * x])]
with context.Pool(2) as pool:
    print(json.dumps(pool.map(fusestep.ops.grad_norm, [[x], [2 * x]]) == here))
""")
    assert got


# --- threads of Python ------------------------------------------------------------------------------------------
def test_the_first_calls_of_many_threads_at_once():
    got = in_new_python("""
from concurrent.futures import ThreadPoolExecutor
barrier = threading.Barrier(8)
def first(_):
    barrier.wait()
    return step(1 << 15)
with ThreadPoolExecutor(8) as executor:
    print(json.dumps(len({json.dumps(r) for r in executor.map(first, range(8))})))
""")
    assert got == 1


# --- subinterpreters --------------------------------------------------------------------------------------------
def test_subinterpreters_are_refused_clearly():
    """By fusestep, or from Python 3.12 on by Python; without the check the import hung."""
    got = in_new_python("""
import fusestep, tempfile
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
here = step()
path = tempfile.mkstemp()[1]
inner = f'''
import warnings
warnings.simplefilter("ignore")
try:
    import fusestep
    said = "imported"
except ImportError as error:
    said = str(error)
with open({path!r}, "w") as file:
    file.write(said)
'''
interpreter = interpreters.create()
interpreters.run_string(interpreter, inner)
interpreters.destroy(interpreter)
print(json.dumps([open(path).read(), step() == here]))
""")
    # NumPy, which comes first where no check does, refuses in its own words.
    assert "interpreter" in got[0] or "once per process" in got[0]
    assert got[1]


# --- limits -----------------------------------------------------------------------------------------------------
LIMIT = """
import resource
import fusestep
from fusestep import ops

def limit_memory(more):
    now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more, resource.RLIM_INFINITY))

def unlimited():
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

def said(call):
    try:
        call()
    except (MemoryError, RuntimeError) as error:
        return type(error).__name__
    return "done"
"""


@needs_linux
def test_results_that_memory_has_no_room_for():
    got = in_new_python(f"""{LIMIT}
x = np.ones(1 << 24, np.float32)
before = step()
limit_memory(1 << 24)
refused = said(lambda: ops.dropout(x, 0.5, seed=1))
ops.dropout(x, 0.0, seed=1, out=x)
unlimited()
print(json.dumps([refused, bool((x == 1).all()), step() == before]))
""")
    assert got == ["MemoryError", True, True]


@needs_linux
def test_scratch_memory_that_there_is_no_room_for():
    """What attention's backward pass needs besides its results: an error, and the next call works."""
    got = in_new_python(f"""{LIMIT}
fusestep.set_num_threads(1)
query = np.ones((1, 1, 4096, 64), np.float32)
lse, out = np.zeros((1, 1, 4096), np.float32), np.zeros_like(query)
ops.attention(query, query, query, out=out, lse=lse)
seen = set()
for more in (0, 1 << 12, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24):
    limit_memory(more)
    seen.add(said(lambda: ops.attention_backward(out, query, query, query, out, lse)))
    unlimited()
print(json.dumps([sorted(seen), said(lambda: ops.attention_backward(out, query, query, query, out, lse))]))
""")
    assert set(got[0]) <= {"MemoryError", "done"}
    assert "MemoryError" in got[0]
    assert got[1] == "done"


@needs_linux
def test_threads_that_the_system_does_not_give():
    """The work is done by those that there are. As root no limit of processes holds, but that of memory does."""
    got = in_new_python(f"""{LIMIT}
fusestep.set_num_threads(1)
alone = step()
fusestep.set_num_threads(8)
used = len(os.listdir("/proc/self/task"))
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
limit_memory(1 << 23)
few = step(1 << 15) is not None
print(json.dumps([step() == alone, few]))
""")
    assert got == [True, True]
