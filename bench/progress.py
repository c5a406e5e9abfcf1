"""A bar on stderr: how many of the measurements are done, and which one is running."""

from __future__ import annotations

import sys
from types import TracebackType

from tqdm import tqdm


class Progress:
    """A with-block. Called with the name of each measurement when it begins."""

    def __init__(self, total: int) -> None:
        self._bar = tqdm(total=total, unit="row", file=sys.stderr, dynamic_ncols=True)
        self._running = False

    def __enter__(self) -> Progress:
        return self

    def __call__(self, what: str) -> None:
        self._bar.update(int(self._running))
        self._running = True
        self._bar.set_description_str(what)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._bar.update(int(self._running))
            self._bar.set_description_str("done")
        self._bar.close()
