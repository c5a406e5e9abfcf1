"""Process groups for tests: a world of gloo processes that is started once and then asked to run many checks.

Nothing here can hang: a check that takes too long ends with its processes killed, and the test fails.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

START_SECONDS = 120  # on a busy machine: an interpreter and an import of torch
CHECK_SECONDS = 60
PRELOADED = [
    "pytest",
    "torch._dynamo",  # an optimizer's first step imports it
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "fusestep.nn.utils",
    "fusestep.optim",
]


class World:
    """`size` processes of one process group, for ``with``.

    ``run(check, *arguments)`` calls a function of a module's top level in each of them and gives the list of what they
    return, by rank. A failure anywhere fails the test, with the traceback of each rank that failed.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._folder = tempfile.TemporaryDirectory()
        # One process imports torch, and forks the others before it has any thread.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        store = str(Path(self._folder.name) / "store")
        self._pipes, self._processes = [], []
        for rank in range(size):
            pipe, other = context.Pipe()
            process = context.Process(target=_serve, args=(rank, size, store, other), daemon=True)
            process.start()
            other.close()
            self._pipes.append(pipe)
            self._processes.append(process)
        self._answers(START_SECONDS)

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()  # the end of _serve
        deadline = time.monotonic() + 10
        for process in self._processes:
            process.join(max(0, deadline - time.monotonic()))
        self.kill()
        self._folder.cleanup()

    def run(self, check: Callable[..., Any], *arguments: Any, seconds: float = CHECK_SECONDS) -> list[Any]:
        if not all(process.is_alive() for process in self._processes):
            raise AssertionError("the processes of this world were ended by an earlier failure")
        for pipe in self._pipes:
            pipe.send((check, arguments))
        return self._answers(seconds)

    def kill(self) -> None:
        for process in self._processes:
            if process.is_alive():
                process.kill()
                process.join()

    def _answers(self, seconds: float) -> list[Any]:
        deadline = time.monotonic() + seconds
        results, failures, lost = [], [], False
        for rank, pipe in enumerate(self._pipes):
            try:
                if not pipe.poll(max(0, deadline - time.monotonic())):
                    failures.append(f"rank {rank}: no answer within {seconds} s")
                    lost = True
                    continue
                failed, answer = pipe.recv()
            except (EOFError, ConnectionError):
                failures.append(f"rank {rank}: ended")
                lost = True
                continue
            if failed:
                failures.append(f"rank {rank}:\n{answer}")
            results.append(answer)
        if lost:
            self.kill()
        if failures:
            raise AssertionError("\n".join(failures))
        return results


def _serve(rank: int, size: int, store: str, pipe: Any) -> None:
    """A process: answers (failed, result or traceback), the first time when the group is there."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=CHECK_SECONDS)
        )
        pipe.send((False, None))
        while True:
            check, arguments = pipe.recv()
            try:
                pipe.send((False, check(*arguments)))
            except Exception:
                pipe.send((True, traceback.format_exc()))
    except (EOFError, KeyboardInterrupt):
        pass
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
