"""What every benchmark of one command shares: how long to measure, with how many threads, and beside whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from .peers import Peers
from .timing import Effort


@dataclass(frozen=True)
class Session:
    """say: is told what is measured next."""

    effort: Effort
    threads: int
    say: Callable[[str], None]
    peers: Peers

    def with_effort(self, effort: Effort) -> Session:
        return replace(self, effort=effort)
