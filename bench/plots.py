"""Pictures of results: how our time compares with theirs, and what everybody achieves of what the machine can do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .floor import NAME as FLOOR
from .report import machine
from .rows import OURS, PEAK, Row, noise

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A picture of more rows is split by operation.
MOST_ROWS = 60

_OUR_COLOUR = "#00796b"
_CEILING_COLOUR = "black"
_DPI = 110
_LINE_INCHES = 0.17  # of each bar


def save(document: Row, path: Path) -> list[Path]:
    """A picture for each benchmark: in `path` if there is one, else with the benchmark's name before the suffix."""
    groups = list(grouped(document["results"]))
    heading = machine(document["machine"]) + ("\nquick run: no results" if document["quick"] else "")
    paths = []
    for name, rows in groups:
        target = path if len(groups) == 1 else path.with_stem(f"{path.stem}-{name}")
        figure(rows, heading).savefig(target, dpi=_DPI)
        paths.append(target)
    return paths


def grouped(rows: list[Row]) -> Iterator[tuple[str, list[Row]]]:
    """The rows that have ratios, by benchmark; large ones by operation too."""
    timed = [row for row in rows if row.get("ratios")]
    for bench in dict.fromkeys(row["bench"] for row in timed):
        mine = [row for row in timed if row["bench"] == bench]
        if len(mine) <= MOST_ROWS:
            yield bench, mine
            continue
        for operation in dict.fromkeys(row["operation"] for row in mine):
            slug = re.sub(r"\W+", "-", operation).strip("-")
            yield f"{bench}-{slug}", [row for row in mine if row["operation"] == operation]


def figure(rows: list[Row], heading: str) -> Figure:
    """Ratios with their quartiles on the left; on the right bandwidth or arithmetic, and the machine's own."""
    from matplotlib.figure import Figure

    measured = [row for row in rows if _unit(row) is not None]
    lines = sum(len(_peers(row)) + 1 for row in rows)
    result = Figure(figsize=(13 if measured else 9, 1.6 + _LINE_INCHES * max(lines, 8)), layout="constrained")
    panels = result.subplots(1, 2 if measured else 1, squeeze=False, sharey=True)[0]
    colours = _colours(rows)
    _draw_ratios(panels[0], rows, colours)
    if measured:
        _draw_rates(panels[1], rows, colours)
    _label_rows(panels[0], rows)
    for axes in panels:
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="x", alpha=0.3, linewidth=0.6)
        axes.set_axisbelow(True)
    handles = {handle.get_label(): handle for axes in panels for handle in axes.get_legend_handles_labels()[0]}
    result.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    result.suptitle(heading, fontsize=9)
    return result


def _draw_ratios(axes: Axes, rows: list[Row], colours: dict[str, Any]) -> None:
    for name in _names(rows):
        lines = [(place, row["ratios"][name]) for place, row in _bars(rows, name)]
        places = [place for place, _ in lines]
        medians = [ratio["median"] for _, ratio in lines]
        below = [ratio["median"] - ratio["q1"] for _, ratio in lines]
        above = [ratio["q3"] - ratio["median"] for _, ratio in lines]
        axes.barh(places, medians, height=0.85, color=colours[name], xerr=(below, above), ecolor="0.35", label=name)
    axes.axvline(1.0, color=_CEILING_COLOUR, linewidth=0.9)
    axes.set_xlabel("our time over theirs (median and quartiles; below 1 ours is faster)")


def _draw_rates(axes: Axes, rows: list[Row], colours: dict[str, Any]) -> None:
    """A point for each contestant, its quartiles as a line; a mark through the row where the floor or the peak is."""
    unit = next(unit for unit in map(_unit, rows) if unit is not None)
    for name in [OURS, *_names(rows)]:
        for number, (place, row) in enumerate(_places(rows, name)):
            contestant = row["contestants"][name]
            if contestant.get(unit) is None:
                continue
            moved = contestant[unit] * contestant["seconds"]["median"]
            slow, fast = (moved / contestant["seconds"][quartile] for quartile in ("q3", "q1"))
            label = name if number == 0 else None
            axes.plot([slow, fast], [place, place], color=colours[name], linewidth=1.2)
            axes.plot(contestant[unit], place, "o", color=colours[name], markersize=5, label=label)
    for number, (bottom, top, row) in enumerate(_extents(rows)):
        for ceiling in (FLOOR, PEAK):
            if (row["contestants"].get(ceiling) or {}).get(unit) is not None:
                x = row["contestants"][ceiling][unit]
                label = f"{ceiling}, measured" if number == 0 else None
                axes.plot([x, x], [bottom, top], color=_CEILING_COLOUR, linewidth=1.6, label=label)
    axes.set_xlim(left=0)
    axes.set_xlabel("GB/s moved" if unit == "gb_per_s" else "GFLOP/s")


def _label_rows(axes: Axes, rows: list[Row]) -> None:
    extents = list(_extents(rows))
    titles = [f"{row['operation']}, {row['case']}{' *' if noise(row) else ''}" for row in rows]
    axes.set_yticks([(bottom + top) / 2 for bottom, top, _ in extents], titles, fontsize=8)
    axes.set_ylim(extents[-1][1] + 0.5, -0.5)


def _places(rows: list[Row], name: str) -> Iterator[tuple[float, Row]]:
    """Where a contestant's line is, in the rows that it is in: ours first, then the peers, one below another."""
    for (bottom, _, _), row in zip(_extents(rows), rows, strict=True):
        if name in row["contestants"]:
            yield bottom + 0.5 + [OURS, *_peers(row)].index(name), row


def _bars(rows: list[Row], name: str) -> Iterator[tuple[float, Row]]:
    """The same for ratios, which ours has none of: the peers' bars stand in the middle of the row."""
    for (bottom, top, _), row in zip(_extents(rows), rows, strict=True):
        peers = _peers(row)
        if name in peers:
            yield (bottom + top) / 2 + peers.index(name) - (len(peers) - 1) / 2, row


def _extents(rows: list[Row]) -> Iterator[tuple[float, float, Row]]:
    bottom = 0.0
    for row in rows:
        top = bottom + len(_peers(row)) + 1
        yield bottom, top - 0.25, row
        bottom = top


def _peers(row: Row) -> list[str]:
    return [name for name in row["contestants"] if name not in (OURS, FLOOR, PEAK)]


def _names(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in _peers(row)))


def _unit(row: Row) -> str | None:
    ours = row["contestants"].get(OURS, {})
    return next((unit for unit in ("gb_per_s", "gflop_per_s") if ours.get(unit) is not None), None)


def _colours(rows: list[Row]) -> dict[str, Any]:
    from matplotlib import colormaps

    palette = colormaps["tab10"].colors  # type: ignore[attr-defined]
    return {OURS: _OUR_COLOUR, **{name: palette[i % len(palette)] for i, name in enumerate(_names(rows))}}
