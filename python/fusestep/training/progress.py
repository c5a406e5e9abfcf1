"""The progress bar."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from fusestep.training.metrics import StepMetrics


class Progress:
    """A tqdm bar on stderr from ``step`` to ``total``: loss, last validation loss, rate, norm, tokens a second.

    Not shown when ``enabled`` is false. Raises ImportError, with the remedy, when tqdm is missing.
    """

    def __init__(self, enabled: bool, step: int, total: int) -> None:
        self._bar = None
        self._val_loss = ""
        if enabled:
            try:
                from tqdm import tqdm  # type: ignore[import-untyped]
            except ImportError as missing:
                raise ImportError("the progress bar needs tqdm: pip install tqdm, or progress=False") from missing
            # In a log file every refresh is a line of its own.
            interval = 0.1 if sys.stderr.isatty() else 10.0
            self._bar = tqdm(total=total, initial=step, unit="step", dynamic_ncols=True, mininterval=interval)
        self._started = time.perf_counter()
        self._tokens: int | None = None

    def update(self, metrics: StepMetrics) -> None:
        if self._bar is None:
            return
        if self._tokens is None:  # the first update warms caches up: the speed is counted from its end
            self._started, self._tokens = time.perf_counter(), metrics.tokens
        if metrics.val_loss is not None:
            self._val_loss = f" val {metrics.val_loss:.3f}"
        norm = "" if metrics.grad_norm is None else f" norm {metrics.grad_norm:.2f}"
        seconds = time.perf_counter() - self._started
        speed = f" {(metrics.tokens - self._tokens) / seconds:,.0f} tokens/s" if metrics.tokens > self._tokens else ""
        text = f"loss {metrics.loss:.3f}{self._val_loss} rate {metrics.lr:.1e}{norm}{speed}"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
