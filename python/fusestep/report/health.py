"""The health of the gradients by layer, over a run: read, told in a sentence, drawn as a heat map."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusestep.report.lines import parsed_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FLAGGED = "#ff3b30"  # on the heat map, whose colours go from blue to yellow
TOLD = 5  # layers that a sentence names


@dataclass(frozen=True)
class HealthRecord:
    """One line of ``health.jsonl``."""

    step: int
    grad_norms: dict[str, float | None]  # by layer; None: not finite
    flags: dict[str, str]  # by layer, as ``diagnostics.LayerGradient.flag``

    @classmethod
    def of(cls, line: dict[str, Any]) -> HealthRecord:
        layers = line["layers"].items()
        norms = {name: None if layer["grad_norm"] is None else float(layer["grad_norm"]) for name, layer in layers}
        return cls(int(line["step"]), norms, {name: str(layer["flag"]) for name, layer in layers})


def load_health(path: Path, problems: list[str]) -> list[HealthRecord]:
    """The lines that can be read; none where there is no file. ``problems`` is told of the others."""
    return parsed_lines(path, HealthRecord.of, problems) if path.is_file() else []


def layers_of(records: list[HealthRecord]) -> list[str]:
    """All names, in the model's order."""
    return list(dict.fromkeys(name for record in records for name in record.flags))


def summary(records: list[HealthRecord]) -> str:
    """Which layers were not ok, how often and since when; the most often first."""
    sick: dict[tuple[str, str], list[int]] = {}
    for record in records:
        for name, flag in record.flags.items():
            if flag != "ok":
                sick.setdefault((name, flag), []).append(record.step)
    seen = f"{len(records):,} record{'s' * (len(records) > 1)}, steps {records[0].step:,} to {records[-1].step:,}"
    if not sick:
        return f"all {len(layers_of(records)):,} layers ok in {seen}"
    told = [
        f"{name or '(model)'}: {flag} in {len(at):,}, first at step {at[0]:,}"
        for (name, flag), at in sorted(sick.items(), key=lambda item: -len(item[1]))
    ]
    more = f"; and {len(told) - TOLD:,} more" if len(told) > TOLD else ""
    return f"{'; '.join(told[:TOLD])}{more} (of {seen})"


def draw(axes: Axes, records: list[HealthRecord]) -> None:
    """Rows are layers, columns records, the colour is the norm of the gradient; what is not ok has a cross."""
    import numpy as np
    from matplotlib.colors import LogNorm

    names, steps = layers_of(records), [record.step for record in records]
    norms = np.array([[record.grad_norms.get(name) for record in records] for name in names], np.float64)
    shown = np.ma.masked_where(~(np.isfinite(norms) & (norms > 0.0)), norms)  # (layers, records)
    middles = [(a + b) / 2 for a, b in pairwise(steps)]
    edges = [steps[0] - 0.5, *middles, steps[-1] + 0.5]
    rows = np.arange(len(names) + 1) - 0.5
    scale = LogNorm(shown.min(), shown.max()) if shown.count() and shown.min() < shown.max() else None
    mesh = axes.pcolormesh(edges, rows, shown, norm=scale, cmap="viridis", rasterized=True)
    axes.figure.colorbar(mesh, ax=axes, label="norm of the gradient", pad=0.01)
    for row, name in enumerate(names):
        at = [record.step for record in records if record.flags.get(name, "ok") != "ok"]
        axes.plot(at, [row] * len(at), "x", color=FLAGGED, markersize=5, markeredgewidth=1.6)
    axes.set_yticks(range(len(names)), [name or "(model)" for name in names], fontsize=8)
    axes.invert_yaxis()
