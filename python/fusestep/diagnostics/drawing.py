"""How the pictures of this package look: figures, colours, and the rows that layers are drawn as."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Readable in the common kinds of colour blindness; bad things also have another marker and are named in words.
MAIN, SECOND, THIRD, BAD, FAINT = "#1f5fa8", "#e08214", "#4d9a5b", "#c0202a", "#7f7f7f"
DPI = 130


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches. Raises ImportError, with the remedy, when matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as missing:
        message = f"plots of diagnostics need matplotlib: {missing}. Try: pip install 'fusestep[train]'"
        raise ImportError(message) from missing
    return Figure(figsize=(width, height), layout="constrained")


def height_of_rows(rows: int) -> float:
    """Inches: each row has to be read, and a title and an axis are there in any case."""
    return 1.6 + 0.2 * max(rows, 4)


def style(axes: Axes, title: str, xlabel: str = "", ylabel: str = "") -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(xlabel, fontsize=9)
    axes.set_ylabel(ylabel, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)


def rows_axis(axes: Axes, names: Sequence[str]) -> None:
    """One row a name, from the top down."""
    axes.set_yticks(range(len(names)), [name or "(model)" for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)


def dots(
    axes: Axes,
    values: Sequence[float | None],
    bad: Sequence[bool],
    *,
    limits: Sequence[float] = (),
) -> None:
    """A dot for each row on a logarithmic axis; red crosses where it is bad; dashed lines at ``limits``.

    What is zero or below the axis lies on its left edge, what is not finite on its right one.
    """
    finite = [v for v in values if v is not None and math.isfinite(v) and v > 0.0]
    left, right = (min(finite) / 2, max(finite) * 2) if finite else (1e-3, 1.0)
    if math.log10(right / left) < 1.0:  # a decade at least, so that small differences look small
        left, right = left / 2, right * 2
    for limit in limits:
        if left / 100 < limit < right * 100:  # a limit far away would squeeze everything else
            left, right = min(left, limit / 2), max(right, limit * 2)
            axes.axvline(limit, color=BAD, linestyle="--", linewidth=1.0)
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    for row, (value, is_bad) in enumerate(zip(values, bad, strict=True)):
        if value is None:
            continue
        at = right if not math.isfinite(value) else max(value, left)
        marker, colour = ("X", BAD) if is_bad else ("o", MAIN)
        axes.plot([left, at], [row, row], color=colour, alpha=0.25, linewidth=2.5, solid_capstyle="butt")
        axes.plot([at], [row], marker, color=colour, markersize=6 if is_bad else 5, clip_on=False)
