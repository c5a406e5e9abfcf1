"""Ctrl-C between two updates instead of in the middle of one."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType


class DeferredInterrupt:
    """While it is entered, the first Ctrl-C only sets ``requested``; the next one interrupts as usual.

    Only the main thread receives signals: entered in another one, or where SIGINT is ignored, it changes nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._installed = False

    def __enter__(self) -> DeferredInterrupt:
        self._usual = signal.getsignal(signal.SIGINT)
        if callable(self._usual):
            try:
                signal.signal(signal.SIGINT, self._request)
                self._installed = True
            except ValueError:  # not the main thread
                pass
        return self

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, self._usual)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._usual)
