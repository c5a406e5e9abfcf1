"""The figures of a report as rows of text, for the page and for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fusestep.report.runs import Run

RESULTS = ("run", "steps", "training loss", "validation loss", "best validation loss", "tokens", "time", "tokens/s")


def results(runs: Sequence[Run]) -> list[list[str]]:
    """One row a run, in the order of RESULTS: where it ended."""
    rows = []
    for run in runs:
        last = run.steps[-1] if run.steps else None
        evaluated = run.evaluations[-1].val_loss if run.evaluations else None
        best = f"{_loss(run.best.val_loss)} at step {run.best.step:,}" if run.best is not None else "-"
        rows.append(
            [
                run.name,
                f"{last.step:,}" if last else "-",
                _loss(last.loss if last else None),
                _loss(evaluated),
                best,
                f"{last.tokens:,}" if last else "-",
                f"{last.seconds:,.0f} s" if last and math.isfinite(last.seconds) else "-",
                f"{run.tokens_per_second:,.0f}" if run.tokens_per_second is not None else "-",
            ]
        )
    return rows


def differences(dictionaries: Sequence[dict[str, Any]]) -> list[list[str]]:
    """(name, value in each run) of what is not the same in all of them; "-" where a run does not have it."""
    return [row for row in together(dictionaries) if len(set(row[1:])) > 1]


def together(dictionaries: Sequence[dict[str, Any]]) -> list[list[str]]:
    """(name, value in each run) of all names, in the order in which they first appear."""
    names = dict.fromkeys(name for values in dictionaries for name in values)
    return [[name, *(_text(values[name]) if name in values else "-" for values in dictionaries)] for name in names]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    return "none" if value is None else str(value)


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
