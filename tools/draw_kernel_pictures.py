"""Draws the pictures of docs/cuda-kernels.md from the rules of the kernels.

python tools/draw_kernel_pictures.py [FOLDER]     default: docs/pictures
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

THREADS = 4  # that own the columns of a row of the tensor cores' results
KEYS = 32
COLOURS = colormaps["Set2"].colors  # type: ignore[attr-defined]


def key_at(position: int) -> int:
    """As in cuda/attention/tile.h."""
    return (position & ~31) + 8 * ((position & 7) // 2) + 2 * ((position // 8) & 3) + (position & 1)


def owner(position: int) -> int:
    """The thread that holds this column: two neighbours of each eight."""
    return position % 8 // 2


def rotating(key_tiles: int, query_tiles: int) -> list[list[int | None]]:
    """[key tile][time]: the query tile that is added to. As in cuda/attention/turns.h, where all attend to all."""
    return [
        [(j * query_tiles // key_tiles + step) % query_tiles for step in range(query_tiles)] for j in range(key_tiles)
    ]


def in_order(tiles: int) -> list[list[int | None]]:
    """The same under a causal mask: key tile j visits query tiles j and on, and waits for j + 1 at each."""
    done: list[dict[int, int]] = [{} for _ in range(tiles + 1)]
    for j in reversed(range(tiles)):
        time = 0
        for i in range(j, tiles):
            time = max(time, done[j + 1].get(i, 0))
            done[j][i] = time + 1
            time += 1
    length = max(max(row.values(), default=0) for row in done)
    times = [{time - 1: i for i, time in row.items()} for row in done[:tiles]]
    return [[row.get(time) for time in range(length)] for row in times]


def draw_cells(axes: Axes, rows: list[list[int | None]], colours: list[list[int]], labels: list[str]) -> None:
    for y, (row, chosen) in enumerate(zip(rows, colours, strict=True)):
        for x, (value, colour) in enumerate(zip(row, chosen, strict=True)):
            if value is None:
                continue
            axes.add_patch(Rectangle((x, y), 1, 1, facecolor=COLOURS[colour % len(COLOURS)], edgecolor="white"))
            axes.text(x + 0.5, y + 0.5, str(value), ha="center", va="center", fontsize=8)
    axes.set_xlim(0, max(map(len, rows)))
    axes.set_ylim(len(rows), 0)
    axes.set_yticks([y + 0.5 for y in range(len(rows))], labels, fontsize=8)
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)


def permuted_keys() -> Figure:
    figure = Figure(figsize=(10, 2.2), layout="constrained")
    axes = figure.subplots()
    positions = list(range(KEYS))
    keys = [key_at(position) for position in positions]
    by_key = [owner(keys.index(key)) for key in positions]
    draw_cells(
        axes,
        [list(keys), list(positions)],
        [[owner(position) for position in positions], by_key],
        ["key in column 0, 1, ...", "keys in their own order"],
    )
    axes.set_title("A row of scores: colours are the four threads that hold it", fontsize=10, loc="left")
    return figure


def turns() -> Figure:
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    for axes, rows, title in zip(
        figure.subplots(1, 2),
        (rotating(6, 6), in_order(6)),
        ("No mask: around, from tiles of their own", "Causal: from the diagonal on, the last first"),
        strict=True,
    ):
        colours = [[0 if tile is None else tile for tile in row] for row in rows]
        draw_cells(axes, rows, colours, [f"block of key tile {j}" for j in range(len(rows))])
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("time; number and colour: the query tile that is added to", fontsize=8)
    return figure


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/pictures")
    with rc_context({"svg.hashsalt": "fusestep"}):  # the same file every time
        for name, figure in (("permuted-keys", permuted_keys()), ("turns", turns())):
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    return 0


if __name__ == "__main__":
    sys.exit(main())
