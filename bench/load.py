"""How busy others kept the machine while we measured: a result from a busy machine is marked as such."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

_STAT = Path("/proc/stat")


class OtherLoad:
    """A with-block; afterwards `share` is the part of this process's CPUs that others used during it.

    Others are all other processes, and what the hypervisor took away (steal). None where /proc/stat is missing.
    """

    share: float | None = None

    def __enter__(self) -> OtherLoad:
        self._busy = _busy_seconds()
        self._own = time.process_time()
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        busy = _busy_seconds()
        elapsed = time.perf_counter() - self._start
        if busy is None or self._busy is None or elapsed <= 0:
            return
        own = time.process_time() - self._own
        others = busy - self._busy - own
        self.share = min(1.0, max(0.0, others / (elapsed * len(os.sched_getaffinity(0)))))


def _busy_seconds() -> float | None:
    """Seconds that the CPUs this process may use have been busy since the machine started."""
    if not _STAT.exists():
        return None
    ours = {f"cpu{n}" for n in os.sched_getaffinity(0)}
    ticks = 0
    for line in _STAT.read_text().splitlines():
        name, *fields = line.split()
        if name in ours:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")
