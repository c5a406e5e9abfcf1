"""Text as bytes: reading, splitting, batches that can be resumed, and the unigram baseline."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusestep._refusal import check_integer, check_number, refuse

Batch = tuple[Tensor, Tensor]


class TextError(ValueError):
    """A text that cannot be read, is empty, or is too short to train on."""


def read_text(files: Sequence[str | Path] = ()) -> bytes:
    """The bytes of ``files``, one after the other; without files, the help topics that every CPython carries.

    (``pydoc_data.topics``, about 0.47 MB; its text differs a little from one Python version to the next.)
    Raises TextError, which names the file, when one is missing, unreadable or empty.
    """
    if not files:
        from pydoc_data.topics import topics

        return "\n\n".join(topics[name] for name in sorted(topics)).encode()
    parts = []
    for file in files:
        try:
            text = Path(file).read_bytes()
        except FileNotFoundError:
            refuse("read_text", "files", "a text file", f"'{file}', which does not exist", error=TextError)
        except OSError as problem:
            refuse("read_text", "files", "a readable file", f"'{file}': {problem.strerror}", error=TextError)
        if not text:
            refuse("read_text", "files", "a text", f"'{file}', which is empty", error=TextError)
        parts.append(text)
    return b"".join(parts)


def split_text(text: bytes, val_fraction: float = 0.1) -> tuple[Tensor, Tensor]:
    """(training, validation): uint8 tensors, the end of the text being held out.

    The end, not random pieces: a held-out piece between two training pieces would be half known.
    """
    check_number("split_text", "val_fraction", val_fraction, 0.0, 1.0, exclusive=True)
    if not text:
        refuse("split_text", "text", "at least one byte", "none", error=TextError)
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    cut = len(text) - math.ceil(len(text) * val_fraction)
    return data[:cut], data[cut:]


class RandomBatches:
    """Batches (inputs, targets) of int64 (batch_size, context) in random order: one iteration is one epoch.

    An epoch cuts the text into N windows of ``context`` bytes, from a random offset, and deals them out once
    each in a random order: ``len(batches)`` = s steps with N = b * s (the few windows beyond b * s are left
    for other epochs). The targets are the inputs one byte later.

    rank, processes: of several processes that train together, each makes its own share of every batch: rows rank,
    rank + processes, ... of it. Each needs a ``generator`` of the same state.

    ``indices``, int64 (batch_size,), says where in ``data`` the windows of the last batch began.

    All randomness comes from ``generator``, and ``state_dict`` / ``load_state_dict`` continue in the middle
    of an epoch: the next iteration gives exactly the batches that would have come.
    """

    def __init__(
        self,
        data: Tensor,
        batch_size: int,
        context: int,
        generator: torch.Generator,
        *,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        _check_windows("RandomBatches", data, batch_size, context, spare=context)
        _check_share("RandomBatches", rank, processes)
        if batch_size % processes:
            refuse("RandomBatches", "batch_size", f"a multiple of the {processes} processes", str(batch_size))
        self.windows = (len(data) - context) // context  # what fits whatever the offset
        if self.windows < batch_size:
            refuse(
                "RandomBatches",
                "data",
                f"at least {(batch_size + 1) * context} bytes for one batch of {batch_size} x {context}",
                f"{len(data)}",
                "Give more text, or a smaller batch or context.",
                TextError,
            )
        self.data = data
        self.batch_size = batch_size
        self.context = context
        self.generator = generator
        self._share = slice(rank, None, processes)
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._epoch_start = self.generator.get_state()
        offset = torch.randint(self.context, (1,), generator=self.generator)
        order = torch.randperm(self.windows, generator=self.generator)
        self._starts = offset + order * self.context
        self._position = 0
        self.indices = self._starts[:0]

    def __len__(self) -> int:
        """Steps an epoch."""
        return self.windows // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        if self._position == len(self):
            self._begin_epoch()
        while self._position < len(self):
            first = self._position * self.batch_size
            self._position += 1  # before the batch leaves, so that a state taken while it is in use is after it
            self.indices = self._starts[first : first + self.batch_size][self._share]
            yield _cut(self.data, self.indices, self.context)

    def state_dict(self) -> dict[str, Any]:
        """Where the iteration stands: everything that ``load_state_dict`` needs, for ``torch.save``."""
        return {
            "epoch_start": self._epoch_start,
            "position": self._position,
            "windows": self.windows,
            "batch_size": self.batch_size,
            "context": self.context,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where ``state`` was taken. Raises ValueError if it is of other data, batch size or context."""
        for name in ("windows", "batch_size", "context"):
            if state[name] != getattr(self, name):
                refuse("RandomBatches.load_state_dict", name, str(getattr(self, name)), str(state[name]))
        self.generator.set_state(state["epoch_start"])
        self._begin_epoch()
        self._position = state["position"]


class SequentialBatches:
    """The same batches (inputs, targets) at every iteration, for evaluation; the last one may be smaller.

    The windows are dealt out like cards, neighbours to different batches, so that the first m batches are
    spread over the whole text and not just its beginning.

    rank, processes: as for ``RandomBatches``. Of a last batch of fewer windows than processes some get no rows.
    """

    def __init__(self, data: Tensor, batch_size: int, context: int, *, rank: int = 0, processes: int = 1) -> None:
        _check_windows("SequentialBatches", data, batch_size, context, spare=1)
        _check_share("SequentialBatches", rank, processes)
        self.data = data
        self.context = context
        starts = torch.arange((len(data) - 1) // context) * context
        count = math.ceil(len(starts) / batch_size)
        self._batches = [starts[first::count][rank::processes] for first in range(count)]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return (_cut(self.data, starts, self.context) for starts in self._batches)


def unigram_loss(train: Tensor, val: Tensor) -> float:
    """Nats a byte of ``val`` under the byte frequencies of ``train``: what a model without any context reaches.

    Every byte counts as seen once more than it was, so that one that only ``val`` has costs much, not infinity.
    """
    counts = torch.bincount(train.long(), minlength=256).double() + 1.0
    return float(-(counts / counts.sum()).log()[val.long()].mean())


def _check_windows(operation: str, data: Tensor, batch_size: int, context: int, spare: int) -> None:
    check_integer(operation, "batch_size", batch_size, 1)
    check_integer(operation, "context", context, 1)
    if data.dtype != torch.uint8 or data.dim() != 1:
        refuse(operation, "data", "a 1-dim uint8 tensor", f"{tuple(data.shape)} {data.dtype}", error=TypeError)
    if len(data) < context + spare:
        refuse(
            operation,
            "data",
            f"at least {context + spare} bytes for a context of {context}",
            f"{len(data)}",
            "Give more text, or a smaller context.",
            TextError,
        )


def _check_share(operation: str, rank: int, processes: int) -> None:
    check_integer(operation, "processes", processes, 1)
    check_integer(operation, "rank", rank, 0)
    if rank >= processes:
        refuse(operation, "rank", f"one of the {processes} processes, from 0", str(rank))


def _cut(data: Tensor, starts: Tensor, context: int) -> Batch:
    windows = data[starts[:, None] + torch.arange(context + 1)].long()
    return windows[:, :-1], windows[:, 1:]
