"""What every diagnostic returns: a dataclass that gives itself as JSON, as a text and as a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from fusestep.diagnostics import drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

Row = TypeVar("Row")


class Report:
    """The base of what diagnostics return. A subclass is a dataclass and says how it is drawn and told."""

    size: ClassVar[tuple[float, float]] = (8.0, 4.0)  # of the picture, in inches

    def to_dict(self) -> dict[str, Any]:
        """Fields and properties, as plain data. JSON has no NaN and no infinity: they become None."""
        plain: dict[str, Any] = _plain(self)
        return plain

    def to_json(self) -> str:
        """``to_dict``, as JSON."""
        return json.dumps(self.to_dict(), indent=1)

    def draw(self, figure: Figure | SubFigure) -> None:
        """Draws into a figure of matplotlib."""
        raise NotImplementedError

    def plot(self, path: str | Path) -> None:
        """Writes the picture as a PNG. Raises ImportError, with the remedy, when matplotlib is missing."""
        figure = drawing.new_figure(*self.figure_size())
        self.draw(figure)
        figure.savefig(path, dpi=drawing.DPI)

    def figure_size(self) -> tuple[float, float]:
        return self.size

    def summary(self) -> str:
        """What it found, in a few lines."""
        raise NotImplementedError


@dataclass(frozen=True)
class RowsReport(Report, Generic[Row]):
    """A report that is a row for each parameter, layer or block, in the model's order; it can be iterated over."""

    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def figure_size(self) -> tuple[float, float]:
        width, _ = self.size
        return width, drawing.height_of_rows(len(self.rows))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value):
        properties = [name for name in dir(type(value)) if isinstance(getattr(type(value), name), property)]
        names = [field.name for field in fields(value)] + [name for name in properties if not name.startswith("_")]
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value
